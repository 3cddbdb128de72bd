//! The userfaultfd itself: how it is had, made ready, shared and lost.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicPtr, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec};
use userswap_uffd::probe::{Answer, Capability, move_is_fixed};
use userswap_uffd::{
    CopyMode, Error, Features, OpenMode, RawMessage, RawUffd, ReadError, RegisterMode, Stop, Uffd,
    open_device, page_bytes, probe,
};

use crate::support::{Rig, Turn, assert_quiet, next_fault, open, page_of, peek, poke, reader, until};

/// Losing the last descriptor of a userfaultfd lets every waiter go with zero pages: silent data loss. A duplicate prevents it.
#[test]
fn closing_the_last_reference_wakes_with_zeros() {
    let name = "closing_the_last_reference_wakes_with_zeros";
    let _turn = Turn::shared();
    let Some(uffd) = open(name, Features::empty(), OpenMode::Auto) else { return };
    let memory = userswap_uffd::Mapping::new(page_bytes(), userswap_uffd::Protection::READ_WRITE).unwrap();
    // SAFETY: the memory is this test's.
    unsafe { uffd.register(memory.span(), RegisterMode::MISSING) }.unwrap();
    let thread = reader(memory.span().start());
    next_fault(&uffd);
    let kept = uffd.try_clone().unwrap();
    drop(uffd);
    assert_eq!(crate::support::waiting(&kept), (0, 1), "a duplicate keeps the thread waiting");
    drop(kept);
    assert_eq!(thread.join().unwrap(), 0);
}

/// The handshake can be made once; before it nothing works, and each says so.
#[test]
fn handshake_is_made_once() {
    let _turn = Turn::shared();
    let Ok(raw) = RawUffd::create(OpenMode::Auto) else {
        println!("SKIPPED handshake_is_made_once: no userfaultfd");
        return;
    };
    let early = Uffd::from_handshaken(raw.as_fd().try_clone_to_owned().unwrap(), Features::empty()).unwrap();
    assert!(
        matches!(early.read(&mut [RawMessage::EMPTY]), Err(ReadError::Kernel(e)) if e.raw_os_error() == Some(22))
    );
    assert_eq!(early.copy(page_bytes(), &page_of(1), CopyMode::default()).stop, Some(Stop::Invalid));
    let second = RawUffd::from_fd(raw.as_fd().try_clone_to_owned().unwrap()).unwrap();
    let uffd = raw.handshake(Features::empty()).unwrap();
    assert_quiet(&uffd);
    let error = second.handshake(Features::empty()).unwrap_err();
    assert!(matches!(error, Error::Handshake { .. }) && error.errno() == Some(libc::EINVAL), "{error:?}");
}

/// Whatever is asked for beyond the kernel is left out, not refused.
#[test]
fn features_are_what_the_kernel_has() {
    let _turn = Turn::shared();
    let Some(uffd) = open("features_are_what_the_kernel_has", Features::empty(), OpenMode::Auto) else {
        return;
    };
    assert_eq!(uffd.features(), Features::empty());
    let available = Features::available().unwrap();
    let all = Uffd::open(Features::all() - Features::SIGBUS, OpenMode::Auto).unwrap();
    assert!(available.contains(all.features()));
    assert_eq!(Features::all().bits(), 0x1_ffff);
}

/// A blocking userfaultfd polls as an error, and its reader would hang: taking one over makes it non-blocking.
#[test]
fn a_blocking_descriptor_is_mended() {
    let _turn = Turn::shared();
    // SAFETY: takes flags by value.
    let number = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | 1) };
    let Some(number) = i32::try_from(number).ok().filter(|fd| *fd >= 0) else {
        println!("SKIPPED a_blocking_descriptor_is_mended: no userfaultfd system call");
        return;
    };
    // SAFETY: a descriptor the kernel has just made for us.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    let polled = |fd: &dyn AsFd| {
        let borrowed = fd.as_fd();
        let mut fds = [PollFd::from_borrowed_fd(borrowed, PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
        fds[0].revents()
    };
    // The handshake by hand: taking it over would mend it first.
    let mut api = [0xAAu64, 0, 0];
    // SAFETY: UFFDIO_API reads and writes the 24 bytes.
    assert_eq!(unsafe { libc::ioctl(fd.as_raw_fd(), 0xc018_aa3f, api.as_mut_ptr()) }, 0);
    assert!(polled(&fd).contains(PollFlags::ERR));
    let mended = RawUffd::from_fd(fd).unwrap();
    assert!(polled(&mended).is_empty());
}

