//! The daemon's part in setting up, without I/O: which call may come when, what is answered, what is kept.

use userswap_uffd::{Span, SpanError};

use crate::contract::{Contract, MemoryRegion};
use crate::extension::{Abilities, Agent, AgentKind, AgentReply, HelloReply, VERSION};
use crate::wire::{ToClient, ToDaemon};

/// What a daemon offers a client.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// The contract it speaks.
    pub contract: Contract,
    /// What it would grant.
    pub abilities: Abilities,
    /// Pages of staging it asks for, with [`Abilities::UFFD_MOVE`].
    pub staging_pages: u64,
    /// The largest swap area it takes, in bytes: what it keeps about an area grows with it.
    pub max_swap_area: u64,
}

/// Why a client isn't taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The client couldn't create a userfaultfd.
    #[error("the client could not create a userfaultfd: errno {errno}")]
    ClientUffd {
        /// Its error number.
        errno: u64,
    },
    /// The client couldn't map a swap area.
    #[error("the client could not map a swap area: errno {errno}")]
    ClientMmap {
        /// Its error number.
        errno: u64,
    },
    /// Neither an error nor a handle.
    #[error("the client sent no userfaultfd and no error")]
    NoHandle,
    /// An area at address 0, which says that there is none.
    #[error("the client's {what} is at address 0")]
    AtZero {
        /// Which area.
        what: &'static str,
    },
    /// An area that is no range of whole pages in user space.
    #[error("the client's {what}, {region:?}, is no range of pages")]
    NotARange {
        /// Which area.
        what: &'static str,
        /// The area.
        region: MemoryRegion,
        /// What is wrong with it.
        source: SpanError,
    },
    /// An area of another size than it may have.
    #[error("the client's {what}, {area:?}, has the wrong size")]
    WrongSize {
        /// Which area.
        what: &'static str,
        /// The area.
        area: Span,
    },
    /// The swap area and the staging area overlap.
    #[error("the client's swap area {swap:?} overlaps its staging area {staging:?}")]
    Overlap {
        /// The swap area.
        swap: Span,
        /// The staging area.
        staging: Span,
    },
    /// A call at the wrong time: a second one, one without a `Hello` before, a reply to nothing.
    #[error("the client sent {what} out of turn")]
    OutOfTurn {
        /// The call.
        what: &'static str,
    },
    /// The area for moving wasn't announced, though it was granted.
    #[error("the client announced no staging area")]
    NoStaging,
}

/// What a client handed over.
#[derive(Debug, PartialEq, Eq)]
pub struct Handover<H> {
    /// The userfaultfd; that it is one is still to be seen.
    pub uffd: H,
    /// The swap area.
    pub swap_area: Span,
    /// The staging area, with [`Abilities::UFFD_MOVE`].
    pub staging: Option<Span>,
    /// What was granted.
    pub abilities: Abilities,
    /// What the agent told, if the client is a program that knows nothing of it.
    pub program: Option<Program>,
}

/// What an agent told about the program it speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The agent's process, in its own pid namespace.
    pub pid: u32,
    /// The agent's thread, in its own pid namespace: as its faults have it.
    pub tid: u32,
    /// The page to keep registered.
    pub sentinel: Span,
    /// What must never be moved.
    pub ours: Vec<Span>,
}

/// A forked child that asks for its userfaultfd.
#[derive(Debug, PartialEq, Eq)]
pub struct Claim {
    /// What its agent told; the fault to look for is by [`Program::tid`] in [`Program::sentinel`].
    pub program: Program,
    /// The staging area, with [`Abilities::UFFD_MOVE`].
    pub staging: Option<Span>,
    /// What was granted.
    pub abilities: Abilities,
}

/// What is to be done about a client's call.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<H> {
    /// Welcome it: grant what is granted here, with the handles that go with it.
    Welcome(Abilities),
    /// Send this reply.
    Reply(ToClient<H>),
    /// Send the empty reply to `TransferUserfaultFD`; then it is a client, or isn't.
    Transferred(Result<Handover<H>, SetupError>),
    /// It is a forked child's agent: the call is to be answered once its userfaultfd is known.
    Child(Claim),
    /// Nothing: a hint that came early.
    Nothing,
}

/// The state of setting up one client.
#[derive(Debug)]
pub struct Setup {
    offer: Offer,
    greeted: bool,
    transferred: bool,
    granted: Abilities,
    staging: Option<Span>,
    program: Option<Program>,
}

