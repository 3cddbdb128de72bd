//! Page faults as SIGBUS in the faulting thread: the handler, and whoever had the signal before.
//!
//! A userfaultfd with [`Features::SIGBUS`](crate::Features::SIGBUS) sends no message and lets nobody wait: the kernel raises SIGBUS in the thread
//! that touched a missing page. Who puts the page in place in the signal handler and returns has served the fault without
//! any other thread.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::{Blocked, Error};

/// A touch of something that isn't there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusFault {
    /// What was touched.
    pub addr: u64,
    /// Whether it was written to, as far as the machine says; `true` where it doesn't.
    pub write: bool,
}

/// Looks after a fault: `true` if the thread is to try again, `false` if it isn't one of ours.
///
/// It is called in a signal handler, with every signal blocked, on a thread that was stopped anywhere. It must not allocate, nor take a
/// lock whose holder might be stopped by this very signal: [`SignalLock`](crate::SignalLock)s can't.
pub type Serve = fn(BusFault, &Blocked) -> bool;

static SERVE: OnceLock<Serve> = OnceLock::new();
/// What the signal did before; never changed once it is set, and never freed.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());
static INSTALLING: Mutex<()> = Mutex::new(());

/// Has SIGBUS go to `serve` first from now on, for the whole process. What it did before, it does for every fault that `serve` doesn't want.
///
/// There is one `serve` a process: the first that was given. The handler runs on the stack of the thread that faults, not on its
/// alternate one, which may be too small.
///
/// # Errors
/// When the kernel refuses.
pub fn install(serve: Serve) -> Result<(), Error> {
    let _one = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if !PREVIOUS.load(Ordering::Acquire).is_null() {
        return Ok(());
    }
    SERVE.get_or_init(|| serve);
    let previous = Box::new(current()?);
    // Before the handler is there, for it may be needed at once.
    PREVIOUS.store(Box::into_raw(previous), Ordering::Release);
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: the set is ours and live.
    unsafe { libc::sigfillset(&raw mut action.sa_mask) };
    set(&action)
}

/// Whether SIGBUS still comes here first. Whoever installed a handler later has to pass on what isn't theirs.
pub fn is_installed() -> bool {
    current().is_ok_and(|action| action.sa_sigaction == on_sigbus as *const () as usize)
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: needed because the interrupted code must find errno as it was; the pointer is the thread's own.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let saved = unsafe { *errno };
    // SAFETY: the kernel passes a siginfo_t to a handler installed with SA_SIGINFO.
    let (code, addr) = unsafe { ((*info).si_code, (*info).si_addr().addr() as u64) };
    let served = code == libc::BUS_ADRERR
        && SERVE.get().is_some_and(|serve| {
            // SAFETY: the mask of our action blocks every signal while this runs.
            let blocked = unsafe { Blocked::by_the_kernel() };
            serve(BusFault { addr, write: is_write(context) }, &blocked)
        });
    if !served {
        pass_on(signal, info, context, code);
    }
    // SAFETY: as above.
    unsafe { *errno = saved };
}

/// Does what would have been done without us.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void, code: libc::c_int) {
    // SAFETY: `install` set it before the handler was there, to something that lives for ever and never changes.
    let previous = unsafe { &*PREVIOUS.load(Ordering::Acquire) };
    let sent = code <= 0;
    match previous.sa_sigaction {
        libc::SIG_IGN if sent => {}
        // A fault can't be ignored.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: all zeros with the default action is a valid value of this plain structure.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = libc::SIG_DFL;
            let _ = set(&action);
            if sent {
                // SAFETY: raise is async-signal-safe; the signal is delivered when this handler returns.
                unsafe { libc::raise(signal) };
            }
            // A fault happens again when the thread tries again.
        }
        handler => {
            restore_mask(previous, context);
            if previous.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: whoever installed it said that it is a function of three arguments.
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    unsafe { std::mem::transmute(handler) };
                handler(signal, info, context);
            } else {
                // SAFETY: whoever installed it said that it is a function of one argument.
                let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
                handler(signal);
            }
        }
    }
}

/// Blocks what would be blocked if the kernel had called the previous handler.
fn restore_mask(previous: &libc::sigaction, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a ucontext_t to a handler installed with SA_SIGINFO.
    let mut mask = unsafe { (*context.cast::<libc::ucontext_t>()).uc_sigmask };
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: both sets are live.
        if unsafe { libc::sigismember(&raw const previous.sa_mask, signal) } == 1 {
            // SAFETY: as above.
            unsafe { libc::sigaddset(&raw mut mask, signal) };
        }
    }
    if previous.sa_flags & libc::SA_NODEFER == 0 {
        // SAFETY: as above.
        unsafe { libc::sigaddset(&raw mut mask, libc::SIGBUS) };
    }
    // SAFETY: as above; no old mask is asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, ptr::null_mut()) };
}

#[cfg(target_arch = "x86_64")]
fn is_write(context: *mut libc::c_void) -> bool {
    // SAFETY: the kernel passes a ucontext_t to a handler installed with SA_SIGINFO. The register is the page fault's error code.
    let code = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_ERR as usize] };
    code & 2 != 0
}

#[cfg(not(target_arch = "x86_64"))]
fn is_write(_: *mut libc::c_void) -> bool {
    true
}

fn current() -> Result<libc::sigaction, Error> {
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is changed, and the structure is ours.
    match unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut action) } {
        0 => Ok(action),
        _ => Err(Error::system("asking what SIGBUS does", std::io::Error::last_os_error())),
    }
}

fn set(action: &libc::sigaction) -> Result<(), Error> {
    // SAFETY: the action is the default one or the handler above, which stands for itself.
    match unsafe { libc::sigaction(libc::SIGBUS, action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(Error::system("saying what SIGBUS does", std::io::Error::last_os_error())),
    }
}
