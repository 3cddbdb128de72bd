//! A client taken on that then misbehaves, and a client end whose daemon does: in one process, over a pair of sockets.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use userswap_ipc::agent::AgentEnd;
use userswap_ipc::client::SwapAreaSize;
use userswap_ipc::contract::{MovePtesLeavingMapping, TransferUserfaultFd};
use userswap_ipc::extension::{
    Hello, Hint, HintKind, MoveRange, MoveReply, MoveResult, MoveStop, Mover, VERSION,
};
use userswap_ipc::receiver::{Kill, ReceiverError};
use userswap_ipc::setup::SetupError;
use userswap_ipc::wire::{Envelope, MAX_MESSAGE_BYTES, RequestId, ToClient, ToDaemon};
use userswap_ipc::{
    Abilities, Adopted, Client, ClientError, Connection, Contract, LinkError, MemoryRegion, Offer, Received,
    Terms, Wait, adopt,
};
use userswap_uffd::{OpenMode, RawUffd};

const LONG: Duration = Duration::from_secs(60);

/// Whether this process may create a userfaultfd; if not, says that `test` is skipped.
fn may_create(test: &str) -> bool {
    match RawUffd::create(OpenMode::Auto) {
        Ok(_) => true,
        Err(e) => {
            // Past the harness, which keeps what is printed to itself.
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {e}");
            false
        }
    }
}

fn terms(contract: Contract, reply_timeout: Duration) -> Terms<'static> {
    let abilities = Abilities::ORDERS | Abilities::HINTS;
    let offer = Offer { contract, abilities, staging_pages: 0, max_swap_area: 1 << 30 };
    Terms { offer, device: None, setup_timeout: LONG, reply_timeout }
}

/// A client that says what it is told to, taken on.
fn taken_on(reply_timeout: Duration) -> (Connection, Adopted) {
    let (client, daemon) = Connection::pair().unwrap();
    let hello = ToDaemon::Hello(Hello { version: VERSION, wants: u64::MAX });
    say(&client, hello, 1);
    let transfer = TransferUserfaultFd {
        uffd_error: 0,
        uffd_handle: Some(RawUffd::create(OpenMode::Auto).unwrap().into_fd()),
        mmap_error: 0,
        swap_area: MemoryRegion::new(0x1000_0000, 0x10_0000),
    };
    say(&client, ToDaemon::TransferUserfaultFd(transfer), 2);
    let adopted = adopt(daemon, &terms(Contract::Extended, reply_timeout)).unwrap();
    assert!(matches!(hear(&client).unwrap().message, ToClient::Welcome(_)));
    assert!(matches!(hear(&client).unwrap().message, ToClient::Transferred));
    (client, adopted)
}

fn say(connection: &Connection, message: ToDaemon<OwnedFd>, request: u64) {
    connection.send_message(message, RequestId(request), Wait::For(LONG)).unwrap();
}

fn hear(connection: &Connection) -> Option<Envelope<ToClient<OwnedFd>>> {
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    match connection.receive_message(&mut buffer, Contract::Extended, Wait::For(LONG)).unwrap() {
        Received::Got(envelope) => Some(envelope),
        _ => None,
    }
}

/// The daemon asks for one superpage and is answered `answer`; the link is broken afterwards.
fn asks_and_is_answered(answer: ToDaemon<OwnedFd>, request_offset: u64) -> LinkError {
    let (client, adopted) = taken_on(LONG);
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            let request = hear(&client).unwrap().request;
            say(&client, answer, request.0 + request_offset);
        });
        adopted.link.superpages(Some(1)).unwrap_err()
    });
    assert!(matches!(adopted.link.superpages(Some(1)), Err(LinkError::Closed)));
    assert!(matches!(adopted.link.hints(), Err(LinkError::Closed)));
    assert!(hear(&client).is_none(), "the connection is shut down");
    error
}

