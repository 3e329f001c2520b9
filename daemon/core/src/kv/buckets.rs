//! The buckets of the state digest, and in them all that a change needs to know of a key.
//!
//! Buckets that have been needed are held in memory, and changed there; those of a million keys fit. Where there are
//! more, some are written to [`Table::Buckets`] and forgotten. One that is not held is read from there, and must have
//! the digest that the tree says. Else they are written once, when the store is closed: a changed key costs a whole
//! bucket there. Until then the table is behind the state. The state machine records how far it has come, and makes
//! the buckets anew from [`Table::Keys`] when it finds the table behind after a start.

use std::collections::BTreeMap;

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
/// Bytes of an item's numbers, little-endian: three of 48 bits, the value's size and whether there is a lease in 32.
const NUMBERS: usize = 3 * 6 + 4;
/// Marks a lease above a value's size, which is below it.
const LEASED: u32 = 1 << 31;
/// What is held before some of it is written and forgotten: so many items and buckets, some 96 MiB, and at most one
/// bucket more. A million keys fit.
const MAX_HELD: usize = if cfg!(test) { 3 << 16 } else { 17 << 16 };
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
        let mut item = [0; ITEM];
        let (hash, rest) = item.split_at_mut(HASH);
        hash.copy_from_slice(suffix(key_hash));
        let (fields, rest) = rest.split_at_mut(NUMBERS);
        fields.copy_from_slice(&pack(numbers));
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
        rest.first_chunk().map(unpack)
    }

    fn digest_at(&self, at: usize) -> Option<Digest> {
        self.items.get(at)?.last_chunk().copied().map(Digest)
    }

    /// Where a key is, or belongs.
    fn find(&self, key_hash: &Digest) -> Result<usize, usize> {
        let wanted = suffix(key_hash);
        self.items.binary_search_by(|item| item.split_at(HASH).0.cmp(wanted))
    }
}

fn pack(numbers: Numbers) -> [u8; NUMBERS] {
    let Numbers { create_revision, mod_revision, version, size, is_leased } = numbers;
    let mut packed = [0; NUMBERS];
    let (revisions, last) = packed.split_at_mut(3 * 6);
    for (field, number) in revisions.chunks_exact_mut(6).zip([create_revision, mod_revision, version]) {
        field.iter_mut().zip(number.to_le_bytes()).for_each(|(to, from)| *to = from);
    }
    let size = if is_leased { size | LEASED } else { size };
    last.copy_from_slice(&size.to_le_bytes());
    packed
}

fn unpack(packed: &[u8; NUMBERS]) -> Numbers {
    let (revisions, last) = packed.split_at(3 * 6);
    let mut numbers = revisions.chunks_exact(6).map(|field| {
        let mut number = [0; 8];
        number.iter_mut().zip(field).for_each(|(to, from)| *to = *from);
        u64::from_le_bytes(number)
    });
    let mut next = || numbers.next().unwrap_or_default();
    let (create_revision, mod_revision, version) = (next(), next(), next());
    let size = u32::from_le_bytes(last.first_chunk().copied().unwrap_or_default());
    Numbers { create_revision, mod_revision, version, size: size & !LEASED, is_leased: size & LEASED != 0 }
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
    /// Whether the tree doesn't have its digest yet.
    is_unhashed: bool,
}

impl Held {
    /// A bucket as it is in the table.
    fn read(bucket: Bucket) -> Self {
        Self { bucket, is_unwritten: false, is_unhashed: false }
    }

    /// A bucket that neither the table nor the tree has.
    fn made(bucket: Bucket) -> Self {
        Self { bucket, is_unwritten: true, is_unhashed: true }
    }