impl Setup {
    /// Waits for the client's first call.
    pub fn new(offer: Offer) -> Self {
        let granted = Abilities::empty();
        Self { offer, greeted: false, transferred: false, granted, staging: None, program: None }
    }

    /// Takes the client's next call.
    ///
    /// # Errors
    /// Why the connection is to be closed without an answer.
    pub fn take<H>(&mut self, message: ToDaemon<H>) -> Result<Step<H>, SetupError> {
        match message {
            ToDaemon::Hello(hello) => {
                if self.greeted || self.transferred {
                    return Err(SetupError::OutOfTurn { what: "Hello" });
                }
                self.greeted = true;
                if hello.version == VERSION {
                    self.granted = Abilities::from_bits_truncate(hello.wants) & self.offer.abilities;
                }
                Ok(Step::Welcome(self.granted))
            }
            ToDaemon::Staging(staging) => {
                let granted = self.granted.contains(Abilities::UFFD_MOVE);
                if !granted || self.staging.is_some() || self.transferred {
                    return Err(SetupError::OutOfTurn { what: "Staging" });
                }
                let area = check("staging area", staging.area)?;
                if area.pages() != self.offer.staging_pages {
                    return Err(SetupError::WrongSize { what: "staging area", area });
                }
                self.staging = Some(area);
                Ok(Step::Reply(ToClient::Staged))
            }
            ToDaemon::TransferUserfaultFd(transfer) => {
                if self.transferred {
                    return Err(SetupError::OutOfTurn { what: "TransferUserfaultFD" });
                }
                self.transferred = true;
                // The order in which the errors are looked at is the contract's.
                let handle = match (transfer.uffd_error, transfer.mmap_error, transfer.uffd_handle) {
                    (0, 0, Some(handle)) => Ok(handle),
                    (0, 0, None) => Err(SetupError::NoHandle),
                    (0, errno, _) => Err(SetupError::ClientMmap { errno }),
                    (errno, _, _) => Err(SetupError::ClientUffd { errno }),
                };
                let client = handle.and_then(|uffd| {
                    let swap_area = self.check_swap_area(transfer.swap_area)?;
                    let (staging, abilities) = (self.staging, self.granted);
                    let program = self.program.take();
                    Ok(Handover { uffd, swap_area, staging, abilities, program })
                });
                Ok(Step::Transferred(client))
            }
            ToDaemon::Hint(_) if self.granted.contains(Abilities::HINTS) => Ok(Step::Nothing),
            ToDaemon::Hint(_) => Err(SetupError::OutOfTurn { what: "Hint" }),
            ToDaemon::Agent(agent) => self.enlist(&agent),
            ToDaemon::Exclude(_) => Err(SetupError::OutOfTurn { what: "Exclude" }),
            ToDaemon::Retire(_) => Err(SetupError::OutOfTurn { what: "Retire" }),
            ToDaemon::SuperPagesUsed(_) | ToDaemon::Moved(_) | ToDaemon::Dropped | ToDaemon::Unshared => {
                Err(SetupError::OutOfTurn { what: "a reply" })
            }
        }
    }

    /// The reply to `Hello` that goes with what was granted, around the handle for it.
    pub fn welcome<H>(&self, uffd_device: Option<H>) -> ToClient<H> {
        let moves = self.granted.contains(Abilities::UFFD_MOVE);
        ToClient::Welcome(HelloReply {
            version: VERSION,
            granted: self.granted.bits(),
            uffd_device,
            staging_pages: if moves { self.offer.staging_pages } else { 0 },
        })
    }

    fn enlist<H>(&mut self, agent: &Agent) -> Result<Step<H>, SetupError> {
        let granted = self.granted.contains(Abilities::AGENT);
        if !granted || self.program.is_some() || self.transferred {
            return Err(SetupError::OutOfTurn { what: "Agent" });
        }
        if self.staging.is_none() && self.granted.contains(Abilities::UFFD_MOVE) {
            return Err(SetupError::NoStaging);
        }
        let sentinel = check("sentinel", agent.sentinel)?;
        if sentinel.pages() != 1 {
            return Err(SetupError::WrongSize { what: "sentinel", area: sentinel });
        }
        let ours = agent.ours.iter().map(|region| check("own memory", *region)).collect::<Result<_, _>>()?;
        let program = Program { pid: agent.pid, tid: agent.tid, sentinel, ours };
        match agent.kind {
            AgentKind::Exec => {
                self.program = Some(program);
                Ok(Step::Reply(ToClient::Enlisted(AgentReply { uffd: None })))
            }
            AgentKind::Forked => {
                // Nothing else may follow.
                self.transferred = true;
                Ok(Step::Child(Claim { program, staging: self.staging, abilities: self.granted }))
            }
        }
    }

