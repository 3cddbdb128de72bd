//! A process forks while some of its pages are elsewhere.

use std::os::fd::{AsFd, AsRawFd};

use userswap_uffd::{
    Advice, CopyMode, Event, Features, Mapping, MoveMode, OpenMode, Pagemap, Process, Protection,
    RegisterMode, Span, Stop, Uffd, own, page_bytes,
};

use crate::support::{
    Board, Child, Rig, Turn, assert_quiet, next_event, next_fault, open, page_of, peek, poke, until_readable,
    waiting,
};

/// Forks in another thread, as a forking thread waits until its event has been read.
fn fork_and_read(rig: &Rig, body: impl FnOnce() -> i32 + Send) -> (Child, Uffd) {
    std::thread::scope(|scope| {
        let forking = scope.spawn(|| Child::fork(rig.turn(), body));
        let Event::Fork { child } = next_event(&rig.uffd) else { panic!("a fork was expected") };
        let uffd = Uffd::from_handshaken(child, rig.uffd.features()).unwrap();
        (forking.join().unwrap(), uffd)
    })
}

/// The event brings the child's own userfaultfd: the same ranges are registered, and its faults come there, not here.
#[test]
fn a_child_is_served_through_its_own() {
    let Some(rig) = Rig::alone("a_child_is_served_through_its_own", Features::EVENT_FORK, 3) else { return };
    rig.register(rig.span());
    let (mut child, uffd) = fork_and_read(&rig, || i32::from(peek(rig.addr(1))));
    let fault = next_fault(&uffd);
    assert_eq!(fault.addr, rig.addr(1));
    assert_quiet(&rig.uffd);
    assert!(uffd.copy(fault.addr, &page_of(42), CopyMode::default()).is_complete());
    child.exits_with(42);
    // Each has its own copy: the parent's page is still missing.
    assert!(rig.uffd.copy(rig.addr(1), &page_of(1), CopyMode::default()).is_complete());
    assert_eq!(uffd.copy(rig.addr(2), &page_of(1), CopyMode::default()).stop, Some(Stop::Gone));
}

/// Without fork events the child finds zeros where pages are missing: silent data loss.
#[test]
fn without_the_event_a_child_reads_zeros() {
    let Some(rig) = Rig::alone("without_the_event_a_child_reads_zeros", Features::empty(), 1) else { return };
    rig.register(rig.span());
    let mut child = Child::fork(rig.turn(), || i32::from(peek(rig.addr(0))));
    child.exits_with(0);
    assert_quiet(&rig.uffd);
}

/// No event comes of a fork when nothing is registered, or only what the child doesn't get. One registered page is enough.
#[test]
fn nothing_registered_no_event() {
    let Some(rig) = Rig::alone("nothing_registered_no_event", Features::EVENT_FORK, 3) else { return };
    Child::fork(rig.turn(), || 0).exits_with(0);
    assert_quiet(&rig.uffd);
    rig.register(rig.pages(0, 1));
    // SAFETY: the page is this test's and empty.
    unsafe { own::madvise(rig.pages(0, 1), Advice::DontFork) }.unwrap();
    Child::fork(rig.turn(), || 0).exits_with(0);
    assert_quiet(&rig.uffd);
    rig.register(rig.pages(2, 1));
    let (mut child, uffd) = fork_and_read(&rig, || 0);
    child.exits_with(0);
    assert_quiet(&uffd);
}

/// A range to be wiped for the child is registered for it all the same: answered with the parent's bytes, the child would read them.
#[test]
fn a_wiped_range_still_faults_to_the_handler() {
    let name = "a_wiped_range_still_faults_to_the_handler";
    let Some(rig) = Rig::alone(name, Features::EVENT_FORK, 1) else { return };
    poke(rig.addr(0), 5);
    rig.register(rig.span());
    // SAFETY: the page is this test's.
    unsafe { own::madvise(rig.span(), Advice::WipeOnFork) }.unwrap();
    let (mut child, uffd) = fork_and_read(&rig, || i32::from(peek(rig.addr(0))));
    assert_eq!(next_fault(&uffd).addr, rig.addr(0));
    assert!(uffd.copy(rig.addr(0), &page_of(9), CopyMode::default()).is_complete());
    child.exits_with(9);
    assert_eq!(peek(rig.addr(0)), 5);
}

