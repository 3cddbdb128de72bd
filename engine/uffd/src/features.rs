//! What a userfaultfd can be asked to do at its handshake, and what a registered range can be asked for.

use bitflags::bitflags;

bitflags! {
    /// The features of a userfaultfd, bit for bit the kernel's `UFFD_FEATURE_*`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Features: u64 {
        /// Write-protect faults on anonymous memory.
        const PAGEFAULT_FLAG_WP = 1 << 0;
        /// A fork is an event that carries the child's own userfaultfd. Needs CAP_SYS_PTRACE at the handshake.
        const EVENT_FORK = 1 << 1;
        /// mremap is an event.
        const EVENT_REMAP = 1 << 2;
        /// MADV_DONTNEED, MADV_FREE and MADV_REMOVE are events.
        const EVENT_REMOVE = 1 << 3;
        /// Missing faults on hugetlbfs.
        const MISSING_HUGETLBFS = 1 << 4;
        /// Missing faults on shared memory.
        const MISSING_SHMEM = 1 << 5;
        /// munmap, and mapping over, is an event.
        const EVENT_UNMAP = 1 << 6;
        /// Faults raise SIGBUS in the thread instead of a message.
        const SIGBUS = 1 << 7;
        /// Fault messages say which thread.
        const THREAD_ID = 1 << 8;
        /// Minor faults on hugetlbfs.
        const MINOR_HUGETLBFS = 1 << 9;
        /// Minor faults on shared memory.
        const MINOR_SHMEM = 1 << 10;
        /// Fault addresses come with their offset in the page.
        const EXACT_ADDRESS = 1 << 11;
        /// Write-protect on hugetlbfs and shared memory.
        const WP_HUGETLBFS_SHMEM = 1 << 12;
        /// Write-protect also covers pages that aren't populated.
        const WP_UNPOPULATED = 1 << 13;
        /// UFFDIO_POISON.
        const POISON = 1 << 14;
        /// Write-protect faults resolve themselves; PAGEMAP_SCAN tells what was written. Brings WP_UNPOPULATED with it.
        const WP_ASYNC = 1 << 15;
        /// UFFDIO_MOVE.
        const MOVE = 1 << 16;
    }
}

bitflags! {
    /// The operations a registered range accepts, bit for bit the kernel's answer to a registration.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct RangeIoctls: u64 {
        /// UFFDIO_WAKE.
        const WAKE = 1 << 0x02;
        /// UFFDIO_COPY.
        const COPY = 1 << 0x03;
        /// UFFDIO_ZEROPAGE.
        const ZEROPAGE = 1 << 0x04;
        /// UFFDIO_MOVE.
        const MOVE = 1 << 0x05;
        /// UFFDIO_WRITEPROTECT.
        const WRITE_PROTECT = 1 << 0x06;
        /// UFFDIO_CONTINUE.
        const CONTINUE = 1 << 0x07;
        /// UFFDIO_POISON.
        const POISON = 1 << 0x08;
        // Later kernels may say more.
        const _ = !0;
    }
}

bitflags! {
    /// Which faults of a range become messages.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct RegisterMode: u64 {
        /// Touching a page that isn't there.
        const MISSING = 1 << 0;
        /// Writing to a write-protected page.
        const WP = 1 << 1;
        /// Touching a page that is in the page cache and not mapped.
        const MINOR = 1 << 2;
    }
}
