//! Packets, descriptors, the socket's file, and peers that send what they shouldn't.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::FdFlags;
use rustix::net::{SendFlags, SocketType};
use userswap_ipc::contract::TransferUserfaultFd;
use userswap_ipc::extension::{Hello, Hint, HintKind, MoveReply, VERSION};
use userswap_ipc::setup::SetupError;
use userswap_ipc::wire::{
    Envelope, MAX_HANDLES, MAX_MESSAGE_BYTES, RequestId, ToClient, ToDaemon, ValidationError,
};
use userswap_ipc::{
    Abilities, Connection, Contract, LinkError, Listener, MemoryRegion, Offer, Peer, Received, Terms,
    TransportError, Wait, adopt,
};

const LONG: Wait = Wait::For(Duration::from_secs(60));

/// A directory of its own, removed in the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("userswap-ipc-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn file(content: &str) -> OwnedFd {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::empty()).unwrap();
    let mut file = File::from(fd);
    file.write_all(content.as_bytes()).unwrap();
    file.rewind().unwrap();
    file.into()
}

fn content(fd: &OwnedFd) -> String {
    std::io::read_to_string(File::from(fd.try_clone().unwrap())).unwrap()
}

fn buffer() -> Vec<u8> {
    vec![0; MAX_MESSAGE_BYTES]
}

#[test]
fn packets_keep_their_bounds_and_descriptors() {
    let (one, other) = Connection::pair().unwrap();
    let (first, second) = (file("first"), file("second"));
    one.send(b"abc", &[first.as_fd(), second.as_fd()], LONG).unwrap();
    one.send(b"de", &[], LONG).unwrap();
    let mut buffer = buffer();
    let Received::Got(packet) = other.receive(&mut buffer, LONG).unwrap() else { panic!() };
    assert_eq!(&buffer[..packet.len], b"abc");
    assert_eq!(packet.handles.iter().map(content).collect::<Vec<_>>(), ["first", "second"]);
    for handle in &packet.handles {
        assert!(rustix::io::fcntl_getfd(handle).unwrap().contains(FdFlags::CLOEXEC));
    }
    let Received::Got(packet) = other.receive(&mut buffer, LONG).unwrap() else { panic!() };
    assert_eq!((&buffer[..packet.len], packet.handles.len()), (b"de".as_slice(), 0));
    assert!(matches!(other.receive(&mut buffer, Wait::No), Ok(Received::Nothing)));
    let moment = Wait::For(Duration::from_millis(1));
    assert!(matches!(other.receive(&mut buffer, moment), Ok(Received::Nothing)));
    drop(one);
    assert!(matches!(other.receive(&mut buffer, Wait::Forever), Ok(Received::Closed)));
    assert!(matches!(other.send(b"x", &[], LONG), Err(TransportError::Closed)));
}

#[test]
fn the_largest_message_goes_through_and_a_larger_one_does_not() {
    let (one, other) = Connection::pair().unwrap();
    one.send(&vec![7; MAX_MESSAGE_BYTES], &[], LONG).unwrap();
    let mut buffer = buffer();
    let Received::Got(packet) = other.receive(&mut buffer, LONG).unwrap() else { panic!() };
    assert_eq!(packet.len, MAX_MESSAGE_BYTES);
    let refused = one.send(&vec![7; MAX_MESSAGE_BYTES + 1], &[], LONG);
    assert!(matches!(refused, Err(TransportError::TooLarge { .. })));
}

#[test]
fn a_packet_that_is_too_large_is_named_and_the_next_one_is_read() {
    let (one, other) = Connection::pair().unwrap();
    rustix::net::send(&one, &vec![7; MAX_MESSAGE_BYTES + 1], SendFlags::empty()).unwrap();
    one.send(b"next", &[], LONG).unwrap();
    let mut buffer = buffer();
    assert!(matches!(other.receive(&mut buffer, LONG), Err(TransportError::MessageTruncated)));
    assert!(matches!(other.receive(&mut buffer, LONG), Ok(Received::Got(packet)) if packet.len == 4));
}

