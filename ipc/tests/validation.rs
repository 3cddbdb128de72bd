//! What isn't a message has a name: each rule broken once, then prefixes, mutations and arbitrary bytes.
#![allow(clippy::unwrap_used)]

use proptest::collection::vec;
use proptest::prelude::*;
use userswap_ipc::contract::{
    Contract, GetPartitionAllocSuperPagesUsed, MapArea, MemoryRegion, MovePtesLeavingMapping,
    TransferUserfaultFd,
};
use userswap_ipc::extension::{
    Agent, AgentKind, AgentReply, Drop, DropHow, Exclude, Hello, HelloReply, Hint, HintKind, MAX_MOVES,
    MAX_OURS, Move, MoveRange, MoveReply, MoveResult, MoveStop, Mover, Retire, RetireReason, Staging,
    Unshare,
};
use userswap_ipc::wire::{
    Encoded, Envelope, MAX_HANDLES, MAX_MESSAGE_BYTES, MAX_REGIONS, RequestId, ToClient, ToDaemon,
    ValidationError, WireMessage,
};

type Reason = ValidationError;

fn transfer() -> Encoded<u32> {
    let transfer = TransferUserfaultFd {
        uffd_error: 0,
        uffd_handle: Some(7),
        mmap_error: 0,
        swap_area: MemoryRegion::new(0x1000, 0x1000),
    };
    ToDaemon::TransferUserfaultFd(transfer).encode(RequestId(1))
}

fn superpages() -> Encoded<u32> {
    let regions = vec![MemoryRegion::new(0x1000, 0x1000), MemoryRegion::new(0x3000, 0x1000)];
    ToDaemon::<u32>::SuperPagesUsed(regions).encode(RequestId(1))
}

/// What the daemon says to `encoded` with the bytes at `at` replaced.
fn with(mut encoded: Encoded<u32>, at: usize, bytes: &[u8]) -> Reason {
    encoded.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    refused(encoded)
}

fn refused(encoded: Encoded<u32>) -> Reason {
    ToDaemon::decode(&encoded.bytes, encoded.handles, Contract::Extended).unwrap_err()
}

#[test]
fn message_too_large() {
    let mut encoded = transfer();
    encoded.bytes.resize(MAX_MESSAGE_BYTES + 8, 0);
    assert_eq!(refused(encoded), Reason::MessageTooLarge { bytes: MAX_MESSAGE_BYTES + 8 });
}

#[test]
fn too_many_handles() {
    let mut encoded = transfer();
    encoded.handles = vec![0; MAX_HANDLES + 1];
    assert_eq!(refused(encoded), Reason::TooManyHandles { handles: MAX_HANDLES + 1 });
}

#[test]
fn misaligned_object() {
    // The swap area's pointer, at 64, off by four.
    assert_eq!(with(transfer(), 64, &[12]), Reason::MisalignedObject { at: 76 });
}

#[test]
fn illegal_memory_range() {
    // The swap area at the message's end, where no header fits.
    assert_eq!(with(transfer(), 64, &[32]), Reason::IllegalMemoryRange { at: 96, len: 8, bytes: 96 });
    let mut cut = transfer();
    cut.bytes.truncate(88);
    assert_eq!(refused(cut), Reason::IllegalMemoryRange { at: 72, len: 24, bytes: 88 });
}

#[test]
fn overlapping_objects() {
    // The second region's pointer, at 64, to the first region, at 72.
    assert_eq!(with(superpages(), 64, &[8]), Reason::Overlap { at: 72, claimed: 96 });
}

#[test]
fn backward_and_outside_pointers() {
    let back = (-32_i64).to_le_bytes();
    let offset = u64::from_le_bytes(back);
    assert_eq!(with(transfer(), 64, &back), Reason::IllegalPointer { at: 64, offset });
    assert_eq!(with(transfer(), 64, &[40]), Reason::IllegalPointer { at: 64, offset: 40 });
}

