//! Every message and reply as bytes, worked out by hand from the layout rules. Left of the bar the bytes in the order
//! they are sent (all numbers little-endian), right of it where they come from. Offsets count from the message's start.
//!
//! The recurring parts:
//! - A version 0 message header is 24 (0x18) bytes: `18 00 00 00` its size, `00 00 00 00` its version, interface, ordinal,
//!   flags, trace nonce. Version 1 is 32 (0x20) bytes with `01 00 00 00` as version and the request id at its end.
//! - A struct's size counts its own 8-byte header: MemoryRegion is 8 + 8 + 8 = 24 = 0x18.
//! - A pointer holds the distance from its own offset to its object's.
#![allow(clippy::unwrap_used)]

use userswap_ipc::contract::{
    Contract, GetPartitionAllocSuperPagesUsed, MapArea, MemoryRegion, MovePtesLeavingMapping,
    TransferUserfaultFd,
};
use userswap_ipc::extension::{
    Agent, AgentKind, AgentReply, Drop, DropHow, Exclude, Hello, HelloReply, Hint, HintKind, Move, MoveRange,
    MoveReply, MoveResult, MoveStop, Mover, Retire, RetireReason, Staging, Unshare,
};
use userswap_ipc::wire::{Encoded, Envelope, RequestId, ToClient, ToDaemon, WireMessage};

