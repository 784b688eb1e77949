//! [MS-ERREF] 2.3.1 NTSTATUS: the names of those that logons end with, for people.
//!
//! CredSSP carries other codes in the same place: HRESULT of security packages ([MS-ERREF] 2.1.1), and Win32 errors
//! (FACILITY_NTWIN32).
//!
//! [MS-ERREF]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-erref/1bc92ddf-b79e-413c-bbaa-99a5281a6c90

use std::fmt;

/// A status, as `STATUS_LOGON_FAILURE (0xC000006D)`; one without a name as its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NtStatus(pub u32);

impl NtStatus {
    /// Its name, where it is one of the usual ones.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        let known = NAMES.iter().find(|(status, _)| *status == self.0);
        known.map(|(_, name)| *name)
    }

    /// The Win32 error that it is in the clothes of an NTSTATUS ([MS-ERREF] 2.3).
    #[must_use]
    pub fn win32(self) -> Option<u32> {
        (self.0 >> 16 == 0xc007).then_some(self.0 & 0xffff)
    }
}

impl fmt::Display for NtStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = self.name() {
            return write!(f, "{name} (0x{:08X})", self.0);
        }
        let Some(error) = self.win32() else {
            return write!(f, "status 0x{:08X}", self.0);
        };
        match WIN32_NAMES.iter().find(|(known, _)| *known == error) {
            Some((_, name)) => write!(f, "{name} (Win32 error {error}, 0x{:08X})", self.0),
            None => write!(f, "Win32 error {error} (0x{:08X})", self.0),
        }
    }
}

const NAMES: [(u32, &str); 57] = [
    (0x0000_0000, "STATUS_SUCCESS"),
    (0xC000_0001, "STATUS_UNSUCCESSFUL"),
    (0xC000_0002, "STATUS_NOT_IMPLEMENTED"),
    (0xC000_000D, "STATUS_INVALID_PARAMETER"),
    (0xC000_0022, "STATUS_ACCESS_DENIED"),
    (0xC000_005E, "STATUS_NO_LOGON_SERVERS"),
    (0xC000_005F, "STATUS_NO_SUCH_LOGON_SESSION"),
    (0xC000_0060, "STATUS_NO_SUCH_PRIVILEGE"),
    (0xC000_0061, "STATUS_PRIVILEGE_NOT_HELD"),
    (0xC000_0062, "STATUS_INVALID_ACCOUNT_NAME"),
    (0xC000_0064, "STATUS_NO_SUCH_USER"),
    (0xC000_006A, "STATUS_WRONG_PASSWORD"),
    (0xC000_006B, "STATUS_ILL_FORMED_PASSWORD"),
    (0xC000_006C, "STATUS_PASSWORD_RESTRICTION"),
    (0xC000_006D, "STATUS_LOGON_FAILURE"),
    (0xC000_006E, "STATUS_ACCOUNT_RESTRICTION"),
    (0xC000_006F, "STATUS_INVALID_LOGON_HOURS"),
    (0xC000_0070, "STATUS_INVALID_WORKSTATION"),
    (0xC000_0071, "STATUS_PASSWORD_EXPIRED"),
    (0xC000_0072, "STATUS_ACCOUNT_DISABLED"),
    (0xC000_0073, "STATUS_NONE_MAPPED"),
    (0xC000_009A, "STATUS_INSUFFICIENT_RESOURCES"),
    (0xC000_00BB, "STATUS_NOT_SUPPORTED"),
    (0xC000_00DC, "STATUS_INVALID_SERVER_STATE"),
    (0xC000_00DF, "STATUS_NO_SUCH_DOMAIN"),
    (0xC000_00E5, "STATUS_INTERNAL_ERROR"),
    (0xC000_00FE, "STATUS_NO_SUCH_PACKAGE"),
    (0xC000_0104, "STATUS_BAD_LOGON_SESSION_STATE"),
    (0xC000_0133, "STATUS_TIME_DIFFERENCE_AT_DC"),
    (0xC000_015B, "STATUS_LOGON_TYPE_NOT_GRANTED"),
    (0xC000_018A, "STATUS_NO_TRUST_LSA_SECRET"),
    (0xC000_018B, "STATUS_NO_TRUST_SAM_ACCOUNT"),
    (0xC000_018C, "STATUS_TRUSTED_DOMAIN_FAILURE"),
    (0xC000_018D, "STATUS_TRUSTED_RELATIONSHIP_FAILURE"),
    (0xC000_0192, "STATUS_NETLOGON_NOT_STARTED"),
    (0xC000_0193, "STATUS_ACCOUNT_EXPIRED"),
    (0xC000_0224, "STATUS_PASSWORD_MUST_CHANGE"),
    (0xC000_0225, "STATUS_NOT_FOUND"),
    (0xC000_0234, "STATUS_ACCOUNT_LOCKED_OUT"),
    (0xC000_0388, "STATUS_DOWNGRADE_DETECTED"),
    (0xC000_0413, "STATUS_AUTHENTICATION_FIREWALL_FAILED"),
    (0xC000_0418, "STATUS_NTLM_BLOCKED"),
    (0x8009_0302, "SEC_E_UNSUPPORTED_FUNCTION"),
    (0x8009_0303, "SEC_E_TARGET_UNKNOWN"),
    (0x8009_0304, "SEC_E_INTERNAL_ERROR"),
    (0x8009_0305, "SEC_E_SECPKG_NOT_FOUND"),
    (0x8009_0308, "SEC_E_INVALID_TOKEN"),
    (0x8009_030C, "SEC_E_LOGON_DENIED"),
    (0x8009_030D, "SEC_E_UNKNOWN_CREDENTIALS"),
    (0x8009_030E, "SEC_E_NO_CREDENTIALS"),
    (0x8009_030F, "SEC_E_MESSAGE_ALTERED"),
    (0x8009_0311, "SEC_E_NO_AUTHENTICATING_AUTHORITY"),
    (0x8009_0322, "SEC_E_WRONG_PRINCIPAL"),
    (0x8009_0324, "SEC_E_TIME_SKEW"),
    (0x8009_0346, "SEC_E_BAD_BINDINGS"),
    (0x8009_035E, "SEC_E_DELEGATION_POLICY"),
    (0x8009_035F, "SEC_E_POLICY_NLTM_ONLY"),
];

