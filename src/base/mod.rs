//! Types that every part of Jetway uses. Nothing here depends on another part.

pub mod session_id;
