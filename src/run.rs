//! Running a command that knows nothing of userswap as a client of a daemon.
//!
//! The command gets a shared object loaded beside it (see `ipc/preload`), which talks to the daemon. What the command starts is
//! followed in the same way. The pieces: which file would be run, and whether it can be followed ([`program`]); a directory for what
//! has to be in the file system ([`scratch`]); signals, passed on as the terminal would have ([`signals`]); and the command itself
//! ([`command`]).

pub mod command;
pub mod descendants;
pub mod program;
pub mod scratch;
pub mod signals;

pub use command::{Command, Ended, LaunchError};
pub use descendants::{Descendants, Unmanaged};
pub use program::{Kind, NotRunnable, Program};
pub use scratch::Scratch;
pub use signals::Signals;
