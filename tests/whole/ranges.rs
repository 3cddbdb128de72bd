//! What programs do to ranges that are out: they remove, unmap, move, grow and shrink them, and leave them untouched.

use rustix::event::{PollFd, PollFlags, Timespec};
use std::sync::Arc;
use std::sync::mpsc::channel;
use userswap_engine::Keep;
use userswap_engine::core::Transition;
use userswap_tests::own::{
    Own, Point, free_lazily, free_range, give_notice, leave_out_of_dumps, move_mapping, remove, unmap_span,
};
use userswap_tests::pages::Pages;
use userswap_tests::plain::PlainStore;
use userswap_tests::watch::{LONG, Watchdog, until};
use userswap_uffd::Span;
use userswap_uffd::own::mremap_dontunmap;

const PAGES: u64 = 64;

fn value(page: u64) -> u64 {
    page + 1
}

/// A region whose pages are all out.
fn out(name: &str) -> Option<(Own, Arc<PlainStore>)> {
    let store = Arc::new(PlainStore::default());
    let own = Own::settings(PAGES, Arc::clone(&store) as _).build(name)?;
    own.pages.fill_all(value);
    assert_eq!((own.evict().stored, store.len()), (PAGES, PAGES as usize));
    Some((own, store))
}

fn pages_of(span: Span) -> Pages {
    // SAFETY: read-write memory of a test's, which names it only while it is mapped.
    unsafe { Pages::new(span) }
}

fn nothing_left((own, store): (Own, Arc<PlainStore>)) {
    drop(own);
    assert_eq!((store.len(), store.freed_twice()), (0, 0));
}

#[test]
fn removed_pages_read_zeros_and_their_neighbours_come_back() {
    let _watch = Watchdog::new("removed_pages_read_zeros_and_their_neighbours_come_back");
    let Some((own, store)) = out("removed_pages_read_zeros_and_their_neighbours_come_back") else { return };
    remove(own.pages.part(10, 10).span());
    until("their objects are freed", || store.len() == 54);
    own.pages.assert_all(|page| if (10..20).contains(&page) { 0 } else { value(page) });
    // They are as good as any other now.
    own.pages.part(10, 10).fill_all(|page| !page);
    assert_eq!(own.evict().stored, PAGES);
    own.pages.assert_all(|page| if (10..20).contains(&page) { !(page - 10) } else { value(page) });
    nothing_left((own, store));
}

#[test]
fn removed_before_they_are_moved_out_they_stay_removed() {
    let _watch = Watchdog::new("removed_before_they_are_moved_out_they_stay_removed");
    let Some((own, store)) = out("removed_before_they_are_moved_out_they_stay_removed") else { return };
    for page in (0..PAGES).step_by(2) {
        assert_eq!(own.pages.read(page), Ok(value(page)));
        remove(own.pages.part(page, 1).span());
    }
    own.evict();
    own.pages.assert_all(|page| if page % 2 == 0 { 0 } else { value(page) });
    nothing_left((own, store));
}

/// Lazily freed pages hold what they held, or zeros, until they are written.
#[test]
fn lazily_freed_pages_hold_their_bytes_or_zeros() {
    let _watch = Watchdog::new("lazily_freed_pages_hold_their_bytes_or_zeros");
    let Some((own, store)) = out("lazily_freed_pages_hold_their_bytes_or_zeros") else { return };
    for _ in 0..4 {
        // Some of these are out, some are not.
        for page in (0..PAGES).step_by(3) {
            assert_eq!(own.pages.read(page), Ok(value(page)));
        }
        free_lazily(own.pages.part(16, 32).span());
        own.evict();
        for page in 0..PAGES {
            let found = own.pages.read(page);
            let freed = (16..48).contains(&page) && found == Ok(0);
            assert!(freed || found == Ok(value(page)), "page {page}: {found:?}");
        }
        own.pages.fill_all(value);
        own.evict();
    }
    own.pages.assert_all(value);
    nothing_left((own, store));
}

#[test]
fn unmapped_in_the_middle_a_region_goes_on_in_two_parts() {
    let _watch = Watchdog::new("unmapped_in_the_middle_a_region_goes_on_in_two_parts");
    let Some((mut own, store)) = out("unmapped_in_the_middle_a_region_goes_on_in_two_parts") else { return };
    own.keep_mapped();
    unmap_span(own.pages.part(20, 10).span());
    until("their objects are freed", || store.len() == 54);
    assert_eq!((own.space.parts().len(), own.space.usage().managed), (2, 54));
    let (low, high) = (own.pages.part(0, 20), own.pages.part(30, 34));
    for _ in 0..2 {
        low.assert_all(value);
        high.assert_all(|page| value(page + 30));
        assert_eq!(own.evict_span(low.span()).stored, 20);
        assert_eq!(own.evict_span(high.span()).stored, 34);
    }
    unmap_span(high.span());
    low.assert_all(value);
    assert_eq!(own.space.usage().managed, 20);
    nothing_left((own, store));
}

