//! `userswap store check`: the conformance kit on any store.

use super::Opened;
use crate::args::Check;
use crate::failure::{Failure, Status, chain};
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use userswap_store::testkit::{Ask, LAWS, Law, Verdict};
use userswap_store::{Capabilities, Fetch, Handle, Page, PageKey, Stats, Store, StoreError, Waiter};

/// Checks a store by the laws, and reports.
pub(super) fn check(args: &Check) -> Result<ExitCode, Failure> {
    let laws = chosen(&args.law)?;
    let Opened { spec, store, page_size } = super::open(&args.store, args.page_size)?;
    let capabilities = store.capabilities();
    // A file that has a name can be had once at a time.
    drop(store);
    let trouble: Mutex<Option<String>> = Mutex::new(None);
    let make = |ask: &Ask| -> Arc<dyn Store> {
        let spec = match ask.capacity {
            Some(bytes) => spec.clone().with_capacity(bytes),
            None => spec.clone(),
        };
        spec.open(page_size).unwrap_or_else(|error| {
            *trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(chain(&error));
            Arc::new(Unopened(capabilities.clone()))
        })
    };
    if !args.json {
        println!("{} ({}), pages of {page_size} bytes", args.store, capabilities.name);
    }
    let started = Instant::now();
    let mut report = Vec::with_capacity(laws.len());
    for law in laws {
        let shown = Shown::start(law.name, args.json);
        let mut verdict = catch_unwind(AssertUnwindSafe(|| law.check(&make))).unwrap_or_else(panicked);
        if let Some(why) = trouble.lock().unwrap_or_else(PoisonError::into_inner).take() {
            verdict = Verdict::Broken(format!("the store couldn't be opened for it: {why}"));
        }
        drop(shown);
        if !args.json {
            println!("{}", line(&law, &verdict));
        }
        report.push((law, verdict));
    }
    let count = |what: fn(&Verdict) -> bool| report.iter().filter(|(_, verdict)| what(verdict)).count();
    let kept = count(|verdict| matches!(verdict, Verdict::Kept));
    let broken = count(|verdict| matches!(verdict, Verdict::Broken(_)));
    if args.json {
        println!("{}", as_json(args, &capabilities, &report));
    } else {
        let skipped = report.len() - kept - broken;
        let took = started.elapsed().as_secs_f64();
        println!("{kept} kept, {skipped} skipped, {broken} broken, in {took:.1} s");
    }
    Ok(ExitCode::from(if broken == 0 { 0 } else { Status::Failed as u8 }))
}

/// The laws of these names; all of them without names.
fn chosen(names: &[String]) -> Result<Vec<Law>, Failure> {
    if names.is_empty() {
        return Ok(LAWS.to_vec());
    }
    let find = |name: &String| {
        LAWS.iter().find(|law| law.name == *name).copied().ok_or_else(|| {
            let known: Vec<&str> = LAWS.iter().map(|law| law.name).collect();
            let sentence = format!("there is no law {name}; the laws are {}", known.join(", "));
            Failure::new(Status::Usage, sentence)
        })
    };
    names.iter().map(find).collect()
}

/// The name of the law that is being checked, on a terminal; a store that hangs hangs in it.
struct Shown;

impl Shown {
    fn start(name: &str, json: bool) -> Option<Self> {
        if json || !std::io::stderr().is_terminal() {
            return None;
        }
        eprint!("checking {name}…");
        let _ = std::io::stderr().flush();
        Some(Self)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        eprint!("\r\x1b[K");
    }
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Verdict {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word");
    Verdict::Broken(format!("it panicked: {text}"))
}

fn line(law: &Law, verdict: &Verdict) -> String {
    let name = law.name;
    match verdict {
        Verdict::Kept => format!("kept     {name:<27} {}", law.says),
        Verdict::Skipped(why) => format!("skipped  {name:<27} {why}"),
        // What a property test says has many lines.
        Verdict::Broken(how) => format!(
            "BROKEN   {name:<27} {}\n         {}",
            law.says,
            how.trim_end().replace('\n', "\n         ")
        ),
    }
}

fn as_json(args: &Check, capabilities: &Capabilities, report: &[(Law, Verdict)]) -> serde_json::Value {
    let laws: Vec<_> = report
        .iter()
        .map(|(law, verdict)| {
            let (word, why) = match verdict {
                Verdict::Kept => ("kept", None),
                Verdict::Skipped(why) => ("skipped", Some(*why)),
                Verdict::Broken(how) => ("broken", Some(how.as_str())),
            };
            json!({ "law": law.name, "says": law.says, "verdict": word, "why": why })
        })
        .collect();
    let clean = !report.iter().any(|(_, verdict)| matches!(verdict, Verdict::Broken(_)));
    json!({
        "store": args.store,
        "name": &*capabilities.name,
        "page_size": capabilities.page_size,
        "clean": clean,
        "laws": laws,
    })
}

/// In the place of a store that couldn't be opened: it can nothing.
struct Unopened(Capabilities);

impl Store for Unopened {
    fn capabilities(&self) -> Capabilities {
        self.0.clone()
    }

    fn put(&self, _: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
        handles.fill(None);
        Err(StoreError::Closed)
    }

    fn fetch(&self, _: Handle, _: PageKey, _: &mut [u8], _: &Waiter) -> Result<Fetch, StoreError> {
        Err(StoreError::Closed)
    }

    fn free(&self, _: &[Handle]) {}

    fn stats(&self) -> Stats {
        Stats::default()
    }
}
