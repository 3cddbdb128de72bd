//! What a process that serves gives up.

use crate::failure::Failure;
use userswap::daemon::confine::{self, ConfineError, Needs};

/// Gives up capabilities, for this thread and those it starts.
pub(crate) fn drop_capabilities() -> Result<(), Failure> {
    confine::drop_capabilities().map_err(|error| failure(&error))
}

/// Gives up system calls, for all threads, as far as a store of this specification lets it.
pub(crate) fn filter(store: &str, command: bool) -> Result<(), Failure> {
    // What somebody else's code needs isn't known here.
    if store.contains("plugin:") {
        return Ok(());
    }
    let needs = Needs { ring: store.contains("file:"), command };
    confine::filter_system_calls(needs).map_err(|error| failure(&error))
}

fn failure(error: &ConfineError) -> Failure {
    Failure::of("giving up privileges (--no-sandbox keeps them)", error)
}