/// The bytes left of the bars.
fn bytes(text: &str) -> Vec<u8> {
    text.lines()
        .flat_map(|line| line.split('|').next().unwrap_or_default().split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

/// The message encodes to exactly these bytes and handles, and these decode to exactly the message.
fn golden<M>(message: M, request: u64, handles: &[u32], text: &str)
where
    M: WireMessage<u32> + Clone + PartialEq + std::fmt::Debug,
{
    let expected = Encoded { bytes: bytes(text), handles: handles.to_vec() };
    assert_eq!(message.clone().encode(RequestId(request)), expected);
    let decoded = M::decode(&expected.bytes, expected.handles, Contract::Extended).unwrap();
    assert_eq!(decoded, Envelope { request: RequestId(request), message });
}

#[test]
fn transfer_userfault_fd() {
    // Fields: u64 at 0; the handle's u32 at 8; the next u64 needs a multiple of 8, so 12..16 stays a gap and it lies at
    // 16; the pointer at 24. 32 bytes of fields, 40 (0x28) with the header. 32 + 40 + 24 = 96 bytes.
    golden(
        ToDaemon::TransferUserfaultFd(TransferUserfaultFd {
            uffd_error: 0,
            uffd_handle: Some(77),
            mmap_error: 0,
            swap_area: MemoryRegion::new(0x1234_5678_9000, 0x64_0000),
        }),
        5,
        &[77],
        "20 00 00 00 01 00 00 00 | 0: header v1, 32 bytes
         00 00 00 00 00 00 00 00 | 8: interface 0 UserspaceSwapInitialization, ordinal 0
         05 00 00 00 00 00 00 00 | 16: flags 1 expects response + 4 sync, nonce
         05 00 00 00 00 00 00 00 | 24: request id
         28 00 00 00 00 00 00 00 | 32: parameters, 40 bytes, version 0
         00 00 00 00 00 00 00 00 | 40: uffd_error
         00 00 00 00 00 00 00 00 | 48: uffd_handle, the first handle; gap
         00 00 00 00 00 00 00 00 | 56: mmap_error
         08 00 00 00 00 00 00 00 | 64: swap_area, at 72 = 64 + 8
         18 00 00 00 00 00 00 00 | 72: MemoryRegion
         00 90 78 56 34 12 00 00 | 80: address
         00 00 64 00 00 00 00 00 | 88: length",
    );
}

#[test]
fn transfer_userfault_fd_reporting_errors() {
    // EPERM = 1 and ENOMEM = 12; no handle is ff ff ff ff; the area is {0, 0}, which is a struct all the same.
    golden(
        ToDaemon::TransferUserfaultFd(TransferUserfaultFd {
            uffd_error: 1,
            uffd_handle: None,
            mmap_error: 12,
            swap_area: MemoryRegion::default(),
        }),
        0x0102_0304_0506_0708,
        &[],
        "20 00 00 00 01 00 00 00
         00 00 00 00 00 00 00 00
         05 00 00 00 00 00 00 00
         08 07 06 05 04 03 02 01 | 24: request id, lowest byte first
         28 00 00 00 00 00 00 00
         01 00 00 00 00 00 00 00 | 40: uffd_error
         ff ff ff ff 00 00 00 00 | 48: no handle; gap
         0c 00 00 00 00 00 00 00 | 56: mmap_error
         08 00 00 00 00 00 00 00
         18 00 00 00 00 00 00 00
         00 00 00 00 00 00 00 00
         00 00 00 00 00 00 00 00",
    );
}

#[test]
fn transfer_userfault_fd_reply() {
    // No fields: a struct of its header alone. A reply to a sync call is sync itself: flags 2 + 4 = 6.
    golden(
        ToClient::<u32>::Transferred,
        5,
        &[],
        "20 00 00 00 01 00 00 00
         00 00 00 00 00 00 00 00 | 8: interface 0, ordinal 0
         06 00 00 00 00 00 00 00 | 16: flags
         05 00 00 00 00 00 00 00 | 24: the call's request id
         08 00 00 00 00 00 00 00 | 32: empty parameters",
    );
}

#[test]
fn move_ptes_leaving_mapping() {
    // One-way: header v0. Fields: pointer at 0, u64 at 8: 24 (0x18) bytes with the header. 24 + 24 + 24 = 72 bytes.
    golden(
        ToClient::<u32>::MovePtesLeavingMapping(MovePtesLeavingMapping {
            src: MemoryRegion::new(0x7f00_0001_0000, 0x1_0000),
            dest: 0x1234_5678_9000,
        }),
        0,
        &[],
        "18 00 00 00 00 00 00 00 | 0: header v0, 24 bytes
         01 00 00 00 00 00 00 00 | 8: interface 1 UserspaceSwap, ordinal 0
         00 00 00 00 00 00 00 00 | 16: flags, nonce
         18 00 00 00 00 00 00 00 | 24: parameters
         10 00 00 00 00 00 00 00 | 32: src, at 48 = 32 + 16
         00 90 78 56 34 12 00 00 | 40: dest
         18 00 00 00 00 00 00 00 | 48: MemoryRegion
         00 00 01 00 00 7f 00 00 | 56: address
         00 00 01 00 00 00 00 00 | 64: length",
    );
}

#[test]
fn map_area() {
    // One pointer: 16 (0x10) bytes of parameters. 24 + 16 + 24 = 64 bytes.
    golden(
        ToClient::<u32>::MapArea(MapArea { area: MemoryRegion::new(0x1234_5678_9000, 0x1_0000) }),
        0,
        &[],
        "18 00 00 00 00 00 00 00
         01 00 00 00 01 00 00 00 | 8: interface 1, ordinal 1
         00 00 00 00 00 00 00 00
         10 00 00 00 00 00 00 00 | 24: parameters
         08 00 00 00 00 00 00 00 | 32: area, at 40
         18 00 00 00 00 00 00 00 | 40: MemoryRegion
         00 90 78 56 34 12 00 00
         00 00 01 00 00 00 00 00",
    );
}

#[test]
fn get_partition_alloc_super_pages_used() {
    // An i32, rounded up to 8: 16 (0x10) bytes of parameters. -1 is ff ff ff ff.
    golden(
        ToClient::<u32>::GetPartitionAllocSuperPagesUsed(GetPartitionAllocSuperPagesUsed {
            max_superpages: -1,
        }),
        0x2a,
        &[],
        "20 00 00 00 01 00 00 00
         01 00 00 00 02 00 00 00 | 8: interface 1, ordinal 2
         01 00 00 00 00 00 00 00 | 16: flags 1 expects response
         2a 00 00 00 00 00 00 00 | 24: request id
         10 00 00 00 00 00 00 00 | 32: parameters
         ff ff ff ff 00 00 00 00 | 40: max_superpages; gap",
    );
}

#[test]
fn get_partition_alloc_super_pages_used_reply() {
    // Parameters: a pointer, 16 bytes. The array: 8 + 2 pointers of 8 = 24 (0x18) bytes for 2 elements, at 48. Then the
    // two regions at 72 and 96, 24 bytes each. 120 bytes.
    golden(
        ToDaemon::<u32>::SuperPagesUsed(vec![
            MemoryRegion::new(0x7f00_0020_0000, 0x40_0000),
            MemoryRegion::new(0x7f00_0080_0000, 0x20_0000),
        ]),
        0x2a,
        &[],
        "20 00 00 00 01 00 00 00
         01 00 00 00 02 00 00 00
         02 00 00 00 00 00 00 00 | 16: flags 2 is response
         2a 00 00 00 00 00 00 00
         10 00 00 00 00 00 00 00 | 32: parameters
         08 00 00 00 00 00 00 00 | 40: superpages, at 48
         18 00 00 00 02 00 00 00 | 48: array, 24 bytes, 2 elements
         10 00 00 00 00 00 00 00 | 56: first, at 72 = 56 + 16
         20 00 00 00 00 00 00 00 | 64: second, at 96 = 64 + 32
         18 00 00 00 00 00 00 00 | 72: MemoryRegion
         00 00 20 00 00 7f 00 00
         00 00 40 00 00 00 00 00
         18 00 00 00 00 00 00 00 | 96: MemoryRegion
         00 00 80 00 00 7f 00 00
         00 00 20 00 00 00 00 00",
    );
}

#[test]
fn get_partition_alloc_super_pages_used_empty_reply() {
    // An empty array is an object of its header alone, not a null pointer.
    golden(
        ToDaemon::<u32>::SuperPagesUsed(vec![]),
        1,
        &[],
        "20 00 00 00 01 00 00 00
         01 00 00 00 02 00 00 00
         02 00 00 00 00 00 00 00
         01 00 00 00 00 00 00 00
         10 00 00 00 00 00 00 00
         08 00 00 00 00 00 00 00 | 40: superpages, at 48
         08 00 00 00 00 00 00 00 | 48: array, 8 bytes, 0 elements",
    );
}

#[test]
fn hello() {
    // u32 at 0, gap, u64 at 8: 24 bytes of parameters.
    golden(
        ToDaemon::<u32>::Hello(Hello { version: 1, wants: 0x1f }),
        1,
        &[],
        "20 00 00 00 01 00 00 00
         00 01 00 00 00 00 00 00 | 8: interface 0x100, ordinal 0
         05 00 00 00 00 00 00 00 | 16: flags 1 + 4
         01 00 00 00 00 00 00 00
         18 00 00 00 00 00 00 00 | 32: parameters
         01 00 00 00 00 00 00 00 | 40: version; gap
         1f 00 00 00 00 00 00 00 | 48: wants",
    );
}

#[test]
fn hello_reply() {
    // version u32 at 0; granted u64 at 8; the handle's u32 takes the first gap that fits it, at 4; staging_pages u64 at 16. 24 bytes of
    // fields, 32 (0x20) with the header.
    golden(
        ToClient::Welcome(HelloReply { version: 1, granted: 0xf, uffd_device: Some(10), staging_pages: 512 }),
        1,
        &[10],
        "20 00 00 00 01 00 00 00
         00 01 00 00 00 00 00 00
         06 00 00 00 00 00 00 00 | 16: flags 2 + 4
         01 00 00 00 00 00 00 00
         20 00 00 00 00 00 00 00 | 32: parameters
         01 00 00 00 00 00 00 00 | 40: version, uffd_device = handle 0
         0f 00 00 00 00 00 00 00 | 48: granted
         00 02 00 00 00 00 00 00 | 56: staging_pages",
    );
}

#[test]
fn hello_reply_without_a_device() {
    golden(
        ToClient::Welcome(HelloReply { version: 1, granted: 4, uffd_device: None, staging_pages: 0 }),
        1,
        &[],
        "20 00 00 00 01 00 00 00
         00 01 00 00 00 00 00 00
         06 00 00 00 00 00 00 00
         01 00 00 00 00 00 00 00
         20 00 00 00 00 00 00 00
         01 00 00 00 ff ff ff ff | 40: version, no device
         04 00 00 00 00 00 00 00
         00 00 00 00 00 00 00 00",
    );
}

#[test]
fn staging() {
    golden(
        ToDaemon::<u32>::Staging(Staging { area: MemoryRegion::new(0x2345_0000_0000, 0x20_0000) }),
        2,
        &[],
        "20 00 00 00 01 00 00 00
         00 01 00 00 01 00 00 00 | 8: interface 0x100, ordinal 1
         05 00 00 00 00 00 00 00
         02 00 00 00 00 00 00 00
         10 00 00 00 00 00 00 00 | 32: parameters
         08 00 00 00 00 00 00 00 | 40: area, at 48
         18 00 00 00 00 00 00 00 | 48: MemoryRegion
         00 00 00 00 45 23 00 00
         00 00 20 00 00 00 00 00",
    );
}

#[test]
fn staging_reply() {
    golden(
        ToClient::<u32>::Staged,
        2,
        &[],
        "20 00 00 00 01 00 00 00
         00 01 00 00 01 00 00 00
         06 00 00 00 00 00 00 00
         02 00 00 00 00 00 00 00
         08 00 00 00 00 00 00 00",
    );
}

#[test]
fn hint() {
    golden(
        ToDaemon::<u32>::Hint(Hint { kind: HintKind::Frozen, value: 1 }),
        0,
        &[],
        "18 00 00 00 00 00 00 00 | 0: header v0
         00 01 00 00 02 00 00 00 | 8: interface 0x100, ordinal 2
         00 00 00 00 00 00 00 00
         18 00 00 00 00 00 00 00 | 24: parameters
         03 00 00 00 00 00 00 00 | 32: kind; gap
         01 00 00 00 00 00 00 00 | 40: value",
    );
}

#[test]
fn move_order() {
    // u32 at 0, gap, pointer at 8: 24 (0x18) bytes of parameters. Array at 56: 8 + 8 = 16 (0x10) bytes for one
    // element. The range: 8 + 3 × 8 = 32 bytes.
    golden(
        ToClient::<u32>::Move(Move {
            mover: Mover::UffdMove,
            moves: vec![MoveRange { src: 0x7f00_0001_0000, len: 0x2000, dest: 0x2345_0000_0000 }],
        }),
        3,
        &[],
        "20 00 00 00 01 00 00 00
         01 01 00 00 00 00 00 00 | 8: interface 0x101, ordinal 0
         01 00 00 00 00 00 00 00 | 16: flags 1
         03 00 00 00 00 00 00 00
         18 00 00 00 00 00 00 00 | 32: parameters
         01 00 00 00 00 00 00 00 | 40: mover; gap
         08 00 00 00 00 00 00 00 | 48: moves, at 56
         10 00 00 00 01 00 00 00 | 56: array, 16 bytes, 1 element
         08 00 00 00 00 00 00 00 | 64: the range, at 72
         20 00 00 00 00 00 00 00 | 72: range, 32 bytes
         00 00 01 00 00 7f 00 00 | 80: src
         00 20 00 00 00 00 00 00 | 88: len
         00 00 00 00 45 23 00 00 | 96: dest",
    );
}

#[test]
fn move_reply() {
    // A pointer: 16 (0x10) bytes of parameters. A result: 8 + 8 + 4 + gap 4 = 24 bytes.
    golden(
        ToDaemon::<u32>::Moved(MoveReply {
            results: vec![
                MoveResult { moved: 0x2000, stop: MoveStop::None },
                MoveResult { moved: 0x1000, stop: MoveStop::Pinned },
            ],
        }),
        3,
        &[],
        "20 00 00 00 01 00 00 00
         01 01 00 00 00 00 00 00
         02 00 00 00 00 00 00 00 | 16: flags 2
         03 00 00 00 00 00 00 00
         10 00 00 00 00 00 00 00 | 32: parameters
         08 00 00 00 00 00 00 00 | 40: results, at 48
         18 00 00 00 02 00 00 00 | 48: array, 24 bytes, 2 elements
         10 00 00 00 00 00 00 00 | 56: first, at 72
         20 00 00 00 00 00 00 00 | 64: second, at 96
         18 00 00 00 00 00 00 00 | 72: result
         00 20 00 00 00 00 00 00
         00 00 00 00 00 00 00 00
         18 00 00 00 00 00 00 00 | 96: result
         00 10 00 00 00 00 00 00
         04 00 00 00 00 00 00 00 | 120: stop; gap",
    );
}

#[test]
fn drop_order() {
    // pointer at 0, u32 at 8: 24 (0x18) bytes of parameters.
    golden(
        ToClient::<u32>::Drop(Drop {
            areas: vec![MemoryRegion::new(0x1234_5678_9000, 0x1_0000)],
            how: DropHow::DontNeed,
        }),
        4,
        &[],
        "20 00 00 00 01 00 00 00
         01 01 00 00 01 00 00 00 | 8: interface 0x101, ordinal 1
         01 00 00 00 00 00 00 00
         04 00 00 00 00 00 00 00
         18 00 00 00 00 00 00 00 | 32: parameters
         10 00 00 00 00 00 00 00 | 40: areas, at 56
         01 00 00 00 00 00 00 00 | 48: how; gap
         10 00 00 00 01 00 00 00 | 56: array, 1 element
         08 00 00 00 00 00 00 00 | 64: the region, at 72
         18 00 00 00 00 00 00 00 | 72: MemoryRegion
         00 90 78 56 34 12 00 00
         00 00 01 00 00 00 00 00",
    );
}

#[test]
fn drop_reply() {
    golden(
        ToDaemon::<u32>::Dropped,
        4,
        &[],
        "20 00 00 00 01 00 00 00
         01 01 00 00 01 00 00 00
         02 00 00 00 00 00 00 00
         04 00 00 00 00 00 00 00
         08 00 00 00 00 00 00 00",
    );
}

#[test]
fn agent() {
    // Three u32 at 0, 4, 8; a pointer needs a multiple of 8, so 12..16 stays a gap and the two lie at 16 and 24. 32 bytes of
    // fields, 40 (0x28) with the header. The sentinel at 72; the array behind it at 96: 8 + 2 × 8 = 24 (0x18) bytes.
    golden(
        ToDaemon::<u32>::Agent(Agent {
            kind: AgentKind::Forked,
            pid: 0x101,
            tid: 0x102,
            sentinel: MemoryRegion::new(0x7f00_0000_1000, 0x1000),
            ours: vec![
                MemoryRegion::new(0x7f00_0001_0000, 0x2_0000),
                MemoryRegion::new(0x2345_0000_0000, 0x20_0000),
            ],
        }),
        3,
        &[],
        "20 00 00 00 01 00 00 00
         00 01 00 00 03 00 00 00 | 8: interface 0x100, ordinal 3
         05 00 00 00 00 00 00 00 | 16: flags 1 + 4
         03 00 00 00 00 00 00 00
         28 00 00 00 00 00 00 00 | 32: parameters, 40 bytes
         01 00 00 00 01 01 00 00 | 40: kind, pid
         02 01 00 00 00 00 00 00 | 48: tid; gap
         10 00 00 00 00 00 00 00 | 56: sentinel, at 72 = 56 + 16
         20 00 00 00 00 00 00 00 | 64: ours, at 96 = 64 + 32
         18 00 00 00 00 00 00 00 | 72: MemoryRegion
         00 10 00 00 00 7f 00 00
         00 10 00 00 00 00 00 00
         18 00 00 00 02 00 00 00 | 96: array, 24 bytes, 2 elements
         10 00 00 00 00 00 00 00 | 104: first, at 120
         20 00 00 00 00 00 00 00 | 112: second, at 144
         18 00 00 00 00 00 00 00 | 120: MemoryRegion
         00 00 01 00 00 7f 00 00
         00 00 02 00 00 00 00 00
         18 00 00 00 00 00 00 00 | 144: MemoryRegion
         00 00 00 00 45 23 00 00
         00 00 20 00 00 00 00 00",
    );
}

#[test]
fn agent_reply() {
    // The handle's u32 alone, rounded up to 8: 16 (0x10) bytes with the header.
    golden(
        ToClient::Enlisted(AgentReply { uffd: Some(88) }),
        3,
        &[88],
        "20 00 00 00 01 00 00 00
         00 01 00 00 03 00 00 00
         06 00 00 00 00 00 00 00 | 16: flags 2 + 4
         03 00 00 00 00 00 00 00
         10 00 00 00 00 00 00 00 | 32: parameters
         00 00 00 00 00 00 00 00 | 40: uffd, the first handle; gap",
    );
    golden(
        ToClient::<u32>::Enlisted(AgentReply { uffd: None }),
        3,
        &[],
        "20 00 00 00 01 00 00 00
         00 01 00 00 03 00 00 00
         06 00 00 00 00 00 00 00
         03 00 00 00 00 00 00 00
         10 00 00 00 00 00 00 00
         ff ff ff ff 00 00 00 00 | 40: no handle; gap",
    );
}

#[test]
fn exclude() {
    // A pointer at 0: 16 (0x10) bytes of parameters; the region at 48.
    golden(
        ToDaemon::<u32>::Exclude(Exclude { area: MemoryRegion::new(0x7f00_0001_0000, 0x4000) }),
        9,
        &[],
        "20 00 00 00 01 00 00 00
         00 01 00 00 04 00 00 00 | 8: interface 0x100, ordinal 4
         01 00 00 00 00 00 00 00 | 16: flags 1
         09 00 00 00 00 00 00 00
         10 00 00 00 00 00 00 00 | 32: parameters
         08 00 00 00 00 00 00 00 | 40: area, at 48
         18 00 00 00 00 00 00 00 | 48: MemoryRegion
         00 00 01 00 00 7f 00 00
         00 40 00 00 00 00 00 00",
    );
}

#[test]
fn exclude_reply() {
    golden(
        ToClient::<u32>::Excluded,
        9,
        &[],
        "20 00 00 00 01 00 00 00
         00 01 00 00 04 00 00 00
         02 00 00 00 00 00 00 00 | 16: flags 2
         09 00 00 00 00 00 00 00
         08 00 00 00 00 00 00 00",
    );
}

#[test]
fn retire() {
    golden(
        ToDaemon::<u32>::Retire(Retire { why: RetireReason::Unshare }),
        10,
        &[],
        "20 00 00 00 01 00 00 00
         00 01 00 00 05 00 00 00 | 8: interface 0x100, ordinal 5
         01 00 00 00 00 00 00 00
         0a 00 00 00 00 00 00 00
         10 00 00 00 00 00 00 00 | 32: parameters
         02 00 00 00 00 00 00 00 | 40: why; gap",
    );
}

#[test]
fn retire_reply() {
    golden(
        ToClient::<u32>::Retired,
        10,
        &[],
        "20 00 00 00 01 00 00 00
         00 01 00 00 05 00 00 00
         02 00 00 00 00 00 00 00
         0a 00 00 00 00 00 00 00
         08 00 00 00 00 00 00 00",
    );
}

#[test]
fn unshare_order() {
    // One pointer: 16 (0x10) bytes of parameters. The array at 48: 8 + 8 bytes; the region at 64.
    golden(
        ToClient::<u32>::Unshare(Unshare { areas: vec![MemoryRegion::new(0x7f00_0001_0000, 0x4000)] }),
        11,
        &[],
        "20 00 00 00 01 00 00 00
         01 01 00 00 02 00 00 00 | 8: interface 0x101, ordinal 2
         01 00 00 00 00 00 00 00
         0b 00 00 00 00 00 00 00
         10 00 00 00 00 00 00 00 | 32: parameters
         08 00 00 00 00 00 00 00 | 40: areas, at 48
         10 00 00 00 01 00 00 00 | 48: array, 1 element
         08 00 00 00 00 00 00 00 | 56: the region, at 64
         18 00 00 00 00 00 00 00 | 64: MemoryRegion
         00 00 01 00 00 7f 00 00
         00 40 00 00 00 00 00 00",
    );
}

#[test]
fn unshare_reply() {
    golden(
        ToDaemon::<u32>::Unshared,
        11,
        &[],
        "20 00 00 00 01 00 00 00
         01 01 00 00 02 00 00 00
         02 00 00 00 00 00 00 00
         0b 00 00 00 00 00 00 00
         08 00 00 00 00 00 00 00",
    );
}
