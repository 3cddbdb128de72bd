//! `userswap store`: stores tried by themselves, without a program whose pages they are.

mod bench;
mod check;

use crate::args::{StoreArgs, Trial};
use crate::bytes::Bytes;
use crate::failure::{Failure, Status, chain};
use std::process::ExitCode;
use std::sync::Arc;
use userswap_store::Store;
use userswap_stores::spec::Spec;

/// Tries a store as it is asked to.
pub(crate) fn store(args: &StoreArgs) -> Result<ExitCode, Failure> {
    match &args.trial {
        Trial::Check(args) => check::check(args),
        Trial::Bench(args) => bench::bench(args),
    }
}

/// A store that was opened once, so that its specification is right.
struct Opened {
    spec: Spec,
    store: Arc<dyn Store>,
    page_size: usize,
}

fn open(spec: &str, page_size: Option<Bytes>) -> Result<Opened, Failure> {
    let page_size = page_size.map_or(Ok(userswap_uffd::page_size()), |size| {
        usize::try_from(size.0)
            .ok()
            .filter(|size| size.is_power_of_two() && (512..=65536).contains(size))
            .ok_or_else(|| Failure::new(Status::Usage, "pages have 512 to 65536 bytes, a power of two"))
    })?;
    let failed = |error: &dyn std::error::Error| Failure::new(Status::Usage, chain(error));
    let understood = userswap_stores::spec::parse(spec).map_err(|error| failed(&error))?;
    let opened = understood.clone().open(page_size);
    let store = opened
        .map_err(|source| failed(&userswap_stores::SpecError::Open { spec: spec.to_owned(), source }))?;
    Ok(Opened { spec: understood, store, page_size })
}
