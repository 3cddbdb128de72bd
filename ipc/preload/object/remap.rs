//! mremap(2) of a range that is several mappings only because a part of it is watched.
//!
//! The kernel refuses such a range as if it weren't mapped. What's worse, since 6.17 it moves the mappings of a range to a fixed
//! address one by one, and when it comes to a watched one that isn't the first it refuses with the others moved already. A look
//! beforehand doesn't help: the daemon may begin to watch a part between the look and the call. So where there is an agent a range
//! goes to its place piece by piece, however it is divided and whenever that changes; each piece is a call that the daemon hears of.
//!
//! How much went with a piece that was refused must be known exactly: what has left is a hole where another thread's memory may be by
//! now, and a second call for it would carry that off. The place tells: it is of a kind of its own, so that what is still reserved at
//! its end is one mapping, and what came before it isn't a part of that.

use core::ffi::{c_int, c_void};

use crate::next::answer;
use crate::state::STATE;
use crate::sys::{self, Errno, PAGE, call, nr};

/// mremap(2).
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mremap(
    at: *mut c_void,
    old_len: usize,
    new_len: usize,
    flags: c_int,
    to: *mut c_void,
) -> *mut c_void {
    let at = at.expose_provenance();
    // Left out where no flag asks for it.
    let placed = flags as usize & (sys::MREMAP_FIXED | sys::MREMAP_DONTUNMAP) != 0;
    let to = if placed { to.expose_provenance() } else { 0 };
    // SAFETY: the caller's promise.
    let result = unsafe { remap(Wish { at, old_len, new_len, flags: flags as usize, to }) };
    core::ptr::with_exposed_provenance_mut(answer(result) as usize)
}

/// What the program asked for.
#[derive(Clone, Copy)]
struct Wish {
    at: usize,
    old_len: usize,
    new_len: usize,
    flags: usize,
    to: usize,
}

impl Wish {
    /// # Safety
    /// As mremap.
    unsafe fn as_it_is(self) -> Result<usize, Errno> {
        // SAFETY: the caller's promise.
        unsafe { call(nr::MREMAP, [self.at, self.old_len, self.new_len, self.flags, self.to, 0]) }
    }

    fn has(self, flag: usize) -> bool {
        self.flags & flag != 0
    }

    /// With lengths in whole pages. `None` for what the kernel refuses before it changes anything, or takes for something else.
    fn in_pages(self) -> Option<Self> {
        let old_len = self.old_len.checked_next_multiple_of(PAGE)?;
        let new_len = self.new_len.checked_next_multiple_of(PAGE)?;
        let (old_end, new_end) = (self.at.checked_add(old_len)?, self.to.checked_add(new_len)?);
        let known = sys::MREMAP_MAYMOVE | sys::MREMAP_FIXED | sys::MREMAP_DONTUNMAP;
        let whole = self.at.is_multiple_of(PAGE) && self.to.is_multiple_of(PAGE);
        let apart = !self.has(sys::MREMAP_FIXED) || old_end <= self.to || new_end <= self.at;
        let fits = self.flags & !known == 0
            && (self.flags == 0 || self.has(sys::MREMAP_MAYMOVE))
            && (!self.has(sys::MREMAP_DONTUNMAP) || old_len == new_len);
        (old_len > 0 && new_len > 0 && whole && apart && fits).then_some(Self { old_len, new_len, ..self })
    }
}

/// # Safety
/// As mremap.
unsafe fn remap(wish: Wish) -> Result<usize, Errno> {
    let is_watched = STATE.control().is_some_and(|control| control.agent().is_some());
    let Some(pages) = wish.in_pages().filter(|_| is_watched) else {
        // SAFETY: the caller's promise.
        return unsafe { wish.as_it_is() };
    };
    if wish.has(sys::MREMAP_FIXED) {
        if !is_mapped(pages.at) {
            return Err(Errno::FAULT);
        }
        // What is there goes in any case, and nobody else takes the place meanwhile.
        // SAFETY: the caller's promise.
        let (place, is_certain) = unsafe { sys::reserve(Some(pages.to), pages.new_len) }?;
        // SAFETY: the caller's promise; the place is ours.
        return unsafe { to_place(Wish { to: place, ..pages }, is_certain) };
    }
    // Without a fixed address the kernel refuses before it changes anything.
    // SAFETY: the caller's promise.
    let plain = unsafe { wish.as_it_is() };
    if plain != Err(Errno::FAULT) || !is_mapped(pages.at) {
        return plain;
    }
    if !wish.has(sys::MREMAP_MAYMOVE) {
        // SAFETY: the caller's promise.
        return unsafe { grow(pages) };
    }
    // SAFETY: nothing is replaced.
    let (place, is_certain) = unsafe { sys::reserve(None, pages.new_len) }?;
    // SAFETY: the caller's promise; the place is ours.
    unsafe { to_place(Wish { to: place, flags: pages.flags | sys::MREMAP_FIXED, ..pages }, is_certain) }
}