/// The write end of a pipe of which the descriptors sent along are the only other copies shows whether they were closed.
#[test]
fn descriptors_too_many_are_named_and_closed() {
    let (one, other) = Connection::pair().unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let many: Vec<BorrowedFd<'_>> = vec![writer.as_fd(); MAX_HANDLES + 5];
    send_raw(&one, b"abc", &many);
    drop(many);
    drop(writer);
    let mut buffer = buffer();
    assert!(matches!(other.receive(&mut buffer, LONG), Err(TransportError::HandlesTruncated)));
    // All closed: the pipe is at its end. Were one open, this would be "try again".
    rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::NONBLOCK).unwrap();
    assert_eq!(rustix::io::read(&reader, &mut [0; 1]), Ok(0));
}

#[test]
fn descriptors_of_a_bad_message_are_closed() {
    let (one, other) = Connection::pair().unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    one.send(b"no message", &[writer.as_fd()], LONG).unwrap();
    drop(writer);
    let answer = other.receive_message::<ToDaemon<OwnedFd>>(&mut buffer(), Contract::Strict, LONG);
    assert!(matches!(answer, Err(TransportError::Invalid(_))));
    rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::NONBLOCK).unwrap();
    assert_eq!(rustix::io::read(&reader, &mut [0; 1]), Ok(0));
}

#[test]
fn a_peer_that_reads_nothing_is_not_waited_for_forever() {
    let (one, _other) = Connection::pair().unwrap();
    let message = vec![0; MAX_MESSAGE_BYTES];
    let stopped = (0..10_000).find_map(|_| one.send(&message, &[], Wait::No).err()).unwrap();
    assert!(matches!(stopped, TransportError::SendTimedOut(Duration::ZERO)));
    let late = one.send(&message, &[], Wait::For(Duration::from_millis(1)));
    assert!(matches!(late, Err(TransportError::SendTimedOut(_))));
}

#[test]
fn the_peer_is_this_process() {
    let directory = Directory::new("peer");
    let listener = Listener::bind(&directory.socket(), 0o600).unwrap();
    let client = Connection::connect(&directory.socket()).unwrap();
    let Received::Got(connection) = listener.accept(LONG).unwrap() else { panic!() };
    let peer = Peer::of(&connection).unwrap();
    assert_eq!(peer.pid(), std::process::id());
    assert_eq!(peer.uid(), rustix::process::geteuid().as_raw());
    assert!(!peer.has_exited());
    assert!(matches!(listener.accept(Wait::No), Ok(Received::Nothing)));
    drop(client);
    assert!(matches!(connection.receive(&mut buffer(), LONG), Ok(Received::Closed)));
}

#[test]
fn the_socket_file_has_its_mode_and_goes_with_the_listener() {
    let directory = Directory::new("mode");
    let path = directory.socket();
    for mode in [0o600, 0o660, 0o666] {
        let listener = Listener::bind(&path, mode).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        drop(listener);
        assert!(!path.exists());
    }
}

#[test]
fn a_path_in_use_is_refused_and_left_alone() {
    let directory = Directory::new("in-use");
    let path = directory.socket();
    let listener = Listener::bind(&path, 0o600).unwrap();
    let inode = std::fs::metadata(&path).unwrap().ino();
    let refused = Listener::bind(&path, 0o600).unwrap_err();
    assert!(matches!(refused, TransportError::InUse { .. }));
    assert!(refused.to_string().contains("somebody is listening there"), "{refused}");
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
    drop(listener);
    // A listener of another kind of socket is somebody, too.
    let stream = UnixListener::bind(&path).unwrap();
    assert!(matches!(Listener::bind(&path, 0o600), Err(TransportError::InUse { .. })));
    assert!(UnixStream::connect(&path).is_ok());
    drop(stream);
}

