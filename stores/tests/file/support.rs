//! Stores to test, and pages to put into them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use userswap_store::testkit::fetch_and_wait;
use userswap_store::{Budget, Completion, Handle, Store, StoreError, Waiter};
use userswap_stores::file::{Disturb, Disturbance, File};
use userswap_stores::spec::{FileSpec, Spec, parse};

pub(crate) use crate::pages::{key, page, put};

/// What `file:` and this say.
pub(crate) fn spec(text: &str) -> FileSpec {
    match parse(&format!("file:{text}")).unwrap() {
        Spec::File(spec) => spec,
        other => panic!("{other:?}"),
    }
}

/// A store in a file without a name.
pub(crate) fn unnamed(options: &str) -> File {
    File::open(&spec(&format!("{}?reserve=0{options}", temporary())), 4096).unwrap()
}

pub(crate) fn temporary() -> String {
    std::env::temp_dir().to_str().unwrap().to_owned()
}

/// A directory that goes away.
pub(crate) struct Place(PathBuf);

impl Place {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("us-file-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn at(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[track_caller]
pub(crate) fn assert_page(store: &dyn Store, handle: Handle, number: u64) {
    assert!(fetch_and_wait(store, handle, key(number)).unwrap() == page(number), "page {number}");
}

pub(crate) fn figure(store: &dyn Store, wanted: &str) -> u64 {
    let mut found = None;
    store.figures(&mut |name, figure| found = if name == wanted { Some(figure) } else { found });
    found.unwrap()
}

/// Waits until everything that is full is written, if it can be.
pub(crate) fn settle(store: &dyn Store) {
    while store.maintain(Budget::UNLIMITED).more {}
}

/// Trouble that can be switched on and off.
#[derive(Default)]
pub(crate) struct Trouble {
    /// 0: none; 1: writes fail; 2: reads fail; 3: the ring dies; 4: everything comes in pieces; 5: writes at the place fail.
    what: AtomicU64,
    with: AtomicU64,
}

impl Trouble {
    pub(crate) fn none(&self) {
        self.what.store(0, Ordering::Relaxed);
    }

    pub(crate) fn writes_fail(&self, error: i32) {
        self.with.store(u64::try_from(error).unwrap(), Ordering::Relaxed);
        self.what.store(1, Ordering::Relaxed);
    }

    pub(crate) fn reads_fail(&self, error: i32) {
        self.with.store(u64::try_from(error).unwrap(), Ordering::Relaxed);
        self.what.store(2, Ordering::Relaxed);
    }

    /// The ring dies so often.
    pub(crate) fn ring_dies(&self, times: u64) {
        self.with.store(times, Ordering::Relaxed);
        self.what.store(3, Ordering::Relaxed);
    }

    pub(crate) fn in_pieces(&self) {
        self.what.store(4, Ordering::Relaxed);
    }

    pub(crate) fn bad_place(&self, offset: u64) {
        self.with.store(offset, Ordering::Relaxed);
        self.what.store(5, Ordering::Relaxed);
    }
}

impl Disturb for Trouble {
    fn disturb(&self, write: bool, offset: u64, _: usize) -> Disturbance {
        let with = self.with.load(Ordering::Relaxed);
        let error = i32::try_from(with).unwrap_or(5);
        match self.what.load(Ordering::Relaxed) {
            1 if write => Disturbance::Fail(error),
            2 if !write => Disturbance::Fail(error),
            3 if with > 0 => {
                self.with.fetch_sub(1, Ordering::Relaxed);
                Disturbance::Panic
            }
            4 => Disturbance::Short(4096),
            5 if write && offset == with => Disturbance::Fail(5),
            _ => Disturbance::None,
        }
    }
}

/// A store with trouble, in a file without a name.
pub(crate) fn troubled(options: &str) -> (Arc<Trouble>, File) {
    let trouble = Arc::new(Trouble::default());
    let spec = spec(&format!("{}?reserve=0&compress=off{options}", temporary()));
    let store = File::open_disturbed(&spec, 4096, Arc::clone(&trouble) as Arc<dyn Disturb>).unwrap();
    (trouble, store)
}

/// Somewhere for pages to arrive: their tokens, and whether there was a page.
pub(crate) fn post() -> (Waiter, Receiver<(u64, bool)>) {
    struct Post(Sender<(u64, bool)>);
    impl Completion for Post {
        fn complete(&self, token: u64, page: Result<&[u8], StoreError>) {
            let _ = self.0.send((token, page.is_ok()));
        }
    }
    let (to, from) = std::sync::mpsc::channel();
    (Waiter::new(Arc::new(Post(to)), 0), from)
}
