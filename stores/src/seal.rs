//! Sealing: AES-256-GCM-SIV under a key that is made at random, lives in locked memory, and dies with its store.
//!
//! * **Nonce**: the record's number and what kind it is. Numbers count up and are never used twice under one key; a key is never
//!   used by two stores or after a restart. GCM-SIV would forgive a repeated nonce but for showing that two records are equal.
//! * **Associated data**: owner, page and generation. So a record is good for the page it was made of alone: moved, swapped with another or an
//!   older one of the same page, it doesn't open.
//! * **Kept.** A store that outlives its process has its key in locked memory of whoever keeps it, too, and the next process goes on with it and with numbers that
//!   were never used.
//! * **The key** is in a page of its own: locked (never in the kernel's swap), left out of core dumps, not inherited by children.
//!   The round keys are worked out anew for each record, on the stack.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use aes_gcm_siv::aead::{AeadInOut, KeyInit};
use aes_gcm_siv::{Aes256GcmSiv, Nonce, Tag};
use memmap2::{Advice, MmapMut};
use parking_lot::RwLock;
use userswap_store::{PageKey, StoreError};

/// Bytes of a tag.
pub(crate) const TAG: usize = 16;
const KEY: usize = 32;

/// Which record under its key. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Number(pub(crate) u64);

/// A key, and the numbers that were used under it.
pub(crate) struct Seal {
    key: RwLock<Option<MmapMut>>,
    next: AtomicU64,
    /// Bytes are made unreadable; otherwise they are only vouched for.
    encrypts: bool,
    /// Where the key is kept for who comes after this process.
    kept: Option<KeptKey>,
}

#[cfg_attr(not(feature = "file"), allow(dead_code, reason = "only a file's store outlives its process"))]
/// A place for a key in memory that outlives the process, and is locked by whoever keeps it.
pub(crate) struct KeptKey {
    pub(crate) file: File,
    pub(crate) at: u64,
}

/// Bytes a kept key takes.
#[cfg(feature = "file")]
pub(crate) const KEPT: u64 = KEY as u64;

impl Seal {
    /// Under a new key.
    pub(crate) fn new(encrypts: bool) -> Result<Self, StoreError> {
        Self::make(encrypts, None)
    }

    /// Under the key that is kept there; a new one, from now on kept there, if there is none yet.
    #[cfg(feature = "file")]
    pub(crate) fn kept(encrypts: bool, kept: KeptKey) -> Result<Self, StoreError> {
        Self::make(encrypts, Some(kept))
    }

    fn make(encrypts: bool, kept: Option<KeptKey>) -> Result<Self, StoreError> {
        let failed = |doing| move |source| StoreError::Io { doing, source };
        let mut key = MmapMut::map_anon(KEY).map_err(failed("getting memory for a key"))?;
        key.lock().map_err(failed("locking a key in memory (RLIMIT_MEMLOCK allows how much)"))?;
        for (advice, doing) in [
            (Advice::DontDump, "keeping a key out of core dumps"),
            (Advice::DontFork, "keeping a key from child processes"),
        ] {
            key.advise(advice).map_err(failed(doing))?;
        }
        if let Some(kept) = &kept {
            kept.file
                .read_exact_at(&mut key[..KEY], kept.at)
                .map_err(failed("reading a key that is kept"))?;
        }
        if key[..KEY].iter().all(|byte| *byte == 0) {
            make_key(&mut key[..KEY])?;
            if let Some(kept) = &kept {
                kept.file.write_all_at(&key[..KEY], kept.at).map_err(failed("having a key kept"))?;
            }
        }
        Ok(Self { key: RwLock::new(Some(key)), next: AtomicU64::new(0), encrypts, kept })
    }

