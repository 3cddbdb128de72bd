//! What is measured: a process that holds the image, can be told to have it moved out, and touches it.

use crate::client::{Cooperating, Daemon};
use crate::error::Error;
use crate::image::read_pages;
use crate::kernel::Kernel;
use crate::local::Local;
use crate::pattern::Pattern;
use crate::plain::Plain;
use crate::plain_handler::PlainHandler;
use crate::stats::Pass;
use crate::touch::{Arena, Manner};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use userswap_engine::{Stage, Stages};
use userswap_uffd::Pagemap;

/// What a child process is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    /// Memory that the kernel swaps out.
    Kernel {
        /// The image's path.
        image: PathBuf,
    },
    /// Memory that nobody moves out.
    Plain {
        /// The image's path.
        image: PathBuf,
    },
    /// Memory whose faults a handler answers one page at a time.
    PlainHandler {
        /// The image's path.
        image: PathBuf,
    },
    /// A region that pages itself.
    Local {
        /// The image's path.
        image: PathBuf,
        /// Where its pages go.
        store: String,
        /// Whether faulting threads serve themselves.
        inline: bool,
        /// Whether stages are measured.
        stages: bool,
    },
    /// Memory that a daemon moves out.
    Client {
        /// The image's path.
        image: PathBuf,
        /// Where the daemon listens.
        socket: PathBuf,
        /// In so many regions.
        regions: usize,
    },
    /// That daemon.
    Daemon {
        /// Where its client's pages go.
        store: String,
        /// Where it listens.
        socket: PathBuf,
        /// Whether stages are measured.
        stages: bool,
    },
    /// Makes a zram device, and takes it away when nobody listens any more.
    Zram {
        /// Its size in bytes.
        bytes: u64,
    },
}

/// What a child is told.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Have every page moved out.
    MoveOut,
    /// Touch pages.
    Touch(Touches),
    /// Tell how long the stages of faults took so far.
    Stages,
}

/// Which pages are touched, and how.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Touches {
    /// In what order.
    pub(crate) pattern: Pattern,
    /// How many, in random order.
    pub(crate) touches: usize,
    /// By how many threads.
    pub(crate) threads: usize,
    /// How each does it.
    pub(crate) manner: Manner,
    /// Of the random order.
    pub(crate) seed: u64,
}

/// What a child answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// It is there.
    Ready,
    /// The zram device is there, and swapped to.
    Zram(crate::zram::Settings),
    /// See [`MovedOut`].
    MovedOut(MovedOut),
    /// See [`Touched`].
    Touched(Touched),
    /// See [`StageTimes`]; of none where there are none.
    Stages(Option<StageTimes>),
    /// It can't, and why.
    Failed(String),
}

/// What it took to move every page out.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct MovedOut {
    /// So many.
    pub(crate) pages: u64,
    /// In so many nanoseconds.
    pub(crate) ns: f64,
    /// What the store takes of memory for it, in bytes; unless somebody else knows.
    pub(crate) memory_bytes: Option<u64>,
}

/// What came of touching pages.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Touched {
    /// How long it took.
    pub(crate) pass: Pass,
    /// Pages that were in memory before.
    pub(crate) present: usize,
    /// Pages, of all, that are not as in the image afterwards.
    pub(crate) wrong: usize,
}

/// How long each stage of a fault took, by its name and in order.
pub(crate) type StageTimes = Vec<(String, StageTime)>;

/// How long one did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StageTime {
    pub(crate) count: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
}

/// As it is told.
pub(crate) fn stage_times(stages: &Stages) -> StageTimes {
    let time = |stage: &Stage| {
        let times = stages.of(*stage);
        StageTime { count: times.count(), p50_ns: times.quantile(500), p99_ns: times.quantile(990) }
    };
    Stage::ALL.iter().map(|stage| (stage.name().to_owned(), time(stage))).collect()
}

/// What a child is, when it isn't a zram guard.
pub(crate) trait Subject {
    /// Does what it is told.
    fn answer(&mut self, request: Request) -> Result<Reply, Error>;
}

/// Makes one.
pub(crate) fn make(role: &Role) -> Result<Box<dyn Subject>, Error> {
    match role {
        Role::Kernel { image } => Ok(Box::new(Kernel::new(&read_pages(image)?)?)),
        Role::Plain { image } => Ok(Box::new(Plain::new(&read_pages(image)?)?)),
        Role::PlainHandler { image } => Ok(Box::new(PlainHandler::new(&read_pages(image)?)?)),
        Role::Local { image, store, inline, stages } => {
            Ok(Box::new(Local::new(&read_pages(image)?, store, *inline, *stages)?))
        }
        Role::Client { image, socket, regions } => {
            Ok(Box::new(Cooperating::new(&read_pages(image)?, socket, *regions)?))
        }
        Role::Daemon { store, socket, stages } => Ok(Box::new(Daemon::new(store, socket, *stages)?)),
        Role::Zram { .. } => Err(Error::Input("a zram device holds no memory to touch".into())),
    }
}

/// Touches an arena's pages, then looks whether all of them are as they were.
pub(crate) fn touch(arena: &mut Arena, how: Touches) -> Result<Reply, Error> {
    let orders = how.pattern.orders(arena.pages(), how.touches, how.threads, how.seed);
    let present = arena.present(&Pagemap::this()?)?;
    let pass = arena.pass(&orders, how.manner)?;
    Ok(Reply::Touched(Touched { pass, present, wrong: arena.wrong_pages() }))
}
