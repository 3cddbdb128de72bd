//! The address space changes under registered ranges.

use userswap_uffd::{
    Advice, CopyMode, Event, Features, Mapping, Protection, RawMessage, Span, Stop, Uffd, own, page_bytes,
};

use crate::support::{
    Rig, assert_quiet, next_event, next_fault, page_of, peek, poke, reader, until_readable,
};

const EVENTS: Features = Features::EVENT_REMOVE.union(Features::EVENT_REMAP).union(Features::EVENT_UNMAP);

/// Runs `change` in a thread and gives the events it raises until it has finished.
fn events_of<T: Send + 'static>(uffd: &Uffd, change: impl FnOnce() -> T + Send + 'static) -> (Vec<Event>, T) {
    let (finished, finish) = std::io::pipe().unwrap();
    let thread = std::thread::spawn(move || {
        let result = change();
        // Closing this end tells the reader, whatever became of the change.
        drop(finish);
        result
    });
    let mut events = Vec::new();
    loop {
        let mut fds = [
            rustix::event::PollFd::new(uffd, rustix::event::PollFlags::IN),
            rustix::event::PollFd::new(&finished, rustix::event::PollFlags::IN),
        ];
        rustix::event::poll(&mut fds, None).unwrap();
        let mut raw = [RawMessage::EMPTY];
        while uffd.read(&mut raw).unwrap() == 1 {
            // SAFETY: just read by this process, decoded once.
            match unsafe { raw[0].decode(uffd.features()) }.unwrap() {
                userswap_uffd::Message::Event(event) => events.push(event),
                fault => panic!("an event was expected, not {fault:?}"),
            }
        }
        if thread.is_finished() {
            return (events, thread.join().unwrap());
        }
    }
}

fn removed(events: &[Event]) -> Vec<Span> {
    events.iter().map(|e| if let Event::Remove(span) = e { *span } else { panic!("{e:?}") }).collect()
}

fn unmapped(events: &[Event]) -> Vec<Span> {
    events.iter().map(|e| if let Event::Unmap(span) = e { *span } else { panic!("{e:?}") }).collect()
}

/// Dropping pages tells of the registered ones only; they fault anew.
#[test]
fn remove_covers_the_registered_part() {
    let Some(rig) = Rig::new("remove_covers_the_registered_part", EVENTS, 10) else { return };
    for page in 0..10 {
        poke(rig.addr(page), 1);
    }
    rig.register(rig.pages(3, 4));
    for (dropped, told) in [
        (rig.pages(4, 1), vec![rig.pages(4, 1)]),
        (rig.pages(3, 4), vec![rig.pages(3, 4)]),
        (rig.pages(0, 5), vec![rig.pages(3, 2)]),
        (rig.pages(5, 5), vec![rig.pages(5, 2)]),
        (rig.span(), vec![rig.pages(3, 4)]),
        (rig.pages(0, 3), vec![]),
    ] {
        // SAFETY: the pages are this test's, which expects them empty.
        let (events, ()) =
            events_of(&rig.uffd, move || unsafe { own::madvise(dropped, Advice::DontNeed) }.unwrap());
        assert_eq!(removed(&events), told);
    }
    let thread = reader(rig.addr(4));
    assert_eq!(next_fault(&rig.uffd).addr, rig.addr(4));
    assert!(rig.uffd.zeropage(rig.pages(4, 1), false).is_complete());
    assert_eq!(thread.join().unwrap(), 0);
    assert_eq!(peek(rig.addr(0)), 0);
}

/// MADV_FREE is told like MADV_DONTNEED, and at once, though the page may live on until memory is short.
#[test]
fn madv_free_is_a_remove() {
    let Some(rig) = Rig::new("madv_free_is_a_remove", EVENTS, 2) else { return };
    poke(rig.addr(1), 5);
    rig.register(rig.span());
    let span = rig.span();
    // SAFETY: the pages are this test's, which expects either contents.
    let (events, ()) = events_of(&rig.uffd, move || unsafe { own::madvise(span, Advice::Free) }.unwrap());
    assert_eq!(removed(&events), [span]);
    let value = reader(rig.addr(1));
    // Whether the page was taken yet is the kernel's affair: with it there no fault comes.
    loop {
        if value.is_finished() {
            break;
        }
        let _ = rig.uffd.zeropage(rig.pages(1, 1), false);
    }
    assert!([0, 5].contains(&value.join().unwrap()));
}

