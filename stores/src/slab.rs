//! Eight-byte handles for things a store keeps about its pages: [`Slab`], and [`Table`], which has locks.
//!
//! ```text
//! 63 | 62      48 | 47         0
//! 0  | tag (15)   | entry
//! ```
//! The top bit is clear, so that a store can have handles of its own with it set. A tag changes each time its entry is
//! used again: a handle freed twice names nothing, not somebody else's page.

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::utils::CachePadded;
use parking_lot::RwLock;
use userswap_store::Handle;

const SHARDS: usize = 16;
const CHUNK: usize = 256;
const TAGS: u16 = 0x7fff;
const ENTRY_BITS: u32 = 48;

/// Things of one kind, named by handles, in shards with a lock each.
pub(crate) struct Table<T> {
    shards: Box<[CachePadded<RwLock<Slab<T>>>]>,
    next: AtomicUsize,
}

impl<T> Table<T> {
    pub(crate) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| CachePadded::new(RwLock::new(Slab::new()))).collect();
        Self { shards, next: AtomicUsize::new(0) }
    }

    pub(crate) fn insert(&self, value: T) -> Handle {
        let shard = self.next.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let name = self.shards[shard].write().insert(value);
        name.handle(|entry| entry * SHARDS + shard)
    }

    /// What `look` makes of what the handle names.
    pub(crate) fn with<R>(&self, handle: Handle, look: impl FnOnce(&T) -> R) -> Option<R> {
        let (name, shard) = self.find(handle)?;
        shard.read().get(name).map(look)
    }

    /// Puts `to` in the place of what the handle names, if that is as `expected` says; otherwise it comes back.
    pub(crate) fn replace_if(
        &self,
        handle: Handle,
        to: T,
        expected: impl FnOnce(&T) -> bool,
    ) -> Result<T, T> {
        let Some((name, shard)) = self.find(handle) else { return Err(to) };
        match shard.write().get_mut(name).filter(|found| expected(found)) {
            Some(found) => Ok(std::mem::replace(found, to)),
            None => Err(to),
        }
    }

    /// Looks at the entries of the chunk `at`; the one to go on with, or `None` after the last. Chunks are numbered across shards.
    pub(crate) fn look_at_chunk(&self, at: usize, mut look: impl FnMut(Handle, &T)) -> Option<usize> {
        let (shard_number, chunk) = (at % SHARDS, at / SHARDS);
        let shard = self.shards[shard_number].read();
        for entry in chunk * CHUNK..(chunk + 1) * CHUNK {
            if let Some(name) = shard.name(entry)
                && let Some(value) = shard.get(name)
            {
                look(name.handle(|entry| entry * SHARDS + shard_number), value);
            }
        }
        drop(shard);
        let longest = self.shards.iter().map(|shard| shard.read().chunks.len()).max().unwrap_or(0);
        Some(at + 1).filter(|next| next / SHARDS < longest)
    }

    pub(crate) fn remove(&self, handle: Handle) -> Option<T> {
        let (name, shard) = self.find(handle)?;
        shard.write().remove(name)
    }

    /// Memory it takes.
    pub(crate) fn bytes(&self) -> u64 {
        let slabs: u64 = self.shards.iter().map(|shard| shard.read().bytes()).sum();
        slabs + size_of_val(&*self.shards) as u64
    }

    /// Lets go of chunks without entries; answers how many bytes.
    pub(crate) fn trim(&self) -> u64 {
        self.shards.iter().map(|shard| shard.write().trim()).sum()
    }

    fn find(&self, handle: Handle) -> Option<(Name, &RwLock<Slab<T>>)> {
        let name = Name::of(handle)?;
        let shard = &*self.shards[name.entry % SHARDS];
        Some((Name { entry: name.entry / SHARDS, ..name }, shard))
    }
}

/// Things of one kind, in chunks, the lowest free entry used first.
pub(crate) struct Slab<T> {
    chunks: Vec<Option<Box<Chunk<T>>>>,
    /// Chunks before this one are full.
    first_open: usize,
    /// The last tag that was given.
    tag: u16,
}

/// An entry and the tag it must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) entry: usize,
    pub(crate) tag: u16,
}

struct Chunk<T> {
    values: [Option<T>; CHUNK],
    tags: [u16; CHUNK],
    used: usize,
}

impl Name {
    /// Takes a handle apart; `None` if no slab makes such handles.
    pub(crate) fn of(handle: Handle) -> Option<Self> {
        let raw = handle.into_raw();
        let tag = u16::try_from(raw >> ENTRY_BITS).ok().filter(|tag| (1..=TAGS).contains(tag))?;
        Some(Self { entry: usize::try_from(raw & ((1 << ENTRY_BITS) - 1)).ok()?, tag })
    }

