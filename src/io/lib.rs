//! What the shell gets from the system, and how it tells an administrator.

pub mod buffers;
pub mod clock;
pub mod file_stamp;
pub mod free_space;
pub mod keep_alive;
pub mod low_water;
pub mod over_tcp;
pub mod pem;
pub mod private_file;
pub mod reached;
pub mod read_ahead;
pub mod stream;
pub mod websocket;
