//! A file that grows by written zeros instead of holes.
//!
//! redb lengthens its file in great steps that leave a hole. A sync after the first write to a page in a hole also has to
//! allocate that page and to commit the file system's journal: twice the time of a sync after an overwrite (measured on
//! ext4: 380 and 180 µs; it takes a third off the commit of a block of 100 puts). So ahead of the first write beyond
//! what was written before, [`CHUNK`] bytes of zeros are written. What a reader sees is the same at any time, and so is
//! what a crash may leave.
//!
//! After each such step redb writes a few pages at the very end first: a place is the smallest that fits, and the end is
//! ragged. The step doubles the file, so zeros up to there would be gigabytes at once. A write far ahead is an
//! **island**: it goes into the hole, and the zeros go around it when they come there.

use std::{
    collections::BTreeMap,
    io,
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

use redb::{BackendError, StorageBackend};

/// How many bytes are filled at a time: a delay of about a millisecond, once in some hundred commits.
const CHUNK: u64 = 1 << 20;
/// A write so far beyond what is filled makes an island.
const FAR: u64 = 16 * CHUNK;
/// How many islands there are at most; with more, everything up to a write is filled.
const MAX_ISLANDS: usize = 256;

/// A file as described above.
#[derive(Debug)]
pub(super) struct Prefilled<B> {
    file: B,
    extent: Mutex<Extent>,
}

#[derive(Debug)]
struct Extent {
    /// The file's length.
    length: u64,
    /// From here on the file holds nothing but zeros and islands, and may have holes.
    filled: u64,
    /// What was written beyond: where each begins and ends. They don't overlap.
    islands: BTreeMap<u64, u64>,
}

impl Extent {
    /// Notes a write far ahead.
    fn add_island(&mut self, mut start: u64, mut end: u64) {
        while let Some((before, until)) = self.islands.range(..=end).next_back()
            && *until >= start
        {
            let (before, until) = (*before, *until);
            self.islands.remove(&before);
            (start, end) = (start.min(before), end.max(until));
        }
        self.islands.insert(start, end);
    }

    /// The next piece to fill, on the way to `next`, and where what is filled ends then.
    fn gap(&mut self, next: u64) -> (u64, u64) {
        match self.islands.first_key_value() {
            Some((start, end)) if *start < next => {
                let gap = (*start, *end);
                self.islands.pop_first();
                gap
            }
            _ => (next, next),
        }
    }
}

impl<B: StorageBackend> Prefilled<B> {
    /// Takes a file, and looks for zeros at its end.
    pub(super) fn new(file: B) -> io::Result<Self> {
        let length = file.len()?;
        let mut filled = length;
        let mut chunk = Vec::new();
        while filled > 0 {
            let start = filled.saturating_sub(CHUNK);
            chunk.resize(usize::try_from(filled - start).expect("at most a chunk"), 0);
            file.read(start, &mut chunk)?;
            match chunk.iter().rposition(|byte| *byte != 0) {
                Some(last) => {
                    filled = start + last as u64 + 1;
                    break;
                }
                None => filled = start,
            }
        }
        Ok(Self { file, extent: Mutex::new(Extent { length, filled, islands: BTreeMap::new() }) })
    }

    fn extent(&self) -> MutexGuard<'_, Extent> {
        self.extent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills the file as far as a write needs it.
    fn fill(&self, start: u64, end: u64) -> io::Result<()> {
        let mut extent = self.extent();
        let end = end.min(extent.length);
        if start >= extent.filled + FAR && extent.islands.len() < MAX_ISLANDS {
            extent.add_island(start, end);
            return Ok(());
        }
        while extent.filled < end {
            let next = (extent.filled + CHUNK).min(extent.length);
            let (until, filled) = extent.gap(next);
            let zeros = vec![0; usize::try_from(until - extent.filled).expect("at most a chunk")];
            self.file.write(extent.filled, &zeros)?;
            extent.filled = filled;
        }
        Ok(())
    }
}

impl<B: StorageBackend> StorageBackend for Prefilled<B> {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)?;
        let mut extent = self.extent();
        extent.length = length;
        extent.filled = extent.filled.min(length);
        extent.islands.retain(|start, _| *start < length);
        extent.islands.values_mut().for_each(|end| *end = length.min(*end));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.fill(offset, offset + data.len() as u64)?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use redb::backends::InMemoryBackend;

    use super::*;

    fn contents<B: StorageBackend>(file: &B) -> Vec<u8> {
        let mut contents = vec![0xff; usize::try_from(file.len().unwrap()).unwrap()];
        file.read(0, &mut contents).unwrap();
        contents
    }

    #[test]
    fn nothing_but_time_changes() {
        let chunk = usize::try_from(CHUNK).unwrap();
        let (plain, filled) = (InMemoryBackend::new(), Prefilled::new(InMemoryBackend::new()).unwrap());
        let (set_len, write) = (true, false);
        let steps = [
            (set_len, 3 * chunk + 5),
            (write, 100),
            (write, chunk - 1),
            (write, 0),
            (set_len, 5 * chunk),
            (write, 2 * chunk),
            (write, 3 * chunk),
            (set_len, chunk + 1),
            (set_len, 2 * chunk),
            (write, 2 * chunk - 2),
        ];
        for (at, (is_length, place)) in steps.into_iter().enumerate() {
            for file in [&plain as &dyn StorageBackend, &filled] {
                if is_length {
                    file.set_len(place as u64).unwrap();
                } else {
                    file.write(place as u64, &[at as u8 + 1, 7]).unwrap();
                }
            }
            assert_eq!(contents(&plain), contents(&filled), "step {at}");
        }
    }

    /// How far it is filled, and the number of islands.
    fn sizes<B: StorageBackend>(file: &Prefilled<B>) -> (u64, usize) {
        let extent = file.extent();
        (extent.filled, extent.islands.len())
    }

    /// Writes ahead, before, into and over islands, and a file that is made shorter through one.
    #[test]
    fn islands_are_not_filled_over() {
        let (plain, filled) = (InMemoryBackend::new(), Prefilled::new(InMemoryBackend::new()).unwrap());
        let length = 40 * CHUNK;
        let places = [
            (length - 3, 3),
            (length - 9000, 8000),
            (length - 1000, 997),
            (20 * CHUNK, 100),
            (20 * CHUNK - 50, 100),
            (20 * CHUNK + 70, 100),
            (18 * CHUNK, 10),
            (19 * CHUNK - 1, 2),
            (5, 100),
            (3 * CHUNK, 100),
            (18 * CHUNK - 20, 10),
            (20 * CHUNK - 60, 300),
            (21 * CHUNK - 8, 20),
            (30 * CHUNK, 1),
            (length - 1, 1),
        ];
        for file in [&plain as &dyn StorageBackend, &filled] {
            file.set_len(length).unwrap();
        }
        for (at, (place, size)) in places.into_iter().enumerate() {
            for file in [&plain as &dyn StorageBackend, &filled] {
                file.write(place, &vec![at as u8 + 1; size]).unwrap();
            }
            assert!(contents(&plain) == contents(&filled), "step {at}");
            match at {
                2 => assert_eq!(sizes(&filled), (0, 1)),
                7 => assert_eq!(sizes(&filled), (0, 4)),
                _ => {}
            }
        }
        assert_eq!(sizes(&filled), (length, 0));
        filled.set_len(80 * CHUNK).unwrap();
        filled.write(70 * CHUNK - 5, &[1; 10]).unwrap();
        filled.set_len(70 * CHUNK).unwrap();
        assert_eq!(filled.extent().islands.last_key_value(), Some((&(70 * CHUNK - 5), &(70 * CHUNK))));
        filled.write(69 * CHUNK, &[1]).unwrap();
        filled.write(70 * CHUNK - 6, &[2]).unwrap();
        let mut end = [0; 6];
        filled.read(70 * CHUNK - 6, &mut end).unwrap();
        assert_eq!(end, [2, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn what_is_filled_is_known_again() {
        let file = InMemoryBackend::new();
        file.set_len(4 * CHUNK).unwrap();
        file.write(CHUNK + 9, &[1, 0, 2, 0]).unwrap();
        let filled = Prefilled::new(file).unwrap();
        assert_eq!(filled.extent().filled, CHUNK + 12, "after the last byte that is not zero");
        filled.write(3 * CHUNK, &[3]).unwrap();
        assert_eq!(filled.extent().filled, 3 * CHUNK + 12, "in whole chunks, past the write");
        filled.write(4 * CHUNK - 1, &[4]).unwrap();
        assert_eq!(filled.extent().filled, 4 * CHUNK, "not beyond the end");
        assert_eq!(Prefilled::new(InMemoryBackend::new()).unwrap().extent().filled, 0);
    }
}
