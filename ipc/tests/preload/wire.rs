//! The agent's hand-written messages against those of the crate: the same bytes, read the same.

use userswap_ipc::contract::{Contract, MemoryRegion, TransferUserfaultFd};
use userswap_ipc::extension::{
    Agent, AgentKind, AgentReply, Drop, DropHow, Exclude, Hello, HelloReply, Move, MoveRange, MoveReply,
    MoveResult, MoveStop, Mover, Retire, RetireReason, Staging, Unshare, VERSION,
};
use userswap_ipc::wire::{RequestId, ToClient, ToDaemon, WireMessage};

use object::{MAX_SENT, Message, Region, parse};

#[path = "../../preload/object/wire.rs"]
#[allow(dead_code)]
mod object;

const REQUEST: u64 = 0x0102_0304_0506_0708;

fn region(address: u64, length: u64) -> (Region, MemoryRegion) {
    (Region { address, length }, MemoryRegion { address, length })
}

fn same(bytes: Option<&[u8]>, message: ToDaemon<u32>) {
    let encoded = message.clone().encode(RequestId(REQUEST));
    assert_eq!(bytes, Some(encoded.bytes.as_slice()), "{message:?}");
}

/// What the agent writes is what the crate writes.
pub(crate) fn sent() -> Option<String> {
    let mut buffer = vec![0xee; MAX_SENT];
    let buffer = buffer.as_mut_slice();
    let (area, area_too) = region(0x2345_0000_0000, 0x20_0000);
    let (other, other_too) = region(0x7f00_0000_1000, 0x1000);
    same(object::hello(buffer, REQUEST, 0x2b), ToDaemon::Hello(Hello { version: VERSION, wants: 0x2b }));
    same(object::staging(buffer, REQUEST, area), ToDaemon::Staging(Staging { area: area_too }));
    for count in [0, 1, 5] {
        let (ours, ours_too) = (vec![other; count], vec![other_too; count]);
        for (forked, kind) in [(false, AgentKind::Exec), (true, AgentKind::Forked)] {
            let agent = object::Agent { forked, pid: 0x101, tid: 0x102, sentinel: area, ours: &ours };
            let ours = ours_too.clone();
            let agent_too = Agent { kind, pid: 0x101, tid: 0x102, sentinel: area_too, ours };
            same(object::agent(buffer, REQUEST, &agent), ToDaemon::Agent(agent_too));
        }
    }
    for (uffd_error, mmap_error, uffd_handle) in [(0, 0, Some(7)), (1, 0, None), (0, 12, None)] {
        let transfer = TransferUserfaultFd { uffd_error, uffd_handle, mmap_error, swap_area: area_too };
        let bytes = object::transfer(buffer, REQUEST, uffd_error, mmap_error, area);
        same(bytes, ToDaemon::TransferUserfaultFd(transfer));
    }
    same(object::exclude(buffer, REQUEST, area), ToDaemon::Exclude(Exclude { area: area_too }));
    for (code, why) in [(0, RetireReason::Seccomp), (1, RetireReason::Setns), (2, RetireReason::Unshare)] {
        same(object::retire(buffer, REQUEST, code), ToDaemon::Retire(Retire { why }));
    }
    same(object::dropped(buffer, REQUEST), ToDaemon::Dropped);
    same(object::unshared(buffer, REQUEST), ToDaemon::Unshared);
    let stops = [
        (object::stop::NONE, MoveStop::None),
        (object::stop::PRESENT, MoveStop::Present),
        (object::stop::BUSY, MoveStop::Busy),
        (object::stop::PINNED, MoveStop::Pinned),
        (object::stop::HOLE, MoveStop::Hole),
        (object::stop::NO_MEMORY, MoveStop::NoMemory),
        (object::stop::REFUSED, MoveStop::Refused),
        (object::stop::WAS_SHARED, MoveStop::WasShared),
    ];
    for count in [0, 1, stops.len(), object::MAX_MOVES] {
        let at = |index: usize| (index as u64 * 0x1000, stops[index % stops.len()]);
        let results =
            (0..count).map(|index| MoveResult { moved: at(index).0, stop: at(index).1.1 }).collect();
        let bytes = object::moved(buffer, REQUEST, count, |index| (at(index).0, at(index).1.0));
        same(bytes, ToDaemon::Moved(MoveReply { results }));
    }
    // What doesn't fit isn't sent in part.
    assert_eq!(object::hello(&mut [0; 55], REQUEST, 0), None);
    None
}

