//! A keytab: the keys of the services that this machine is, as MIT krb5 writes them and Windows' `ktpass` does.
//!
//! Format 5.2 ([keytab file format]). Only keys for RDP (`TERMSRV/host`) of the AES types are kept.
//!
//! [keytab file format]: https://web.mit.edu/kerberos/krb5-latest/doc/formats/keytab_file_format.html

use std::fmt;

use zeroize::Zeroizing;

/// The keys of one file.
pub struct Keytab {
    keys: Vec<ServiceKey>,
}

/// One key.
pub struct ServiceKey {
    /// Of the service's principal.
    pub realm: String,
    /// `TERMSRV/` stands before it.
    pub host: String,
    /// Which of the service's keys, from 1.
    pub version: u32,
    /// [`AES_128`] or [`AES_256`].
    pub encryption_type: u16,
    /// As long as its type demands.
    pub key: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Keytab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.keys).finish()
    }
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { realm, host, .. } = self;
        write!(f, "{SERVICE}/{host}@{realm}")
    }
}

/// Why a file is no keytab, or none to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeytabError {
    /// It does not begin like one.
    #[error("not a keytab of format 5.2")]
    Format,
    /// It ends too early, or a length in it does not fit.
    #[error("a keytab that is cut off")]
    Truncated,
    /// There is nothing in it that tickets for this machine could be read with.
    #[error("no AES key for {SERVICE}/host")]
    NoKey,
}

impl Keytab {
    /// Reads the content of a file.
    ///
    /// # Errors
    /// See [`KeytabError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, KeytabError> {
        let mut rest = bytes.strip_prefix(&FORMAT).ok_or(KeytabError::Format)?;
        let mut keys = Vec::new();
        while !rest.is_empty() {
            let (size, after) = rest.split_first_chunk().ok_or(KeytabError::Truncated)?;
            // A negative size is that of a hole, where an entry was deleted.
            let size = i32::from_be_bytes(*size);
            let length = usize::try_from(size.unsigned_abs()).unwrap_or(usize::MAX);
            let (entry, after) = after
                .split_at_checked(length)
                .ok_or(KeytabError::Truncated)?;
            if size > 0 {
                keys.extend(ServiceKey::parse(entry).ok_or(KeytabError::Truncated)?);
            }
            rest = after;
        }
        if keys.is_empty() {
            return Err(KeytabError::NoKey);
        }
        Ok(Self { keys })
    }

    /// The key that a ticket for `TERMSRV/host@realm` is sealed with; without a version the newest.
    ///
    /// Names are compared without regard to case: a ticket names the host as the user typed it. Of the version some
    /// writers keep the lowest eight bits only.
    #[must_use]
    pub fn find(
        &self,
        realm: &str,
        host: &str,
        encryption_type: u16,
        version: Option<u32>,
    ) -> Option<&ServiceKey> {
        let fits = |key: &&ServiceKey| {
            key.encryption_type == encryption_type
                && key.host.eq_ignore_ascii_case(host)
                && key.realm.eq_ignore_ascii_case(realm)
                && version
                    .is_none_or(|version| key.version == version || key.version == version & 0xff)
        };
        let fitting = self.keys.iter().filter(fits);
        fitting.max_by_key(|key| (Some(key.version) == version, key.version))
    }
}

impl ServiceKey {
    /// One entry; inside, `None` where it is of no use here.
    fn parse(entry: &[u8]) -> Option<Option<Self>> {
        let mut reader = Reader(entry);
        let components = reader.u16()?;
        let realm = reader.text()?;
        let mut names = Vec::new();
        for _ in 0..components {
            names.push(reader.text()?);
        }
        let _name_type = reader.take::<4>()?;
        let _written_at = reader.take::<4>()?;
        let [version] = reader.take()?;
        let encryption_type = reader.u16()?;
        let key = reader.counted()?;
        // Since 1.14, where there is room for it.
        let version = match reader.take() {
            Some(long) if long != [0; 4] => u32::from_be_bytes(long),
            _ => version.into(),
        };
        let key_bytes = match encryption_type {
            AES_128 => 16,
            AES_256 => 32,
            _ => return Some(None),
        };
        let [Some(service), Some(host)] = names.as_slice() else {
            return Some(None);
        };
        let usable = *service == SERVICE && key.len() == key_bytes;
        Some(realm.filter(|_| usable).map(|realm| Self {
            realm: realm.to_owned(),
            host: (*host).to_owned(),
            version,
            encryption_type,
            key: Zeroizing::new(key.to_vec()),
        }))
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn counted(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        let (taken, rest) = self.0.split_at_checked(length.into())?;
        self.0 = rest;
        Some(taken)
    }

    /// Inside, `None` for a name that no ticket here has.
    fn text(&mut self) -> Option<Option<&'a str>> {
        self.counted().map(|bytes| std::str::from_utf8(bytes).ok())
    }
}