#[test]
fn unexpected_null_pointer() {
    assert_eq!(with(transfer(), 64, &[0]), Reason::UnexpectedNullPointer { at: 64 });
    assert_eq!(with(superpages(), 40, &[0]), Reason::UnexpectedNullPointer { at: 40 });
    assert_eq!(with(superpages(), 64, &[0]), Reason::UnexpectedNullPointer { at: 64 });
}

#[test]
fn unexpected_struct_header() {
    // Parameters of another size, of another version; a region of another size.
    let header = |at, bytes, version| Reason::UnexpectedStructHeader { at, bytes, version };
    assert_eq!(with(transfer(), 32, &[0x20]), header(32, 32, 0));
    assert_eq!(with(transfer(), 36, &[1]), header(32, 40, 1));
    assert_eq!(with(transfer(), 72, &[0x10]), header(72, 16, 0));
}

#[test]
fn unexpected_array_header() {
    let header = |bytes, elements| Reason::UnexpectedArrayHeader { at: 48, bytes, elements };
    assert_eq!(with(superpages(), 52, &[3]), header(24, 3));
    assert_eq!(with(superpages(), 48, &[0x19]), header(25, 2));
    // 8 × 0x20000001 + 8 is 16 in 32 bits: the sizes are compared without wrapping.
    assert_eq!(with(superpages(), 48, &[16, 0, 0, 0, 1, 0, 0, 0x20]), header(16, 0x2000_0001));
}

#[test]
fn too_many_elements() {
    let moves = vec![MoveRange { src: 0, len: 0, dest: 0 }; MAX_MOVES + 1];
    let order = ToClient::<u32>::Move(Move { mover: Mover::Remap, moves });
    let encoded = order.encode(RequestId(1));
    let reason = ToClient::<u32>::decode(&encoded.bytes, vec![], Contract::Extended).unwrap_err();
    assert_eq!(reason, Reason::TooManyElements { at: 56, elements: MAX_MOVES + 1, most: MAX_MOVES });
    let agent = Agent {
        kind: AgentKind::Exec,
        pid: 1,
        tid: 2,
        sentinel: MemoryRegion::default(),
        ours: vec![MemoryRegion::default(); MAX_OURS + 1],
    };
    let reason = refused(ToDaemon::Agent(agent).encode(RequestId(1)));
    assert_eq!(reason, Reason::TooManyElements { at: 96, elements: MAX_OURS + 1, most: MAX_OURS });
}

#[test]
fn the_largest_superpage_answer_fits() {
    let regions = vec![MemoryRegion::new(0x20_0000, 0x20_0000); MAX_REGIONS];
    let encoded = ToDaemon::<u32>::SuperPagesUsed(regions.clone()).encode(RequestId(1));
    assert!(encoded.bytes.len() <= MAX_MESSAGE_BYTES);
    let decoded = ToDaemon::<u32>::decode(&encoded.bytes, vec![], Contract::Strict).unwrap();
    assert_eq!(decoded.message, ToDaemon::SuperPagesUsed(regions));
}

#[test]
fn illegal_handle() {
    let reason = Reason::IllegalHandle { at: 48, index: 1, handles: 1 };
    assert_eq!(with(transfer(), 48, &[1]), reason);
    let mut none = transfer();
    none.handles.clear();
    assert_eq!(refused(none), Reason::IllegalHandle { at: 48, index: 0, handles: 0 });
}

#[test]
fn unused_handles() {
    let mut encoded = transfer();
    encoded.handles.push(8);
    assert_eq!(refused(encoded), Reason::UnusedHandles { handles: 1 });
    assert_eq!(with(transfer(), 48, &[255; 4]), Reason::UnusedHandles { handles: 1 });
}

#[test]
fn unclaimed_bytes() {
    let mut encoded = transfer();
    encoded.bytes.extend([0; 8]);
    assert_eq!(refused(encoded), Reason::UnclaimedBytes { from: 96, to: 104 });
    // A gap between two objects: the second region a struct further on.
    let mut gap = superpages();
    gap.bytes.extend([0; 24]);
    gap.bytes[64] = 56;
    assert_eq!(refused(gap), Reason::UnclaimedBytes { from: 96, to: 120 });
}

