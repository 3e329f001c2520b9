//! The digest of the state: a Merkle tree over the contents of [`Table::Keys`], [`Table::Leases`] and [`Table::Sessions`], the ends of
//! the history's chain, and the revision.
//!
//! It covers contents alone: neither index nor term. Stores with the same keys, entries, history, leases, sessions and revision have the
//! same digest, so a snapshot can be checked against a digest. (While there are leases, each block moves their clock.) The index is
//! bound to it where it is certified, in [`crate::block::Executed`].
//!
//! - An **item** is a key's hash, its entry's numbers, and the digest of the key with its whole entry; or the same of a row of
//!   [`Table::Leases`] or [`Table::Sessions`], with zeros for numbers.
//! - A **bucket** holds the items whose key hashes share the first 16 bits, in the order of the hashes. Its digest
//!   covers the hashes too, so that one bucket proves a key's absence as well as its presence.
//! - The **tree** has four children a node and eight levels over the 65,536 buckets. An empty subtree is
//!   [`Digest::ZERO`]; a node's hash covers its level.
//! - The **state digest** covers the revision, the compacted one, the lease clock, the sizes and the quota, both ends of the
//!   history's chain, and the tree's root.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
};

use super::{
    Error, Head, ReadTables, Table,
    buckets::Bucket,
    entry::{Numbers, Stored},
    history::{PER_EVENT, Standing, recomputed},
    lease::{clock_ms, each_digest},
    session::gather_sessions,
};
use crate::{
    crypto::{Digest, Domain},
    limits::DEFAULT_QUOTA,
};

/// Children of a node.
const ARITY: usize = 4;
/// The level of a bucket; its parent has the next, and so on.
const BUCKET_LEVEL: u8 = 0;
/// How many levels above its leaves a half of the tree has.
const HALF: u8 = 4;
/// The level of the leaves of the upper half, which are the roots of the lower ones.
const MIDDLE_LEVEL: u8 = BUCKET_LEVEL + HALF;
/// The level of the state digest: above the tree's root.
const STATE_LEVEL: u8 = MIDDLE_LEVEL + HALF + 1;
/// How many inner nodes a half of the tree has.
const FIRST_LEAF: usize = 1 + 4 + 16 + 64;

/// Separates the uses of [`Domain::Entry`]; tombstones have another number.
const KEY_HASH: u8 = 0;
const ENTRY: u8 = 1;
const SESSION: u8 = 4;
const SESSION_ROW: u8 = 5;
const OPERATION: u8 = 6;

/// A key's place among the digests.
pub fn key_hash(key: &[u8]) -> Digest {
    Domain::Entry.digest(&[&[KEY_HASH], key])
}

/// The bucket of a key hash: its first 16 bits.
pub fn bucket_of(hash: &Digest) -> u16 {
    let [high, low, ..] = hash.0;
    u16::from_be_bytes([high, low])
}

/// The digest of a key and its entry, whose numbers are its create revision, mod revision, version and lease.
pub fn entry_digest(key: &[u8], numbers: [u64; 4], value: &[u8]) -> Digest {
    let [create_revision, mod_revision, version, lease] = numbers;
    let fields = [create_revision, mod_revision, version, lease, key.len() as u64].map(u64::to_le_bytes);
    Domain::Entry.digest(&[&[ENTRY], fields.as_flattened(), key, value])
}

/// The place of a row of [`Table::Sessions`] among the digests, and the row's digest.
pub(super) fn session_item(key: &[u8], row: &[u8]) -> (Digest, Digest) {
    let size = (key.len() as u64).to_le_bytes();
    (Domain::Entry.digest(&[&[SESSION], key]), Domain::Entry.digest(&[&[SESSION_ROW], &size, key, row]))
}

/// The digest of an operation in a session.
pub(super) fn operation_digest(operation: &[u8]) -> Digest {
    Domain::Entry.digest(&[&[OPERATION], operation])
}

/// The digest of a bucket's packed items; zero where there are none.
pub(super) fn bucket_digest(packed: &[u8]) -> Digest {
    if packed.is_empty() {
        return Digest::ZERO;
    }
    Domain::State.digest(&[&[BUCKET_LEVEL], packed])
}

/// The digest of a state.
pub(super) fn state_digest(
    [revision, compacted, clock_ms, quota]: [u64; 4],
    standing: &Standing,
    root: Digest,
) -> Digest {
    let Standing { end, base, live, .. } = standing;
    let numbers = [revision, compacted, clock_ms, quota, *live, end.bytes, base.bytes].map(u64::to_le_bytes);
    Domain::State.digest(&[&[STATE_LEVEL], numbers.as_flattened(), &end.digest.0, &base.digest.0, &root.0])
}

/// The digest of the state before the first block: no keys, revision 1.
pub fn empty_state() -> Digest {
    state_digest([1, 0, 0, DEFAULT_QUOTA], &Standing::default(), Digest::ZERO)
}

/// The digest of a state, from the contents of its tables and the revisions that `head` tells. Takes some 200 bytes of memory a
/// key.
///
/// # Errors
/// The store's, or damaged contents: an entry, or a history whose rows don't follow each other.
pub fn recompute<T: ReadTables>(tables: &T, head: &Head) -> Result<Digest, Error<T::Error>> {
    let mut tree = Tree::default();
    let Gathered { buckets, live } = gather(tables)?;
    let changes: Vec<_> =
        buckets.iter().map(|(number, bucket)| (*number, bucket_digest(bucket.packed()))).collect();
    tree.update(&changes);
    let standing = Standing { live, ..recomputed(tables, head.compacted)? };
    let numbers = [head.revision, head.compacted, clock_ms(tables)?, head.quota];
    Ok(state_digest(numbers, &standing, tree.root()))
}

