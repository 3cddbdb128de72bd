//! The control socket: an operator's questions and orders to a running daemon.
//!
//! A Unix stream socket, open to its owner alone (0600), and the peer's user is looked at beside: the daemon's own, or root. A connection carries any number
//! of exchanges, one after the other: one line of JSON there, one line back.
//!
//! | request | answer |
//! |---|---|
//! | `{"do":"status"}` | [`Status`] |
//! | `{"do":"clients"}` | a list of [`ClientReport`] |
//! | `{"do":"evict","pid":N}` or with `"bytes":N` | [`Evicted`], once the pages are out |
//! | `{"do":"restore","pid":N}` | [`Restored`], once they are back |
//! | `{"do":"working-set","pid":N}` | [`InMemory`] |
//! | `{"do":"bring","pid":N,"runs":[[P,N],…]}`, pages in a row, the first by its address by the page size, and how many | [`Brought`], once they are back |
//! | `{"do":"limit","bytes":N}`, 0 for none | [`Limited`] |
//! | `{"do":"policy"}` or with `"set":{…}`, of the keys of a policy file | [`InForce`] |
//! | `{"do":"hint","pid":N,"hints":{…}}` with any of `visible`, `audible`, `loading`, `frozen`, each true or false | [`Hinted`] |
//! | `{"do":"drain"}` | [`Drained`], once every client has all its memory back and was let go; the daemon then ends |
//!
//! An answer is `{"ok":…}`, or `{"error":{"kind":…,"message":…}}` with the kind one of `request`, `no-client`, `failed`.

use super::confinement::Confinement;
use super::error::{ServerError, chain};
use super::report::{StoreStatus, Totals};
use super::service::Desk;
use super::settings::PolicySettings;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use userswap_policy::chromium::Hint;
use userswap_policy::working_set::Run;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Everything there is to know.
    Status,
    /// Who is served.
    Clients,
    /// Move a client's memory out.
    Evict {
        /// Its process.
        pid: u32,
        /// How much; everything movable without.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
    },
    /// Bring all of a client's memory back.
    Restore {
        /// Its process.
        pid: u32,
    },
    /// Say which pages of a client are in memory.
    #[serde(rename = "working-set")]
    WorkingSet {
        /// Its process.
        pid: u32,
    },
    /// Bring in what of these pages of a client is out, beside what its threads wait for.
    Bring {
        /// Its process.
        pid: u32,
        /// Pages in a row: the first's address by the page size, and how many.
        runs: Vec<Run>,
    },
    /// Hold all clients together to another limit.
    Limit {
        /// In bytes; 0 is none.
        bytes: u64,
    },
    /// Say which policy is in force, or put another one in force.
    Policy {
        /// The other one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        set: Option<Box<PolicySettings>>,
    },
    /// Tell the policy something of a client.
    Hint {
        /// Its process.
        pid: u32,
        /// What.
        hints: Hints,
    },
    /// Bring everything back, let everybody go, end.
    Drain,
}

/// What can be told of a client. What isn't said stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hints {
    /// Whether a person sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visible: Option<bool>,
    /// Whether it is heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audible: Option<bool>,
    /// Whether it is still loading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loading: Option<bool>,
    /// Whether it was frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<bool>,
}

impl Hints {
    fn all(self) -> Vec<Hint> {
        let Self { visible, audible, loading, frozen } = self;
        // Whether it is seen comes first: who freezes has a round by what else is known.
        let told = [
            visible.map(Hint::Visible),
            audible.map(Hint::Audible),
            loading.map(Hint::Loading),
            frozen.map(Hint::Frozen),
        ];
        told.into_iter().flatten().collect()
    }
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply<T> {
    /// What was asked for.
    Ok(T),
    /// Why not.
    Error(Refusal),
}

/// Why something asked for didn't happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What sort of reason.
    pub kind: RefusalKind,
    /// A sentence.
    pub message: String,
}

/// Sorts of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// The request can't be understood.
    Request,
    /// No client has that process id.
    NoClient,
    /// It was tried and failed.
    Failed,
}

/// Everything there is to know of a daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The process that serves the faults.
    pub worker_pid: u32,
    /// What all clients together are held to; 0 for no limit.
    pub limit_bytes: u64,
    /// Who is served.
    pub clients: Vec<ClientReport>,
    /// What the store holds now.
    pub store: StoreStatus,
    /// The sums of the report.
    pub totals: Totals,
    /// How far the process that serves is confined.
    #[serde(default)]
    pub confinement: Confinement,
}

