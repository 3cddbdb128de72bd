//! What the kernel says when an operation can't do all it was asked for.

use userswap_uffd::{
    Advice, Categories, CopyMode, Features, MoveMode, Outcome, Pagemap, Protection, RegisterMode,
    ScanRequest, Span, Stop, cpu, own, page_bytes, page_size,
};

use crate::support::{
    Rig, assert_quiet, next_event, next_fault, page_of, peek, poke, reader, until, until_readable, waiting,
};

const EVENTS: Features =
    Features::EVENT_REMOVE.union(Features::EVENT_REMAP).union(Features::EVENT_UNMAP).union(Features::MOVE);

/// EEXIST: someone else brought the page. Whoever waits on it must be woken.
#[test]
fn present_page_is_told_and_its_waiter_woken() {
    let name = "present_page_is_told_and_its_waiter_woken";
    let Some(rig) = Rig::new(name, Features::empty(), 1) else { return };
    rig.register(rig.span());
    let thread = reader(rig.addr(0));
    next_fault(&rig.uffd);
    let quietly = CopyMode { dont_wake: true, ..CopyMode::default() };
    assert!(rig.uffd.copy(rig.addr(0), &page_of(1), quietly).is_complete());
    let again = rig.uffd.copy(rig.addr(0), &page_of(2), CopyMode::default());
    assert_eq!(again, Outcome { done: 0, stop: Some(Stop::Present) });
    assert_eq!(rig.uffd.zeropage(rig.span(), false).stop, Some(Stop::Present));
    assert_eq!(waiting(&rig.uffd), (0, 1));
    rig.uffd.wake(rig.span()).unwrap();
    assert_eq!(thread.join().unwrap(), 1);
}

/// A hole and then a page that is there: the hole is filled, the rest is "ask again", and asking tells the reason.
#[test]
fn partial_copy_and_zeropage() {
    let Some(rig) = Rig::new("partial_copy_and_zeropage", Features::empty(), 8) else { return };
    poke(rig.addr(2), 9);
    poke(rig.addr(6), 9);
    rig.register(rig.span());
    let source = vec![7; 4 * page_size()];
    let partial = Outcome { done: 2 * page_bytes(), stop: Some(Stop::Busy) };
    assert_eq!(rig.uffd.copy(rig.addr(0), &source, CopyMode::default()), partial);
    assert_eq!(rig.uffd.copy(rig.addr(2), &source, CopyMode::default()).stop, Some(Stop::Present));
    assert_eq!(rig.uffd.zeropage(rig.pages(4, 4), false), partial);
    assert_eq!(rig.uffd.zeropage(rig.pages(6, 2), false).stop, Some(Stop::Present));
    assert_eq!([0, 1, 2, 4, 5, 6].map(|page| peek(rig.addr(page))), [7, 7, 9, 0, 0, 9]);
}

/// Nothing there, nothing registered, nonsense: each has its word.
#[test]
fn unmapped_unregistered_and_nonsense() {
    // Alone, as other tests' registered mappings could take the place of what is unmapped.
    let Some(mut rig) = Rig::alone("unmapped_unregistered_and_nonsense", Features::empty(), 4) else {
        return;
    };
    rig.keep_mapped();
    rig.register(rig.pages(0, 2));
    // SAFETY: nobody uses the page.
    unsafe { own::unmap(rig.pages(1, 1)) }.unwrap();
    for page in [1, 2] {
        assert_eq!(
            rig.uffd.copy(rig.addr(page), &page_of(1), CopyMode::default()).stop,
            Some(Stop::Unmapped)
        );
        assert_eq!(rig.uffd.zeropage(rig.pages(page, 1), false).stop, Some(Stop::Unmapped));
    }
    assert_eq!(rig.uffd.copy(rig.addr(0) + 1, &page_of(1), CopyMode::default()).stop, Some(Stop::Invalid));
    assert_eq!(rig.uffd.copy(rig.addr(0), &[1; 100], CopyMode::default()).stop, Some(Stop::Invalid));
    assert_eq!(rig.uffd.copy(rig.addr(0), &[], CopyMode::default()).stop, Some(Stop::Invalid));
    let hole = Span::from_pages(0x10_0000, 1).unwrap();
    // SAFETY: nothing is mapped there, so nothing is registered.
    let error = unsafe { rig.uffd.register(hole, RegisterMode::MISSING) }.unwrap_err();
    assert_eq!(error.errno(), Some(libc::EINVAL));
    // Unregistering and waking what isn't registered: the first is an error where nothing is mapped, the second never.
    assert_eq!(rig.uffd.unregister(hole).unwrap_err().errno(), Some(libc::EINVAL));
    rig.uffd.unregister(rig.pages(2, 2)).unwrap();
    rig.uffd.wake(hole).unwrap();
    for left in [rig.pages(0, 1), rig.pages(2, 2)] {
        // SAFETY: nobody uses the pages.
        unsafe { own::unmap(left) }.unwrap();
    }
}