/// [MS-ERREF] 2.2 Win32 error codes.
const WIN32_NAMES: [(u32, &str); 14] = [
    (5, "ERROR_ACCESS_DENIED"),
    (234, "ERROR_MORE_DATA"),
    (1311, "ERROR_NO_LOGON_SERVERS"),
    (1317, "ERROR_NO_SUCH_USER"),
    (1326, "ERROR_LOGON_FAILURE"),
    (1327, "ERROR_ACCOUNT_RESTRICTION"),
    (1328, "ERROR_INVALID_LOGON_HOURS"),
    (1329, "ERROR_INVALID_WORKSTATION"),
    (1330, "ERROR_PASSWORD_EXPIRED"),
    (1331, "ERROR_ACCOUNT_DISABLED"),
    (1385, "ERROR_LOGON_TYPE_NOT_GRANTED"),
    (1793, "ERROR_ACCOUNT_EXPIRED"),
    (1907, "ERROR_PASSWORD_MUST_CHANGE"),
    (1909, "ERROR_ACCOUNT_LOCKED_OUT"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_told_by_name_and_number() {
        for (status, text) in [
            (0xC000_006D, "STATUS_LOGON_FAILURE (0xC000006D)"),
            (0xC000_0234, "STATUS_ACCOUNT_LOCKED_OUT (0xC0000234)"),
            (0x8009_030C, "SEC_E_LOGON_DENIED (0x8009030C)"),
            (0xC000_1234, "status 0xC0001234"),
            (
                0xC007_0775,
                "ERROR_ACCOUNT_LOCKED_OUT (Win32 error 1909, 0xC0070775)",
            ),
            (0xC007_0001, "Win32 error 1 (0xC0070001)"),
        ] {
            assert_eq!(NtStatus(status).to_string(), text);
        }
    }

    #[test]
    fn each_status_has_one_name() {
        for (index, (status, name)) in NAMES.iter().enumerate() {
            let rest = &NAMES[index + 1..];
            assert!(
                rest.iter()
                    .all(|(other, said)| other != status && said != name)
            );
        }
    }
}
