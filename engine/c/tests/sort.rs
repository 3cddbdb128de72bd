//! A C program over the header, compiled and run.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn a_c_program_sorts_more_than_it_keeps_in_memory() {
    let name = "a_c_program_sorts_more_than_it_keeps_in_memory";
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = std::env::temp_dir().join(format!("userswap-c-sort-{}", std::process::id()));
    // The library is built beside this test.
    let built = std::env::current_exe().unwrap();
    let library: PathBuf = built
        .ancestors()
        .map(|directory| directory.join("libuserswap_c.so"))
        .find(|library| library.exists())
        .unwrap();
    let compiled = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-D_POSIX_C_SOURCE=200809L", "-I"])
        .arg(here.join("include"))
        .arg(here.join("tests/sort.c"))
        .arg(&library)
        .arg("-o")
        .arg(&program)
        .status();
    match compiled {
        Ok(status) => assert!(status.success(), "{status}"),
        Err(error) => {
            println!("SKIPPED {name}: no C compiler: {error}");
            return;
        }
    }
    let output = Command::new(&program).env("LD_LIBRARY_PATH", library.parent().unwrap()).output();
    let _ = std::fs::remove_file(&program);
    let output = output.unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}: {printed}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    println!("{printed}");
}
