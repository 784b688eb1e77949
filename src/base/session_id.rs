//! The correlation id of a connection.

use std::fmt;

use serde::Serialize;
use uuid::Uuid;

/// The correlation id of one connection: in every line it causes, in its refusal's log line and in its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SessionId(Uuid);

impl SessionId {
    /// The id as others know it.
    #[must_use]
    pub fn as_uuid(self) -> Uuid {
        self.0
    }
}

/// Ids sort by the time of their making if their UUIDs do, as those of version 7.
impl From<Uuid> for SessionId {
    fn from(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
