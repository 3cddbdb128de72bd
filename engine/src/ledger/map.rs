//! Memory that outlives the process that writes it: a memfd, mapped, handed out as words. All of the ledger's unsafe code.
#![allow(unsafe_code)]

use memmap2::{MmapOptions, MmapRaw};
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};
use userswap_uffd::RawMessage;

/// A memfd, sparse and mapped whole. Other processes see it only once this one is dead, or through the descriptor, and then read.
pub(crate) struct Map {
    memory: OwnedFd,
    raw: MmapRaw,
}

impl Map {
    /// New memory of `len` bytes, all zero, of which none is taken before it is written.
    ///
    /// # Errors
    /// When the system has no descriptors or addresses left.
    pub(crate) fn create(name: &str, len: usize) -> io::Result<Arc<Self>> {
        let memory = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, len as u64)?;
        Self::over(memory, len)
    }

    /// The memory behind a descriptor, which a process that is dead has left.
    ///
    /// # Errors
    /// When it has another size, or can't be mapped.
    pub(crate) fn adopt(memory: OwnedFd, len: usize) -> io::Result<Arc<Self>> {
        if rustix::fs::fstat(&memory)?.st_size != i64::try_from(len).map_err(io::Error::other)? {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a ledger of another size"));
        }
        Self::over(memory, len)
    }

    fn over(memory: OwnedFd, len: usize) -> io::Result<Arc<Self>> {
        let raw = MmapOptions::new().len(len).no_reserve_swap().map_raw(&memory)?;
        Ok(Arc::new(Self { memory, raw }))
    }

    /// Keeps all of it out of the kernel's swap, and out of this process's core dumps, for as long as this process has it.
    ///
    /// # Errors
    /// When that much can't be locked.
    pub(crate) fn lock(&self) -> io::Result<()> {
        self.raw.lock()?;
        self.raw.advise(memmap2::Advice::DontDump)
    }

    /// `count` words from byte `at` on.
    pub(crate) fn words<T: Word>(self: &Arc<Self>, at: usize, count: usize) -> Words<T> {
        let len = count * size_of::<T>();
        assert!(
            at.is_multiple_of(align_of::<T>())
                && at.checked_add(len).is_some_and(|end| end <= self.raw.len())
        );
        // SAFETY: needed to name memory that no value of this process owns. `at` is within the mapping, as was just asserted.
        let first = unsafe { NonNull::new_unchecked(self.raw.as_mut_ptr().add(at).cast::<T>()) };
        Words { first, count, owner: Owner::Shared(Arc::clone(self)) }
    }

    /// `count` messages from byte `at` on, to be written by the kernel.
    ///
    /// # Safety
    /// For as long as the slice lives nobody else uses this part of the memory.
    #[allow(clippy::mut_from_ref, reason = "the caller promises that nobody else has it")]
    pub(crate) unsafe fn messages(&self, at: usize, count: usize) -> &mut [RawMessage] {
        let len = count * size_of::<RawMessage>();
        assert!(at.is_multiple_of(8) && at.checked_add(len).is_some_and(|end| end <= self.raw.len()));
        // SAFETY: within the mapping and aligned; any bytes are a valid message; not aliased, by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.raw.as_mut_ptr().add(at).cast::<RawMessage>(), count) }
    }

    /// Gives the memory of a range of whole pages back; it is zero again.
    pub(crate) fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        use rustix::fs::FallocateFlags;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.memory, flags, at, len)?)
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

/// What shared memory is read and written as.
///
/// # Safety
/// Any bytes are a value, and all zeros the default one.
pub(crate) unsafe trait Word: Default + Send + Sync + 'static {}

// SAFETY: an integer of 32 bits.
unsafe impl Word for AtomicU32 {}
// SAFETY: an integer of 64 bits.
unsafe impl Word for AtomicU64 {}

/// Words, of this process's heap or of shared memory; used alike. What is written goes to memory in the order it is written in, so
/// whoever finds it after a death finds a state that there was.
pub(crate) struct Words<T: Word> {
    first: NonNull<T>,
    count: usize,
    owner: Owner,
}

enum Owner {
    Heap,
    /// Keeps the mapping.
    Shared(#[allow(dead_code, reason = "held, not looked at")] Arc<Map>),
}

impl<T: Word> Words<T> {
    /// On the heap, all zero.
    pub(crate) fn on_heap(count: usize) -> Self {
        let words: Box<[T]> = std::iter::repeat_with(T::default).take(count).collect();
        Self { first: NonNull::from(Box::leak(words)).cast(), count, owner: Owner::Heap }
    }
}

impl<T: Word> Deref for Words<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: needed because two kinds of memory are looked at through one pointer. It is that of a leaked box, or of a mapping that
        // is held; `count` is how many there are; words are only changed through themselves.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl<T: Word> Drop for Words<T> {
    fn drop(&mut self) {
        if matches!(self.owner, Owner::Heap) {
            let words = std::ptr::slice_from_raw_parts_mut(self.first.as_ptr(), self.count);
            // SAFETY: it was leaked by `on_heap` and is given back once.
            drop(unsafe { Box::from_raw(words) });
        }
    }
}

// SAFETY: needed because of the pointer. The words are atomic, and what they are in is held by this.
unsafe impl<T: Word> Send for Words<T> {}
// SAFETY: as above.
unsafe impl<T: Word> Sync for Words<T> {}

impl<T: Word> std::fmt::Debug for Words<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} words", self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn what_is_written_is_found_through_another_mapping() {
        let map = Map::create("userswap-test", 1 << 16).unwrap();
        let words = map.words::<AtomicU64>(4096, 8);
        words[7].store(11, Ordering::Release);
        let again = Map::adopt(map.as_fd().try_clone_to_owned().unwrap(), 1 << 16).unwrap();
        assert_eq!(again.words::<AtomicU64>(4096, 8)[7].load(Ordering::Acquire), 11);
        map.punch(4096, 4096).unwrap();
        assert_eq!(again.words::<AtomicU64>(4096, 8)[7].load(Ordering::Acquire), 0);
        assert!(Map::adopt(map.as_fd().try_clone_to_owned().unwrap(), 1 << 15).is_err());
    }

    #[test]
    fn words_of_the_heap_are_words_too() {
        let words = Words::<AtomicU32>::on_heap(1000);
        words[999].store(7, Ordering::Relaxed);
        assert_eq!(words.iter().map(|word| word.load(Ordering::Relaxed)).sum::<u32>(), 7);
    }
}
