//! The environment that a program is executed with.

use core::ffi::c_char;
use core::ptr;

use crate::next::Strings;
use crate::start::{PRELOAD, SOCKET, value_of};
use crate::state::STATE;
use crate::sys;

/// How an environment has to be changed.
#[derive(Clone, Copy)]
pub(crate) struct Environment {
    given: Strings,
    count: usize,
    /// The entry of LD_PRELOAD, if there is one, and its length.
    preload: Option<(usize, usize)>,
    follow: bool,
}

/// An environment of more than so many bytes, in pointers and in what is to be written, is left as it is.
const MOST: usize = 256 * 1024;

impl Environment {
    /// What has to be changed of `given`; `None` if nothing.
    ///
    /// # Safety
    /// It must be null, or strings ending in null.
    pub(crate) unsafe fn of(given: Strings) -> Option<Self> {
        if !STATE.is_started() {
            return None;
        }
        let mut wanted = Self { given, count: 0, preload: None, follow: true };
        let (mut socket, mut ours) = (false, false);
        // SAFETY: read up to the null at its end, by the caller's promise.
        unsafe {
            while let Some(entry) = wanted.entry(wanted.count) {
                socket |= value_of(entry, SOCKET).is_some();
                if let Some(value) = value_of(entry, PRELOAD) {
                    let value = value.to_bytes();
                    wanted.preload = Some((wanted.count, value.len()));
                    ours = find_own(value).is_some();
                }
                wanted.count += 1;
            }
        }
        // SAFETY: the text holds a C string, of which this is the part behind the `=`.
        let there = unsafe { sys::is_readable(STATE.preload.as_ptr().add(PRELOAD.len())) };
        // What can't be loaded would only make the loader complain.
        wanted.follow = there && !STATE.is_unfollowed();
        let right = if wanted.follow { socket && ours } else { !ours };
        (!right && wanted.bytes() <= MOST).then_some(wanted)
    }

    /// How much room it takes to build it.
    pub(crate) fn bytes(&self) -> usize {
        let pointers = (self.count + 3) * size_of::<*const c_char>();
        let preload = self.preload.map_or(0, |(_, len)| len) + STATE.preload.len() + 2;
        pointers.saturating_add(preload)
    }

    /// Builds it.
    ///
    /// # Safety
    /// There must be room of [`Environment::bytes`], aligned for pointers; the given one must be as it was.
    pub(crate) unsafe fn build(&self, room: *mut u8) -> Strings {
        let place = room.cast::<*const c_char>();
        let mut filled = 0;
        // SAFETY: at most an entry for each given one, two more and a null are written, for which there is room; the text
        // behind that is of the length that was counted.
        unsafe {
            let text = room.add((self.count + 3) * size_of::<*const c_char>());
            let mut push = |entry: *const c_char| {
                place.add(filled).write(entry);
                filled += 1;
            };
            let preload = self.preload.map(|(index, _)| index);
            for index in 0..self.count {
                let Some(entry) = self.entry(index) else { break };
                let changed = preload == Some(index) || value_of(entry, SOCKET).is_some();
                if !changed {
                    push(entry);
                }
            }
            let others =
                preload.and_then(|index| self.entry(index)).and_then(|entry| value_of(entry, PRELOAD));
            let others = others.map_or(&[][..], |value| value.to_bytes());
            if let Some(entry) = self.preload_entry(others, text) {
                push(entry);
            }
            if self.follow {
                push(STATE.socket.as_ptr().cast());
            }
            push(ptr::null());
        }
        place
    }

    /// The entry of LD_PRELOAD: this object and the others, or the others alone.
    ///
    /// # Safety
    /// As [`Environment::build`].
    unsafe fn preload_entry(&self, others: &[u8], text: *mut u8) -> Option<*const c_char> {
        let (before, after) = match find_own(others) {
            Some((start, end)) => (others.get(..start)?, others.get(end..)?),
            None => (others, &[][..]),
        };
        if before.is_empty() && after.is_empty() {
            return self.follow.then(|| STATE.preload.as_ptr().cast());
        }
        let mut len = 0;
        let mut write = |byte: u8| {
            // SAFETY: as many bytes as `bytes` counted: the key and this object's path, a separator, the others, a 0.
            unsafe { text.add(len).write(byte) };
            len += 1;
        };
        if self.follow {
            let own = STATE.preload.as_ptr();
            for at in 0..STATE.preload.len() {
                // SAFETY: within the text.
                write(unsafe { *own.add(at) });
            }
            write(b':');
        } else {
            PRELOAD.iter().for_each(|byte| write(*byte));
        }
        before.iter().chain(after).for_each(|byte| write(*byte));
        write(0);
        Some(text.cast_const().cast())
    }

    /// # Safety
    /// The environment must be as it was, and the index not behind its end.
    unsafe fn entry(&self, index: usize) -> Option<*const c_char> {
        if self.given.is_null() {
            return None;
        }
        // SAFETY: the caller's promise.
        let entry = unsafe { *self.given.add(index) };
        (!entry.is_null()).then_some(entry)
    }
}

/// Where this object's path is in a list of them, with the separator behind it.
fn find_own(list: &[u8]) -> Option<(usize, usize)> {
    let mut own = [0_u8; 1100];
    let len = STATE.preload.copy(PRELOAD.len(), &mut own);
    let own = own.get(..len)?;
    let mut start = 0;
    while start < list.len() {
        let rest = list.get(start..)?;
        let len = rest.iter().position(|byte| matches!(byte, b':' | b' ')).unwrap_or(rest.len());
        if rest.get(..len) == Some(own) {
            return Some((start, (start + len + 1).min(list.len())));
        }
        start += len + 1;
    }
    None
}
