//! What is tested. A case that this machine can't run says why, as `Err`.

use std::os::unix::process::ExitStatusExt;

use userswap_ipc::Punished;
use userswap_ipc::contract::Contract;
use userswap_ipc::daemon::CONTRACT_FEATURES;
use userswap_ipc::extension::{DropHow, HintKind, MoveRange, MoveResult, MoveStop, Mover};
use userswap_ipc::{LinkError, SlotStack};
use userswap_uffd::{Event, Span, page_bytes};

use crate::daemon::{Process, Taken};

type Outcome = Result<(), String>;
type Case = (&'static str, fn() -> Outcome);

pub(crate) const CASES: &[Case] = &[
    ("strict_client_moves_there_and_back", strict_client_moves_there_and_back),
    ("a_client_that_made_the_handshake_itself", a_client_that_made_the_handshake_itself),
    ("extended_client_moves_by_mremap", extended_client_moves_by_mremap),
    ("extended_client_moves_by_uffdio_move", extended_client_moves_by_uffdio_move),
    ("bad_ranges_of_an_order_are_refused_one_by_one", bad_ranges_of_an_order_are_refused_one_by_one),
    ("a_failed_one_way_move_ends_the_client", a_failed_one_way_move_ends_the_client),
    ("a_failed_map_area_ends_the_client", a_failed_map_area_ends_the_client),
    ("an_unexpected_unmap_ends_a_strict_client", an_unexpected_unmap_ends_a_strict_client),
    (
        "an_unexpected_unmap_disconnects_an_extended_client",
        an_unexpected_unmap_disconnects_an_extended_client,
    ),
    ("strict_knows_no_orders", strict_knows_no_orders),
    ("hints_arrive", hints_arrive),
    ("a_dead_daemon_means_waiting", a_dead_daemon_means_waiting),
    ("a_client_without_privilege", a_client_without_privilege),
    ("superpages_hold_every_allocation", superpages_hold_every_allocation),
];

/// Region `index` of the client's memory, of 16 pages.
fn region(taken: &Taken, index: u64) -> Span {
    Span::from_pages(taken.memory.start() + index * 16 * page_bytes(), 16).unwrap()
}

fn is_remap(event: Event, from: Span, to: u64) {
    match event {
        Event::Remap { from: source, to: dest, len } => {
            assert_eq!((source, dest, len), (from.start(), to, from.len()));
        }
        other => panic!("{other:?}"),
    }
}

fn strict_client_moves_there_and_back() -> Outcome {
    moves_there_and_back(Taken::new(Contract::Strict, None)?)
}

fn a_client_that_made_the_handshake_itself() -> Outcome {
    let taken = Taken::named("handshaken", Contract::Strict, None)?;
    assert_eq!(taken.uffd.features(), CONTRACT_FEATURES);
    moves_there_and_back(taken)
}

fn moves_there_and_back(mut taken: Taken) -> Outcome {
    let mut slots = SlotStack::new(taken.swap_area, 16 * page_bytes()).unwrap();
    assert_eq!(slots.total(), 8);
    assert_eq!(taken.link.superpages(Some(0)).unwrap(), []);
    let used = taken.link.superpages(None).unwrap();
    assert_eq!(used.iter().map(|span| span.len()).sum::<u64>(), taken.memory.len());
    assert!(used.iter().all(|span| taken.memory.contains_span(span)));
    let one = taken.link.superpages(Some(1)).unwrap();
    assert!(one.iter().map(|span| span.len()).sum::<u64>() <= 2 << 20);

    for index in [0, 3, 3] {
        let region = region(&taken, index);
        let slot = slots.pop().unwrap();
        taken.register(region);
        taken.link.move_ptes(region, slot.span().start()).unwrap();
        is_remap(taken.event(), region, slot.span().start());
        taken.save(slot.span().start(), region);
        taken.link.map_area(slot.span()).unwrap();
        match taken.event() {
            Event::Unmap(span) => assert!(span == slot.span() && slots.covers(&span)),
            other => panic!("{other:?}"),
        }
        assert!(slots.push(slot));
        taken.assert_intact();
    }
    Ok(())
}

fn extended_client_moves_by_mremap() -> Outcome {
    let mut taken = Taken::new(Contract::Extended, None)?;
    let slots = taken.swap_area;
    let regions = [region(&taken, 1), region(&taken, 5)];
    let moves: Vec<MoveRange> = regions
        .iter()
        .zip([0, 1])
        .map(|(region, slot)| MoveRange {
            src: region.start(),
            len: region.len(),
            dest: slots.start() + slot * region.len(),
        })
        .collect();
    regions.iter().for_each(|region| taken.register(*region));
    let reply = taken.link.move_ranges(Mover::Remap, &moves).unwrap();
    let whole = MoveResult { moved: 16 * page_bytes(), stop: MoveStop::None };
    assert_eq!(reply.results, [whole, whole]);
    for (range, region) in moves.iter().zip(regions) {
        is_remap(taken.event(), region, range.dest);
        taken.save(range.dest, region);
    }
    let areas: Vec<Span> = moves.iter().map(|range| Span::new(range.dest, range.len).unwrap()).collect();
    taken.link.drop_areas(&areas, DropHow::MapArea).unwrap();
    for area in areas {
        assert!(matches!(taken.event(), Event::Unmap(span) if span == area));
    }
    taken.assert_intact();
    Ok(())
}

fn extended_client_moves_by_uffdio_move() -> Outcome {
    let mut taken = Taken::new(Contract::Extended, None)?;
    if !taken.uffd.features().contains(userswap_uffd::Features::MOVE) {
        return Err("this kernel has no UFFDIO_MOVE".into());
    }
    let staging = taken.staging.unwrap();
    let region = region(&taken, 2);
    taken.register(staging);
    taken.register(region);
    let range = MoveRange { src: region.start(), len: region.len(), dest: staging.start() };
    let reply = taken.link.move_ranges(Mover::UffdMove, &[range]).unwrap();
    assert_eq!(reply.results, [MoveResult { moved: region.len(), stop: MoveStop::None }]);
    taken.save(staging.start(), region);
    // The source is empty now: a hole is said to be one.
    let again = MoveRange { dest: staging.start() + region.len(), ..range };
    let reply = taken.link.move_ranges(Mover::UffdMove, &[again]).unwrap();
    assert_eq!(reply.results, [MoveResult { moved: 0, stop: MoveStop::Hole }]);
    let used = Span::new(staging.start(), region.len()).unwrap();
    taken.link.drop_areas(&[used], DropHow::DontNeed).unwrap();
    assert!(matches!(taken.event(), Event::Remove(span) if span == used));
    taken.assert_intact();
    Ok(())
}

fn bad_ranges_of_an_order_are_refused_one_by_one() -> Outcome {
    let mut taken = Taken::new(Contract::Extended, None)?;
    let good = region(&taken, 4);
    taken.register(good);
    let slot = taken.swap_area.start();
    let range = |src, len, dest| MoveRange { src, len, dest };
    let moves = [
        range(good.start() + 1, good.len(), slot),
        range(good.start(), 0, slot),
        range(good.start(), u64::MAX - 0xfff, slot),
        range(good.start(), good.len(), slot - page_bytes()),
        range(good.start(), good.len(), taken.swap_area.end() - page_bytes()),
        range(good.start(), good.len(), taken.staging.unwrap().start()),
        range(slot, good.len(), slot + good.len()),
        range(taken.staging.unwrap().start(), good.len(), slot),
        range(good.start(), good.len(), slot),
    ];
    // What would be a lie of the client's about lengths that can't be is asked for one at a time.
    let reply = taken.link.move_ranges(Mover::Remap, &moves[2..]).unwrap();
    let (last, refused) = reply.results.split_last().unwrap();
    assert!(refused.iter().all(|r| *r == MoveResult { moved: 0, stop: MoveStop::Refused }), "{refused:?}");
    assert_eq!(*last, MoveResult { moved: good.len(), stop: MoveStop::None });
    is_remap(taken.event(), good, slot);
    taken.save(slot, good);
    let reply = taken.link.move_ranges(Mover::Remap, &moves[..1]).unwrap();
    assert_eq!(reply.results, [MoveResult { moved: 0, stop: MoveStop::Refused }]);
    taken.assert_intact();
    Ok(())
}

/// The client ended by aborting.
fn aborted(taken: &mut Taken) {
    let status = taken.process().wait();
    assert_eq!(status.signal(), Some(6), "{status:?}");
    assert!(taken.peer.has_exited());
    assert!(matches!(taken.link.hints(), Err(LinkError::Closed)));
}

fn a_failed_one_way_move_ends_the_client() -> Outcome {
    for dest_outside in [true, false] {
        let mut taken = Taken::new(Contract::Strict, None)?;
        let region = region(&taken, 0);
        if dest_outside {
            taken.link.move_ptes(region, taken.memory.start() + region.len()).unwrap();
        } else {
            // Nothing is mapped in the first page of user space but what nobody may map.
            let nothing = Span::from_pages(page_bytes(), 1).unwrap();
            taken.link.move_ptes(nothing, taken.swap_area.start()).unwrap();
        }
        aborted(&mut taken);
    }
    Ok(())
}

fn a_failed_map_area_ends_the_client() -> Outcome {
    let mut taken = Taken::new(Contract::Strict, None)?;
    taken.link.map_area(region(&taken, 0)).unwrap();
    aborted(&mut taken);
    Ok(())
}

fn an_unexpected_unmap_ends_a_strict_client() -> Outcome {
    let mut taken = Taken::new(Contract::Strict, None)?;
    assert_eq!(taken.link.unexpected_unmap(&taken.peer).unwrap(), Punished::Killed);
    assert_eq!(taken.process().wait().signal(), Some(9));
    Ok(())
}

fn an_unexpected_unmap_disconnects_an_extended_client() -> Outcome {
    let mut taken = Taken::new(Contract::Extended, None)?;
    assert_eq!(taken.link.unexpected_unmap(&taken.peer).unwrap(), Punished::Disconnected);
    assert!(matches!(taken.link.superpages(None), Err(LinkError::Closed | LinkError::Transport(_))));
    taken.assert_intact();
    Ok(())
}

fn strict_knows_no_orders() -> Outcome {
    let taken = Taken::new(Contract::Strict, None)?;
    assert!(taken.staging.is_none() && taken.link.abilities().is_empty());
    let order = taken.link.move_ranges(Mover::Remap, &[]);
    assert!(matches!(order, Err(LinkError::NotAgreed { .. })));
    assert!(matches!(taken.link.drop_areas(&[], DropHow::MapArea), Err(LinkError::NotAgreed { .. })));
    Ok(())
}

fn hints_arrive() -> Outcome {
    let mut taken = Taken::new(Contract::Extended, None)?;
    assert_eq!(taken.link.hints().unwrap(), []);
    assert_eq!(taken.ask("hint"), "hinted");
    // One that comes while an answer is waited for is kept.
    taken.link.superpages(Some(0)).unwrap();
    let hints = taken.link.hints().unwrap();
    assert_eq!(hints.iter().map(|hint| (hint.kind, hint.value)).collect::<Vec<_>>(), [(HintKind::Frozen, 1)]);
    Ok(())
}

/// The agent keeps the userfaultfd: whoever touches what a dead daemon had waits, and doesn't read zeros.
fn a_dead_daemon_means_waiting() -> Outcome {
    let taken = Taken::new(Contract::Strict, None)?;
    let region = region(&taken, 0);
    taken.register(region);
    taken.link.move_ptes(region, taken.swap_area.start()).unwrap();
    is_remap(taken.event(), region, taken.swap_area.start());
    let mut process = taken.die();
    process.tell("wait on the first page");
    assert_eq!(process.hear(), "waiting");
    process.tell("end");
    assert_eq!(process.hear(), "Some(Closed)");
    Ok(())
}

/// A client that may not open `/dev/userfaultfd` is passed one, and the daemon makes the handshake.
fn a_client_without_privilege() -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return Err("only root can start a client as somebody else".into());
    }
    let mut taken = Taken::new(Contract::Extended, Some(65534))?;
    assert_eq!(taken.peer.uid(), 65534);
    let region = region(&taken, 7);
    taken.register(region);
    let range = MoveRange { src: region.start(), len: region.len(), dest: taken.swap_area.start() };
    let reply = taken.link.move_ranges(Mover::Remap, &[range]).unwrap();
    assert_eq!(reply.results, [MoveResult { moved: region.len(), stop: MoveStop::None }]);
    is_remap(taken.event(), region, range.dest);
    taken.save(range.dest, region);
    taken.assert_intact();
    Ok(())
}

fn superpages_hold_every_allocation() -> Outcome {
    let mut process = Process::start(&["superpages"], None).map_err(|e| e.to_string())?;
    assert_eq!(process.hear(), "inside");
    assert!(process.wait().success());
    Ok(())
}
