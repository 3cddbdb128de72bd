//! A service manager keeps what a daemon leaves: keeper and worker are killed, the manager starts another daemon with all of it, and no byte is wrong.
//!
//! The tests play the manager, by the protocol of sd_notify(3) and sd_listen_fds(3).

use crate::daemon::Daemon;
use crate::orphans::kill_both;
use crate::patient;
use crate::support::{Place, Talk, USERSWAP, can_serve, signal, state, until, with_filler};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use userswap::daemon::control::{Evicted, Request};

/// What a manager knows of a service.
#[derive(Default)]
struct Known {
    kept: BTreeMap<String, OwnedFd>,
    said: Vec<String>,
}

struct Manager {
    known: Arc<Mutex<Known>>,
    address: String,
    store: Option<u32>,
}

impl Manager {
    fn new(place: &Place, store: Option<u32>) -> Self {
        let address = place.at("notify");
        let socket = UnixDatagram::bind(&address).unwrap();
        let known = Arc::<Mutex<Known>>::default();
        let listening = Arc::clone(&known);
        // Ends with the test program.
        std::thread::spawn(move || {
            while let Some((text, handles)) = receive(&socket) {
                listening.lock().unwrap().take(&text, handles);
            }
        });
        Self { known, address, store }
    }

    /// A daemon with what is kept.
    fn start(&self, place: &Place, arguments: &[&str]) -> Daemon {
        let mut command = place.command("sh");
        // Whose number it is isn't known before it is there.
        command
            .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\"", USERSWAP])
            .env("NOTIFY_SOCKET", &self.address);
        if let Some(most) = self.store {
            command.env("FDSTORE", most.to_string());
        }
        let (mut names, mut held) = (Vec::new(), Vec::<OwnedFd>::new());
        for (name, descriptor) in &self.known.lock().unwrap().kept {
            names.push(name.clone());
            held.push(descriptor.try_clone().unwrap());
        }
        let numbers: Vec<RawFd> = held.iter().map(AsRawFd::as_raw_fd).collect();
        if !names.is_empty() {
            command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
            // SAFETY: needed because no safe call gives a child descriptors under numbers. Between fork and exec it makes system calls alone, and writes to
            // memory that was allocated before.
            unsafe {
                command.pre_exec(move || {
                    give(&numbers);
                    Ok(())
                });
            }
        }
        let daemon = Daemon::of(command, place, arguments);
        drop(held);
        daemon
    }

    fn count(&self) -> usize {
        self.known.lock().unwrap().kept.len()
    }

    /// Everything of the daemon's clients is kept: nothing was sent for longer than a daemon takes its time.
    fn settled(&self) {
        until("all is kept", || {
            let before = self.count();
            std::thread::sleep(Duration::from_millis(300));
            (self.count() == before).then_some(())
        });
    }

    fn was_told(&self, what: &str) -> bool {
        self.known.lock().unwrap().said.iter().any(|said| said == what)
    }
}

impl Known {
    fn take(&mut self, text: &str, mut handles: Vec<OwnedFd>) {
        let line = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let name = line("FDNAME").unwrap_or("stored").to_owned();
        if line("FDSTORE") == Some("1") {
            assert_eq!(line("FDPOLL"), Some("0"), "{text}");
            assert_eq!(handles.len(), 1, "{text}");
            self.kept.insert(name, handles.remove(0));
        } else if line("FDSTOREREMOVE") == Some("1") {
            self.kept.remove(&name);
        } else {
            self.said.push(text.to_owned());
        }
    }
}

