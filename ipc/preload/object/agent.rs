//! The agent: a thread of the program's that serves the daemon. START HERE.
//!
//! It has no thread-local storage, no signals, a file table of its own, and touches nothing of the program's but what it is
//! ordered to move. It lives as long as the process, for it holds the userfaultfd: closed, that would wake every waiting thread
//! with zeros.

use crate::control::{Buffers, Control, Request};
use crate::orders;
use crate::setup::{self, Enlisted};
use crate::socket::{Received, Socket};
use crate::state::STATE;
use crate::sys::{self, Fd, PollFd};
use crate::threads::Threads;
use crate::vigil::Vigil;
use crate::wire::{self, Message};

/// How long a process must have lived to be worth it. Most processes a shell or a compiler makes never get there, and cost the
/// daemon nothing.
const SETTLE: u64 = 20_000_000;

/// The thread's first function; never returns.
pub(crate) extern "C" fn run(block: usize) -> ! {
    // Before anything is opened: what this thread opens in the program's table the program could close, or a child keep.
    if sys::leave_file_table().is_ok() {
        let control = Control::of_block(block);
        // SAFETY: the block is mapped, and this is the only agent on it.
        let buffers = unsafe { Buffers::of_block(block) };
        live(control, buffers, block);
    }
    sys::exit_thread()
}

/// Returns when the agent isn't needed any more.
fn live(control: &'static Control, mut buffers: Buffers, block: usize) {
    sys::name_thread(c"userswap");
    let Ok(bell) = sys::bell() else { return };
    if settle(control, &bell) == Settled::NotNeeded {
        return;
    }
    match setup::enlist(&mut buffers, block) {
        Ok(enlisted) => {
            sys::drop_capabilities();
            serve(control, Threads::of_block(block), &bell, enlisted, &mut buffers);
        }
        // Nothing was ever moved: whoever asks for something to be left alone has it.
        Err(setup::Unmanaged) => finish(control),
    }
}

#[derive(PartialEq, Eq)]
enum Settled {
    Connect,
    NotNeeded,
}

/// Waits until the process has lived a while. Meanwhile everything asked for is so already, but for a forked child: its parent's
/// ranges are registered in it, and pages may be out of them. Then it is for the daemon to do, and the child a client at once.
fn settle(control: &Control, bell: &Fd) -> Settled {
    loop {
        match sys::poll(&mut [PollFd::readable(Some(bell))], Some(SETTLE)) {
            Ok(0) => return Settled::Connect,
            Ok(_) => {}
            Err(_) => return Settled::NotNeeded,
        }
        answer_bell(bell);
        if STATE.is_enlisted() && control.is_asked() {
            return Settled::Connect;
        }
        match control.taken() {
            Some(Request::Retire(_)) => {
                retired(control);
                return Settled::NotNeeded;
            }
            Some(Request::Exclude(_)) => control.answer(true),
            None => {}
        }
    }
}

/// Answers what was asked last, before the thread ends. What is asked later is refused by the absence of an agent.
fn finish(control: &Control) {
    match control.taken() {
        Some(Request::Retire(_)) => retired(control),
        Some(Request::Exclude(_)) => control.answer(true),
        None => {}
    }
}

fn retired(control: &Control) {
    STATE.set_retired(true);
    STATE.set_enlisted(false);
    control.answer(true);
}

fn answer_bell(bell: &Fd) {
    // A signalfd's record of one signal.
    let mut record = [0_u8; 128];
    let _ = sys::read(bell, &mut record);
}

/// The agent once it is a client.
pub(crate) struct Agent {
    control: &'static Control,
    threads: &'static Threads,
    /// `None` once the daemon is gone. What it has moved out stays out, and whoever touches it waits.
    socket: Option<Socket>,
    vigil: Vigil,
    areas: setup::Areas,
    uffd: Fd,
    pagemap: Option<Fd>,
    /// The request a thread of the program waits for, and the number it was sent under.
    outstanding: Option<(u64, Request)>,
    last: u64,
}

/// How long an answer may take before the question is asked again.
const ASK_AGAIN: u64 = 200_000_000;

fn send_request(socket: &Socket, send: &mut [u8], number: u64, asked: Request) -> bool {
    let message = match asked {
        Request::Exclude(region) => wire::exclude(send, number, region),
        Request::Retire(why) => wire::retire(send, number, why),
    };
    message.is_some_and(|message| socket.send(message, None).is_ok())
}

enum Next {
    Go,
    Leave,
}

