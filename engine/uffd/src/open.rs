//! Getting a userfaultfd: creating one, recognising one that was handed over, and the handshake that can be made once.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use rustix::fs::OFlags;

use crate::abi::{self, Api};
use crate::{Error, Features, Uffd};

/// Where a new userfaultfd comes from.
#[derive(Clone, Copy, Debug, Default)]
pub enum OpenMode<'a> {
    /// `/dev/userfaultfd` where it can be opened, else the system call. Never silently [`OpenMode::UserModeOnly`].
    #[default]
    Auto,
    /// An open `/dev/userfaultfd`, perhaps passed by someone with more privilege. Anyone who holds it may use it.
    Device(BorrowedFd<'a>),
    /// The system call. Needs CAP_SYS_PTRACE, or `vm.unprivileged_userfaultfd` = 1.
    Syscall,
    /// The system call without privilege: a fault inside a system call isn't served, the call returns `EFAULT`.
    UserModeOnly,
}

/// A userfaultfd before its handshake. Nothing but the handshake works on it.
///
/// This is what an unprivileged process hands over, so that a privileged one can ask for features that need privilege. It serves
/// the memory of the process that *created* it.
#[derive(Debug)]
pub struct RawUffd {
    fd: OwnedFd,
}

impl RawUffd {
    /// A new one for this process, close-on-exec and non-blocking.
    pub fn create(mode: OpenMode<'_>) -> Result<RawUffd, Error> {
        match mode {
            OpenMode::Auto => match open_device() {
                Ok(device) => RawUffd::create(OpenMode::Device(device.as_fd())),
                // The device's error is the more telling one only if there is a device.
                Err(device_error) => {
                    RawUffd::create(OpenMode::Syscall).map_err(|syscall_error| match &device_error {
                        Error::OpenDevice(e) if e.kind() == io::ErrorKind::NotFound => syscall_error,
                        _ => device_error,
                    })
                }
            },
            OpenMode::Device(device) => {
                // SAFETY: USERFAULTFD_IOC_NEW takes flags by value and touches no memory of ours.
                let fd = unsafe { libc::ioctl(device.as_raw_fd(), abi::UFFD_NEW as libc::Ioctl, FLAGS) };
                own(fd.into(), "/dev/userfaultfd")
            }
            OpenMode::Syscall => {
                // SAFETY: userfaultfd(2) takes flags by value and touches no memory of ours.
                let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) };
                own(fd, "the system call")
            }
            OpenMode::UserModeOnly => {
                let flags = FLAGS | abi::UFFD_USER_MODE_ONLY;
                // SAFETY: as above.
                let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
                own(fd, "the system call, user mode only")
            }
        }
    }

    /// Takes a descriptor that someone handed over, once it is seen to be a userfaultfd; makes it non-blocking.
    ///
    /// A blocking one would hang its reader and polls as an error.
    pub fn from_fd(fd: OwnedFd) -> Result<RawUffd, Error> {
        check_kind(fd.as_fd())?;
        let flags =
            rustix::fs::fcntl_getfl(&fd).map_err(|e| Error::system("reading the descriptor's flags", e))?;
        if !flags.contains(OFlags::NONBLOCK) {
            rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)
                .map_err(|e| Error::system("making the userfaultfd non-blocking", e))?;
        }
        Ok(RawUffd { fd })
    }

    /// The handshake: asks for those of `wanted` that this kernel has and this process may have.
    ///
    /// [`Uffd::features`] tells what was granted. Of two processes that share the userfaultfd the one that makes the call must have
    /// the privilege ([`Features::EVENT_FORK`]); without it the handshake is made without that feature.
    pub fn handshake(self, wanted: Features) -> Result<Uffd, Error> {
        // Without a throw-away descriptor to be had, ask down the history of the kernel.
        let ask = Features::available().map_or(wanted, |available| wanted & available);
        let mut refused = None;
        for mask in [ask, ask & UNTIL_5_19, ask & UNTIL_4_14, Features::empty()] {
            for mask in [mask, mask - Features::EVENT_FORK] {
                match handshake_once(self.fd.as_fd(), mask) {
                    Ok(_) => return Ok(Uffd::from_parts(self.fd, granted(mask))),
                    Err(source) if matches!(source.raw_os_error(), Some(libc::EINVAL | libc::EPERM)) => {
                        refused.get_or_insert(Error::Handshake { wanted: mask, source });
                    }
                    Err(source) => return Err(Error::Handshake { wanted: mask, source }),
                }
            }
        }
        Err(refused.unwrap_or(Error::Handshake { wanted, source: io::ErrorKind::InvalidInput.into() }))
    }

    /// The descriptor, to be handed over.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for RawUffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Features {
    /// What this kernel has, asked of a throw-away userfaultfd once a process.
    ///
    /// [`Features::EVENT_FORK`] among them may still be refused for want of privilege.
    pub fn available() -> Result<Features, Error> {
        static AVAILABLE: OnceLock<Features> = OnceLock::new();
        if let Some(known) = AVAILABLE.get() {
            return Ok(*known);
        }
        let throw_away = RawUffd::create(OpenMode::UserModeOnly)
            .or_else(|_| RawUffd::create(OpenMode::Syscall))
            .or_else(|_| RawUffd::create(OpenMode::Auto))?;
        let bits = handshake_once(throw_away.as_fd(), Features::empty())
            .map_err(|source| Error::Handshake { wanted: Features::empty(), source })?;
        Ok(*AVAILABLE.get_or_init(|| Features::from_bits_truncate(bits)))
    }
}

