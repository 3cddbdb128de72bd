use super::*;

const PAGES: u64 = !0;

/// Memory that holds so many blocks, and what was asked for in vain.
struct Memory {
    victims: Victims,
    /// The pages that are there, of each block that has any.
    present: HashMap<u64, u64>,
    pages: u64,
    room: u64,
    misses: u32,
}

impl Memory {
    fn new(room: u64) -> Self {
        let (victims, present) = (Victims::new(), HashMap::new());
        Self { victims, present, pages: 0, room: room * 64, misses: 0 }
    }

    /// All pages of a block are touched. It counts if none was there.
    fn touch(&mut self, block: u64) {
        let missing = !std::mem::replace(self.present.entry(block).or_default(), PAGES);
        if missing == 0 {
            return;
        }
        self.misses += u32::from(missing == PAGES);
        self.pages += u64::from(missing.count_ones());
        self.victims.arrived(block, missing);
        while self.pages > self.room {
            let victim = self.victims.choose().unwrap();
            let present = self.present.get_mut(&victim.block).unwrap();
            let moved = (*present & victim.pages).count_ones();
            *present &= !victim.pages;
            self.pages -= u64::from(moved);
            self.victims.left(victim, moved, 0);
        }
    }

    fn misses(&mut self, touches: impl Iterator<Item = u64>) -> u32 {
        let before = self.misses;
        touches.for_each(|block| self.touch(block));
        self.misses - before
    }
}

fn circles(of: u64, count: u64) -> impl Iterator<Item = u64> {
    (0..of * count).map(move |n| n % of)
}

#[test]
fn in_a_circle_larger_than_memory_a_part_stays() {
    // Whoever throws out what came in first, or was touched longest ago, misses every time; the least there can be is 34, 51 and 81%.
    for (blocks, most) in [(150, 55), (200, 65), (500, 86)] {
        let mut memory = Memory::new(100);
        memory.misses(circles(blocks, 5));
        let missed = memory.misses(circles(blocks, 20));
        let share = missed * 100 / u32::try_from(blocks * 20).unwrap();
        assert!(share <= most, "{share}% of a circle of {blocks}");
    }
}

#[test]
fn what_is_used_again_and_again_survives_what_is_read_once() {
    let mut memory = Memory::new(100);
    let mut hot_misses = 0;
    for round in 0..200u64 {
        // 40 blocks used in each round, beside 60 that are never used again.
        let before = memory.misses;
        (0..40).for_each(|block| memory.touch(block));
        if round >= 50 {
            hot_misses += memory.misses - before;
        }
        (0..60).for_each(|n| memory.touch(1000 + round * 60 + n));
    }
    // First in, first out would miss all 6,000 of them.
    assert!(hot_misses < 1500, "{hot_misses}");
}

#[test]
fn what_is_used_no_more_makes_room() {
    let mut memory = Memory::new(100);
    memory.misses(circles(90, 20));
    memory.misses((1000..1090).cycle().take(90 * 20));
    let missed = memory.misses((1000..1090).cycle().take(90 * 10));
    assert!(missed < 90, "{missed} of 900");
}

#[test]
fn what_cant_move_or_is_gone_has_its_turn_once() {
    let mut victims = Victims::new();
    victims.found(1, PAGES);
    victims.found(2, PAGES);
    assert_eq!((victims.pages(), victims.len()), (128, 2));
    let tried = victims.choose().unwrap();
    assert_eq!((tried.block, tried.pages.count_ones()), (2, 1));
    victims.left(tried, 1, 0);
    let victim = victims.choose().unwrap();
    assert_eq!(victim.block, 2);
    victims.left(victim, 60, 0b1111);
    assert!(victims.is_in(2));
    let tried = victims.choose().unwrap();
    assert_eq!((tried.block, tried.pages.count_ones()), (1, 1));
    victims.left(tried, 1, 0);
    let other = victims.choose().unwrap();
    assert_eq!(other.block, 1);
    victims.left(other, 0, 0);
    assert!(!victims.is_known(1));
    let again = victims.choose().unwrap();
    assert_eq!((again.block, again.pages & 0b1111), (2, 0b1111));
    victims.left(again, 4, 0);
    assert_eq!((victims.choose(), victims.pages()), (None, 0));
    // What is in already is no news.
    victims.arrived(1, 0b111);
    victims.arrived(1, 0b110);
    victims.found(1, 0b1111);
    assert_eq!((victims.pages(), victims.len()), (4, 1));
}

