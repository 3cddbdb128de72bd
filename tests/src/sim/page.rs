//! One page of a simulated address space: what the kernel has there, and what the program may expect to read.

/// What the page table has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pte {
    /// Nothing.
    None,
    /// A page.
    Present(Frame),
    /// A marker: whoever touches it gets SIGBUS.
    Poison,
}

/// A page in memory. Its bytes are one word, the token, at both ends and zeros between.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    /// What was last written; 0 for a zero page.
    pub token: u64,
    /// The group of address spaces that share it after a fork; 0 for none.
    pub group: u32,
    /// MADV_FREEd and not written since: may vanish.
    pub lazy: bool,
    /// A device may write to it.
    pub pinned: bool,
}

impl Frame {
    /// A page of this process's own.
    pub fn own(token: u64) -> Self {
        Self { token, group: 0, lazy: false, pinned: false }
    }
}

/// What a page must read as had nothing ever been moved out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Expected {
    /// The token last written.
    value: u64,
    /// It may as well read as zero.
    maybe_zero: bool,
    /// Removals (madvise) under way.
    removing: u8,
    /// Written while one was.
    touched: bool,
}

impl Expected {
    /// Whether a thread that reads `token` is being told the truth.
    pub fn read(&mut self, token: u64) -> bool {
        if token == self.value {
            return true;
        }
        if token != 0 || !(self.maybe_zero || self.removing > 0) {
            return false;
        }
        if self.removing == 0 {
            *self = Self::default();
        }
        true
    }

    /// A thread wrote.
    pub fn write(&mut self, token: u64) {
        self.value = token;
        self.maybe_zero = false;
        self.touched = self.removing > 0;
    }

    /// A removal begins: from now on the page may read as zero.
    pub fn remove_begins(&mut self) {
        if self.removing == 0 {
            self.touched = false;
        }
        self.removing += 1;
    }

    /// The removal is done: the page reads as zero, unless somebody wrote to it meanwhile, which may have been before or after.
    pub fn removed(&mut self) {
        self.removing = self.removing.saturating_sub(1);
        if self.touched {
            self.maybe_zero = true;
        } else {
            *self = Self { removing: self.removing, ..Self::default() };
        }
    }

    /// It was freed lazily: zero or not until it's written.
    pub fn freed(&mut self) {
        self.removing = self.removing.saturating_sub(1);
        self.maybe_zero = true;
    }

    /// The removals under way in a parent are none of its child's.
    pub fn in_child(self) -> Self {
        Self { removing: 0, touched: false, maybe_zero: self.maybe_zero || self.removing > 0, ..self }
    }

    /// What it should read as.
    pub fn value(self) -> u64 {
        self.value
    }

    /// Whether zero is right too.
    pub fn may_be_zero(self) -> bool {
        self.value == 0 || self.maybe_zero || self.removing > 0
    }
}

/// One page of an address space.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The mapping it belongs to; 0 for none.
    pub vma: u32,
    /// Registered with the userfaultfd.
    pub registered: bool,
    /// What is there.
    pub pte: Pte,
    /// What should be.
    pub expected: Expected,
    /// Moved out and not brought back.
    pub away: bool,
}

impl Entry {
    /// Nothing mapped.
    pub const UNMAPPED: Self = Self {
        vma: 0,
        registered: false,
        pte: Pte::None,
        expected: Expected { value: 0, maybe_zero: false, removing: 0, touched: false },
        away: false,
    };

    /// Freshly mapped.
    pub fn fresh(vma: u32) -> Self {
        Self { vma, ..Self::UNMAPPED }
    }

    /// Whether anything is mapped.
    pub fn is_mapped(&self) -> bool {
        self.vma != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_page_reads_as_zero_and_then_only_as_zero() {
        let mut page = Expected::default();
        page.write(5);
        assert!(page.read(5) && !page.read(0));
        page.remove_begins();
        assert!(page.read(5) && page.read(0) && page.read(5));
        page.removed();
        assert!(page.read(0) && !page.read(5));
    }

    #[test]
    fn a_write_during_a_removal_may_come_before_or_after_it() {
        let mut page = Expected::default();
        page.remove_begins();
        page.write(7);
        page.removed();
        assert!(page.read(7) && page.read(0) && !page.read(7));
    }
}