    pub(crate) fn next_number(&self) -> Number {
        Number(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Seals `bytes` in place. `kind` is bound to them too; a pair of number and kind is used once.
    pub(crate) fn close(
        &self,
        key: PageKey,
        number: Number,
        kind: u32,
        bytes: &mut [u8],
    ) -> Result<[u8; TAG], StoreError> {
        let cipher = self.cipher().ok_or(StoreError::Closed)?;
        let (nonce, bound) = (nonce(number, kind), bound(key));
        let sealed = if self.encrypts {
            cipher.encrypt_inout_detached(&nonce, &bound, bytes.into())
        } else {
            cipher.encrypt_inout_detached(&nonce, &[&bound, &*bytes].concat(), (&mut [][..]).into())
        };
        let tag = sealed.map_err(|_| StoreError::Unsupported { what: "records of more than 64 GiB" })?;
        Ok(tag.into())
    }

    /// Opens what [`close`](Self::close) sealed, in place. What gave it away, if it isn't that.
    pub(crate) fn open(
        &self,
        key: PageKey,
        number: Number,
        kind: u32,
        bytes: &mut [u8],
        tag: &[u8; TAG],
    ) -> Result<(), &'static str> {
        let cipher = self.cipher().ok_or("its key is lost")?;
        let (nonce, bound, tag) = (nonce(number, kind), bound(key), Tag::from(*tag));
        let opened = if self.encrypts {
            cipher.decrypt_inout_detached(&nonce, &bound, bytes.into(), &tag)
        } else {
            cipher.decrypt_inout_detached(&nonce, &[&bound, &*bytes].concat(), (&mut [][..]).into(), &tag)
        };
        opened.map_err(|_| "seal")
    }

    /// Forgets the key: nothing opens any more, and nothing can be sealed.
    pub(crate) fn forget_key(&self) {
        if let Some(kept) = &self.kept {
            let _ = kept.file.write_all_at(&[0; KEY], kept.at);
        }
        self.drop_key();
    }

    fn drop_key(&self) {
        if let Some(mut key) = self.key.write().take() {
            key.fill(0);
        }
    }

    /// The cipher, for one record.
    fn cipher(&self) -> Option<Aes256GcmSiv> {
        Aes256GcmSiv::new_from_slice(self.key.read().as_ref()?.get(..KEY)?).ok()
    }
}

impl Drop for Seal {
    fn drop(&mut self) {
        self.drop_key();
    }
}

/// Fills a key with what nobody can guess.
pub(crate) fn make_key(key: &mut [u8]) -> Result<(), StoreError> {
    let mut filled = 0;
    while filled < key.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += match rustix::rand::getrandom(&mut key[filled..], flags) {
            Ok(more) => more,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(StoreError::Io { doing: "making a key", source: error.into() }),
        };
    }
    Ok(())
}

fn nonce(number: Number, kind: u32) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&number.0.to_le_bytes());
    nonce[8..].copy_from_slice(&kind.to_le_bytes());
    nonce.into()
}

fn bound(key: PageKey) -> [u8; 20] {
    let mut bound = [0; 20];
    bound[..8].copy_from_slice(&key.owner.0.to_le_bytes());
    bound[8..16].copy_from_slice(&key.page.to_le_bytes());
    bound[16..].copy_from_slice(&key.generation.to_le_bytes());
    bound
}

#[cfg(test)]
mod tests {
    use super::*;
    use userswap_store::OwnerId;

    const PAGE: PageKey = PageKey { owner: OwnerId(1), page: 2, generation: 3 };

    #[test]
    fn a_record_opens_for_its_page_alone() {
        for encrypts in [true, false] {
            let seal = Seal::new(encrypts).unwrap();
            let clear = *b"what a page may hold";
            let mut bytes = clear;
            let number = seal.next_number();
            let tag = seal.close(PAGE, number, 7, &mut bytes).unwrap();
            assert_eq!(bytes != clear, encrypts);
            let opens = |key, number, kind, bytes: &[u8], tag| {
                let mut bytes = bytes.to_vec();
                seal.open(key, number, kind, &mut bytes, tag).is_ok_and(|()| bytes == clear)
            };
            assert!(opens(PAGE, number, 7, &bytes, &tag));
            for other in [
                PageKey { owner: OwnerId(2), ..PAGE },
                PageKey { page: 3, ..PAGE },
                PageKey { generation: 2, ..PAGE },
            ] {
                assert!(!opens(other, number, 7, &bytes, &tag), "{other}");
            }
            assert!(!opens(PAGE, seal.next_number(), 7, &bytes, &tag));
            assert!(!opens(PAGE, number, 8, &bytes, &tag));
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes;
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(!opens(PAGE, number, 7, &flipped, &tag), "bit {bit}");
            }
            assert!(!opens(PAGE, number, 7, &bytes[1..], &tag));
            assert!(Seal::new(encrypts).unwrap().open(PAGE, number, 7, &mut bytes.clone(), &tag).is_err());
            seal.forget_key();
            assert_eq!(seal.open(PAGE, number, 7, &mut bytes, &tag), Err("its key is lost"));
            assert!(matches!(seal.close(PAGE, number, 7, &mut bytes), Err(StoreError::Closed)));
        }
    }

    #[test]
    fn equal_pages_are_sealed_differently() {
        let seal = Seal::new(true).unwrap();
        let sealed = || {
            let mut bytes = [0; 64];
            let tag = seal.close(PAGE, seal.next_number(), 0, &mut bytes).unwrap();
            (bytes, tag)
        };
        assert_ne!(sealed(), sealed());
    }
}
