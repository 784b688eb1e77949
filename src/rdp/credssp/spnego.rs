//! SPNEGO ([RFC 4178]) as far as Kerberos needs it: its first token comes in a NegTokenInit, what follows in
//! NegTokenResp.
//!
//! Towards the target one mechanism is offered: there is nothing to negotiate, and no list of mechanisms to protect
//! (`mechListMIC`, section 5). Clients offer several, and where Kerberos is not the first, both sides protect the list.
//! Nothing here allocates by a length that a peer gives.
//!
//! [RFC 4178]: https://www.rfc-editor.org/rfc/rfc4178

use super::{SEQUENCE, element};

/// The OID of SPNEGO, 1.3.6.1.5.5.2.
const SPNEGO: &[u8] = b"\x2b\x06\x01\x05\x05\x02";
/// Kerberos, 1.2.840.113554.1.2.2.
pub(super) const KERBEROS: &[u8] = b"\x2a\x86\x48\x86\xf7\x12\x01\x02\x02";
/// The same with a digit that Windows 2000 got wrong, 1.2.840.48018.1.2.2: some targets know only this one, and targets
/// that know both may answer with either.
pub(super) const MS_KERBEROS: &[u8] = b"\x2a\x86\x48\x82\xf7\x12\x01\x02\x02";

/// `negState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NegState {
    /// accept-completed: the other side has all it needs.
    Completed,
    /// accept-incomplete: the other side waits for more.
    Incomplete,
    /// reject: none of the mechanisms.
    Reject,
    /// request-mic: the mechanism is another than the first one offered.
    RequestMic,
}

/// NegTokenInit ([RFC 4178] 4.2.1).
///
/// [RFC 4178]: https://www.rfc-editor.org/rfc/rfc4178
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Init<'a> {
    /// MechTypeList, DER: what `mechListMIC` protects.
    pub(super) mech_types: &'a [u8],
    /// `mechToken`: the first token of the first mechanism.
    pub(super) token: Option<&'a [u8]>,
}

impl<'a> Init<'a> {
    /// The contents of the OIDs, the client's favourite first.
    pub(super) fn mechanisms(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut list = element(self.mech_types, SEQUENCE).map_or(&[][..], |(list, _)| list);
        std::iter::from_fn(move || {
            let (oid, rest) = element(list, OID)?;
            list = rest;
            Some(oid)
        })
    }
}

/// NegTokenResp ([RFC 4178] 4.2.2).
///
/// [RFC 4178]: https://www.rfc-editor.org/rfc/rfc4178
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Response<'a> {
    pub(super) state: Option<NegState>,
    /// `supportedMech`, the content of an OID.
    pub(super) mechanism: Option<&'a [u8]>,
    /// `responseToken`.
    pub(super) token: Option<&'a [u8]>,
    /// `mechListMIC`.
    pub(super) mic: Option<&'a [u8]>,
}

/// A GSS-API initial token with a NegTokenInit ([RFC 4178] 4.2.1): `mechanisms`, and the first token of the first one.
///
/// [RFC 4178]: https://www.rfc-editor.org/rfc/rfc4178
pub(super) fn encode_init(mechanisms: &[&[u8]], token: &[u8]) -> Vec<u8> {
    let list: Vec<u8> = mechanisms.iter().flat_map(|oid| der(OID, oid)).collect();
    let mut fields = der(MECH_TYPES, &der(SEQUENCE, &list));
    fields.extend(der(MECH_TOKEN, &der(OCTET_STRING, token)));
    let mut content = der(OID, SPNEGO);
    content.extend(der(NEG_TOKEN_INIT, &der(SEQUENCE, &fields)));
    der(INITIAL_TOKEN, &content)
}

/// The NegTokenInit of a GSS-API initial token, or `None` where `bytes` hold none.
pub(super) fn decode_init(bytes: &[u8]) -> Option<Init<'_>> {
    let (content, _) = element(bytes, INITIAL_TOKEN)?;
    let (oid, content) = element(content, OID)?;
    let (content, _) = element(content, NEG_TOKEN_INIT)?;
    let (mut fields, _) = element(content, SEQUENCE)?;
    let (mut mech_types, mut token) = (None, None);
    while let Some(&tag) = fields.first() {
        let (field, rest) = element(fields, tag)?;
        match tag {
            MECH_TYPES => {
                element(field, SEQUENCE)?;
                mech_types = Some(field);
            }
            MECH_TOKEN => token = Some(element(field, OCTET_STRING)?.0),
            _ => {}
        }
        fields = rest;
    }
    let mech_types = mech_types.filter(|_| oid == SPNEGO)?;
    Some(Init { mech_types, token })
}

/// A NegTokenResp.
pub(super) fn encode_response(response: &Response<'_>) -> Vec<u8> {
    let mut fields = Vec::new();
    if let Some(state) = response.state {
        let value = match state {
            NegState::Completed => 0,
            NegState::Incomplete => 1,
            NegState::Reject => 2,
            NegState::RequestMic => 3,
        };
        fields.extend(der(NEG_STATE, &der(ENUMERATED, &[value])));
    }
    if let Some(mechanism) = response.mechanism {
        fields.extend(der(SUPPORTED_MECH, &der(OID, mechanism)));
    }
    if let Some(token) = response.token {
        fields.extend(der(RESPONSE_TOKEN, &der(OCTET_STRING, token)));
    }
    if let Some(mic) = response.mic {
        fields.extend(der(MECH_LIST_MIC, &der(OCTET_STRING, mic)));
    }
    der(NEG_TOKEN_RESP, &der(SEQUENCE, &fields))
}

