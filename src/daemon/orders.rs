//! Orders that a policy gave and that clients' stewards are carrying out.

use super::error::ServerError;
use super::server::Server;
use crossbeam::channel::{Receiver, Select, TryRecvError};
use std::collections::HashMap;
use std::time::Duration;
use userswap_policy::chromium::Area;
use userswap_policy::{Answer, Order};

/// Leaves of the regions that could go those that do, in order.
pub(super) type Choose = Box<dyn FnOnce(&mut Vec<Area>) + Send>;

/// What was done of an order.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Bytes that moved.
    pub(super) moved: u64,
    /// Regions of which something went.
    pub(super) regions: Vec<Area>,
}

/// Orders that are out, one a process.
#[derive(Default)]
pub(super) struct Orders(HashMap<u32, Out>);

/// One that is.
struct Out {
    answer: Receiver<Result<Done, ServerError>>,
    order: Order,
}

/// How long an order's end is waited for before everything is looked at again.
const SHORT: Duration = Duration::from_millis(10);

impl Orders {
    /// Has an order carried out. Who is gone, or is at another one, is left alone.
    pub(super) fn give(&mut self, server: &Server, order: Order, choose: Choose) {
        if !self.is_at(order.pid)
            && let Ok(answer) = server.begin(order, choose)
        {
            self.0.insert(order.pid, Out { answer, order });
        }
    }

    /// Whether a process is at an order.
    pub(super) fn is_at(&self, pid: u32) -> bool {
        self.0.contains_key(&pid)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Sleeps until an order was carried out, if there are any, but no longer than `patience`, and not for long.
    pub(super) fn wait_for_one(&self, patience: Duration) {
        if self.0.is_empty() {
            return;
        }
        let mut select = Select::new();
        for out in self.0.values() {
            select.recv(&out.answer);
        }
        let _ = select.ready_timeout(patience.min(SHORT));
    }

    /// Forgets the orders that were carried out, and tells what came of them.
    pub(super) fn collect(&mut self) -> Vec<Answer> {
        let mut answers = Vec::new();
        self.0.retain(|pid, out| match out.answer.try_recv() {
            Err(TryRecvError::Empty) => true,
            Ok(Err(error)) => {
                tracing::debug!(pid, %error, "an order of the policy");
                false
            }
            Ok(Ok(Done { moved, regions })) => {
                answers.push(Answer { order: out.order, moved, regions });
                false
            }
            Err(TryRecvError::Disconnected) => false,
        });
        answers
    }
}
