//! The dictionaries of a store: who has one, who should get one, from which pages.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use userswap_store::{Handle, OwnerId, PageKey};

use super::dictionary::{Dictionary, PLACES};
use super::pool::{Held, Pool};

/// How many pages a dictionary is trained on, and judged by, at most. More than these make it hardly better and take longer.
pub(crate) const SAMPLES: usize = 320;
/// An owner's objects have become this much larger since its dictionary was made: it gets a new one if that is better.
const WORSE: f64 = 1.15;

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Bytes of a dictionary, at most.
    pub(crate) size: usize,
    /// Owners with fewer compressed pages get none.
    pub(crate) from_pages: u64,
    /// The level pages are compressed at.
    pub(crate) level: i32,
}

/// All owners that were seen, and all dictionaries there are.
pub(crate) struct Dictionaries {
    /// `None`: no new ones are made.
    settings: Option<Settings>,
    owners: RwLock<HashMap<OwnerId, Arc<Owner>>>,
    /// By place.
    all: Mutex<Vec<Option<Arc<Dictionary>>>>,
    stored_bytes: AtomicU64,
}

/// What is known of an owner.
pub(crate) struct Owner {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    current: Option<Arc<Dictionary>>,
    /// Some of the pages put, each as likely as any other.
    samples: Vec<(Handle, PageKey)>,
    /// What they are counted with.
    samples_bytes: u64,
    /// Compressed pages put since the dictionary was made, or since there is none.
    seen: u64,
    /// Of these, what the samples were taken from.
    sampled: u64,
    /// So many must have been seen before anything is tried.
    next: u64,
    /// What `next` is at first.
    from_pages: u64,
    random: u64,
    /// Bytes an object had when the dictionary was made.
    at_first: f64,
    /// Objects since, and their bytes.
    recent: (u64, u64),
}

impl Dictionaries {
    pub(crate) fn new(settings: Option<Settings>) -> Self {
        Self { settings, owners: RwLock::default(), all: Mutex::default(), stored_bytes: AtomicU64::new(0) }
    }

    pub(crate) fn settings(&self) -> Option<Settings> {
        self.settings
    }

    /// Bytes of the dictionaries' objects.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.stored_bytes.load(Ordering::Relaxed)
    }

    /// The owner, if dictionaries are made. `None` also if there is no room to remember it.
    pub(crate) fn owner(&self, id: OwnerId, held: &Held) -> Option<Arc<Owner>> {
        let settings = self.settings?;
        if let Some(owner) = self.owners.read().get(&id) {
            return Some(Arc::clone(owner));
        }
        match self.owners.write().entry(id) {
            Entry::Occupied(known) => Some(Arc::clone(known.get())),
            Entry::Vacant(new) => {
                held.reserve(Owner::BYTES).ok()?;
                Some(Arc::clone(new.insert(Arc::new(Owner::new(id, settings)))))
            }
        }
    }

    /// All owners.
    pub(crate) fn owners(&self) -> Vec<(OwnerId, Arc<Owner>)> {
        self.owners.read().iter().map(|(id, owner)| (*id, Arc::clone(owner))).collect()
    }

    /// The dictionary to compress an owner's pages with. The caller becomes a user of it.
    pub(crate) fn current(&self, id: OwnerId) -> Option<Arc<Dictionary>> {
        self.settings?;
        self.owners.read().get(&id)?.current()
    }

    /// Forgets owners without a dictionary whose sampled pages are all gone.
    pub(crate) fn forget(&self, held: &Held, is_gone: impl Fn(Handle) -> bool) {
        self.owners.write().retain(|_, owner| {
            let state = owner.state.lock();
            // A put that holds the owner now has still to put its page.
            let keep = Arc::strong_count(owner) > 1
                || state.current.is_some()
                || !state.samples.iter().all(|(handle, _)| is_gone(*handle));
            if !keep {
                held.release(Owner::BYTES + state.samples_bytes);
            }
            keep
        });
    }

    /// A place for one more dictionary.
    pub(crate) fn free_place(&self) -> Option<usize> {
        let all = self.all.lock();
        let free = all.iter().position(Option::is_none).unwrap_or(all.len());
        Some(free).filter(|free| *free < PLACES)
    }

    /// Keeps a dictionary at its place, which nobody but the caller fills.
    pub(crate) fn add(&self, dictionary: &Arc<Dictionary>) {
        let place = dictionary.id().place();
        let mut all = self.all.lock();
        if place >= all.len() {
            all.resize_with(place + 1, || None);
        }
        all[place] = Some(Arc::clone(dictionary));
        self.stored_bytes.fetch_add(dictionary.stored_bytes(), Ordering::Relaxed);
    }

    /// Something is at this place.
    pub(crate) fn is_taken(&self, place: usize) -> bool {
        self.all.lock().get(place).is_some_and(Option::is_some)
    }

    /// All dictionaries.
    pub(crate) fn all(&self) -> Vec<Arc<Dictionary>> {
        self.all.lock().iter().flatten().map(Arc::clone).collect()
    }

    /// Ends one use of a dictionary, and the dictionary with the last.
    pub(crate) fn release(&self, dictionary: &Arc<Dictionary>, pool: &Pool, held: &Held) {
        if !dictionary.release() {
            return;
        }
        if let Some(owner) = self.owners.read().get(&dictionary.owner()) {
            owner.lost(dictionary, held);
        }
        self.stored_bytes.fetch_sub(dictionary.stored_bytes(), Ordering::Relaxed);
        // The pieces go before the place: what takes the place next is not mixed up with them.
        dictionary.remove(pool, held);
        if let Some(place) = self.all.lock().get_mut(dictionary.id().place()) {
            *place = None;
        }
    }
}

