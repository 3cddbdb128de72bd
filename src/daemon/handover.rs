//! A live upgrade: the keeper becomes another program, and that one's first worker takes up what the last one's has left.
//!
//! Told by SIGUSR2, the keeper asks the program that stands where its own was whether it takes up what this one leaves. If so it ends its worker, as an accident would, and
//! executes it, with everything open. What is what stands in an environment variable.
#![allow(unsafe_code)]

use super::deposit;
use super::keeper::KeeperError;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use userswap_engine::Roster;
use userswap_engine::ledger::LAYOUT;
use userswap_uffd::succession::{become_program, set_close_on_exec, take_over};

/// The numbers of descriptors that one program leaves to the next.
pub(super) struct Handover {
    pub(super) roster: RawFd,
    pub(super) listener: RawFd,
    pub(super) control: Option<RawFd>,
    /// All that are not the workers', these included.
    pub(super) own: Vec<RawFd>,
    /// Closed by the next program, which has its own.
    pub(super) signals: RawFd,
}

const VARIABLE: &str = "USERSWAP_HANDOVER";

/// What a program is asked whether it takes up what this one leaves.
pub const QUESTION: &str = "layout";

/// Whether the program that stands where this one was takes up what this one leaves.
pub(super) fn can_take_over() -> bool {
    let asked = program().and_then(|program| {
        let mut command = Command::new(program);
        command.arg(QUESTION).stdin(Stdio::null()).stderr(Stdio::null()).output()
    });
    match asked {
        Ok(output) if output.status.success() && output.stdout == format!("{LAYOUT}\n").as_bytes() => true,
        Ok(_) => {
            tracing::error!(
                "the new program can't take up what this one leaves: end this one in good order first"
            );
            false
        }
        Err(error) => {
            tracing::error!(%error, "there is no program to go on as");
            false
        }
    }
}

/// Where this program was executed from. The kernel says so when it isn't there any more; what stands there is what is meant.
fn program() -> io::Result<OsString> {
    let path = std::env::current_exe()?.into_os_string().into_vec();
    let path = path.strip_suffix(b" (deleted)").map(<[u8]>::to_vec).unwrap_or(path);
    Ok(OsString::from_vec(path))
}

impl Handover {
    /// Executes the program. Returns if that fails.
    ///
    /// # Safety
    /// This process has one thread, and shares its file table with no other.
    pub(super) unsafe fn execute(&self) -> userswap_uffd::Error {
        let text = |text: OsString| CString::new(text.into_vec()).unwrap_or_default();
        let program = program().map(text).unwrap_or_default();
        let arguments: Vec<CString> = std::env::args_os().map(text).collect();
        // What the service manager gave back was taken by this program, whose number the next one has, too.
        let is_past = |name: &OsString| name == VARIABLE || deposit::GIVEN.iter().any(|given| name == given);
        let others = std::env::vars_os().filter(|(name, _)| !is_past(name));
        let mut environment: Vec<CString> = others
            .map(|(mut name, value)| {
                name.push("=");
                name.push(value);
                text(name)
            })
            .collect();
        environment.push(text(format!("{VARIABLE}={}", self.to_text()).into()));
        // SAFETY: the caller's promise.
        unsafe { become_program(&program, &arguments, &environment) }
    }

    fn to_text(&self) -> String {
        let own: Vec<String> = self.own.iter().map(ToString::to_string).collect();
        let control = self.control.map_or_else(|| "-".to_owned(), |control| control.to_string());
        format!(
            "{} {} {} {control} {} {}",
            std::process::id(),
            self.roster,
            self.listener,
            self.signals,
            own.join(" ")
        )
    }

    /// What was left to this process, not to one that it is a child of.
    fn from_text(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        if words.next()?.parse() != Ok(std::process::id()) {
            return None;
        }
        let (roster, listener) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let control = match words.next()? {
            "-" => None,
            number => Some(number.parse().ok()?),
        };
        let signals = words.next()?.parse().ok()?;
        let own = words.map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Self { roster, listener, control, own, signals })
    }

    /// What the program before has left, if there was one.
    ///
    /// # Safety
    /// This process owns no descriptor yet but the first three and such as it has just made.
    pub(super) unsafe fn found() -> Result<Option<Found>, KeeperError> {
        let Some(handover) = std::env::var(VARIABLE).ok().and_then(|text| Self::from_text(&text)) else {
            return Ok(None);
        };
        set_close_on_exec(true)?;
        let missing = || KeeperError::Start {
            doing: "taking up what the program before has left",
            source: io::Error::other("a descriptor isn't open"),
        };
        // SAFETY: the program before has left these, each once, and it is gone.
        let take = |number| unsafe { take_over(number) };
        let roster = take(handover.roster).ok_or_else(missing)?;
        let roster = Roster::adopt(roster)
            .map_err(|source| KeeperError::Start { doing: "taking up the list of clients", source })?;
        if let Some(number) = roster.keys_number() {
            let keys = take(number).ok_or_else(missing)?;
            roster
                .adopt_keys(keys)
                .map_err(|source| KeeperError::Start { doing: "taking up keys", source })?;
        }
        let listener = take(handover.listener).ok_or_else(missing)?;
        let control = match handover.control {
            Some(control) => Some(take(control).ok_or_else(missing)?),
            None => None,
        };
        drop(take(handover.signals));
        let own = handover.own.into_iter().filter(|number| *number != handover.signals).collect();
        Ok(Some(Found {
            roster,
            listener: Some(listener),
            control,
            own,
            returned: Vec::new(),
            stale: Vec::new(),
        }))
    }
}

/// What the program before has left.
pub(super) struct Found {
    pub(super) roster: Arc<Roster>,
    /// Not if it can't be connected to any more.
    pub(super) listener: Option<OwnedFd>,
    pub(super) control: Option<OwnedFd>,
    pub(super) own: Vec<RawFd>,
    /// The numbers of what the service manager gave back.
    pub(super) returned: Vec<RawFd>,
    /// The names of what it needn't keep any more.
    pub(super) stale: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_by_this_process_alone() {
        let own = vec![0, 1, 2, 4, 5, 6, 7];
        let handover = Handover { roster: 7, listener: 5, control: None, own: own.clone(), signals: 4 };
        let text = handover.to_text();
        let read = Handover::from_text(&text).unwrap();
        assert_eq!((read.roster, read.listener, read.control), (7, 5, None));
        assert_eq!((read.own, read.signals), (own, 4));
        assert!(Handover::from_text(&format!("1{text}")).is_none(), "another process's");
        assert!(Handover::from_text("").is_none());
    }
}
