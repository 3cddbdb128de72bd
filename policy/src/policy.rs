//! What a policy is shown, and what it answers.
//!
//! Whoever drives one looks at its processes, hands over a [`Sample`], carries the [`Verdict`] out, tells what came of it, and looks again when the
//! verdict says. A policy does nothing by itself: no clock, no kernel, no memory but what it was told.

use crate::chromium::{Area, Hint};
use crate::limit::Limits;
use std::fmt::Debug;
use std::time::Duration;

/// Decides who gives up how much of its memory, and when.
///
/// [`judge`](Self::judge) is all that has to be there. It is called every 5 to 250 ms, as its answers say; what costs something to find out
/// is found out for those who [want](Self::wants) it. Times are since any fixed moment, the same one for all calls.
pub trait Policy: Debug + Send {
    /// What to do about a sample.
    fn judge(&mut self, sample: &Sample<'_>) -> Verdict;

    /// What has to be told beside the sizes of processes.
    fn wants(&self) -> Wants {
        Wants::default()
    }

    /// What it holds to.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// Holds to something else from now on. A policy without limits does nothing here.
    fn set_limits(&mut self, limits: Limits) {
        let _ = limits;
    }

    /// What came of orders since the last call.
    fn answered(&mut self, at: Duration, answers: &[Answer]) {
        let _ = (at, answers);
    }

    /// A process tells of itself, or an operator does.
    fn hint(&mut self, pid: u32, hint: Hint, at: Duration) {
        let _ = (pid, hint, at);
    }

    /// A range of a process is in memory again. Only told if [wanted](Wants::ranges).
    fn came_back(&mut self, pid: u32, area: Area, at: Duration) {
        let _ = (pid, area, at);
    }

    /// What a process had in a range is no more: unmapped, or emptied. Only told if [wanted](Wants::ranges).
    fn gone(&mut self, pid: u32, area: Area) {
        let _ = (pid, area);
    }

    /// Leaves of the regions that a process could move those that go, in the order in which they are to go. `random` is asked for numbers below its
    /// argument. Asked when [`What::Regions`] was ordered; nothing goes unless somebody chooses.
    fn choose(&mut self, pid: u32, regions: &mut Vec<Area>, random: &mut dyn FnMut(usize) -> usize) {
        let _ = (pid, random);
        regions.clear();
    }
}

/// What has to be found out for a policy, beside the sizes of processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wants {
    /// [`Footprint::activity`].
    pub activity: bool,
    /// [`Policy::came_back`] and [`Policy::gone`].
    pub ranges: bool,
    /// [`Sample::stalled`].
    pub pressure: bool,
    /// [`Sample::free_disk`].
    pub disk: bool,
}

impl std::ops::BitOr for Wants {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self {
            activity: self.activity | other.activity,
            ranges: self.ranges | other.ranges,
            pressure: self.pressure | other.pressure,
            disk: self.disk | other.disk,
        }
    }
}

/// One process as it was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Footprint {
    /// Names it.
    pub pid: u32,
    /// What it has in memory, in bytes.
    pub resident: u64,
    /// Bytes of it that were moved out so far.
    pub moved_out: u64,
    /// It is still at what it was last ordered to do.
    pub busy: bool,
    /// What it may have beside the others.
    pub claim: Claim,
    /// What it did since the sample before, if that is wanted.
    pub activity: Activity,
}

/// What a process may have of what all may have together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// Its share beside those of the others. At least 1 is taken.
    pub weight: u32,
    /// Bytes that it keeps in any case, as long as all such claims together can be met.
    pub minimum: u64,
}

impl Default for Claim {
    fn default() -> Self {
        Self { weight: 1, minimum: 0 }
    }
}

/// What a process did since the sample before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Activity {
    /// How long the one of its threads that waited longest waited for pages that were out.
    pub stall: Duration,
    /// Bytes of pages that were out and that it touched. What came along isn't counted.
    pub promoted: u64,
}