fn receive(socket: &UnixDatagram) -> Option<(String, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 512];
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let got = rustix::net::recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?.bytes;
    let handles = control.drain().flat_map(|part| match part {
        RecvAncillaryMessage::ScmRights(handles) => handles.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let handles = handles.collect();
    Some((String::from_utf8_lossy(&bytes[..got]).into_owned(), handles))
}

/// Puts descriptors at 3 and up, to be there in another program.
fn give(numbers: &[RawFd]) {
    let above = numbers.iter().max().unwrap_or(&0).max(&RawFd::from(u16::MAX >> 4)) + 1;
    for (number, aside) in numbers.iter().zip(above..) {
        // SAFETY: the process is about to execute another program, and nothing of this one's is used again.
        unsafe { libc::dup3(*number, aside, libc::O_CLOEXEC) };
    }
    for ((_, aside), to) in numbers.iter().zip(above..).zip(3..) {
        // SAFETY: as above.
        unsafe { libc::dup2(aside, to) };
    }
}

#[test]
fn a_service_managers_daemon_is_killed_whole_and_goes_on() {
    goes_on("a_service_managers_daemon_is_killed_whole_and_goes_on", |_| "ram:lz4".to_owned());
}

/// Its key is among what is kept.
#[test]
fn so_does_one_over_a_file() {
    goes_on("so_does_one_over_a_file", |place| format!("file:{}?size=64M&reserve=0", place.at("temporary")));
}

fn goes_on(test: &str, store: impl Fn(&Place) -> String) {
    let Some((place, filler)) = with_filler(test) else { return };
    let manager = Manager::new(&place, Some(512));
    let store = store(&place);
    let arguments = ["--limit", "4M", "--store", &store];
    let mut daemon = manager.start(&place, &arguments);
    until("it is ready", || manager.was_told("READY=1").then_some(()));
    let socket = place.at("s");
    let run = ["run", "-q", "--daemon", &socket, "--", &filler, "8"];
    let mut knows_nothing = Talk::start(place.userswap(&run).stderr(Stdio::inherit()));
    knows_nothing.expect("ready");
    let mut command = patient::command(&socket, "extended");
    let mut takes_part = Talk::start(command.env("USERSWAP_TEST_PATIENCE", "1"));
    takes_part.expect_line_of_tests("ready");
    let rounds = if std::env::var_os("USERSWAP_LONG").is_some_and(|value| value == "1") { 100 } else { 6 };
    for round in 0..rounds {
        until("memory of both is out", || {
            let clients = daemon.status().clients;
            (clients.len() == 2 && clients.iter().all(|client| client.moved_out_bytes > 0)).then_some(())
        });
        manager.settled();
        let worker = daemon.status().worker_pid;
        match round % 3 {
            0 => kill_both(&mut daemon),
            1 => {
                daemon.keeper.kill().unwrap();
                daemon.keeper.wait().unwrap();
            }
            _ => {
                // Its successor's clients are kept as well.
                signal(worker, "KILL");
                until("another worker", || Some(daemon.status().worker_pid).filter(|now| *now != worker));
                takes_part.ask("step");
                kill_both(&mut daemon);
            }
        }
        // Longer than whoever is left without a daemon has patience.
        std::thread::sleep(Duration::from_millis(if round == 0 { 1500 } else { 10 }));
        drop(daemon);
        daemon = manager.start(&place, &arguments);
        let log = daemon.log();
        for word in ["check", "churn", "fork", "check"] {
            assert_eq!(knows_nothing.says(word), Some(format!("{word}ed")), "{log}");
        }
        takes_part.ask("step");
        takes_part.ask("check");
    }
    manager.settled();
    let with_both = manager.count();
    assert!(takes_part.end().success());
    // A ledger, a userfaultfd, a connection, a process.
    until("who left isn't kept any more", || (manager.count() + 4 <= with_both).then_some(()));
    daemon.end();
    assert!(manager.was_told("STOPPING=1"));
    // It has its memory, and nothing is kept.
    knows_nothing.ask("check");
    until("nothing is kept", || (manager.count() == 0).then_some(()));
    let kept: Vec<String> = manager.known.lock().unwrap().kept.keys().cloned().collect();
    assert_eq!(kept, Vec::<String>::new());
}

/// A manager that may keep nothing isn't left with anybody's memory.
#[test]
fn without_a_store_for_descriptors_everything_is_brought_back() {
    let test = "without_a_store_for_descriptors_everything_is_brought_back";
    if !can_serve(test) {
        return;
    }
    let place = Place::new();
    let manager = Manager::new(&place, Some(0));
    let mut daemon = manager.start(&place, &[]);
    let mut client = Talk::start(&mut patient::command(&place.at("s"), "extended"));
    client.expect_line_of_tests("ready");
    let pid = client.pid();
    let moved: Evicted = daemon.operator().ask(Request::Evict { pid, bytes: None }).unwrap();
    assert!(moved.moved_bytes > 0);
    let worker = daemon.status().worker_pid;
    daemon.keeper.kill().unwrap();
    daemon.keeper.wait().unwrap();
    until("its worker has ended", || state(worker).is_none_or(|state| state == "Z").then_some(()));
    client.ask("step");
    client.ask("check");
    assert!(client.end().success());
    assert_eq!(manager.count(), 0);
}

/// What one version can't take up is left to the one that can.
#[test]
fn what_another_version_left_is_refused() {
    let place = Place::new();
    let manager = Manager::new(&place, Some(512));
    let file = std::fs::File::open("/dev/null").unwrap();
    manager.known.lock().unwrap().kept.insert("userswap1.roster.9".into(), file.into());
    let mut command = Command::new("sh");
    let numbers: Vec<RawFd> = manager.known.lock().unwrap().kept.values().map(AsRawFd::as_raw_fd).collect();
    command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\"", USERSWAP, "daemon", "--listen", &place.at("s")]);
    command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "userswap1.roster.9");
    // SAFETY: as in `Manager::start`.
    unsafe {
        command.pre_exec(move || {
            give(&numbers);
            Ok(())
        });
    }
    let output = command.output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("it is of layout 1, this program's is"), "{said}");
}
