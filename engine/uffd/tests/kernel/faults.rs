//! A thread touches a page that isn't there.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use userswap_uffd::{
    CopyMode, Error, Features, Mapping, Message, OpenMode, Protection, RawUffd, RegisterMode, Span, Stop,
    Uffd, cpu, page_bytes, page_size,
};

use crate::support::{
    Rig, assert_quiet, next_fault, open, page_of, peek, poke, reader, until, waiting, writer,
};

/// A descriptor that is something else is refused by name, whichever way it comes.
#[test]
fn bad_descriptor_is_named() {
    let pipe = || std::io::pipe().map(|(reader, _)| OwnedFd::from(reader)).unwrap();
    for error in [
        RawUffd::from_fd(pipe()).map(drop).unwrap_err(),
        Uffd::from_handshaken(pipe(), Features::empty()).map(drop).unwrap_err(),
    ] {
        assert!(matches!(&error, Error::NotUserfaultfd { found } if found.starts_with("pipe:")), "{error:?}");
    }
}

#[test]
fn read_fault_by_zero_page() {
    let Some(rig) = Rig::new("read_fault_by_zero_page", Features::empty(), 1) else { return };
    rig.register(rig.span());
    let thread = reader(rig.addr(0) + 123);
    let fault = next_fault(&rig.uffd);
    assert_eq!((fault.addr, fault.write, fault.wp, fault.minor), (rig.addr(0), false, false, false));
    assert_eq!(fault.thread, None, "nobody asked for it");
    assert!(rig.uffd.zeropage(rig.pages(0, 1), false).is_complete());
    assert_eq!(thread.join().unwrap(), 0);
    assert_quiet(&rig.uffd);
}

/// A handler that leaves a fault it has read hears no more of it: trying again is its own affair.
#[test]
fn read_fault_refused_once_comes_no_second_time() {
    let name = "read_fault_refused_once_comes_no_second_time";
    let Some(rig) = Rig::new(name, Features::empty(), 1) else { return };
    rig.register(rig.span());
    let thread = reader(rig.addr(0));
    next_fault(&rig.uffd);
    assert_eq!(waiting(&rig.uffd), (0, 1));
    assert_quiet(&rig.uffd);
    assert!(rig.uffd.zeropage(rig.span(), false).is_complete());
    assert_eq!(thread.join().unwrap(), 0);
    assert_quiet(&rig.uffd);
}

#[test]
fn read_fault_names_its_thread() {
    let Some(rig) = Rig::new("read_fault_names_its_thread", Features::THREAD_ID, 1) else { return };
    rig.register(rig.span());
    let addr = rig.addr(0);
    let thread = std::thread::spawn(move || {
        peek(addr);
        cpu::current_thread()
    });
    let fault = next_fault(&rig.uffd);
    assert!(rig.uffd.zeropage(rig.span(), false).is_complete());
    assert_eq!(fault.thread, Some(thread.join().unwrap()));
}

#[test]
fn write_fault_by_zero_page_keeps_the_value() {
    let Some(rig) = Rig::new("write_fault_by_zero_page_keeps_the_value", Features::empty(), 1) else {
        return;
    };
    rig.register(rig.span());
    let thread = writer(rig.addr(0) + 77, 0xA5);
    let fault = next_fault(&rig.uffd);
    assert!(fault.write);
    assert!(rig.uffd.zeropage(rig.span(), false).is_complete());
    thread.join().unwrap();
    for offset in 0..page_bytes() {
        assert_eq!(peek(rig.addr(0) + offset), if offset == 77 { 0xA5 } else { 0 });
    }
}

#[test]
fn read_fault_by_copy() {
    let Some(rig) = Rig::new("read_fault_by_copy", Features::empty(), 1) else { return };
    rig.register(rig.span());
    let thread = reader(rig.addr(0) + 9);
    let fault = next_fault(&rig.uffd);
    let outcome = rig.uffd.copy(fault.addr, &page_of(0x5C), CopyMode::default());
    assert_eq!((outcome.done, outcome.stop), (page_bytes(), None));
    assert_eq!(thread.join().unwrap(), 0x5C);
}

#[test]
fn twenty_pages_by_one_copy() {
    let Some(rig) = Rig::new("twenty_pages_by_one_copy", Features::empty(), 20) else { return };
    rig.register(rig.span());
    let thread = reader(rig.addr(13));
    assert_eq!(next_fault(&rig.uffd).addr, rig.addr(13));
    let source: Vec<u8> = (0..20u8).flat_map(|i| vec![i + 1; page_size()]).collect();
    assert!(rig.uffd.copy(rig.addr(0), &source, CopyMode::default()).is_complete());
    assert_eq!(thread.join().unwrap(), 14);
    for page in 0..20u8 {
        assert_eq!(peek(rig.addr(page.into())), page + 1);
    }
    assert_quiet(&rig.uffd);
}

