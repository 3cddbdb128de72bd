//! A store that goes wrong in every way, at every moment of a page's way out and back: what becomes of the page, as a table.

use crate::sys::{fork_bare_to_say, reap_status};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use userswap_engine::{EvictError, Keep};
use userswap_stores::layers::Checked;
use userswap_tests::faults::{FaultyStore, Wrong};
use userswap_tests::own::Own;
use userswap_tests::pages::system_call_on;
use userswap_tests::watch::until;

const PAGES: u64 = 32;
/// The page it happens to.
const TARGET: u64 = 9;
/// Pages that come with one fault, at most.
const AROUND: u32 = 8;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Moment {
    MovingOut,
    WritingOut,
    Fault,
    Neighbour,
    Child,
    BringBack,
    Drain,
}

const MOMENTS: [(Moment, &str); 7] = [
    (Moment::MovingOut, "while it moves out"),
    (Moment::WritingOut, "while its slot is written out"),
    (Moment::Fault, "when it is touched"),
    (Moment::Neighbour, "as a neighbour of what is touched"),
    (Moment::Child, "when a forked child touches it"),
    (Moment::BringBack, "when its range is brought back"),
    (Moment::Drain, "when all is drained"),
];

/// What a thread finds that touches the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    Right,
    Sigbus,
}

pub(crate) fn run() {
    // A user without privileges gets EFAULT for every page that is out, not only for those that are lost.
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED outcomes: not root");
        return;
    }
    let titles: Vec<&str> = MOMENTS.iter().map(|(_, title)| *title).collect();
    let head = format!("| what is wrong | {} |", titles.join(" | "));
    let mut rows = vec![head, format!("|{}", "---|".repeat(MOMENTS.len() + 1))];
    for (wrong, title) in Wrong::ALL {
        let mut row = format!("| {title} |");
        for (moment, _) in MOMENTS {
            let Some(cell) = one(wrong, moment) else { return };
            row.push_str(&format!(" {cell} |"));
        }
        rows.push(row);
    }
    rows.iter().for_each(|row| println!("{row}"));
    println!("done");
}

struct Case {
    own: Own,
    store: Arc<FaultyStore>,
}

/// One cell. `None` if this machine can't.
fn one(wrong: Wrong, moment: Moment) -> Option<String> {
    let store = Arc::new(FaultyStore::new(wrong));
    let checked = Arc::new(Checked::new(Arc::clone(&store) as _));
    let mut settings = Own::settings(PAGES, checked).around(AROUND);
    if moment == Moment::Child {
        settings = settings.forks();
    }
    let own = settings.build("outcomes")?;
    own.pages.fill_all(value);
    let case = Case { own, store };
    let told = match moment {
        Moment::MovingOut => {
            case.goes_out(|own| own.space.move_out(own.pages.span(), u64::MAX, Keep::Stored).map(drop))
        }
        Moment::WritingOut => {
            case.own.space.move_out(case.own.pages.span(), u64::MAX, Keep::Standby).unwrap();
            case.goes_out(|own| own.space.write_out(u64::MAX).map(drop))
        }
        Moment::Fault => {
            case.move_out_and_arm();
            told(case.touched())
        }
        Moment::Neighbour => {
            case.move_out_and_arm();
            case.neighbour()
        }
        Moment::Child => {
            case.move_out_and_arm();
            told(case.touched_by_child())
        }
        Moment::BringBack => {
            case.move_out_and_arm();
            let (waited, brought) =
                case.answering(|own| own.space.bring_back(own.pages.span(), AROUND), || ());
            let found = case.look(TARGET);
            assert_eq!(brought.unwrap(), PAGES - u64::from(found == Found::Sigbus), "{wrong:?}");
            told((waited, found))
        }
        Moment::Drain => {
            case.move_out_and_arm();
            let (waited, retired) = case.answering(|own| own.space.retire(), || ());
            let found = case.look(TARGET);
            // It isn't said to be back if it isn't.
            assert_eq!(retired.is_ok(), found == Found::Right, "{wrong:?}");
            let refused = if retired.is_err() { "refused; " } else { "" };
            format!("{refused}{}", told((waited, found)))
        }
    };
    let met = case.end(wrong);
    Some(if met { told } else { "—".to_owned() })
}

fn value(page: u64) -> u64 {
    page + 1
}

fn told((waited, found): (bool, Found)) -> String {
    let found = match found {
        Found::Right => "comes back",
        Found::Sigbus => "SIGBUS",
    };
    let waits = if waited { "waits, then " } else { "" };
    format!("{waits}{found}")
}

