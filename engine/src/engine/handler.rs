//! The loop of a handler thread.

use super::{BELL, Shared, SpaceId};
use crate::evict::EvictWork;
use crate::fault::FaultWork;
use crate::memory::Batch;
use crate::placement::Follower;
use crate::ring::RING_MESSAGES;
use crate::space::Space;
use crate::steer::Post;
use rustix::event::{Timespec, epoll};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// What a handler works with.
struct Hands {
    number: usize,
    work: FaultWork,
    /// For helping whoever moves out.
    out: Option<EvictWork>,
    batch: Batch,
    follower: Follower,
    /// The address space served last.
    last: Option<u64>,
    /// When a fault was served last.
    active: Instant,
    /// A fault was served since this helper was called.
    useful: bool,
    /// Messages may be left unread: no time to sleep.
    busy: bool,
    /// The address space looked at last isn't the only one that has faults.
    beside: bool,
    /// Address spaces to come back to soon: a fault is parked there, or the gate was held.
    soon: Vec<u64>,
}

/// How soon a fault the kernel was too busy for is tried again.
const RETRY: Duration = Duration::from_micros(200);

/// How long a handler looks for the next message before it sleeps, while several serve.
const SPIN: Duration = Duration::from_micros(50);

/// How long a helper does before it rests.
const SPIN_LONG: Duration = Duration::from_micros(500);

/// How often a handler reads one address space's messages before it looks at the others': once, where those have faults.
const ROUNDS: u32 = 64;

/// How long a handler waits for a gate before it turns to other address spaces.
const PATIENCE: Duration = Duration::from_micros(100);

