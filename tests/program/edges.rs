//! At the edge of what a process may have: descriptors of the daemon, mappings of a client. Moving out and newcomers end first, serving never does.

use crate::daemon::Daemon;
use crate::patient;
use crate::support::{Place, Talk, USERSWAP, can_serve, until};
use userswap::daemon::control::{Evicted, Operator, Request};

fn start(place: &Place, contract: &str) -> Talk {
    let mut command = patient::command(&place.at("s"), contract);
    Talk::start(command.env("USERSWAP_TEST_PATIENCE", "600"))
}

/// Whether it is taken on.
fn is_served(client: &mut Talk) -> bool {
    loop {
        let mut line = String::new();
        client.read(&mut line);
        match line.trim_end() {
            "ready" => return true,
            _ if line.is_empty() => return false,
            _ => {}
        }
    }
}

#[test]
fn who_comes_when_descriptors_are_short_is_refused_and_who_is_served_goes_on() {
    let test = "who_comes_when_descriptors_are_short_is_refused_and_who_is_served_goes_on";
    if !can_serve(test) {
        return;
    }
    let place = Place::new();
    let mut program = place.command("sh");
    program.args(["-c", "ulimit -n 112; exec \"$0\" \"$@\"", USERSWAP]);
    let mut daemon = Daemon::of(program, &place, &[]);
    // One that is there already: a new one would need a descriptor.
    let mut operator = daemon.operator();
    let mut clients = Vec::new();
    loop {
        let mut client = start(&place, "extended");
        if !is_served(&mut client) {
            break;
        }
        clients.push(client);
    }
    assert!(clients.len() > 2, "{}", daemon.log());
    until("it is said why", || daemon.log().contains("hardly any descriptors left").then_some(()));
    let evict = |operator: &mut Operator, client: &Talk| {
        operator.ask::<Evicted>(Request::Evict { pid: client.pid(), bytes: None })
    };
    let check = |operator: &mut Operator, client: &mut Talk| {
        assert!(evict(operator, client).unwrap().moved_bytes > 0);
        client.ask("step");
        client.ask("check");
    };
    clients.iter_mut().for_each(|client| check(&mut operator, client));
    for client in clients.drain(1..).rev() {
        assert!({ client }.end().success());
    }
    let mut only = clients.remove(0);
    check(&mut operator, &mut only);
    let mut late = start(&place, "extended");
    assert!(is_served(&mut late), "there is room again");
    assert!(late.end().success());
    assert!(only.end().success());
    daemon.end();
}

#[test]
fn nothing_is_divided_where_a_program_has_nearly_as_many_mappings_as_it_may() {
    let test = "nothing_is_divided_where_a_program_has_nearly_as_many_mappings_as_it_may";
    if !can_serve(test) {
        return;
    }
    for contract in ["strict", "extended"] {
        let place = Place::new();
        let mut daemon = Daemon::start(&place, &["--contract", contract]);
        let mut client = start(&place, contract);
        assert!(is_served(&mut client));
        let pid = client.pid();
        let evict = || daemon.operator().ask::<Evicted>(Request::Evict { pid, bytes: None });
        client.ask("crowd");
        let moved = evict();
        if contract == "strict" {
            // Each of its moves divides a mapping. It is counted again only now and then: who asks between is told that nothing moved.
            match moved {
                Ok(moved) => assert_eq!(moved.moved_bytes, 0),
                Err(error) => assert!(error.to_string().contains("vm.max_map_count"), "{error}"),
            }
            assert!(daemon.log().contains("vm.max_map_count"), "{}", daemon.log());
        }
        client.ask("step");
        client.ask("check");
        client.ask("uncrowd");
        until("it is moved out again", || evict().ok().filter(|moved| moved.moved_bytes > 0));
        client.ask("step");
        client.ask("check");
        assert!(client.end().success());
        daemon.end();
    }
}