impl Case {
    fn target(&self) -> u64 {
        self.own.pages.address(TARGET) / userswap_uffd::page_bytes()
    }

    fn move_out_and_arm(&self) {
        assert_eq!(self.own.evict().stored, PAGES);
        self.store.arm(self.target());
    }

    /// Does something with what is wrong in force. Calls that wait are let go on once `meanwhile` is done. Whether there were such.
    fn answering<R: Send>(&self, act: impl FnOnce(&Own) -> R + Send, meanwhile: impl Fn()) -> (bool, R) {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let doer = scope.spawn(|| {
                let result = act(&self.own);
                over.store(true, Ordering::SeqCst);
                result
            });
            let mut waited = false;
            until("it is over", || {
                if self.store.waiting() > 0 {
                    assert!(!over.load(Ordering::SeqCst), "it didn't wait");
                    waited = true;
                    meanwhile();
                    self.store.answer();
                }
                over.load(Ordering::SeqCst) || doer.is_finished()
            });
            (waited, doer.join().unwrap())
        })
    }

    /// The page is right, or a bus error; anything else is a failure.
    fn look(&self, page: u64) -> Found {
        if system_call_on(self.own.pages.address(page)) == libc::EFAULT {
            until("it is counted", || self.own.space.troubles().1 > 0);
            return Found::Sigbus;
        }
        assert_eq!(self.own.pages.read(page), Ok(value(page)), "page {page}");
        Found::Right
    }

    fn goes_out(&self, act: impl FnOnce(&Own) -> Result<(), EvictError> + Send) -> String {
        self.store.arm(self.target());
        let (waited, result) = self.answering(act, || assert_eq!(self.look(TARGET), Found::Right));
        let out = match result {
            Ok(()) if waited => "goes out late, served from its slot meanwhile",
            Ok(()) => "goes out",
            Err(EvictError::Store(_)) => {
                assert_eq!(self.store.plain().len(), 0);
                assert_eq!(self.own.space.usage().standby, PAGES);
                "stays in its slot"
            }
            Err(error) => panic!("{error}"),
        };
        self.store.disarm();
        format!("{out}; {}", told((false, self.look(TARGET))))
    }

    fn touched(&self) -> (bool, Found) {
        self.answering(|_| self.look(TARGET), || ())
    }

    /// Pages are read in order, until this one comes along. None of those before it is lost.
    fn neighbour(&self) -> String {
        for page in 0..TARGET {
            let (waited, found) = self.answering(|_| self.look(page), || ());
            assert_eq!(found, Found::Right, "page {page}");
            if self.store.met() > 0 {
                let with_it = if waited { "what is touched waits for it; " } else { "" };
                return format!("{with_it}{}", told(self.touched()));
            }
        }
        // It wasn't met: what is wrong is with puts, or with frees.
        told(self.touched())
    }

    fn touched_by_child(&self) -> (bool, Found) {
        let pages = self.own.pages;
        let child = fork_bare_to_say(|| match system_call_on(pages.address(TARGET)) {
            libc::EFAULT => 1,
            _ if pages.read(TARGET) == Ok(value(TARGET)) => 0,
            _ => 2,
        });
        let (waited, status) = self.answering(|_| reap_status(child), || ());
        self.store.disarm();
        // Its parent's page is its own.
        assert_eq!(self.look(TARGET), Found::Right);
        until("the child is let go of", || {
            self.own.engine.sweep();
            self.own.engine.spaces().len() == 1
        });
        match status {
            Some(0) => (waited, Found::Right),
            Some(1) => (waited, Found::Sigbus),
            other => panic!("the child read something else: {other:?}"),
        }
    }

    /// Looks at all other pages, and that nothing is left. Whether anything wrong was met.
    fn end(self, wrong: Wrong) -> bool {
        let Self { own, store } = self;
        let forgets = wrong == Wrong::FreeForgotten;
        store.disarm();
        for page in (0..PAGES).filter(|page| *page != TARGET) {
            assert_eq!(own.pages.read(page), Ok(value(page)), "page {page}, {wrong:?}");
        }
        drop(own);
        if forgets {
            until("what was freed is kept", || store.met() > 0);
        } else {
            until("nothing is left in the store", || store.plain().is_empty());
        }
        assert_eq!(store.plain().freed_twice(), 0, "{wrong:?}");
        store.met() > 0
    }
}