/// Whoever read the event holds the child's only userfaultfd: lost with it are the child's pages.
#[test]
fn losing_the_childs_only_descriptor_gives_it_zeros() {
    let name = "losing_the_childs_only_descriptor_gives_it_zeros";
    let Some(rig) = Rig::alone(name, Features::EVENT_FORK, 1) else { return };
    rig.register(rig.span());
    let (mut child, uffd) = fork_and_read(&rig, || i32::from(peek(rig.addr(0))));
    next_fault(&uffd);
    assert_eq!(waiting(&uffd), (0, 1));
    drop(uffd);
    child.exits_with(0);
}

/// A process that shares the reader's file table keeps the child's userfaultfd when the reader is killed: the child waits, and is served
/// by whoever takes over.
#[test]
fn a_shared_file_table_outlives_the_reader() {
    let name = "a_shared_file_table_outlives_the_reader";
    let Some(rig) = Rig::alone(name, Features::EVENT_FORK, 1) else { return };
    let board = Board::new();
    // Forked before anything is registered, which no event tells of. It has the parent's userfaultfd, being forked from it.
    let mut worker = Child::fork(rig.turn(), || {
        let flags = libc::c_long::from(libc::CLONE_FILES | libc::SIGCHLD);
        // SAFETY: a fork that shares the file table; the child only sleeps until it's killed.
        let keeper = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        if keeper == 0 {
            loop {
                // SAFETY: sleeps.
                unsafe { libc::pause() };
            }
        }
        board.set(0, u32::try_from(keeper).unwrap_or(u32::MAX));
        until_readable(&rig.uffd);
        let mut raw = [userswap_uffd::RawMessage::EMPTY];
        let read = rig.uffd.read(&mut raw);
        board.set(
            1,
            if matches!(read, Ok(1)) { raw[0].is_fork().map_or(u32::MAX, |fd| fd + 1) } else { u32::MAX },
        );
        loop {
            // SAFETY: sleeps.
            unsafe { libc::pause() };
        }
    });
    let keeper = Process::open(board.wait(0)).unwrap();
    rig.register(rig.span());
    // Returns once the worker has read of it.
    let mut child = Child::fork(rig.turn(), || i32::from(peek(rig.addr(0))));
    let number = i32::try_from(board.wait(1) - 1).unwrap();
    worker.kill();
    let kept = keeper.take_descriptor(number).unwrap();
    let uffd = Uffd::from_handshaken(kept, rig.uffd.features()).unwrap();
    assert_eq!(next_fault(&uffd).addr, rig.addr(0));
    assert!(uffd.copy(rig.addr(0), &page_of(42), CopyMode::default()).is_complete());
    child.exits_with(42);
    // SAFETY: ends the keeper, which is held by its pidfd and can't be another by now.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, keeper.as_fd().as_raw_fd(), libc::SIGKILL, 0, 0) };
    until_readable(&keeper);
}

/// Pages shared with a living child can't be moved. After its end they still can't, though they're this process's alone again, until
/// they have been populated for writing.
#[test]
fn shared_pages_move_once_the_child_has_gone() {
    let Some(rig) = Rig::alone("shared_pages_move_once_the_child_has_gone", Features::MOVE, 1) else {
        return;
    };
    let staged = Mapping::new(page_bytes(), Protection::READ_WRITE).unwrap();
    poke(rig.addr(0), 3);
    rig.register(staged.span());
    let moving = || {
        let (to, from) = (staged.span().start(), rig.addr(0));
        // SAFETY: the page is this test's.
        unsafe { rig.uffd.move_pages(to, from, page_bytes(), MoveMode::default()) }.stop
    };
    let exclusive = || {
        let mut entries = Vec::new();
        Pagemap::this().unwrap().entries(rig.span(), &mut entries).unwrap();
        entries[0].exclusive()
    };
    let (ready, tell) = std::io::pipe().unwrap();
    let mut child = Child::fork(rig.turn(), || {
        use std::os::fd::AsRawFd;
        // Waits for ever, without touching the page, until killed.
        // SAFETY: closes a descriptor of this process's table, then only sleeps.
        unsafe { libc::close(tell.as_raw_fd()) };
        loop {
            // SAFETY: sleeps.
            unsafe { libc::pause() };
        }
    });
    drop((ready, tell));
    assert!(!exclusive());
    assert_eq!(moving(), Some(Stop::Pinned));
    child.kill();
    assert!(exclusive());
    assert_eq!(moving(), Some(Stop::Pinned), "exclusive by the pagemap, and refused all the same");
    // SAFETY: changes no contents.
    unsafe { own::madvise(rig.span(), Advice::PopulateWrite) }.unwrap();
    assert_eq!(moving(), None);
    rig.uffd.unregister(staged.span()).unwrap();
    assert_eq!(peek(staged.span().start()), 3);
}

