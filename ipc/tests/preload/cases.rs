//! What programs do, and survive.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use userswap_ipc::extension::RetireReason;
use userswap_preload::socket_value;

use crate::daemon::Daemon;
use crate::run::Bench;
use crate::space::LONG;

/// A case; it may say why it can't be tried here.
pub(crate) type Case = fn(&Bench) -> Option<String>;

/// All of them, by name.
pub(crate) const CASES: &[(&str, Case)] = &[
    ("the_object_depends_on_nothing", depends_on_nothing),
    ("what_the_agent_sends_is_what_the_daemon_reads", |_| crate::wire::sent()),
    ("what_the_daemon_sends_is_what_the_agent_reads", |_| crate::wire::received()),
    ("moved_out_and_touched_again", |bench| quietly(bench, "data", 1)),
    ("too_short_to_be_noticed", too_short),
    ("nobody_listens", nobody_listens),
    ("forks_and_their_children", forks),
    ("daemonized", |bench| quietly(bench, "daemonized", 1)),
    ("a_child_of_a_bare_clone", |bench| quietly(bench, "bare_fork", 1)),
    ("vfork_and_execute", |bench| quietly(bench, "vforks", 2)),
    ("posix_spawn_without_environment", |bench| quietly(bench, "spawns", 2)),
    ("a_cleared_environment", |bench| quietly(bench, "clears", 1)),
    ("an_environment_with_another_preload", another_preload),
    ("the_main_thread_exits", |bench| quietly(bench, "main_exits", 1)),
    ("the_only_thread_exits_barely", exits_barely),
    ("all_descriptors_closed", |bench| quietly(bench, "closes_all", 2)),
    ("another_root_directory", another_root),
    ("retired_before_a_filter", restricts),
    ("retired_before_a_user_namespace", unshares),
    ("retired_before_entering_a_namespace", enters),
    ("advice_that_changes_what_memory_is", |bench| quietly(bench, "advises", 1)),
    ("mremap_of_what_is_registered_in_parts", |bench| quietly(bench, "remaps", 6)),
    ("a_thousand_threads", threads),
    ("a_thread_that_ends_with_its_stack_moved", ends_untouched),
    ("signals_go_to_the_program", |bench| quietly(bench, "signals", 1)),
    ("a_shell_and_its_pipeline", shell),
    ("the_daemon_dies", daemon_dies),
    ("a_filter_that_was_there_before", filtered_before),
];

/// Runs a mode that says nothing when all is well, and has everything moved so often.
fn quietly(bench: &Bench, mode: &str, fills: usize) -> Option<String> {
    let ran = bench.run(&Daemon::start(), &[mode]);
    ran.succeeded();
    ran.moved_all(fills);
    None
}

fn depends_on_nothing(bench: &Bench) -> Option<String> {
    let symbols = match Command::new("nm").args(["-D", "--undefined-only"]).arg(bench.object()).output() {
        Ok(output) => String::from_utf8(output.stdout).unwrap(),
        Err(e) => return Some(format!("nm: {e}")),
    };
    let strong: Vec<&str> = symbols.lines().filter(|line| !line.trim_start().starts_with("w ")).collect();
    assert!(strong.is_empty(), "{strong:?}");
    let needed = Command::new("readelf").arg("-d").arg(bench.object()).output().unwrap();
    let needed = String::from_utf8(needed.stdout).unwrap();
    assert!(!needed.contains("(NEEDED)") && !needed.contains("(TEXTREL)"), "{needed}");
    None
}

fn too_short(bench: &Bench) -> Option<String> {
    let daemon = Daemon::start();
    bench.run(&daemon, &["hello"]).succeeded();
    None
}

fn nobody_listens(bench: &Bench) -> Option<String> {
    let mut command = Command::new(bench.program());
    command.arg("hello").env("LD_PRELOAD", bench.object());
    for address in ["@nobody-listens-here", "/nowhere/socket", "", "@", "7:", &"@".repeat(500)] {
        let status = command.env("USERSWAP_SOCKET", address).status().unwrap();
        assert!(status.success(), "{address}: {status}");
    }
    assert!(command.env_remove("USERSWAP_SOCKET").status().unwrap().success());
    None
}

fn forks(bench: &Bench) -> Option<String> {
    let ran = bench.run(&Daemon::start(), &["forks"]);
    ran.succeeded();
    let children: Vec<bool> = ran.fills.iter().map(|fill| fill.by_child).collect();
    assert_eq!(children, [false, true, true, false], "{ran:?}");
    let moved: Vec<u64> = ran.fills.iter().map(|fill| fill.moved).collect();
    // The parent's all; of the child's what it wrote itself; the grandchild shares everything; the parent again has
    // all of what is there again, once nobody shares it any more.
    assert_eq!((moved[0], moved[3]), (256, 256), "{ran:?}");
    assert!(moved[1] >= 128, "{ran:?}");
    None
}