impl Owner {
    /// Memory an owner takes.
    const BYTES: u64 = (size_of::<Self>() + 2 * size_of::<(OwnerId, Arc<Self>)>()) as u64;

    fn new(id: OwnerId, settings: Settings) -> Self {
        let state = State {
            random: id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            next: settings.from_pages,
            from_pages: settings.from_pages,
            ..State::default()
        };
        Self { state: Mutex::new(state) }
    }

    /// The dictionary to compress with. The caller becomes a user of it.
    pub(crate) fn current(&self) -> Option<Arc<Dictionary>> {
        let state = self.state.lock();
        state.current.as_ref().filter(|dictionary| dictionary.acquire()).map(Arc::clone)
    }

    /// Pages are compressed with this from now on.
    pub(crate) fn set_current(&self, dictionary: &Arc<Dictionary>) {
        self.state.lock().current = Some(Arc::clone(dictionary));
    }

    /// A page was put and compressed, to an object of `len` bytes.
    pub(crate) fn note(&self, handle: Handle, key: PageKey, len: usize, held: &Held) {
        let mut state = self.state.lock();
        state.seen += 1;
        state.recent = (state.recent.0 + 1, state.recent.1 + len as u64);
        let mut room = state.samples.capacity() - state.samples.len();
        if room == 0 && state.samples.len() < SAMPLES {
            room = state.grow(held);
        }
        state.sampled += 1;
        if room > 0 && state.samples.len() < SAMPLES {
            state.samples.push((handle, key));
            return;
        }
        state.random ^= state.random << 13;
        state.random ^= state.random >> 7;
        state.random ^= state.random << 17;
        let at = usize::try_from(state.random % state.sampled).unwrap_or(SAMPLES);
        if let Some(sample) = state.samples.get_mut(at) {
            *sample = (handle, key);
        }
    }

    /// The samples to try a new dictionary on, if there is a reason to, and how many pages they stand for.
    pub(crate) fn due(&self, settings: Settings) -> Option<(Vec<(Handle, PageKey)>, u64)> {
        let mut state = self.state.lock();
        if state.seen < state.next {
            return None;
        }
        if state.current.is_some() {
            let (pages, bytes) = state.recent;
            if pages < settings.from_pages {
                return None;
            }
            state.recent = (0, 0);
            if (bytes as f64) < pages as f64 * state.at_first * WORSE {
                return None;
            }
            // What there is instead of the old is to count, so that the next look is at what is put now.
            state.at_first = bytes as f64 / pages as f64;
        }
        Some((state.samples.clone(), state.seen))
    }

    /// A dictionary was tried. `object_bytes`: what objects take from now on, if that changed. The next trial comes no sooner than
    /// after twice as many pages.
    pub(crate) fn tried(&self, object_bytes: Option<f64>, held: &Held) {
        let mut state = self.state.lock();
        state.next = state.seen.saturating_mul(2);
        state.recent = (0, 0);
        if let Some(bytes) = object_bytes {
            state.at_first = bytes;
            // If they become worse, that is a matter of the pages put from now on.
            state.start_again(held);
        }
    }

    /// The dictionary ended. If it was the one in use, all begins again.
    fn lost(&self, dictionary: &Arc<Dictionary>, held: &Held) {
        let mut state = self.state.lock();
        if state.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, dictionary)) {
            state.current = None;
            (state.next, state.recent) = (state.from_pages, (0, 0));
            state.start_again(held);
        }
    }
}

impl State {
    /// Makes room for more samples, up to [`SAMPLES`], so that an owner of few pages takes little memory; answers for how many.
    fn grow(&mut self, held: &Held) -> usize {
        let more = self.samples.len().max(10).min(SAMPLES - self.samples.len());
        let bytes = (more * size_of::<(Handle, PageKey)>()) as u64;
        if held.reserve(bytes).is_err() {
            return 0;
        }
        self.samples.reserve_exact(more);
        self.samples_bytes += bytes;
        more
    }

    /// Forgets all samples.
    fn start_again(&mut self, held: &Held) {
        held.release(std::mem::take(&mut self.samples_bytes));
        self.samples = Vec::new();
        (self.seen, self.sampled) = (0, 0);
    }
}
