//! What this machine and this process can do, and what would mend what they can't.

use std::fmt;
use std::os::fd::AsFd;

use crate::{
    Error, Features, Mapping, OpenMode, Pagemap, Process, Protection, RawUffd, ScanRequest, open_device,
};

/// Every capability's answer, in the order of [`Capability::ALL`].
#[derive(Clone, Debug)]
pub struct Probe {
    /// The kernel's release, as it says.
    pub kernel: String,
    /// What userfaultfds of this kernel have; empty when none could be asked.
    pub features: Features,
    answers: Vec<(Capability, Answer)>,
}

/// Something a swap engine wants of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Capability {
    /// `/dev/userfaultfd` can be opened and gives a userfaultfd.
    Device,
    /// The system call gives a userfaultfd that serves faults inside system calls.
    Syscall,
    /// The system call gives one that serves faults of user code.
    UserModeOnly,
    /// Processes without privilege may use the system call in full (`vm.unprivileged_userfaultfd`).
    UnprivilegedSyscall,
    /// Forks, moves, drops and unmaps are events.
    Events,
    /// This process may ask for fork events.
    ForkEvents,
    /// UFFDIO_MOVE.
    Move,
    /// A kernel whose UFFDIO_MOVE has the fixes of 6.12.37 and 6.16.
    SoundMove,
    /// UFFDIO_POISON.
    Poison,
    /// Asynchronous write-protection.
    WpAsync,
    /// PAGEMAP_SCAN.
    PagemapScan,
    /// pidfds.
    Pidfd,
    /// process_vm_readv.
    ReadMemory,
}

/// Whether a capability is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is.
    Yes,
    /// It isn't.
    No {
        /// What the attempt came to.
        why: String,
        /// What would mend it.
        remedy: &'static str,
    },
}

/// Tries everything once. Changes nothing that outlives the call.
pub fn probe() -> Probe {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let features = Features::available().unwrap_or_default();
    let answers = Capability::ALL.iter().map(|&c| (c, c.answer(&kernel, features))).collect();
    Probe { kernel, features, answers }
}

impl Probe {
    /// The answer for one capability.
    pub fn answer(&self, capability: Capability) -> Option<&Answer> {
        self.answers.iter().find(|(c, _)| *c == capability).map(|(_, answer)| answer)
    }

    /// Whether it is there.
    pub fn has(&self, capability: Capability) -> bool {
        self.answer(capability) == Some(&Answer::Yes)
    }

    /// All of them.
    pub fn answers(&self) -> impl Iterator<Item = (Capability, &Answer)> {
        self.answers.iter().map(|(capability, answer)| (*capability, answer))
    }
}

impl Capability {
    /// All of them, in the order they're told.
    pub const ALL: [Capability; 13] = [
        Capability::Device,
        Capability::Syscall,
        Capability::UserModeOnly,
        Capability::UnprivilegedSyscall,
        Capability::Events,
        Capability::ForkEvents,
        Capability::Move,
        Capability::SoundMove,
        Capability::Poison,
        Capability::WpAsync,
        Capability::PagemapScan,
        Capability::Pidfd,
        Capability::ReadMemory,
    ];

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Capability::Device => "/dev/userfaultfd",
            Capability::Syscall => "userfaultfd system call",
            Capability::UserModeOnly => "userfaultfd system call, user mode only",
            Capability::UnprivilegedSyscall => "userfaultfd system call without privilege",
            Capability::Events => "remap, remove and unmap events",
            Capability::ForkEvents => "fork events",
            Capability::Move => "UFFDIO_MOVE",
            Capability::SoundMove => "UFFDIO_MOVE with its fixes",
            Capability::Poison => "UFFDIO_POISON",
            Capability::WpAsync => "asynchronous write-protect",
            Capability::PagemapScan => "PAGEMAP_SCAN",
            Capability::Pidfd => "pidfds",
            Capability::ReadMemory => "process_vm_readv",
        }
    }

    const fn remedy(self) -> &'static str {
        match self {
            Capability::Device => {
                "load a kernel of 6.1 or later, or give this user read and write access to /dev/userfaultfd"
            }
            Capability::Syscall | Capability::UnprivilegedSyscall => {
                "use /dev/userfaultfd, or give CAP_SYS_PTRACE, or set sysctl vm.unprivileged_userfaultfd=1"
            }
            Capability::UserModeOnly => {
                "allow the userfaultfd system call (seccomp), kernel built with CONFIG_USERFAULTFD"
            }
            Capability::Events => "a kernel of 4.11 or later",
            Capability::ForkEvents => "give CAP_SYS_PTRACE to the process that makes the handshake",
            Capability::Move => "a kernel of 6.8 or later; pages are copied without it",
            Capability::SoundMove => {
                "a kernel of 6.12.37, 6.15.6 or 6.16 or later; pages are copied without it"
            }
            Capability::Poison => "a kernel of 6.6 or later; a page that is lost then ends the client",
            Capability::WpAsync | Capability::PagemapScan => {
                "a kernel of 6.7 or later; clean pages are written again without it"
            }
            Capability::Pidfd => "a kernel of 5.6 or later",
            Capability::ReadMemory => {
                "a kernel with CONFIG_CROSS_MEMORY_ATTACH, ptrace allowed (CAP_SYS_PTRACE, yama)"
            }
        }
    }

    fn answer(self, kernel: &str, features: Features) -> Answer {
        let tried = match self {
            Capability::Device => open_device()
                .and_then(|device| RawUffd::create(OpenMode::Device(device.as_fd())).map(drop))
                .map_err(|e| describe(&e)),
            Capability::Syscall => RawUffd::create(OpenMode::Syscall).map(drop).map_err(|e| describe(&e)),
            Capability::UserModeOnly => {
                RawUffd::create(OpenMode::UserModeOnly).map(drop).map_err(|e| describe(&e))
            }
            Capability::UnprivilegedSyscall => unprivileged_sysctl(),
            Capability::Events => {
                has(features, Features::EVENT_REMAP | Features::EVENT_REMOVE | Features::EVENT_UNMAP)
            }
            Capability::ForkEvents => fork_events(),
            Capability::Move => has(features, Features::MOVE),
            Capability::SoundMove => sound_move(kernel, features),
            Capability::Poison => has(features, Features::POISON),
            Capability::WpAsync => has(features, Features::WP_ASYNC),
            Capability::PagemapScan => pagemap_scan().map_err(|e| describe(&e)),
            Capability::Pidfd => Process::this().map(drop).map_err(|e| describe(&e)),
            Capability::ReadMemory => read_memory().map_err(|e| describe(&e)),
        };
        match tried {
            Ok(()) => Answer::Yes,
            Err(why) => Answer::No { why, remedy: self.remedy() },
        }
    }
}

