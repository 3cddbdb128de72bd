//! The header and its translation say the same.

use std::fmt::Write;
use std::mem::offset_of;
use std::process::Command;

use userswap_store::plugin::{
    ABI, Answer, Flags, RawCapabilities, RawConfig, RawKey, RawMaintained, RawStats, Table, WHY,
};

use crate::support::{Place, cc};

macro_rules! told {
    ($to:ident, $name:literal, $type:ident: $($field:ident)*) => {
        writeln!($to, "{} {}", $name, size_of::<$type>()).unwrap();
        $(writeln!($to, "{}.{} {}", $name, stringify!($field), offset_of!($type, $field)).unwrap();)*
    };
}

#[test]
fn c_and_rust_agree() {
    let place = Place::new();
    let program = place.path("layout");
    if !cc("tests/plugin/layout.c", &program, &[]) {
        println!("SKIPPED c_and_rust_agree: there is no C compiler");
        return;
    }
    let output = Command::new(program).output().unwrap();
    let mut ours = String::new();
    told!(ours, "key", RawKey: owner page generation);
    told!(ours, "config", RawConfig: size page_size capacity options);
    told!(ours, "capabilities", RawCapabilities: size flags capacity max_batch);
    told!(ours, "stats", RawStats: size stored_bytes memory_bytes device_bytes same_filled_pages incompressible_pages);
    told!(ours, "maintained", RawMaintained: size more moved_bytes released_bytes);
    told!(ours, "plugin", Table: abi size name open close put put_batch get remove stats maintain);
    let answers = [
        Answer::Ok,
        Answer::Full,
        Answer::NotFound,
        Answer::Damaged,
        Answer::Again,
        Answer::Failed,
        Answer::Closed,
        Answer::Refused,
    ];
    let answers: Vec<String> = answers.iter().map(|answer| (*answer as i32).to_string()).collect();
    writeln!(ours, "numbers {ABI} {WHY} {}", answers.join(" ")).unwrap();
    let flags = [Flags::GET_MAY_WAIT, Flags::ON_DEVICE, Flags::ENCRYPTS, Flags::COUNTS_SAME_FILLED];
    let each: Vec<String> = flags.iter().map(u32::to_string).collect();
    writeln!(ours, "flags {}", each.join(" ")).unwrap();
    assert_eq!(flags.iter().sum::<u32>(), Flags::ALL);
    assert_eq!(String::from_utf8_lossy(&output.stdout), ours);
    for raw in -2..20 {
        assert!(Answer::from_raw(raw).is_none_or(|answer| answer as i32 == raw));
    }
}
