//! Targets for fuzzing: what reads bytes that somebody else wrote. Each takes any bytes; one that panics, hangs or takes memory without bound has found something.
//!
//! They are run three ways: with what is kept in `fuzz/corpus` and some mutations of it by the tests, for long by the program `fuzz` of this package, and under
//! libFuzzer by `fuzz/`.

mod arena;
pub mod mutate;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use userswap::daemon::control::Request;
use userswap_ipc::contract::Contract;
use userswap_ipc::wire::{MAX_MESSAGE_BYTES, ToClient, ToDaemon, WireMessage};
use userswap_ipc::{Connection, Received, Wait};
use userswap_policy::trace::Trace;
use userswap_policy::working_set::WorkingSet;

/// A target, by its name.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// As its corpus is called.
    pub name: &'static str,
    /// Panics if something is wrong.
    pub run: fn(&[u8]),
    /// Something to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "messages", run: messages, seeds: || seeds(&golden()) },
    Target { name: "stream", run: stream, seeds: || seeds(&golden().map(packet)) },
    Target { name: "control", run: control, seeds: || seeds(REQUESTS) },
    Target { name: "arena", run: arena::rebuild, seeds: || seeds(arena::EDITS) },
    Target { name: "trace", run: trace, seeds: traces },
    Target { name: "spec", run: spec, seeds: || seeds(SPECS) },
    Target { name: "working-set", run: working_set, seeds: || seeds(WORKING_SETS) },
];

const WORKING_SETS: &[&str] = &[
    "userswap working set 1\npage-bytes: 4096\n7f25c0a00 512\n7f25c0d01 3\n",
    "userswap working set 1\npage-bytes: 16384\n",
];

fn seeds(of: &[impl AsRef<[u8]>]) -> Vec<Vec<u8>> {
    of.iter().map(|seed| seed.as_ref().to_vec()).collect()
}

/// The first byte says how many handles there are and which contract it is.
fn messages(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else { return };
    let contract = if how & 0x80 == 0 { Contract::Extended } else { Contract::Strict };
    let handles: Vec<u32> = (0..u32::from(how & 0x7f)).collect();
    decode::<ToDaemon<u32>>(bytes, &handles, contract);
    decode::<ToClient<u32>>(bytes, &handles, contract);
}

/// What is taken for a message is read the same once it was written; gaps, which Mojo doesn't look at, are zeros then.
fn decode<M: WireMessage<u32>>(bytes: &[u8], handles: &[u32], contract: Contract) {
    match M::decode(bytes, handles.to_vec(), contract) {
        Ok(envelope) => {
            let written = envelope.message.encode(envelope.request);
            assert!(written.bytes.len() == bytes.len() && written.handles == handles, "another message");
            let read = M::decode(&written.bytes, written.handles.clone(), contract);
            let again = read.map(|read| read.message.encode(read.request));
            assert!(again.is_ok_and(|again| again == written), "another message");
        }
        // Whatever is wrong can be said.
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Packets: a byte with how many descriptors, two with how long it is, then its bytes. All are read by both ends' rules until one isn't a message.
fn stream(bytes: &[u8]) {
    let (Ok((one, other)), Ok(null)) = (Connection::pair(), std::fs::File::open("/dev/null")) else { return };
    let mut rest = bytes;
    for _ in 0..16 {
        let [handles, low, high, behind @ ..] = rest else { break };
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(behind.len());
        let (packet, behind) = behind.split_at(len);
        rest = behind;
        let fds: Vec<BorrowedFd<'_>> = (0..handles & 7).map(|_| null.as_fd()).collect();
        if one.send(packet, &fds, Wait::No).is_err() {
            break;
        }
    }
    one.shut_down();
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    let within = Wait::For(Duration::from_secs(10));
    for turn in 0..17 {
        let contract = if turn % 2 == 0 { Contract::Extended } else { Contract::Strict };
        match other.receive_message::<ToDaemon<_>>(&mut buffer, contract, within) {
            Ok(Received::Got(_)) => {}
            Ok(Received::Closed) => return,
            Ok(Received::Nothing) => panic!("neither a packet nor the end"),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

fn control(bytes: &[u8]) {
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Ok(request) = serde_json::from_slice::<Request>(line) {
            let text = serde_json::to_string(&request).unwrap_or_default();
            assert!(serde_json::from_str::<Request>(&text).is_ok_and(|again| again == request), "{text}");
        }
    }
}

fn working_set(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match WorkingSet::from_text(text) {
        Ok(set) => assert_eq!(WorkingSet::from_text(&set.to_text()).as_ref(), Ok(&set)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn trace(bytes: &[u8]) {
    if let Ok(trace) = Trace::from_bytes_within(bytes, 1 << 20) {
        let again = Trace::from_bytes(&trace.to_bytes());
        assert!(
            again.is_ok_and(|again| again.pages() == trace.pages() && again.windows() == trace.windows())
        );
    }
}

fn spec(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match userswap_stores::spec::parse(text) {
        Ok(spec) => {
            let _ = spec.can_outlive();
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Messages as the contract lays them out, behind the byte that [`messages`] takes.
fn golden() -> [Vec<u8>; 6] {
    use userswap_ipc::contract::{MapArea, MemoryRegion, TransferUserfaultFd};
    use userswap_ipc::extension::{Exclude, Hello, Staging};
    use userswap_ipc::wire::RequestId;
    let area = MemoryRegion::new(0x1000, 0x4000);
    let transfer =
        TransferUserfaultFd { uffd_error: 0, uffd_handle: Some(0_u32), mmap_error: 0, swap_area: area };
    [
        ToDaemon::TransferUserfaultFd(transfer).encode(RequestId(1)),
        ToDaemon::Hello(Hello { version: 1, wants: 7 }).encode(RequestId(1)),
        ToDaemon::Staging(Staging { area }).encode(RequestId(2)),
        ToDaemon::Exclude(Exclude { area }).encode(RequestId(3)),
        ToDaemon::SuperPagesUsed(vec![area, MemoryRegion::new(0x20_0000, 0x20_0000)]).encode(RequestId(4)),
        ToClient::MapArea(MapArea { area }).encode(RequestId(0)),
    ]
    .map(|message| [&[message.handles.len() as u8], message.bytes.as_slice()].concat())
}

fn packet(message: Vec<u8>) -> Vec<u8> {
    let len = u16::try_from(message.len() - 1).unwrap_or(u16::MAX).to_le_bytes();
    [&message[..1], &len, &message[1..]].concat()
}

const REQUESTS: &[&str] = &[
    r#"{"do":"status"}"#,
    r#"{"do":"evict","pid":7,"bytes":4096}"#,
    "{\"do\":\"limit\",\"bytes\":0}\n{\"do\":\"drain\"}",
];

const SPECS: &[&str] = &[
    "ram:lz4?capacity=64M",
    "tier:ram:lz4?capacity=64M>file:/var/tmp?size=4G",
    "zram?recompress=idle,huge&threshold=1K:file:/var/tmp",
    "checked+sealed+chaos?seed=7+ram:lz4",
    "plugin:/a.so?capacity=1G&key=value",
];

fn traces() -> Vec<Vec<u8>> {
    let mut trace = Trace::new("a command".into(), 4096, Duration::from_millis(50));
    trace.add(&[1, 2, 3, 900], &[7], Duration::from_millis(50));
    trace.add(&[], &[], Duration::from_millis(51));
    trace.add(&[u64::MAX >> 12], &[], Duration::from_millis(50));
    vec![trace.to_bytes()]
}
