//! Another process: its memory, its end, and serving its faults.

use std::os::fd::{AsFd, AsRawFd};

use userswap_uffd::{
    Advice, Categories, CopyMode, Error, Features, Mapping, MoveMode, OpenMode, Pagemap, Process, Protection,
    RawUffd, RegisterMode, ScanRequest, Span, Stop, Uffd, page_bytes, page_size,
};

use crate::support::{
    Board, Child, Rig, Turn, assert_quiet, next_fault, page_of, peek, poke, until, until_readable,
};

/// A client that has no privilege but the device it was given: it creates the userfaultfd, someone with privilege takes it over, makes
/// the handshake, and from then on fills, protects, poisons and scans the client's memory. Only MOVE stays with the client.
#[test]
fn a_clients_memory_is_served_from_here() {
    let name = "a_clients_memory_is_served_from_here";
    let turn = Turn::alone();
    let wanted = Features::MOVE | Features::POISON | Features::PAGEFAULT_FLAG_WP | Features::EVENT_FORK;
    let Ok(device) = userswap_uffd::open_device() else {
        println!("SKIPPED {name}: no /dev/userfaultfd");
        return;
    };
    if !Uffd::open(wanted, OpenMode::Auto).is_ok_and(|uffd| uffd.features().contains(wanted)) {
        println!("SKIPPED {name}: not all of {wanted:?}");
        return;
    }
    let board = Board::new();
    let memory = Mapping::new(8 * page_bytes(), Protection::READ_WRITE).unwrap();
    let addr = |page: u64| memory.span().page_addr(page).unwrap();
    let mut client = Child::fork(&turn, || {
        // SAFETY: gives up privilege, in a process that shares nothing but the board.
        if unsafe { libc::geteuid() == 0 && libc::setresuid(65534, 65534, 65534) != 0 } {
            return 2;
        }
        let Ok(raw) = RawUffd::create(OpenMode::Device(device.as_fd())) else { return 3 };
        // Found by the parent at this number, plus one for it not to be 0.
        board.set(0, raw.as_fd().as_raw_fd().unsigned_abs() + 1);
        board.wait(1);
        for (page, expected) in [(0, 10), (1, 11), (2, 0), (3, 13)] {
            if peek(addr(page)) != expected {
                return 4;
            }
        }
        poke(addr(3), 14);
        0
    });
    let number = i32::try_from(board.wait(0) - 1).unwrap();
    let raw = RawUffd::from_fd(client.process.take_descriptor(number).unwrap()).unwrap();
    let uffd = raw.handshake(wanted).unwrap();
    assert!(uffd.features().contains(wanted), "the privilege that counts is that of who makes the handshake");
    // SAFETY: the client's memory, which waits to be served here.
    unsafe { uffd.register(memory.span(), RegisterMode::MISSING | RegisterMode::WP) }.unwrap();
    let mut source = page_of(10);
    source.extend(page_of(11));
    assert!(uffd.copy(addr(0), &source, CopyMode::default()).is_complete());
    assert!(uffd.zeropage(Span::from_pages(addr(2), 1).unwrap(), false).is_complete());
    assert!(uffd.poison(Span::from_pages(addr(6), 1).unwrap()).is_complete());
    let own = Mapping::new(page_bytes(), Protection::READ_WRITE).unwrap();
    poke(own.span().start(), 1);
    // SAFETY: refused, so nothing moves.
    let moved = unsafe { uffd.move_pages(addr(4), own.span().start(), page_bytes(), MoveMode::default()) };
    assert_eq!(moved.stop, Some(Stop::Invalid), "MOVE works within one process only");
    board.set(1, 1);
    let fault = next_fault(&uffd);
    assert_eq!(fault.addr, addr(3));
    assert!(uffd.copy(fault.addr, &page_of(13), CopyMode { wp: true, ..CopyMode::default() }).is_complete());
    let protected = next_fault(&uffd);
    assert!(protected.wp && protected.addr == addr(3));
    let pagemap = Pagemap::open(client.process.pid()).unwrap();
    let mut found = Vec::new();
    let request =
        ScanRequest { all_of: Categories::PRESENT, report: Categories::PRESENT, ..ScanRequest::default() };
    pagemap.scan(memory.span(), &request, &mut found).unwrap();
    assert_eq!(found[0].span, Span::from_pages(addr(0), 4).unwrap());
    assert!(uffd.write_protect(Span::from_pages(addr(3), 1).unwrap(), false).is_complete());
    client.exits_with(0);
    // No end of file tells of the end: the pidfd does. Filling says so too, waking doesn't.
    assert!(client.process.has_exited().unwrap());
    assert_quiet(&uffd);
    assert_eq!(uffd.copy(addr(5), &page_of(1), CopyMode::default()).stop, Some(Stop::Gone));
    assert_eq!(uffd.zeropage(Span::from_pages(addr(5), 1).unwrap(), false).stop, Some(Stop::Gone));
    uffd.wake(memory.span()).unwrap();
    let mut buf = [0; 8];
    assert!(matches!(client.process.read_memory(addr(0), &mut buf), Err(Error::Gone { .. })));
}