#[test]
fn unexpected_message_header() {
    let header = |bytes, version| Reason::UnexpectedMessageHeader { bytes, version };
    assert_eq!(with(transfer(), 0, &[24]), header(24, 1));
    assert_eq!(with(transfer(), 4, &[0]), header(32, 0));
    assert_eq!(with(transfer(), 4, &[2]), header(32, 2));
}

#[test]
fn message_header_flags() {
    assert_eq!(with(transfer(), 16, &[3]), Reason::MessageHeaderInvalidFlags { flags: 3 });
    assert_eq!(with(transfer(), 16, &[8]), Reason::MessageHeaderInvalidFlags { flags: 8 });
    let kind = |flags| Reason::UnexpectedMessageKind { method: "TransferUserfaultFD", flags };
    assert_eq!(with(transfer(), 16, &[0]), kind(0));
    assert_eq!(with(transfer(), 16, &[1]), kind(1));
    assert_eq!(with(transfer(), 16, &[6]), kind(6));
}

#[test]
fn message_header_request_id() {
    assert_eq!(with(transfer(), 24, &[0]), Reason::MessageHeaderMissingRequestId);
    // The same call under a version 0 header, which has no room for one.
    let mut short = transfer();
    short.bytes.drain(24..32);
    short.bytes[0] = 24;
    short.bytes[4] = 0;
    assert_eq!(refused(short), Reason::MessageHeaderMissingRequestId);
    // A one-way call under a version 1 header, which has one.
    let mut hint = ToDaemon::<u32>::Hint(Hint { kind: HintKind::Visible, value: 1 }).encode(RequestId(0));
    hint.bytes.splice(24..24, [1, 0, 0, 0, 0, 0, 0, 0]);
    hint.bytes[0] = 32;
    hint.bytes[4] = 1;
    assert_eq!(refused(hint), Reason::UnexpectedRequestId);
}

#[test]
fn unknown_method() {
    assert_eq!(with(transfer(), 8, &[2]), Reason::UnknownMethod { interface: 2, ordinal: 0 });
    assert_eq!(with(transfer(), 12, &[1]), Reason::UnknownMethod { interface: 0, ordinal: 1 });
}

#[test]
fn a_call_that_only_the_other_side_receives() {
    let order = MapArea { area: MemoryRegion::new(0, 0) };
    let encoded = ToClient::<u32>::MapArea(order).encode(RequestId(0));
    assert_eq!(refused(encoded), Reason::UnknownMethod { interface: 1, ordinal: 1 });
    let encoded = transfer();
    let reason = ToClient::decode(&encoded.bytes, encoded.handles, Contract::Extended).unwrap_err();
    assert_eq!(reason, Reason::UnexpectedMessageKind { method: "TransferUserfaultFD", flags: 5 });
}

#[test]
fn unknown_enum_value() {
    let encoded = ToDaemon::<u32>::Hint(Hint { kind: HintKind::Visible, value: 1 }).encode(RequestId(0));
    assert_eq!(with(encoded, 32, &[4]), Reason::UnknownEnumValue { name: "HintKind", value: 4 });
}

#[test]
fn strict_knows_no_extension() {
    let encoded = ToDaemon::<u32>::Hello(Hello { version: 1, wants: 0 }).encode(RequestId(1));
    let reason = ToDaemon::<u32>::decode(&encoded.bytes, vec![], Contract::Strict).unwrap_err();
    assert_eq!(reason, Reason::NotInContract { interface: 0x100 });
    let order = ToClient::<u32>::Drop(Drop { areas: vec![], how: DropHow::MapArea });
    let encoded = order.encode(RequestId(1));
    let reason = ToClient::<u32>::decode(&encoded.bytes, vec![], Contract::Strict).unwrap_err();
    assert_eq!(reason, Reason::NotInContract { interface: 0x101 });
}

