//! Messages of the clipboard, for tests; those of `jetway-stage` compile this file, too.

use crate::Direction::{self, ToClient, ToTarget};

/// A message of MS-RDPECLIP.
pub(crate) fn clip(msg_type: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    let head = [msg_type.to_le_bytes(), flags.to_le_bytes()];
    [head.as_flattened(), &length.to_le_bytes(), body].concat()
}

/// The target offers a list of files, the client asks for it and gets it: so many names of so many characters.
pub(crate) fn file_list(count: usize, characters: usize) -> Vec<(Direction, Vec<u8>)> {
    let id = [0x34, 0xc0, 0, 0];
    let mut long = Vec::new();
    for unit in "FileGroupDescriptorW".encode_utf16().chain([0]) {
        long.extend(unit.to_le_bytes());
    }
    let capabilities = clip(7, 0, b"\x01\0\0\0\x01\0\x0c\0\x02\0\0\0\x02\0\0\0");
    let mut list = u32::try_from(count).unwrap().to_le_bytes().to_vec();
    for _ in 0..count {
        let end = list.len() + 592;
        list.resize(list.len() + 72, 0);
        list.resize(list.len() + characters * 2, 0x41);
        list.resize(end, 0);
    }
    vec![
        (ToTarget, capabilities.clone()),
        (ToClient, capabilities),
        (ToClient, clip(2, 0, &[&id[..], &long].concat())),
        (ToTarget, clip(4, 0, &id)),
        (ToClient, clip(5, 1, &list)),
    ]
}
