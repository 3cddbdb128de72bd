//! What a client says of its own accord once it is set up: hints, and wishes that want an answer.

use std::os::fd::OwnedFd;

use userswap_uffd::Span;

use crate::contract::Method;
use crate::extension::{Abilities, Exclude, Hint, RetireReason};
use crate::setup::SetupError;
use crate::wire::{Envelope, RequestId, ToClient, ToDaemon};

/// Something a program that knows nothing of it needs before it can go on: a thread of it waits for the answer.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a thread of the client waits until it is granted"]
pub struct Wish {
    /// What it needs.
    pub what: Wanted,
    request: RequestId,
}

/// What a client needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// This range back, unregistered and left alone.
    Exclude(Span),
    /// Everything back and unregistered, for good. The client closes the connection once that is granted.
    Retire(RetireReason),
}

impl Wish {
    /// The answer that grants it.
    pub(crate) fn granted(&self) -> (ToClient<OwnedFd>, RequestId) {
        let answer = match self.what {
            Wanted::Exclude(_) => ToClient::Excluded,
            Wanted::Retire(_) => ToClient::Retired,
        };
        (answer, self.request)
    }
}

/// What came and nobody has asked for yet.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    pub(crate) hints: Vec<Hint>,
    pub(crate) wishes: Vec<Wish>,
}

/// Hints that are kept until somebody asks for them; of a client that sends more the oldest are forgotten.
pub(crate) const MOST_HINTS: usize = 256;

/// Wishes that may wait to be granted. An agent has one at a time.
const MOST_WISHES: usize = 16;

impl Inbox {
    /// Keeps a message that isn't the answer to an order. Anything but a hint or a wish comes out of turn.
    pub(crate) fn keep(
        &mut self,
        abilities: Abilities,
        envelope: Envelope<ToDaemon<OwnedFd>>,
    ) -> Result<(), SetupError> {
        let agent = abilities.contains(Abilities::AGENT);
        let what =
            match envelope.message {
                ToDaemon::Hint(hint) if abilities.contains(Abilities::HINTS) => {
                    if self.hints.len() == MOST_HINTS {
                        self.hints.remove(0);
                    }
                    self.hints.push(hint);
                    return Ok(());
                }
                ToDaemon::Exclude(Exclude { area }) if agent => {
                    let area = Span::new(area.address, area.length).map_err(|source| {
                        SetupError::NotARange { what: "range to leave alone", region: area, source }
                    })?;
                    return self.wish(Wanted::Exclude(area), envelope.request);
                }
                ToDaemon::Retire(retire) if agent => {
                    return self.wish(Wanted::Retire(retire.why), envelope.request);
                }
                ToDaemon::Hint(_) => Method::HINT.name,
                ToDaemon::TransferUserfaultFd(_) => Method::TRANSFER_USERFAULT_FD.name,
                ToDaemon::Hello(_) => Method::HELLO.name,
                ToDaemon::Staging(_) => Method::STAGING.name,
                ToDaemon::Agent(_) => Method::AGENT.name,
                ToDaemon::Exclude(_) => Method::EXCLUDE.name,
                ToDaemon::Retire(_) => Method::RETIRE.name,
                ToDaemon::SuperPagesUsed(_) | ToDaemon::Moved(_) | ToDaemon::Dropped | ToDaemon::Unshared => {
                    "a reply"
                }
            };
        Err(SetupError::OutOfTurn { what })
    }

    fn wish(&mut self, what: Wanted, request: RequestId) -> Result<(), SetupError> {
        // A client that waits for long asks again: it doesn't know whether who read it the first time is alive.
        if self.wishes.iter().any(|wish| wish.request == request) {
            return Ok(());
        }
        if self.wishes.len() == MOST_WISHES {
            return Err(SetupError::OutOfTurn { what: "one wish after the other" });
        }
        self.wishes.push(Wish { what, request });
        Ok(())
    }
}

/// Whether a message answers an order: requests are numbered by who makes them, so a call's number says nothing.
pub(crate) fn is_reply(message: &ToDaemon<OwnedFd>) -> bool {
    matches!(
        message,
        ToDaemon::SuperPagesUsed(_) | ToDaemon::Moved(_) | ToDaemon::Dropped | ToDaemon::Unshared
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::MemoryRegion;
    use crate::extension::{HintKind, Retire};

    fn exclude(address: u64) -> Envelope<ToDaemon<OwnedFd>> {
        let area = MemoryRegion::new(address, 0x2000);
        let message = ToDaemon::Exclude(Exclude { area });
        Envelope { request: RequestId(3), message }
    }

    #[test]
    fn wishes_are_kept_in_order_with_their_answers() {
        let mut inbox = Inbox::default();
        inbox.keep(Abilities::AGENT, exclude(0x1000)).unwrap();
        let retire = ToDaemon::Retire(Retire { why: RetireReason::Setns });
        inbox.keep(Abilities::AGENT, Envelope { request: RequestId(4), message: retire }).unwrap();
        let area = Span::new(0x1000, 0x2000).unwrap();
        assert_eq!(inbox.wishes[0].what, Wanted::Exclude(area));
        assert!(matches!(inbox.wishes[0].granted(), (ToClient::Excluded, RequestId(3))));
        assert!(matches!(inbox.wishes[1].granted(), (ToClient::Retired, RequestId(4))));
    }

    #[test]
    fn wishes_nobody_may_have_are_out_of_turn() {
        let refused = Inbox::default().keep(Abilities::all() - Abilities::AGENT, exclude(0x1000));
        assert_eq!(refused, Err(SetupError::OutOfTurn { what: "Exclude" }));
        let refused = Inbox::default().keep(Abilities::AGENT, exclude(0x1001));
        assert!(matches!(refused, Err(SetupError::NotARange { .. })), "{refused:?}");
        let mut flooded = Inbox::default();
        let numbered = |number| Envelope { request: RequestId(number), ..exclude(0x1000) };
        for number in 1..=MOST_WISHES as u64 {
            flooded.keep(Abilities::AGENT, numbered(number)).unwrap();
            flooded.keep(Abilities::AGENT, numbered(number)).unwrap();
        }
        assert_eq!(flooded.wishes.len(), MOST_WISHES, "asked twice is asked once");
        assert!(flooded.keep(Abilities::AGENT, numbered(99)).is_err());
    }

    #[test]
    fn the_oldest_hints_are_forgotten() {
        let mut inbox = Inbox::default();
        for value in 0..=MOST_HINTS as u64 {
            let message = ToDaemon::Hint(Hint { kind: HintKind::Visible, value });
            inbox.keep(Abilities::HINTS, Envelope { request: RequestId(0), message }).unwrap();
        }
        assert_eq!(inbox.hints.len(), MOST_HINTS);
        assert_eq!(inbox.hints[0].value, 1);
    }
}
