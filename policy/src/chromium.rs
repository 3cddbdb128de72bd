//! The policy that the browser the contract comes from was built with: tabs that nobody looks at give up memory when it is scarce.
//!
//! Nothing happens by itself. Whoever runs it tells what it sees ([`joined`](Chromium::joined), [`hint`](Chromium::hint),
//! [`pressure`](Chromium::pressure)) and is told who has a round now; a round moves regions of a few pages, all of them present, until
//! a limit is met. Times are since any fixed moment.

mod areas;
mod knobs;
mod steering;

pub use areas::{Area, regions, shuffle};
pub use knobs::Knobs;
pub use steering::Browser;

use areas::Book;
use std::collections::HashMap;
use std::time::Duration;

/// How scarce memory is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Pressure {
    /// It isn't.
    #[default]
    None,
    /// It would do good to have more.
    Moderate,
    /// It is nearly gone.
    Critical,
}

/// What a client tells of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hint {
    /// Whether a person sees it.
    Visible(bool),
    /// Whether it is heard.
    Audible(bool),
    /// Whether it is still loading.
    Loading(bool),
    /// Whether it was frozen: nothing of it runs.
    Frozen(bool),
}

/// What is looked at before a client has a round, from the first to the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Eligibility {
    /// It may have one.
    Eligible,
    /// There is no such client, or not any more.
    Invalid,
    /// It has handed nothing over to be moved by.
    NotInitialised,
    /// It, or everything, was switched off for good.
    NotAllowed,
    /// It had a round less than [`Knobs::client_every`] ago.
    TooSoon,
    /// It is loading.
    Loading,
    /// It is seen.
    Visible,
    /// It is heard.
    Audible,
    /// It was seen less than [`Knobs::idle`] ago.
    NotIdle,
    /// Less than [`Knobs::min_free_disk`] is free.
    DiskLow,
    /// Everybody together has [`Knobs::max_total`] out.
    TotalFull,
    /// It has [`Knobs::max_client`] out.
    ClientFull,
}

/// The policy and what it knows.
#[derive(Clone, Debug, Default)]
pub struct Chromium {
    knobs: Knobs,
    clients: HashMap<u32, Client>,
    /// Switched off for good.
    off: bool,
    last_walk: Option<Duration>,
    /// Bytes out, of everybody.
    used: u64,
    /// Free on the disk when last told; `None` where pages don't go to one.
    free_disk: Option<u64>,
}

#[derive(Clone, Debug)]
struct Client {
    initialised: bool,
    off: bool,
    last_round: Option<Duration>,
    visible: bool,
    audible: bool,
    loading: bool,
    frozen: bool,
    /// When it was seen last, or joined.
    seen: Duration,
    book: Book,
}

impl Chromium {
    /// With nobody there.
    pub fn new(knobs: Knobs) -> Self {
        Self { knobs, ..Self::default() }
    }

    /// Its settings.
    pub fn knobs(&self) -> Knobs {
        self.knobs
    }

    /// Other settings from now on. What was switched off for good stays so.
    pub fn set_knobs(&mut self, knobs: Knobs) {
        self.knobs = knobs;
    }

    // ---- who is there ----

    /// A client is there. Whether it is to be initialised now: the first time it is told of, if anything is done at all.
    pub fn joined(&mut self, pid: u32, at: Duration) -> bool {
        if !self.works() || self.clients.contains_key(&pid) {
            return false;
        }
        let client = Client {
            initialised: false,
            off: false,
            last_round: None,
            visible: false,
            audible: false,
            loading: false,
            frozen: false,
            seen: at,
            book: Book::default(),
        };
        self.clients.insert(pid, client);
        true
    }

    /// A client has handed over what it is moved by.
    pub fn initialised(&mut self, pid: u32) {
        if let Some(client) = self.clients.get_mut(&pid) {
            client.initialised = true;
        }
    }

    /// A client is gone, and nothing of it is out any more.
    pub fn left(&mut self, pid: u32) {
        if let Some(client) = self.clients.remove(&pid) {
            self.used = self.used.saturating_sub(client.book.used());
        }
    }

    /// Leaves a client alone for good: its page table can't be read, or it broke a promise.
    pub fn exclude(&mut self, pid: u32) {
        if let Some(client) = self.clients.get_mut(&pid) {
            client.off = true;
        }
    }

    /// Leaves everybody alone for good.
    pub fn switch_off(&mut self) {
        self.off = true;
    }

    // ---- what is seen ----

    /// A client tells of itself. Whether it has a round now, since it froze.
    pub fn hint(&mut self, pid: u32, hint: Hint, at: Duration) -> bool {
        let Some(client) = self.clients.get_mut(&pid) else { return false };
        let froze = hint == Hint::Frozen(true) && !client.frozen;
        match hint {
            Hint::Visible(visible) => {
                if client.visible || visible {
                    client.seen = at;
                }
                client.visible = visible;
            }
            Hint::Audible(audible) => client.audible = audible,
            Hint::Loading(loading) => client.loading = loading,
            Hint::Frozen(frozen) => client.frozen = frozen,
        }
        let goes = froze && self.knobs.on_freeze && self.eligible(pid, at, true) == Eligibility::Eligible;
        if goes {
            self.begin(pid, at);
        }
        goes
    }

