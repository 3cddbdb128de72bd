//! The C library's heap in a process that serves for weeks.
#![allow(unsafe_code)]

/// Has all threads allocate from two arenas, where glibc would have as many as eight for each processor and give nothing of what lies free in them back: an hour of
/// clients that came and went left 20 MiB of which 2 were in use. To be called before there are threads. No fault that is served from memory allocates, so nobody
/// waits for an arena.
pub fn keep_heap_small() {
    // SAFETY: needed because the C library takes this setting from the environment or so. It changes numbers that the next thread's first allocation reads.
    #[cfg(target_env = "gnu")]
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}
