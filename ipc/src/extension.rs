//! What was added beside the mirror: interfaces of their own, versioned, agreed on by `Hello`, absent in strict mode.
//!
//! | interface · method (ordinal) | fields in order | kind |
//! |---|---|---|
//! | client · Hello (0) | version u32, wants u64 → version u32, granted u64, uffd_device handle?, staging_pages u64 | sync |
//! | client · Staging (1) | area MemoryRegion → () | sync |
//! | client · Hint (2) | kind u32, value u64 | one-way |
//! | client · Agent (3) | kind u32, pid u32, tid u32, sentinel MemoryRegion, ours array → uffd handle? | sync |
//! | client · Exclude (4) | area MemoryRegion → () | answered |
//! | client · Retire (5) | why u32 → () | answered |
//! | daemon · Move (0) | mover u32, moves array → results array | answered |
//! | daemon · Drop (1) | areas array, how u32 → () | answered |
//! | daemon · Unshare (2) | areas array → () | answered |
//!
//! # Programs that know nothing of it
//!
//! A library loaded beside such a program speaks for it ([`Abilities::AGENT`]); the thread that does is its *agent*. Nobody there
//! says which memory may be moved: the daemon finds out by itself, and leaves alone what [`Agent::ours`] names. All of the
//! client's calls but `Hint` may come at any time once it is set up, also between an order and its answer.
//!
//! Setting up, in this order: `Hello`, `Staging`, `Agent`, and `TransferUserfaultFD` if the kind is [`AgentKind::Exec`]. A forked
//! child has nothing to transfer: its userfaultfd was made by the kernel and came to the daemon with the parent's
//! EVENT_FORK, which doesn't say whose it is. So the child shows it:
//!
//! 1. The daemon registers the parent's [`Agent::sentinel`] for missing pages before it moves anything of the parent's, and leaves it
//!    registered. It is a hole, and a forked child has the same hole at the same address, registered with the child's userfaultfd.
//! 2. The child's agent connects and calls `Agent`, which isn't answered yet. It empties the sentinel (a REMOVE event, for a parent
//!    that forked too early might have filled its own) and touches it.
//! 3. The fault arrives on exactly the child's userfaultfd, with the agent's thread id (THREAD_ID): the [`Agent::tid`] the call
//!    named. Both are numbers of the child's own pid namespace. So the daemon knows which userfaultfd and which connection belong
//!    together; that the connection's peer is a process with such a thread it can see in `/proc/PID/status`. It fills the sentinel
//!    with a zero page and answers the call with the userfaultfd.
//!
//! A child that is never claimed (made by a bare clone, or gone already) is served by its userfaultfd all the same.
//!
//! While an order is being carried out no message of the client's userfaultfd is read, so the agent never does in one what could fault
//! in the program's memory. A page that UFFDIO_MOVE refuses only because it was shared with a child that is gone is reported as
//! [`MoveStop::WasShared`]; the daemon may have it made the program's own again by `Unshare`, which it waits for with the userfaultfd
//! being read, and order the move again.

use crate::contract::MemoryRegion;

/// The version of the extension interfaces this crate speaks. A peer that answers with another one is spoken to in the
/// mirror alone.
pub const VERSION: u32 = 1;

bitflags::bitflags! {
    /// What a client asks for in `Hello`, and what it is granted.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Abilities: u64 {
        /// `Move` with [`Mover::Remap`] and `Drop`: acknowledged, many ranges in one message.
        const ORDERS = 1;
        /// `Move` with [`Mover::UffdMove`], and a staging area as its destination.
        const UFFD_MOVE = 1 << 1;
        /// A `/dev/userfaultfd` descriptor, for a client that may not open one itself.
        const DEVICE = 1 << 2;
        /// `Hint` is listened to.
        const HINTS = 1 << 3;
        /// `Agent`, `Exclude`, `Retire` and `Unshare`: for programs that know nothing of it.
        const AGENT = 1 << 4;
    }
}

/// Parameters of `Hello`, the first message of an extended client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The version the client speaks.
    pub version: u32,
    /// [`Abilities`] bits it would like; unknown ones are not granted.
    pub wants: u64,
}

/// The answer to `Hello`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloReply<H> {
    /// The version the daemon speaks.
    pub version: u32,
    /// [`Abilities`] bits granted.
    pub granted: u64,
    /// An open `/dev/userfaultfd`, with [`Abilities::DEVICE`].
    pub uffd_device: Option<H>,
    /// How many pages of staging to announce, with [`Abilities::UFFD_MOVE`].
    pub staging_pages: u64,
}

/// Parameters of `Staging`: the read-write area that `UFFDIO_MOVE` moves into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staging {
    /// The area.
    pub area: MemoryRegion,
}

/// What a client may tell about itself, for the policy to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HintKind {
    /// Whether a person sees it (value 0 or 1).
    Visible,
    /// Whether it is heard (0 or 1).
    Audible,
    /// Whether it is still loading (0 or 1).
    Loading,
    /// Whether it was frozen (0 or 1).
    Frozen,
}

/// Parameters of `Hint`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// What is told.
    pub kind: HintKind,
    /// Its value.
    pub value: u64,
}

/// How an agent came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AgentKind {
    /// Its program was started; it transfers a userfaultfd of its own. Also a child whose parent had nothing moved out when it
    /// forked.
    Exec,
    /// Its process was forked from one whose sentinel is registered; it touches the sentinel while it waits for the answer.
    Forked,
}

