//! Starting: the constructor, and the agent's thread.

use core::arch::naked_asm;
use core::ffi::{CStr, c_char};

use crate::agent;
use crate::control::{self, Control};
use crate::next::{self, Strings};
use crate::state::STATE;
use crate::sys;

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = construct;

/// The variable that says where the daemon is: `[FILTERS[+PATIENCE]:]ADDRESS`, see the crate that embeds this.
pub(crate) const SOCKET: &[u8] = b"USERSWAP_SOCKET=";
/// The variable that gets this object loaded.
pub(crate) const PRELOAD: &[u8] = b"LD_PRELOAD=";

/// Runs once, in the program's only thread, before its own code. Whatever fails leaves the program alone.
extern "C" fn construct() {
    // SAFETY: the environment is the C library's own at this point.
    let Some(value) = (unsafe { variable(next::environment(), SOCKET) }) else { return };
    // SAFETY: the loader's own string.
    let Some(path) = (unsafe { bytes_of(next::own_path()) }) else { return };
    let Socket { filters, address, .. } = split(value.to_bytes());
    let known = STATE.socket.push(SOCKET)
        && STATE.socket.push(value.to_bytes())
        && STATE.preload.push(PRELOAD)
        && STATE.preload.push(path);
    if !known || address.is_empty() || is_filtered(filters) {
        return;
    }
    STATE.next.look_up_early();
    STATE.set_started(true);
    launch();
}

/// Starts the agent's thread, with all signals blocked. Without it the program runs all the same.
pub(crate) fn launch() {
    let block = match STATE.block() {
        Some(block) => block,
        None => match control::map_block() {
            Ok(block) => {
                STATE.set_block(block);
                block
            }
            Err(_) => return,
        },
    };
    let control = Control::of_block(block);
    let pid = sys::getpid();
    STATE.set_pid(pid);
    control.set_pid(pid);
    let mask = sys::set_signal_mask(sys::ALL);
    // SAFETY: the block is mapped for good and nobody runs on its stack: there is no agent here. The agent's code touches no
    // thread-local storage.
    unsafe { clone_agent(AGENT_FLAGS, control::stack_top(block), control.tid_word(), block) };
    sys::set_signal_mask(mask);
}

/// VM · FS · FILES · SIGHAND · THREAD · SYSVSEM · PARENT_SETTID · CHILD_CLEARTID. Not SETTLS. The file table is left by the agent
/// itself, at once: of a table that was copied it would hold the program's files for a moment.
const AGENT_FLAGS: usize = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000 | 0x10_0000 | 0x20_0000;

/// clone(2) of a thread that runs [`agent::run`] with the block as its argument.
///
/// # Safety
/// The stack must be mapped and unused, the word live as long as the thread.
#[unsafe(naked)]
unsafe extern "C" fn clone_agent(flags: usize, stack: usize, tid: *mut u32, block: usize) -> isize {
    naked_asm!(
        "mov r9, rcx",
        "mov r10, rdx",
        "mov eax, 56",
        "syscall",
        "test rax, rax",
        "jnz 2f",
        // The new thread: on its own stack, with the registers of the old one.
        "xor ebp, ebp",
        "mov rdi, r9",
        "call {run}",
        "ud2",
        "2:",
        "ret",
        run = sym agent::run,
    )
}

/// What the variable says.
pub(crate) struct Socket<'a> {
    /// How many seccomp filters are to be expected.
    filters: u32,
    /// How many seconds who waits for a daemon that is gone is let wait; 0: for ever.
    pub(crate) patience: u32,
    pub(crate) address: &'a [u8],
}

/// Unless said otherwise.
const PATIENCE: u32 = 60;

pub(crate) fn split(value: &[u8]) -> Socket<'_> {
    let (filters, rest) = number(value);
    let (patience, rest) = match rest.split_first() {
        Some((b'+', rest)) => number(rest),
        _ => (PATIENCE, rest),
    };
    match rest.split_first() {
        Some((b':', address)) if rest.len() < value.len() => Socket { filters, patience, address },
        _ => Socket { filters: 0, patience: PATIENCE, address: value },
    }
}

/// The number at the beginning, 0 if there is none, and what is behind it.
fn number(text: &[u8]) -> (u32, &[u8]) {
    let mut number = 0_u32;
    let mut rest = text;
    while let Some((digit @ b'0'..=b'9', behind)) = rest.split_first() {
        number = number.saturating_mul(10).saturating_add(u32::from(digit - b'0'));
        rest = behind;
    }
    (number, rest)
}

/// Whether this process runs under more seccomp filters than `expected`, which the starter of it all has itself: then
/// somebody in between restricts it, and the agent's calls might kill it.
///
/// Not asked by prctl(2): a program of few permitted calls may be killed for that one, while its loader has to read files.
fn is_filtered(expected: u32) -> bool {
    let mut text = [0_u8; 4096];
    let Ok(file) = sys::open(c"/proc/self/status", 0) else { return false };
    let Ok(len) = sys::read(&file, &mut text) else { return false };
    let text = text.get(..len).unwrap_or_default();
    number_behind(text, b"\nSeccomp:\t") != 0 && number_behind(text, b"\nSeccomp_filters:\t") > expected
}

/// The number behind a key; 0 without one.
pub(crate) fn number_behind(text: &[u8], key: &[u8]) -> u32 {
    let mut rest = text;
    while !rest.starts_with(key) {
        match rest.split_first() {
            Some((_, shorter)) => rest = shorter,
            None => return 0,
        }
    }
    let digits = rest.iter().skip(key.len()).take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number: u32, digit| number.saturating_mul(10).saturating_add(u32::from(digit - b'0')))
}

/// The value of a variable. `key` ends in `=`.
///
/// # Safety
/// The environment must be null, or strings ending in null that stay as they are.
pub(crate) unsafe fn variable(environment: Strings, key: &[u8]) -> Option<&'static CStr> {
    if environment.is_null() {
        return None;
    }
    let mut place = environment;
    loop {
        // SAFETY: not behind the null at the end, by the caller's promise.
        let entry = unsafe { *place };
        if entry.is_null() {
            return None;
        }
        // SAFETY: it holds strings, by the caller's promise.
        if let Some(value) = unsafe { value_of(entry, key) } {
            return Some(value);
        }
        // SAFETY: the entry wasn't the last.
        place = unsafe { place.add(1) };
    }
}

/// The value of an entry, if it is this variable's.
///
/// # Safety
/// The entry must be a C string.
pub(crate) unsafe fn value_of(entry: *const c_char, key: &[u8]) -> Option<&'static CStr> {
    for (at, wanted) in key.iter().enumerate() {
        // SAFETY: all bytes before were not 0, so this one is part of the string.
        if unsafe { *entry.add(at) } as u8 != *wanted {
            return None;
        }
    }
    // SAFETY: the string goes on behind the key, to its 0 at least.
    Some(unsafe { CStr::from_ptr(entry.add(key.len())) })
}

unsafe fn bytes_of(text: *const c_char) -> Option<&'static [u8]> {
    // SAFETY: not null, and a C string by the caller's promise.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_bytes())
}