#[test]
fn a_block_of_which_the_tried_page_comes_back_is_passed_over() {
    // Both are tried in turn; whichever it is whose page comes back is the last to go.
    for used in [0, 1] {
        let mut victims = Victims::new();
        (0..2).for_each(|block| victims.join(block, Place::Long, PAGES));
        let tried: Vec<Victim> = (0..2).map(|_| victims.choose().unwrap()).collect();
        for tried in &tried {
            assert_eq!(tried.pages.count_ones(), 1);
            victims.left(*tried, 1, 0);
        }
        victims.arrived(used, tried[usize::try_from(used).unwrap()].pages);
        assert_eq!(victims.choose().map(|victim| victim.block), Some(1 - used));
    }
}

#[test]
fn what_comes_back_late_stands_apart_from_what_came_back_soon() {
    let mut victims = Victims::new();
    (0..10).for_each(|block| victims.join(block, Place::Long, PAGES));
    let all_out = |victims: &mut Victims, block: u64| {
        let victim = Victim { block, pages: PAGES, known: 64 };
        victims.left(victim, 64, 0);
    };
    all_out(&mut victims, 3);
    victims.arrived(3, 0b01);
    assert_eq!((victims.blocks[&3].long.pages, victims.blocks[&3].passes), (0b01, 1));
    (4..7).for_each(|block| all_out(&mut victims, block));
    victims.arrived(3, 0b11);
    assert_eq!((victims.blocks[&3].long.pages, victims.blocks[&3].short.pages), (0b01, 0b10));
    assert_eq!(victims.pages(), 6 * 64 + 2);
}

/// Each block has one turn, be it used, tried or passed over; one that couldn't go is left for another time.
#[test]
fn where_all_goes_nothing_is_spared() {
    let mut victims = Victims::new();
    (0..10).for_each(|block| victims.found(block, PAGES));
    let tried = victims.choose().unwrap();
    victims.left(tried, 1, 0);
    victims.arrived(tried.block, tried.pages);
    let turns = victims.len();
    let mut gone = 0;
    for _ in 0..turns {
        let Some(victim) = victims.choose_any() else { break };
        let stays = victim.block == 5;
        victims.left(victim, if stays { 0 } else { 64 }, if stays { PAGES } else { 0 });
        gone += u32::from(!stays);
    }
    assert_eq!((gone, victims.pages()), (9, 64));
}

/// A program that maps, uses and unmaps memory at ever new addresses made it grow for ever.
#[test]
fn what_is_mapped_no_more_is_forgotten() {
    let mut victims = Victims::new();
    for block in 0..1_000 {
        victims.found(block, PAGES);
    }
    for _ in 0..500 {
        let victim = victims.choose().unwrap();
        victims.left(victim, victim.pages.count_ones(), 0);
    }
    victims.retain(|block| block % 100 == 0);
    assert_eq!(victims.known(), 10);
    assert!(victims.len() <= 20 && victims.pages() <= 640);
    let mut gone = 0;
    while let Some(victim) = victims.choose() {
        assert!(victim.block % 100 == 0);
        victims.left(victim, 0, 0);
        gone += 1;
    }
    assert!(gone <= 20);
    assert_eq!((victims.pages(), victims.len()), (0, 0));
}

/// Nobody in need took a hot block out: it was gone round until its passes were used up.
#[test]
fn who_isnt_in_need_tries_everything_and_passes_over_what_is_used() {
    let mut victims = Victims::new();
    (0..8).for_each(|block| victims.found(block, !0));
    let mut cold = victims.cold();
    let tried: Vec<Victim> = std::iter::from_fn(|| {
        let victim = victims.choose_cold(&mut cold)?;
        victims.left(victim, victim.pages.count_ones(), 0);
        Some(victim)
    })
    .collect();
    assert_eq!(tried.len(), 8);
    assert!(tried.iter().all(|victim| victim.pages.count_ones() == 1), "{tried:?}");
    // All but the last two are used.
    tried[..6].iter().for_each(|victim| victims.arrived(victim.block, victim.pages));
    let mut cold = victims.cold();
    let mut gone: Vec<u64> = std::iter::from_fn(|| {
        let victim = victims.choose_cold(&mut cold)?;
        victims.left(victim, victim.pages.count_ones(), 0);
        Some(victim.block)
    })
    .collect();
    gone.sort_unstable();
    gone.dedup();
    let unused: Vec<u64> = tried[6..].iter().map(|victim| victim.block).collect();
    assert!(unused.iter().all(|block| gone.contains(block)), "{gone:?} {unused:?}");
    assert!(victims.pages() >= 6 * 60, "{gone:?}");
}