#[test]
fn padding_and_nonce_are_ignored() {
    let mut encoded = transfer();
    encoded.bytes[20..24].fill(0xaa);
    encoded.bytes[52..56].fill(0xbb);
    let original = transfer();
    assert_eq!(
        ToDaemon::decode(&encoded.bytes, encoded.handles, Contract::Strict),
        ToDaemon::decode(&original.bytes, original.handles, Contract::Strict)
    );
}

fn region() -> impl Strategy<Value = MemoryRegion> {
    any::<(u64, u64)>().prop_map(|(address, length)| MemoryRegion { address, length })
}

fn one_of<T: Copy + std::fmt::Debug + 'static>(values: &'static [T]) -> impl Strategy<Value = T> {
    (0..values.len()).prop_map(move |index| values[index])
}

fn to_daemon() -> impl Strategy<Value = ToDaemon<u32>> {
    let stop = one_of(&[
        MoveStop::None,
        MoveStop::Present,
        MoveStop::Busy,
        MoveStop::Unmapped,
        MoveStop::Pinned,
        MoveStop::Hole,
        MoveStop::NoMemory,
        MoveStop::Refused,
        MoveStop::WasShared,
    ]);
    let kind = one_of(&[HintKind::Visible, HintKind::Audible, HintKind::Loading, HintKind::Frozen]);
    let agent_kind = one_of(&[AgentKind::Exec, AgentKind::Forked]);
    let why = one_of(&[RetireReason::Seccomp, RetireReason::Setns, RetireReason::Unshare]);
    let result = (any::<u64>(), stop).prop_map(|(moved, stop)| MoveResult { moved, stop });
    prop_oneof![
        (any::<(u64, Option<u32>, u64)>(), region()).prop_map(
            |((uffd_error, uffd_handle, mmap_error), swap_area)| {
                ToDaemon::TransferUserfaultFd(TransferUserfaultFd {
                    uffd_error,
                    uffd_handle,
                    mmap_error,
                    swap_area,
                })
            }
        ),
        vec(region(), 0..50).prop_map(ToDaemon::SuperPagesUsed),
        any::<(u32, u64)>().prop_map(|(version, wants)| ToDaemon::Hello(Hello { version, wants })),
        region().prop_map(|area| ToDaemon::Staging(Staging { area })),
        (kind, any::<u64>()).prop_map(|(kind, value)| ToDaemon::Hint(Hint { kind, value })),
        vec(result, 0..50).prop_map(|results| ToDaemon::Moved(MoveReply { results })),
        Just(ToDaemon::Dropped),
        (agent_kind, any::<(u32, u32)>(), region(), vec(region(), 0..=MAX_OURS)).prop_map(
            |(kind, (pid, tid), sentinel, ours)| ToDaemon::Agent(Agent { kind, pid, tid, sentinel, ours })
        ),
        region().prop_map(|area| ToDaemon::Exclude(Exclude { area })),
        why.prop_map(|why| ToDaemon::Retire(Retire { why })),
        Just(ToDaemon::Unshared),
    ]
}

fn to_client() -> impl Strategy<Value = ToClient<u32>> {
    let range = any::<(u64, u64, u64)>().prop_map(|(src, len, dest)| MoveRange { src, len, dest });
    let mover = one_of(&[Mover::Remap, Mover::UffdMove]);
    let how = one_of(&[DropHow::MapArea, DropHow::DontNeed]);
    prop_oneof![
        Just(ToClient::Transferred),
        (region(), any::<u64>())
            .prop_map(|(src, dest)| ToClient::MovePtesLeavingMapping(MovePtesLeavingMapping { src, dest })),
        region().prop_map(|area| ToClient::MapArea(MapArea { area })),
        any::<i32>().prop_map(|max_superpages| ToClient::GetPartitionAllocSuperPagesUsed(
            GetPartitionAllocSuperPagesUsed { max_superpages }
        )),
        any::<(u32, u64, Option<u32>, u64)>().prop_map(|(version, granted, uffd_device, staging_pages)| {
            ToClient::Welcome(HelloReply { version, granted, uffd_device, staging_pages })
        }),
        Just(ToClient::Staged),
        (mover, vec(range, 0..50)).prop_map(|(mover, moves)| ToClient::Move(Move { mover, moves })),
        (vec(region(), 0..50), how).prop_map(|(areas, how)| ToClient::Drop(Drop { areas, how })),
        any::<Option<u32>>().prop_map(|uffd| ToClient::Enlisted(AgentReply { uffd })),
        Just(ToClient::Excluded),
        Just(ToClient::Retired),
        vec(region(), 0..50).prop_map(|areas| ToClient::Unshare(Unshare { areas })),
    ]
}