/// What the crate writes is what the agent reads; what is cut off or changed isn't read, or as something the crate reads, too.
pub(crate) fn received() -> Option<String> {
    let read = |message: ToClient<u32>, check: &dyn Fn(Message<'_>)| {
        let encoded = message.encode(RequestId(REQUEST));
        let (request, read) = parse(&encoded.bytes).unwrap();
        assert_eq!(request, REQUEST);
        check(read);
        for end in 0..encoded.bytes.len() {
            assert_eq!(parse(&encoded.bytes[..end]), None);
        }
        for at in 0..encoded.bytes.len().min(200) {
            for change in [1, 8, 0x80] {
                let mut changed = encoded.bytes.clone();
                changed[at] ^= change;
                let known = parse(&changed).is_some();
                let decoded = ToClient::<u32>::decode(&changed, encoded.handles.clone(), Contract::Extended);
                // Codes the agent looks at only when it acts, handles when it takes them.
                assert!(!known || decoded.is_ok() || is_code_or_handle(at), "{at}: {decoded:?}");
            }
        }
    };
    let equals = |wanted: Message<'static>| move |message: Message<'_>| assert_eq!(message, wanted);
    for (device, staging_pages) in [(Some(3), 512), (None, 0)] {
        let reply = HelloReply { version: VERSION, granted: 0x2b, uffd_device: device, staging_pages };
        let device = device.is_some();
        let wanted = Message::Welcome { version: VERSION, granted: 0x2b, device, staging_pages };
        read(ToClient::Welcome(reply), &equals(wanted));
    }
    read(ToClient::Staged, &equals(Message::Staged));
    read(ToClient::Enlisted(AgentReply { uffd: Some(1) }), &equals(Message::Enlisted { uffd: true }));
    read(ToClient::Enlisted(AgentReply { uffd: None }), &equals(Message::Enlisted { uffd: false }));
    read(ToClient::Transferred, &equals(Message::Transferred));
    read(ToClient::Excluded, &equals(Message::Excluded));
    read(ToClient::Retired, &equals(Message::Retired));
    for count in [0, 1, object::MAX_MOVES as u64, object::MAX_DROPS as u64] {
        let areas: Vec<MemoryRegion> =
            (1..=count).map(|n| MemoryRegion::new(n * 0x1000, n * 0x2000)).collect();
        let moves =
            areas.iter().map(|area| MoveRange { src: area.address, len: area.length, dest: 7 }).collect();
        let check = |elements: object::Elements<'_>| {
            assert_eq!(elements.count as u64, count);
            for (index, area) in areas.iter().enumerate() {
                assert_eq!(elements.region(index), region(area.address, area.length).0);
            }
        };
        if areas.len() <= object::MAX_MOVES {
            read(ToClient::Move(Move { mover: Mover::UffdMove, moves }), &|message| match message {
                Message::Move { mover: 1, ranges } => {
                    check(ranges);
                    assert!((0..ranges.count).all(|index| ranges.field(index, 2) == 7));
                }
                other => panic!("{other:?}"),
            });
        }
        let drop = Drop { areas: areas.clone(), how: DropHow::DontNeed };
        read(ToClient::Drop(drop), &|message| match message {
            Message::Drop { how: 1, areas } => check(areas),
            other => panic!("{other:?}"),
        });
        read(ToClient::Unshare(Unshare { areas: areas.clone() }), &|message| match message {
            Message::Unshare { areas } => check(areas),
            other => panic!("{other:?}"),
        });
    }
    None
}

/// Where messages have a code or a handle's index.
fn is_code_or_handle(at: usize) -> bool {
    (40..60).contains(&at)
}