/// Reading memory: whole, up to a hole, at a hole, in several pieces, after the end.
#[test]
fn another_processs_memory_is_read() {
    let turn = Turn::alone();
    let board = Board::new();
    let memory = Mapping::new(4 * page_bytes(), Protection::READ_WRITE).unwrap();
    let start = memory.span().start();
    let len = memory.span().bytes();
    let mut child = Child::fork(&turn, || {
        for page in 0..3u8 {
            poke(start + u64::from(page) * page_bytes(), page + 1);
        }
        // SAFETY: nobody uses the page.
        if unsafe { userswap_uffd::own::unmap(Span::from_pages(start + 3 * page_bytes(), 1).unwrap()) }
            .is_err()
        {
            return 1;
        }
        board.set(0, 1);
        board.wait(1).cast_signed() - 1
    });
    board.wait(0);
    let process = Process::from_pidfd(child.process.as_fd().try_clone_to_owned().unwrap()).unwrap();
    assert_eq!(process.pid(), child.process.pid());
    assert!(!process.has_exited().unwrap());
    let mut buf = vec![0xFF; len];
    assert_eq!(process.read_memory(start, &mut buf[..2 * page_size()]).unwrap(), 2 * page_size());
    assert_eq!((buf[0], buf[page_size()], buf[1]), (1, 2, 0));
    assert_eq!(process.read_memory(start, &mut buf).unwrap(), 3 * page_size(), "a hole ends it");
    let hole = start + 3 * page_bytes();
    let error = process.read_memory(hole, &mut buf).unwrap_err();
    assert!(matches!(error, Error::Unreadable { addr, .. } if addr == hole), "{error}");
    let ranges = [(start + 2 * page_bytes(), 1), (start, 1), (start + page_bytes(), 1)];
    assert_eq!(process.read_memory_vectored(&ranges, &mut buf[..3]).unwrap(), 3);
    assert_eq!(buf[..3], [3, 1, 2]);
    // More pieces than one system call takes.
    let many = vec![(start, 1); 3000];
    assert_eq!(process.read_memory_vectored(&many, &mut buf[..3000]).unwrap(), 3000);
    assert!(buf[..3000].iter().all(|byte| *byte == 1));
    let span = Span::from_pages(start, 2).unwrap();
    match process.madvise(&[span], Advice::Cold) {
        Err(e) if e.errno() == Some(libc::EPERM) => {
            println!("SKIPPED advice for another process: no CAP_SYS_NICE")
        }
        advised => assert_eq!(advised.unwrap(), span.len()),
    }
    assert_eq!(process.madvise(&[span], Advice::DontNeed).unwrap_err().errno(), Some(libc::EINVAL));
    assert_eq!(
        drop_anothers(&process, span),
        Some(libc::EINVAL),
        "nor does the kernel drop another's memory"
    );
    board.set(1, 1);
    child.exits_with(0);
    assert!(process.has_exited().unwrap());
    assert!(matches!(process.read_memory(start, &mut buf), Err(Error::Gone { .. })));
    assert!(matches!(process.madvise(&[span], Advice::Cold), Err(Error::Gone { .. })));
    assert!(matches!(process.take_descriptor(0), Err(Error::Gone { .. })));
    assert!(matches!(Process::open(child.process.pid()), Err(Error::Gone { .. })));
}

/// What the kernel itself says to dropping the memory of another process.
fn drop_anothers(process: &Process, span: Span) -> Option<i32> {
    let start = std::ptr::without_provenance_mut(usize::try_from(span.start()).unwrap());
    let range = libc::iovec { iov_base: start, iov_len: span.bytes() };
    let (fd, advice) = (process.as_fd().as_raw_fd(), libc::MADV_DONTNEED);
    // SAFETY: the other process is a test's child; it doesn't rely on its memory.
    let answer = unsafe { libc::syscall(libc::SYS_process_madvise, fd, &raw const range, 1, advice, 0) };
    if answer < 0 { std::io::Error::last_os_error().raw_os_error() } else { None }
}

