//! MCS inside X.224 Data ([T.125], [MS-RDPBCGR] 2.2.1.3 to 2.2.1.9): which domain PDU it is and where its data are.
//!
//! Connect Initial and Connect Response are BER, everything else is aligned PER. Nothing is written here but the
//! few PDUs that a gateway says itself.
//!
//! [T.125]: https://www.itu.int/rec/T-REC-T.125

use std::ops::Range;

use super::bytes::Reader;

/// One PDU of the MCS layer. Ranges are offsets into the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mcs {
    /// Connect Initial.
    ConnectInitial {
        /// The GCC Conference Create Request.
        user_data: Range<usize>,
    },
    /// Connect Response.
    ConnectResponse {
        /// T.125 `Result`; 0 is success.
        result: u8,
        /// The GCC Conference Create Response.
        user_data: Range<usize>,
    },
    /// Attach User Confirm.
    AttachUserConfirm {
        /// The client's user channel, unless attaching failed.
        initiator: Option<u16>,
    },
    /// Send Data Request (from the client) or Send Data Indication (from the target).
    SendData {
        /// Request rather than indication.
        request: bool,
        /// User channel of who says it.
        initiator: u16,
        /// MCS channel.
        channel: u16,
        /// Where the PER length is.
        length: Range<usize>,
        /// The data.
        user_data: Range<usize>,
    },
    /// Disconnect Provider Ultimatum.
    Disconnect {
        /// T.125 `Reason`.
        reason: u8,
    },
    /// Erect Domain, Attach User Request, Channel Join Request and Confirm: nothing in them matters to a gateway.
    Domain {
        /// `DomainMCSPDU`.
        choice: u8,
    },
    /// X.224 Disconnect Request.
    X224Disconnect,
}

