//! Peers that try to make the gateway remember without end, in every way that the parsers know.

use Direction::{ToClient, ToTarget};

use super::{ChannelError, Channels};
use crate::limits;
use crate::rdp::Direction;
use crate::rdp::budget::Budget;

/// A PDU of a static channel.
type Pdu = (&'static str, Direction, Vec<u8>);

#[test]
fn no_way_to_make_a_session_remember_passes_its_budget() {
    for (way, from, pdus) in ways() {
        let budget = Budget::default();
        let mut channels = Channels::new(&budget);
        let mut most = 0;
        let mut error = None;
        for (name, direction, pdu) in pdus {
            if let Err(stop) = channels.feed(name, direction, &pdu) {
                error = Some(stop);
                break;
            }
            most = most.max(budget.held(ToTarget) + budget.held(ToClient));
        }
        assert!(most <= limits::REMEMBERED_BYTES, "{way}: {most}");
        let Some(ChannelError::Memory(exhausted)) = error else {
            panic!("{way}: {error:?} with {most} bytes");
        };
        assert_eq!(exhausted.from, from, "{way}: {exhausted}");
        assert!(
            most > limits::REMEMBERED_PER_DIRECTION_BYTES / 2,
            "{way}: {most}"
        );
        drop(channels);
        assert_eq!((budget.held(ToTarget), budget.held(ToClient)), (0, 0));
    }
}

#[test]
fn what_is_closed_is_given_back_and_may_be_remembered_again() {
    let budget = Budget::default();
    let mut channels = Channels::new(&budget);
    for _ in 0..3 {
        channels
            .feed("drdynvc", ToClient, &create(0, "AUDIO_INPUT"))
            .unwrap();
        for part in 0..100 {
            let (up, down) = (bomb(0, part == 0), bomb(0, part == 0));
            channels.feed("drdynvc", ToTarget, &up).unwrap();
            channels.feed("drdynvc", ToClient, &down).unwrap();
        }
        for id in 0..1000 {
            channels
                .feed("drdynvc", ToClient, &create(1 + id, "rdpdr"))
                .unwrap();
            let request = data(1 + id, &open_request(id, 2000));
            channels.feed("drdynvc", ToClient, &request).unwrap();
        }
        assert!(budget.held(ToTarget) > 800_000 && budget.held(ToClient) > 6_000_000);
        for id in 0..=1000_u32 {
            let close = [&[0x42][..], &id.to_le_bytes()].concat();
            channels.feed("drdynvc", ToTarget, &close).unwrap();
        }
        assert_eq!((budget.held(ToTarget), budget.held(ToClient)), (0, 0));
    }
}

#[test]
fn the_largest_messages_that_are_real_pass() {
    let budget = Budget::default();
    let mut channels = Channels::new(&budget);
    channels
        .feed("drdynvc", ToClient, &create(1, "AUDIO_INPUT"))
        .unwrap();
    channels
        .feed("drdynvc", ToTarget, &[0x10, 1, 0, 0, 0, 0])
        .unwrap();
    let length = limits::DYNAMIC_MESSAGE_BYTES;
    let mut left = length;
    let announced = u32::try_from(length).unwrap().to_le_bytes();
    let first = [&[0x28, 1][..], &announced, &[6; 1000]].concat();
    channels.feed("drdynvc", ToTarget, &first).unwrap();
    left -= 1000;
    while left > 0 {
        let part = left.min(16_000);
        let next = [&[0x30, 1][..], &vec![6; part]].concat();
        channels.feed("drdynvc", ToTarget, &next).unwrap();
        left -= part;
    }
    assert!(budget.held(ToTarget) == 0);
    // Files and formats as many as may be copied.
    for pdu in file_list(limits::CLIPBOARD_FILES, 200) {
        channels.feed("cliprdr", pdu.0, &pdu.1).unwrap();
    }
    assert!(budget.held(ToClient) < limits::REMEMBERED_PER_DIRECTION_BYTES / 2);
}

/// Each way, who is to blame, and what is sent.
fn ways() -> Vec<(&'static str, Direction, Box<dyn Iterator<Item = Pdu>>)> {
    let open =
        |name: &'static str| (0..ids()).map(move |id| ("drdynvc", ToClient, create(id, name)));
    let tunnel = |id, direction, message: &[u8]| ("drdynvc", direction, data(id, message));
    let bombs = |direction: Direction| {
        (0..200_u32).flat_map(move |round| {
            (0..ids()).map(move |id| ("drdynvc", direction, bomb(id, round == 0)))
        })
    };
    vec![
        (
            "compressed messages of the target without an end",
            ToClient,
            Box::new(open("AUDIO_INPUT").chain(bombs(ToClient))),
        ),
        (
            "compressed messages of the client without an end",
            ToTarget,
            Box::new(open("RDPDR").chain(bombs(ToTarget))),
        ),
        (
            "requests without an answer, on many channels of one name",
            ToClient,
            Box::new(open("rdpdr").chain((0..1000).flat_map(move |request| {
                (0..ids()).map(move |id| tunnel(id, ToClient, &open_request(request, 4000)))
            }))),
        ),
        (
            "names to rename files to",
            ToClient,
            Box::new(open("rdpdr").chain((0..1000).flat_map(move |request| {
                (0..ids()).map(move |id| tunnel(id, ToClient, &rename_request(request, 4000)))
            }))),
        ),
        (
            "watches of folders that are open",
            ToClient,
            Box::new(open("rdpdr").chain((0..256).flat_map(move |request| {
                (0..ids()).flat_map(move |id| {
                    let opened = tunnel(id, ToClient, &open_request(0, 4000));
                    let answer = tunnel(id, ToTarget, &completion(0, &[7, 0, 0, 0, 1]));
                    let mut watch = io_request(request + 1, 0x0c, 0x02, &[]);
                    watch[8] = 7;
                    [opened, answer, tunnel(id, ToClient, &watch)]
                })
            }))),
        ),
        (
            "open files",
            ToClient,
            Box::new(open("rdpdr").chain((0..4096_u32).flat_map(move |file| {
                (0..ids()).flat_map(move |id| {
                    let mut opened = file.to_le_bytes().to_vec();
                    opened.push(1);
                    [
                        tunnel(id, ToClient, &open_request(1, 4000)),
                        tunnel(id, ToTarget, &completion(1, &opened)),
                    ]
                })
            }))),
        ),
        (
            "lists of copied files that are locked",
            ToClient,
            Box::new((0..64_u32).flat_map(|lock| {
                let lock = clip(0x0a, 0, &lock.to_le_bytes());
                let list = file_list(limits::CLIPBOARD_FILES, 200);
                let list = list.into_iter().chain([(ToTarget, lock)]);
                list.map(|(direction, pdu)| ("cliprdr", direction, pdu))
            })),
        ),
        (
            "names of formats",
            ToTarget,
            Box::new(open("cliprdr").chain((0..ids()).map(move |id| {
                let mut list = Vec::new();
                for format in 0..u32::try_from(limits::CLIPBOARD_FORMATS).unwrap() {
                    list.extend(format.to_le_bytes());
                    list.extend([0x41; 32]);
                }
                tunnel(id, ToTarget, &clip(2, 0, &list))
            }))),
        ),
        (
            "names of files in requests for their contents",
            ToTarget,
            Box::new(open("cliprdr").chain((0..ids()).flat_map(move |id| {
                let list = file_list(1, 260).into_iter();
                let list = list.map(move |(direction, pdu)| tunnel(id, direction, &pdu));
                list.chain((0..256_u32).map(move |stream| {
                    let mut request = stream.to_le_bytes().to_vec();
                    request.extend([0, 0, 0, 0, 1, 0, 0, 0]);
                    request.resize(24, 0);
                    tunnel(id, ToTarget, &clip(8, 0, &request))
                }))
            }))),
        ),
        (
            "formats of sound",
            ToTarget,
            Box::new(open("rdpsnd").chain((0..ids()).map(move |id| {
                let count = 3600_u16;
                let body = 20 + usize::from(count) * 18;
                let mut list = vec![7, 0];
                list.extend(u16::try_from(body).unwrap().to_le_bytes());
                list.resize(18, 0);
                list.extend(count.to_le_bytes());
                list.resize(4 + body, 0);
                tunnel(id, ToTarget, &list)
            }))),
        ),
    ]
}

/// As many channels as may be open.
fn ids() -> u32 {
    u32::try_from(limits::DYNAMIC_CHANNELS).unwrap()
}

/// DYNVC_CREATE_REQ.
fn create(id: u32, name: &str) -> Vec<u8> {
    [&[0x12][..], &id.to_le_bytes(), name.as_bytes(), &[0]].concat()
}

/// DYNVC_DATA: a whole message.
fn data(id: u32, message: &[u8]) -> Vec<u8> {
    [&[0x32][..], &id.to_le_bytes(), message].concat()
}

/// A part of a message of 16 MiB that is a literal and a match of 8,191 bytes: 8 KiB in a few.
fn bomb(id: u32, first: bool) -> Vec<u8> {
    let segment = [0xe0, 0x26, 0x30, 0xc4, 0x3f, 0xfd, 0xff, 0xe0, 5];
    let id = id.to_le_bytes();
    if first {
        let length = u32::try_from(limits::DYNAMIC_MESSAGE_BYTES).unwrap();
        [&[0x6a][..], &id, &length.to_le_bytes(), &segment].concat()
    } else {
        [&[0x72][..], &id, &segment].concat()
    }
}

/// DR_DEVICE_IOREQUEST of device 1 and file 0.
fn io_request(completion: u32, major: u32, minor: u32, body: &[u8]) -> Vec<u8> {
    let fields = [1, 0, completion, major, minor].map(u32::to_le_bytes);
    [b"rDRI", fields.as_flattened(), body].concat()
}

/// DR_CREATE_REQ with a path of so many characters of three bytes.
fn open_request(completion: u32, characters: usize) -> Vec<u8> {
    let length = u32::try_from(characters * 2).unwrap();
    let mut body = vec![0; 28];
    body.extend(length.to_le_bytes());
    body.resize(32 + characters * 2, 0x41);
    io_request(completion, 0, 0, &body)
}

/// FileRenameInformation.
fn rename_request(completion: u32, characters: usize) -> Vec<u8> {
    let length = u32::try_from(characters * 2).unwrap();
    let mut body = 10_u32.to_le_bytes().to_vec();
    body.extend((6 + length).to_le_bytes());
    body.resize(32, 0);
    body.extend([0, 0]);
    body.extend(length.to_le_bytes());
    body.resize(body.len() + characters * 2, 0x41);
    io_request(completion, 6, 0, &body)
}

/// DR_DEVICE_IOCOMPLETION of device 1, well.
fn completion(completion: u32, body: &[u8]) -> Vec<u8> {
    let fields = [1, completion, 0].map(u32::to_le_bytes);
    [b"rDCI", fields.as_flattened(), body].concat()
}

fn clip(msg_type: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    let head = [msg_type.to_le_bytes(), flags.to_le_bytes()];
    [head.as_flattened(), &length.to_le_bytes(), body].concat()
}

/// The target offers a list of files, the client asks for it and gets it: so many names of so many characters.
fn file_list(count: usize, characters: usize) -> Vec<(Direction, Vec<u8>)> {
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
