//! Policies over real clients: the browser's, told by a client itself that it froze, and one of a library user's own.

use crate::child::{self, Part, Scratch};
use crate::client::BYTES;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use userswap::Server;
use userswap::daemon::settings::{PolicySettings, Preset};
use userswap::daemon::units::Time;
use userswap::daemon::{Options, Service};
use userswap_policy::{Answer, Order, Policy, Sample, Verdict, Wants, What};
use userswap_tests::plain::PlainStore;
use userswap_tests::watch::{Watchdog, until};

/// A daemon with a policy, and one client.
fn start(scratch: &Scratch, options: Options<'_>) -> (Service, Part) {
    let builder = Server::builder(Arc::new(PlainStore::default())).listen(scratch.path("sock"));
    let service = Service::start(builder.start().unwrap(), options).unwrap();
    let mut client = child::start("client", &[&scratch.socket(), "extended"]);
    client.expect("ready");
    until("the client is taken on", || service.server().pids().contains(&client.pid()));
    (service, client)
}

fn out(service: &Service) -> u64 {
    service.server().clients().iter().map(|client| client.out_bytes).sum()
}

#[test]
fn a_client_that_says_it_froze_has_a_round() {
    let _watch = Watchdog::new("a_client_that_says_it_froze_has_a_round");
    let mut settings = PolicySettings::from(Preset::Chromium);
    (settings.chromium.client_every, settings.chromium.regions_per_round) = (Time(Duration::ZERO), 10);
    let scratch = Scratch::new();
    let (service, mut client) = start(&scratch, Options { settings, ..Options::default() });
    let round = 10 * 16 * 4096;
    for rounds in 1..=3 {
        client.ask("freeze", "told");
        // All stays out, and each round finds others.
        until("a round is done", || out(&service) == rounds * round);
        client.ask("thaw", "told");
    }
    client.ask("check", "checked");
    assert_eq!(out(&service), 0);
    service.drain().unwrap();
    client.ask("check", "checked");
    client.say("end");
    client.wait();
}

/// Has everything go, as soon as the client offers anything, then all of it back.
#[derive(Debug, Default)]
struct ThereAndBack {
    answers: Arc<Mutex<Vec<Answer>>>,
}

impl Policy for ThereAndBack {
    fn judge(&mut self, sample: &Sample<'_>) -> Verdict {
        let orders = sample.clients.iter().filter(|client| !client.busy).filter_map(|client| {
            let what = match self.answers.lock().len() {
                0 => What::Out { bytes: u64::MAX, spare: false },
                1 => What::Back,
                _ => return None,
            };
            Some(Order { pid: client.pid, what })
        });
        Verdict { orders: orders.collect(), next: Duration::from_millis(5), ..Verdict::default() }
    }

    fn answered(&mut self, _: Duration, answers: &[Answer]) {
        self.answers.lock().extend(answers.iter().filter(|answer| answer.moved > 0).cloned());
    }
}

#[test]
fn a_policy_of_ones_own_is_asked_and_its_orders_are_carried_out() {
    let _watch = Watchdog::new("a_policy_of_ones_own_is_asked_and_its_orders_are_carried_out");
    let own = ThereAndBack::default();
    let answers = Arc::clone(&own.answers);
    let scratch = Scratch::new();
    let options = Options { policy: Some((Box::new(own), None)), ..Options::default() };
    let (service, mut client) = start(&scratch, options);
    until("both orders are answered", || answers.lock().len() == 2);
    let moved: Vec<u64> = answers.lock().iter().map(|answer| answer.moved).collect();
    assert_eq!((moved, out(&service)), (vec![BYTES, BYTES], 0));
    client.ask("check", "checked");
    client.say("end");
    client.wait();
}

/// Looks at what clients wait for, once it is told to.
#[derive(Debug, Default)]
struct Curious {
    on: Arc<AtomicBool>,
    promoted: Arc<Mutex<Vec<u64>>>,
}

impl Policy for Curious {
    fn judge(&mut self, sample: &Sample<'_>) -> Verdict {
        if self.on.load(Ordering::Relaxed) {
            self.promoted.lock().extend(sample.clients.iter().map(|client| client.activity.promoted));
        }
        Verdict { next: Duration::from_millis(5), ..Verdict::default() }
    }

    fn wants(&self) -> Wants {
        Wants { activity: self.on.load(Ordering::Relaxed), ..Wants::default() }
    }
}

/// A policy that was put in force later was told all that had ever been waited for as if it were new, and rested for half a minute.
#[test]
fn what_was_waited_for_is_told_once_and_only_while_somebody_wants_to_know() {
    let _watch = Watchdog::new("what_was_waited_for_is_told_once_and_only_while_somebody_wants_to_know");
    let own = Curious::default();
    let (on, promoted) = (Arc::clone(&own.on), Arc::clone(&own.promoted));
    let scratch = Scratch::new();
    let options = Options { policy: Some((Box::new(own), None)), ..Options::default() };
    let (service, mut client) = start(&scratch, options);
    let mut touch_all = || {
        assert_eq!(service.server().evict(client.pid(), None).unwrap().moved * 4096, BYTES);
        client.ask("check", "checked");
    };
    touch_all();
    on.store(true, Ordering::Relaxed);
    until("it has looked", || promoted.lock().len() >= 3);
    // The first may have been shown what was seen before it wanted to know: nothing.
    assert_eq!(promoted.lock().iter().sum::<u64>(), 0);
    touch_all();
    until("it is told", || promoted.lock().iter().sum::<u64>() > 0);
    client.say("end");
    client.wait();
}
