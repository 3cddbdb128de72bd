//! Stores in shared libraries: the C interface of `include/userswap_store.h`, and exporting a [`Store`] through it.
//!
//! ```
//! use std::sync::Arc;
//! use userswap_store::plugin::Config;
//! use userswap_store::testkit::{Ask, Reference};
//! use userswap_store::{Store, StoreError};
//!
//! /// What `plugin:/path.so?…` opens.
//! fn open(config: &Config<'_>) -> Result<Arc<dyn Store>, StoreError> {
//!     if config.page_size != 4096 || !config.options.is_empty() {
//!         return Err(StoreError::Unsupported { what: "options, or pages that aren't 4096 bytes" });
//!     }
//!     let mut ask = Ask::default();
//!     ask.capacity = config.capacity;
//!     Ok(Arc::new(Reference::new(&ask, None))) // yours here
//! }
//! userswap_store::export_store!(c"mine", open);
//! # fn main() {}
//! ```
//! in a crate with `crate-type = ["cdylib"]` makes the library. What is exported answers as the header says: a store whose fetches may be
//! [`Pending`](crate::Fetch::Pending) waits for them, and says so in its flags; a panic is a failure of the call.
//!
//! # What stays as it is
//! This crate follows semantic versioning. Before 1.0 a minor version may change the trait, after it a major one alone; structs and enums that may grow are
//! `non_exhaustive`, methods that may come have a default, and a store compiled against 1.x works with 1.y. The kit may get stricter
//! with any minor version, where what it then finds was forbidden before.
//!
//! The C interface has a version of its own, [`ABI`], which doesn't follow the crate's. A library made for it works with every program that speaks it, whatever
//! compiler made either. Functions that are added at the end of [`Table`] don't change it; anything else does. A program speaks one version, and
//! refuses a library of another with a sentence.

mod abi;
mod export;

pub use abi::{
    ABI, Answer, Entry, Flags, RawCapabilities, RawConfig, RawKey, RawMaintained, RawStats, Table, WHY,
};
#[doc(hidden)]
pub use export::table;

use std::sync::Arc;

use crate::{Store, StoreError};

/// What a plug-in is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config<'a> {
    /// Bytes of a page.
    pub page_size: usize,
    /// The most the store may hold of its medium, in bytes; `None`: as much as it likes.
    pub capacity: Option<u64>,
    /// What stands behind the `?` of the store's specification, without `capacity`: `key=value&key=value`, or nothing.
    pub options: &'a str,
}

impl<'a> Config<'a> {
    /// A configuration, as for a test.
    pub fn new(page_size: usize, capacity: Option<u64>, options: &'a str) -> Self {
        Self { page_size, capacity, options }
    }

    /// The options, in their order.
    pub fn each(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.options
            .split('&')
            .filter(|option| !option.is_empty())
            .map(|option| option.split_once('=').unwrap_or((option, "")))
    }
}

/// Implemented by [`export_store!`](crate::export_store) for what it is given.
#[doc(hidden)]
pub trait Open {
    /// Makes the store.
    fn open(config: &Config<'_>) -> Result<Arc<dyn Store>, StoreError>;
}

/// Makes a library of stores: `export_store!(c"name", open)`, where `open` is a
/// `fn(&Config<'_>) -> Result<Arc<dyn Store>, StoreError>`. Once in a library.
///
/// See [`plugin`](crate::plugin).
#[macro_export]
macro_rules! export_store {
    ($name:expr, $open:path) => {
        const _: () = {
            struct Exported;
            impl $crate::plugin::Open for Exported {
                fn open(
                    config: &$crate::plugin::Config<'_>,
                ) -> ::core::result::Result<::std::sync::Arc<dyn $crate::Store>, $crate::StoreError> {
                    $open(config)
                }
            }
            static TABLE: $crate::plugin::Table = $crate::plugin::table::<Exported>($name);
            // SAFETY: the program that opens the library looks for this name, and nothing else has it: it is this interface's own.
            #[allow(unsafe_code)]
            #[unsafe(no_mangle)]
            extern "C" fn userswap_store_plugin(_host_abi: u32) -> *const $crate::plugin::Table {
                &raw const TABLE
            }
        };
    };
}
