//! What can be set of the browser's policy, and what it is if nobody does.

use std::time::Duration;

/// Settings of [`Chromium`](super::Chromium). A size of 0 is no limit, and so is a duration of 0 where it is a pause.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Knobs {
    /// Whether anything is done at all. Off by default, as in the browser: the presets `chromium` of the program switch it on.
    pub enabled: bool,
    /// Pages of a region, the unit of moving: 16. At least 1 is taken.
    pub pages_per_region: u32,
    /// Whether what is stored is compressed: on. For whoever opens the store.
    pub compressed: bool,
    /// Bytes of disk that have to be free: 128 MiB.
    pub min_free_disk: u64,
    /// Bytes of everybody's memory out at most: 1024 MiB.
    pub max_total: u64,
    /// Bytes of one client's memory out at most: 128 MiB.
    pub max_client: u64,
    /// Regions moved in one round of one client at most: 100.
    pub regions_per_round: u32,
    /// A region that was back sooner than this is never moved again: 45 s.
    pub blocked_refault: Duration,
    /// All clients are gone through at most so often: 60 s.
    pub walk_every: Duration,
    /// One client has a round at most so often: 120 s.
    pub client_every: Duration,
    /// How long a client has to have been out of sight: 60 s.
    pub idle: Duration,
    /// Whether a client that freezes has a round at once: on.
    pub on_freeze: bool,
    /// Whether memory pressure, from moderate on, has all clients gone through: on.
    pub on_pressure: bool,
    /// Whether the regions of a round are taken in random order: on.
    pub shuffle: bool,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            enabled: false,
            pages_per_region: 16,
            compressed: true,
            min_free_disk: 128 << 20,
            max_total: 1024 << 20,
            max_client: 128 << 20,
            regions_per_round: 100,
            blocked_refault: Duration::from_secs(45),
            walk_every: Duration::from_secs(60),
            client_every: Duration::from_secs(120),
            idle: Duration::from_secs(60),
            on_freeze: true,
            on_pressure: true,
            shuffle: true,
        }
    }
}