/// What a key with its value counts for, in bytes.
pub(super) fn size_of(key: &[u8], value: usize) -> u64 {
    (PER_EVENT + key.len() + value) as u64
}

/// What the tables hold, for the digest.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) buckets: BTreeMap<u16, Bucket>,
    /// The bytes of the keys that there are and of their values.
    pub(super) live: u64,
}

/// All buckets, made from [`Table::Keys`], [`Table::Leases`] and [`Table::Sessions`].
pub(super) fn gather<T: ReadTables>(tables: &T) -> Result<Gathered, Error<T::Error>> {
    let Gathered { mut buckets, mut live } = Gathered::default();
    let mut damaged = false;
    tables.scan(Table::Keys, Bound::Unbounded, |key, bytes| {
        let Some(stored) = Stored::decode(bytes) else {
            damaged = true;
            return ControlFlow::Break(());
        };
        live += size_of(key, stored.value.len());
        let hash = key_hash(key);
        buckets.entry(bucket_of(&hash)).or_default().set(&hash, stored.numbers(), stored.digest(key));
        ControlFlow::Continue(())
    })?;
    if damaged {
        return Err(Error::Damaged("an entry"));
    }
    each_digest(tables, |hash, digest| {
        buckets.entry(bucket_of(&hash)).or_default().set(&hash, Numbers::NONE, digest);
    })?;
    gather_sessions(tables, |hash, numbers, digest| {
        buckets.entry(bucket_of(hash)).or_default().set(hash, numbers, digest);
    })?;
    Ok(Gathered { buckets, live })
}

/// The tree above the buckets, in memory: its upper half, and below each leaf of that a lower half, where there are
/// keys. A half is one piece of memory, because a path through scattered nodes costs more than its hashing.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    upper: Half,
    lower: BTreeMap<u8, Half>,
}

impl Tree {
    /// Sets the digests of buckets, each named once, rising; and updates all nodes above them.
    pub(super) fn update(&mut self, changes: &[(u16, Digest)]) {
        debug_assert!(changes.is_sorted_by(|(a, _), (b, _)| a < b));
        let mut roots = Vec::new();
        for group in changes.chunk_by(|(a, _), (b, _)| upper_leaf(*a) == upper_leaf(*b)) {
            let Some((first, _)) = group.first() else { continue };
            let half = self.lower.entry(upper_leaf(*first)).or_default();
            half.update(BUCKET_LEVEL, group.iter().map(|(bucket, digest)| (lower_leaf(*bucket), *digest)));
            let root = half.root();
            if root == Digest::ZERO {
                self.lower.remove(&upper_leaf(*first));
            }
            roots.push((upper_leaf(*first), root));
        }
        self.upper.update(MIDDLE_LEVEL, roots.into_iter());
    }

    /// The digest of a bucket.
    pub(super) fn bucket(&self, number: u16) -> Digest {
        let half = self.lower.get(&upper_leaf(number));
        half.map_or(Digest::ZERO, |half| half.leaf(lower_leaf(number)))
    }

    /// The digest of its root.
    pub(super) fn root(&self) -> Digest {
        self.upper.root()
    }
}

/// The leaf of the upper half that a bucket is below.
fn upper_leaf(bucket: u16) -> u8 {
    let [high, _] = bucket.to_be_bytes();
    high
}

/// A bucket's leaf in its lower half.
fn lower_leaf(bucket: u16) -> u8 {
    let [_, low] = bucket.to_be_bytes();
    low
}

/// Four levels above 256 leaves.
#[derive(Clone, Debug)]
struct Half {
    /// Digests as in a heap: the root first, and the children of node n from 4n + 1.
    nodes: Vec<Digest>,
}

impl Default for Half {
    fn default() -> Self {
        Self { nodes: vec![Digest::ZERO; FIRST_LEAF + 256] }
    }
}

impl Half {
    fn root(&self) -> Digest {
        self.nodes.first().copied().unwrap_or(Digest::ZERO)
    }

    fn leaf(&self, leaf: u8) -> Digest {
        self.nodes.get(FIRST_LEAF + usize::from(leaf)).copied().unwrap_or(Digest::ZERO)
    }

    /// Sets leaves, which are of a `level`, rising; and updates all nodes above them.
    fn update(&mut self, level: u8, leaves: impl Iterator<Item = (u8, Digest)>) {
        let mut changed = Vec::new();
        for (leaf, digest) in leaves {
            changed.push(FIRST_LEAF + usize::from(leaf));
            self.set(FIRST_LEAF + usize::from(leaf), digest);
        }
        for level in level + 1..=level + HALF {
            changed.iter_mut().for_each(|node| *node = (*node - 1) / ARITY);
            changed.dedup();
            for node in &changed {
                self.set(*node, self.hash(*node, level));
            }
        }
    }

    fn set(&mut self, node: usize, digest: Digest) {
        if let Some(place) = self.nodes.get_mut(node) {
            *place = digest;
        }
    }

    /// What the children of a node hash to.
    fn hash(&self, node: usize, level: u8) -> Digest {
        let first = ARITY * node + 1;
        match self.nodes.get(first..first + ARITY) {
            Some([a, b, c, d]) if [a, b, c, d] != [&Digest::ZERO; ARITY] => {
                Domain::State.digest(&[&[level], &a.0, &b.0, &c.0, &d.0])
            }
            _ => Digest::ZERO,
        }
    }
}