#[test]
fn twenty_pages_one_by_one_in_a_scrambled_order() {
    let name = "twenty_pages_one_by_one_in_a_scrambled_order";
    let Some(rig) = Rig::new(name, Features::empty(), 20) else { return };
    rig.register(rig.span());
    // 7 and 20 have no common divisor, so this visits every page.
    let order: Vec<u64> = (0..20).map(|i| (i * 7 + 3) % 20).collect();
    let (base, visit) = (rig.addr(0), order.clone());
    let thread = std::thread::spawn(move || -> Vec<u8> {
        visit.iter().map(|page| peek(base + page * page_bytes() + page)).collect()
    });
    for page in &order {
        let fault = next_fault(&rig.uffd);
        assert_eq!(fault.addr, rig.addr(*page));
        let value = u8::try_from(*page).unwrap() + 1;
        assert!(rig.uffd.copy(fault.addr, &page_of(value), CopyMode::default()).is_complete());
    }
    let seen: Vec<u64> = thread.join().unwrap().into_iter().map(u64::from).collect();
    assert_eq!(seen, order.iter().map(|page| page + 1).collect::<Vec<_>>());
}

/// Ten of twenty pages registered: only those fault to the handler, for reading and for writing.
#[test]
fn half_registered_read_and_write() {
    for write in [false, true] {
        let Some(rig) = Rig::new("half_registered_read_and_write", Features::empty(), 20) else { return };
        rig.register(rig.pages(5, 10));
        let base = rig.addr(0);
        let thread = std::thread::spawn(move || {
            for page in 0..20 {
                let addr = base + page * page_bytes();
                if write { poke(addr, 7) } else { assert!(peek(addr) == 0 || peek(addr) == 9) }
            }
        });
        for page in 5..15 {
            let fault = next_fault(&rig.uffd);
            assert_eq!((fault.addr, fault.write), (rig.addr(page), write));
            assert!(rig.uffd.copy(fault.addr, &page_of(9), CopyMode::default()).is_complete());
        }
        thread.join().unwrap();
        assert_quiet(&rig.uffd);
        for page in 0..20 {
            let inside = (5..15).contains(&page);
            assert_eq!(peek(rig.addr(page)), if write { 7 } else { 9 * u8::from(inside) });
            assert_eq!(peek(rig.addr(page) + 1), 9 * u8::from(inside));
        }
    }
}

/// Copying without waking leaves the thread asleep beside a page that others can read; waking is a call of its own.
#[test]
fn copy_without_wake_then_wake() {
    let Some(rig) = Rig::new("copy_without_wake_then_wake", Features::empty(), 1) else { return };
    rig.register(rig.span());
    let thread = reader(rig.addr(0));
    next_fault(&rig.uffd);
    let quietly = CopyMode { dont_wake: true, ..CopyMode::default() };
    assert!(rig.uffd.copy(rig.addr(0), &page_of(3), quietly).is_complete());
    assert_eq!(waiting(&rig.uffd), (0, 1));
    assert_eq!(peek(rig.addr(0)), 3);
    assert_eq!(waiting(&rig.uffd), (0, 1));
    rig.uffd.wake(rig.span()).unwrap();
    assert_eq!(thread.join().unwrap(), 3);
}

/// Unregistering lets the waiters go: they find what the kernel gives any fresh memory.
#[test]
fn unregister_wakes_with_zeros() {
    let Some(rig) = Rig::new("unregister_wakes_with_zeros", Features::empty(), 2) else { return };
    rig.register(rig.span());
    let thread = reader(rig.addr(0));
    next_fault(&rig.uffd);
    rig.uffd.unregister(rig.span()).unwrap();
    assert_eq!(thread.join().unwrap(), 0);
    assert_eq!(peek(rig.addr(1)), 0);
    assert_quiet(&rig.uffd);
    assert_eq!(rig.uffd.copy(rig.addr(1), &page_of(1), CopyMode::default()).stop, Some(Stop::Unmapped));
}

/// A signal to a waiting thread makes the same fault arrive again: handlers must bear duplicates.
#[test]
fn a_signal_repeats_the_fault() {
    extern "C" fn nothing(_: libc::c_int) {}
    let Some(rig) = Rig::new("a_signal_repeats_the_fault", Features::THREAD_ID, 1) else { return };
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: the handler does nothing, and nobody else in these tests uses the signal.
    unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
    rig.register(rig.span());
    let thread = reader(rig.addr(0));
    let first = next_fault(&rig.uffd);
    let number = libc::pid_t::try_from(first.thread.unwrap()).unwrap();
    // SAFETY: signals a thread of ours that lives, as it waits for us.
    assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), number, libc::SIGUSR1) }, 0);
    assert_eq!(next_fault(&rig.uffd), first);
    assert!(rig.uffd.zeropage(rig.span(), false).is_complete());
    assert_eq!(thread.join().unwrap(), 0);
}