fn another_preload(bench: &Bench) -> Option<String> {
    let daemon = Daemon::start();
    let mut command = Command::new(bench.program());
    // The loader complains about the other one.
    command.arg("clears_for_another").stderr(Stdio::null());
    let ran = bench.run_command(&daemon, command);
    assert!(ran.status.success(), "{ran:?}");
    let preload = format!("LD_PRELOAD={}:/nowhere/libother.so", bench.object().display());
    let socket = format!("USERSWAP_SOCKET={}", socket_value(&daemon.address));
    for entry in ["A=1", &preload, &socket] {
        assert!(ran.output.iter().any(|line| line == entry), "{entry} in {ran:?}");
    }
    None
}

/// All of the stack is out but the pages of the thread's control block. Without restartable sequences: for those the kernel writes
/// to the block whenever the thread goes on, and waits for the page.
fn ends_untouched(bench: &Bench) -> Option<String> {
    let mut command = Command::new(bench.program());
    command.arg("ends_untouched").env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
    let ran = bench.run_command(&Daemon::start(), command);
    ran.succeeded();
    let [fill] = &ran.fills[..] else { panic!("{ran:?}") };
    assert!((1..=2).contains(&(fill.pages - fill.moved)), "{ran:?}");
    None
}

fn exits_barely(bench: &Bench) -> Option<String> {
    let ran = bench.run(&Daemon::start(), &["bare_exit"]);
    assert_eq!(ran.status.code(), Some(7), "{ran:?}");
    None
}

fn another_root(bench: &Bench) -> Option<String> {
    let root = bench.directory().join("root");
    std::fs::create_dir_all(&root).unwrap();
    let ran = bench.run(&Daemon::start(), &["chroots", root.to_str().unwrap()]);
    ran.succeeded();
    assert_eq!(ran.fills.iter().map(|fill| fill.by_child).collect::<Vec<_>>(), [false, true], "{ran:?}");
    None
}

fn restricts(bench: &Bench) -> Option<String> {
    let daemon = Daemon::start();
    let ran = bench.run(&daemon, &["restricts"]);
    assert!(ran.status.success(), "{ran:?}");
    // What the program that was executed under the filter shows of its environment.
    assert!(!ran.output.iter().any(|line| line.starts_with("LD_PRELOAD=")), "{ran:?}");
    assert!(!ran.output.is_empty() && !ran.output.iter().any(|line| line.contains("FAILED")), "{ran:?}");
    ran.moved_all(1);
    assert_eq!(daemon.retired(), [RetireReason::Seccomp]);
    None
}

fn unshares(bench: &Bench) -> Option<String> {
    let daemon = Daemon::start();
    let ran = bench.run(&daemon, &["unshares"]);
    assert!(ran.status.success(), "{ran:?}");
    ran.moved_all(1);
    assert_eq!(daemon.retired(), [RetireReason::Unshare]);
    ran.output.first().cloned()
}

fn enters(bench: &Bench) -> Option<String> {
    let daemon = Daemon::start();
    let ran = bench.run(&daemon, &["enters"]);
    ran.succeeded();
    ran.moved_all(1);
    assert_eq!(daemon.retired(), [RetireReason::Setns]);
    None
}

fn threads(bench: &Bench) -> Option<String> {
    let ran = bench.run(&Daemon::start(), &["many_threads"]);
    ran.succeeded();
    assert!(ran.fills.len() > 1, "memory left beside the threads: {}", ran.fills.len());
    None
}

fn shell(bench: &Bench) -> Option<String> {
    let mut command = Command::new("sh");
    let script = "for i in 1 2 3 4 5 6 7 8; do echo $i | cat | sed s/^/x/ | (cat; true); done; (exit 3); echo $?; sleep 0.1";
    command.args(["-c", script]);
    let ran = bench.run_command(&Daemon::start(), command);
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(ran.output, ["x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "3"]);
    None
}

/// Moved memory is never zeros: whoever touches it waits.
fn daemon_dies(bench: &Bench) -> Option<String> {
    crate::run::orphaned(bench);
    None
}

/// Somebody else's filter is a reason to stay out, the starter's own is not.
fn filtered_before(bench: &Bench) -> Option<String> {
    let daemon = Daemon::start();
    let start = |mode: &str, value: &str| {
        let mut command = Command::new(bench.program());
        command.args(["filtered", mode]).arg(format!("LD_PRELOAD={}", bench.object().display()));
        command.arg(format!("USERSWAP_SOCKET={value}"));
        command
    };
    let value = socket_value(&daemon.address);
    let (own, address) = value.split_once(':').unwrap();
    let one_more = own.parse::<u32>().unwrap() + 1;
    let ran = bench.run_plain(&daemon, start("data", &format!("{one_more}:{address}")));
    ran.succeeded();
    ran.moved_all(1);

    let mut unmanaged = start("waits", &value).spawn().unwrap();
    // Once it waits, its constructors have run; an agent would be there from then on.
    let proc = format!("/proc/{}", unmanaged.id());
    let deadline = Instant::now() + LONG;
    while !std::fs::read_to_string(format!("{proc}/wchan")).unwrap().contains("pause") {
        assert!(Instant::now() < deadline, "it never waited");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(std::fs::read_dir(format!("{proc}/task")).unwrap().count(), 1, "threads");
    unmanaged.kill().unwrap();
    unmanaged.wait().unwrap();
    None
}
