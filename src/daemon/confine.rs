//! Giving up what a daemon doesn't need once it serves: capabilities, new privileges, system calls.
//!
//! What a client sends is read by this process, and so is what a disk gives back. Should there be a way to have it do something else, there is little
//! that it could do: no other program, no new file, no network, no memory of others written to, none of its own made executable.
//!
//! A call that isn't in the list fails with EPERM, in whoever makes it, and is told of as what failed then. The process isn't killed for it: its successor
//! would come to the same call, and every client wait for it each time.
//!
//! Files can't be restricted by Landlock: a process under it may not read the memory of processes that aren't (process_vm_readv fails with EPERM, whatever
//! its capabilities), which is what a daemon does. Instead no file can be opened for writing, nor made.

use libc::c_long;
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use userswap_uffd::REQUESTS;

/// What a process still has to do, beside serving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Its store works by an io_uring.
    pub ring: bool,
    /// It has a command under it: passes signals on, and moves control groups and temporary files about.
    pub command: bool,
}

/// Why a process couldn't be confined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfineError {
    /// Capabilities couldn't be given up.
    #[error("giving up capabilities")]
    Capabilities(#[source] rustix::io::Errno),
    /// The filter makes no sense for this machine.
    #[error("making the filter of system calls")]
    Filter(#[from] BackendError),
    /// The kernel doesn't take it.
    #[error("setting the filter of system calls")]
    Apply(#[from] seccompiler::Error),
}

/// What is kept, if it is there:
/// - SYS_PTRACE: reading clients' memory and what /proc tells of it, making and handling their userfaultfds;
/// - DAC_READ_SEARCH: `/proc/PID/pagemap` is readable for its owner alone;
/// - KILL: ending a client that broke the contract, and what can't be served any more;
/// - IPC_LOCK: keys stay in memory;
/// - SYS_NICE: a thread that gave way to all others takes its turn again (from SCHED_IDLE back to SCHED_OTHER).
const KEPT: CapabilitySet = CapabilitySet::SYS_PTRACE
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::SYS_NICE);

/// Gives up what this thread, and those it starts from now on, have of capabilities and don't need.
///
/// # Errors
/// [`ConfineError::Capabilities`].
pub fn drop_capabilities() -> Result<(), ConfineError> {
    let failed = ConfineError::Capabilities;
    let has = rustix::thread::capabilities(None).map_err(failed)?;
    let sets = CapabilitySets {
        effective: has.effective & KEPT,
        permitted: has.permitted & KEPT,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).map_err(failed)
}

/// Has every thread of this process make no system calls but those it needs from now on, and gain no privileges by executing anything.
///
/// # Errors
/// [`ConfineError::Filter`], [`ConfineError::Apply`].
pub fn filter_system_calls(needs: Needs) -> Result<(), ConfineError> {
    // A thread's flags are in memory there, where no filter looks. Without that call the C library makes threads by one that has them in a register.
    let nosys = u32::try_from(libc::ENOSYS).unwrap_or_default();
    let unlooked = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    seccompiler::apply_filter_all_threads(&program(
        unlooked,
        SeccompAction::Allow,
        SeccompAction::Errno(nosys),
    )?)?;
    let perm = u32::try_from(libc::EPERM).unwrap_or_default();
    let program = program(allowed(needs)?, SeccompAction::Errno(perm), SeccompAction::Allow)?;
    Ok(seccompiler::apply_filter_all_threads(&program)?)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn program(
    rules: Rules,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let target = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, listed, target)?.try_into()
}

fn allowed(needs: Needs) -> Result<Rules, BackendError> {
    let mut rules: Rules = ALWAYS.iter().map(|call| (*call, Vec::new())).collect();
    let mut list = |calls: &[c_long]| rules.extend(calls.iter().map(|call| (*call, Vec::new())));
    #[cfg(target_arch = "x86_64")]
    list(OLD);
    if needs.ring {
        list(RING);
    }
    if needs.command {
        list(COMMAND);
    }
    let requests =
        REQUESTS.iter().chain(OTHER_REQUESTS).map(|request| rule(1, SeccompCmpOp::Eq, u64::from(*request)));
    rules.insert(libc::SYS_ioctl, requests.collect::<Result<_, _>>()?);
    // Memory that is run is there already.
    let exec = SeccompCmpOp::MaskedEq(number(libc::PROT_EXEC));
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(2, exec.clone(), 0)?]);
    }
    // Threads, and no processes.
    let thread = number(libc::CLONE_THREAD);
    rules.insert(libc::SYS_clone, vec![rule(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    // Names of threads and of memory.
    let names = [number(libc::PR_SET_NAME), number(libc::PR_SET_VMA)];
    let names = names.map(|name| rule(0, SeccompCmpOp::Eq, name));
    rules.insert(libc::SYS_prctl, names.into_iter().collect::<Result<_, _>>()?);
    rules.insert(libc::SYS_prlimit64, vec![rule(0, SeccompCmpOp::Eq, 0)?]);
    if !needs.command {
        // To read.
        let writes = number(libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC);
        rules.insert(libc::SYS_openat, vec![rule(2, SeccompCmpOp::MaskedEq(writes), 0)?]);
        // Where there is the older call, some libraries make it.
        #[cfg(target_arch = "x86_64")]
        rules.insert(libc::SYS_open, vec![rule(1, SeccompCmpOp::MaskedEq(writes), 0)?]);
    }
    Ok(rules)
}

fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?])
}

fn number(flags: libc::c_int) -> u64 {
    u64::from(flags.cast_unsigned())
}

/// FIONBIO, and what asks whether something is a terminal, and how wide.
const OTHER_REQUESTS: &[u32] = &[0x5421, 0x5401, 0x802c_542a, 0x5413];

const ALWAYS: &[c_long] = &[
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    // Threads and time.
    // Refused by the filter before; of two refusals the later one would count.
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_tgkill,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_getscheduler,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    // Descriptors.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_flock,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_userfaultfd,
    // Files, to look at; sockets' names go at the end.
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_faccessat,
    libc::SYS_unlinkat,
    libc::SYS_getcwd,
    // Sockets that are there.
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    // Clients.
    libc::SYS_process_vm_readv,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    // What is asked and harms nobody.
    libc::SYS_getrandom,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_capget,
    libc::SYS_uname,
    libc::SYS_sysinfo,
];

/// Calls of older libraries, that others have replaced. Not `open`, whose replacement is looked at.
#[cfg(target_arch = "x86_64")]
const OLD: &[c_long] = &[
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_stat,
    libc::SYS_readlink,
    libc::SYS_unlink,
    libc::SYS_access,
    libc::SYS_time,
    libc::SYS_gettimeofday,
];

/// A ring that dies is made anew.
const RING: &[c_long] = &[
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
];

const COMMAND: &[c_long] = &[
    libc::SYS_kill,
    libc::SYS_waitid,
    libc::SYS_wait4,
    libc::SYS_openat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_programs_the_kernel_takes() {
        for (ring, command) in [(false, false), (true, false), (true, true)] {
            let rules = allowed(Needs { ring, command }).unwrap();
            assert_eq!(rules.contains_key(&libc::SYS_io_uring_enter), ring);
            assert_eq!(rules.contains_key(&libc::SYS_kill), command);
            for never in [libc::SYS_execve, libc::SYS_ptrace, libc::SYS_socket, libc::SYS_process_vm_writev] {
                assert!(!rules.contains_key(&never));
            }
            // BPF_MAXINSNS.
            let length = program(rules, SeccompAction::Errno(1), SeccompAction::Allow).unwrap().len();
            assert!(length < 4096, "{length}");
        }
    }
}
