//! What the program does to itself and an agent wouldn't survive, or wouldn't let happen. Before that everything is brought back and
//! the agent ends.

use core::arch::naked_asm;
use core::ffi::{c_int, c_long, c_ulong, c_void};

use crate::control::Request;
use crate::memory::madvise;
use crate::next::{answer, set_errno};
use crate::remap::mremap;
use crate::state::STATE;
use crate::sys::{self, Errno, call, nr};
use crate::tasks;

const SECCOMP: u32 = 0;
const SETNS: u32 = 1;
const UNSHARE: u32 = 2;

/// prctl(2). Seccomp filters may kill for what an agent does; the programs that this one executes aren't followed either.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prctl(
    option: c_int,
    second: c_ulong,
    third: c_ulong,
    fourth: c_ulong,
    fifth: c_ulong,
) -> c_int {
    const PR_SET_SECCOMP: c_int = 22;
    const SECCOMP_MODE_STRICT: c_ulong = 1;
    // Without a filter it only asks whether there could be one.
    if option == PR_SET_SECCOMP && (second == SECCOMP_MODE_STRICT || third != 0) {
        before_seccomp();
    }
    let args = [option as usize, second as usize, third as usize, fourth as usize, fifth as usize, 0];
    // SAFETY: the caller's promise.
    answer(unsafe { call(nr::PRCTL, args) }) as c_int
}

unsafe extern "C" fn seccomp(operation: c_long, flags: c_long, filter: c_long) -> c_long {
    const SET_MODE_STRICT: c_long = 0;
    const SET_MODE_FILTER: c_long = 1;
    if operation == SET_MODE_STRICT || operation == SET_MODE_FILTER && filter != 0 {
        before_seccomp();
    }
    let args = [operation as usize, flags as usize, filter as usize, 0, 0, 0];
    // SAFETY: the caller's promise.
    answer(unsafe { call(nr::SECCOMP, args) }) as c_long
}

fn before_seccomp() {
    // In a vfork's child the memory is the parent's, which goes on as it was.
    if STATE.pid() == sys::getpid() {
        STATE.set_unfollowed(true);
    }
    retire(SECCOMP);
}

/// setns(2). Several kinds of namespace admit only processes of one thread.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setns(fd: c_int, kind: c_int) -> c_int {
    let retired = retire(SETNS);
    alone(retired, nr::SETNS, fd as usize, kind as usize)
}

/// unshare(2). A user namespace, and what threads share, can be unshared only by a process of one thread.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unshare(flags: c_int) -> c_int {
    const VM: c_int = 0x100;
    const SIGHAND: c_int = 0x800;
    const THREAD: c_int = 0x1_0000;
    const NEWUSER: c_int = 0x1000_0000;
    let retired = flags & (VM | SIGHAND | THREAD | NEWUSER) != 0 && retire(UNSHARE);
    alone(retired, nr::UNSHARE, flags as usize, 0)
}

/// Has everything brought back and the agent end; whether there was one.
fn retire(why: u32) -> bool {
    let Some(control) = STATE.control() else { return false };
    let retired = control.ask(Request::Retire(why));
    if retired {
        control.await_end();
    }
    retired
}

/// A call that needs a process of one thread. The kernel counts an ended thread for a moment longer than it tells.
fn alone(retired: bool, number: usize, first: usize, second: usize) -> c_int {
    const TRIES: u32 = 200;
    const PAUSE: u64 = 50_000;
    let mut tries = if retired { TRIES } else { 1 };
    let result = loop {
        // SAFETY: both calls take numbers.
        let result = unsafe { call(number, [first, second, 0, 0, 0, 0]) };
        tries -= 1;
        if result != Err(Errno::INVAL) || tries == 0 {
            break result;
        }
        sys::sleep(PAUSE);
    };
    answer(result) as c_int
}

/// Ends the thread. If it is the program's last one, the process: the agent alone would keep it alive.
fn exit(status: c_long) -> ! {
    let has_agent = STATE.control().is_some_and(|control| control.agent().is_some());
    let number = if has_agent && tasks::are_two() { nr::EXIT_GROUP } else { nr::EXIT };
    loop {
        // SAFETY: ends the caller, as it wants.
        let _ = unsafe { call(number, [status as usize, 0, 0, 0, 0, 0]) };
    }
}

/// syscall(2): the same for those who make the calls by number. All others are made here as the C library makes them, without a
/// frame on the stack.
///
/// # Safety
/// As the C library's.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall() -> c_long {
    naked_asm!(
        "cmp rdi, {prctl}",
        "je {by_number}",
        "cmp rdi, {seccomp}",
        "je {by_number}",
        "cmp rdi, {setns}",
        "je {by_number}",
        "cmp rdi, {unshare}",
        "je {by_number}",
        "cmp rdi, {madvise}",
        "je {by_number}",
        "cmp rdi, {mremap}",
        "je {by_number}",
        "cmp rdi, {exit}",
        "je {by_number}",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov r10, r8",
        "mov r8, r9",
        "mov r9, qword ptr [rsp + 8]",
        "syscall",
        "cmp rax, -4095",
        "jae 2f",
        "ret",
        "2:",
        "neg eax",
        "mov edi, eax",
        "sub rsp, 8",
        "call {set_errno}",
        "add rsp, 8",
        "mov rax, -1",
        "ret",
        prctl = const nr::PRCTL,
        seccomp = const nr::SECCOMP,
        setns = const nr::SETNS,
        unshare = const nr::UNSHARE,
        madvise = const nr::MADVISE,
        mremap = const nr::MREMAP,
        exit = const nr::EXIT,
        by_number = sym by_number,
        set_errno = sym set_errno,
    )
}

/// # Safety
/// As the function of the number's name.
unsafe extern "C" fn by_number(
    number: c_long,
    first: c_long,
    second: c_long,
    third: c_long,
    fourth: c_long,
    fifth: c_long,
) -> c_long {
    let pointer = |value: c_long| core::ptr::with_exposed_provenance_mut::<c_void>(value as usize);
    // SAFETY: the caller's promise.
    unsafe {
        match number as usize {
            nr::PRCTL => {
                let (second, third) = (second as c_ulong, third as c_ulong);
                prctl(first as c_int, second, third, fourth as c_ulong, fifth as c_ulong).into()
            }
            nr::SECCOMP => seccomp(first, second, third),
            nr::SETNS => setns(first as c_int, second as c_int).into(),
            nr::UNSHARE => unshare(first as c_int).into(),
            nr::MADVISE => madvise(pointer(first), second as usize, third as c_int).into(),
            nr::MREMAP => {
                let (old_len, new_len) = (second as usize, third as usize);
                mremap(pointer(first), old_len, new_len, fourth as c_int, pointer(fifth)).addr() as c_long
            }
            nr::EXIT => exit(first),
            _ => answer(Err(Errno::NOSYS)) as c_long,
        }
    }
}