    /// So many bytes are free where pages go, if that is a disk.
    pub fn disk(&mut self, free: Option<u64>) {
        self.free_disk = free;
    }

    /// Memory is so scarce. Who has a round now, in the order of their ids; each one's [`may_move`](Self::may_move) says how much.
    pub fn pressure(&mut self, pressure: Pressure, at: Duration) -> Vec<u32> {
        let walked = self.last_walk.is_some_and(|last| at.saturating_sub(last) < self.knobs.walk_every);
        if !self.works() || !self.knobs.on_pressure || pressure == Pressure::None || walked {
            return Vec::new();
        }
        self.last_walk = Some(at);
        let eligible = |pid: &u32| self.eligible(*pid, at, false) == Eligibility::Eligible;
        let mut round: Vec<u32> = self.clients.keys().copied().filter(eligible).collect();
        round.sort_unstable();
        for pid in &round {
            self.begin(*pid, at);
        }
        round
    }

    /// Whether a client may have a round, or the first reason why not. What it is seen doing doesn't matter when it `froze`.
    pub fn eligible(&self, pid: u32, at: Duration, froze: bool) -> Eligibility {
        let Some(client) = self.clients.get(&pid) else { return Eligibility::Invalid };
        let knobs = &self.knobs;
        let within = |since: Duration, pause| at.saturating_sub(since) < pause;
        let reached = |used: u64, most: u64| most > 0 && used >= most;
        let unless = |applies: bool, why: Eligibility| applies.then_some(why);
        unless(!client.initialised, Eligibility::NotInitialised)
            .or(unless(client.off || !self.works(), Eligibility::NotAllowed))
            .or(unless(
                client.last_round.is_some_and(|last| within(last, knobs.client_every)),
                Eligibility::TooSoon,
            ))
            .or(unless(!froze && client.loading, Eligibility::Loading))
            .or(unless(!froze && client.visible, Eligibility::Visible))
            .or(unless(!froze && client.audible, Eligibility::Audible))
            .or(unless(!froze && within(client.seen, knobs.idle), Eligibility::NotIdle))
            .or(unless(self.free_disk.is_some_and(|free| free < knobs.min_free_disk), Eligibility::DiskLow))
            .or(unless(reached(self.used, knobs.max_total), Eligibility::TotalFull))
            .or(unless(reached(client.book.used(), knobs.max_client), Eligibility::ClientFull))
            .unwrap_or(Eligibility::Eligible)
    }

    // ---- a round ----

    /// How many regions of so many bytes a client's round may move: what all have left, what it has left, what a round may.
    pub fn may_move(&self, pid: u32, region_bytes: u64) -> u32 {
        let Some(client) = self.clients.get(&pid).filter(|_| region_bytes > 0) else { return 0 };
        let left = |used: u64, most: u64| if most == 0 { u64::MAX } else { most.saturating_sub(used) };
        let total = left(self.used, self.knobs.max_total);
        let own = left(client.book.used(), self.knobs.max_client);
        let regions = u32::try_from(total.min(own) / region_bytes).unwrap_or(u32::MAX);
        if self.knobs.regions_per_round == 0 { regions } else { regions.min(self.knobs.regions_per_round) }
    }

    /// Whether a region may be moved, all of it being present: it isn't out, and wasn't back too soon once.
    pub fn may_go(&self, pid: u32, area: Area) -> bool {
        self.clients.get(&pid).is_some_and(|client| client.book.may_go(area.start))
    }

    /// A region went out.
    pub fn went(&mut self, pid: u32, area: Area, at: Duration) {
        if let Some(client) = self.clients.get_mut(&pid) {
            self.used = self.used.saturating_add(client.book.went(area, at));
        }
    }

    /// Something of the region that starts there came back.
    pub fn came_back(&mut self, pid: u32, start: u64, at: Duration) {
        if let Some(client) = self.clients.get_mut(&pid) {
            let back = client.book.came_back(start, at, self.knobs.blocked_refault);
            self.used = self.used.saturating_sub(back);
        }
    }

    /// As [`came_back`](Self::came_back), of every region that a range is in.
    pub fn came_back_within(&mut self, pid: u32, area: Area, at: Duration) {
        let Some(client) = self.clients.get(&pid) else { return };
        for start in client.book.out_within(area) {
            self.came_back(pid, start, at);
        }
    }

    /// A client unmapped or emptied a range.
    pub fn gone(&mut self, pid: u32, area: Area) {
        if let Some(client) = self.clients.get_mut(&pid) {
            self.used = self.used.saturating_sub(client.book.gone(area));
        }
    }

    /// Bytes out, of everybody.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes out, of one client.
    pub fn used_by(&self, pid: u32) -> u64 {
        self.clients.get(&pid).map_or(0, |client| client.book.used())
    }

    fn works(&self) -> bool {
        self.knobs.enabled && !self.off
    }

    fn begin(&mut self, pid: u32, at: Duration) {
        if let Some(client) = self.clients.get_mut(&pid) {
            client.last_round = Some(at);
        }
    }
}
