//! A strict client that unmaps what it is told to move.

use userswap_ipc::contract::{Contract, MemoryRegion, TransferUserfaultFd};
use userswap_ipc::wire::{MAX_MESSAGE_BYTES, RequestId, ToClient, ToDaemon};
use userswap_ipc::{Connection, Received, Wait};
use userswap_tests::own::unmap_span;
use userswap_uffd::{Mapping, OpenMode, Protection, RawUffd, Span};

pub(crate) fn run(path: &str) {
    let connection = Connection::connect(path.as_ref()).unwrap();
    let memory = Mapping::new(2 << 20, Protection::READ_WRITE).unwrap();
    let span = memory.leak();
    // SAFETY: read-write memory that nobody else knows; not named again once it is unmapped.
    unsafe { userswap_tests::pages::Pages::new(span) }.fill_all(|page| page + 1);
    let swap = Mapping::new(101 * 16 * 4096, Protection::NONE).unwrap();
    let uffd = RawUffd::create(OpenMode::Auto).unwrap().into_fd();
    let transfer = TransferUserfaultFd {
        uffd_error: 0,
        uffd_handle: Some(uffd.try_clone().unwrap()),
        mmap_error: 0,
        swap_area: MemoryRegion::new(swap.span().start(), swap.span().len()),
    };
    connection.send_message(ToDaemon::TransferUserfaultFd(transfer), RequestId(1), Wait::Forever).unwrap();
    println!("ready");
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    loop {
        let Ok(Received::Got(envelope)) =
            connection.receive_message(&mut buffer, Contract::Strict, Wait::Forever)
        else {
            // The daemon is done with us: what it does next comes by other means.
            loop {
                std::thread::park();
            }
        };
        match envelope.message {
            ToClient::GetPartitionAllocSuperPagesUsed(_) => {
                let used = vec![MemoryRegion::new(span.start(), span.len())];
                connection
                    .send_message(
                        ToDaemon::<std::os::fd::OwnedFd>::SuperPagesUsed(used),
                        envelope.request,
                        Wait::Forever,
                    )
                    .unwrap();
            }
            ToClient::MovePtesLeavingMapping(order) => {
                unmap_span(Span::new(order.src.address, order.src.length).unwrap());
            }
            _ => {}
        }
    }
}
