//! Following the programs that this one executes: their environment must load this object and name the daemon, also where the
//! program has cleared it. Nothing is allocated: in a vfork's child that would be the parent's memory.

use core::arch::naked_asm;
use core::ffi::{c_char, c_int, c_void};
use core::ptr;

use crate::environment::Environment;
use crate::next::{Strings, answer, environment, set_errno};
use crate::state::STATE;
use crate::sys::{Errno, call, nr};

/// A call that executes a program, but for its environment.
#[derive(Clone, Copy)]
enum Call {
    At {
        directory: c_int,
        path: *const c_char,
        argv: Strings,
        flags: c_int,
    },
    Path {
        path: *const c_char,
        argv: Strings,
    },
    Search {
        file: *const c_char,
        argv: Strings,
    },
    File {
        fd: c_int,
        argv: Strings,
    },
    Spawn {
        pid: *mut c_int,
        path: *const c_char,
        actions: *const u8,
        attributes: *const u8,
        argv: Strings,
        search: bool,
    },
}

impl Call {
    /// Makes it, with an environment that is followed.
    fn make(self, envp: Strings) -> c_int {
        // SAFETY: the caller of the interposed function promises that these are strings ending in null.
        let wanted = unsafe { Environment::of(envp) };
        match wanted {
            None => self.make_with(envp),
            Some(wanted) => {
                let mut context = Context { call: self, wanted };
                let context = ptr::from_mut(&mut context).cast();
                // SAFETY: the function gets room of the size it is to have, and the context, which lives until it returns.
                unsafe { with_room(wanted.bytes(), make_in, context) }
            }
        }
    }

    fn make_with(self, envp: Strings) -> c_int {
        let text = |text: *const c_char| text.expose_provenance();
        let strings = |strings: Strings| strings.expose_provenance();
        // SAFETY: the arguments are those of the caller of the interposed function, and for the same use.
        unsafe {
            match self {
                Self::At { directory, path, argv, flags } => {
                    let args =
                        [directory as usize, text(path), strings(argv), strings(envp), flags as usize, 0];
                    answer(call(nr::EXECVEAT, args)) as c_int
                }
                Self::Path { path, argv } => {
                    answer(call(nr::EXECVE, [text(path), strings(argv), strings(envp), 0, 0, 0])) as c_int
                }
                Self::Search { file, argv } => match STATE.next.execvpe() {
                    Some(next) => next(file, argv, envp),
                    None => missing(),
                },
                Self::File { fd, argv } => match STATE.next.fexecve() {
                    Some(next) => next(fd, argv, envp),
                    None => missing(),
                },
                Self::Spawn { pid, path, actions, attributes, argv, search } => {
                    let next = if search { STATE.next.posix_spawnp() } else { STATE.next.posix_spawn() };
                    match next {
                        Some(next) => next(pid, path, actions, attributes, argv, envp),
                        None => Errno::NOSYS.0,
                    }
                }
            }
        }
    }
}

fn missing() -> c_int {
    set_errno(Errno::NOSYS.0);
    -1
}

struct Context {
    call: Call,
    wanted: Environment,
}

extern "C" fn make_in(room: *mut u8, context: *mut c_void) -> c_int {
    // SAFETY: the context is the one `Call::make` gave, the room as large as it asked for and aligned.
    unsafe {
        let context = &*context.cast::<Context>();
        context.call.make_with(context.wanted.build(room))
    }
}

/// Calls a function with room on the stack, aligned to 16, a page of it after the other so that a guard page is met.
///
/// # Safety
/// As calling the function.
#[unsafe(naked)]
unsafe extern "C" fn with_room(
    bytes: usize,
    function: extern "C" fn(*mut u8, *mut c_void) -> c_int,
    context: *mut c_void,
) -> c_int {
    naked_asm!(
        "push rbp",
        "mov rbp, rsp",
        "2:",
        "cmp rdi, 4096",
        "jb 3f",
        "sub rsp, 4096",
        "or qword ptr [rsp], 0",
        "sub rdi, 4096",
        "jmp 2b",
        "3:",
        "sub rsp, rdi",
        "and rsp, -16",
        "mov rax, rsi",
        "mov rdi, rsp",
        "mov rsi, rdx",
        "call rax",
        "leave",
        "ret",
    )
}

/// execve(2).
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execve(path: *const c_char, argv: Strings, envp: Strings) -> c_int {
    Call::Path { path, argv }.make(envp)
}

/// execveat(2).
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execveat(
    directory: c_int,
    path: *const c_char,
    argv: Strings,
    envp: Strings,
    flags: c_int,
) -> c_int {
    Call::At { directory, path, argv, flags }.make(envp)
}

/// fexecve(3).
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fexecve(fd: c_int, argv: Strings, envp: Strings) -> c_int {
    Call::File { fd, argv }.make(envp)
}

/// execv(3).
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execv(path: *const c_char, argv: Strings) -> c_int {
    Call::Path { path, argv }.make(environment())
}

/// execvp(3).
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execvp(file: *const c_char, argv: Strings) -> c_int {
    Call::Search { file, argv }.make(environment())
}

/// execvpe(3).
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execvpe(file: *const c_char, argv: Strings, envp: Strings) -> c_int {
    Call::Search { file, argv }.make(envp)
}

/// posix_spawn(3).
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_spawn(
    pid: *mut c_int,
    path: *const c_char,
    actions: *const u8,
    attributes: *const u8,
    argv: Strings,
    envp: Strings,
) -> c_int {
    Call::Spawn { pid, path, actions, attributes, argv, search: false }.make(envp)
}

/// posix_spawnp(3).
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_spawnp(
    pid: *mut c_int,
    path: *const c_char,
    actions: *const u8,
    attributes: *const u8,
    argv: Strings,
    envp: Strings,
) -> c_int {
    Call::Spawn { pid, path, actions, attributes, argv, search: true }.make(envp)
}

/// The body of a function that takes its strings one by one: lays the arguments in registers before those on the stack, so that
/// all of them lie in a row, and passes the address of the row.
macro_rules! in_a_row {
    ($name:ident, $handler:path) => {
        /// One of execl(3)'s family.
        ///
        /// # Safety
        /// As the C library's.
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() -> c_int {
            naked_asm!(
                "pop rax",
                "push r9",
                "push r8",
                "push rcx",
                "push rdx",
                "push rsi",
                "push rdi",
                "mov rdi, rsp",
                "push rax",
                "sub rsp, 8",
                "call {handler}",
                "add rsp, 8",
                "pop rcx",
                "add rsp, 48",
                "push rcx",
                "ret",
                handler = sym $handler,
            )
        }
    };
}

in_a_row!(execl, listed);
in_a_row!(execlp, listed_search);
in_a_row!(execle, listed_environment);

unsafe extern "C" fn listed(row: Strings) -> c_int {
    // SAFETY: the row is the path, the program's arguments and a null.
    unsafe { execv(*row, row.add(1)) }
}

unsafe extern "C" fn listed_search(row: Strings) -> c_int {
    // SAFETY: as above.
    unsafe { execvp(*row, row.add(1)) }
}

unsafe extern "C" fn listed_environment(row: Strings) -> c_int {
    // SAFETY: as above, and the environment behind the null.
    unsafe {
        let argv = row.add(1);
        let mut end = argv;
        while !(*end).is_null() {
            end = end.add(1);
        }
        execve(*row, argv, (*end.add(1)).cast())
    }
}
