//! The sessions in `tests/golden/sessions`, whose `README.md` tells how they were recorded.

use std::fs;
use std::path::Path;

/// The PDUs of the session `name`, in order; each with `by_client` or `by_target`, whichever its sender is to the caller.
pub fn session<S: Copy>(name: &str, [by_client, by_target]: [S; 2]) -> Vec<(S, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/sessions");
    let bytes = fs::read(folder.join(format!("{name}.rec"))).unwrap();
    let mut rest = bytes.as_slice();
    let mut pdus = Vec::new();
    // For each PDU its sender (0 the client, 1 the target), its length (u32, little-endian) and its bytes.
    while let Some((sender, behind)) = rest.split_first() {
        let (length, behind) = behind.split_first_chunk().unwrap();
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap();
        let (pdu, behind) = behind.split_at(length);
        let sender = match sender {
            0 => by_client,
            1 => by_target,
            other => panic!("{name}: unknown sender {other}"),
        };
        pdus.push((sender, pdu.to_vec()));
        rest = behind;
    }
    pdus
}
