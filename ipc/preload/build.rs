//! Builds the shared object, with the compiler that builds the crate and nothing else: no dependency, no network.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=object");
    println!("cargo::rerun-if-changed=build.rs");
    let target = env::var("TARGET")?;
    if !is_supported() {
        return Ok(());
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?).join("libuserswap_preload.so");
    let source = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("no CARGO_MANIFEST_DIR")?);
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.arg(source.join("object/lib.rs")).arg("-o").arg(&out).args(["--target", &target]);
    rustc.args([
        "--crate-name=userswap_preload",
        "--crate-type=cdylib",
        "--edition=2024",
        "--cap-lints=warn",
    ]);
    // Optimised whatever the profile: that nothing can panic is seen by the linker once what can't be reached is gone.
    for option in [
        "panic=abort",
        "opt-level=2",
        "codegen-units=1",
        "overflow-checks=off",
        "debug-assertions=off",
        "strip=symbols",
        "target-feature=-crt-static",
    ] {
        rustc.arg(format!("-C{option}"));
    }
    // No C library by name, and nothing left undefined but what is weak.
    for option in ["-nostartfiles", "-nostdlib", "-Wl,-z,defs", "-Wl,-z,now", "-Wl,--hash-style=both"] {
        rustc.arg(format!("-Clink-arg={option}"));
    }
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut option = std::ffi::OsString::from("-Clinker=");
        option.push(linker);
        rustc.arg(option);
    }
    let status = rustc.status()?;
    if !status.success() {
        return Err(format!("building the shared object: {rustc:?}: {status}").into());
    }
    Ok(())
}

/// Its system calls are those of Linux on x86-64.
fn is_supported() -> bool {
    let is = |variable: &str, value: &str| env::var(variable).is_ok_and(|found| found == value);
    is("CARGO_CFG_TARGET_ARCH", "x86_64")
        && is("CARGO_CFG_TARGET_OS", "linux")
        && is("CARGO_CFG_TARGET_POINTER_WIDTH", "64")
}