/// aes128-cts-hmac-sha1-96.
pub const AES_128: u16 = 17;
/// aes256-cts-hmac-sha1-96.
pub const AES_256: u16 = 18;
/// The service class of RDP.
pub const SERVICE: &str = "TERMSRV";
/// Largest file that is read, bytes: some thousand keys.
pub const FILE_BYTES: usize = 256 * 1024;
const FORMAT: [u8; 2] = [5, 2];

#[cfg(test)]
mod tests {
    use super::*;

    /// One entry as MIT krb5 writes it, with its size in front.
    fn entry(names: &[&str], version: u32, encryption_type: u16, key: &[u8]) -> Vec<u8> {
        let counted = |bytes: &[u8]| {
            let length = u16::try_from(bytes.len()).unwrap();
            [&length.to_be_bytes(), bytes].concat()
        };
        let mut entry = u16::try_from(names.len()).unwrap().to_be_bytes().to_vec();
        entry.extend(counted(b"CORP.EXAMPLE"));
        for name in names {
            entry.extend(counted(name.as_bytes()));
        }
        entry.extend([0, 0, 0, 1, 0x6a, 0, 0, 0]);
        entry.push(version.to_be_bytes()[3]);
        entry.extend(encryption_type.to_be_bytes());
        entry.extend(counted(key));
        entry.extend(version.to_be_bytes());
        let size = u32::try_from(entry.len()).unwrap();
        [&size.to_be_bytes(), entry.as_slice()].concat()
    }

    fn file(entries: &[Vec<u8>]) -> Vec<u8> {
        [FORMAT.as_slice(), &entries.concat()].concat()
    }

    #[test]
    fn the_key_of_a_ticket_is_found() {
        let names = ["TERMSRV", "gw.corp.example"];
        let hole = [(-6_i32).to_be_bytes().as_slice(), &[0xaa; 6]].concat();
        let keytab = Keytab::parse(&file(&[
            entry(&names, 2, AES_256, &[2; 32]),
            hole,
            entry(&names, 3, AES_256, &[3; 32]),
            entry(&names, 258, AES_128, &[4; 16]),
            entry(&["HOST", "gw.corp.example"], 4, AES_256, &[5; 32]),
            entry(&["alice"], 1, AES_256, &[6; 32]),
            entry(&names, 9, 23, &[7; 16]),
        ]))
        .unwrap();
        let first = |realm, host, kind, version| {
            keytab
                .find(realm, host, kind, version)
                .map(|found| found.key[0])
        };
        let (realm, host) = ("CORP.EXAMPLE", "gw.corp.example");
        assert_eq!(first(realm, host, AES_256, Some(2)), Some(2));
        assert_eq!(first(realm, host, AES_256, None), Some(3));
        assert_eq!(
            first("corp.example", "GW.corp.example", AES_256, Some(3)),
            Some(3)
        );
        assert_eq!(first(realm, host, AES_128, Some(258)), Some(4));
        assert_eq!(first(realm, host, AES_256, Some(4)), None);
        assert_eq!(first(realm, host, 23, Some(9)), None);
        assert_eq!(first(realm, "other.corp.example", AES_256, None), None);
        assert_eq!(first("OTHER", host, AES_256, None), None);
        assert!(!format!("{keytab:?}").contains('3'), "{keytab:?}");
    }

    #[test]
    fn what_is_no_keytab_is_refused() {
        let error = |bytes: &[u8]| Keytab::parse(bytes).unwrap_err();
        assert_eq!(error(b""), KeytabError::Format);
        assert_eq!(error(b"-----BEGIN"), KeytabError::Format);
        assert_eq!(error(&[5, 1]), KeytabError::Format);
        assert_eq!(error(&FORMAT), KeytabError::NoKey);
        let other = file(&[entry(&["HTTP", "gw"], 1, AES_256, &[1; 32])]);
        assert_eq!(error(&other), KeytabError::NoKey);
        let short = file(&[entry(&["TERMSRV", "gw"], 1, AES_256, &[1; 16])]);
        assert_eq!(error(&short), KeytabError::NoKey);
        let whole = file(&[entry(&["TERMSRV", "gw"], 1, AES_256, &[1; 32])]);
        for cut in 3..whole.len() {
            assert_eq!(error(&whole[..cut]), KeytabError::Truncated, "{cut}");
        }
        // Every length inside of it.
        for at in 0..whole.len() {
            for value in [0, 0x7f, 0xff] {
                let mut bent = whole.clone();
                bent[at] = value;
                let _ = Keytab::parse(&bent);
            }
        }
    }
}