/// Every way to create one that the probe says works, works.
#[test]
fn ways_to_create() {
    let _turn = Turn::shared();
    let seen = probe();
    println!("{seen}");
    assert_eq!(seen.answers().count(), Capability::ALL.len());
    for (capability, answer) in seen.answers() {
        if let Answer::No { why, remedy } = answer {
            assert!(!why.is_empty() && !remedy.is_empty(), "{capability:?}");
        }
    }
    if seen.has(Capability::Device) {
        let device = open_device().unwrap();
        Uffd::open(Features::empty(), OpenMode::Device(device.as_fd())).unwrap();
    }
    for (capability, mode) in
        [(Capability::Syscall, OpenMode::Syscall), (Capability::UserModeOnly, OpenMode::UserModeOnly)]
    {
        assert_eq!(Uffd::open(Features::empty(), mode).is_ok(), seen.has(capability), "{capability:?}");
    }
    assert_eq!(seen.has(Capability::Move), seen.features.contains(Features::MOVE));
    let null = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(RawUffd::create(OpenMode::Device(null.as_fd())), Err(Error::Create { .. })));
}

#[test]
fn kernels_with_the_fixes_to_move() {
    for (release, fixed) in [
        ("6.18.44-any", true),
        ("6.16.0", true),
        ("6.16-rc1", true),
        ("7.0", true),
        ("6.12.37-lts", true),
        ("6.12.36", false),
        ("6.15.6", true),
        ("6.15.5", false),
        ("6.14.99", false),
        ("6.8", false),
        ("5.10.200", false),
        ("", false),
    ] {
        assert_eq!(move_is_fixed(release), fixed, "{release}");
    }
}

/// The kernel doesn't wait for a page on behalf of a dying thread: its write to a moved-out page (here the word that says the thread has
/// ended) is lost, so memory that threads have told the kernel of must not be moved.
#[test]
fn a_dying_threads_word_is_lost_on_a_missing_page() {
    let name = "a_dying_threads_word_is_lost_on_a_missing_page";
    let Some(rig) = Rig::new(name, Features::empty(), 1) else { return };
    rig.register(rig.span());
    static PAGE: AtomicPtr<libc::c_int> = AtomicPtr::new(std::ptr::null_mut());
    PAGE.store(
        std::ptr::with_exposed_provenance_mut(usize::try_from(rig.addr(0)).unwrap()),
        Ordering::SeqCst,
    );
    let (tell, told) = std::sync::mpsc::channel();
    // Never joined: joining waits for the word this thread has bent away.
    std::thread::spawn(move || {
        tell.send(userswap_uffd::cpu::current_thread()).unwrap();
        // SAFETY: the kernel writes a zero there when the thread ends; it's a page of the test's.
        unsafe { libc::syscall(libc::SYS_set_tid_address, PAGE.load(Ordering::SeqCst)) };
    });
    let thread = told.recv().unwrap();
    let path = format!("/proc/self/task/{thread}");
    until("the thread has ended", || !std::path::Path::new(&path).exists());
    assert_quiet(&rig.uffd);
    assert!(rig.uffd.copy(rig.addr(0), &page_of(1), CopyMode::default()).is_complete());
    assert_eq!(peek(rig.addr(0)), 1, "the kernel's zero was to be here");
    poke(rig.addr(0), 0);
}
