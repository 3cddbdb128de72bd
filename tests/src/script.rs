//! A store that does as a test says: fails, waits, answers late and in any order.

use crate::plain::PlainStore;
use crate::random::Random;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::sync::Arc;
use std::thread::JoinHandle;
use userswap_store::{
    Capabilities, Fetch, FetchKind, Handle, Page, PageKey, Stats, Store, StoreError, Waiter,
};

/// What becomes of one fetch.
#[derive(Debug)]
pub enum Answer {
    /// The page, at once.
    Ready,
    /// An error, at once.
    Fail(StoreError),
    /// The page, or an error, later, from another thread.
    Late(Option<StoreError>),
}

type OnFetch = Box<dyn Fn(PageKey) -> Answer + Send + Sync>;
type OnPut = Box<dyn Fn(usize) -> Result<(), StoreError> + Send + Sync>;

/// A [`PlainStore`] that asks two functions first. They may wait: what a store must not do is what tests are about.
pub struct ScriptedStore {
    plain: PlainStore,
    on_fetch: OnFetch,
    on_put: OnPut,
    late: Option<Completer>,
}

impl ScriptedStore {
    /// A store that asks `on_fetch` about each page and answers at once: [`Answer::Late`] is no answer for it.
    pub fn new(on_fetch: impl Fn(PageKey) -> Answer + Send + Sync + 'static) -> Self {
        Self {
            plain: PlainStore::default(),
            on_fetch: Box::new(on_fetch),
            on_put: Box::new(|_| Ok(())),
            late: None,
        }
    }

    /// Asks `on_put` about each batch, by its number of pages.
    #[must_use]
    pub fn on_put(
        mut self,
        on_put: impl Fn(usize) -> Result<(), StoreError> + Send + Sync + 'static,
    ) -> Self {
        self.on_put = Box::new(on_put);
        self
    }

    /// Answers late where it is told to, in an order drawn from `seed`.
    #[must_use]
    pub fn late(mut self, seed: u64) -> Self {
        self.late = Some(Completer::start(seed));
        self
    }

    /// Keeps late answers back until it is told not to.
    pub fn hold(&self, hold: bool) {
        if let Some(late) = &self.late {
            late.queue.due.lock().held = hold;
            late.queue.more.notify_all();
        }
    }

    /// Late answers that wait.
    pub fn due(&self) -> usize {
        self.late.as_ref().map_or(0, |late| late.queue.due.lock().waiting.len())
    }

    /// Where the pages are.
    pub fn plain(&self) -> &PlainStore {
        &self.plain
    }
}

impl Store for ScriptedStore {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.plain.capabilities();
        if self.late.is_some() {
            capabilities.fetch = FetchKind::Mixed;
        }
        capabilities
    }

    fn put(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
        handles.fill(None);
        (self.on_put)(pages.len())?;
        self.plain.put(pages, handles)
    }

    fn fetch(
        &self,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
        waiter: &Waiter,
    ) -> Result<Fetch, StoreError> {
        let answer = (self.on_fetch)(key);
        match (answer, &self.late) {
            (Answer::Ready, _) => self.plain.fetch(handle, key, out, waiter),
            (Answer::Fail(error), _) => Err(error),
            (Answer::Late(error), Some(late)) => {
                let mut bytes = vec![0; out.len()];
                self.plain.fetch(handle, key, &mut bytes, waiter)?;
                late.push(waiter.clone(), error.map_or(Ok(bytes), Err));
                Ok(Fetch::Pending)
            }
            (Answer::Late(_), None) => Err(StoreError::Unsupported { what: "late answers" }),
        }
    }

    fn free(&self, handles: &[Handle]) {
        self.plain.free(handles);
    }

    fn stats(&self) -> Stats {
        self.plain.stats()
    }
}

/// The thread that delivers.
struct Completer {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    due: Mutex<Due>,
    more: Condvar,
}

#[derive(Default)]
struct Due {
    waiting: Vec<(Waiter, Result<Vec<u8>, StoreError>)>,
    held: bool,
    over: bool,
}

impl Completer {
    fn start(seed: u64) -> Self {
        let queue = Arc::new(Queue::default());
        let shared = Arc::clone(&queue);
        let thread = std::thread::spawn(move || shared.deliver(&mut Random::new(seed)));
        Self { queue, thread: Some(thread) }
    }

    fn push(&self, waiter: Waiter, page: Result<Vec<u8>, StoreError>) {
        self.queue.due.lock().waiting.push((waiter, page));
        self.queue.more.notify_all();
    }
}

impl Queue {
    fn deliver(&self, random: &mut Random) {
        let mut due = self.due.lock();
        loop {
            if due.waiting.is_empty() && due.over {
                return;
            }
            if due.waiting.is_empty() || (due.held && !due.over) {
                self.more.wait(&mut due);
                continue;
            }
            // Others may come before the one that is drawn.
            MutexGuard::unlocked(&mut due, || (0..random.below(4)).for_each(|_| std::thread::yield_now()));
            let at = random.below(due.waiting.len() as u64) as usize;
            let (waiter, page) = due.waiting.swap_remove(at);
            MutexGuard::unlocked(&mut due, || match page {
                Ok(bytes) => waiter.complete(Ok(&bytes)),
                Err(error) => waiter.complete(Err(error)),
            });
        }
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        self.queue.due.lock().over = true;
        self.queue.more.notify_all();
        // The last to hold the store may be a completion.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}