#[test]
fn lies_break_the_link() {
    if !may_create("lies_break_the_link") {
        return;
    }
    let too_many = ToDaemon::SuperPagesUsed(vec![MemoryRegion::new(0x20_0000, 0x40_0000)]);
    let error = asks_and_is_answered(too_many, 0);
    assert!(
        matches!(error, LinkError::Lied { what: "more superpages than were asked for", .. }),
        "{error:?}"
    );
    let other = asks_and_is_answered(ToDaemon::Dropped, 0);
    assert!(matches!(other, LinkError::Lied { what: "another reply", .. }), "{other:?}");
    let unasked = asks_and_is_answered(ToDaemon::SuperPagesUsed(vec![]), 1);
    let out_of_turn = SetupError::OutOfTurn { what: "a reply" };
    assert!(matches!(unasked, LinkError::Setup(e) if e == out_of_turn));
    let again = TransferUserfaultFd {
        uffd_error: 0,
        uffd_handle: None,
        mmap_error: 0,
        swap_area: MemoryRegion::default(),
    };
    let again = asks_and_is_answered(ToDaemon::TransferUserfaultFd(again), 7);
    let out_of_turn = SetupError::OutOfTurn { what: "TransferUserfaultFD" };
    assert!(matches!(again, LinkError::Setup(e) if e == out_of_turn));
}

#[test]
fn lies_about_moves_break_the_link() {
    if !may_create("lies_about_moves_break_the_link") {
        return;
    }
    let (client, adopted) = taken_on(LONG);
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            let request = hear(&client).unwrap().request;
            let results = vec![MoveResult { moved: 0x2000, stop: MoveStop::None }];
            say(&client, ToDaemon::Moved(MoveReply { results }), request.0);
        });
        let range = MoveRange { src: 0x40_0000, len: 0x1000, dest: 0x1000_0000 };
        adopted.link.move_ranges(Mover::Remap, &[range]).unwrap_err()
    });
    assert!(matches!(error, LinkError::Lied { method: "Move", .. }), "{error:?}");
}

#[test]
fn a_client_that_never_answers_is_given_up() {
    if !may_create("a_client_that_never_answers_is_given_up") {
        return;
    }
    let (client, adopted) = taken_on(Duration::from_millis(10));
    assert!(matches!(adopted.link.superpages(None), Err(LinkError::TimedOut { .. })));
    assert!(matches!(hear(&client).unwrap().message, ToClient::GetPartitionAllocSuperPagesUsed(_)));
    assert!(hear(&client).is_none());
}

/// Hints without end instead of an answer: they don't buy the client time, and don't pile up.
#[test]
fn a_flood_of_hints_is_no_answer() {
    if !may_create("a_flood_of_hints_is_no_answer") {
        return;
    }
    let (client, adopted) = taken_on(Duration::from_millis(50));
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            let hint = Hint { kind: HintKind::Visible, value: 1 };
            while client.send_message(ToDaemon::<OwnedFd>::Hint(hint), RequestId(0), Wait::For(LONG)).is_ok()
            {
            }
        });
        adopted.link.superpages(None).unwrap_err()
    });
    assert!(matches!(error, LinkError::TimedOut { .. }), "{error:?}");
}

/// Tells instead of killing.
struct Tell(Sender<String>);

impl Kill for Tell {
    fn kill(&mut self, reason: &ReceiverError) {
        self.0.send(reason.to_string()).unwrap();
    }
}

fn connected(contract: Contract) -> (Client, Adopted, std::sync::mpsc::Receiver<String>) {
    let (client, daemon) = Connection::pair().unwrap();
    let (tell, told) = channel();
    let builder = Client::builder("unused").contract(contract).kill(Tell(tell));
    std::thread::scope(|scope| {
        let adopted = scope.spawn(|| adopt(daemon, &terms(contract, LONG)).unwrap());
        let client = builder.connect_over(client).unwrap();
        (client, adopted.join().unwrap(), told)
    })
}

#[test]
fn a_one_way_order_that_fails_kills_and_says_why() {
    if !may_create("a_one_way_order_that_fails_kills_and_says_why") {
        return;
    }
    for contract in [Contract::Strict, Contract::Extended] {
        let (client, adopted, told) = connected(contract);
        let src = userswap_uffd::Span::new(0x1_0000, 0x1000).unwrap();
        adopted.link.move_ptes(src, 0x20_0000).unwrap();
        let reason = told.recv_timeout(LONG).unwrap();
        assert!(reason.starts_with("MovePTEsLeavingMapping: "), "{reason}");
        assert!(reason.ends_with("is not inside the swap area"), "{reason}");
        assert!(matches!(adopted.link.superpages(None), Err(LinkError::Closed | LinkError::Transport(_))));
        drop(client.disconnect());
    }
}

