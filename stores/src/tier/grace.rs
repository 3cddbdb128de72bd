//! Old copies of moved pages, and those who may still be looking at one.

use std::time::Duration;

use parking_lot::{RwLock, RwLockReadGuard};

/// Held shared by whoever looks up a page and asks its tier for it.
#[derive(Default)]
pub(super) struct Grace(RwLock<()>);

impl Grace {
    /// As long as this is held no old copy goes that was there before.
    pub(super) fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.0.read()
    }

    /// Returns when all that was held when it was called isn't held any more.
    ///
    /// It isn't queued for: nobody who fetches ever waits behind it, not even for a holder of a class that only gets the CPU if nobody else
    /// wants it.
    pub(super) fn wait(&self) {
        let mut tries = 0_u32;
        while self.0.try_write().is_none() {
            tries += 1;
            if tries < 100 {
                std::hint::spin_loop();
            } else {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
    }
}
