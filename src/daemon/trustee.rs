//! A process that has what keeper and worker have, and does nothing until both are dead.
//!
//! It shares their file table: what one of them had, or was just being handed by the kernel, stays open when both are killed at the same moment. Agents hold their programs'
//! userfaultfds themselves, but a forked child that no agent speaks for has its own in the daemon alone, and the kernel gives zeros for all that is out once the last
//! descriptor is closed. So those are held here. Who touches what is out waits, for as long as anybody does whose daemon is dead, and gets SIGBUS then.
//!
//! Everything else is closed at once, so that agents learn that their daemon is gone.
#![allow(unsafe_code)]

use super::deposit::began_at;
use super::notes;
use crate::run::Signals;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use userswap_engine::{Ledger, Roster};
use userswap_uffd::succession::{close_all_but, take_over};
use userswap_uffd::{Event, Features, Message, Span, Stop, Uffd, page_bytes};

/// How often to look who is gone.
const LOOK: Duration = Duration::from_secs(1);

/// Stays until there is nothing left to hold, and ends this process.
///
/// # Safety
/// This process has just been made by [`fork_sharing_files`](userswap_uffd::succession::fork_sharing_files), from the process `keeper`, which has `signals`.
pub(super) unsafe fn stay(roster: &Arc<Roster>, keeper: u32, signals: &Signals, patience: Duration) -> ! {
    let _ = rustix::thread::set_name(c"userswap-trust");
    while is_child_of(keeper) {
        // The kernel tells when the keeper ends. What others tell is meant for it.
        let _ = rustix::event::poll(&mut [PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)], None);
        while signals.next().is_some() {}
    }
    wait_for_worker(roster);
    if roster.has_ended() || roster.ledgers().is_empty() {
        std::process::exit(0);
    }
    // SAFETY: keeper and worker are dead, so the file table is this process's alone, which has no value that owns any of it but such as it leaves alone.
    let held = unsafe { held(roster) };
    if held.is_empty() {
        std::process::exit(0);
    }
    tracing::error!(
        children = held.len(),
        patience_s = patience.as_secs(),
        "keeper and worker are dead: forked children that nobody speaks for wait, and end then where their memory is missing"
    );
    std::thread::sleep(patience);
    end_who_waits(held);
    std::process::exit(0)
}

/// Whether the process that started this one is there.
pub(super) fn is_child_of(keeper: u32) -> bool {
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    u32::try_from(parent) == Ok(keeper)
}

/// Returns once the last worker has ended. One that isn't written down yet looks for its keeper after it has written itself down, doesn't find it, and ends.
fn wait_for_worker(roster: &Roster) {
    let Some((pid, began)) = roster.worker() else { return };
    let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(pidfd) = rustix::process::pidfd_open(process, PidfdFlags::empty()) else { return };
    if began_at(pid) != Some(began) {
        return;
    }
    while !matches!(rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None), Ok(1..)) {}
}

/// The userfaultfds that nobody else has; all other descriptors are closed, but the first three.
///
/// # Safety
/// Nobody shares this process's file table, and nothing that owns any of it is used or dropped again.
unsafe fn held(roster: &Arc<Roster>) -> Vec<Uffd> {
    let mut numbers: Vec<(RawFd, Features)> = Vec::new();
    for number in roster.ledgers() {
        // SAFETY: nobody else's, by the caller's promise, and taken once.
        let Some(memory) = (unsafe { take_over(number) }) else { continue };
        let Ok(ledger) = Ledger::adopt(memory, roster) else { continue };
        let Some((uffd, features)) = ledger.uffd() else { continue };
        // Children of which the dead worker had only read.
        numbers.extend(ledger.children().into_iter().map(|child| (child, features)));
        if notes::read(&ledger).is_none() {
            numbers.push((uffd, features));
        }
    }
    numbers.sort_unstable_by_key(|(number, _)| *number);
    numbers.dedup_by_key(|(number, _)| *number);
    let held = numbers.into_iter().filter_map(|(number, features)| {
        // SAFETY: as above.
        let descriptor = unsafe { take_over(number) }?;
        Uffd::from_handshaken(descriptor, features).ok()
    });
    let held: Vec<Uffd> = held.collect();
    let kept: Vec<RawFd> = held.iter().map(AsRawFd::as_raw_fd).chain([0, 1, 2]).collect();
    // SAFETY: the caller's promise.
    if let Err(error) = unsafe { close_all_but(&kept) } {
        tracing::error!(%error, "connections stay open, and agents don't learn that their daemon is dead");
    }
    held
}

/// Has whoever waits for memory, or comes to, get SIGBUS for it, until nobody is left.
fn end_who_waits(mut held: Vec<Uffd>) {
    let mut next = Instant::now();
    loop {
        if next <= Instant::now() {
            next = Instant::now() + LOOK;
            held.retain(|uffd| !is_gone(uffd));
            // Faults that the dead worker had read, and such as couldn't be ended at the first try, come again.
            held.iter().for_each(wake_all);
        }
        if held.is_empty() {
            return;
        }
        let mut fds: Vec<PollFd<'_>> =
            held.iter().map(|uffd| PollFd::from_borrowed_fd(uffd.as_fd(), PollFlags::IN)).collect();
        let _ = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }));
        let mut children = Vec::new();
        for uffd in &held {
            let mut messages = Vec::new();
            if let Err(error) = uffd.read_messages(&mut messages) {
                tracing::debug!(%error, "a child's messages");
            }
            for message in messages {
                match message {
                    Message::Fault(fault) => end_fault(uffd, fault.addr),
                    Message::Event(Event::Fork { child }) => {
                        children.extend(Uffd::from_handshaken(child, uffd.features()));
                    }
                    // To be read is all that their threads wait for.
                    Message::Event(_) => {}
                }
            }
        }
        held.extend(children);
    }
}

fn end_fault(uffd: &Uffd, addr: u64) {
    let Ok(page) = Span::new(addr & !(page_bytes() - 1), page_bytes()) else { return };
    if uffd.poison(page).stop == Some(Stop::Present) {
        let _ = uffd.wake(page);
    }
}

/// Asks for a page where nothing is ever mapped: the answer is about the address space alone.
fn is_gone(uffd: &Uffd) -> bool {
    let nowhere = Span::new(page_bytes(), page_bytes());
    nowhere.is_ok_and(|nowhere| uffd.zeropage(nowhere, true).stop == Some(Stop::Gone))
}

/// From the lowest address that may be mapped by default up to the highest of a program that asked for no higher ones.
fn wake_all(uffd: &Uffd) {
    if let Ok(all) = Span::between(1 << 16, (1 << 47) - page_bytes()) {
        let _ = uffd.wake(all);
    }
}
