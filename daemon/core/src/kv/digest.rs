//! The digest of the state: a Merkle tree over the contents of [`Table::Keys`], and the revision.
//!
//! It covers contents alone: neither index nor term. Stores with the same keys, entries and revision have the same
//! digest, however many empty or refused requests brought them there, so a snapshot can be checked against a
//! digest. The index is bound to it where it is certified, in [`crate::block::Executed`].
//!
//! - An **item** is a key's hash, its entry's numbers, and the digest of the key with its whole entry.
//! - A **bucket** holds the items whose key hashes share the first 16 bits, in the order of the hashes. Its digest
//!   covers the hashes too, so that one bucket proves a key's absence as well as its presence.
//! - The **tree** has four children a node and eight levels over the 65,536 buckets. An empty subtree is
//!   [`Digest::ZERO`]; a node's hash covers its level.
//! - The **state digest** covers the revision and the tree's root.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
};

use super::{
    Error, ReadTables, Table,
    buckets::Bucket,
    entry::{Numbers, Stored},
};
use crate::crypto::{Digest, Domain};

/// Children of a node.
const ARITY: usize = 4;
/// The level of a bucket; its parent has the next, and so on.
const BUCKET_LEVEL: u8 = 0;
/// The level of the root.
const ROOT_LEVEL: u8 = 8;
/// The level of the state digest.
const STATE_LEVEL: u8 = 9;

/// Separates the two uses of [`Domain::Entry`].
const KEY_HASH: u8 = 0;
const ENTRY: u8 = 1;

/// A key's place among the digests.
pub fn key_hash(key: &[u8]) -> Digest {
    Domain::Entry.digest(&[&[KEY_HASH], key])
}

/// The bucket of a key hash: its first 16 bits.
pub fn bucket_of(hash: &Digest) -> u16 {
    let [high, low, ..] = hash.0;
    u16::from_be_bytes([high, low])
}

/// The digest of a key and its entry.
pub fn entry_digest(
    key: &[u8],
    create_revision: u64,
    mod_revision: u64,
    version: u64,
    value: &[u8],
) -> Digest {
    let fields = [create_revision, mod_revision, version, key.len() as u64].map(u64::to_le_bytes);
    Domain::Entry.digest(&[&[ENTRY], fields.as_flattened(), key, value])
}

/// The digest of a bucket's packed items; zero where there are none.
pub(super) fn bucket_digest(packed: &[u8]) -> Digest {
    if packed.is_empty() {
        return Digest::ZERO;
    }
    Domain::State.digest(&[&[BUCKET_LEVEL], packed])
}

/// The digest of a state.
fn state_digest(revision: u64, root: Digest) -> Digest {
    Domain::State.digest(&[&[STATE_LEVEL], &revision.to_le_bytes(), &root.0])
}

/// The digest of the state before the first block: no keys, revision 1.
pub fn empty_state() -> Digest {
    state_digest(1, Digest::ZERO)
}

/// The digest of the contents of [`Table::Keys`] at a revision, from nothing else. Takes some 100 bytes of memory a
/// key.
///
/// # Errors
/// The store's, or a damaged entry.
pub fn recompute<T: ReadTables>(tables: &T, revision: u64) -> Result<Digest, Error<T::Error>> {
    let mut tree = Tree::default();
    let changes: Vec<_> =
        gather(tables)?.iter().map(|(number, bucket)| (*number, bucket_digest(bucket.packed()))).collect();
    tree.update(&changes);
    Ok(tree.state(revision))
}

/// All buckets, made from [`Table::Keys`].
pub(super) fn gather<T: ReadTables>(tables: &T) -> Result<BTreeMap<u16, Bucket>, Error<T::Error>> {
    let mut buckets: BTreeMap<u16, Bucket> = BTreeMap::new();
    let mut damaged = false;
    tables.scan(Table::Keys, Bound::Unbounded, |key, bytes| {
        let Some(stored) = Stored::decode(bytes) else {
            damaged = true;
            return ControlFlow::Break(());
        };
        let hash = key_hash(key);
        let Numbers { create_revision, mod_revision, version } = stored.numbers();
        let digest = entry_digest(key, create_revision, mod_revision, version, stored.value);
        buckets.entry(bucket_of(&hash)).or_default().set(&hash, stored.numbers(), digest);
        ControlFlow::Continue(())
    })?;
    if damaged { Err(Error::Damaged("an entry")) } else { Ok(buckets) }
}

/// The tree above the buckets, in memory; empty subtrees take none.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    root: Option<Box<Node>>,
    digest: Digest,
}

impl Tree {
    /// Sets the digests of buckets, each named once, rising; and updates all nodes above them.
    pub(super) fn update(&mut self, changes: &[(u16, Digest)]) {
        debug_assert!(changes.is_sorted_by(|(a, _), (b, _)| a < b));
        if !changes.is_empty() {
            self.digest = Node::update(&mut self.root, ROOT_LEVEL, changes);
        }
    }

    /// The digest of a bucket.
    pub(super) fn bucket(&self, number: u16) -> Digest {
        let mut place = &self.root;
        let mut digest = Digest::ZERO;
        for level in (BUCKET_LEVEL + 1..=ROOT_LEVEL).rev() {
            let Some(node) = place else { return Digest::ZERO };
            let slot = slot(number, level);
            let (Some(below), Some(child)) = (node.digests.get(slot), node.children.get(slot)) else { break };
            (digest, place) = (*below, child);
        }
        digest
    }

    /// The digest of the state with this tree at a revision.
    pub(super) fn state(&self, revision: u64) -> Digest {
        state_digest(revision, self.digest)
    }
}

/// An inner node: what its children hash to and, above the lowest level, the children themselves.
#[derive(Clone, Debug, Default)]
struct Node {
    digests: [Digest; ARITY],
    children: [Option<Box<Node>>; ARITY],
}

impl Node {
    /// Applies changes below the node in `place`, and returns its digest.
    fn update(place: &mut Option<Box<Node>>, level: u8, changes: &[(u16, Digest)]) -> Digest {
        let node = place.get_or_insert_default();
        for group in changes.chunk_by(|(a, _), (b, _)| slot(*a, level) == slot(*b, level)) {
            let Some((number, bucket)) = group.first() else { continue };
            let slot = slot(*number, level);
            let (Some(digest), Some(child)) = (node.digests.get_mut(slot), node.children.get_mut(slot))
            else {
                continue;
            };
            *digest = if level == BUCKET_LEVEL + 1 { *bucket } else { Node::update(child, level - 1, group) };
        }
        if node.digests.iter().all(|digest| *digest == Digest::ZERO) {
            *place = None;
            return Digest::ZERO;
        }
        node.hash(level)
    }

    fn hash(&self, level: u8) -> Digest {
        Domain::State.digest(&[&[level], self.digests.map(|digest| digest.0).as_flattened()])
    }
}

/// Which child of a node at `level` leads to a bucket.
fn slot(bucket: u16, level: u8) -> usize {
    usize::from(bucket >> (2 * (level - 1))) % ARITY
}
