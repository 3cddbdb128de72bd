//! Serving one fault, in the handler of the thread that faulted or, where it can't be done there, on a thread that may wait.

use super::kit::Kit;
use super::memory::Frames;
use super::space::{Inline, PATIENCE};
use super::state::{FREED, State, WANTED};
use crate::core::{Decision, Flight, Install, PageIndex, PageState, Segment, Zeroed};
use crate::directory::pages_in;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use userswap_store::{Completion, Fetch, StoreError, Waiter};
use userswap_uffd::sigbus::BusFault;
use userswap_uffd::{Blocked, Held, Outcome, Span, Stop, page_bytes, page_size};

/// Who serves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Means {
    /// The thread that faulted, in its signal handler.
    Handler,
    /// The helper, for pages that nobody asked for yet. It allocates no more than a handler: a thread that asks meanwhile may have been stopped in malloc.
    Ahead,
    /// A thread that may wait and allocate.
    Thread {
        /// So many pages are wanted; if it isn't said, one is, and as many more as fault-around says.
        all: Option<u32>,
    },
}

/// What became of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Served {
    /// The thread is to try again: the page is there, or something changed.
    TryAgain,
    /// The page is lost, or isn't ours to serve.
    Lost,
}

/// A store that says "try again" is asked so often.
const TRIES: u32 = 3;
/// A run this long moves in as frames; shorter ones are copied, which needs no interrupt of other CPUs.
const MOVE_FROM: u32 = 8;
/// How long a fault waits at most while there is more in memory than there may be.
const BRAKE: Duration = Duration::from_millis(5);

impl Inline {
    /// Serves a fault in a signal handler; `false` if the page is lost or this is no memory of ours after all.
    pub(super) fn serve_fault(&self, fault: BusFault, blocked: &Blocked) -> bool {
        // In a forked child nothing of ours is mapped here.
        if !self.is_here() {
            return false;
        }
        let page = PageIndex(pages_in(fault.addr - self.span().start()));
        self.serve(page, fault.write, Means::Handler, blocked) == Served::TryAgain
    }

    /// Serves one fault, as far as it goes without waiting for another's work; else waits for that.
    pub(super) fn serve(&self, page: PageIndex, write: bool, means: Means, blocked: &Blocked) -> Served {
        let seen = self.changed.now();
        let mut state = self.state.lock(blocked);
        if means == Means::Handler && self.limit.is_some_and(|limit| state.resident >= limit) {
            let seen = self.room.now();
            drop(state);
            self.pressure.ring();
            self.room.wait(seen, Some(BRAKE));
            state = self.state.lock(blocked);
        }
        if state.barred || !state.has_room_for(self.around) {
            drop(state);
            self.errands.ring();
            self.changed.wait(seen, Some(PATIENCE));
            return Served::TryAgain;
        }
        let Some(number) = state.kits.pop() else {
            drop(state);
            self.changed.wait(seen, Some(PATIENCE));
            return Served::TryAgain;
        };
        if means == Means::Handler
            && !self.in_handlers
            && matches!(state.shard.state(page), PageState::Stored(_))
        {
            state.kits.push(number);
            return self.leave_to_helper(state, page, seen);
        }
        let nothing_freed = state.freed.is_empty();
        let mut kit = self.kits[number as usize].lock(blocked);
        let mut decision = match means {
            Means::Thread { all: Some(pages) } => {
                state.shard.decide_all(page, pages.min(self.around), &mut kit.flight)
            }
            Means::Ahead => state.shard.decide_ahead(page, self.around, &mut kit.flight),
            _ => state.shard.decide(page, self.around, 1, &mut kit.flight),
        };
        let is_waited_for = matches!(means, Means::Handler | Means::Thread { all: None });
        if decision == Decision::Load && is_waited_for && self.has_room(&state) {
            let State { shard, strides, .. } = &mut *state;
            shard.take_along(strides, self.around, &mut kit.flight);
        }
        let mut means = means;
        if decision == Decision::InFlight
            && let Some(next) = self.send_ahead(&mut state, &mut kit, means, self.around)
            && state.shard.state(next).is_away()
        {
            // The page is in the helper's hands. Meanwhile there is time for what will be wanted after that.
            decision = state.shard.decide_ahead(next, self.around, &mut kit.flight);
            means = Means::Ahead;
        }
        let (mut state, served) = match decision {
            Decision::Zero => self.zero(state, page, write, blocked),
            Decision::Load => self.load(state, &mut kit, means, blocked),
            Decision::Poison => (state, Served::Lost),
            Decision::InFlight | Decision::Wait => {
                state.kits.push(number);
                drop(kit);
                drop(state);
                self.changed.wait_briefly(seen, Some(PATIENCE));
                return Served::TryAgain;
            }
        };
        drop(kit);
        state.kits.push(number);
        let (resident, freed) = (state.resident, state.freed.len());
        drop(state);
        self.changed.ring();
        if self.limit.is_some_and(|limit| resident >= soft(limit)) {
            self.pressure.ring();
        }
        // The first that waits to be freed, or too many of them.
        if freed >= FREED / 4 || nothing_freed && freed > 0 {
            self.errands.ring();
        }
        served
    }

