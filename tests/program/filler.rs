//! A program that knows nothing of userswap and knows what should be in its memory.

use std::path::Path;
use std::process::Command;

/// Compiles it to `to`, with these options beside. `None` where there is no C compiler or it can't.
pub(crate) fn build(to: &Path, options: &[&str]) -> Option<()> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/program/filler.c");
    let built = Command::new("cc").args(["-O1", source, "-o"]).arg(to).args(options).output().ok()?;
    built.status.success().then_some(())
}