/// Moves the range to a place that was reserved for it, which is `certain` to tell what it still reserves.
///
/// # Safety
/// As mremap, and the place must be the caller's.
unsafe fn to_place(mut wish: Wish, certain: bool) -> Result<usize, Errno> {
    if wish.new_len < wish.old_len {
        // SAFETY: what a range is shortened by goes.
        unsafe { sys::unmap(wish.at + wish.new_len, wish.old_len - wish.new_len) };
        wish.old_len = wish.new_len;
    }
    let end = wish.to + wish.new_len;
    let mut done = 0;
    let mut piece = wish.old_len;
    while done < wish.old_len {
        let grown = if done + piece == wish.old_len { wish.new_len - done } else { piece };
        let one = Wish { at: wish.at + done, old_len: piece, new_len: grown, to: wish.to + done, ..wish };
        // SAFETY: a piece of what the caller may move, to a place of ours.
        let Err(error) = (unsafe { one.as_it_is() }) else {
            done += piece;
            piece = wish.old_len - done;
            continue;
        };
        // A kernel that has no place of a certain kind moves all of a piece or nothing.
        let went = if certain { end - one.to - mapping_before(end, end - one.to) } else { 0 };
        done += went;
        if error != Errno::FAULT || (went == 0 && piece == PAGE) {
            // SAFETY: nothing of the program's is in the rest of the place.
            unsafe { sys::unmap(wish.to + done, wish.new_len - done) };
            return Err(error);
        }
        piece = if went == 0 { (piece / 2).next_multiple_of(PAGE) } else { wish.old_len - done };
    }
    Ok(wish.to)
}

/// Grows the range where it is: its last mapping does, of which any piece at its end will do.
///
/// # Safety
/// As mremap.
unsafe fn grow(wish: Wish) -> Result<usize, Errno> {
    let more = wish.new_len.saturating_sub(wish.old_len);
    let mut piece = wish.old_len;
    while piece > PAGE {
        piece = (piece / 2).next_multiple_of(PAGE);
        let at = wish.at + wish.old_len - piece;
        // SAFETY: the end of what the caller may grow.
        let grown = unsafe { Wish { at, old_len: piece, new_len: piece + more, ..wish }.as_it_is() };
        if grown != Err(Errno::FAULT) {
            return grown.map(|_| wish.at);
        }
    }
    Err(Errno::FAULT)
}

fn is_mapped(at: usize) -> bool {
    // SAFETY: the same size at the same place: nothing happens.
    unsafe { call(nr::MREMAP, [at, PAGE, PAGE, 0, 0, 0]) }.is_ok()
}

/// How much of `len` bytes before `end` is one mapping.
fn mapping_before(end: usize, len: usize) -> usize {
    let (mut one, mut several) = (0, len / PAGE + 1);
    while several - one > 1 {
        let middle = one.midpoint(several);
        if is_one_mapping(end - middle * PAGE, middle * PAGE) { one = middle } else { several = middle }
    }
    one * PAGE
}

fn is_one_mapping(at: usize, len: usize) -> bool {
    /// All addresses there are: nothing can grow to that.
    const FAR: usize = (1 << 47) - PAGE;
    // SAFETY: growing to that where it is is always refused. That it is several mappings is what is looked at first.
    let refused = unsafe { call(nr::MREMAP, [at, len, FAR, 0, 0, 0]) };
    refused != Err(Errno::FAULT)
}
