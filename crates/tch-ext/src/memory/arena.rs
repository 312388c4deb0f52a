//! Ranges of one large region of addresses, best fit, neighbours joined.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::region::MOST;

/// Sizes are multiples of it, and addresses too: a cache line, and what vector instructions like.
const UNIT: usize = 64;

/// What is taken and what is free of `size` bytes. Knows offsets only.
#[derive(Debug)]
pub(super) struct Arena {
    free: BTreeMap<usize, usize>,
    by_size: BTreeSet<(usize, usize)>,
    taken: HashMap<usize, (usize, usize)>,
    pub(super) counts: Counts,
}

/// Bytes by region.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) live: [usize; MOST],
    pub(super) total: usize,
    pub(super) at_peak: [usize; MOST],
    pub(super) peak: usize,
    /// The most that each had at any time since.
    pub(super) most: [usize; MOST],
}

impl Counts {
    fn add(&mut self, tag: usize, bytes: usize) {
        self.live[tag] += bytes;
        self.most[tag] = self.most[tag].max(self.live[tag]);
        self.total += bytes;
        if self.total > self.peak {
            self.peak = self.total;
            self.at_peak = self.live;
        }
    }

    fn sub(&mut self, tag: usize, bytes: usize) {
        self.live[tag] -= bytes;
        self.total -= bytes;
    }

    pub(super) fn reset_peak(&mut self) {
        (self.peak, self.at_peak, self.most) = (self.total, self.live, self.live);
    }
}

impl Arena {
    pub(super) fn new(size: usize) -> Self {
        Self {
            free: BTreeMap::from([(0, size)]),
            by_size: BTreeSet::from([(size, 0)]),
            taken: HashMap::new(),
            counts: Counts::default(),
        }
    }

    /// The offset of `bytes` that nobody has: of the smallest range that holds them the lowest, so that what is in
    /// use stays close together. `None` if there is none.
    pub(super) fn take(&mut self, bytes: usize, tag: usize) -> Option<usize> {
        let bytes = bytes.checked_next_multiple_of(UNIT)?;
        let &(size, offset) = self.by_size.range((bytes, 0)..).next()?;
        self.remove(offset, size);
        if size > bytes {
            self.insert(offset + bytes, size - bytes);
        }
        self.taken.insert(offset, (bytes, tag));
        self.counts.add(tag, bytes);
        Some(offset)
    }

    /// Gives back what `take` gave.
    pub(super) fn give(&mut self, offset: usize) {
        let Some((bytes, tag)) = self.taken.remove(&offset) else { return };
        self.counts.sub(tag, bytes);
        let (mut offset, mut bytes) = (offset, bytes);
        if let Some((&before, &size)) = self.free.range(..offset).next_back()
            && before + size == offset
        {
            self.remove(before, size);
            (offset, bytes) = (before, bytes + size);
        }
        if let Some(&size) = self.free.get(&(offset + bytes)) {
            self.remove(offset + bytes, size);
            bytes += size;
        }
        self.insert(offset, bytes);
    }

    /// Ranges that nobody has.
    pub(super) fn free(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.free.iter().map(|(&offset, &size)| (offset, size))
    }

    fn insert(&mut self, offset: usize, size: usize) {
        self.free.insert(offset, size);
        self.by_size.insert((size, offset));
    }

    fn remove(&mut self, offset: usize, size: usize) {
        self.free.remove(&offset);
        self.by_size.remove(&(size, offset));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever is taken and given: ranges are apart, inside, and all comes back as one.
    #[test]
    fn ranges_never_overlap_and_join_again() {
        const SIZE: usize = 1 << 20;
        let (mut arena, mut live, mut seed) = (Arena::new(SIZE), Vec::<(usize, usize)>::new(), 7u64);
        let mut random = |n: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize % n
        };
        for _ in 0..20_000 {
            if live.is_empty() || random(5) < 3 {
                let bytes = 1 + random(9000);
                if let Some(offset) = arena.take(bytes, 1) {
                    assert!(offset % UNIT == 0 && offset + bytes <= SIZE);
                    assert!(live.iter().all(|&(o, b)| offset + bytes <= o || o + b <= offset));
                    live.push((offset, bytes));
                }
            } else {
                let (offset, _) = live.swap_remove(random(live.len()));
                arena.give(offset);
            }
            let sum: usize = live.iter().map(|l| l.1.next_multiple_of(UNIT)).sum();
            assert_eq!((arena.counts.total, arena.counts.live[1]), (sum, sum));
            assert!(arena.counts.peak >= sum);
        }
        live.iter().for_each(|l| arena.give(l.0));
        assert_eq!(arena.free().collect::<Vec<_>>(), [(0, SIZE)]);
        assert_eq!(arena.counts.total, 0);
        assert_eq!(arena.take(SIZE + 1, 0), None);
        assert_eq!(arena.take(usize::MAX, 0), None);
    }
}