/// A range belongs to one userfaultfd at a time.
#[test]
fn registered_with_another_is_refused() {
    let Some(rig) = Rig::new("registered_with_another_is_refused", Features::empty(), 1) else { return };
    rig.register(rig.span());
    let other = userswap_uffd::Uffd::open(Features::empty(), userswap_uffd::OpenMode::Auto).unwrap();
    // SAFETY: the memory is this test's, and it isn't registered here as that fails.
    let error = unsafe { other.register(rig.span(), RegisterMode::MISSING) }.unwrap_err();
    assert_eq!(error.errno(), Some(libc::EBUSY));
    // Before the first has it again, the same one may register the same range any number of times.
    rig.register(rig.span());
}

/// Filling reaches any registered memory of the process, whichever userfaultfd has it registered; waking reaches one's own waiters only.
/// So a page put at an address of before may land in another's range. MOVE asks whose it is.
#[test]
fn filling_reaches_ranges_of_another_userfaultfd() {
    let name = "filling_reaches_ranges_of_another_userfaultfd";
    let Some(rig) = Rig::new(name, Features::MOVE, 2) else { return };
    let Some(other) = crate::support::open(name, Features::MOVE, userswap_uffd::OpenMode::Auto) else {
        return;
    };
    rig.register(rig.pages(0, 1));
    let thread = reader(rig.addr(0));
    next_fault(&rig.uffd);
    poke(rig.addr(1), 1);
    // SAFETY: refused, so nothing moves.
    let moved = unsafe { other.move_pages(rig.addr(0), rig.addr(1), page_bytes(), MoveMode::default()) };
    assert_eq!(moved.stop, Some(Stop::Invalid));
    assert!(other.copy(rig.addr(0), &page_of(7), CopyMode::default()).is_complete());
    other.wake(rig.pages(0, 1)).unwrap();
    assert_eq!(waiting(&rig.uffd), (0, 1));
    rig.uffd.wake(rig.pages(0, 1)).unwrap();
    assert_eq!(thread.join().unwrap(), 7);
}

/// A registered range that has become inaccessible still takes pages: what was moved out can come back before mprotect undoes it.
#[test]
fn copy_into_prot_none_succeeds() {
    let Some(rig) = Rig::new("copy_into_prot_none_succeeds", Features::empty(), 1) else { return };
    rig.register(rig.span());
    // SAFETY: nobody touches the page meanwhile.
    unsafe { own::protect(rig.span(), Protection::NONE) }.unwrap();
    assert!(rig.uffd.copy(rig.addr(0), &page_of(6), CopyMode::default()).is_complete());
    // SAFETY: gives back what was taken.
    unsafe { own::protect(rig.span(), Protection::READ_WRITE) }.unwrap();
    assert_eq!(peek(rig.addr(0)), 6);
}