/// Faults a dead handler had read are delivered again only once the range is woken.
#[test]
fn a_successor_must_wake_to_hear_of_old_faults() {
    let name = "a_successor_must_wake_to_hear_of_old_faults";
    let Some(rig) = Rig::new(name, Features::empty(), 1) else { return };
    rig.register(rig.span());
    let successor = rig.uffd.try_clone().unwrap();
    let thread = reader(rig.addr(0));
    let lost = next_fault(&rig.uffd);
    assert_quiet(&successor);
    successor.wake(rig.span()).unwrap();
    assert_eq!(next_fault(&successor), lost);
    // Also where nobody knows any more what is mapped.
    successor.wake_all().unwrap();
    assert_eq!(next_fault(&successor), lost);
    assert!(successor.copy(lost.addr, &page_of(8), CopyMode::default()).is_complete());
    assert_eq!(thread.join().unwrap(), 8);
}

/// A page copied in write-protected can be read at once; the first write to it is a fault that says so.
#[test]
fn write_protect_faults() {
    let Some(rig) = Rig::new("write_protect_faults", Features::PAGEFAULT_FLAG_WP, 1) else { return };
    rig.register_for(rig.span(), RegisterMode::MISSING | RegisterMode::WP);
    let protected = CopyMode { wp: true, ..CopyMode::default() };
    assert!(rig.uffd.copy(rig.addr(0), &page_of(4), protected).is_complete());
    assert_eq!(peek(rig.addr(0)), 4);
    let thread = writer(rig.addr(0), 5);
    let fault = next_fault(&rig.uffd);
    assert!(fault.wp && fault.write && !fault.minor);
    assert!(rig.uffd.write_protect(rig.span(), false).is_complete());
    thread.join().unwrap();
    assert_eq!(peek(rig.addr(0)), 5);
    assert!(rig.uffd.write_protect(rig.span(), true).is_complete());
    let thread = writer(rig.addr(0), 6);
    assert!(next_fault(&rig.uffd).wp);
    assert!(rig.uffd.write_protect(rig.span(), false).is_complete());
    thread.join().unwrap();
    assert_eq!(
        rig.uffd.write_protect(Span::from_pages(0x10_0000, 1).unwrap(), true).stop,
        Some(Stop::Unmapped)
    );
}

/// A page in the page cache that isn't mapped is a minor fault, answered by CONTINUE.
#[test]
fn minor_fault_continues() {
    let Some(uffd) = open("minor_fault_continues", Features::MINOR_SHMEM, OpenMode::Auto) else { return };
    let file = rustix::fs::memfd_create("minor", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 2 * page_bytes()).unwrap();
    rustix::io::pwrite(&file, &[0x77; 16], 0).unwrap();
    // SAFETY: a fresh mapping of a file of ours, replacing nothing.
    let at = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), 2 * page_size(), protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    assert_ne!(at, libc::MAP_FAILED);
    let span = Span::from_pages(at.expose_provenance() as u64, 2).unwrap();
    let first = Span::from_pages(span.start(), 1).unwrap();
    // SAFETY: the mapping is this test's.
    unsafe { uffd.register(span, RegisterMode::MINOR) }.unwrap();
    let thread = reader(span.start() + 3);
    let fault = next_fault(&uffd);
    assert!(fault.minor && !fault.wp);
    assert!(uffd.continue_(first, CopyMode::default()).is_complete());
    assert_eq!(thread.join().unwrap(), 0x77);
    // Once more is answered as for a page that is there, and a page that isn't in the cache can't be.
    assert_eq!(uffd.continue_(first, CopyMode::default()).stop, Some(Stop::Present));
    let second = Span::from_pages(span.start() + page_bytes(), 1).unwrap();
    assert_eq!(uffd.continue_(second, CopyMode::default()).stop, Some(Stop::Fault));
    drop(uffd);
    // SAFETY: nobody uses the mapping any more.
    unsafe { userswap_uffd::own::unmap(span) }.unwrap();
}

/// Poison: a system call that touches the page fails, and a later copy heals it. (Death by SIGBUS is tested on a child.)
#[test]
fn poison_then_heal() {
    let Some(rig) = Rig::new("poison_then_heal", Features::POISON, 2) else { return };
    rig.register(rig.span());
    assert!(rig.uffd.poison(rig.pages(0, 1)).is_complete());
    assert_eq!(write_from(rig.addr(0)), Err(libc::EFAULT));
    assert_eq!(rig.uffd.poison(rig.pages(0, 1)).stop, Some(Stop::Present));
    assert!(rig.uffd.copy(rig.addr(0), &page_of(2), CopyMode::default()).is_complete());
    assert_eq!(peek(rig.addr(0)), 2);
    assert_eq!(write_from(rig.addr(0)), Ok(1));
    assert_quiet(&rig.uffd);
}

