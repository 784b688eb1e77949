//! Peers that try to make the gateway remember without end, in every way that the parsers know.

use Direction::{ToClient, ToTarget};

use super::clipboard_messages::{clip, file_list};
use super::{ChannelError, Channels, rdp8_lite};
use crate::Direction;
use crate::budget::Budget;
use jetway_base::limits;

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

/// A budget over everything is one as long as nothing is left out of it, however little it is by itself.
#[test]
fn whatever_outlives_its_pdu_is_counted() {
    for (what, from, least, pdus) in remembered() {
        let budget = Budget::default();
        let mut channels = Channels::new(&budget);
        for (name, direction, pdu) in pdus {
            let fed = channels.feed(name, direction, &pdu);
            fed.unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        let held = budget.held(from);
        assert!(held >= least, "{what}: {held} of {least}");
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

/// What is remembered, on whose account, at least how many bytes, and what brings it.
fn remembered() -> Vec<(&'static str, Direction, usize, Vec<Pdu>)> {
    let rdpdr = |direction, pdu| ("rdpdr", direction, pdu);
    let cliprdr = |direction, pdu| ("cliprdr", direction, pdu);
    let files = |count, characters| {
        let list = file_list(count, characters).into_iter();
        list.map(move |(direction, pdu)| cliprdr(direction, pdu))
    };
    // Of a character of two bytes three are kept.
    let opened = |characters| {
        let answer = completion(0, &[7, 0, 0, 0, 1]);
        [
            rdpdr(ToClient, open_request(0, characters)),
            rdpdr(ToTarget, answer),
        ]
    };
    let mut renamed = rename_request(1, 4000);
    renamed[8] = 7;
    let mut devices = [&b"rDAD"[..], &256_u32.to_le_bytes()].concat();
    for id in 0..256_u32 {
        devices.extend([0x20, id].map(u32::to_le_bytes).as_flattened());
        devices.extend([0x41; 8]);
        devices.extend([0; 4]);
    }
    let capabilities = file_list(0, 0).into_iter().take(2);
    let capabilities = capabilities.map(|(direction, pdu)| cliprdr(direction, pdu));
    let named = [&[1, 0, 0, 0][..], &[0x41; 200], &[0, 0]].concat();
    let contents = |stream: u32| {
        let mut request = stream.to_le_bytes().to_vec();
        request.extend([0, 0, 0, 0, 1, 0, 0, 0]);
        request.resize(24, 0);
        cliprdr(ToTarget, clip(8, 0, &request))
    };
    let audio = |head: &[u8]| [head, &[0; 1000 * 18]].concat();
    let sound = audio(
        &[
            &[7, 0, 0x64, 0x46][..],
            &[0; 14],
            &[0xe8, 0x03],
            &[0, 6, 0, 0],
        ]
        .concat(),
    );
    let microphone = audio(&[&[2][..], &1000_u32.to_le_bytes(), &[0; 4]].concat());
    let long = "x".repeat(250);
    let lengths = [1_u32, 20_000].map(u32::to_le_bytes);
    let part = [&[0x2a][..], lengths.as_flattened(), &[7; 12_000]].concat();
    vec![
        (
            "a dynamic channel",
            ToClient,
            250,
            vec![("drdynvc", ToClient, create(1, &long))],
        ),
        (
            "a message that is not whole",
            ToTarget,
            12_000,
            vec![
                ("drdynvc", ToClient, create(1, "rdpdr")),
                ("drdynvc", ToTarget, part),
            ],
        ),
        (
            "a history of compression",
            ToTarget,
            rdp8_lite::HELD_BYTES,
            vec![
                ("drdynvc", ToClient, create(1, "rdpdr")),
                ("drdynvc", ToTarget, bomb(1, true)),
            ],
        ),
        (
            "a request with a path",
            ToClient,
            12_000,
            vec![rdpdr(ToClient, open_request(0, 4000))],
        ),
        (
            "requests without a text",
            ToClient,
            1000 * 64,
            (0..1000)
                .map(|number| rdpdr(ToClient, io_request(number, 0x1b, 0, &[])))
                .collect(),
        ),
        (
            "a name to rename to",
            ToClient,
            12_000,
            vec![rdpdr(ToClient, rename_request(1, 4000))],
        ),
        ("an open file", ToClient, 12_000, opened(4000).to_vec()),
        (
            "a file that was renamed",
            ToClient,
            12_000,
            opened(1)
                .into_iter()
                .chain([
                    rdpdr(ToClient, renamed),
                    rdpdr(ToTarget, completion(1, &[0; 4])),
                ])
                .collect(),
        ),
        (
            "devices",
            ToTarget,
            256 * 12,
            vec![rdpdr(ToTarget, devices)],
        ),
        (
            "names of copied files",
            ToClient,
            1000 * 600,
            files(1000, 200).collect(),
        ),
        (
            "names of formats",
            ToTarget,
            300,
            capabilities
                .clone()
                .chain([cliprdr(ToTarget, clip(2, 0, &named))])
                .collect(),
        ),
        (
            "a request for a format",
            ToClient,
            300,
            capabilities
                .chain([
                    cliprdr(ToTarget, clip(2, 0, &named)),
                    cliprdr(ToClient, clip(4, 0, &[1, 0, 0, 0])),
                ])
                .collect(),
        ),
        (
            "requests for contents of files without a name",
            ToTarget,
            256 * 32,
            (0..256).map(contents).collect(),
        ),
        (
            "requests for contents of a file with a name",
            ToTarget,
            256 * 700,
            files(1, 260).chain((0..256).map(contents)).collect(),
        ),
        (
            "formats of sound",
            ToTarget,
            1000 * 12,
            vec![("rdpsnd", ToTarget, sound)],
        ),
        (
            "formats of a microphone",
            ToTarget,
            1000 * 12,
            vec![
                ("drdynvc", ToClient, create(1, "AUDIO_INPUT")),
                ("drdynvc", ToTarget, data(1, &microphone)),
            ],
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
