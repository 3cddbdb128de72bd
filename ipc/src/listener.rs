//! The daemon's socket in the file system.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketFlags};

use crate::transport::{Connection, Deadline, Received, TransportError, Wait, new_socket, poll};

/// A socket that clients connect to. Its file is removed when it is dropped, if it is this one's still.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// `None`: the address is no file.
    file: Option<FileId>,
}

impl Listener {
    /// Listens at `path`, with permission bits `mode`.
    ///
    /// A socket that is there already is replaced only if nobody answers on it. Two that start at once can't both do that:
    /// the directory is locked meanwhile.
    ///
    /// # Errors
    /// [`TransportError::InUse`], [`TransportError::NotASocket`], [`TransportError::Listen`]; nothing is left behind.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, TransportError> {
        let failed = |doing: &'static str| {
            move |source: io::Error| TransportError::Listen { path: path.to_path_buf(), doing, source }
        };
        let address =
            SocketAddrUnix::new(path).map_err(|e| failed("the path makes no socket address")(e.into()))?;
        let _lock = lock_directory(path).map_err(failed("locking the directory"))?;
        let socket = new_socket().map_err(|e| failed("making a socket")(e.into()))?;
        // The file is made with the socket's own mode, so that it's at no time open to more than it shall be.
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode & 0o777))
            .map_err(|e| failed("setting its permissions")(e.into()))?;
        match rustix::net::bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path)?;
                rustix::net::bind(&socket, &address)
            }
            answer => answer,
        }
        .map_err(|e| failed("binding it")(e.into()))?;
        let file = FileId::of(path).map_err(failed("looking at its file"))?;
        // From here on dropping it removes the file.
        let listener = Self { socket, path: path.to_path_buf(), file: Some(file) };
        // The umask may have taken bits away.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & 0o777))
            .map_err(failed("setting its permissions"))?;
        rustix::net::listen(&listener.socket, 128).map_err(|e| failed("listening")(e.into()))?;
        Ok(listener)
    }

    /// Listens at an abstract address, which is in no directory: clients reach it from other root directories, too, but not from
    /// other network namespaces. It has no permissions; whoever comes is to be looked at.
    ///
    /// # Errors
    /// [`TransportError::InUse`], [`TransportError::Listen`].
    pub fn bind_abstract(name: &str) -> Result<Self, TransportError> {
        let path = PathBuf::from(format!("@{name}"));
        let failed = |doing: &'static str| {
            let path = path.clone();
            move |e: Errno| TransportError::Listen { path, doing, source: e.into() }
        };
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes())
            .map_err(failed("the name makes no socket address"))?;
        let socket = new_socket().map_err(failed("making a socket"))?;
        match rustix::net::bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => return Err(TransportError::InUse { path }),
            answer => answer.map_err(failed("binding it"))?,
        }
        rustix::net::listen(&socket, 128).map_err(failed("listening"))?;
        Ok(Self { socket, path, file: None })
    }

    /// A socket that listens at `path` already.
    pub fn resume(socket: OwnedFd, path: &Path) -> Self {
        Self { socket, path: path.to_path_buf(), file: FileId::of(path).ok() }
    }

    /// The next client.
    ///
    /// # Errors
    /// [`TransportError::System`], such as when no descriptor can be opened any more.
    pub fn accept(&self, wait: Wait) -> Result<Received<Connection>, TransportError> {
        let deadline = Deadline::new(wait);
        loop {
            // Polled first, for the socket itself blocks.
            if !poll(self.socket.as_fd(), PollFlags::IN, deadline)? {
                return Ok(Received::Nothing);
            }
            match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC) {
                Ok(socket) => return Ok(Received::Got(Connection::from_fd(socket))),
                Err(Errno::INTR | Errno::CONNABORTED | Errno::AGAIN) => {}
                Err(Errno::INVAL) => return Ok(Received::Closed),
                Err(e) => return Err(TransportError::system("accepting a client")(e)),
            }
        }
    }

    /// Where it listens; an abstract address is its name behind an `@`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Accepts nobody any more, and wakes whoever waits in [`Listener::accept`].
    pub fn shut_down(&self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.file.is_some() && FileId::of(&self.path).ok() == self.file {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket on which nobody answers.
fn remove_stale(path: &Path) -> Result<(), TransportError> {
    let failed = |source| TransportError::Listen {
        path: path.to_path_buf(),
        doing: "removing a stale socket",
        source,
    };
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    if !kind.is_socket() {
        return Err(TransportError::NotASocket { path: path.to_path_buf() });
    }
    match Connection::connect(path) {
        Err(TransportError::Connect { source, .. })
            if source.raw_os_error() == Some(Errno::CONNREFUSED.raw_os_error()) =>
        {
            std::fs::remove_file(path).map_err(failed)
        }
        // Whether it took us or had no time for us or is of another type: somebody is there.
        _ => Err(TransportError::InUse { path: path.to_path_buf() }),
    }
}

/// Holds the directory of `path` locked; anybody may do so who can read it, so it is asked for a second and not forever.
fn lock_directory(path: &Path) -> io::Result<File> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file = File::open(directory)?;
    for _ in 0..100 {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(Duration::from_millis(10)),
            Err(e) => return Err(e.into()),
        }
    }
    Err(io::Error::new(io::ErrorKind::WouldBlock, "somebody else holds its lock"))
}

/// Which file a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::symlink_metadata(path)?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}
