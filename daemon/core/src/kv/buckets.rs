//! The digests of entries, bucket by bucket: changed in memory, written to [`Table::Buckets`] later.
//!
//! A change touches one bucket of 65,536, and random changes touch random ones; so changed buckets are gathered over
//! many blocks, and written in order. Until then the table is behind the state. The state machine records how far it
//! has come, and makes the table anew from [`Table::Keys`] when it finds it behind after a start.

use std::collections::{BTreeMap, BTreeSet, btree_map};

use super::{
    Error, Table, WriteTables,
    digest::{Tree, bucket_digest, bucket_of},
};
use crate::crypto::Digest;

/// Bytes of an item: the key hash without the 16 bits that the bucket's number is, and the entry's digest.
const ITEM: usize = HASH + 32;
/// Bytes of an item's key hash.
const HASH: usize = 30;
/// What is kept before it is written: so many items and buckets, some 2 MiB, and at most one bucket more.
const MAX_UNWRITTEN: usize = 16_384;

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

    /// Sets the digest of a key's entry, and says whether the key is new.
    pub(super) fn set(&mut self, key_hash: &Digest, digest: Digest) -> bool {
        let mut item = [0; ITEM];
        let (hash, rest) = item.split_at_mut(HASH);
        hash.copy_from_slice(suffix(key_hash));
        rest.copy_from_slice(&digest.0);
        match self.find(key_hash) {
            Ok(at) => {
                if let Some(old) = self.items.get_mut(at) {
                    *old = item;
                }
                false
            }
            Err(at) => {
                self.items.insert(at, item);
                true
            }
        }
    }

    /// Forgets a key.
    pub(super) fn remove(&mut self, key_hash: &Digest) {
        if let Ok(at) = self.find(key_hash) {
            self.items.remove(at);
        }
    }

    fn find(&self, key_hash: &Digest) -> Result<usize, usize> {
        let wanted = suffix(key_hash);
        self.items.binary_search_by(|item| item.split_at(HASH).0.cmp(wanted))
    }
}

/// The part of a key hash that a bucket's number doesn't tell.
fn suffix(key_hash: &Digest) -> &[u8] {
    key_hash.0.split_at(2).1
}

/// Changed buckets and the tree above them.
#[derive(Clone, Debug, Default)]
pub(super) struct Buckets {
    tree: Tree,
    /// Buckets that differ from the table; bounded by [`MAX_UNWRITTEN`], then written.
    unwritten: BTreeMap<u16, Bucket>,
    /// How many buckets these are and how many items they held at most.
    size: usize,
    /// Those of them whose digests the tree doesn't have yet.
    unhashed: BTreeSet<u16>,
}

impl Buckets {
    /// The state of a tree.
    pub(super) fn new(tree: Tree) -> Self {
        Self { tree, ..Self::default() }
    }

    /// Sets the digest of a key's entry, or forgets the key.
    pub(super) fn change<T: WriteTables>(
        &mut self,
        tables: &mut T,
        key_hash: &Digest,
        digest: Option<Digest>,
    ) -> Result<(), Error<T::Error>> {
        if self.size >= MAX_UNWRITTEN {
            self.write(tables)?;
        }
        let number = bucket_of(key_hash);
        let bucket = match self.unwritten.entry(number) {
            btree_map::Entry::Occupied(bucket) => bucket.into_mut(),
            btree_map::Entry::Vacant(place) => {
                let bucket = load(tables, number)?;
                self.size += 1 + bucket.items.len();
                place.insert(bucket)
            }
        };
        match digest {
            Some(digest) => self.size += usize::from(bucket.set(key_hash, digest)),
            None => bucket.remove(key_hash),
        }
        self.unhashed.insert(number);
        Ok(())
    }

    /// The digest of the state at a revision.
    pub(super) fn state(&mut self, revision: u64) -> Digest {
        self.hash();
        self.tree.state(revision)
    }

    /// Writes the changed buckets to the table.
    pub(super) fn write<T: WriteTables>(&mut self, tables: &mut T) -> Result<(), Error<T::Error>> {
        self.hash();
        for (number, bucket) in std::mem::take(&mut self.unwritten) {
            if bucket.items.is_empty() {
                tables.remove(Table::Buckets, &number.to_be_bytes())?;
            } else {
                tables.put(Table::Buckets, &number.to_be_bytes(), bucket.packed())?;
            }
        }
        self.size = 0;
        Ok(())
    }

    /// Brings the tree up to date.
    fn hash(&mut self) {
        let changes: Vec<_> = std::mem::take(&mut self.unhashed)
            .into_iter()
            .filter_map(|number| Some((number, bucket_digest(self.unwritten.get(&number)?.packed()))))
            .collect();
        self.tree.update(&changes);
    }
}

/// A bucket from the table.
fn load<T: WriteTables>(tables: &T, number: u16) -> Result<Bucket, Error<T::Error>> {
    match tables.read(Table::Buckets, &number.to_be_bytes(), Bucket::unpack)? {
        None => Ok(Bucket::default()),
        Some(bucket) => bucket.ok_or(Error::Damaged("a bucket of digests")),
    }
}
