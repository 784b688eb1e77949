//! The Client Info PDU ([MS-RDPBCGR] 2.2.1.11): who logs on, with what, and how; and the same PDU with other
//! credentials.
//!
//! Everything behind the credentials is copied as it is, whatever it holds: clients append fields that not every
//! reader knows.

use std::fmt;
use std::ops::Range;

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::bytes::{Reader, latin1, shifted, utf16};
use super::reconnect::{self, ClientCookie};

/// `INFO_*` flags of [MS-RDPBCGR] 2.2.1.11.1.1.
pub mod flags {
    /// Log on without asking.
    pub const AUTOLOGON: u32 = 0x0000_0008;
    /// Strings are UTF-16.
    pub const UNICODE: u32 = 0x0000_0010;
    /// Bulk compression from the target.
    pub const COMPRESSION: u32 = 0x0000_0080;
    /// The most that the client can decompress.
    pub const COMPRESSION_TYPE_MASK: u32 = 0x0000_1e00;
    /// RemoteApp rather than a desktop.
    pub const RAIL: u32 = 0x0000_8000;
    /// The password is the PIN of a smart card.
    pub const PASSWORD_IS_SC_PIN: u32 = 0x0004_0000;
}

/// What a Client Info PDU says, apart from its password.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientInfo {
    /// `INFO_*`.
    pub flags: u32,
    /// Domain as typed.
    pub domain: String,
    /// User as typed.
    pub user: String,
    /// Whether there is a password.
    pub has_password: bool,
    /// Program to start in place of a desktop.
    pub alternate_shell: String,
    /// Its folder.
    pub working_directory: String,
    /// The client's address, as it sees itself.
    pub client_address: Option<String>,
    /// Session that the client wants to reconnect to with a cookie.
    pub reconnect_logon_id: Option<u32>,
}

/// Where things are in the PDU; offsets from its first byte, the one of the security header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    flags: usize,
    /// From `cbDomain` to `cbPassword`.
    lengths: Range<usize>,
    /// Between the lengths and the strings: `cbAlternateShell`, `cbWorkingDir`.
    between: Range<usize>,
    /// Domain, user and password with their terminators.
    credentials: Range<usize>,
    /// The password alone.
    password: Range<usize>,
    /// `ARC_CS_PRIVATE_PACKET`.
    cookie: Option<Range<usize>>,
    cookie_is_cut: bool,
}

/// Who logs on to the target.
#[derive(Clone)]
pub struct ClientInfoCredentials {
    /// Domain or realm; may be empty.
    pub domain: String,
    /// User.
    pub user: String,
    /// Password.
    pub password: SecretString,
}

impl fmt::Debug for ClientInfoCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientInfoCredentials")
            .finish_non_exhaustive()
    }
}

/// Why a PDU is no Client Info, or cannot become another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientInfoError {
    /// A string does not fit.
    #[error("client info ends within {0}")]
    Short(&'static str),
    /// Standard RDP security inside TLS.
    #[error("client info is encrypted by RDP itself")]
    Encrypted,
    /// A client without Unicode, and credentials with other characters than ASCII.
    #[error("credentials cannot be written in the client's code page")]
    CodePage,
    /// A credential is longer than the PDU can say.
    #[error("credentials are longer than client info can hold")]
    TooLong,
}

/// `SEC_ENCRYPT` of the basic security header.
const SEC_ENCRYPT: u16 = 0x0008;

/// Longest credential, bytes with terminator ([MS-RDPBCGR] 2.2.1.11.1.1).
const CREDENTIAL_BYTES: usize = 512;

/// Reads a PDU from its security header on.
///
/// # Errors
/// A field that must be understood is not there.
pub fn decode(pdu: &[u8]) -> Result<(ClientInfo, Layout), ClientInfoError> {
    use ClientInfoError::Short;
    let mut reader = Reader::new(pdu);
    let security = reader.u16_le().ok_or(Short("security header"))?;
    if security & SEC_ENCRYPT != 0 {
        return Err(ClientInfoError::Encrypted);
    }
    // flagsHi, CodePage.
    reader.take(6).ok_or(Short("code page"))?;
    let flags_at = reader.position();
    let flags = reader.u32_le().ok_or(Short("flags"))?;
    let unicode = flags & flags::UNICODE != 0;
    let lengths = reader.position()..reader.position().saturating_add(6);
    let mut sizes = [0; 5];
    for size in &mut sizes {
        *size = usize::from(reader.u16_le().ok_or(Short("lengths"))?);
    }
    let [domain, user, password, shell, directory] = sizes;
    let between = lengths.end..reader.position();
    let terminator = if unicode { 2 } else { 1 };
    let mut string = |size: usize, name| -> Result<Range<usize>, ClientInfoError> {
        let range = reader.range(size).ok_or(Short(name))?;
        reader.take(terminator).ok_or(Short(name))?;
        Ok(range)
    };
    let domain = string(domain, "domain")?;
    let user = string(user, "user")?;
    let password = string(password, "password")?;
    let shell = string(shell, "alternate shell")?;
    let directory = string(directory, "working directory")?;
    let text = |range: &Range<usize>| {
        let bytes = pdu.get(range.clone()).unwrap_or_default();
        if unicode { utf16(bytes) } else { latin1(bytes) }
    };
    let mut info = ClientInfo {
        flags,
        domain: text(&domain),
        user: text(&user),
        has_password: !password.is_empty(),
        alternate_shell: text(&shell),
        working_directory: text(&directory),
        client_address: None,
        reconnect_logon_id: None,
    };
    let mut layout = Layout {
        flags: flags_at,
        lengths,
        between,
        credentials: domain.start..password.end.saturating_add(terminator),
        password,
        cookie: None,
        cookie_is_cut: false,
    };
    // TS_EXTENDED_INFO_PACKET, of which any tail may be missing, but not that of a secret: it has to be found.
    extended(pdu, &mut reader, unicode, &mut info, &mut layout);
    if layout.cookie_is_cut {
        return Err(Short("auto-reconnect cookie"));
    }
    Ok((info, layout))
}

