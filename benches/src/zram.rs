//! The kernel's swap on zram: a device of its own for the run, taken away again whatever happens.
//!
//! A guard process makes it and takes it away when its input ends, which it does however the benchmark ends. A lock
//! file, [`lock_path`], keeps two benchmarks from using zram at once.

use crate::child::{Child, say};
use crate::error::Error;
use crate::subject::{Reply, Role};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The benchmark's end: the device is there as long as this is.
pub(crate) struct Zram {
    settings: Settings,
    _guard: Child,
}

/// How the device is set up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// `zram1`, say.
    pub(crate) device: String,
    /// The compression algorithm.
    pub(crate) algorithm: String,
    /// The device's size in bytes.
    pub(crate) bytes: u64,
    /// Its priority as a swap device.
    pub(crate) priority: i32,
    /// `vm.page-cluster`: swap read-ahead, of which the kernel does none on zram.
    pub(crate) page_cluster: String,
}

impl Zram {
    /// Makes a device of `bytes` and swaps to it.
    pub(crate) fn start(bytes: u64) -> Result<Self, Error> {
        match Child::start("zram guard", &Role::Zram { bytes })? {
            (guard, Reply::Zram(settings)) => Ok(Self { settings, _guard: guard }),
            (_, other) => {
                Err(Error::Child { who: "zram guard".into(), reason: format!("answered {other:?}") })
            }
        }
    }

    /// How it is set up.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// All the memory it takes now, in bytes: `mem_used_total`.
    pub(crate) fn memory_bytes(&self) -> Result<u64, Error> {
        let stat = read(&sys(&self.settings.device, "mm_stat"))?;
        let field = stat.split_ascii_whitespace().nth(2).and_then(|field| field.parse().ok());
        field.ok_or_else(|| Error::Input(format!("zram's mm_stat without mem_used_total: {stat}")))
    }
}

/// Who uses zram for a while holds a lock on this file.
pub(crate) fn lock_path() -> PathBuf {
    let run = Path::new("/run/lock");
    if run.is_dir() {
        run.join("userswap-zram.lock")
    } else {
        std::env::temp_dir().join("userswap-zram.lock")
    }
}

/// The guard.
pub(crate) fn serve(bytes: u64) -> Result<(), Error> {
    let device = match Device::make(bytes) {
        Ok(device) => device,
        Err(error) => return say(&Reply::Failed(error.chain())),
    };
    // If nobody listens any more the input has ended, too.
    let _ = say(&Reply::Zram(device.settings.clone()));
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    device.take_away()
}

/// A zram device that is swapped to.
struct Device {
    settings: Settings,
    /// It was made for us; if not, it was there, unused, with this algorithm.
    before: Before,
    swapped_to: bool,
    gone: bool,
    _lock: File,
}

enum Before {
    Absent,
    Unused { algorithm: String },
}

const PRIORITY: i32 = 32767;
const ALGORITHM: &str = "lz4";
/// How long to wait for another benchmark.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);

impl Device {
    fn make(bytes: u64) -> Result<Self, Error> {
        let lock = lock()?;
        if let Some(other) = swap_of_priority(PRIORITY)? {
            return Err(Error::Input(format!("{other} is swapped to with the highest priority already")));
        }
        if !Path::new("/sys/class/zram-control").is_dir() && !Path::new("/sys/block/zram0").is_dir() {
            run("modprobe", &["zram"])?;
        }
        let (device, before) = find_device()?;
        let settings = Settings {
            device,
            algorithm: ALGORITHM.into(),
            bytes,
            priority: PRIORITY,
            page_cluster: read(Path::new("/proc/sys/vm/page-cluster"))?,
        };
        let mut device = Self { settings, before, swapped_to: false, gone: false, _lock: lock };
        device.set_up()?;
        Ok(device)
    }

    fn set_up(&mut self) -> Result<(), Error> {
        let Settings { device, algorithm, bytes, priority, .. } = &self.settings;
        write(&sys(device, "comp_algorithm"), algorithm)?;
        write(&sys(device, "disksize"), &bytes.to_string())?;
        let node = format!("/dev/{device}");
        run("mkswap", &[&node])?;
        run("swapon", &["-p", &priority.to_string(), &node])?;
        self.swapped_to = true;
        Ok(())
    }

    fn take_away(mut self) -> Result<(), Error> {
        self.put_back()
    }

    fn put_back(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.gone, true) {
            return Ok(());
        }
        let device = &self.settings.device;
        if self.swapped_to {
            run("swapoff", &[&format!("/dev/{device}")])?;
        }
        // Whoever watches devices come and go may look into it for a moment.
        patiently(|| write(&sys(device, "reset"), "1"))?;
        match &self.before {
            Before::Absent => {
                let number = device.trim_start_matches("zram");
                patiently(|| write(Path::new("/sys/class/zram-control/hot_remove"), number))
            }
            Before::Unused { algorithm } => write(&sys(device, "comp_algorithm"), algorithm),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Err(error) = self.put_back() {
            eprintln!("{} could not be put back: {}", self.settings.device, error.chain());
        }
    }
}

/// A device nobody uses: a new one where the kernel makes new ones, else the first if it is unused.
fn find_device() -> Result<(String, Before), Error> {
    if let Ok(number) = read(Path::new("/sys/class/zram-control/hot_add")) {
        return Ok((format!("zram{number}"), Before::Absent));
    }
    if read(&sys("zram0", "disksize"))? != "0" {
        return Err(Error::Input("zram0 is in use, and no other can be made".into()));
    }
    let algorithms = read(&sys("zram0", "comp_algorithm"))?;
    let chosen =
        algorithms.split_ascii_whitespace().find_map(|name| name.strip_prefix('[')?.strip_suffix(']'));
    let algorithm = chosen.unwrap_or("lzo-rle").to_owned();
    Ok(("zram0".into(), Before::Unused { algorithm }))
}

fn lock() -> Result<File, Error> {
    let path = lock_path();
    let doing = || format!("locking {}", path.display());
    let file = File::options().create(true).append(true).open(&path).map_err(Error::io(doing()))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(error) => return Err(Error::io(doing())(error.into())),
        }
    }
}

/// A swap device with at least this priority.
fn swap_of_priority(priority: i32) -> Result<Option<String>, Error> {
    let swaps = read(Path::new("/proc/swaps"))?;
    Ok(swaps.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let name = fields.next()?;
        let its: i32 = fields.next_back()?.parse().ok()?;
        (its >= priority).then(|| name.to_owned())
    }))
}

fn patiently(mut what: impl FnMut() -> Result<(), Error>) -> Result<(), Error> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match what() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            done => return done,
        }
    }
}

fn sys(device: &str, attribute: &str) -> PathBuf {
    ["/sys/block", device, attribute].iter().collect()
}

fn read(path: &Path) -> Result<String, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::io(format!("reading {}", path.display())))?;
    Ok(text.trim_end().to_owned())
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(path, text).map_err(Error::io(format!("writing {text} to {}", path.display())))
}

/// Runs a program of the system's, which must succeed.
fn run(program: &str, arguments: &[&str]) -> Result<(), Error> {
    let output =
        Command::new(program).args(arguments).output().map_err(Error::io(format!("running {program}")))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(Error::Program { program: program.into(), message })
}
