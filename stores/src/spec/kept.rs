//! Stores that outlive the process that fills them, if somebody else keeps what they are in.
#![cfg_attr(
    not(feature = "file"),
    allow(
        dead_code,
        unused_imports,
        unused_variables,
        reason = "without a file there are no keys, without memory nothing to keep"
    )
)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use userswap_store::{Handle, PageKey, Store, StoreError};

use super::{Spec, left_out};
use crate::tier::Tier;

/// A store that was [opened to outlive](Spec::open_kept) its process.
pub struct Kept {
    /// The store.
    pub store: Arc<dyn Store>,
    /// All it was found to hold.
    pub found: Vec<(PageKey, Handle)>,
    /// What it is in, if it is new: descriptors that are to stay open as long as it is to live, for the next process in this order. None if it isn't new.
    pub left: Vec<OwnedFd>,
}

type Opened = (Arc<dyn Store>, Vec<(PageKey, Handle)>);

/// What stores are in, as they come in the specification.
struct Estate<'a> {
    /// What a dead process has left, if there was one; what isn't taken yet.
    left: Option<std::slice::Iter<'a, BorrowedFd<'a>>>,
    keys: Option<BorrowedFd<'a>>,
    /// Keys that are somebody's.
    keys_taken: u64,
    /// What is new.
    new: Vec<OwnedFd>,
}

impl<'a> Estate<'a> {
    /// The next of what is left: `None` if nothing is, for there was nobody.
    fn next(&mut self) -> Result<Option<BorrowedFd<'a>>, StoreError> {
        let Some(left) = &mut self.left else { return Ok(None) };
        let missing = StoreError::Unsupported { what: "less than what such a store leaves" };
        left.next().copied().map(Some).ok_or(missing)
    }

    fn keep(&mut self, descriptors: &[BorrowedFd<'_>]) -> Result<(), StoreError> {
        for descriptor in descriptors {
            self.new.push(twice(*descriptor)?);
        }
        Ok(())
    }

    /// Where there was somebody before, what was opened must not be ended because the rest couldn't be: the next process may have more luck.
    fn leave<T>(&self, opened: T) {
        if self.left.is_some() {
            std::mem::forget(opened);
        }
    }
}

fn twice(descriptor: BorrowedFd<'_>) -> Result<OwnedFd, StoreError> {
    let doing = "duplicating a descriptor";
    descriptor.try_clone_to_owned().map_err(|source| StoreError::Io { doing, source })
}

impl Spec {
    /// Whether what such a store holds outlives the process that fills it, if another one keeps what it is in.
    pub fn can_outlive(&self) -> bool {
        match self {
            // Of a page that is there once for several nobody would know for which.
            Self::RamLz4 { dedup, .. } | Self::RamZstd { dedup, .. } => !dedup,
            Self::File(_) => cfg!(feature = "file"),
            Self::Zram(zram) => !zram.dedup && zram.backing.as_ref().is_none_or(Self::can_outlive),
            Self::Tier { stores, .. } => stores.iter().all(Self::can_outlive),
            Self::Plugin { .. } | Self::Layered { .. } => false,
        }
    }

    /// Whether such a store has keys, which are to be kept in locked memory.
    pub fn has_keys(&self) -> bool {
        match self {
            Self::File(_) => true,
            Self::Zram(zram) => zram.backing.as_ref().is_some_and(Self::has_keys),
            Self::Tier { stores, .. } => stores.iter().any(Self::has_keys),
            _ => false,
        }
    }

    /// As [`open`](Self::open), for a store that [can outlive](Self::can_outlive) its process: one that finds everything again in what a dead
    /// process has `left` open ([`Kept::left`], of its first), a new one if that is nothing. `keys` is memory of a page, zeros at first, that outlives the process, too; not asked for where there
    /// are [none](Self::has_keys).
    ///
    /// Where something was left, an error changes nothing about it.
    ///
    /// # Errors
    /// Those of the store; [`Unsupported`](StoreError::Unsupported) for any other one.
    pub fn open_kept(
        self,
        page_size: usize,
        left: &[BorrowedFd<'_>],
        keys: Option<BorrowedFd<'_>>,
    ) -> Result<Kept, StoreError> {
        if !self.can_outlive() {
            return Err(StoreError::Unsupported { what: "a store that can't outlive its process" });
        }
        let was_there = if left.is_empty() { None } else { Some(left.iter()) };
        let mut estate = Estate { left: was_there, keys, keys_taken: 0, new: Vec::new() };
        let (store, found) = self.open_of(page_size, &mut estate)?;
        Ok(Kept { store, found, left: estate.new })
    }

    fn open_of(self, page_size: usize, estate: &mut Estate<'_>) -> Result<Opened, StoreError> {
        #[cfg(any(feature = "ram-lz4", feature = "ram-zstd"))]
        if let Some(builder) = self.ram_builder(page_size) {
            let builder = builder.recoverable(true);
            return Ok(match estate.next()? {
                Some(left) => {
                    let (store, found) = builder.rebuild(twice(left)?.into())?;
                    (Arc::new(store), found)
                }
                None => {
                    let store = builder.build()?;
                    estate.keep(&[store.arena_file().as_fd()])?;
                    (Arc::new(store), Vec::new())
                }
            });
        }
        match self {
            #[cfg(feature = "file")]
            Self::File(spec) => {
                use crate::file::File;
                let left = match estate.next()? {
                    None => None,
                    Some(book) => Some([book, estate.next()?.ok_or_else(left_out)?]),
                };
                let at = estate.keys_taken * File::KEY;
                let keys = estate.keys.filter(|_| at < KEYS);
                let keys = keys.ok_or(StoreError::Unsupported { what: "so many keys" })?;
                estate.keys_taken += 1;
                let (store, found) = File::open_kept(&spec, page_size, left, keys, at)?;
                if left.is_none() {
                    estate.keep(&store.descriptors().unwrap_or([keys; 2]))?;
                }
                Ok((Arc::new(store), found))
            }
            #[cfg(feature = "ram")]
            Self::Zram(mut spec) => {
                let behind = spec.backing.take();
                let behind = behind.map(|behind| behind.open_of(page_size, estate)).transpose()?;
                let store = behind.as_ref().map(|(store, _)| Arc::clone(store));
                let found = behind.as_ref().map(|(_, found)| found.as_slice()).unwrap_or_default();
                let opened = estate.next().and_then(|left| {
                    let left = left.map(twice).transpose()?;
                    crate::zram::Zram::open_kept(*spec, store, page_size, left.map(Into::into), found)
                });
                match opened {
                    Ok((store, found)) => {
                        if estate.left.is_none() {
                            estate.keep(&[store.arena_file().as_fd()])?;
                        }
                        Ok((Arc::new(store), found))
                    }
                    Err(error) => {
                        estate.leave(behind);
                        Err(error)
                    }
                }
            }
            Self::Tier { settings, stores } => {
                let mut opened = Vec::with_capacity(stores.len());
                for store in stores {
                    match store.open_of(page_size, estate) {
                        Ok(one) => opened.push(one),
                        Err(error) => {
                            estate.leave(opened);
                            return Err(error);
                        }
                    }
                }
                let (stores, found): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
                let tier = Tier::new(stores, settings)?;
                let found = tier.take_up(found);
                Ok((Arc::new(tier), found))
            }
            _ => Err(left_out()),
        }
    }
}

/// Bytes of the memory for keys.
#[cfg(feature = "file")]
const KEYS: u64 = 4096;