/// While an event is unread nothing can be filled or moved, whatever the range; after it was read that may last until its thread runs.
#[test]
fn busy_while_an_event_is_unread() {
    let Some(rig) = Rig::new("busy_while_an_event_is_unread", EVENTS, 6) else { return };
    rig.register(rig.pages(0, 4));
    poke(rig.addr(4), 4);
    let dropped = rig.pages(0, 1);
    let thread = std::thread::spawn(move || {
        // SAFETY: the page is this test's and holds nothing.
        unsafe { own::madvise(dropped, Advice::DontNeed) }.unwrap();
    });
    until_readable(&rig.uffd);
    let busy = Outcome { done: 0, stop: Some(Stop::Busy) };
    let copy = || rig.uffd.copy(rig.addr(1), &page_of(1), CopyMode::default());
    // SAFETY: page 4 is this test's, which finds it at page 3.
    let moving =
        || unsafe { rig.uffd.move_pages(rig.addr(3), rig.addr(4), page_bytes(), MoveMode::default()) };
    for _ in 0..100 {
        assert_eq!(copy(), busy);
        assert_eq!(rig.uffd.zeropage(rig.pages(2, 1), false), busy);
        assert_eq!(moving(), busy);
    }
    let event = next_event(&rig.uffd);
    assert!(matches!(event, userswap_uffd::Event::Remove(span) if span == dropped), "{event:?}");
    until("copying works again", || copy().is_complete());
    thread.join().unwrap();
    assert!(rig.uffd.zeropage(rig.pages(2, 1), false).is_complete());
    assert!(moving().is_complete());
    assert_eq!([1, 2, 3].map(|page| peek(rig.addr(page))), [1, 0, 4]);
}

/// After the event was read, filling stays impossible for as long as the thread that caused it doesn't run: trying again without letting
/// go of the CPU can go on for ever.
#[test]
fn busy_lasts_until_the_changer_runs() {
    let name = "busy_lasts_until_the_changer_runs";
    let Some(rig) = Rig::new(name, EVENTS, 2) else { return };
    rig.register(rig.span());
    let cpu = cpu::allowed(None).unwrap()[0];
    let dropped = rig.pages(0, 1);
    let changer = std::thread::spawn(move || {
        cpu::pin(None, &[cpu]).unwrap();
        // SAFETY: the page is this test's and holds nothing.
        unsafe { own::madvise(dropped, Advice::DontNeed) }.unwrap();
    });
    // On the changer's only CPU, and before it in the queue: it can't run until this thread lets it.
    let first_in_the_queue = || {
        cpu::pin(None, &[cpu]).unwrap();
        until_readable(&rig.uffd);
        let policy = libc::sched_param { sched_priority: 1 };
        // SAFETY: changes this thread's scheduling, which ends with it.
        let granted = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const policy) } == 0;
        next_event(&rig.uffd);
        let copy = || rig.uffd.copy(rig.addr(1), &page_of(1), CopyMode::default());
        granted.then(|| (0..1000).map(|_| copy().stop).collect::<Vec<_>>())
    };
    let answers = std::thread::scope(|scope| scope.spawn(first_in_the_queue).join().unwrap());
    changer.join().unwrap();
    let Some(mut answers) = answers else { return println!("SKIPPED {name}: no real-time scheduling") };
    answers.push(rig.uffd.copy(rig.addr(1), &page_of(1), CopyMode::default()).stop);
    // The last one comes after the changer has run. Mostly all others are before it, but where the machine has much to do the kernel lets
    // others in for a moment, whatever their class.
    let busy = answers.iter().take_while(|stop| **stop == Some(Stop::Busy)).count();
    assert!((1..=1000).contains(&busy), "busy {busy} times");
    assert_eq!(answers[busy], None);
    assert!(answers[busy + 1..].iter().all(|stop| *stop == Some(Stop::Present)), "{:?}", &answers[busy..]);
}

/// Faults are handed out before older events: a handler that serves what it reads, in order, serves a fault before the change
/// that came first.
#[test]
fn faults_overtake_events() {
    let Some(rig) = Rig::new("faults_overtake_events", EVENTS, 2) else { return };
    rig.register(rig.span());
    let dropped = rig.pages(0, 1);
    let dropper = std::thread::spawn(move || {
        // SAFETY: the page is this test's and holds nothing.
        unsafe { own::madvise(dropped, Advice::DontNeed) }.unwrap();
    });
    until_readable(&rig.uffd);
    let toucher = reader(rig.addr(1));
    until("the fault is pending", || waiting(&rig.uffd).0 == 1);
    assert_eq!(next_fault(&rig.uffd).addr, rig.addr(1));
    next_event(&rig.uffd);
    dropper.join().unwrap();
    assert!(rig.uffd.zeropage(rig.pages(1, 1), false).is_complete());
    assert_eq!(toucher.join().unwrap(), 0);
}

