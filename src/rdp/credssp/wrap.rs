//! What both sides of CredSSP do with an established Kerberos context: they seal, open, and hash the TLS key.

use sspi::{EncryptionFlags, Error, ErrorKind, Kerberos, SecurityBufferRef, Sspi};
use zeroize::{Zeroize, Zeroizing};

/// [MS-CSSP] 3.1.5: what both sides hash of the nonce and the TLS key, each with its own words in front.
///
/// [MS-CSSP]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-cssp/85f57821-40bb-46aa-bfcb-ba9590b8fc30
pub(super) fn key_hash(magic: &[u8], nonce: &[u8; NONCE_BYTES], public_key: &[u8]) -> [u8; 32] {
    let mut hash = openssl::sha::Sha256::new();
    hash.update(magic);
    hash.update(nonce);
    hash.update(public_key);
    hash.finish()
}

/// A sealed Wrap token ([RFC 4121] 4.2.6.2).
///
/// [RFC 4121]: https://www.rfc-editor.org/rfc/rfc4121
pub(super) fn seal(kerberos: &mut Kerberos, plain: &[u8]) -> sspi::Result<Vec<u8>> {
    let mut token = [0; WRAP_TOKEN_BYTES];
    let mut data = Zeroizing::new(plain.to_vec());
    let mut buffers = [
        SecurityBufferRef::token_buf(&mut token),
        SecurityBufferRef::data_buf(&mut data),
    ];
    kerberos.encrypt_message(EncryptionFlags::empty(), &mut buffers)?;
    let [token, data] = &buffers;
    Ok([token.data(), data.data()].concat())
}

/// The content of a sealed Wrap token.
pub(super) fn open(kerberos: &mut Kerberos, sealed: &[u8]) -> sspi::Result<Zeroizing<Vec<u8>>> {
    let too_short = || Error::new(ErrorKind::InvalidToken, "a Wrap token that is too short");
    // Sealed: an unsealed one would be taken for what the other side wants to be read by anybody.
    let extra = match sealed {
        [0x05, 0x04, flags, 0xff, high, low, ..] if flags & SEALED != 0 => {
            u16::from_be_bytes([*high, *low])
        }
        _ => return Err(Error::new(ErrorKind::InvalidToken, "no sealed Wrap token")),
    };
    // sspi rotates by what the header says, whatever there is to rotate.
    if sealed.len() < WRAP_TOKEN_BYTES.saturating_add(extra.into()) {
        return Err(too_short());
    }
    let mut sealed = sealed.to_vec();
    let (token, data) = sealed
        .split_at_mut_checked(WRAP_TOKEN_BYTES)
        .ok_or_else(too_short)?;
    let mut buffers = [
        SecurityBufferRef::data_buf(data),
        SecurityBufferRef::token_buf(token),
    ];
    kerberos.decrypt_message(&mut buffers)?;
    let [data, _] = &buffers;
    let plain = Zeroizing::new(data.data().to_vec());
    sealed.zeroize();
    Ok(plain)
}

/// [MS-CSSP] 2.2.1: the first version with a nonce.
pub(super) const NONCE_VERSION: u32 = 5;
pub(super) const NONCE_BYTES: usize = 32;
pub(super) const CLIENT_TO_SERVER: &[u8] = b"CredSSP Client-To-Server Binding Hash\0";
pub(super) const SERVER_TO_CLIENT: &[u8] = b"CredSSP Server-To-Client Binding Hash\0";
/// Of a Wrap token, what is no data: header, its encrypted copy, confounder and checksum of the AES types.
const WRAP_TOKEN_BYTES: usize = 60;
/// Flag of a Wrap token.
const SEALED: u8 = 0x02;

#[cfg(test)]
mod tests {
    use sspi::KerberosConfig;

    use super::*;

    /// What sspi would rotate beyond its end.
    #[test]
    fn a_wrap_token_shorter_than_it_says_is_refused() {
        let config = KerberosConfig::new_with_kdc_url("tcp://kdc.test:88", "HERE".to_owned());
        let mut kerberos = Kerberos::new_client_from_config(config).unwrap();
        let mut kind = |sealed: &[u8]| open(&mut kerberos, sealed).unwrap_err().error_type;
        let mut token = vec![0; 200];
        token[..6].copy_from_slice(&[0x05, 0x04, 0x07, 0xff, 0, 0]);
        for length in 0..WRAP_TOKEN_BYTES {
            assert_eq!(kind(&token[..length]), ErrorKind::InvalidToken, "{length}");
        }
        // Whole, and too early: now it is up to sspi.
        assert_eq!(kind(&token), ErrorKind::OutOfSequence);
        for extra in [141_u16, 0xffff] {
            token[4..6].copy_from_slice(&extra.to_be_bytes());
            assert_eq!(kind(&token), ErrorKind::InvalidToken, "{extra}");
        }
        token[2] = 0x05;
        token[4..6].copy_from_slice(&[0, 0]);
        assert_eq!(kind(&token), ErrorKind::InvalidToken, "not sealed");
    }
}
