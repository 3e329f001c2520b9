//! The buckets of the state digest, and in them all that a change needs to know of a key.
//!
//! Buckets that have been needed are held in memory, and changed there; those of a million keys fit. Where there are
//! more, some are written to [`Table::Buckets`] and forgotten. One that is not held is read from there, and must have
//! the digest that the tree says. Else they are written once, when the store is closed: a changed key costs a whole
//! bucket there. Until then the table is behind the state. The state machine records how far it has come, and makes
//! the buckets anew from [`Table::Keys`] when it finds the table behind after a start.

use std::collections::{BTreeMap, BTreeSet, btree_map};

use super::{
    Error, ReadTables, Table, WriteTables,
    digest::{Tree, bucket_digest, bucket_of, gather},
    entry::Numbers,
};
use crate::crypto::Digest;

/// Bytes of an item: the key hash without the 16 bits that the bucket's number is, the entry's numbers and its digest.
const ITEM: usize = HASH + NUMBERS + 32;
/// Bytes of an item's key hash.
const HASH: usize = 30;
/// Bytes of an item's numbers: three of 64 bits, little-endian.
const NUMBERS: usize = 3 * 8;
/// What is held before some of it is written and forgotten: so many items and buckets, some 96 MiB, and at most one
/// bucket more. A million keys fit.
const MAX_HELD: usize = if cfg!(test) { 3 << 16 } else { 17 << 16 };
/// How many bucket numbers are gone through at once when there is no room.
const FORGET: u16 = 4096;
/// After how many items a part of what is unwritten ends.
const PART: usize = 1 << 16;

/// The items of one bucket, in the order of their key hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    items: Vec<[u8; ITEM]>,
}

impl Bucket {
    /// The bucket that was packed; none where the bytes are not whole items in order.
    pub(super) fn unpack(packed: &[u8]) -> Option<Self> {
        let (items, []) = packed.as_chunks::<ITEM>() else { return None };
        items
            .is_sorted_by(|a, b| a.first_chunk::<HASH>() < b.first_chunk())
            .then(|| Self { items: items.to_vec() })
    }

    /// The bytes to store and to hash.
    pub(super) fn packed(&self) -> &[u8] {
        self.items.as_flattened()
    }

    /// Sets the numbers and the digest of a key's entry.
    pub(super) fn set(&mut self, key_hash: &Digest, numbers: Numbers, digest: Digest) {
        self.set_at(self.find(key_hash), key_hash, numbers, digest);
    }

    fn set_at(&mut self, at: Result<usize, usize>, key_hash: &Digest, numbers: Numbers, digest: Digest) {
        let Numbers { create_revision, mod_revision, version } = numbers;
        let numbers = [create_revision, mod_revision, version].map(u64::to_le_bytes);
        let mut item = [0; ITEM];
        let (hash, rest) = item.split_at_mut(HASH);
        hash.copy_from_slice(suffix(key_hash));
        let (fields, rest) = rest.split_at_mut(NUMBERS);
        fields.copy_from_slice(numbers.as_flattened());
        rest.copy_from_slice(&digest.0);
        match at {
            Ok(at) => {
                if let Some(old) = self.items.get_mut(at) {
                    *old = item;
                }
            }
            Err(at) => {
                // Most buckets have few items for long: no room beside them.
                self.items.reserve_exact(1);
                self.items.insert(at, item);
            }
        }
    }

    fn numbers_at(&self, at: usize) -> Option<Numbers> {
        let (_, rest) = self.items.get(at)?.split_at(HASH);
        let [create_revision, mod_revision, version, ..] = *rest.as_chunks().0 else { return None };
        Some(Numbers {
            create_revision: u64::from_le_bytes(create_revision),
            mod_revision: u64::from_le_bytes(mod_revision),
            version: u64::from_le_bytes(version),
        })
    }

    /// Where a key is, or belongs.
    fn find(&self, key_hash: &Digest) -> Result<usize, usize> {
        let wanted = suffix(key_hash);
        self.items.binary_search_by(|item| item.split_at(HASH).0.cmp(wanted))
    }
}

/// The part of a key hash that a bucket's number doesn't tell.
fn suffix(key_hash: &Digest) -> &[u8] {
    key_hash.0.split_at(2).1
}

/// A bucket in memory.
#[derive(Clone, Debug)]
struct Held {
    bucket: Bucket,
    /// Whether it differs from the table.
    is_unwritten: bool,
}

impl Held {
    fn write<T: WriteTables>(&mut self, tables: &mut T, number: u16) -> Result<(), T::Error> {
        if self.bucket.items.is_empty() {
            tables.remove(Table::Buckets, &number.to_be_bytes())?;
        } else {
            tables.put(Table::Buckets, &number.to_be_bytes(), self.bucket.packed())?;
        }
        self.is_unwritten = false;
        Ok(())
    }
}

/// The buckets in memory and the tree above all.
#[derive(Clone, Debug, Default)]
pub(super) struct Buckets {
    tree: Tree,
    /// Bounded by [`MAX_HELD`], then written and forgotten.
    held: BTreeMap<u16, Held>,
    /// How many buckets and items these are.
    size: usize,
    /// The number from which on buckets are forgotten next.
    next: u16,
    /// Those of them whose digests the tree doesn't have yet.
    unhashed: BTreeSet<u16>,
}