/// One client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientReport {
    /// Its process; 0 for a forked child that hasn't said who it is, of which the resident bytes aren't known.
    pub pid: u32,
    /// Anonymous memory it has, by its share of what it shares.
    pub resident_bytes: u64,
    /// Bytes out of its memory, in slots or stored.
    pub moved_out_bytes: u64,
    /// Of these, in slots, uncompressed.
    pub standby_bytes: u64,
    /// How long the one of its threads that waited longest has waited for what was out, since it is served, in microseconds.
    #[serde(default)]
    pub stalled_us: u64,
}

/// What moving out came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evicted {
    /// Bytes that left its memory.
    pub moved_bytes: u64,
    /// Bytes written to the store.
    pub stored_bytes: u64,
    /// Pages left alone since they are pinned, or shared with a forked relative.
    pub pinned_pages: u64,
}

/// What bringing back came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Bytes that came back.
    pub restored_bytes: u64,
}

/// Which pages are in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InMemory {
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Pages in a row: the first's address by that, and how many; in order.
    pub runs: Vec<Run>,
}

/// What bringing in came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brought {
    /// Bytes that were out and asked for.
    pub brought_bytes: u64,
}

/// Runs of pages of one [`Request::Bring`], at most: they have room in a request.
pub const MOST_RUNS: usize = 256;

/// The limit that holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limited {
    /// In bytes; 0 is none.
    pub limit_bytes: u64,
}

/// The policy in force: all its settings, those of other presets, too. `None` if it is none of the presets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InForce {
    /// The settings.
    pub policy: Option<PolicySettings>,
}

/// The policy knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hinted {
    /// How many hints there were.
    pub hints: u64,
}

/// Everything is back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// How many clients were let go.
    pub clients: u64,
}

/// Why a control socket can't be had, or a daemon not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Somebody listens there.
    #[error("the control socket {path} is in use by another daemon")]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{path} is there already and is no socket")]
    NotASocket {
        /// Where.
        path: PathBuf,
    },
    /// It can't be made.
    #[error("listening for orders at {path}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Threads or descriptors can't be had.
    #[error("{doing}")]
    Start {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("no daemon answers at {path}")]
    Connect {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The exchange broke off.
    #[error("talking to the daemon")]
    Talk {
        /// Why.
        source: io::Error,
    },
    /// The daemon refused.
    #[error("{}", .0.message)]
    Refused(Refusal),
}

/// The operator's end.
#[derive(Debug)]
pub struct Operator {
    lines: BufReader<UnixStream>,
}

impl Operator {
    /// Connects to a daemon's control socket.
    ///
    /// # Errors
    /// [`ControlError::Connect`].
    pub fn connect(path: &Path) -> Result<Self, ControlError> {
        let socket = UnixStream::connect(path)
            .map_err(|source| ControlError::Connect { path: path.to_path_buf(), source })?;
        Ok(Self { lines: BufReader::new(socket) })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`ControlError::Refused`] with the daemon's reason, [`ControlError::Talk`].
    pub fn ask<T: DeserializeOwned>(&mut self, request: Request) -> Result<T, ControlError> {
        let talk = |source| ControlError::Talk { source };
        write_line(self.lines.get_mut(), &request).map_err(talk)?;
        let mut line = String::new();
        if self.lines.read_line(&mut line).map_err(talk)? == 0 {
            return Err(talk(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection")));
        }
        match serde_json::from_str(&line).map_err(|error| talk(error.into()))? {
            Reply::Ok(answer) => Ok(answer),
            Reply::Error(refusal) => Err(ControlError::Refused(refusal)),
        }
    }
}

/// The daemon's end: answers until it is dropped.
pub(super) struct Control {
    path: PathBuf,
    listener: Arc<UnixListener>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A request longer than this is none.
const LONGEST_LINE: u64 = 16 << 10;

/// A control socket that nobody serves yet.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ControlSocket {
    /// Listens at `path`. A socket nobody listens on any more is replaced. The file stays until a service that serves it ends.
    ///
    /// # Errors
    /// [`ControlError::InUse`], [`ControlError::NotASocket`], [`ControlError::Listen`].
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        let failed = |source| ControlError::Listen { path: path.to_path_buf(), source };
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                UnixListener::bind(path)
            }
            answer => answer,
        };
        let listener = listener.map_err(failed)?;
        let socket = Self { path: path.to_path_buf(), listener };
        // Whoever came before this is turned away for its user.
        if let Err(source) = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)) {
            let _ = std::fs::remove_file(path);
            return Err(failed(source));
        }
        Ok(socket)
    }
}

