//! The client process: a mapping full of a pattern, offered to the daemon, and checked when the parent says so.

use std::io::BufRead;

use userswap_ipc::client::{Client, SwapAreaSize, UffdSource};
use userswap_ipc::contract::{Contract, GetPartitionAllocSuperPagesUsed};
use userswap_ipc::daemon::CONTRACT_FEATURES;
use userswap_ipc::extension::HintKind;
use userswap_ipc::receiver::{Areas, Memory, Receiver};
use userswap_ipc::superpages::{OwnMaps, SUPERPAGE};
use userswap_uffd::{Error, Mapping, Outcome, Protection, Span, page_size};

/// Pages of the client's memory.
pub(crate) const PAGES: usize = 1024;

/// What page `index` is full of.
pub(crate) fn pattern(index: usize) -> u8 {
    u8::try_from(index % 251).unwrap() + 1
}

pub(crate) fn run(args: &[String]) {
    match args {
        [role, contract, path] if role == "cooperate" => cooperate(contract, path),
        [role] if role == "superpages" => superpages(),
        other => panic!("no such role: {other:?}"),
    }
}

fn cooperate(contract: &str, path: &str) {
    let builder = match contract {
        "strict" => Client::builder(path).contract(Contract::Strict),
        "handshaken" => Client::builder(path).contract(Contract::Strict).handshake(CONTRACT_FEATURES),
        _ => Client::builder(path),
    };
    let memory = Mapping::new((PAGES * page_size()) as u64, Protection::READ_WRITE).unwrap();
    for index in 0..PAGES {
        // SAFETY: within the mapping, which nobody else knows of yet.
        unsafe { memory.as_ptr().add(index * page_size()).write_bytes(pattern(index), page_size()) };
    }
    let client =
        builder.uffd(UffdSource::Auto).swap_area(SwapAreaSize { pages_per_region: 16, regions: 8 }).connect();
    let client = match client {
        Ok(client) => client,
        Err(e) => {
            let source = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
            println!("failed {e}: {source}");
            return;
        }
    };
    client.offer(memory.span());
    println!("ready {}", memory.span().start());
    for line in std::io::stdin().lock().lines() {
        match line.unwrap().as_str() {
            "check" => println!("{}", if matches(&memory) { "intact" } else { "damaged" }),
            "hint" => {
                client.hint(HintKind::Frozen, 1).unwrap();
                println!("hinted");
            }
            "wait on the first page" => println!("{}", wait_on_first_page(&memory)),
            "end" => println!("{:?}", client.end()),
            other => panic!("no such command: {other}"),
        }
    }
}

fn matches(memory: &Mapping) -> bool {
    (0..PAGES * page_size()).all(|offset| byte(memory, offset) == pattern(offset / page_size()))
}

fn byte(memory: &Mapping, offset: usize) -> u8 {
    // SAFETY: within the mapping; the daemon may take the page away meanwhile, the read waits for it then.
    unsafe { memory.as_ptr().add(offset).read_volatile() }
}

/// Touches the first page in another thread and says whether that thread comes to wait or to read.
fn wait_on_first_page(memory: &Mapping) -> String {
    let (send, tid) = std::sync::mpsc::channel();
    let address = memory.as_ptr().as_ptr().expose_provenance();
    let thread = std::thread::spawn(move || {
        let tid = std::fs::read_link("/proc/thread-self").unwrap();
        send.send(tid.file_name().unwrap().to_owned()).unwrap();
        // SAFETY: as in `byte`.
        unsafe { std::ptr::with_exposed_provenance::<u8>(address).read_volatile() }
    });
    let stat = std::path::Path::new("/proc/self/task").join(tid.recv().unwrap()).join("wchan");
    loop {
        if thread.is_finished() {
            return format!("read {}", thread.join().unwrap());
        }
        if std::fs::read_to_string(&stat).is_ok_and(|wchan| wchan.contains("userfault")) {
            return "waiting".into();
        }
        std::thread::yield_now();
    }
}

/// 1000 allocations of 128 bytes to 4 MiB all lie in the regions in use; a limit of 5 gives at most 5 × 2 MiB.
fn superpages() {
    let mut random = 1_u64;
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap()
    };
    let allocations: Vec<Vec<u8>> = (0..1000)
        .map(|_| {
            let largest = 128 << (next() % 16);
            let mut allocation = vec![0; (largest / 2 + next() % largest).clamp(128, 4 << 20)];
            let len = allocation.len();
            // A page in each superpage it touches.
            (0..len).step_by(1 << 20).for_each(|at| allocation[at] = 1);
            allocation[len - 1] = 1;
            allocation
        })
        .collect();
    let swap = Span::new(0x1_0000_0000, 0x1_0000).unwrap();
    let areas = Areas { swap, staging: None, stack: None };
    let mut receiver = Receiver::new(InCore, areas, Box::new(OwnMaps { min_bytes: 0 }));
    let mut used = |max_superpages| {
        receiver.superpages_used(&GetPartitionAllocSuperPagesUsed { max_superpages }).unwrap()
    };
    let all = used(-1);
    for allocation in &allocations {
        let (start, len) = (allocation.as_ptr().addr() as u64, allocation.len() as u64);
        let mut covered = start;
        while covered < start + len {
            let region = all
                .iter()
                .find(|region| region.address <= covered && covered < region.address + region.length);
            let region = region.unwrap_or_else(|| panic!("{start:#x}+{len:#x} is not in {all:?}"));
            covered = region.address + region.length;
        }
    }
    let five = used(5);
    assert!(!five.is_empty() && five.iter().map(|region| region.length).sum::<u64>() <= 5 * SUPERPAGE);
    assert!(used(0).is_empty());
    println!("inside");
}

/// mincore, and nothing that changes anything.
struct InCore;

impl Memory for InCore {
    fn move_ptes(&mut self, _: Span, _: u64) -> Result<(), Error> {
        panic!("nothing is to be moved")
    }
    fn map_none(&mut self, _: Span) -> Result<(), Error> {
        panic!("nothing is to be dropped")
    }
    fn dont_need(&mut self, _: Span) -> Result<(), Error> {
        panic!("nothing is to be dropped")
    }
    fn uffd_move(&mut self, _: Span, _: u64) -> Outcome {
        panic!("nothing is to be moved")
    }
    fn in_core(&mut self, area: Span, pages: &mut Vec<bool>) -> Result<(), Error> {
        userswap_uffd::own::mincore(area, pages)
    }
}
