//! Types that every part of Jetway uses. Nothing here depends on another member of the workspace.

pub mod address;
pub mod escape;
pub mod limits;
pub mod log_limit;
pub mod session_id;
pub mod time;