fn extended(
    pdu: &[u8],
    reader: &mut Reader<'_>,
    unicode: bool,
    info: &mut ClientInfo,
    layout: &mut Layout,
) -> Option<()> {
    // clientAddressFamily.
    reader.take(2)?;
    let length = usize::from(reader.u16_le()?);
    let address = reader.take(length)?;
    info.client_address = Some(if unicode {
        utf16(address)
    } else {
        latin1(address)
    });
    let directory = usize::from(reader.u16_le()?);
    reader.take(directory)?;
    // clientTimeZone, clientSessionId, performanceFlags.
    reader.take(172 + 4 + 4)?;
    let length = usize::from(reader.u16_le()?);
    if length == 0 {
        return None;
    }
    let rest = reader.rest().len();
    let cookie = reader.range(length.min(rest))?;
    info.reconnect_logon_id = reconnect::logon_id(pdu.get(cookie.clone())?);
    layout.cookie_is_cut = length > rest;
    layout.cookie = Some(cookie);
    None
}

impl Layout {
    /// Where secrets are.
    #[must_use]
    pub fn secrets(&self) -> Vec<Range<usize>> {
        let password = Some(self.password.clone()).filter(|range| !range.is_empty());
        password.into_iter().chain(self.cookie.clone()).collect()
    }
}

/// The auto-reconnect cookie, if there is one; an inner `None` where it is not one of the specification.
pub(super) fn cookie(pdu: &[u8], layout: &Layout) -> Option<Option<ClientCookie>> {
    let packet = pdu.get(layout.cookie.clone()?)?;
    Some(ClientCookie::decode(packet))
}

/// The same PDU as of a client that has no cookie.
pub(super) fn without_cookie(pdu: &[u8], layout: &Layout) -> Zeroizing<Vec<u8>> {
    let cookie = layout.cookie.clone().unwrap_or_default();
    let mut new = Zeroizing::new(Vec::with_capacity(pdu.len()));
    new.extend_from_slice(
        pdu.get(..cookie.start.saturating_sub(2))
            .unwrap_or_default(),
    );
    // cbAutoReconnectCookie.
    new.extend_from_slice(&[0, 0]);
    new.extend_from_slice(pdu.get(cookie.end..).unwrap_or_default());
    new
}

/// Turns compression off in place.
pub(super) fn decline_compression(pdu: &mut [u8], layout: &Layout) {
    change_flags(pdu, layout, |flags| {
        flags & !(flags::COMPRESSION | flags::COMPRESSION_TYPE_MASK)
    });
}

fn change_flags(pdu: &mut [u8], layout: &Layout, change: impl Fn(u32) -> u32) {
    let field = pdu
        .get_mut(layout.flags..)
        .and_then(|rest| rest.first_chunk_mut::<4>());
    if let Some(field) = field {
        *field = change(u32::from_le_bytes(*field)).to_le_bytes();
    }
}

/// The same PDU with other credentials, which are used without asking.
///
/// # Errors
/// The credentials cannot be written in this PDU.
pub fn with_logon(
    pdu: &[u8],
    info: &ClientInfo,
    layout: &Layout,
    logon: &ClientInfoCredentials,
) -> Result<Zeroizing<Vec<u8>>, ClientInfoError> {
    let unicode = info.flags & flags::UNICODE != 0;
    let strings = [
        encode(&logon.domain, unicode)?,
        encode(&logon.user, unicode)?,
        encode(logon.password.expose_secret(), unicode)?,
    ];
    let terminator: &[u8] = if unicode { &[0, 0] } else { &[0] };
    let length = strings.iter().map(|string| string.len()).sum::<usize>();
    // At its final size at once: a vector that grows leaves copies of the password behind.
    let mut new = Zeroizing::new(Vec::with_capacity(
        pdu.len().saturating_add(length).saturating_add(8),
    ));
    new.extend_from_slice(pdu.get(..layout.lengths.start).unwrap_or_default());
    for string in &strings {
        let length = u16::try_from(string.len()).map_err(|_| ClientInfoError::TooLong)?;
        new.extend(length.to_le_bytes());
    }
    new.extend_from_slice(pdu.get(layout.between.clone()).unwrap_or_default());
    for string in &strings {
        new.extend_from_slice(string);
        new.extend_from_slice(terminator);
    }
    new.extend_from_slice(pdu.get(layout.credentials.end..).unwrap_or_default());
    change_flags(&mut new, layout, |flags| {
        (flags | flags::AUTOLOGON) & !flags::PASSWORD_IS_SC_PIN
    });
    Ok(new)
}

fn encode(text: &str, unicode: bool) -> Result<Zeroizing<Vec<u8>>, ClientInfoError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len().saturating_mul(2)));
    if unicode {
        bytes.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
    } else if text.is_ascii() {
        bytes.extend_from_slice(text.as_bytes());
    } else {
        return Err(ClientInfoError::CodePage);
    }
    let terminator = if unicode { 2 } else { 1 };
    if bytes.len().saturating_add(terminator) > CREDENTIAL_BYTES {
        return Err(ClientInfoError::TooLong);
    }
    Ok(bytes)
}

/// Secrets of a PDU that begins at `at` in its frame.
pub(super) fn secrets_in_frame(layout: &Layout, at: usize) -> Vec<Range<usize>> {
    layout
        .secrets()
        .iter()
        .map(|range| shifted(range, at))
        .collect()
}