#[test]
fn a_stale_socket_is_replaced_and_a_file_is_not() {
    let directory = Directory::new("stale");
    let path = directory.socket();
    let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    drop(socket);
    assert!(path.exists());
    drop(Listener::bind(&path, 0o600).unwrap());
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Listener::bind(&path, 0o600), Err(TransportError::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_file_that_took_the_listeners_place_is_left_alone() {
    let directory = Directory::new("replaced");
    let path = directory.socket();
    let listener = Listener::bind(&path, 0o600).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    drop(listener);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn only_one_of_many_that_start_at_once_gets_a_stale_path() {
    let directory = Directory::new("race");
    let path = directory.socket();
    drop(UnixListener::bind(&path).unwrap());
    let answers: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| Listener::bind(&path, 0o600))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    assert!(Connection::connect(&path).is_ok());
}

#[test]
fn paths_no_socket_can_have_are_refused() {
    let directory = Directory::new("paths");
    assert!(Listener::bind(&directory.0.join("x".repeat(200)), 0o600).is_err());
    assert!(Listener::bind(&directory.0.join("missing/socket"), 0o600).is_err());
    let nobody = Connection::connect(&directory.socket()).unwrap_err();
    assert!(nobody.to_string().contains("connecting to"), "{nobody}");
}

/// What the daemon makes of a client that does `act`; and the reply it had sent, if any.
fn daemon_meets(contract: Contract, act: impl FnOnce(&Connection)) -> (LinkError, Option<ToClient<OwnedFd>>) {
    let (client, daemon) = Connection::pair().unwrap();
    act(&client);
    let abilities = Abilities::ORDERS | Abilities::HINTS;
    let offer = Offer { contract, abilities, staging_pages: 0, max_swap_area: 1 << 30 };
    let second = Duration::from_secs(1);
    let terms = Terms { offer, device: None, setup_timeout: second, reply_timeout: second };
    let error = adopt(daemon, &terms).unwrap_err();
    let mut last = None;
    let mut buffer = buffer();
    while let Ok(Received::Got(Envelope { message, .. })) =
        client.receive_message(&mut buffer, Contract::Extended, LONG)
    {
        last = Some(message);
    }
    (error, last)
}

fn say(connection: &Connection, message: ToDaemon<OwnedFd>) {
    connection.send_message(message, RequestId(1), LONG).unwrap();
}

fn transfer(uffd_handle: Option<OwnedFd>, address: u64) -> ToDaemon<OwnedFd> {
    let swap_area = MemoryRegion::new(address, 0x10_0000);
    ToDaemon::TransferUserfaultFd(TransferUserfaultFd {
        uffd_error: 0,
        uffd_handle,
        mmap_error: 0,
        swap_area,
    })
}

#[test]
fn clients_that_cannot_be_taken_on_are_answered() {
    let errors = TransferUserfaultFd {
        uffd_error: 1,
        uffd_handle: None,
        mmap_error: 0,
        swap_area: MemoryRegion::default(),
    };
    let (error, reply) =
        daemon_meets(Contract::Strict, |client| say(client, ToDaemon::TransferUserfaultFd(errors)));
    assert!(matches!(error, LinkError::Setup(SetupError::ClientUffd { errno: 1 })), "{error:?}");
    assert_eq!(reply.map(|reply| matches!(reply, ToClient::Transferred)), Some(true));

    let (error, reply) = daemon_meets(Contract::Strict, |client| say(client, transfer(Some(file("")), 0)));
    assert!(matches!(error, LinkError::Setup(SetupError::AtZero { .. })), "{error:?}");
    assert!(matches!(reply, Some(ToClient::Transferred)));

    let (error, reply) =
        daemon_meets(Contract::Strict, |client| say(client, transfer(Some(file("no uffd")), 0x1000)));
    assert!(matches!(&error, LinkError::Uffd(userswap_uffd::Error::NotUserfaultfd { .. })), "{error:?}");
    assert!(matches!(reply, Some(ToClient::Transferred)));

    let (error, _) = daemon_meets(Contract::Strict, |client| say(client, transfer(None, 0x1000)));
    assert!(matches!(error, LinkError::Setup(SetupError::NoHandle)), "{error:?}");
}

#[test]
fn hostile_clients_are_closed_with_a_reason() {
    let (error, reply) = daemon_meets(Contract::Strict, |client| {
        say(client, ToDaemon::Hello(Hello { version: VERSION, wants: 0 }));
    });
    let refused = ValidationError::NotInContract { interface: 0x100 };
    assert!(matches!(&error, LinkError::Transport(TransportError::Invalid(e)) if *e == refused), "{error:?}");
    assert!(reply.is_none());

    let (error, _) = daemon_meets(Contract::Extended, |client| {
        say(client, ToDaemon::Moved(MoveReply { results: vec![] }));
    });
    assert!(matches!(error, LinkError::Setup(SetupError::OutOfTurn { .. })), "{error:?}");

    let (error, _) = daemon_meets(Contract::Extended, |client| {
        say(client, ToDaemon::Hint(Hint { kind: HintKind::Visible, value: 1 }));
    });
    assert!(matches!(error, LinkError::Setup(SetupError::OutOfTurn { what: "Hint" })), "{error:?}");

    let (error, reply) = daemon_meets(Contract::Extended, |client| {
        say(client, ToDaemon::Hello(Hello { version: VERSION, wants: u64::MAX }));
        say(client, ToDaemon::Hello(Hello { version: VERSION, wants: u64::MAX }));
    });
    assert!(matches!(error, LinkError::Setup(SetupError::OutOfTurn { what: "Hello" })), "{error:?}");
    let granted = Abilities::ORDERS | Abilities::HINTS;
    assert!(matches!(reply, Some(ToClient::Welcome(ref welcome)) if welcome.granted == granted.bits()));

    let (error, _) = daemon_meets(Contract::Strict, |client| {
        client.send(&[0; 24], &[], LONG).unwrap();
    });
    assert!(matches!(error, LinkError::Transport(TransportError::Invalid(_))), "{error:?}");

    let (error, _) = daemon_meets(Contract::Strict, |client| {
        rustix::net::send(client, &vec![0; MAX_MESSAGE_BYTES + 1], SendFlags::empty()).unwrap();
    });
    assert!(matches!(error, LinkError::Transport(TransportError::MessageTruncated)), "{error:?}");

    let (error, _) = daemon_meets(Contract::Strict, |client| {
        let file = file("");
        send_raw(client, b"abc", &[file.as_fd(); MAX_HANDLES + 5]);
    });
    assert!(matches!(error, LinkError::Transport(TransportError::HandlesTruncated)), "{error:?}");

    let (error, _) = daemon_meets(Contract::Strict, Connection::shut_down);
    assert!(matches!(error, LinkError::Closed), "{error:?}");

    let (error, _) = daemon_meets(Contract::Strict, |_| {});
    assert!(matches!(error, LinkError::TimedOut { .. }), "{error:?}");
}

/// Sends what [`Connection::send`] wouldn't.
fn send_raw(connection: &Connection, bytes: &[u8], handles: &[BorrowedFd<'_>]) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(handles)));
    rustix::net::sendmsg(connection, &[std::io::IoSlice::new(bytes)], &mut control, SendFlags::empty())
        .unwrap();
}

#[test]
fn an_abstract_address_is_had_by_one_and_given_up_with_it() {
    let name = format!("userswap-abstract-{}", std::process::id());
    let listener = Listener::bind_abstract(&name).unwrap();
    assert_eq!(listener.path(), Path::new(&format!("@{name}")));
    let again = Listener::bind_abstract(&name);
    assert!(matches!(again, Err(TransportError::InUse { .. })), "{again:?}");
    drop(listener);
    assert!(Listener::bind_abstract(&name).is_ok());
    assert!(matches!(Listener::bind_abstract(&"x".repeat(200)), Err(TransportError::Listen { .. })));
}