/// A NegTokenResp, or `None` where `bytes` are none.
pub(super) fn decode_response(bytes: &[u8]) -> Option<Response<'_>> {
    let (content, _) = element(bytes, NEG_TOKEN_RESP)?;
    let (mut fields, _) = element(content, SEQUENCE)?;
    let mut response = Response::default();
    while let Some(&tag) = fields.first() {
        let (field, rest) = element(fields, tag)?;
        match tag {
            NEG_STATE => {
                let (value, _) = element(field, ENUMERATED)?;
                response.state = Some(match value {
                    [0] => NegState::Completed,
                    [1] => NegState::Incomplete,
                    [2] => NegState::Reject,
                    [3] => NegState::RequestMic,
                    _ => return None,
                });
            }
            SUPPORTED_MECH => response.mechanism = Some(element(field, OID)?.0),
            RESPONSE_TOKEN => response.token = Some(element(field, OCTET_STRING)?.0),
            MECH_LIST_MIC => response.mic = Some(element(field, OCTET_STRING)?.0),
            _ => {}
        }
        fields = rest;
    }
    Some(response)
}

/// One DER element.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let digits = length.iter().position(|&digit| digit != 0);
    let digits = digits.and_then(|at| length.get(at..)).unwrap_or(&[0]);
    let mut element = vec![tag];
    if let &[short @ 0..=0x7f] = digits {
        element.push(short);
    } else {
        element.push(LONG_FORM | u8::try_from(digits.len()).unwrap_or(0x7f));
        element.extend_from_slice(digits);
    }
    element.extend_from_slice(content);
    element
}

const LONG_FORM: u8 = 0x80;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const ENUMERATED: u8 = 0x0a;
/// APPLICATION 0 of GSS-API.
const INITIAL_TOKEN: u8 = 0x60;
/// The two kinds of NegotiationToken.
const NEG_TOKEN_INIT: u8 = 0xa0;
const NEG_TOKEN_RESP: u8 = 0xa1;
/// Fields of NegTokenInit.
const MECH_TYPES: u8 = 0xa0;
const MECH_TOKEN: u8 = 0xa2;
/// Fields of NegTokenResp.
const NEG_STATE: u8 = 0xa0;
const SUPPORTED_MECH: u8 = 0xa1;
const RESPONSE_TOKEN: u8 = 0xa2;
const MECH_LIST_MIC: u8 = 0xa3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_token_is_written_as_the_specification_says() {
        // [APPLICATION 0], the OID of SPNEGO, negTokenInit, SEQUENCE, mechTypes with two OIDs, mechToken.
        let golden = b"\x60\x31\x06\x06\x2b\x06\x01\x05\x05\x02\xa0\x27\x30\x25\
\xa0\x18\x30\x16\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\
\x06\x09\x2a\x86\x48\x82\xf7\x12\x01\x02\x02\
\xa2\x09\x04\x07a token";
        let written = encode_init(&[KERBEROS, MS_KERBEROS], b"a token");
        assert_eq!(written, golden);
        let read = decode_init(golden).unwrap();
        assert_eq!(read.token, Some(b"a token".as_slice()));
        assert!(read.mechanisms().eq([KERBEROS, MS_KERBEROS]));
        for cut in 0..golden.len() {
            assert_eq!(decode_init(&golden[..cut]), None, "{cut}");
        }
        for at in 0..golden.len() {
            for value in [0, 0x7f, 0x84, 0xff] {
                let mut bent = golden.to_vec();
                bent[at] = value;
                if let Some(read) = decode_init(&bent) {
                    assert!(read.mechanisms().count() <= 2);
                }
            }
        }
    }

    #[test]
    fn lengths_of_every_size_are_minimal() {
        for (length, header) in [
            (0_usize, b"\x04\x00".as_slice()),
            (0x7f, b"\x04\x7f"),
            (0x80, b"\x04\x81\x80"),
            (0xff, b"\x04\x81\xff"),
            (0x100, b"\x04\x82\x01\x00"),
            (0x1_0000, b"\x04\x83\x01\x00\x00"),
        ] {
            let content = vec![7; length];
            let written = der(OCTET_STRING, &content);
            assert_eq!(written.strip_prefix(header), Some(content.as_slice()));
            let (read, rest) = element(&written, OCTET_STRING).unwrap();
            assert!(read == content && rest.is_empty());
        }
    }

    #[test]
    fn an_answer_is_read_field_by_field() {
        let answer = b"\xa1\x1f\x30\x1d\xa0\x03\x0a\x01\x00\
\xa1\x0b\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\
\xa2\x04\x04\x02hi\xa3\x03\x04\x01m";
        let expected = Response {
            state: Some(NegState::Completed),
            mechanism: Some(KERBEROS),
            token: Some(b"hi"),
            mic: Some(b"m"),
        };
        assert_eq!(decode_response(answer), Some(expected));
        assert_eq!(encode_response(&expected), answer);
        for cut in 0..answer.len() {
            assert_eq!(decode_response(&answer[..cut]), None, "{cut}");
        }
        let states = [
            NegState::Completed,
            NegState::Incomplete,
            NegState::Reject,
            NegState::RequestMic,
        ];
        for (value, state) in (0..).zip(states) {
            let answer = [0xa1, 7, 0x30, 5, 0xa0, 3, 0x0a, 1, value];
            assert_eq!(
                decode_response(&answer).and_then(|read| read.state),
                Some(state)
            );
        }
        assert_eq!(
            decode_response(b"\xa1\x07\x30\x05\xa0\x03\x0a\x01\x04"),
            None
        );
    }
}