/// Everything as it was found at one moment.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sample<'a> {
    /// When, since any fixed moment.
    pub at: Duration,
    /// The processes that can be told to move memory out.
    pub clients: &'a [Footprint],
    /// What others have that counts too but can't be moved, in bytes.
    pub fixed: u64,
    /// What the store holds, in bytes.
    pub store: u64,
    /// Bytes moved out since any fixed moment: what came in is told from this.
    pub moved_out: u64,
    /// The share of the time since the last reading in which somebody waited for the kernel to find memory. `None` if that isn't wanted, not known, or
    /// hasn't been read anew: it is read once a second or so.
    pub stalled: Option<f64>,
    /// Bytes free on the disk that pages go to. `None` if that isn't wanted, or they go to none.
    pub free_disk: Option<u64>,
}

/// One process is to do something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Order {
    /// The process.
    pub pid: u32,
    /// What it is to do.
    pub what: What,
}

/// What a process can be ordered to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// Move out so many bytes, more than 0; what is used least, as far as that is known.
    Out {
        /// How many.
        bytes: u64,
        /// Rather fewer than any of what is known to be used.
        spare: bool,
    },
    /// Move out regions of so many pages, all of them present, which [`Policy::choose`] names.
    Regions {
        /// How many pages a region has, at least 1.
        pages: u32,
    },
    /// Bring back all that is out.
    Back,
}

impl Order {
    /// A process is to move out so many bytes, come what may.
    pub fn out(pid: u32, bytes: u64) -> Self {
        Self { pid, what: What::Out { bytes, spare: false } }
    }

    /// Bytes that are to go, if that is said.
    pub fn bytes(&self) -> u64 {
        match self.what {
            What::Out { bytes, .. } => bytes,
            What::Regions { .. } | What::Back => 0,
        }
    }
}

/// What came of an order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The order.
    pub order: Order,
    /// Bytes that moved, out or back.
    pub moved: u64,
    /// The regions of which something went out, where regions were ordered.
    pub regions: Vec<Area>,
}

/// What follows from a sample.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verdict {
    /// Who does what, now.
    pub orders: Vec<Order>,
    /// When to look again. What is too soon or too late is set right.
    pub next: Duration,
    /// How long a page that comes back is to wait, since pages come faster than they go; zero while they don't.
    pub brake: Duration,
    /// Whose pages don't wait then: processes that have no more than is theirs.
    pub unbraked: Vec<u32>,
    /// The time that is spent on processes, serving their faults and moving their memory out, is shared by weight, too: while others have faults, those of who
    /// takes most of it wait.
    pub fair: bool,
    /// Bytes over the limit now, 0 at or under it.
    pub over: u64,
}

/// Looked at so rarely where nothing is to be held to, for the record only.
pub(crate) const IDLE: Duration = Duration::from_millis(250);

/// Moves nothing by itself, whatever the limits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Off {
    limits: Limits,
}

impl Policy for Off {
    fn judge(&mut self, _: &Sample<'_>) -> Verdict {
        Verdict { next: IDLE, ..Verdict::default() }
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }
}

/// A policy within limits: what [`Limiter`](crate::Limiter) orders comes first, then what the other does. Of a process that both would have move, the
/// limiter's order holds.
#[derive(Debug)]
pub struct Within<P> {
    limiter: crate::Limiter,
    other: P,
}

impl<P: Policy> Within<P> {
    /// Holds `other` to what `limiter` holds to.
    pub fn new(limiter: crate::Limiter, other: P) -> Self {
        Self { limiter, other }
    }
}

impl<P: Policy> Policy for Within<P> {
    fn judge(&mut self, sample: &Sample<'_>) -> Verdict {
        let mut verdict = self.limiter.judge(sample);
        let more = self.other.judge(sample);
        for order in more.orders {
            if !verdict.orders.iter().any(|first| first.pid == order.pid) {
                verdict.orders.push(order);
            }
        }
        Verdict {
            next: verdict.next.min(more.next),
            brake: verdict.brake.max(more.brake),
            fair: verdict.fair || more.fair,
            ..verdict
        }
    }