#[test]
fn moved_to_another_address_and_back_again_pages_follow() {
    let _watch = Watchdog::new("moved_to_another_address_and_back_again_pages_follow");
    let Some((mut own, store)) = out("moved_to_another_address_and_back_again_pages_follow") else { return };
    own.keep_mapped();
    let len = own.pages.span().len();
    let mut now = own.pages;
    // Places above and below: mapped before, so that nothing else can be there; the move replaces what is.
    let places: Vec<Span> = (0..6).map(|_| free_range(len).leak()).collect();
    for round in [3, 0, 5, 1, 4, 2] {
        let place = places[round];
        now = pages_of(move_mapping(now.span(), len, Some(place.start())).unwrap());
        now.assert_all(value);
        now.part(0, 8).fill_all(value);
        assert_eq!(own.evict_span(now.span()).stored, PAGES, "place {round}");
    }
    now.assert_all(value);
    assert!(own.space.counts().get(Transition::Remapped) >= 6);
    nothing_left((own, store));
}

/// Half of a region is moved away, and then the other half: one region in two places.
#[test]
fn moved_in_part_a_region_is_in_two_places() {
    let _watch = Watchdog::new("moved_in_part_a_region_is_in_two_places");
    let Some((mut own, store)) = out("moved_in_part_a_region_is_in_two_places") else { return };
    own.keep_mapped();
    let (low, high) = (own.pages.part(0, 32), own.pages.part(32, 32));
    let moved = pages_of(move_mapping(high.span(), high.span().len(), None).unwrap());
    for _ in 0..2 {
        moved.assert_all(|page| value(page + 32));
        low.assert_all(value);
        assert_eq!(own.evict_span(moved.span()).stored, 32);
        assert_eq!(own.evict_span(low.span()).stored, 32);
    }
    let again = pages_of(move_mapping(low.span(), low.span().len(), None).unwrap());
    again.assert_all(value);
    moved.assert_all(|page| value(page + 32));
    nothing_left((own, store));
}

#[test]
fn grown_and_shrunk_a_mapping_keeps_what_it_has() {
    let _watch = Watchdog::new("grown_and_shrunk_a_mapping_keeps_what_it_has");
    let Some((mut own, store)) = out("grown_and_shrunk_a_mapping_keeps_what_it_has") else { return };
    own.keep_mapped();
    let len = own.pages.span().len();
    let grown = move_mapping(own.pages.span(), 2 * len, None).unwrap();
    own.space.manage_new(&[grown]).unwrap();
    let pages = pages_of(grown);
    pages.assert_all(|page| if page < PAGES { value(page) } else { 0 });
    pages.fill_all(value);
    assert_eq!(own.evict_span(grown).stored, 2 * PAGES);
    let shrunk = move_mapping(grown, len / 2, None).unwrap();
    assert_eq!(shrunk.start(), grown.start());
    until("the objects of the rest are freed", || store.len() == PAGES as usize / 2);
    pages_of(shrunk).assert_all(value);
    nothing_left((own, store));
}

/// The program moves its pages away and keeps the mapping: mremap(MREMAP_DONTUNMAP).
#[test]
fn pages_moved_from_under_their_mapping_are_at_the_new_place_only() {
    let _watch = Watchdog::new("pages_moved_from_under_their_mapping_are_at_the_new_place_only");
    let Some((own, store)) = out("pages_moved_from_under_their_mapping_are_at_the_new_place_only") else {
        return;
    };
    own.pages.part(0, 5).assert_all(value);
    let target = free_range(own.pages.span().len()).leak();
    // SAFETY: needed because the pages vanish from the range and replace the target; both are this test's own.
    unsafe { mremap_dontunmap(own.pages.span(), target.start()) }.unwrap();
    let moved = pages_of(target);
    moved.assert_all(value);
    own.pages.assert_all(|_| 0);
    own.pages.fill_all(|page| !page);
    own.space.manage_new(&[own.pages.span()]).unwrap();
    for _ in 0..2 {
        own.evict();
        assert_eq!(own.evict_span(target).stored, PAGES);
        moved.assert_all(value);
        own.pages.assert_all(|page| !page);
    }
    give_notice(&own.space, target);
    unmap_span(target);
    nothing_left((own, store));
}

