//! A program of which some pages are lost: who touches one gets SIGBUS, a system call EFAULT, and all others are fine.

use crate::sys;
use std::sync::Arc;
use userswap_store::{PageKey, StoreError};
use userswap_tests::own::{Own, remove};
use userswap_tests::pages::system_call_on;
use userswap_tests::script::{Answer, ScriptedStore};
use userswap_tests::watch::until;

const LOST: u64 = 37;

pub(crate) fn run() {
    // A key's page number is an address in pages: the region's first page isn't known before it is mapped.
    let first = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let base = Arc::clone(&first);
    let store = ScriptedStore::new(move |key: PageKey| {
        let page = key.page - base.load(std::sync::atomic::Ordering::Relaxed);
        match (page, page % 3) {
            (LOST, _) => Answer::Late(Some(StoreError::Corrupt { key, what: "checksum" })),
            // The neighbours come in any order, and not all of them late.
            (_, 0) => Answer::Ready,
            _ => Answer::Late(None),
        }
    });
    let store = Arc::new(store.late(1));
    let Some(own) = Own::settings(64, Arc::clone(&store) as _).build("lost") else { return };
    first.store(own.pages.span().start() / 4096, std::sync::atomic::Ordering::Relaxed);
    own.pages.fill_all(|page| page + 1);
    assert_eq!(own.evict().stored, 64);
    for page in (0..64).filter(|page| *page != LOST) {
        assert_eq!(own.pages.read(page), Ok(page + 1));
    }
    assert_eq!(system_call_on(own.pages.address(LOST)), libc::EFAULT);
    // Who touches it is woken first, and it is counted after.
    until("one page is poisoned", || own.space.troubles().1 > 0);
    assert_eq!(own.space.troubles().1, 1, "one page is poisoned");
    // A forked child finds it no better.
    let child = sys::fork_bare(|| system_call_on(own.pages.address(LOST)) == libc::EFAULT);
    assert!(sys::reap(child));
    // Whoever gives the page up can use it again.
    remove(own.pages.part(LOST, 1).span());
    assert_eq!(own.pages.read(LOST), Ok(0));
    own.pages.fill(LOST, LOST + 1);
    assert_eq!(own.evict().stored, 64);
    println!("all others are fine");
    let found = own.pages.read(LOST);
    println!("read {found:?} from a page that is lost");
}
