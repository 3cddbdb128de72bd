//! What this library takes from the program's C library: the functions it stands before, errno and the environment.
//!
//! All of it is looked up by weak references, so that the object depends on no library by name and loads beside any C library;
//! what isn't there is null. Only the program's own threads come here.

use core::arch::{asm, global_asm};
use core::ffi::{CStr, c_char, c_int};
use core::mem::transmute;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::sys::Errno;

global_asm!(".weak dlsym", ".weak dladdr", ".weak __errno_location", ".weak environ");

macro_rules! address_of {
    ($symbol:literal) => {{
        let address: usize;
        // SAFETY: reads this object's own table of addresses.
        unsafe {
            asm!(
                concat!("mov {}, qword ptr [rip + ", $symbol, "@GOTPCREL]"),
                out(reg) address,
                options(nostack, preserves_flags, pure, readonly)
            );
        }
        address
    }};
}

/// Pointers to strings, ending in null.
pub(crate) type Strings = *const *const c_char;

/// A function that was looked up once.
pub(crate) struct Function(AtomicUsize);

impl Function {
    const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// Its address: the first definition behind this object's.
    fn get(&self, name: &CStr) -> Option<usize> {
        let mut address = self.0.load(Ordering::Relaxed);
        if address == 0 {
            address = look_up(name);
            self.0.store(address, Ordering::Relaxed);
        }
        (address != 0).then_some(address)
    }
}

fn look_up(name: &CStr) -> usize {
    const RTLD_NEXT: usize = usize::MAX;
    match address_of!("dlsym") {
        0 => 0,
        dlsym => {
            // SAFETY: this is what dlsym is.
            let dlsym: extern "C" fn(usize, *const c_char) -> usize = unsafe { transmute(dlsym) };
            dlsym(RTLD_NEXT, name.as_ptr())
        }
    }
}

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident = $symbol:literal: fn($($arg:ty),*);)+) => {
        /// The functions behind the interposed ones, as far as they were looked up.
        pub(crate) struct Next {
            $($name: Function,)+
        }

        impl Next {
            pub(crate) const fn new() -> Self {
                Self { $($name: Function::new(),)+ }
            }

            $($(#[$doc])*
            pub(crate) fn $name(&self) -> Option<unsafe extern "C" fn($($arg),*) -> c_int> {
                let address = self.$name.get($symbol)?;
                // SAFETY: the symbol of this name has this type in every C library.
                Some(unsafe { transmute::<usize, unsafe extern "C" fn($($arg),*) -> c_int>(address) })
            })+
        }
    };
}

functions! {
    fork = c"fork": fn();
    bare_fork = c"_Fork": fn();
    daemon = c"daemon": fn(c_int, c_int);
    forkpty = c"forkpty": fn(*mut c_int, *mut c_char, *const u8, *const u8);
    execvpe = c"execvpe": fn(*const c_char, Strings, Strings);
    fexecve = c"fexecve": fn(c_int, Strings, Strings);
    posix_spawn = c"posix_spawn": fn(*mut c_int, *const c_char, *const u8, *const u8, Strings, Strings);
    pthread_create = c"pthread_create": fn(*mut usize, *const u8, usize, usize);
    thrd_create = c"thrd_create": fn(*mut usize, usize, usize);
    posix_spawnp = c"posix_spawnp": fn(*mut c_int, *const c_char, *const u8, *const u8, Strings, Strings);
}

impl Next {
    /// Looks up what may be called where dlsym may not: in a child, in a signal handler.
    pub(crate) fn look_up_early(&self) {
        let _ = (self.fork(), self.bare_fork(), self.execvpe());
    }
}

/// Sets the calling thread's errno.
pub(crate) extern "C" fn set_errno(errno: c_int) {
    if let location @ 1.. = address_of!("__errno_location") {
        // SAFETY: this is what __errno_location is: it gives the place of the calling thread's errno.
        unsafe {
            let location: extern "C" fn() -> *mut c_int = transmute(location);
            *location() = errno;
        }
    }
}

/// An answer as the C library's functions give it.
pub(crate) fn answer(answer: Result<usize, Errno>) -> isize {
    match answer {
        Ok(value) => value as isize,
        Err(Errno(errno)) => {
            set_errno(errno);
            -1
        }
    }
}

/// The program's environment; null before it has one.
pub(crate) fn environment() -> Strings {
    match address_of!("environ") {
        0 => core::ptr::null(),
        environ => {
            let environ = core::ptr::with_exposed_provenance::<Strings>(environ);
            // SAFETY: the variable is there, and of this type. Whoever changes it while another thread executes programs has a
            // race of their own.
            unsafe { *environ }
        }
    }
}

/// The path this object was loaded by; null if that can't be told.
pub(crate) fn own_path() -> *const c_char {
    /// `Dl_info`.
    #[repr(C)]
    struct Info {
        path: *const c_char,
        base: usize,
        symbol: *const c_char,
        address: usize,
    }
    let mut info = Info { path: core::ptr::null(), base: 0, symbol: core::ptr::null(), address: 0 };
    if let dladdr @ 1.. = address_of!("dladdr") {
        let here = set_errno as extern "C" fn(c_int);
        // SAFETY: this is what dladdr is; it fills in the structure.
        let dladdr: extern "C" fn(usize, *mut Info) -> c_int = unsafe { transmute(dladdr) };
        dladdr(here as usize, &raw mut info);
    }
    info.path
}