    fn wants(&self) -> Wants {
        self.other.wants()
    }

    fn limits(&self) -> Limits {
        self.limiter.limits()
    }

    fn set_limits(&mut self, limits: Limits) {
        self.limiter.set_limits(limits);
    }

    fn answered(&mut self, at: Duration, answers: &[Answer]) {
        // Orders that spare what is used aren't the limiter's, and say nothing of whether a limit can be reached.
        let own = |answer: &&Answer| matches!(answer.order.what, What::Out { spare: false, .. });
        let (asked, moved) = answers
            .iter()
            .filter(own)
            .fold((0, 0), |(asked, moved), answer| (asked + answer.order.bytes(), moved + answer.moved));
        self.limiter.answered_in_all(at, asked, moved);
        self.other.answered(at, answers);
    }

    fn hint(&mut self, pid: u32, hint: Hint, at: Duration) {
        self.other.hint(pid, hint, at);
    }

    fn came_back(&mut self, pid: u32, area: Area, at: Duration) {
        self.other.came_back(pid, area, at);
    }

    fn gone(&mut self, pid: u32, area: Area) {
        self.other.gone(pid, area);
    }

    fn choose(&mut self, pid: u32, regions: &mut Vec<Area>, random: &mut dyn FnMut(usize) -> usize) {
        self.other.choose(pid, regions, random);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Orders the same whatever it sees.
    #[derive(Debug)]
    struct Stubborn(Vec<Order>, Vec<Answer>);

    impl Policy for Stubborn {
        fn judge(&mut self, _: &Sample<'_>) -> Verdict {
            Verdict { orders: self.0.clone(), next: Duration::from_millis(7), ..Verdict::default() }
        }

        fn answered(&mut self, _: Duration, answers: &[Answer]) {
            self.1.extend_from_slice(answers);
        }
    }

    fn sample(clients: &[Footprint]) -> Sample<'_> {
        Sample {
            at: Duration::ZERO,
            clients,
            fixed: 0,
            store: 0,
            moved_out: 0,
            stalled: None,
            free_disk: None,
        }
    }

    #[test]
    fn off_moves_nothing_however_much_there_is() {
        let mut off = Off::default();
        off.set_limits(Limits { resident: Some(MIB), ..Limits::default() });
        let client = Footprint { pid: 1, resident: 900 * MIB, ..Footprint::default() };
        let verdict = off.judge(&sample(&[client]));
        assert_eq!((verdict.orders.len(), verdict.over, verdict.next), (0, 0, IDLE));
        assert_eq!(off.limits().resident, Some(MIB));
    }

    #[test]
    fn a_limit_comes_before_what_another_policy_wants() {
        let limits = Limits { resident: Some(64 * MIB), ..Limits::default() };
        let others = vec![Order { pid: 1, what: What::Back }, Order { pid: 2, what: What::Back }];
        let mut within = Within::new(crate::Limiter::new(limits), Stubborn(others, Vec::new()));
        let client = |pid, resident| Footprint { pid, resident, ..Footprint::default() };
        let clients = [client(1, 100 * MIB), client(2, 0)];
        let verdict = within.judge(&sample(&clients));
        assert_eq!(verdict.orders[0], Order::out(1, 38 * MIB));
        assert_eq!(verdict.orders[1..], [Order { pid: 2, what: What::Back }]);
        assert!(verdict.over == 36 * MIB && verdict.next <= Duration::from_millis(7));
        // Both learn what came of it.
        let answer = Answer { order: verdict.orders[0], moved: MIB, regions: Vec::new() };
        within.answered(Duration::ZERO, std::slice::from_ref(&answer));
        assert_eq!(within.other.1, [answer]);
    }
}