impl Buckets {
    /// The state of a tree, which is the table's.
    pub(super) fn new(tree: Tree) -> Self {
        Self { tree, ..Self::default() }
    }

    /// Makes all buckets from [`Table::Keys`], whatever the table of buckets holds.
    pub(super) fn rebuild<T: WriteTables>(tables: &mut T) -> Result<Self, Error<T::Error>> {
        let mut gathered = gather(tables)?;
        let mut buckets = Self::default();
        for number in 0..=u16::MAX {
            match gathered.remove(&number) {
                None => drop(tables.remove(Table::Buckets, &number.to_be_bytes())?),
                Some(bucket) => {
                    buckets.size += 1 + bucket.items.len();
                    buckets.held.insert(number, Held { bucket, is_unwritten: true });
                    buckets.unhashed.insert(number);
                    buckets.make_room(tables)?;
                }
            }
        }
        Ok(buckets)
    }

    /// The place of a key.
    pub(super) fn place<'a, T: WriteTables>(
        &'a mut self,
        tables: &mut T,
        key_hash: &'a Digest,
    ) -> Result<Place<'a>, Error<T::Error>> {
        self.make_room(tables)?;
        let number = bucket_of(key_hash);
        let held = match self.held.entry(number) {
            btree_map::Entry::Occupied(held) => held.into_mut(),
            btree_map::Entry::Vacant(place) => {
                let bucket = load(tables, &self.tree, number)?;
                self.size += 1 + bucket.items.len();
                place.insert(Held { bucket, is_unwritten: false })
            }
        };
        let at = held.bucket.find(key_hash);
        Ok(Place { key_hash, at, held, unhashed: &mut self.unhashed, size: &mut self.size })
    }

    /// The digest of the state at a revision.
    pub(super) fn state(&mut self, revision: u64) -> Digest {
        self.hash();
        self.tree.state(revision)
    }

    /// Writes a part of the changed buckets to the table, and says whether it was the last one.
    pub(super) fn write_part<T: WriteTables>(&mut self, tables: &mut T) -> Result<bool, Error<T::Error>> {
        let mut items = 0;
        for (number, held) in self.held.iter_mut().filter(|(_, held)| held.is_unwritten) {
            if items >= PART {
                return Ok(false);
            }
            items += 1 + held.bucket.items.len();
            held.write(tables, *number)?;
        }
        Ok(true)
    }

    /// Forgets buckets while there are too many.
    fn make_room<T: WriteTables>(&mut self, tables: &mut T) -> Result<(), Error<T::Error>> {
        if self.size >= MAX_HELD {
            self.hash();
        }
        while self.size >= MAX_HELD {
            let last = self.next.saturating_add(FORGET - 1);
            let numbers: Vec<_> = self.held.range(self.next..=last).map(|(number, _)| *number).collect();
            for number in numbers {
                let Some(mut held) = self.held.remove(&number) else { continue };
                self.size -= 1 + held.bucket.items.len();
                if held.is_unwritten {
                    held.write(tables, number)?;
                }
            }
            self.next = last.wrapping_add(1);
        }
        Ok(())
    }

    /// Brings the tree up to date.
    fn hash(&mut self) {
        let changes: Vec<_> = std::mem::take(&mut self.unhashed)
            .into_iter()
            .filter_map(|number| Some((number, bucket_digest(self.held.get(&number)?.bucket.packed()))))
            .collect();
        self.tree.update(&changes);
    }
}

/// A bucket from the table.
fn load<T: ReadTables>(tables: &T, tree: &Tree, number: u16) -> Result<Bucket, Error<T::Error>> {
    let bucket = tables
        .read(Table::Buckets, &number.to_be_bytes(), Bucket::unpack)?
        .unwrap_or_else(|| Some(Bucket::default()));
    bucket
        .filter(|bucket| bucket_digest(bucket.packed()) == tree.bucket(number))
        .ok_or(Error::Damaged("a bucket of digests"))
}

/// Where a key's item is, or belongs.
pub(super) struct Place<'a> {
    key_hash: &'a Digest,
    at: Result<usize, usize>,
    held: &'a mut Held,
    unhashed: &'a mut BTreeSet<u16>,
    size: &'a mut usize,
}

impl Place<'_> {
    /// The numbers of the key's entry, if the key exists.
    pub(super) fn numbers(&self) -> Option<Numbers> {
        self.held.bucket.numbers_at(self.at.ok()?)
    }

    /// Sets the numbers and the digest of the key's entry.
    pub(super) fn set(self, numbers: Numbers, digest: Digest) {
        *self.size += usize::from(self.at.is_err());
        self.held.bucket.set_at(self.at, self.key_hash, numbers, digest);
        self.changed();
    }

    /// Forgets the key.
    pub(super) fn remove(self) {
        if let Ok(at) = self.at {
            self.held.bucket.items.remove(at);
            *self.size -= 1;
            self.changed();
        }
    }

    fn changed(self) {
        self.held.is_unwritten = true;
        self.unhashed.insert(bucket_of(self.key_hash));
    }
}