fn serve(
    control: &'static Control,
    threads: &'static Threads,
    bell: &Fd,
    enlisted: Enlisted,
    buffers: &mut Buffers,
) {
    let Enlisted { socket, uffd, areas, line } = enlisted;
    let pagemap = sys::open(c"/proc/thread-self/pagemap", 0).ok();
    let mut agent = Agent {
        control,
        threads,
        socket: Some(socket),
        vigil: Vigil::new(line, &uffd),
        areas,
        uffd,
        pagemap,
        outstanding: None,
        last: setup::LAST_REQUEST,
    };
    // Somebody may have rung while this thread was busy.
    let mut next = agent.ask(buffers.send);
    while let Next::Go = next {
        let socket = agent.socket.as_ref().map(Socket::fd);
        let watched = agent.vigil.watched(&agent.uffd);
        let mut fds = [PollFd::readable(socket), PollFd::readable(Some(bell)), PollFd::readable(watched)];
        match sys::poll(&mut fds, agent.patience()) {
            Ok(0) => {
                agent.vigil.look(false, &agent.uffd);
                next = agent.ask_again(buffers.send);
                continue;
            }
            Ok(_) => {}
            Err(_) => continue,
        }
        let [message, rung, seen] = fds;
        agent.vigil.look(seen.has_come(), &agent.uffd);
        if message.came != 0 {
            next = agent.receive(buffers);
        }
        if rung.came != 0 && matches!(next, Next::Go) {
            answer_bell(bell);
            next = agent.ask(buffers.send);
        }
    }
}

impl Agent {
    /// Takes one message from the daemon.
    fn receive(&mut self, buffers: &mut Buffers) -> Next {
        let Some(socket) = &self.socket else { return Next::Go };
        let len = match socket.receive(buffers.receive) {
            Received::Message(len, _) => len,
            Received::Nothing => return Next::Go,
            Received::Closed => return self.daemon_gone(),
        };
        let bytes = buffers.receive.get(..len).unwrap_or_default();
        let Some((request, message)) = wire::parse(bytes) else { return self.daemon_gone() };
        let reply = match message {
            Message::Excluded | Message::Retired => {
                return self.answered(request, message == Message::Retired);
            }
            Message::Move { mover, ranges } => {
                // From here on a child can't do without the userfaultfd it inherits.
                STATE.set_enlisted(true);
                let move_range = |index| orders::move_range(self, mover, &ranges, index);
                wire::moved(buffers.send, request, ranges.count, move_range)
            }
            Message::Drop { how, areas } => {
                if orders::drop_areas(&self.areas, how, &areas) {
                    wire::dropped(buffers.send, request)
                } else {
                    None
                }
            }
            Message::Unshare { areas } => {
                orders::unshare(self, &areas);
                wire::unshared(buffers.send, request)
            }
            Message::Welcome { .. } | Message::Staged | Message::Enlisted { .. } | Message::Transferred => {
                None
            }
        };
        match reply {
            Some(reply) if socket.send(reply, None).is_ok() => Next::Go,
            _ => self.daemon_gone(),
        }
    }

    /// Passes on what a thread of the program asks.
    fn ask(&mut self, send: &mut [u8]) -> Next {
        let Some(asked) = self.control.taken() else { return Next::Go };
        let Some(socket) = &self.socket else {
            self.control.answer(false);
            return Next::Go;
        };
        self.last += 1;
        self.outstanding = Some((self.last, asked));
        if send_request(socket, send, self.last, asked) { Next::Go } else { self.daemon_gone() }
    }

    /// How long to wait for a message.
    fn patience(&self) -> Option<u64> {
        self.outstanding.map_or_else(|| self.vigil.time(), |_| Some(ASK_AGAIN))
    }

    /// Who had read the request may be dead, and its successor not know of it. To ask twice for the same is to ask once.
    fn ask_again(&mut self, send: &mut [u8]) -> Next {
        let (Some(socket), Some((number, asked))) = (&self.socket, self.outstanding) else { return Next::Go };
        if send_request(socket, send, number, asked) { Next::Go } else { self.daemon_gone() }
    }

    /// What was asked is so.
    fn answered(&mut self, request: u64, retire: bool) -> Next {
        // An answer to what was asked twice comes twice.
        if self.outstanding.is_none_or(|(number, _)| number != request) {
            return if request <= self.last { Next::Go } else { self.daemon_gone() };
        }
        self.outstanding = None;
        if retire {
            retired(self.control);
            return Next::Leave;
        }
        self.control.answer(true);
        Next::Go
    }

    fn daemon_gone(&mut self) -> Next {
        self.socket = None;
        self.vigil.begin();
        if self.outstanding.take().is_some() {
            self.control.answer(false);
        }
        Next::Go
    }

    pub(crate) fn control(&self) -> &'static Control {
        self.control
    }

    pub(crate) fn threads(&self) -> &'static Threads {
        self.threads
    }

    pub(crate) fn uffd(&self) -> &Fd {
        &self.uffd
    }

    pub(crate) fn pagemap(&self) -> Option<&Fd> {
        self.pagemap.as_ref()
    }

    pub(crate) fn areas(&self) -> &setup::Areas {
        &self.areas
    }
}