/// Why bytes are not an MCS PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum McsError {
    /// Not an X.224 Data TPDU that ends here.
    #[error("X.224 header is not that of a whole Data TPDU")]
    X224,
    /// Cut short, or longer than it says.
    #[error("MCS {0} does not fill its frame")]
    Length(&'static str),
    /// An element of BER or PER that has no place here.
    #[error("MCS {0} is not encoded as T.125 says")]
    Encoding(&'static str),
    /// A domain PDU that RDP does not use.
    #[error("MCS domain PDU {0} is not part of RDP")]
    Unknown(u8),
}

/// `DomainMCSPDU` choices of [T.125] 7.
mod choice {
    pub(super) const ERECT_DOMAIN_REQUEST: u8 = 1;
    pub(super) const DISCONNECT_PROVIDER_ULTIMATUM: u8 = 8;
    pub(super) const ATTACH_USER_REQUEST: u8 = 10;
    pub(super) const ATTACH_USER_CONFIRM: u8 = 11;
    pub(super) const CHANNEL_JOIN_REQUEST: u8 = 14;
    pub(super) const CHANNEL_JOIN_CONFIRM: u8 = 15;
    pub(super) const SEND_DATA_REQUEST: u8 = 25;
    pub(super) const SEND_DATA_INDICATION: u8 = 26;
}

/// Send Data with one byte: choice, initiator (2), channel (2), segmentation, length, data.
const SMALLEST_DATA_BYTES: usize = 8;

/// The lowest user channel ([T.125] 7).
const USER_ID_BASE: u16 = 1001;

/// Reads a whole frame, from its TPKT header on; also says how many bytes of the frame follow the PDU.
///
/// A frame holds one PDU, but peers write a byte or two behind it (rdesktop behind Erect Domain). What receivers do
/// with such bytes differs: most never look, FreeRDP ends the session, xrdp takes them for more of the same data, and
/// a decoder that goes on until the frame is empty takes them for another PDU. So they are fewer than any PDU with
/// data has, or an error; and whoever reads the data has to judge the others.
///
/// # Errors
/// The frame is not an MCS PDU of RDP, or has room for another behind it.
pub fn decode(frame: &[u8]) -> Result<(Mcs, usize), McsError> {
    let mut reader = Reader::new(frame);
    let pdu = pdu(&mut reader)?;
    let behind = match pdu {
        // Its own end is the end of the connection.
        Mcs::X224Disconnect => 0,
        Mcs::ConnectInitial { .. }
        | Mcs::ConnectResponse { .. }
        | Mcs::AttachUserConfirm { .. }
        | Mcs::SendData { .. }
        | Mcs::Disconnect { .. }
        | Mcs::Domain { .. } => reader.rest().len(),
    };
    if behind >= SMALLEST_DATA_BYTES {
        return Err(McsError::Length("PDU"));
    }
    Ok((pdu, behind))
}

fn pdu(reader: &mut Reader<'_>) -> Result<Mcs, McsError> {
    reader.take(4).ok_or(McsError::X224)?;
    match reader.array::<2>().ok_or(McsError::X224)? {
        [2, 0xf0] => {}
        // LI, then code DR.
        [_, code] if code & 0xf0 == 0x80 => return Ok(Mcs::X224Disconnect),
        _ => return Err(McsError::X224),
    }
    if reader.u8() != Some(0x80) {
        return Err(McsError::X224);
    }
    let first = reader.u8().ok_or(McsError::Length("PDU"))?;
    if first == 0x7f {
        return connect(reader);
    }
    match first >> 2 {
        kind @ (choice::SEND_DATA_REQUEST | choice::SEND_DATA_INDICATION) => {
            send_data(reader, kind == choice::SEND_DATA_REQUEST)
        }
        choice::DISCONNECT_PROVIDER_ULTIMATUM => {
            // `reason` has three bits: two here, one in the next byte.
            let second = reader.u8().ok_or(McsError::Length("disconnect"))?;
            Ok(Mcs::Disconnect {
                reason: (first & 0b11) << 1 | second >> 7,
            })
        }
        choice::ATTACH_USER_CONFIRM => {
            let what = "attach user confirm";
            let result = reader.u8().ok_or(McsError::Length(what))?;
            let initiator = if first & 0b10 == 0 {
                None
            } else {
                Some(user_id(reader).ok_or(McsError::Length(what))?)
            };
            Ok(Mcs::AttachUserConfirm {
                initiator: initiator.filter(|_| result == 0),
            })
        }
        kind @ (choice::ERECT_DOMAIN_REQUEST
        | choice::ATTACH_USER_REQUEST
        | choice::CHANNEL_JOIN_REQUEST
        | choice::CHANNEL_JOIN_CONFIRM) => {
            let length: usize = match kind {
                // Two integers, written as `01 00 01 00` or, by rdesktop, in five bytes.
                choice::ERECT_DOMAIN_REQUEST => 4,
                // Initiator, channel.
                choice::CHANNEL_JOIN_REQUEST => 4,
                // Result, initiator, requested channel, and the channel unless it failed.
                choice::CHANNEL_JOIN_CONFIRM if first & 0b10 != 0 => 7,
                choice::CHANNEL_JOIN_CONFIRM => 5,
                _ => 0,
            };
            reader.take(length.min(reader.rest().len()));
            Ok(Mcs::Domain { choice: kind })
        }
        other => Err(McsError::Unknown(other)),
    }
}

fn send_data(reader: &mut Reader<'_>, request: bool) -> Result<Mcs, McsError> {
    let what = "send data";
    let short = McsError::Length(what);
    let initiator = user_id(reader).ok_or(short)?;
    let channel = reader.u16_be().ok_or(short)?;
    // Priority and segmentation: begin and end in one.
    let segmentation = reader.u8().ok_or(short)?;
    if segmentation & 0x30 != 0x30 {
        return Err(McsError::Encoding(what));
    }
    let start = reader.position();
    let data = per_length(reader).ok_or(short)?;
    let length = start..reader.position();
    let user_data = reader.range(data).ok_or(short)?;
    Ok(Mcs::SendData {
        request,
        initiator,
        channel,
        length,
        user_data,
    })
}

fn connect(reader: &mut Reader<'_>) -> Result<Mcs, McsError> {
    let tag = reader.u8();
    let what = "connect";
    let length = ber_length(reader).ok_or(McsError::Encoding(what))?;
    if reader.rest().len() != length {
        return Err(McsError::Length(what));
    }
    match tag {
        Some(0x65) => {
            let what = "connect initial";
            for expected in [0x04, 0x04, 0x01, 0x30, 0x30, 0x30] {
                ber(reader, expected).ok_or(McsError::Encoding(what))?;
            }
            let user_data = ber(reader, 0x04).ok_or(McsError::Encoding(what))?;
            end(reader, what)?;
            Ok(Mcs::ConnectInitial { user_data })
        }
        Some(0x66) => {
            let what = "connect response";
            let mut result = reader.clone();
            if result.u8() != Some(0x0a) || ber_length(&mut result) != Some(1) {
                return Err(McsError::Encoding(what));
            }
            let result = result.u8().ok_or(McsError::Encoding(what))?;
            for expected in [0x0a, 0x02, 0x30] {
                ber(reader, expected).ok_or(McsError::Encoding(what))?;
            }
            let user_data = ber(reader, 0x04).ok_or(McsError::Encoding(what))?;
            end(reader, what)?;
            Ok(Mcs::ConnectResponse { result, user_data })
        }
        _ => Err(McsError::Encoding(what)),
    }
}

fn end(reader: &Reader<'_>, what: &'static str) -> Result<(), McsError> {
    if reader.is_empty() {
        Ok(())
    } else {
        Err(McsError::Length(what))
    }
}

/// One BER element: where its contents are.
fn ber(reader: &mut Reader<'_>, tag: u8) -> Option<Range<usize>> {
    if reader.u8()? != tag {
        return None;
    }
    let length = ber_length(reader)?;
    reader.range(length)
}

fn ber_length(reader: &mut Reader<'_>) -> Option<usize> {
    let first = reader.u8()?;
    match first {
        0..=0x7f => Some(first.into()),
        0x81 => reader.u8().map(usize::from),
        0x82 => reader.u16_be().map(usize::from),
        _ => None,
    }
}

/// A PER length as RDP writes it: one byte, or 15 bits in two.
pub(super) fn per_length(reader: &mut Reader<'_>) -> Option<usize> {
    let first = reader.u8()?;
    if first & 0x80 == 0 {
        return Some(first.into());
    }
    let second = reader.u8()?;
    Some(u16::from_be_bytes([first & 0x7f, second]).into())
}

fn user_id(reader: &mut Reader<'_>) -> Option<u16> {
    reader.u16_be()?.checked_add(USER_ID_BASE)
}

/// The frame of a Send Data Request or Indication with `parts` as its data; `None` where it would be too long.
#[must_use]
pub fn encode_send_data(
    request: bool,
    initiator: u16,
    channel: u16,
    parts: &[&[u8]],
) -> Option<Vec<u8>> {
    let data: usize = parts.iter().map(|part| part.len()).sum();
    let data = u16::try_from(data).ok().filter(|&data| data < 0x8000)?;
    // TPKT 4, X.224 3, choice 1, initiator 2, channel 2, segmentation 1, length 2.
    let length = data.checked_add(15)?;
    let kind = if request {
        choice::SEND_DATA_REQUEST
    } else {
        choice::SEND_DATA_INDICATION
    };
    let mut frame = Vec::with_capacity(length.into());
    frame.extend([3, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([2, 0xf0, 0x80, kind << 2]);
    frame.extend(initiator.checked_sub(USER_ID_BASE)?.to_be_bytes());
    frame.extend(channel.to_be_bytes());
    frame.push(0x70);
    frame.extend((data | 0x8000).to_be_bytes());
    for part in parts {
        frame.extend_from_slice(part);
    }
    Some(frame)
}

/// The frame of a Disconnect Provider Ultimatum.
#[must_use]
pub fn encode_disconnect(reason: u8) -> Vec<u8> {
    let first = choice::DISCONNECT_PROVIDER_ULTIMATUM << 2 | (reason >> 1) & 0b11;
    vec![3, 0, 0, 9, 2, 0xf0, 0x80, first, reason << 7]
}

/// `rn-provider-initiated`.
pub(crate) const REASON_PROVIDER_INITIATED: u8 = 1;

/// `rn-user-requested`.
pub(crate) const REASON_USER_REQUESTED: u8 = 3;

#[cfg(test)]
mod tests {
    use ironrdp_core::decode as ironrdp_decode;
    use ironrdp_pdu::mcs::McsMessage;
    use ironrdp_pdu::x224::X224;

    use super::*;

    #[test]
    fn what_is_written_is_what_another_implementation_reads() {
        let frame = encode_send_data(false, 1002, 1003, &[b"ab", b"c"]).unwrap();
        let X224(message) = ironrdp_decode::<X224<McsMessage<'_>>>(&frame).unwrap();
        let McsMessage::SendDataIndication(read) = message else {
            panic!("{message:?}");
        };
        assert_eq!((read.initiator_id, read.channel_id), (1002, 1003));
        assert_eq!(&*read.user_data, b"abc");
        for (reason, words) in [
            (0, "domain disconnected"),
            (1, "server-initiated disconnect"),
            (3, "user-requested disconnect"),
        ] {
            let frame = encode_disconnect(reason);
            assert_eq!(decode(&frame), Ok((Mcs::Disconnect { reason }, 0)));
            let X224(message) = ironrdp_decode::<X224<McsMessage<'_>>>(&frame).unwrap();
            let McsMessage::DisconnectProviderUltimatum(read) = message else {
                panic!("{message:?}");
            };
            assert_eq!(read.reason.description(), words);
        }
    }

    #[test]
    fn data_are_found_in_either_form_of_length() {
        let long = encode_send_data(true, 1004, 1003, &[b"abc"]).unwrap();
        let mut short = long.clone();
        short.splice(13..15, [3]);
        short[3] -= 1;
        for (frame, length) in [(long, 13..15), (short, 13..14)] {
            let Ok((
                Mcs::SendData {
                    request: true,
                    initiator: 1004,
                    channel: 1003,
                    length: found,
                    user_data,
                },
                0,
            )) = decode(&frame)
            else {
                panic!("{frame:?}");
            };
            assert_eq!((found, &frame[user_data]), (length, &b"abc"[..]));
        }
    }

    #[test]
    fn behind_a_pdu_there_is_no_room_for_another() {
        let data = encode_send_data(true, 1004, 1003, &[b"abc"]).unwrap();
        let confirm = b"\x03\x00\x00\x0f\x02\xf0\x80\x3e\x00\x00\x07\x03\xeb\x03\xeb";
        for pdu in [
            &data[..],
            b"\x03\x00\x00\x0c\x02\xf0\x80\x04\x01\x00\x01\x00", // Erect Domain
            b"\x03\x00\x00\x08\x02\xf0\x80\x28",                 // Attach User Request
            b"\x03\x00\x00\x0b\x02\xf0\x80\x2e\x00\x00\x07",     // Attach User Confirm
            b"\x03\x00\x00\x0c\x02\xf0\x80\x38\x00\x07\x03\xeb", // Channel Join Request
            confirm,
            &encode_disconnect(3),
        ] {
            for count in 0..SMALLEST_DATA_BYTES {
                let frame = [pdu, &vec![0; count]].concat();
                let (_, behind) = decode(&frame).unwrap();
                assert_eq!(behind, count, "{pdu:02x?}");
            }
            // A clipboard PDU, as a decoder that goes on would see it.
            let smuggled = &encode_send_data(true, 1004, 1005, &[b"x"]).unwrap()[7..];
            let frame = [pdu, smuggled].concat();
            assert_eq!(decode(&frame), Err(McsError::Length("PDU")), "{pdu:02x?}");
        }
        assert_eq!(
            decode(&data[..data.len() - 1]),
            Err(McsError::Length("send data"))
        );
    }

    #[test]
    fn what_rdesktop_writes_behind_erect_domain_is_let() {
        let frame = b"\x03\x00\x00\x0d\x02\xf0\x80\x04\x00\x01\x00\x01\x00";
        let erect = Mcs::Domain { choice: 1 };
        assert_eq!(decode(frame), Ok((erect, 1)));
    }

    #[test]
    fn segments_and_unknown_pdus_are_refused() {
        let mut frame = encode_send_data(true, 1004, 1003, &[b"abc"]).unwrap();
        frame[12] = 0x60;
        assert_eq!(decode(&frame), Err(McsError::Encoding("send data")));
        frame[7] = 27 << 2;
        assert_eq!(decode(&frame), Err(McsError::Unknown(27)));
    }
}