/// Unmapping tells the whole range of the call where any of it is registered: what's told may reach beyond the registered part,
/// unlike what a remove tells.
#[test]
fn unmap_single_multiple_and_page_by_page() {
    let Some(mut rig) = Rig::new("unmap_single_multiple_and_page_by_page", EVENTS, 14) else { return };
    rig.keep_mapped();
    rig.register(rig.pages(2, 8));
    rig.register(rig.pages(12, 1));
    let unmap = |span: Span| {
        // SAFETY: nobody uses the pages.
        let (events, ()) = events_of(&rig.uffd, move || unsafe { own::unmap(span) }.unwrap());
        unmapped(&events)
    };
    assert_eq!(unmap(rig.pages(2, 1)), [rig.pages(2, 1)]);
    assert_eq!(unmap(rig.pages(3, 3)), [rig.pages(3, 3)]);
    for page in 6..9 {
        assert_eq!(unmap(rig.pages(page, 1)), [rig.pages(page, 1)]);
    }
    // From the middle of one registered part to behind another: one event, the gap between them and what follows included.
    assert_eq!(unmap(rig.pages(9, 5)), [rig.pages(9, 5)]);
    assert!(unmap(rig.pages(0, 2)).is_empty());
}

/// Mapping over a registered range is an unmap of it.
#[test]
fn mapping_over_is_an_unmap() {
    let Some(rig) = Rig::new("mapping_over_is_an_unmap", EVENTS, 4) else { return };
    rig.register(rig.span());
    let slot = rig.pages(1, 2);
    // SAFETY: nobody uses the pages.
    let (events, ()) = events_of(&rig.uffd, move || unsafe { own::map_none_over(slot) }.unwrap());
    assert_eq!(unmapped(&events), [slot]);
    // SAFETY: nobody uses the pages. They aren't registered any more: nothing is told.
    let (events, ()) = events_of(&rig.uffd, move || unsafe { own::map_anonymous_over(slot) }.unwrap());
    assert!(events.is_empty());
    assert_eq!(peek(slot.start()), 0);
}

/// Growing a mapping moves it: the event has the old length, and faults come at the new address.
#[test]
fn growing_tells_the_old_length() {
    // Alone, as other tests' registered mappings could take the place of the one that moves away.
    let Some(rig) = Rig::alone("growing_tells_the_old_length", EVENTS, 2) else { return };
    let small = Mapping::new(4 * page_bytes(), Protection::READ_WRITE).unwrap().leak();
    let target = Mapping::new(8 * page_bytes(), Protection::NONE).unwrap().leak();
    rig.register(small);
    let grow = move || {
        let address = |at: u64| std::ptr::with_exposed_provenance_mut(usize::try_from(at).unwrap());
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both ranges are this test's; the target holds nothing.
        let got = unsafe {
            libc::mremap(
                address(small.start()),
                small.bytes(),
                target.bytes(),
                flags,
                address(target.start()),
            )
        };
        assert_eq!(got.expose_provenance() as u64, target.start());
    };
    let (events, ()) = events_of(&rig.uffd, grow);
    let remaps: Vec<_> = events.iter().filter(|e| matches!(e, Event::Remap { .. })).collect();
    assert!(
        matches!(remaps[..], [Event::Remap { from, to, len }]
            if (*from, *to, *len) == (small.start(), target.start(), small.len())),
        "{events:?}"
    );
    for page in [0, 7] {
        let addr = target.page_addr(page).unwrap();
        let thread = reader(addr);
        assert_eq!(next_fault(&rig.uffd).addr, addr);
        assert!(rig.uffd.copy(addr, &page_of(3), CopyMode::default()).is_complete());
        assert_eq!(thread.join().unwrap(), 3);
    }
    // A zero page for an address of before finds nothing; for where it is now, it's taken for what it isn't: lost data.
    assert_eq!(
        rig.uffd.zeropage(Span::from_pages(small.start(), 1).unwrap(), false).stop,
        Some(Stop::Unmapped)
    );
    assert!(
        rig.uffd.zeropage(Span::from_pages(target.start() + page_bytes(), 1).unwrap(), false).is_complete()
    );
    rig.uffd.unregister(target).unwrap();
    // SAFETY: nobody uses the range.
    unsafe { own::unmap(target) }.unwrap();
}

