//! Plays a part in a whole-system test, in a process of its own. Told what to do on standard input, answers on standard output.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod attacker;
mod client;
mod daemon;
mod forks;
mod inline;
mod liar;
mod lost;
mod outcomes;
mod path;
mod sys;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["client", path, contract] => client::run(path, contract),
        ["client-of-all", path, _] => client::run_with_all(path),
        ["unprivileged-client", path, contract] => {
            sys::become_user(65534);
            client::run(path, contract);
        }
        ["attacker", path, _] => {
            sys::become_user(65534);
            attacker::run(path);
        }
        ["daemon", path] => daemon::run(path),
        ["liar", path, _] => liar::run(path),
        ["forks", scenario] => forks::run(scenario),
        ["lost"] => lost::run(),
        ["outcomes"] => outcomes::run(),
        ["inline", scenario] => inline::run(scenario),
        ["path"] => path::run(),
        _ => panic!("no such part: {arguments:?}"),
    }
}
