//! Loading a library and calling its functions: all of [`Plugin`](super::Plugin) that is unsafe.
//!
//! Unsafe because the library is C. What its functions were promised is kept here: pointers that lead to what the header says, ids
//! that are in use. What they promise can't be checked where it is about memory: a library that writes where it may not harms the process.
//! Everything it *answers* is checked.
#![allow(unsafe_code)]

mod objects;

use std::ffi::{CStr, CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use userswap_store::plugin::{
    ABI, Answer, Entry, RawCapabilities, RawConfig, RawKey, RawMaintained, RawStats, Table, WHY,
};
use userswap_store::{Page, PageKey};

pub(super) use objects::{Objects, Trouble};

/// Why a call wasn't [`Answer::Ok`].
#[derive(Debug)]
pub(super) struct Refusal {
    /// `None` for a number that doesn't exist.
    pub(super) answer: Option<Answer>,
    /// For people, and may be empty.
    pub(super) why: String,
}

impl Refusal {
    /// Its sentence, or this one.
    pub(super) fn why_or(self, otherwise: &str) -> String {
        if self.why.is_empty() { otherwise.to_owned() } else { self.why }
    }
}

/// A store of a library.
pub(super) struct Instance {
    functions: Functions,
    store: *mut c_void,
}

// SAFETY: the header has the functions be called by any thread; `open` and `close` are called while nobody else has the instance.
unsafe impl Send for Instance {}
// SAFETY: the header has the functions be called by several threads at once.
unsafe impl Sync for Instance {}

/// A library that speaks this version of the interface.
pub(super) struct Loaded {
    functions: Functions,
    pub(super) name: String,
}

/// A table in which nothing is missing.
#[derive(Clone, Copy)]
struct Functions {
    open: unsafe extern "C" fn(*const RawConfig, *mut RawCapabilities, *mut *mut c_void, *mut c_char) -> i32,
    close: unsafe extern "C" fn(*mut c_void),
    put: unsafe extern "C" fn(*mut c_void, *const RawKey, *const u8, *mut u64, *mut c_char) -> i32,
    put_batch: Option<PutBatch>,
    get: unsafe extern "C" fn(*mut c_void, u64, *const RawKey, *mut u8, *mut u64, *mut c_char) -> i32,
    remove: unsafe extern "C" fn(*mut c_void, u64),
    stats: unsafe extern "C" fn(*mut c_void, *mut RawStats),
    maintain: Option<unsafe extern "C" fn(*mut c_void, u64, *mut RawMaintained)>,
}

type PutBatch =
    unsafe extern "C" fn(*mut c_void, u64, *const RawKey, *const *const u8, *mut u64, *mut c_char) -> i32;

impl Loaded {
    /// Loads the library, for as long as the process lives: threads of its own may run its code at any time. What is wrong with it, if
    /// it can't be used.
    pub(super) fn load(path: &Path) -> Result<Self, String> {
        // SAFETY: initialisers run that whoever named the library has chosen to run; it is never unloaded, so what is got from it stays.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
        let library = library.map_err(|error| chain(&error))?;
        // SAFETY: the header gives this name to a function of this type and to nothing else.
        let entry = unsafe { library.get::<Entry>(c"userswap_store_plugin") };
        let Ok(entry) = entry else {
            return Err("it is no plug-in: there is no userswap_store_plugin in it".to_owned());
        };
        // SAFETY: it is called as the header says.
        let table = unsafe { entry(ABI) };
        let loaded = Self::understand(table);
        std::mem::forget(library);
        loaded
    }

    fn understand(table: *const Table) -> Result<Self, String> {
        if table.is_null() {
            return Err(format!(
                "it doesn't speak version {ABI} of the plug-in interface, the one that is spoken here"
            ));
        }
        if !table.is_aligned() {
            return Err("it gives a table that lies where none can".to_owned());
        }
        // SAFETY: in every version a table starts with these eight bytes.
        let (abi, size) = unsafe { ((&raw const (*table).abi).read(), (&raw const (*table).size).read()) };
        if abi != ABI {
            return Err(format!(
                "it speaks version {abi} of the plug-in interface, and here version {ABI} is spoken"
            ));
        }
        if (size as usize) < size_of::<Table>() {
            let least = size_of::<Table>();
            return Err(format!("its table has {size} bytes, and one of version {ABI} has {least} or more"));
        }
        // SAFETY: it has this version and this size, and stays as it is.
        let table = unsafe { table.read() };
        let lacks = |what: &str| format!("it lacks the function {what}");
        let name = if table.name.is_null() {
            String::new()
        } else {
            // SAFETY: the header has it be a string that stays.
            unsafe { CStr::from_ptr(table.name) }.to_string_lossy().into_owned()
        };
        let functions = Functions {
            open: table.open.ok_or_else(|| lacks("open"))?,
            close: table.close.ok_or_else(|| lacks("close"))?,
            put: table.put.ok_or_else(|| lacks("put"))?,
            put_batch: table.put_batch,
            get: table.get.ok_or_else(|| lacks("get"))?,
            remove: table.remove.ok_or_else(|| lacks("remove"))?,
            stats: table.stats.ok_or_else(|| lacks("stats"))?,
            maintain: table.maintain,
        };
        Ok(Self { functions, name })
    }

    /// Makes a store, and tells what it says of itself.
    pub(super) fn open(
        &self,
        page_size: usize,
        capacity: u64,
        options: &str,
    ) -> Result<(Instance, RawCapabilities), Refusal> {
        let options = CString::new(options).map_err(|_| Refusal {
            answer: Some(Answer::Refused),
            why: "an option with a zero byte".to_owned(),
        })?;
        let config = RawConfig {
            size: bytes_of::<RawConfig>(),
            reserved: 0,
            page_size: page_size as u64,
            capacity,
            options: options.as_ptr(),
        };
        let mut can = RawCapabilities { size: bytes_of::<RawCapabilities>(), ..RawCapabilities::default() };
        let mut store = ptr::null_mut();
        // SAFETY: all four lead to what the header says, for as long as the call takes.
        heard(|why| unsafe { (self.functions.open)(&raw const config, &raw mut can, &raw mut store, why) })?;
        Ok((Instance { functions: self.functions, store }, can))
    }
}

impl Instance {
    fn has_batches(&self) -> bool {
        self.functions.put_batch.is_some()
    }

    /// Puts a page; the id it was given.
    fn put(&self, key: PageKey, page: &[u8]) -> Result<u64, Refusal> {
        let (key, mut id) = (RawKey::from(key), 0);
        // SAFETY: the store is open; the rest leads to what the header says, for as long as the call takes.
        heard(|why| unsafe {
            (self.functions.put)(self.store, &raw const key, page.as_ptr(), &raw mut id, why)
        })?;
        Ok(id)
    }

    /// Puts all of them or none; the ids they were given. Only if it [has batches](Self::has_batches).
    fn put_batch(&self, pages: &[Page<'_>]) -> Result<Vec<u64>, Refusal> {
        let Some(put_batch) = self.functions.put_batch else {
            return Err(Refusal { answer: Some(Answer::Failed), why: "it has no batches".to_owned() });
        };
        let keys: Vec<RawKey> = pages.iter().map(|page| page.key.into()).collect();
        let bytes: Vec<*const u8> = pages.iter().map(|page| page.bytes.as_ptr()).collect();
        let mut ids = vec![0; pages.len()];
        let count = pages.len() as u64;
        // SAFETY: the store is open; there are `count` of each, which stay for as long as the call takes.
        heard(|why| unsafe {
            put_batch(self.store, count, keys.as_ptr(), bytes.as_ptr(), ids.as_mut_ptr(), why)
        })?;
        Ok(ids)
    }

    /// Gets a page into `page`, which is one page long: how long it is said to be.
    ///
    /// # Safety
    /// The id is one that this store gave for a page of this length and that isn't [removed](Self::remove) before this returns.
    unsafe fn get(&self, id: u64, key: PageKey, page: &mut [u8]) -> Result<u64, Refusal> {
        let (key, mut length) = (RawKey::from(key), 0);
        // SAFETY: the store is open and the id in use; the rest leads to what the header says, for as long as the call takes.
        heard(|why| unsafe {
            (self.functions.get)(self.store, id, &raw const key, page.as_mut_ptr(), &raw mut length, why)
        })?;
        Ok(length)
    }

    /// Removes an object.
    ///
    /// # Safety
    /// The id is one that this store gave, no [`get`](Self::get) of it is under way or begins later, and it wasn't removed yet.
    unsafe fn remove(&self, id: u64) {
        // SAFETY: the store is open and the id in use.
        unsafe { (self.functions.remove)(self.store, id) };
    }

    pub(super) fn stats(&self) -> RawStats {
        let mut stats = RawStats { size: bytes_of::<RawStats>(), ..RawStats::default() };
        // SAFETY: the store is open; there is room for its figures.
        unsafe { (self.functions.stats)(self.store, &raw mut stats) };
        stats
    }

    pub(super) fn maintain(&self, bytes: u64) -> RawMaintained {
        let mut done = RawMaintained { size: bytes_of::<RawMaintained>(), ..RawMaintained::default() };
        if let Some(maintain) = self.functions.maintain {
            // SAFETY: the store is open; there is room for the figures.
            unsafe { maintain(self.store, bytes, &raw mut done) };
        }
        done
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // SAFETY: the store is open, and whoever drops this has it alone.
        unsafe { (self.functions.close)(self.store) };
    }
}

/// Calls with room for a sentence.
fn heard(call: impl FnOnce(*mut c_char) -> i32) -> Result<(), Refusal> {
    let mut why = [0_u8; WHY];
    let raw = call(why.as_mut_ptr().cast());
    let answer = Answer::from_raw(raw);
    if answer == Some(Answer::Ok) {
        return Ok(());
    }
    let end = why.iter().position(|byte| *byte == 0).unwrap_or(WHY);
    // Some end it in the middle of a character, or write what no terminal should see.
    let mut why: String = String::from_utf8_lossy(&why[..end])
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect();
    if answer.is_none() {
        why = format!("the answer {raw}, which there isn't{}{why}", if why.is_empty() { "" } else { ": " });
    }
    Err(Refusal { answer, why })
}

#[allow(clippy::cast_possible_truncation, reason = "structs of some bytes")]
const fn bytes_of<T>() -> u32 {
    size_of::<T>() as u32
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// A path without a slash would be looked for elsewhere.
pub(super) fn is_a_path(path: &Path) -> bool {
    path.as_os_str().as_bytes().contains(&b'/')
}