    /// What it counts for in [`MAX_HELD`].
    fn size(&self) -> usize {
        1 + self.bucket.items.len()
    }

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

/// Buckets by number, in pages of 256 with a place for each: to find one costs the same whatever is held.
#[derive(Clone, Debug, Default)]
struct Pages(BTreeMap<u8, Vec<Option<Held>>>);

impl Pages {
    fn place(&mut self, number: u16) -> &mut Option<Held> {
        let [page, place] = number.to_be_bytes();
        let page = self.0.entry(page).or_insert_with(|| std::iter::repeat_n(None, 256).collect());
        page.get_mut(usize::from(place)).expect("a page has 256 places")
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = (u16, &mut Held)> {
        self.0.iter_mut().flat_map(|(page, places)| {
            let numbers = (0..=u8::MAX).map(|place| u16::from_be_bytes([*page, place]));
            numbers.zip(places).filter_map(|(number, held)| Some((number, held.as_mut()?)))
        })
    }
}

/// The buckets in memory and the tree above all.
#[derive(Clone, Debug, Default)]
pub(super) struct Buckets {
    tree: Tree,
    /// Bounded by [`MAX_HELD`], then written and forgotten.
    held: Pages,
    /// How many buckets and items these are.
    size: usize,
    /// The page that is forgotten next.
    next: u8,
    /// Those of them whose digests the tree doesn't have yet, once each.
    unhashed: Vec<u16>,
}

impl Buckets {
    /// The state of a tree, which is the table's.
    pub(super) fn new(tree: Tree) -> Self {
        Self { tree, ..Self::default() }
    }

    /// Makes all buckets from what they are of, whatever the table of buckets holds.
    pub(super) fn rebuild<T: WriteTables>(tables: &mut T) -> Result<Self, Error<T::Error>> {
        let mut gathered = gather(tables)?.buckets;
        let mut buckets = Self::default();
        for number in 0..=u16::MAX {
            match gathered.remove(&number) {
                None => drop(tables.remove(Table::Buckets, &number.to_be_bytes())?),
                Some(bucket) => {
                    let held = Held::made(bucket);
                    buckets.size += held.size();
                    *buckets.held.place(number) = Some(held);
                    buckets.unhashed.push(number);
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
        let held = match self.held.place(number) {
            Some(held) => held,
            place @ None => {
                let held = place.insert(Held::read(load(tables, &self.tree, number)?));
                self.size += held.size();
                held
            }
        };
        let at = held.bucket.find(key_hash);
        Ok(Place { key_hash, at, held, unhashed: &mut self.unhashed, size: &mut self.size })
    }

    /// The root of the tree.
    pub(super) fn root(&mut self) -> Digest {
        self.hash();
        self.tree.root()
    }

    /// Writes a part of the changed buckets to the table, and says whether it was the last one.
    pub(super) fn write_part<T: WriteTables>(&mut self, tables: &mut T) -> Result<bool, Error<T::Error>> {
        let mut items = 0;
        for (number, held) in self.held.iter_mut().filter(|(_, held)| held.is_unwritten) {
            if items >= PART {
                return Ok(false);
            }
            items += held.size();
            held.write(tables, number)?;
        }
        Ok(true)
    }

    /// Forgets buckets while there are too many.
    fn make_room<T: WriteTables>(&mut self, tables: &mut T) -> Result<(), Error<T::Error>> {
        if self.size >= MAX_HELD {
            self.hash();
        }
        while self.size >= MAX_HELD {
            let places = self.held.0.remove(&self.next).unwrap_or_default();
            for (place, held) in (0..=u8::MAX).zip(places) {
                let Some(mut held) = held else { continue };
                self.size -= held.size();
                if held.is_unwritten {
                    held.write(tables, u16::from_be_bytes([self.next, place]))?;
                }
            }
            self.next = self.next.wrapping_add(1);
        }
        Ok(())
    }

    /// Brings the tree up to date.
    fn hash(&mut self) {
        self.unhashed.sort_unstable();
        let mut changes = Vec::with_capacity(self.unhashed.len());
        for number in self.unhashed.drain(..) {
            if let Some(held) = self.held.place(number) {
                held.is_unhashed = false;
                changes.push((number, bucket_digest(held.bucket.packed())));
            }
        }
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
    unhashed: &'a mut Vec<u16>,
    size: &'a mut usize,
}

impl Place<'_> {
    /// The numbers of the key's entry, if the key exists.
    pub(super) fn numbers(&self) -> Option<Numbers> {
        self.held.bucket.numbers_at(self.at.ok()?)
    }

    /// The digest of the key's entry; zero where the key doesn't exist.
    pub(super) fn digest(&self) -> Digest {
        self.at.ok().and_then(|at| self.held.bucket.digest_at(at)).unwrap_or(Digest::ZERO)
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
        if !std::mem::replace(&mut self.held.is_unhashed, true) {
            self.unhashed.push(bucket_of(self.key_hash));
        }
    }
}
