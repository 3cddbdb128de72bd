//! The file or device pages go to: opening it without harming what is there, its room, giving room back.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags};
use userswap_store::StoreError;

use super::buffer::{BLOCK, Buffer};
use crate::spec::FileSpec;

/// What a file or device of ours begins with.
const MARK: &[u8] = b"userswap store, version 1: of no use to anybody once its program has ended\n";

/// Where the first segment begins.
pub(super) const START: u64 = BLOCK as u64;

pub(super) struct Target {
    pub(super) file: File,
    kind: Kind,
    /// Bytes to be left free of the file system.
    reserve: u64,
    punches: AtomicBool,
    pub(super) direct: bool,
    /// What is in it is this process's to throw away.
    throws_away: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unnamed,
    Named,
    Device,
}

impl Target {
    pub(super) fn open(spec: &FileSpec) -> Result<Self, StoreError> {
        let failed = |doing| move |source| StoreError::Io { doing, source };
        let found = std::fs::metadata(&spec.path);
        let (kind, doing) = match &found {
            Ok(found) if found.is_dir() => {
                (Kind::Unnamed, "making a file without a name in the store's directory")
            }
            Ok(found) if found.file_type().is_block_device() => (Kind::Device, "opening the store's device"),
            Ok(found) if found.is_file() => (Kind::Named, "opening the store's file"),
            Ok(_) => {
                let what = "anything but a directory, a file or a block device to keep pages in";
                return Err(StoreError::Unsupported { what });
            }
            Err(_) => (Kind::Named, "making the store's file"),
        };
        let open = |flags: OFlags| match kind {
            Kind::Unnamed => {
                let flags = flags | OFlags::TMPFILE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
                Ok(File::from(rustix::fs::open(&spec.path, flags, Mode::RUSR | Mode::WUSR)?))
            }
            _ => {
                // Of a device: unless it is mounted.
                let exclusive = if kind == Kind::Device { OFlags::EXCL } else { OFlags::empty() };
                let flags = i32::try_from((flags | exclusive).bits()).unwrap_or_default();
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(kind == Kind::Named).truncate(false);
                options.mode(0o600).custom_flags(flags).open(&spec.path)
            }
        };
        let mut direct = spec.direct;
        let file = match open(if direct { OFlags::DIRECT } else { OFlags::empty() }) {
            Err(error) if direct && error.raw_os_error() == Some(22) => {
                direct = false;
                open(OFlags::empty())
            }
            opened => opened,
        };
        let file = file.map_err(failed(doing))?;
        if kind != Kind::Unnamed {
            claim(&file, kind, spec.overwrite)
                .map_err(failed("taking the store's file or device for its own"))?;
        }
        // From here on what is in a named file is the store's to throw away.
        Ok(Self::new(file, kind, spec.reserve, direct, true))
    }

    /// What a dead process had open. What is in it stays, whatever becomes of this value, until it [is had](Self::is_had).
    pub(super) fn adopt(file: OwnedFd, spec: &FileSpec) -> io::Result<Self> {
        let file = File::from(file);
        let found = file.metadata()?;
        let kind = match (found.file_type().is_block_device(), found.nlink()) {
            (true, _) => Kind::Device,
            (false, 0) => Kind::Unnamed,
            (false, _) => Kind::Named,
        };
        let direct = rustix::fs::fcntl_getfl(&file)?.contains(OFlags::DIRECT);
        Ok(Self::new(file, kind, spec.reserve, direct, false))
    }

    fn new(file: File, kind: Kind, reserve: u64, direct: bool, throws_away: bool) -> Self {
        let (punches, throws_away) = (AtomicBool::new(true), AtomicBool::new(throws_away));
        Self { file, kind, reserve, punches, direct, throws_away }
    }

    /// The store is there: what is in it is thrown away when it goes.
    pub(super) fn is_had(&self) {
        self.throws_away.store(true, Ordering::Relaxed);
    }

    /// How many segments of this length the file reaches into; none for a device, of which that says nothing.
    pub(super) fn reaches(&self, segment_len: usize) -> io::Result<usize> {
        match self.kind {
            Kind::Device => Ok(0),
            _ => {
                let len = self.file.metadata()?.len().saturating_sub(START);
                usize::try_from(len.div_ceil(segment_len as u64)).map_err(io::Error::other)
            }
        }
    }

    /// The most bytes to use, past [`START`]; `None` for no limit.
    pub(super) fn size(&self, asked: Option<Option<u64>>) -> Result<Option<u64>, StoreError> {
        if self.kind != Kind::Device {
            return Ok(asked.unwrap_or(Some(FileSpec::SIZE)));
        }
        let failed = |source| StoreError::Io { doing: "asking for the size of the store's device", source };
        let all =
            io::Seek::seek(&mut &self.file, io::SeekFrom::End(0)).map_err(failed)?.saturating_sub(START);
        Ok(Some(asked.flatten().map_or(all, |asked| asked.min(all))))
    }

    /// How many bytes more of the file system may be taken.
    pub(super) fn room(&self) -> u64 {
        if self.kind == Kind::Device || self.reserve == 0 {
            return u64::MAX;
        }
        match rustix::fs::fstatvfs(self.file.as_fd()) {
            Ok(free) => free.f_bavail.saturating_mul(free.f_frsize).saturating_sub(self.reserve),
            // Then it is for the write to find out.
            Err(_) => u64::MAX,
        }
    }

    /// Gives room back; answers whether that was possible.
    pub(super) fn punch(&self, offset: u64, len: u64) -> bool {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punched = self.punches.load(Ordering::Relaxed)
            && rustix::fs::fallocate(&self.file, flags, offset, len).is_ok();
        if !punched {
            self.punches.store(false, Ordering::Relaxed);
        }
        punched
    }

    /// Whether room that is given back is free of writes that were on their way: a file system waits for those, a device does it beside them.
    pub(super) fn drains(&self) -> bool {
        self.kind != Kind::Device
    }

    /// Whether giving room back is worth a try.
    pub(super) fn punches(&self) -> bool {
        self.punches.load(Ordering::Relaxed)
    }

    /// Bytes the file takes of its file system; 0 for a device.
    pub(super) fn taken(&self) -> io::Result<u64> {
        match self.kind {
            Kind::Device => Ok(0),
            _ => Ok(self.file.metadata()?.blocks() * 512),
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.kind == Kind::Named && self.throws_away.load(Ordering::Relaxed) {
            // What is in it can't be read by anybody any more.
            let _ = self.file.set_len(0);
        }
    }
}

/// Makes sure that nobody else uses it and that nothing is there that somebody may want, and marks it.
fn claim(file: &File, kind: Kind, overwrite: bool) -> io::Result<()> {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| io::Error::new(io::ErrorKind::ResourceBusy, "another store uses it"))?;
    let mut block = Buffer::new(BLOCK)?;
    let read = file.read_at(&mut block, 0)?;
    let empty = block[..read].iter().all(|byte| *byte == 0);
    let long = kind == Kind::Named && empty && file.metadata()?.len() > 0;
    if !overwrite && !block.starts_with(MARK) && (!empty || long) {
        let what = "there is something in it already; overwrite=on writes over it";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
    }
    if kind == Kind::Named {
        file.set_len(0)?;
    }
    block.fill(0);
    block[..MARK.len()].copy_from_slice(MARK);
    file.write_all_at(&block, 0)
}