/// Once a REMOVE has been read the kernel lets an older page in: the program dropped it and reads stale bytes. Only a gate helps.
#[test]
fn a_copy_decided_before_a_remove_succeeds_after_it() {
    let name = "a_copy_decided_before_a_remove_succeeds_after_it";
    let Some(rig) = Rig::new(name, EVENTS, 1) else { return };
    rig.register(rig.span());
    let decided = page_of(0x0D);
    let span = rig.span();
    let dropper = std::thread::spawn(move || {
        // SAFETY: the page is this test's.
        unsafe { own::madvise(span, Advice::DontNeed) }.unwrap();
    });
    next_event(&rig.uffd);
    dropper.join().unwrap();
    assert!(rig.uffd.copy(rig.addr(0), &decided, CopyMode::default()).is_complete());
    assert_eq!(peek(rig.addr(0)), 0x0D, "zeros were due");
}

/// A guard page raises no event, and a copy goes through it and takes it away. PAGEMAP_SCAN and the pagemap show it.
#[test]
fn guards_are_silent_and_give_way() {
    let Some(rig) = Rig::new("guards_are_silent_and_give_way", EVENTS, 3) else { return };
    rig.register(rig.span());
    // SAFETY: the page is this test's and holds nothing.
    if let Err(e) = unsafe { own::madvise(rig.pages(1, 1), Advice::GuardInstall) } {
        println!("SKIPPED guards_are_silent_and_give_way: {e}: {:?}", e.errno());
        return;
    }
    assert_quiet(&rig.uffd);
    let pagemap = Pagemap::this().unwrap();
    let guards = || {
        let mut found = Vec::new();
        let request =
            ScanRequest { all_of: Categories::GUARD, report: Categories::GUARD, ..ScanRequest::default() };
        pagemap.scan(rig.span(), &request, &mut found).unwrap();
        found.iter().map(|range| range.span).collect::<Vec<_>>()
    };
    let mut entries = Vec::new();
    pagemap.entries(rig.span(), &mut entries).unwrap();
    let marked = entries.iter().map(|entry| entry.guard()).collect::<Vec<_>>();
    if marked == [false; 3] {
        println!("SKIPPED guards_are_silent_and_give_way: this kernel's pagemap doesn't show guards");
        return;
    }
    assert_eq!((guards(), marked), (vec![rig.pages(1, 1)], vec![false, true, false]));
    assert!(rig.uffd.copy(rig.addr(1), &page_of(1), CopyMode::default()).is_complete());
    assert_eq!(peek(rig.addr(1)), 1);
    assert!(guards().is_empty());
}

/// With WP_ASYNC a page that was copied in write-protected tells by PAGEMAP_SCAN whether it was written since, at no message:
/// a clean page need not be stored again.
#[test]
fn clean_pages_are_known_without_messages() {
    let name = "clean_pages_are_known_without_messages";
    let Some(rig) = Rig::new(name, Features::WP_ASYNC | Features::PAGEFAULT_FLAG_WP, 4) else { return };
    assert!(rig.uffd.features().contains(Features::WP_UNPOPULATED));
    rig.register_for(rig.span(), RegisterMode::MISSING | RegisterMode::WP);
    let protected = CopyMode { wp: true, ..CopyMode::default() };
    assert!(rig.uffd.copy(rig.addr(0), &vec![1; 4 * page_size()], protected).is_complete());
    let pagemap = Pagemap::this().unwrap();
    let written = |write_protect| {
        let mut found = Vec::new();
        let all_of = Categories::WRITTEN | Categories::PRESENT;
        let request =
            ScanRequest { all_of, report: Categories::WRITTEN, write_protect, ..ScanRequest::default() };
        assert_eq!(pagemap.scan(rig.span(), &request, &mut found).unwrap(), rig.span().end());
        found.iter().map(|range| range.span).collect::<Vec<_>>()
    };
    assert!(written(false).is_empty());
    assert_eq!(peek(rig.addr(3)), 1);
    poke(rig.addr(1), 2);
    poke(rig.addr(2), 2);
    assert_quiet(&rig.uffd);
    assert_eq!(written(false), [rig.pages(1, 2)]);
    // Asking and protecting again in one step.
    assert_eq!(written(true), [rig.pages(1, 2)]);
    assert!(written(false).is_empty());
}
