//! The engine's way out, one step at a time: moving, writing, bringing back.

use super::server::Server;
use std::sync::Arc;
use userswap_engine::Space;
use userswap_engine::core::{PageIndex, PageState, Piece};
use userswap_engine::directory::{Part, Region};
use userswap_engine::evict::{Answer, EvictWork, MovedOut};
use userswap_engine::memory::Fault;
use userswap_engine::slots::Phase;

/// The mover of one address space: at most one job at a time.
pub struct Mover {
    work: EvictWork,
    server: Server,
    region: Option<Arc<Region>>,
    piece: Piece,
    /// How far bringing back has come.
    from: PageIndex,
    keep_standing: bool,
    /// The pages that are written make room rather than being the job itself.
    making_room: bool,
    busy: u32,
    at: At,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    Nothing,
    Look,
    Room,
    Plan,
    Ask,
    Answer,
    Arrive,
    Write,
    Commit,
    Back,
    BackPage,
    Unregister,
    Reclaim,
}

impl Mover {
    /// For slots of `slot_pages` pages, bringing back at most `around` pages together.
    pub fn new(slot_pages: u32, around: u32) -> Self {
        Self {
            work: EvictWork::new(slot_pages),
            server: Server::new(around),
            region: None,
            piece: Piece { first: PageIndex(0), pages: 0, addr: 0 },
            from: PageIndex(0),
            keep_standing: false,
            making_room: false,
            busy: 0,
            at: At::Nothing,
        }
    }

    /// Whether it has nothing to do.
    pub fn is_idle(&self) -> bool {
        self.at == At::Nothing
    }

    /// Whether it waits for a client.
    pub fn waits(&self) -> bool {
        self.at == At::Arrive && self.work.phase() == Some(Phase::Filling)
    }

    /// Begins to move a part out.
    pub fn move_out(&mut self, part: Part, keep_standing: bool) {
        self.piece = part.piece;
        self.region = Some(part.region);
        self.keep_standing = keep_standing;
        self.making_room = false;
        self.busy = 0;
        self.at = At::Look;
    }

    /// Begins to write out the slot that stands longest.
    pub fn write_out(&mut self, space: &Space) {
        self.making_room = false;
        self.region = None;
        self.at = if self.take_oldest(space) { At::Write } else { At::Nothing };
    }

    /// Begins to bring a part back.
    pub fn bring_back(&mut self, part: Part) {
        self.piece = part.piece;
        self.from = part.piece.first;
        self.region = Some(part.region);
        self.at = At::Back;
    }

    /// Gives the job up: the address space is gone.
    fn give_up(&mut self) {
        self.work.end_wants();
        self.work.leave_standing();
        self.region = None;
        self.at = At::Nothing;
    }

    /// One step. `gate` counts who holds the space's gate. Answers what has to be told of it.
    pub fn step(&mut self, space: &Arc<Space>, gate: &mut u32) {
        let mut moved = MovedOut::default();
        match self.at {
            At::Nothing => {}
            At::Look => self.look(space),
            At::Room => {
                if space.slots().free() > 0 || space.reclaim_slots().is_ok_and(|count| count > 0) {
                    self.at = At::Plan;
                } else if !self.making_room && self.take_oldest(space) {
                    self.making_room = true;
                    self.at = At::Write;
                } else {
                    self.give_up();
                }
            }
            At::Plan => self.plan(space, gate),
            At::Ask => {
                self.work.ask(space);
                self.at = At::Answer;
            }
            At::Answer => {
                let answer = self.work.answer(space, &mut moved);
                *gate -= 1;
                match answer {
                    Ok(Answer::Recorded) => self.moved(),
                    Ok(Answer::Busy) => {
                        self.busy += 1;
                        self.moved();
                    }
                    Ok(Answer::Ordered) => self.at = At::Arrive,
                    Err(_) => self.give_up(),
                }
            }
            At::Arrive => {
                if self.work.phase() != Some(Phase::Filling) {
                    match self.work.arrived(&mut moved) {
                        Ok(()) => self.moved(),
                        Err(_) => self.give_up(),
                    }
                } else if space.memory().is_gone() {
                    self.give_up();
                }
            }
            At::Write => {
                // A store that is full leaves nothing to commit.
                let _ = self.work.write(space);
                self.at = At::Commit;
            }
            At::Commit => {
                *gate += 1;
                self.work.commit(space, &mut moved);
                *gate -= 1;
                self.at = if self.region.is_some() { At::Room } else { At::Reclaim };
            }
            At::Back => self.next_back(space),
            At::BackPage => {
                self.server.step(space, gate);
                if self.server.is_idle() {
                    self.at = At::Back;
                }
            }
            At::Unregister => {
                *gate += 1;
                self.region = None;
                let _ = space.unregister_if_back();
                *gate -= 1;
                self.at = At::Reclaim;
            }
            At::Reclaim => {
                let _ = space.reclaim_slots();
                self.give_up();
            }
        }
    }

    fn look(&mut self, space: &Space) {
        let Some(region) = self.region.clone() else { return self.give_up() };
        self.work.begin();
        let part = Part { region, piece: self.piece };
        match self.work.want(space, &part, |_| true) {
            Ok(()) if self.work.has_wants() => self.at = At::Room,
            _ => self.give_up(),
        }
    }

    fn plan(&mut self, space: &Space, gate: &mut u32) {
        *gate += 1;
        let planned = {
            let directory = space.shared();
            let goes_on = self.work.has_wants() && self.busy < 8 && !directory.is_closed();
            goes_on && matches!(self.work.plan(space, &directory, u64::MAX), Ok(true))
        };
        if planned {
            self.at = At::Ask;
        } else {
            *gate -= 1;
            self.region = None;
            self.at = At::Reclaim;
        }
    }

    fn moved(&mut self) {
        self.making_room = false;
        if self.keep_standing || self.work.phase() != Some(Phase::Ready) {
            self.work.leave_standing();
            self.at = At::Room;
        } else {
            self.at = At::Write;
        }
    }

    fn take_oldest(&mut self, space: &Space) -> bool {
        match space.ready_slots().into_iter().next() {
            Some((id, standing)) => {
                self.work.take_up(id, standing);
                true
            }
            None => false,
        }
    }

    fn next_back(&mut self, space: &Arc<Space>) {
        let Some(region) = &self.region else { return self.give_up() };
        let end = self.piece.first.plus(self.piece.pages);
        let shard = region.lock();
        while self.from < end {
            let page = self.from;
            self.from = page.plus(1);
            if matches!(shard.state(page), PageState::Stored(_) | PageState::Standby(_))
                && let Some((addr, _)) = shard.address(page)
            {
                drop(shard);
                self.server.serve(Fault { addr, write: false, thread: None });
                self.at = At::BackPage;
                return;
            }
        }
        drop(shard);
        self.at = if space.memory().is_gone() { At::Reclaim } else { At::Unregister };
    }
}