impl ControlSocket {
    /// A socket that listens at `path` already.
    #[cfg(feature = "run")]
    pub(super) fn resume(socket: std::os::fd::OwnedFd, path: &Path) -> Self {
        Self { path: path.to_path_buf(), listener: socket.into() }
    }
}

impl std::os::fd::AsFd for ControlSocket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Control {
    /// Serves a socket.
    pub(super) fn serve(socket: ControlSocket, desk: Arc<Desk>) -> Result<Self, ControlError> {
        let ControlSocket { path, listener } = socket;
        let listener = Arc::new(listener);
        let stop = Arc::new(AtomicBool::new(false));
        // From here on dropping it removes the file.
        let mut control =
            Self { path, listener: Arc::clone(&listener), stop: Arc::clone(&stop), thread: None };
        let thread = std::thread::Builder::new()
            .name("userswap-control".into())
            .spawn(move || accept(&listener, &stop, &desk))
            .map_err(|source| ControlError::Start { doing: "starting to listen for orders", source })?;
        control.thread = Some(thread);
        Ok(control)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Takes operators on, a thread each: one that waits for its pages to be out keeps nobody.
fn accept(listener: &UnixListener, stop: &AtomicBool, desk: &Arc<Desk>) {
    let mut talking: Vec<(UnixStream, JoinHandle<()>)> = Vec::new();
    while !stop.load(Ordering::Acquire) {
        let socket = match listener.accept() {
            Ok((socket, _)) => socket,
            Err(_) if stop.load(Ordering::Acquire) => break,
            Err(error) => {
                tracing::warn!(%error, "accepting an operator");
                std::thread::sleep(std::time::Duration::from_millis(100));
                continue;
            }
        };
        talking.retain(|(_, thread)| !thread.is_finished());
        if !is_allowed(&socket) {
            tracing::warn!("an operator of another user was turned away");
            continue;
        }
        let Ok(own) = socket.try_clone() else { continue };
        let desk = Arc::clone(desk);
        let talk = std::thread::Builder::new().name("userswap-operator".into()).spawn(move || {
            if let Err(error) = talk(&socket, &desk) {
                tracing::debug!(%error, "an operator left");
            }
        });
        match talk {
            Ok(thread) => talking.push((own, thread)),
            Err(error) => tracing::warn!(%error, "no thread for an operator"),
        }
    }
    // The last answers are still written; nothing more is read.
    for (socket, thread) in talking {
        let _ = socket.shutdown(std::net::Shutdown::Read);
        let _ = thread.join();
    }
}

/// Whether the peer is of the daemon's own user, or root.
fn is_allowed(socket: &UnixStream) -> bool {
    let own = rustix::process::geteuid();
    rustix::net::sockopt::socket_peercred(socket).is_ok_and(|peer| peer.uid == own || peer.uid.is_root())
}

fn talk(socket: &UnixStream, desk: &Desk) -> io::Result<()> {
    let mut lines = BufReader::new(socket);
    loop {
        let mut line = Vec::new();
        if lines.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        match serde_json::from_slice(&line) {
            Ok(request) => answer(socket, desk, request)?,
            Err(error) => {
                let message = format!("the request can't be understood: {error}");
                write_line(socket, &Reply::<()>::Error(Refusal { kind: RefusalKind::Request, message }))?;
                return Ok(());
            }
        }
    }
}

fn answer(socket: &UnixStream, desk: &Desk, request: Request) -> io::Result<()> {
    let page = userswap_uffd::page_bytes();
    match request {
        Request::Status => write_line(socket, &Reply::Ok(desk.status())),
        Request::Clients => write_line(socket, &Reply::Ok(desk.clients())),
        Request::Evict { pid, bytes } => reply(
            socket,
            desk.evict(pid, bytes).map(|moved| Evicted {
                moved_bytes: moved.moved * page,
                stored_bytes: moved.stored * page,
                pinned_pages: moved.pinned,
            }),
        ),
        Request::Restore { pid } => {
            reply(socket, desk.restore(pid).map(|restored_bytes| Restored { restored_bytes }))
        }
        Request::WorkingSet { pid } => reply(
            socket,
            desk.working_set(pid)
                .map(|set| InMemory { page_bytes: set.page_bytes(), runs: set.runs().to_vec() }),
        ),
        Request::Bring { pid, runs } => {
            reply(socket, desk.bring_early(pid, &runs).map(|brought_bytes| Brought { brought_bytes }))
        }
        Request::Limit { bytes } => {
            desk.set_limit(bytes);
            write_line(socket, &Reply::Ok(Limited { limit_bytes: bytes }))
        }
        Request::Policy { set } => {
            if let Some(Err(error)) = set.map(|settings| desk.set_settings(*settings)) {
                let refusal = Refusal { kind: RefusalKind::Request, message: error.to_string() };
                return write_line(socket, &Reply::<()>::Error(refusal));
            }
            write_line(socket, &Reply::Ok(InForce { policy: desk.settings() }))
        }
        Request::Hint { pid, hints } => {
            let hints = hints.all();
            let told = Hinted { hints: hints.len() as u64 };
            reply(socket, desk.hint(pid, &hints).map(|()| told))
        }
        Request::Drain => {
            let clients = desk.clients().len() as u64;
            reply(socket, desk.drain().map(|()| Drained { clients }))
        }
    }
}

fn reply<T: Serialize>(socket: &UnixStream, answer: Result<T, ServerError>) -> io::Result<()> {
    let reply = answer.map_or_else(
        |error| {
            let kind = match error {
                ServerError::NoClient { .. } => RefusalKind::NoClient,
                _ => RefusalKind::Failed,
            };
            Reply::Error(Refusal { kind, message: chain(&error) })
        },
        Reply::Ok,
    );
    write_line(socket, &reply)
}

fn write_line<T: Serialize>(mut socket: &UnixStream, value: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    socket.write_all(&line)
}

/// Removes a socket on which nobody listens.
fn remove_stale(path: &Path) -> Result<(), ControlError> {
    let failed = |source| ControlError::Listen { path: path.to_path_buf(), source };
    if !std::fs::symlink_metadata(path).map_err(failed)?.file_type().is_socket() {
        return Err(ControlError::NotASocket { path: path.to_path_buf() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        _ => Err(ControlError::InUse { path: path.to_path_buf() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_the_lines_they_are_said_to_be() {
        for (request, line) in [
            (Request::Status, r#"{"do":"status"}"#),
            (Request::Clients, r#"{"do":"clients"}"#),
            (Request::Evict { pid: 7, bytes: None }, r#"{"do":"evict","pid":7}"#),
            (Request::Evict { pid: 7, bytes: Some(4096) }, r#"{"do":"evict","pid":7,"bytes":4096}"#),
            (Request::Restore { pid: 7 }, r#"{"do":"restore","pid":7}"#),
            (Request::WorkingSet { pid: 7 }, r#"{"do":"working-set","pid":7}"#),
            (
                Request::Bring { pid: 7, runs: vec![(u64::MAX, 1), (5, 2)] },
                r#"{"do":"bring","pid":7,"runs":[[18446744073709551615,1],[5,2]]}"#,
            ),
            (Request::Limit { bytes: 0 }, r#"{"do":"limit","bytes":0}"#),
            (Request::Drain, r#"{"do":"drain"}"#),
            (Request::Policy { set: None }, r#"{"do":"policy"}"#),
            (
                Request::Hint { pid: 7, hints: Hints { frozen: Some(true), ..Hints::default() } },
                r#"{"do":"hint","pid":7,"hints":{"frozen":true}}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), line);
            assert_eq!(serde_json::from_str::<Request>(line).unwrap(), request);
        }
        for line in [
            r#"{"do":"hint","pid":7,"hints":{"tired":true}}"#,
            r#"{"do":"policy","set":{"presets":1}}"#,
            r#"{"do":"bring","pid":7,"runs":[[1,-1]]}"#,
            r#"{"do":"evict"}"#,
            r#"{"do":"dance"}"#,
            r#"{"do":"limit","bytes":-1}"#,
            "status",
            "",
        ] {
            assert!(serde_json::from_str::<Request>(line).is_err(), "{line}");
        }
    }

    #[test]
    fn as_many_runs_as_a_request_may_have_fit_its_line() {
        let runs = vec![(u64::MAX >> 12, u64::MAX >> 12); MOST_RUNS];
        let line = serde_json::to_string(&Request::Bring { pid: u32::MAX, runs }).unwrap();
        assert!((line.len() as u64) < LONGEST_LINE);
    }

    #[test]
    fn answers_are_the_lines_they_are_said_to_be() {
        let ok = serde_json::to_string(&Reply::Ok(Limited { limit_bytes: 5 })).unwrap();
        assert_eq!(ok, r#"{"ok":{"limit_bytes":5}}"#);
        let refusal = Refusal { kind: RefusalKind::NoClient, message: "process 7 is no client".into() };
        let error = serde_json::to_string(&Reply::<()>::Error(refusal)).unwrap();
        assert_eq!(error, r#"{"error":{"kind":"no-client","message":"process 7 is no client"}}"#);
    }
}