/// After the main thread has left, its number finds no memory; the other threads' numbers do.
#[test]
fn memory_is_read_after_the_main_thread_has_left() {
    let turn = Turn::alone();
    let board = Board::new();
    let memory = Mapping::new(page_bytes(), Protection::READ_WRITE).unwrap();
    let start = memory.span().start();
    let (board_ref, turn_ref) = (&board, &turn);
    let mut child = Child::fork(turn_ref, || {
        poke(start, 0x61);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                board_ref.set(0, 1);
                board_ref.wait(1);
                // SAFETY: ends the process.
                unsafe { libc::syscall(libc::SYS_exit_group, 7) };
            });
            board_ref.wait(0);
            // SAFETY: ends this thread alone, whose stack stays.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
        });
        1
    });
    board.wait(0);
    let stat = format!("/proc/{}/stat", child.process.pid());
    until("the main thread has left", || std::fs::read_to_string(&stat).unwrap().contains(") Z "));
    let mut byte = [0; 1];
    assert_eq!(child.process.read_memory(start, &mut byte).unwrap(), 1);
    assert_eq!(byte, [0x61]);
    assert!(!child.process.has_exited().unwrap());
    board.set(1, 1);
    child.exits_with(7);
}

/// Reading a hole in a registered range waits for the page and queues a fault: who serves faults must not read so.
#[test]
fn reading_a_registered_hole_waits_for_its_page() {
    let name = "reading_a_registered_hole_waits_for_its_page";
    let Some(rig) = Rig::new(name, Features::empty(), 2) else { return };
    poke(rig.addr(0), 1);
    rig.register(rig.span());
    let start = rig.addr(0);
    let thread = std::thread::spawn(move || {
        let mut buf = vec![0; 2 * page_size()];
        let got = Process::this().unwrap().read_memory(start, &mut buf).unwrap();
        (got, buf[0], buf[page_size()])
    });
    until_readable(&rig.uffd);
    assert!(!thread.is_finished());
    assert_eq!(next_fault(&rig.uffd).addr, rig.addr(1));
    assert!(rig.uffd.copy(rig.addr(1), &page_of(2), CopyMode::default()).is_complete());
    assert_eq!(thread.join().unwrap(), (2 * page_size(), 1, 2));
}

/// close_range in a program closes descriptors that others have put into its file table; a thread with a table of its own keeps its own.
#[test]
fn a_thread_with_its_own_file_table_keeps_its_descriptors() {
    let turn = Turn::alone();
    let board = Board::new();
    let mut child = Child::fork(&turn, || {
        let keeper = || {
            // SAFETY: gives this thread a table of its own, with the same descriptors.
            if unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
                return 2;
            }
            board.set(0, 1);
            board.wait(1);
            // SAFETY: asks about a number, whatever it stands for.
            i32::from(unsafe { libc::fcntl(2, libc::F_GETFD) } < 0)
        };
        std::thread::scope(|scope| {
            let keeper = scope.spawn(keeper);
            board.wait(0);
            // SAFETY: a child that uses none of its descriptors any more.
            let closed = unsafe { libc::close_range(2, libc::c_uint::MAX, 0) };
            // SAFETY: asks about a number.
            let gone = unsafe { libc::fcntl(2, libc::F_GETFD) } < 0;
            board.set(1, 1);
            match keeper.join() {
                Ok(0) if closed == 0 && gone => 0,
                _ => 1,
            }
        })
    });
    child.exits_with(0);
}

/// A seccomp filter that is set for all threads reaches threads that were there before, ours among them.
#[test]
fn a_filter_for_all_threads_reaches_every_thread() {
    let turn = Turn::alone();
    let board = Board::new();
    let mut child = Child::fork(&turn, || {
        std::thread::scope(|scope| {
            let bystander = scope.spawn(|| {
                board.set(0, 1);
                board.wait(1);
                // SAFETY: asks for a number.
                unsafe { libc::syscall(libc::SYS_getppid) == -1 }
            });
            board.wait(0);
            let set = forbid_getppid();
            board.set(1, 1);
            match (set, bystander.join()) {
                (true, Ok(true)) => 0,
                (false, _) => 2,
                _ => 1,
            }
        })
    });
    let status = child.wait();
    if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 2 {
        println!("SKIPPED a_filter_for_all_threads_reaches_every_thread: no seccomp filters");
        return;
    }
    assert_eq!(status, 0);
}

/// Makes getppid fail for every thread of this process.
fn forbid_getppid() -> bool {
    let statement =
        |code: u32, k: u32, jt, jf| libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf, k };
    let number = u32::try_from(libc::SYS_getppid).unwrap_or(0);
    let mut program = [
        // The number of the system call is the first word.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs(), 0, 0),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which lives until then; it denies getppid and nothing else.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_TSYNC,
                &raw const filter,
            ) == 0
    }
}
