//! Time, as stores are given it.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// The time since some moment.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The time since now.
pub(crate) fn from_now() -> Clock {
    let start = Instant::now();
    Arc::new(move || start.elapsed())
}

/// Its whole seconds.
pub(crate) fn second(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}