/// Whatever decodes is a message: it encodes, and decodes to itself again.
fn decodes_or_is_refused<M>(bytes: &[u8], handles: usize, contract: Contract)
where
    M: WireMessage<u32> + Clone + PartialEq + std::fmt::Debug,
{
    let handles: Vec<u32> = (0..8).cycle().take(handles).collect();
    match M::decode(bytes, handles, contract) {
        Ok(Envelope { request, message }) => {
            let again = message.clone().encode(request);
            assert_eq!(again.bytes.len(), bytes.len());
            let decoded = M::decode(&again.bytes, again.handles, contract).unwrap();
            assert_eq!(decoded, Envelope { request, message });
        }
        Err(reason) => assert!(!reason.to_string().is_empty()),
    }
}

/// A message survives the way there; no part of its bytes is a message; and whatever a byte is changed to is judged.
fn survives<M>(message: &M, request: u64, at: prop::sample::Index, byte: u8)
where
    M: WireMessage<u32> + Clone + PartialEq + std::fmt::Debug,
{
    let encoded = message.clone().encode(RequestId(request));
    let decoded = M::decode(&encoded.bytes, encoded.handles.clone(), Contract::Extended).unwrap();
    assert_eq!(&decoded.message, message);
    assert!(decoded.request == RequestId(request) || decoded.request == RequestId(0));
    for end in 0..encoded.bytes.len() {
        M::decode(&encoded.bytes[..end], encoded.handles.clone(), Contract::Extended).unwrap_err();
    }
    let mut mutated = encoded.bytes.clone();
    mutated[at.index(encoded.bytes.len())] = byte;
    decodes_or_is_refused::<M>(&mutated, encoded.handles.len(), Contract::Extended);
}

proptest! {
    #[test]
    fn messages_to_the_daemon_survive(message in to_daemon(), request in 1_u64.., at: prop::sample::Index, byte: u8) {
        survives(&message, request, at, byte);
    }

    #[test]
    fn messages_to_the_client_survive(message in to_client(), request in 1_u64.., at: prop::sample::Index, byte: u8) {
        survives(&message, request, at, byte);
    }

    #[test]
    fn any_bytes_decode_or_are_refused(bytes in vec(any::<u8>(), 0..=MAX_MESSAGE_BYTES), handles in 0_usize..300) {
        decodes_or_is_refused::<ToDaemon<u32>>(&bytes, handles, Contract::Extended);
        decodes_or_is_refused::<ToClient<u32>>(&bytes, handles, Contract::Strict);
    }

    /// Bytes that get past the header: words small enough to be sizes, counts and pointers.
    #[test]
    fn likely_bytes_decode_or_are_refused(
        interface in prop_oneof![0_u32..3, 0x100_u32..0x102],
        ordinal in 0_u32..7,
        flags in 0_u32..8,
        v1: bool,
        words in vec(prop_oneof![Just(0_u32), Just(8), Just(16), Just(24), 0_u32..64, Just(u32::MAX)], 0..400),
        handles in 0_usize..6,
    ) {
        let header = if v1 { [32, 1, interface, ordinal, flags, 0, 1, 0] } else { [24, 0, interface, ordinal, flags, 0, 0, 0] };
        let header = &header[..if v1 { 8 } else { 6 }];
        let bytes: Vec<u8> = header.iter().chain(&words).flat_map(|word| word.to_le_bytes()).collect();
        decodes_or_is_refused::<ToDaemon<u32>>(&bytes, handles, Contract::Extended);
        decodes_or_is_refused::<ToClient<u32>>(&bytes, handles, Contract::Extended);
    }
}