/// The cycle of a swap: move the pages to a slot, read them there, map over the slot, bring them back on a fault.
#[test]
fn move_out_leaves_both_ends_registered_and_comes_back() {
    let name = "move_out_leaves_both_ends_registered_and_comes_back";
    let Some(rig) = Rig::new(name, EVENTS, 4) else { return };
    let area = Mapping::new(4 * page_bytes(), Protection::NONE).unwrap();
    let slot = area.span();
    for page in 0..4u8 {
        poke(rig.addr(page.into()), page + 10);
    }
    rig.register(rig.span());
    let source = rig.span();
    // SAFETY: the pages are this test's, registered; the slot holds nothing.
    let (events, ()) =
        events_of(&rig.uffd, move || unsafe { own::mremap_dontunmap(source, slot.start()) }.unwrap());
    assert!(
        matches!(events[..], [Event::Remap { from, to, len }]
            if (from, to, len) == (source.start(), slot.start(), source.len())),
        "onto a slot that was mapped clean there's one event: {events:?}"
    );
    // The slot came with the registration: it can be unregistered, and holds the pages.
    assert_eq!((0..4).map(|p| peek(slot.start() + p * page_bytes())).collect::<Vec<_>>(), [10, 11, 12, 13]);
    let kept: Vec<u8> = page_of(12);
    // SAFETY: what was in the slot is kept, or lost on purpose.
    let (events, ()) = events_of(&rig.uffd, move || unsafe { own::map_none_over(slot) }.unwrap());
    assert_eq!(unmapped(&events), [slot], "the slot was registered by the move");
    let thread = reader(rig.addr(2));
    assert_eq!(next_fault(&rig.uffd).addr, rig.addr(2));
    assert!(rig.uffd.copy(rig.addr(2), &kept, CopyMode::default()).is_complete());
    assert_eq!(thread.join().unwrap(), 12);
    drop(rig);
}

/// Unregistering the slot after a move makes dropping it silent.
#[test]
fn an_unregistered_slot_is_dropped_in_silence() {
    let Some(rig) = Rig::new("an_unregistered_slot_is_dropped_in_silence", EVENTS, 2) else { return };
    let area = Mapping::new(2 * page_bytes(), Protection::NONE).unwrap();
    let (source, slot) = (rig.span(), area.span());
    poke(rig.addr(0), 1);
    rig.register(source);
    // SAFETY: the pages are this test's, registered; the slot holds nothing.
    events_of(&rig.uffd, move || unsafe { own::mremap_dontunmap(source, slot.start()) }.unwrap());
    rig.uffd.unregister(slot).unwrap();
    // A hole in the slot is zeros now, not a fault.
    assert_eq!((peek(slot.start()), peek(slot.start() + page_bytes())), (1, 0));
    // SAFETY: nobody needs what is in the slot.
    let (events, ()) = events_of(&rig.uffd, move || unsafe { own::map_none_over(slot) }.unwrap());
    assert!(events.is_empty());
}

/// Moving onto a slot that is still registered from before gives its UNMAP and then the REMAP.
#[test]
fn moving_onto_a_registered_slot_unmaps_it_first() {
    let Some(rig) = Rig::new("moving_onto_a_registered_slot_unmaps_it_first", EVENTS, 4) else { return };
    rig.register(rig.span());
    let (source, slot) = (rig.pages(0, 2), rig.pages(2, 2));
    // SAFETY: the pages are this test's, registered; what is in the slot is lost on purpose.
    let (events, ()) =
        events_of(&rig.uffd, move || unsafe { own::mremap_dontunmap(source, slot.start()) }.unwrap());
    let [Event::Unmap(lost), Event::Remap { from, to, len }] = events[..] else { panic!("{events:?}") };
    assert_eq!((lost, from, to, len), (slot, source.start(), slot.start(), source.len()));
}

/// A range that isn't one mapping can't be moved, nor one of unequal lengths, nor a mapping grown of which a part is registered.
#[test]
fn moves_the_kernel_refuses() {
    let Some(rig) = Rig::new("moves_the_kernel_refuses", Features::empty(), 6) else { return };
    rig.register(rig.pages(2, 2));
    let area = Mapping::new(12 * page_bytes(), Protection::NONE).unwrap();
    // SAFETY: refused, so nothing moves.
    let straddling = unsafe { own::mremap_dontunmap(rig.span(), area.span().start()) }.unwrap_err();
    assert_eq!(straddling.errno(), Some(libc::EFAULT));
    let address = |at: u64| std::ptr::with_exposed_provenance_mut(usize::try_from(at).unwrap());
    let remap = |old: Span, new_bytes: usize, flags: libc::c_int| {
        // SAFETY: refused, so nothing moves.
        let got = unsafe {
            libc::mremap(address(old.start()), old.bytes(), new_bytes, flags, address(area.span().start()))
        };
        assert_eq!(got, libc::MAP_FAILED);
        std::io::Error::last_os_error().raw_os_error()
    };
    let dontunmap = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    let two = rig.pages(2, 2);
    assert_eq!(remap(two, two.bytes() * 2, dontunmap), Some(libc::EINVAL));
    assert_eq!(remap(rig.span(), rig.span().bytes() * 2, libc::MREMAP_MAYMOVE), Some(libc::EFAULT));
}