impl Shared {
    /// The loop of one handler thread.
    pub(super) fn handle(self: &Arc<Self>, number: usize) {
        let mut hands = Hands {
            number,
            work: FaultWork::new(self.around),
            out: None,
            batch: Batch::with_capacity(RING_MESSAGES),
            follower: Follower::new(number),
            last: None,
            active: Instant::now(),
            useful: false,
            busy: false,
            beside: false,
            soon: Vec::with_capacity(16),
        };
        let (mut events, mut now) = (Vec::with_capacity(16), Vec::with_capacity(16));
        let steering = &self.placement.steering;
        self.placement.begin(number);
        while !self.stop.load(Ordering::Acquire) {
            self.spin(&mut hands);
            // Not with a fault laid aside: its address space has nobody else who would come back to it, and its thread nothing else to raise.
            if self.placement.is_helper(number) && !hands.busy && hands.soon.is_empty() {
                self.rest(&mut hands);
                continue;
            }
            events.clear();
            let at_once = std::mem::take(&mut hands.busy) || !steering.may_sleep(number);
            let patience =
                if at_once { Some(Duration::ZERO) } else { (!hands.soon.is_empty()).then_some(RETRY) };
            let patience =
                patience.map(|time| Timespec { tv_sec: 0, tv_nsec: i64::from(time.subsec_nanos()) });
            let waited = epoll::wait(
                &self.epolls[number],
                rustix::buffer::spare_capacity(&mut events),
                patience.as_ref(),
            );
            steering.gets_up(number);
            match waited {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "waiting for faults");
                    return;
                }
            }
            while self.take_post(&mut hands) {}
            std::mem::swap(&mut hands.soon, &mut now);
            for again in now.drain(..) {
                self.help_out(again, &mut hands);
                self.pump(again, &mut hands);
            }
            for event in &events {
                match event.data.u64() {
                    BELL => self.answer_bell(&mut hands),
                    exit if exit % 2 == 1 => self.forget(SpaceId(exit / 2)),
                    messages => {
                        self.pump(messages / 2, &mut hands);
                    }
                }
            }
        }
    }

    /// While several threads fault at once: looks for messages without sleeping, for a moment after the last. In the idle class
    /// that takes nothing from anybody, and a fault on this CPU finds a handler that needs no waking.
    fn spin(self: &Arc<Self>, hands: &mut Hands) {
        let (number, steering) = (hands.number, &self.placement.steering);
        for _ in 0..ROUNDS {
            let Some(id) = hands.last else { return };
            let spin = if number == 0 { SPIN } else { SPIN_LONG };
            if !self.placement.is_shared()
                || self.stop.load(Ordering::Acquire)
                || hands.active.elapsed() > spin
            {
                return;
            }
            let served = self.take_post(hands) || self.pump(id, hands);
            if hands.beside {
                break;
            }
            if !served {
                steering.set_idle(number, true);
                steering.look_around(number);
            }
        }
        hands.busy = true;
    }

    /// A helper has had nothing to do for a while.
    fn rest(self: &Arc<Self>, hands: &mut Hands) {
        let (number, steering) = (hands.number, &self.placement.steering);
        steering.sits(number, None);
        steering.set_idle(number, false);
        if steering.may_sleep(number) {
            self.placement.rest(number, std::mem::take(&mut hands.useful));
            hands.active = Instant::now();
            // Where the lead has found work there may be more.
            hands.last = Some(self.placement.busy_space());
        }
        steering.gets_up(number);
        while self.take_post(hands) {}
    }

    /// Serves a fault that another handler left to this one. Whether there was any.
    fn take_post(self: &Arc<Self>, hands: &mut Hands) -> bool {
        let Some(post) = self.placement.steering.take(hands.number) else { return false };
        let id = post.space;
        self.serve(post, hands, None);
        // It may have been laid aside, and whoever left it here has gone on.
        let has_parked = self.spaces.read().get(&id).is_some_and(|space| space.has_parked());
        if has_parked && !hands.soon.contains(&id) {
            hands.soon.push(id);
        }
        true
    }

    fn answer_bell(self: &Arc<Self>, hands: &mut Hands) {
        // While stopping, the bell keeps ringing, so that every handler hears it.
        if !self.stop.load(Ordering::Acquire) {
            let mut count = [0u8; 8];
            let _ = rustix::io::read(&self.bell, &mut count);
        }
        while let Some(id) = self.kicked.pop() {
            self.pump(id, hands);
        }
    }

    /// Reads one address space's messages and serves its faults. Whether there were any.
    fn pump(self: &Arc<Self>, id: u64, hands: &mut Hands) -> bool {
        hands.last = None;
        let Some(space) = self.spaces.read().get(&id).cloned() else { return false };
        let mut served = false;
        hands.beside = space.take_turn(id, &self.turns);
        let rounds = if hands.beside { 0 } else { ROUNDS };
        for round in 0.. {
            let shared = self.placement.is_shared();
            if shared {
                self.take_post(hands);
            }
            let close = shared || hands.follower.is_close(&self.placement);
            hands.batch.one = close;
            match space.take_messages(&mut hands.batch, PATIENCE) {
                Ok(Some(children)) => {
                    for child in children {
                        self.follow(id, &child);
                    }
                }
                Ok(None) => {
                    hands.soon.push(id);
                    return served;
                }
                Err(_) => {
                    self.forget(SpaceId(id));
                    return served;
                }
            }
            if hands.batch.faults.is_empty() {
                space.unpark(&mut hands.batch);
            }
            let any = !hands.batch.faults.is_empty();
            served |= any;
            hands.follower.note(&self.placement, &hands.batch.faults);
            let sentinel = space.sentinel();
            let read_at = Instant::now();
            for at in 0..hands.batch.faults.len() {
                let fault = hands.batch.faults[at];
                if fault.addr == sentinel
                    && let Some(thread) = fault.thread
                {
                    self.observer.sentinel(SpaceId(id), thread);
                }
                let post = Post { space: id, fault, read_at };
                let mine = if shared { self.placement.steering.pass(hands.number, post) } else { Some(post) };
                if let Some(post) = mine {
                    self.serve(post, hands, Some((id, &space)));
                }
            }
            if !any && !hands.batch.more {
                hands.follower.idle(&self.placement);
            }
            // The thread just woken has run in our stead, and may have stopped for its next page.
            let again = hands.batch.more || (any && close);
            if !again {
                break;
            }
            if round >= rounds {
                hands.soon.push(id);
                hands.busy = true;
                break;
            }
        }
        if space.has_parked() && !hands.soon.contains(&id) {
            hands.soon.push(id);
        }
        hands.last = Some(id);
        self.placement.busy_in(id);
        served
    }

    /// While faults are held back there is time to help those they are held back for, unless others' faults would wait for that.
    fn help_out(&self, id: u64, hands: &mut Hands) {
        if hands.beside {
            return;
        }
        let space = self.spaces.read().get(&id).cloned();
        if space.is_some_and(|space| space.help_out(&mut hands.out)) {
            hands.busy = true;
        }
    }

    /// Serves one fault. `known` is an address space at hand, perhaps the fault's.
    fn serve(&self, post: Post, hands: &mut Hands, known: Option<(u64, &Arc<Space>)>) {
        let space = match known {
            Some((id, space)) if id == post.space => Some(Arc::clone(space)),
            _ => self.spaces.read().get(&post.space).cloned(),
        };
        // One that is gone has nobody waiting.
        let Some(space) = space else { return };
        self.placement.serves();
        hands.work.read_at(post.read_at);
        hands.work.go_ahead(hands.follower.is_alone(&self.placement));
        let (number, steering) = (hands.number, &self.placement.steering);
        steering.set_idle(number, false);
        let thread = post.fault.thread.filter(|_| self.placement.is_shared());
        let mut work = || space.spent().on(|| hands.work.run(&space, post.fault));
        if thread.is_some_and(|thread| steering.is_crowded(number, thread)) {
            // Woken by a thread of the normal class it goes to a CPU that is free.
            self.placement.out_of_idle(work);
        } else {
            work();
        }
        hands.active = Instant::now();
        hands.useful = true;
    }

    /// Takes a forked child into care.
    pub(super) fn follow(self: &Arc<Self>, parent: u64, child: &Arc<Space>) {
        let id = SpaceId(self.next.fetch_add(1, Ordering::Relaxed));
        match self.watch(id, child) {
            Ok(()) => self.observer.forked(SpaceId(parent), id),
            Err(error) => {
                tracing::error!(%error, "a forked child can't be watched; its moved-out pages are lost to it");
                child.close();
            }
        }
    }
}
