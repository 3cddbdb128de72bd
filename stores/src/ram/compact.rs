//! Compaction: moves objects from the ends of their classes into the gaps before, and gives the ends back.

use userswap_store::{Budget, Maintained};

use super::Ram;
use super::arena::Slot;
use super::index::Cursor;
use super::object;
use super::pool::{Packing, Purpose};

impl Ram {
    /// Packs each class, at most about `budget`, and gives idle memory back.
    ///
    /// Walks the index rather than the slabs, so that slots needn't know their entries: four bytes a page saved for a walk of
    /// eight bytes a page now and then. One call goes around the index once at most.
    pub(super) fn compact(&self, budget: Budget) -> Maintained {
        let held_before = self.held.bytes();
        let Packing { ends, gain } = self.pool.packing();
        let mut done = Maintained::default();
        // Not for less than a part in 64. And if someone else is at it already, its work serves us too.
        if gain >= held_before / 64
            && let Some(mut cursor) = self.cursor.try_lock()
        {
            for dictionary in self.dictionaries.all() {
                dictionary.with_pieces(|slot| done.moved_bytes += self.pack(slot, &ends));
            }
            let start = *cursor;
            let mut wrapped = false;
            done.more = loop {
                if done.moved_bytes >= budget.bytes {
                    break true;
                }
                let Some(mut shard) = self.index.at(*cursor) else {
                    *cursor = Cursor::default();
                    if start == Cursor::default() || wrapped {
                        break false;
                    }
                    wrapped = true;
                    continue;
                };
                if wrapped && *cursor == start {
                    break false;
                }
                let Some(slots) = shard.slots_mut(*cursor) else {
                    *cursor = cursor.next_shard();
                    continue;
                };
                for slot in slots {
                    done.moved_bytes += self.pack(slot, &ends);
                }
                *cursor = cursor.next_group();
            };
        }
        self.give_back();
        done.released_bytes = held_before.saturating_sub(self.held.bytes());
        if done.moved_bytes > 0 {
            self.compacted_bytes.add(done.released_bytes);
        }
        done
    }

    /// Moves an object to a lower place if it lies past the end of its class; answers how many bytes it moved.
    fn pack(&self, slot: &mut Slot, ends: &[usize]) -> u64 {
        let end = self.pool.class_of(slot).and_then(|class| ends.get(usize::from(class.0)));
        if end.is_none_or(|end| slot.offset() < *end) {
            return 0;
        }
        let Ok(mut lower) = self.pool.take(slot.len(), &self.held, Purpose::Upkeep) else { return 0 };
        if lower.offset() >= slot.offset() {
            self.pool.give(lower, &self.held);
            return 0;
        }
        let (len, _) = object::stored_len(self.pool.bytes(slot));
        let object = &self.pool.bytes(slot)[..len];
        let Some(mark) = object::parse(object).map(|(_, mark)| mark) else {
            // Damaged: it stays where it is, to be reported when it is fetched.
            self.pool.give(lower, &self.held);
            return 0;
        };
        object::commit(self.pool.bytes_mut(&mut lower), object, mark);
        let lower = lower.tagged(slot.tag());
        let mut old = std::mem::replace(slot, lower);
        object::retire(self.pool.bytes_mut(&mut old));
        self.pool.give(old, &self.held);
        len as u64
    }
}