#[test]
fn a_client_gives_everything_back_when_it_disconnects() {
    if !may_create("a_client_gives_everything_back_when_it_disconnects") {
        return;
    }
    let (client, adopted, _told) = connected(Contract::Extended);
    assert!(client.is_served());
    assert_eq!(client.abilities(), Abilities::ORDERS | Abilities::HINTS);
    assert_eq!(client.swap_area(), adopted.swap_area);
    assert_eq!(adopted.swap_area.len(), SwapAreaSize::default().bytes());
    assert!(adopted.swap_area.start() >= 1 << 32);
    let kept = client.disconnect().unwrap();
    assert_eq!(kept.swap.span(), adopted.swap_area);
    assert!(matches!(adopted.link.superpages(None), Err(LinkError::Closed | LinkError::Transport(_))));
}

#[test]
fn a_reply_that_nobody_asked_for_ends_the_agent() {
    if !may_create("a_reply_that_nobody_asked_for_ends_the_agent") {
        return;
    }
    let (client, daemon) = Connection::pair().unwrap();
    std::thread::scope(|scope| {
        let daemon = scope.spawn(move || {
            let mut buffer = vec![0; MAX_MESSAGE_BYTES];
            let wait = Wait::For(LONG);
            let received = daemon.receive_message::<ToDaemon<OwnedFd>>(&mut buffer, Contract::Strict, wait);
            let Ok(Received::Got(call)) = received else { panic!("{received:?}") };
            for _ in 0..2 {
                daemon.send_message(ToClient::<OwnedFd>::Transferred, call.request, wait).unwrap();
            }
            assert!(matches!(daemon.receive(&mut buffer, wait), Ok(Received::Closed)));
        });
        let client = Client::builder("unused").contract(Contract::Strict).connect_over(client).unwrap();
        daemon.join().unwrap();
        while client.is_served() {
            std::thread::yield_now();
        }
        assert!(matches!(client.end(), Some(AgentEnd::UnexpectedReply)));
        drop(client.disconnect());
    });
}

/// No swap area of that size can be mapped: the daemon is told so, answers, and takes nobody on.
#[test]
fn a_swap_area_that_cannot_be_mapped_is_reported() {
    if !may_create("a_swap_area_that_cannot_be_mapped_is_reported") {
        return;
    }
    let (client, daemon) = Connection::pair().unwrap();
    let size = SwapAreaSize { pages_per_region: 1 << 40, regions: 1 };
    let error = std::thread::scope(|scope| {
        let daemon = scope.spawn(|| adopt(daemon, &terms(Contract::Strict, LONG)).map(drop).unwrap_err());
        let builder = Client::builder("unused").contract(Contract::Strict).swap_area(size);
        let refused = builder.connect_over(client).map(drop).unwrap_err();
        assert!(matches!(refused, ClientError::SwapArea(_)), "{refused:?}");
        daemon.join().unwrap()
    });
    assert!(matches!(error, LinkError::Setup(SetupError::ClientMmap { .. })), "{error:?}");
}

/// A strict daemon doesn't know `Hello`: an extended client is told by the connection's end.
#[test]
fn an_extended_client_of_a_strict_daemon_is_refused() {
    let (client, daemon) = Connection::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| adopt(daemon, &terms(Contract::Strict, LONG)).map(drop).unwrap_err());
        let refused = Client::builder("unused").connect_over(client).map(drop).unwrap_err();
        assert!(matches!(refused, ClientError::Closed { sent: "Hello" }), "{refused:?}");
    });
}

/// One-way orders carry no request id, and the order of what was sent is the order of what is received.
#[test]
fn orders_arrive_in_order() {
    if !may_create("orders_arrive_in_order") {
        return;
    }
    let (client, adopted) = taken_on(LONG);
    let src = userswap_uffd::Span::new(0x40_0000, 0x1000).unwrap();
    for index in 0..3 {
        adopted.link.move_ptes(src, 0x1000_0000 + index * 0x1000).unwrap();
    }
    for index in 0..3 {
        let Envelope { request, message } = hear(&client).unwrap();
        let order = MovePtesLeavingMapping {
            src: MemoryRegion::new(0x40_0000, 0x1000),
            dest: 0x1000_0000 + index * 0x1000,
        };
        assert!(matches!(message, ToClient::MovePtesLeavingMapping(got) if got == order));
        assert_eq!(request, RequestId(0));
    }
}