/// A thread touches a page just after it went and before anybody has noted that.
#[test]
fn a_page_touched_while_it_is_moved_comes_back() {
    let _watch = Watchdog::new("a_page_touched_while_it_is_moved_comes_back");
    let store = Arc::new(PlainStore::default());
    let settings = Own::settings(PAGES, Arc::clone(&store) as _);
    let Some(own) = settings.build("a_page_touched_while_it_is_moved_comes_back") else { return };
    for (round, keep) in [Keep::Stored, Keep::Standby].into_iter().cycle().take(40).enumerate() {
        own.pages.fill_all(value);
        let (gone, touch) = channel();
        let (gone, space) = (parking_lot::Mutex::new(Some(gone)), Arc::clone(&own.space));
        own.hooks.set(move |point| {
            if let Point::Moved(_) = point
                && let Some(gone) = gone.lock().take()
            {
                gone.send(()).unwrap();
                // The fault is there to be read; whoever reads it does so after the move is noted.
                until("a thread waits for a page that was moved", || {
                    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                    let messages = space.memory().messages().unwrap();
                    rustix::event::poll(&mut [PollFd::new(&messages, PollFlags::IN)], Some(&now)) == Ok(1)
                });
            }
        });
        std::thread::scope(|scope| {
            let pages = own.pages;
            let toucher = scope.spawn(move || {
                touch.recv_timeout(LONG).unwrap();
                pages.read(round as u64)
            });
            own.space.move_out(own.pages.span(), u64::MAX, keep).unwrap();
            assert_eq!(toucher.join().unwrap(), Ok(value(round as u64)), "round {round}");
        });
        own.pages.assert_all(value);
    }
    nothing_left((own, store));
}

#[test]
fn pages_that_were_never_touched_are_left_alone() {
    let _watch = Watchdog::new("pages_that_were_never_touched_are_left_alone");
    let store = Arc::new(PlainStore::default());
    let settings = Own::settings(PAGES, Arc::clone(&store) as _);
    let Some(own) = settings.build("pages_that_were_never_touched_are_left_alone") else { return };
    let moved = own.evict();
    assert_eq!((moved.moved, moved.stored, own.space.usage().out), (0, 0, 0));
    for page in [3, 4, 40] {
        own.pages.fill(page, value(page));
    }
    assert_eq!(own.evict().stored, 3);
    own.pages.assert_all(|page| if [3, 4, 40].contains(&page) { value(page) } else { 0 });
    nothing_left((own, store));
}

/// Many regions and two engines over one store: faults find their own.
#[test]
fn regions_of_two_engines_keep_out_of_each_others_way() {
    let _watch = Watchdog::new("regions_of_two_engines_keep_out_of_each_others_way");
    let name = "regions_of_two_engines_keep_out_of_each_others_way";
    let store = Arc::new(PlainStore::default());
    let settings = || Own::settings(PAGES, Arc::clone(&store) as _);
    let Some(first) = settings().build(name) else { return };
    let Some(second) = settings().build(name) else { return };
    let mut owns = Vec::new();
    for _ in 0..3 {
        owns.extend(settings().engine(&first.engine).build(name));
        owns.extend(settings().engine(&second.engine).build(name));
    }
    owns.extend([first, second]);
    std::thread::scope(|scope| {
        for (number, own) in (0..).zip(&owns) {
            scope.spawn(move || {
                let mine = |page: u64| number << 32 | (page + 1);
                own.pages.fill_all(mine);
                for _ in 0..10 {
                    own.evict();
                    own.pages.assert_all(mine);
                }
            });
        }
    });
    drop(owns);
    assert_eq!((store.len(), store.freed_twice()), (0, 0));
}

/// A program may divide a mapping without a word to anybody. Pages that came along with a touched one lay in another mapping then, and
/// the kernel refused them all together, again and again: the thread waited for ever.
#[test]
fn what_a_program_divides_comes_back_in_parts() {
    let name = "what_a_program_divides_comes_back_in_parts";
    let _watch = Watchdog::new(name);
    const MANY: u64 = 2048;
    let store = Arc::new(PlainStore::default());
    let Some(own) = Own::settings(MANY, Arc::clone(&store) as _).build(name) else { return };
    own.pages.fill_all(value);
    own.evict();
    for first in (3..MANY).step_by(101) {
        leave_out_of_dumps(own.pages.part(first, 1 + first % 7).span());
    }
    // All of it together; in order, which brings ever more along; and from the end, where the groups a page is in do.
    assert_eq!(own.space.bring_back(own.pages.span(), 64).unwrap(), MANY);
    for _ in 0..3 {
        own.evict();
        own.pages.assert_all(value);
        own.evict();
        for page in (0..MANY).rev() {
            assert_eq!(own.pages.read(page), Ok(value(page)));
        }
    }
    nothing_left((own, store));
}