/// A fault inside a system call waits like any other, unless the userfaultfd is for user mode only: then the call fails.
#[test]
fn a_system_call_waits_or_fails_in_user_mode_only() {
    let name = "a_system_call_waits_or_fails_in_user_mode_only";
    let Some(rig) = Rig::new(name, Features::empty(), 1) else { return };
    rig.register(rig.span());
    let addr = rig.addr(0);
    let thread = std::thread::spawn(move || write_from(addr));
    assert_eq!(next_fault(&rig.uffd).addr, addr);
    assert!(rig.uffd.copy(addr, &page_of(1), CopyMode::default()).is_complete());
    assert_eq!(thread.join().unwrap(), Ok(1));

    let Some(uffd) = open(name, Features::empty(), OpenMode::UserModeOnly) else { return };
    let memory = Mapping::new(page_bytes(), Protection::READ_WRITE).unwrap();
    // SAFETY: the mapping is this test's.
    unsafe { uffd.register(memory.span(), RegisterMode::MISSING) }.unwrap();
    assert_eq!(write_from(memory.span().start()), Err(libc::EFAULT));
    assert_quiet(&uffd);
    let thread = reader(memory.span().start());
    next_fault(&uffd);
    assert!(uffd.zeropage(memory.span(), false).is_complete());
    assert_eq!(thread.join().unwrap(), 0);
    drop(uffd);
}

/// Faults that nobody has read yet are answered just as well, by fault-around for example.
#[test]
fn a_fault_is_answered_before_it_is_read() {
    let Some(rig) = Rig::new("a_fault_is_answered_before_it_is_read", Features::empty(), 1) else { return };
    rig.register(rig.span());
    let thread = reader(rig.addr(0));
    until("the fault is pending", || waiting(&rig.uffd) == (1, 1));
    assert!(rig.uffd.zeropage(rig.span(), false).is_complete());
    assert_eq!(thread.join().unwrap(), 0);
    assert_quiet(&rig.uffd);
}

/// Many messages in one read; each is decoded once.
#[test]
fn messages_are_read_in_batches() {
    let Some(rig) = Rig::new("messages_are_read_in_batches", Features::empty(), 20) else { return };
    rig.register(rig.span());
    let threads: Vec<_> = (0..20).map(|page| reader(rig.addr(page))).collect();
    until("all faults are pending", || waiting(&rig.uffd) == (20, 20));
    let mut messages = Vec::new();
    assert_eq!(rig.uffd.read_messages(&mut messages).unwrap(), 16);
    assert_eq!(rig.uffd.read_messages(&mut messages).unwrap(), 4);
    assert_eq!(rig.uffd.read_messages(&mut messages).unwrap(), 0);
    let mut pages: Vec<u64> = messages
        .iter()
        .map(|message| if let Message::Fault(fault) = message { fault.addr } else { panic!("{message:?}") })
        .collect();
    pages.sort_unstable();
    assert_eq!(pages, (0..20).map(|page| rig.addr(page)).collect::<Vec<_>>());
    assert!(rig.uffd.zeropage(rig.span(), false).is_complete());
    for thread in threads {
        assert_eq!(thread.join().unwrap(), 0);
    }
}

/// /proc/PID/mem doesn't wait for a page: what is moved out can't be read there.
#[test]
fn proc_mem_fails_on_missing_pages() {
    use std::os::unix::fs::FileExt;
    let Some(rig) = Rig::new("proc_mem_fails_on_missing_pages", Features::empty(), 2) else { return };
    rig.register(rig.pages(0, 1));
    poke(rig.addr(1), 6);
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    let mut byte = [0; 1];
    let error = memory.read_at(&mut byte, rig.addr(0)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    memory.read_exact_at(&mut byte, rig.addr(1)).unwrap();
    assert_eq!(byte, [6]);
    assert_quiet(&rig.uffd);
}

/// Writes one byte from an address into a pipe; the error number if that fails.
fn write_from(addr: u64) -> Result<isize, i32> {
    let mut ends = [0; 2];
    // SAFETY: pipe2 fills the two descriptors, which become ours alone.
    let (_read, write) = unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    };
    let from = std::ptr::with_exposed_provenance(usize::try_from(addr).unwrap());
    // SAFETY: the kernel reads one byte of a test's memory, or fails to.
    match unsafe { libc::write(write.as_raw_fd(), from, 1) } {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap()),
        written => Ok(written),
    }
}