/// One line a capability.
impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel {}", self.kernel)?;
        for (capability, answer) in &self.answers {
            match answer {
                Answer::Yes => writeln!(f, "yes  {}", capability.name())?,
                Answer::No { why, remedy } => writeln!(f, "no   {}: {why}; {remedy}", capability.name())?,
            }
        }
        Ok(())
    }
}

fn has(features: Features, wanted: Features) -> Result<(), String> {
    let missing = wanted - features;
    if missing.is_empty() { Ok(()) } else { Err(format!("this kernel lacks {missing:?}")) }
}

fn unprivileged_sysctl() -> Result<(), String> {
    match std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd") {
        Ok(value) if value.trim() == "1" => Ok(()),
        Ok(value) => Err(format!("vm.unprivileged_userfaultfd is {}", value.trim())),
        Err(e) => Err(format!("vm.unprivileged_userfaultfd: {e}")),
    }
}

fn fork_events() -> Result<(), String> {
    let raw = RawUffd::create(OpenMode::Auto).or_else(|_| RawUffd::create(OpenMode::UserModeOnly));
    let uffd = raw.and_then(|raw| raw.handshake(Features::EVENT_FORK)).map_err(|e| describe(&e))?;
    if uffd.features().contains(Features::EVENT_FORK) {
        Ok(())
    } else {
        Err("refused at the handshake".into())
    }
}

fn sound_move(kernel: &str, features: Features) -> Result<(), String> {
    has(features, Features::MOVE)?;
    if move_is_fixed(kernel) { Ok(()) } else { Err(format!("kernel {kernel} is from before the fixes")) }
}

/// Whether a kernel release has the corrections to UFFDIO_MOVE: in the main line with 6.16, in the long-term 6.12 with 6.12.37, in the
/// 6.15 series with 6.15.6. Vendors number differently and may have them unseen; then this errs towards copying.
pub fn move_is_fixed(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match version {
        (6, 12, patch) => patch >= 37,
        (6, 15, patch) => patch >= 6,
        (major, minor, _) => (major, minor) >= (6, 16),
    }
}

fn pagemap_scan() -> Result<(), Error> {
    let mapping = Mapping::new(crate::page_bytes(), Protection::READ_WRITE)?;
    Pagemap::this()?.scan(mapping.span(), &ScanRequest::default(), &mut Vec::new()).map(drop)
}

fn read_memory() -> Result<(), Error> {
    let word = 0x5157_4150_u64.to_ne_bytes();
    let mut copy = [0; 8];
    Process::this()?.read_memory(word.as_ptr().addr() as u64, &mut copy).map(drop)
}

/// An error with its cause, on one line.
fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