/// Touching a poisoned page ends a process by SIGBUS, never with zeros.
#[test]
fn poison_is_sigbus() {
    let name = "poison_is_sigbus";
    let Some(rig) = Rig::alone(name, Features::POISON | Features::EVENT_FORK, 1) else { return };
    rig.register(rig.span());
    let (mut child, uffd) = fork_and_read(&rig, || i32::from(peek(rig.addr(0))));
    next_fault(&uffd);
    assert!(uffd.poison(rig.span()).is_complete());
    let status = child.wait();
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS, "{status}");
}

/// With the SIGBUS feature a fault is a signal to the thread, and in a system call an error; no message comes.
#[test]
fn sigbus_mode_signals_instead_of_telling() {
    let turn = Turn::alone();
    let name = "sigbus_mode_signals_instead_of_telling";
    if open(name, Features::SIGBUS, OpenMode::Auto).is_none() {
        return;
    }
    let mut child = Child::fork(&turn, || {
        let Ok(uffd) = Uffd::open(Features::SIGBUS, OpenMode::Auto) else { return 1 };
        let Ok(memory) = Mapping::new(page_bytes(), Protection::READ_WRITE) else { return 2 };
        // SAFETY: the memory is this child's.
        if unsafe { uffd.register(memory.span(), RegisterMode::MISSING) }.is_err() {
            return 3;
        }
        let at = memory.as_ptr().as_ptr().cast();
        // SAFETY: the kernel fails to read the byte.
        let written = unsafe { libc::write(2, at, 1) };
        if written != -1 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EFAULT) {
            return 4;
        }
        if uffd.read(&mut [userswap_uffd::RawMessage::EMPTY]).ok() != Some(0) {
            return 5;
        }
        i32::from(peek(memory.span().start())) + 6
    });
    let status = child.wait();
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS, "{status}");
}

/// exec gives the same process another memory: its number goes on, the userfaultfd's memory is gone.
#[test]
fn exec_leaves_the_number_and_takes_the_memory() {
    let name = "exec_leaves_the_number_and_takes_the_memory";
    let Some(rig) = Rig::alone(name, Features::EVENT_FORK, 1) else { return };
    if !std::path::Path::new("/bin/sleep").exists() {
        println!("SKIPPED {name}: no /bin/sleep");
        return;
    }
    rig.register(rig.span());
    let (mut child, uffd) = fork_and_read(&rig, || {
        let program = c"/bin/sleep";
        let arguments = [program.as_ptr(), c"1000".as_ptr(), std::ptr::null()];
        // SAFETY: replaces the child by another program; the strings end in zero, the list in null.
        unsafe { libc::execv(program.as_ptr(), arguments.as_ptr()) };
        9
    });
    let comm = format!("/proc/{}/comm", child.process.pid());
    crate::support::until("the program has changed", || std::fs::read_to_string(&comm).unwrap() == "sleep\n");
    assert_eq!(uffd.copy(rig.addr(0), &page_of(1), CopyMode::default()).stop, Some(Stop::Gone));
    assert!(!child.process.has_exited().unwrap());
    let error = child.process.read_memory(rig.addr(0), &mut [0; 8]).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EFAULT));
    child.kill();
    let _: Span = rig.span();
}