/// Opens `/dev/userfaultfd`: to create from, or to pass to a process that can't.
pub fn open_device() -> Result<OwnedFd, Error> {
    let device = File::options().read(true).write(true).open("/dev/userfaultfd");
    device.map(OwnedFd::from).map_err(Error::OpenDevice)
}

/// Says by name when `fd` is something other than a userfaultfd.
pub(crate) fn check_kind(fd: BorrowedFd<'_>) -> Result<(), Error> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let found = std::fs::read_link(link).map_err(|e| Error::system("asking what a descriptor is", e))?;
    if found.as_os_str() == "anon_inode:[userfaultfd]" {
        return Ok(());
    }
    Err(Error::NotUserfaultfd { found: found.display().to_string() })
}

const FLAGS: libc::c_int = libc::O_CLOEXEC | libc::O_NONBLOCK;

/// What kernels up to 4.14 and up to 5.19 know, for asking without having been told.
const UNTIL_4_14: Features = Features::from_bits_truncate(0x1ff);
const UNTIL_5_19: Features = Features::from_bits_truncate(0x1fff);

/// The kernel turns on what a feature needs along with it.
fn granted(asked: Features) -> Features {
    if asked.contains(Features::WP_ASYNC) { asked | Features::WP_UNPOPULATED } else { asked }
}

/// One attempt; all the features this kernel has. A refused attempt leaves the descriptor as it was.
fn handshake_once(fd: BorrowedFd<'_>, ask: Features) -> io::Result<u64> {
    let mut api = Api { api: abi::UFFD_API, features: ask.bits(), ioctls: 0 };
    // SAFETY: UFFDIO_API takes a uffdio_api, which Api mirrors, and changes the descriptor only.
    unsafe { abi::ioctl(fd, abi::UFFD_API_REQUEST, &mut api) }?;
    Ok(api.features)
}

fn own(answer: libc::c_long, through: &'static str) -> Result<RawUffd, Error> {
    match RawFd::try_from(answer) {
        // SAFETY: the kernel has just made this descriptor for us, so nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(RawUffd { fd: unsafe { OwnedFd::from_raw_fd(fd) } }),
        _ => Err(Error::Create { through, source: io::Error::last_os_error() }),
    }
}