    /// The handle of this entry, numbered as `number` says.
    pub(crate) fn handle(self, number: impl FnOnce(usize) -> usize) -> Handle {
        let raw = u64::from(self.tag) << ENTRY_BITS | number(self.entry) as u64;
        Handle::from_raw(raw).unwrap_or(Handle::MIN)
    }
}

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self { chunks: Vec::new(), first_open: 0, tag: 0 }
    }

    pub(crate) fn insert(&mut self, value: T) -> Name {
        let open = |chunk: &Option<Box<Chunk<T>>>| chunk.as_ref().is_none_or(|chunk| chunk.used < CHUNK);
        let from = self.first_open.min(self.chunks.len());
        let at = from + self.chunks[from..].iter().position(open).unwrap_or(self.chunks.len() - from);
        self.first_open = at;
        if at == self.chunks.len() {
            self.chunks.push(None);
        }
        let chunk = self.chunks[at].get_or_insert_with(|| Box::new(Chunk::new()));
        let within = chunk.values.iter().position(Option::is_none).unwrap_or(0);
        self.tag = if self.tag >= TAGS { 1 } else { self.tag + 1 };
        chunk.values[within] = Some(value);
        chunk.tags[within] = self.tag;
        chunk.used += 1;
        Name { entry: at * CHUNK + within, tag: self.tag }
    }

    #[cfg(feature = "file")]
    /// Puts a value into this entry, which is free: for who finds things where others have put them.
    pub(crate) fn insert_at(&mut self, entry: usize, value: T) -> Name {
        let (at, within) = (entry / CHUNK, entry % CHUNK);
        if at >= self.chunks.len() {
            self.chunks.resize_with(at + 1, || None);
        }
        let chunk = self.chunks[at].get_or_insert_with(|| Box::new(Chunk::new()));
        self.tag = if self.tag >= TAGS { 1 } else { self.tag + 1 };
        chunk.used += usize::from(chunk.values[within].is_none());
        chunk.values[within] = Some(value);
        chunk.tags[within] = self.tag;
        Name { entry, tag: self.tag }
    }

    #[cfg(feature = "file")]
    /// Entries from here on are free.
    pub(crate) fn end(&self) -> usize {
        self.chunks.len() * CHUNK
    }

    pub(crate) fn get(&self, name: Name) -> Option<&T> {
        let chunk = self.chunks.get(name.entry / CHUNK)?.as_ref()?;
        let within = name.entry % CHUNK;
        chunk.values[within].as_ref().filter(|_| chunk.tags[within] == name.tag)
    }

    pub(crate) fn get_mut(&mut self, name: Name) -> Option<&mut T> {
        let chunk = self.chunks.get_mut(name.entry / CHUNK)?.as_mut()?;
        let within = name.entry % CHUNK;
        let right = chunk.tags[within] == name.tag;
        chunk.values[within].as_mut().filter(|_| right)
    }

    pub(crate) fn remove(&mut self, name: Name) -> Option<T> {
        self.get(name)?;
        let at = name.entry / CHUNK;
        let chunk = self.chunks.get_mut(at)?.as_mut()?;
        chunk.used -= 1;
        self.first_open = self.first_open.min(at);
        chunk.values[name.entry % CHUNK].take()
    }

    /// The name of what is in this entry now.
    pub(crate) fn name(&self, entry: usize) -> Option<Name> {
        let chunk = self.chunks.get(entry / CHUNK)?.as_ref()?;
        let within = entry % CHUNK;
        chunk.values[within].as_ref().map(|_| Name { entry, tag: chunk.tags[within] })
    }

    /// Memory it takes.
    pub(crate) fn bytes(&self) -> u64 {
        let made = self.chunks.iter().flatten().count() * size_of::<Chunk<T>>();
        (made + self.chunks.len() * size_of::<Option<Box<Chunk<T>>>>()) as u64
    }

    /// Lets go of chunks without entries; answers how many bytes.
    pub(crate) fn trim(&mut self) -> u64 {
        let before = self.bytes();
        for chunk in &mut self.chunks {
            if chunk.as_ref().is_some_and(|chunk| chunk.used == 0) {
                *chunk = None;
            }
        }
        while self.chunks.last().is_some_and(Option::is_none) {
            self.chunks.pop();
        }
        before - self.bytes()
    }
}

impl<T> Chunk<T> {
    fn new() -> Self {
        Self { values: [const { None }; CHUNK], tags: [0; CHUNK], used: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_name_one_thing_once() {
        let table = Table::new();
        let handles: Vec<_> = (0..2000).map(|value| table.insert(value)).collect();
        for (value, handle) in (0..).zip(&handles) {
            assert_eq!(table.with(*handle, |found| *found), Some(value));
        }
        for handle in &handles[..1000] {
            assert!(table.remove(*handle).is_some());
            assert!(table.remove(*handle).is_none());
        }
        let again: Vec<_> = (0..1000).map(|value| table.insert(value + 5000)).collect();
        for (old, new) in handles[..1000].iter().zip(&again) {
            assert_eq!(table.with(*old, |found| *found), None, "{old:?} beside {new:?}");
        }
        for handle in handles[1000..].iter().chain(&again) {
            assert!(table.remove(*handle).is_some());
        }
        table.trim();
        assert_eq!(table.bytes(), Table::<i32>::new().bytes());
    }

    #[test]
    fn forged_handles_name_nothing() {
        let table = Table::new();
        table.insert('a');
        for raw in [1, 1 << 48, 1 << 63, u64::MAX, 0x7fff << 48] {
            let found = Handle::from_raw(raw).and_then(|handle| table.with(handle, |_| ()));
            assert_eq!(found.is_some(), raw == 1 << 48, "{raw:#x}");
        }
    }
}