/// Whoever changes the address space stands still until the event is read.
#[test]
fn the_changer_waits_for_its_reader() {
    let Some(rig) = Rig::new("the_changer_waits_for_its_reader", EVENTS, 1) else { return };
    rig.register(rig.span());
    let span = rig.span();
    // SAFETY: the page is this test's and empty.
    let thread = std::thread::spawn(move || unsafe { own::madvise(span, Advice::DontNeed) }.unwrap());
    until_readable(&rig.uffd);
    assert!(!thread.is_finished());
    assert!(matches!(next_event(&rig.uffd), Event::Remove(told) if told == span));
    thread.join().unwrap();
    assert_quiet(&rig.uffd);
}

/// Registered, unmapped, mapped anew at the same address: a move decided before takes the new owner's pages. Only a gate helps.
#[test]
fn a_move_decided_before_takes_the_pages_of_a_new_mapping() {
    let name = "a_move_decided_before_takes_the_pages_of_a_new_mapping";
    let Some(rig) = Rig::new(name, EVENTS, 2) else { return };
    rig.register(rig.span());
    let span = rig.span();
    // SAFETY: nobody uses the pages.
    let (events, ()) = events_of(&rig.uffd, move || unsafe { own::map_anonymous_over(span) }.unwrap());
    assert_eq!(unmapped(&events), [span]);
    poke(rig.addr(0), 0x42);
    let area = Mapping::new(span.len(), Protection::NONE).unwrap();
    let slot = area.span().start();
    // SAFETY: the pages are this test's, which shows what a daemon would do to them.
    let (events, ()) = events_of(&rig.uffd, move || unsafe { own::mremap_dontunmap(span, slot) }.unwrap());
    assert!(events.is_empty(), "nothing tells of it");
    assert_eq!((peek(rig.addr(0)), peek(slot)), (0, 0x42), "the new owner reads zeros");
}

/// Registering the middle of a mapping makes three of it, which count against the limit; unregistering joins them again.
#[test]
fn registering_a_part_splits_the_mapping() {
    let Some(rig) = Rig::new("registering_a_part_splits_the_mapping", Features::empty(), 9) else { return };
    let inside = || {
        let vmas = userswap_uffd::maps::read_smaps(std::process::id()).unwrap();
        vmas.into_iter().filter(|vma| vma.span.overlaps(&rig.span())).collect::<Vec<_>>()
    };
    assert_eq!(inside().len(), 1);
    rig.register(rig.pages(3, 3));
    let split = inside();
    let middle = split.iter().find(|vma| vma.span == rig.pages(3, 3)).unwrap();
    assert!(middle.flags.unwrap().contains(userswap_uffd::maps::VmFlags::UFFD_MISSING));
    assert_eq!(split.len(), 3);
    rig.uffd.unregister(rig.pages(3, 3)).unwrap();
    assert_eq!(inside().len(), 1);
}

/// A piece moved out by mremap and brought back leaves its mapping in pieces for good, as the kernel counts its pages from elsewhere now.
#[test]
fn a_piece_moved_out_splits_the_mapping_for_good() {
    let name = "a_piece_moved_out_splits_the_mapping_for_good";
    let Some(rig) = Rig::new(name, Features::empty(), 9) else { return };
    let inside = || {
        let vmas = userswap_uffd::maps::read_maps(std::process::id()).unwrap();
        vmas.into_iter().filter(|vma| vma.span.overlaps(&rig.span())).count()
    };
    for page in 0..9 {
        poke(rig.addr(page), 1);
    }
    let area = Mapping::new(3 * page_bytes(), Protection::NONE).unwrap();
    let piece = rig.pages(3, 3);
    rig.register(piece);
    // SAFETY: the pages are this test's, registered; the slot holds nothing.
    unsafe { own::mremap_dontunmap(piece, area.span().start()) }.unwrap();
    for page in 3..6 {
        assert!(rig.uffd.copy(rig.addr(page), &page_of(2), CopyMode::default()).is_complete());
    }
    rig.uffd.unregister(piece).unwrap();
    assert_eq!(inside(), 3);
    assert_eq!([2, 3, 5, 6].map(|page| peek(rig.addr(page))), [1, 2, 2, 1]);
}