/// Parameters of `Agent`: the client speaks for a program that knows nothing of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// How it came to be.
    pub kind: AgentKind,
    /// Its process id in its own pid namespace.
    pub pid: u32,
    /// Its thread id in its own pid namespace, as its faults have it.
    pub tid: u32,
    /// One page, a hole, to be registered for missing pages as long as the process lives.
    pub sentinel: MemoryRegion,
    /// What must never be moved, at most [`MAX_OURS`]: the agent's stack and buffers, the library's data, the areas.
    pub ours: Vec<MemoryRegion>,
}

/// The most regions in [`Agent::ours`].
pub const MAX_OURS: usize = 16;

/// The answer to `Agent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentReply<H> {
    /// The forked child's own userfaultfd, for [`AgentKind::Forked`]; the agent keeps it as long as the process lives.
    pub uffd: Option<H>,
}

/// Parameters of `Exclude`: bring the range back, unregister it, move nothing of it as long as it is mapped, for the program is about to
/// change what kind of memory it is (MADV_DONTFORK, MADV_GUARD_INSTALL, …). Answered when it is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exclude {
    /// The range, rounded out to whole pages.
    pub area: MemoryRegion,
}

/// Why a program can't be cared for any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetireReason {
    /// It is about to restrict its system calls, which could strike the agent.
    Seccomp,
    /// It is about to enter namespaces.
    Setns,
    /// It is about to unshare what only a process of one thread can.
    Unshare,
}

/// Parameters of `Retire`: bring everything back, unregister everything, give no orders ever again. Answered when it is so; then
/// the client closes the connection and its userfaultfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retire {
    /// Why.
    pub why: RetireReason,
}

/// Parameters of `Unshare`: have pages that were shared with children that are gone made the program's own again, so that they can
/// be moved. Pages still shared, or not there any more, are left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unshare {
    /// Where, at most [`MAX_DROPS`].
    pub areas: Vec<MemoryRegion>,
}

/// How pages are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mover {
    /// mremap(DONTUNMAP) into the swap area: any memory, whole mappings.
    Remap,
    /// UFFDIO_MOVE into the staging area: refuses pinned and shared pages, splits no mapping.
    UffdMove,
}

/// One range of a `Move`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveRange {
    /// First byte to move.
    pub src: u64,
    /// Bytes.
    pub len: u64,
    /// Where the first byte goes.
    pub dest: u64,
}

/// The most ranges in one `Move`: the client's agent keeps an order on its stack, and its faults wait while it is carried out.
pub const MAX_MOVES: usize = 64;

/// The most areas in one `Drop`.
pub const MAX_DROPS: usize = 512;

/// Parameters of `Move`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// How.
    pub mover: Mover,
    /// What, at most [`MAX_MOVES`].
    pub moves: Vec<MoveRange>,
}

/// Why a range wasn't moved whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MoveStop {
    /// It was.
    None,
    /// A page is in place at the destination already.
    Present,
    /// An event is unread, or the address space is being changed: later.
    Busy,
    /// Source or destination isn't mapped, or not as the mover needs it.
    Unmapped,
    /// A page is pinned or shared with a child.
    Pinned,
    /// There is no page at the source.
    Hole,
    /// No memory for page tables or mappings.
    NoMemory,
    /// The kernel wouldn't for another reason.
    Refused,
    /// A page was shared with a child that is gone; it is the program's own again after `Unshare`. Or it is pinned: that can't be told
    /// beforehand.
    WasShared,
}

/// What became of one range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveResult {
    /// Bytes now at the destination, from the start of the range.
    pub moved: u64,
    /// Why not more.
    pub stop: MoveStop,
}

/// The answer to `Move`: every range was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveReply {
    /// How far each range of the order got, in its order.
    pub results: Vec<MoveResult>,
}

/// How memory is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropHow {
    /// As `MapArea` does: mapped anew with no access. For the swap area.
    MapArea,
    /// MADV_DONTNEED, the mapping stays. For the staging area, and the swap area too.
    DontNeed,
}

/// Parameters of `Drop`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drop {
    /// What, at most [`MAX_DROPS`].
    pub areas: Vec<MemoryRegion>,
    /// How.
    pub how: DropHow,
}

/// An enum that the wire carries as a u32.
pub(crate) trait Code: Copy + 'static {
    /// Its name in errors.
    const NAME: &'static str;
    /// Its values; the index is the code.
    const VALUES: &'static [Self];
    fn code(self) -> u32;
}

macro_rules! codes {
    ($ty:ident: $($variant:ident = $code:literal),+ $(,)?) => {
        impl Code for $ty {
            const NAME: &'static str = stringify!($ty);
            const VALUES: &'static [Self] = &[$(Self::$variant),+];
            fn code(self) -> u32 {
                match self { $(Self::$variant => $code),+ }
            }
        }
    };
}

codes!(HintKind: Visible = 0, Audible = 1, Loading = 2, Frozen = 3);
codes!(Mover: Remap = 0, UffdMove = 1);
codes!(AgentKind: Exec = 0, Forked = 1);
codes!(RetireReason: Seccomp = 0, Setns = 1, Unshare = 2);
codes!(
    MoveStop: None = 0,
    Present = 1,
    Busy = 2,
    Unmapped = 3,
    Pinned = 4,
    Hole = 5,
    NoMemory = 6,
    Refused = 7,
    WasShared = 8,
);
codes!(DropHow: MapArea = 0, DontNeed = 1);

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Code + PartialEq + std::fmt::Debug>() {
        for (index, value) in T::VALUES.iter().enumerate() {
            assert_eq!(usize::try_from(value.code()).unwrap(), index, "{}::{value:?}", T::NAME);
        }
    }

    #[test]
    fn a_code_is_its_values_index() {
        check::<HintKind>();
        check::<AgentKind>();
        check::<RetireReason>();
        check::<Mover>();
        check::<MoveStop>();
        check::<DropHow>();
    }
}