    /// Has the helper bring a page back, and waits until something has changed.
    fn leave_to_helper(&self, mut state: Held<'_, State>, page: PageIndex, seen: u32) -> Served {
        if state.wanted.len() < WANTED && !state.wanted.contains(&page) {
            state.wanted.push(page);
        }
        drop(state);
        self.errands.ring();
        self.changed.wait(seen, Some(PATIENCE));
        Served::TryAgain
    }

    /// Zeros, for the page and, where that goes on from where zeros were put before, those after it.
    fn zero<'a>(
        &'a self,
        mut state: Held<'a, State>,
        page: PageIndex,
        write: bool,
        blocked: &'a Blocked,
    ) -> (Held<'a, State>, Served) {
        let pages = state.shard.zero_run(page, self.around);
        state.installs += 1;
        drop(state);
        let outcome = match self.range(page.0, pages) {
            // A zero page that is written to would fault again.
            Ok(span) if write => self.memory.copy(span.start(), &self.zeros[..span.bytes()]),
            Ok(span) => self.memory.zero(span),
            Err(_) => Outcome { done: 0, stop: Some(Stop::Invalid) },
        };
        let done = pages_in(outcome.done).min(pages);
        let mut state = self.state.lock(blocked);
        state.installs -= 1;
        state.resident += u64::from(done);
        for at in 0..pages {
            let zeroed = match outcome.stop {
                _ if at < done => Zeroed::Installed,
                Some(Stop::Present) if at == done => Zeroed::Present,
                _ => Zeroed::Refused,
            };
            state.shard.zeroed(page.plus(at), zeroed);
        }
        let served = match outcome.stop {
            Some(Stop::Unmapped | Stop::Invalid | Stop::Gone | Stop::Other(_)) if done == 0 => Served::Lost,
            _ => Served::TryAgain,
        };
        (state, served)
    }

    /// Has the helper bring in what is `pages` behind the flight of a thread that reads in order. Where that is, without them.
    fn send_ahead(&self, state: &mut State, kit: &mut Kit, means: Means, pages: u32) -> Option<PageIndex> {
        let room = self.in_handlers && self.has_room(state);
        let next = kit.flight.take_ahead().filter(|_| room && means == Means::Handler)?;
        state.ahead = Some(next.plus(pages)).filter(|page| page.0 < state.shard.len());
        self.errands.ring();
        Some(next)
    }

    /// Whether there may be more in memory than what threads wait for.
    fn has_room(&self, state: &State) -> bool {
        self.limit.is_none_or(|limit| state.resident < soft(limit))
    }

    /// Gets the bytes of a flight and puts them in place.
    fn load<'a>(
        &'a self,
        mut state: Held<'a, State>,
        kit: &mut Kit,
        means: Means,
        blocked: &'a Blocked,
    ) -> (Held<'a, State>, Served) {
        let count = kit.flight.len();
        let _ = self.send_ahead(&mut state, kit, means, 0);
        let mut frames = None;
        if count >= MOVE_FROM && kit.flight.slot().is_none() && kit.flight.is_run() {
            frames = state.take_stock();
        }
        drop(state);
        let Kit { flight, bytes, lost } = kit;
        let whole = &mut bytes[..count as usize * page_size()];
        let loaded = match &mut frames {
            Some(frames) => {
                let there = (frames.end - frames.next).min(count);
                let (_, rest) = whole.split_at_mut(there as usize * page_size());
                self.memory.fill_frames(frames, there, |into| self.fetch(flight, 0, into, means))
                    && self.fetch(flight, there, rest, means)
            }
            None => self.fetch(flight, 0, whole, means),
        };
        let mut state = self.state.lock(blocked);
        if !loaded {
            let page = flight.page(flight.demand());
            let seen = self.changed.now();
            state.shard.end_flight(flight, lost);
            state.settle(lost);
            if let Some(frames) = frames {
                state.give_frames(frames, true);
            }
            if means == Means::Ahead {
                return (state, Served::TryAgain);
            }
            let served = self.leave_to_helper(state, page, seen);
            return (self.state.lock(blocked), served);
        }
        let mut at = 0;
        let mut refused = None;
        while !state.barred && refused.is_none() {
            let Some(mut segment) = state.shard.segment(flight, at) else { break };
            let from_frames = frames.as_ref().map_or(0, |frames| frames.end - frames.next);
            if segment.at < from_frames {
                segment.pages = segment.pages.min(from_frames - segment.at);
            }
            state.installs += 1;
            drop(state);
            let outcome = match &frames {
                Some(frames) if segment.at < from_frames => self.move_in(frames, segment),
                _ => {
                    let from = segment.at as usize * page_size();
                    self.memory.copy(segment.addr, &whole[from..from + segment.pages as usize * page_size()])
                }
            };
            state = self.state.lock(blocked);
            state.installs -= 1;
            let done = pages_in(outcome.done).min(segment.pages);
            state.resident += u64::from(done);
            state.shard.landed(flight, segment, done, lost);
            at = segment.at + done;
            match outcome.stop {
                None => {}
                Some(Stop::Present) => {
                    state.shard.present(flight, at, lost);
                    at += 1;
                }
                Some(Stop::Busy) if done > 0 => {}
                Some(stop) => refused = Some(stop),
            }
        }
        if let Some(mut frames) = frames {
            let used = count.min(frames.end - frames.next);
            let moved = (0..used).filter(|at| flight.has_landed(*at)).count();
            frames.next += used;
            // Of those that weren't used some may be there still, before others that aren't.
            state.give_frames(frames, moved == used as usize && refused.is_none());
        }
        let ended = state.shard.end_flight(flight, lost);
        state.settle(lost);
        let served = match (ended.demanded, refused) {
            (Install::Lost, _) => {
                state.poisoned += 1;
                Served::Lost
            }
            (Install::Busy, Some(Stop::Unmapped | Stop::Invalid | Stop::Gone)) => Served::Lost,
            _ => Served::TryAgain,
        };
        (state, served)
    }

    fn move_in(&self, frames: &Frames, segment: Segment) -> Outcome {
        match Span::new(segment.addr, u64::from(segment.pages) * page_bytes()) {
            Ok(to) => self.memory.move_in(frames.slot, frames.next + segment.at, to),
            Err(_) => Outcome { done: 0, stop: Some(Stop::Invalid) },
        }
    }

    /// Gets the bytes of a flight's pages, from its page `from` on, as many as `into` has room for. `false`: the one that a thread waits
    /// for has to be had elsewhere.
    fn fetch(&self, flight: &mut Flight, from: u32, into: &mut [u8], means: Means) -> bool {
        if let Some(at) = flight.slot() {
            let pages = pages_in(into.len() as u64);
            into.copy_from_slice(self.memory.standing(at.slot.0, at.offset + from, pages));
            (from..from + pages).for_each(|at| flight.loaded(at, true));
            return true;
        }
        for (at, page) in (from..).zip(into.chunks_exact_mut(page_size())) {
            let Some((handle, generation)) = flight.source(at) else { continue };
            let key = self.key(flight.page(at), generation);
            let mut tries = if at == flight.demand() { TRIES } else { 0 };
            let got = loop {
                let got = match means {
                    Means::Handler | Means::Ahead => self.store.fetch_in_handler(handle, key, page),
                    Means::Thread { .. } => Some(self.fetch_and_wait(handle, key, page)),
                };
                match &got {
                    Some(Err(error)) if error.is_retryable() && tries > 0 => tries -= 1,
                    _ => break got,
                }
            };
            match got {
                Some(Ok(())) => flight.loaded(at, true),
                Some(Err(_)) => flight.loaded(at, false),
                None if at == flight.demand() => return false,
                // The others aren't worth a wait.
                None => {}
            }
        }
        true
    }

    fn fetch_and_wait(
        &self,
        handle: userswap_store::Handle,
        key: userswap_store::PageKey,
        page: &mut [u8],
    ) -> Result<(), StoreError> {
        let arrival = Arc::new(Arrival::default());
        let waiter = Waiter::new(Arc::clone(&arrival) as _, 0);
        match self.store.fetch(handle, key, page, &waiter)? {
            Fetch::Ready => Ok(()),
            Fetch::Pending => {
                let bytes = arrival.wait()?;
                if bytes.len() != page.len() {
                    return Err(StoreError::Corrupt { key, what: "length" });
                }
                page.copy_from_slice(&bytes);
                Ok(())
            }
        }
    }

    /// Whether the helper has to do more than wait.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }
}

/// More than this in memory is worth getting the keeper up.
pub(super) fn soft(limit: u64) -> u64 {
    limit - limit / 16
}

/// A page that comes later.
#[derive(Default)]
struct Arrival {
    page: Mutex<Option<Result<Vec<u8>, StoreError>>>,
    there: Condvar,
}

impl Arrival {
    fn wait(&self) -> Result<Vec<u8>, StoreError> {
        let mut page = self.page.lock();
        loop {
            if let Some(page) = page.take() {
                return page;
            }
            self.there.wait(&mut page);
        }
    }
}

impl Completion for Arrival {
    fn complete(&self, _: u64, page: Result<&[u8], StoreError>) {
        *self.page.lock() = Some(page.map(<[u8]>::to_vec));
        self.there.notify_one();
    }
}