    fn check_swap_area(&self, region: MemoryRegion) -> Result<Span, SetupError> {
        let area = check("swap area", region)?;
        if area.len() > self.offer.max_swap_area {
            return Err(SetupError::WrongSize { what: "swap area", area });
        }
        match self.staging {
            Some(staging) if staging.overlaps(&area) => Err(SetupError::Overlap { swap: area, staging }),
            None if self.granted.contains(Abilities::UFFD_MOVE) => Err(SetupError::NoStaging),
            _ => Ok(area),
        }
    }
}

fn check(what: &'static str, region: MemoryRegion) -> Result<Span, SetupError> {
    if region.address == 0 {
        return Err(SetupError::AtZero { what });
    }
    Span::new(region.address, region.length).map_err(|source| SetupError::NotARange { what, region, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::TransferUserfaultFd;
    use crate::extension::{Hello, Staging};

    fn setup() -> Setup {
        Setup::new(Offer {
            contract: Contract::Extended,
            abilities: Abilities::ORDERS | Abilities::UFFD_MOVE,
            staging_pages: 16,
            max_swap_area: 1 << 30,
        })
    }

    fn transfer(uffd_error: u64, mmap_error: u64, uffd_handle: Option<u32>) -> ToDaemon<u32> {
        let swap_area = MemoryRegion::new(0x1000_0000, 0x64_0000);
        ToDaemon::TransferUserfaultFd(TransferUserfaultFd { uffd_error, uffd_handle, mmap_error, swap_area })
    }

    fn transferred(setup: &mut Setup, message: ToDaemon<u32>) -> Result<Handover<u32>, SetupError> {
        match setup.take(message) {
            Ok(Step::Transferred(client)) => client,
            other => panic!("not answered: {other:?}"),
        }
    }

    #[test]
    fn errors_are_looked_at_in_order_and_always_answered() {
        let client = transferred(&mut setup(), transfer(1, 2, Some(3)));
        assert_eq!(client, Err(SetupError::ClientUffd { errno: 1 }));
        let client = transferred(&mut setup(), transfer(0, 2, None));
        assert_eq!(client, Err(SetupError::ClientMmap { errno: 2 }));
        let client = transferred(&mut setup(), transfer(0, 0, None));
        assert_eq!(client, Err(SetupError::NoHandle));
        let client = transferred(&mut setup(), transfer(0, 0, Some(3))).unwrap();
        assert_eq!((client.uffd, client.staging), (3, None));
    }

    #[test]
    fn a_connection_transfers_once() {
        let mut setup = setup();
        let _ = transferred(&mut setup, transfer(1, 0, None));
        let again = setup.take(transfer(0, 0, Some(3)));
        assert_eq!(again, Err(SetupError::OutOfTurn { what: "TransferUserfaultFD" }));
        let hello = ToDaemon::<u32>::Hello(Hello { version: VERSION, wants: 0 });
        assert_eq!(setup.take(hello), Err(SetupError::OutOfTurn { what: "Hello" }));
    }

    #[test]
    fn swap_areas_are_checked() {
        let area = |address, length| {
            transferred(
                &mut setup(),
                ToDaemon::TransferUserfaultFd(TransferUserfaultFd {
                    uffd_error: 0,
                    uffd_handle: Some(3),
                    mmap_error: 0,
                    swap_area: MemoryRegion { address, length },
                }),
            )
        };
        assert_eq!(area(0, 0x1000), Err(SetupError::AtZero { what: "swap area" }));
        for (address, length) in
            [(0x1001, 0x1000), (0x1000, 0), (0x1000, 0x1001), (u64::MAX - 0xfff, 0x1000), (1 << 60, 0x1000)]
        {
            let refused = area(address, length);
            assert!(matches!(refused, Err(SetupError::NotARange { .. })), "{refused:?}");
        }
        assert!(matches!(area(0x1000, 1 << 31), Err(SetupError::WrongSize { .. })));
    }

    #[test]
    fn staging_follows_what_was_granted() {
        let staging =
            |address, length| ToDaemon::<u32>::Staging(Staging { area: MemoryRegion { address, length } });
        let mut strict = setup();
        assert!(strict.take(staging(0x1000_0000, 0x1_0000)).is_err(), "no Hello before");
        let mut setup = setup();
        let hello = Hello { version: VERSION, wants: u64::MAX };
        let granted = Abilities::ORDERS | Abilities::UFFD_MOVE;
        assert_eq!(setup.take(ToDaemon::<u32>::Hello(hello)), Ok(Step::Welcome(granted)));
        assert!(matches!(setup.take(staging(0x1000_0000, 0x1000)), Err(SetupError::WrongSize { .. })));
        assert_eq!(setup.take(staging(0x1001_0000, 0x1_0000)), Ok(Step::Reply(ToClient::Staged)));
        let client = transferred(&mut setup, transfer(0, 0, Some(1)));
        assert!(matches!(client, Err(SetupError::Overlap { .. })));
    }

    fn agent(kind: AgentKind, sentinel: MemoryRegion) -> ToDaemon<u32> {
        let ours = vec![MemoryRegion::new(0x3000_0000, 0x2_0000)];
        ToDaemon::Agent(Agent { kind, pid: 7, tid: 8, sentinel, ours })
    }

    fn greeted() -> Setup {
        let abilities = Abilities::ORDERS | Abilities::AGENT;
        let mut setup = Setup::new(Offer { abilities, ..setup().offer });
        let hello = Hello { version: VERSION, wants: u64::MAX };
        assert_eq!(setup.take(ToDaemon::<u32>::Hello(hello)), Ok(Step::Welcome(abilities)));
        setup
    }

    #[test]
    fn a_started_program_enlists_and_then_transfers() {
        let page = MemoryRegion::new(0x2000_0000, 0x1000);
        let mut setup = greeted();
        let reply = ToClient::Enlisted(AgentReply { uffd: None });
        assert_eq!(setup.take(agent(AgentKind::Exec, page)), Ok(Step::Reply(reply)));
        let again = setup.take(agent(AgentKind::Exec, page));
        assert_eq!(again, Err(SetupError::OutOfTurn { what: "Agent" }));
        let client = transferred(&mut setup, transfer(0, 0, Some(3))).unwrap();
        let program = client.program.unwrap();
        assert_eq!((program.pid, program.tid, program.sentinel.start()), (7, 8, 0x2000_0000));
        assert_eq!(program.ours.len(), 1);
    }

    #[test]
    fn a_forked_child_claims_and_has_nothing_to_transfer() {
        let page = MemoryRegion::new(0x2000_0000, 0x1000);
        let mut setup = greeted();
        let step = setup.take(agent(AgentKind::Forked, page));
        assert!(matches!(step, Ok(Step::Child(Claim { ref program, .. })) if program.tid == 8), "{step:?}");
        assert!(setup.take(transfer(0, 0, Some(3))).is_err());
    }

    #[test]
    fn an_agent_is_heard_only_where_that_was_granted_and_makes_sense() {
        let page = MemoryRegion::new(0x2000_0000, 0x1000);
        let refused = setup().take(agent(AgentKind::Exec, page));
        assert_eq!(refused, Err(SetupError::OutOfTurn { what: "Agent" }), "not granted");
        let two = MemoryRegion::new(0x2000_0000, 0x2000);
        let refused = greeted().take(agent(AgentKind::Exec, two));
        assert!(matches!(refused, Err(SetupError::WrongSize { what: "sentinel", .. })), "{refused:?}");
        let refused = greeted().take(agent(AgentKind::Exec, MemoryRegion::default()));
        assert_eq!(refused, Err(SetupError::AtZero { what: "sentinel" }));
    }

    #[test]
    fn another_version_is_granted_nothing() {
        let mut setup = setup();
        let hello = ToDaemon::<u32>::Hello(Hello { version: VERSION + 1, wants: u64::MAX });
        assert_eq!(setup.take(hello), Ok(Step::Welcome(Abilities::empty())));
        assert!(transferred(&mut setup, transfer(0, 0, Some(1))).is_ok());
    }
}
