//! Who the members are, and how many of them make a quorum.
//!
//! # Quorums
//!
//! | faults    | f         | q           | two quorums share        |
//! |-----------|-----------|-------------|--------------------------|
//! | Byzantine | ⌊(n−1)/3⌋ | ⌊(n+f)/2⌋+1 | at least f+1 members     |
//! | Crash     | ⌊(n−1)/2⌋ | ⌊n/2⌋+1     | at least 1 member        |
//!
//! and q ≤ n−f, so that the correct members alone are a quorum. (Castro & Liskov, OSDI'99, §3, for n = 3f+1;
//! the general n is the smallest q with 2q − n > f.)

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    block::BlockRef,
    crypto::{ClusterId, Domain, PublicKey, Signer, Unsigned},
    ids::{Epoch, Index, MemberId, Term},
    protocol::Protocol,
};

/// What a member outside the correct ones may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    /// Anything at all.
    Byzantine,
    /// Stop, and start again.
    Crash,
}

impl Faults {
    /// How many of `n` members may be faulty.
    pub const fn tolerated(self, n: usize) -> usize {
        let others = n.saturating_sub(1);
        match self {
            Self::Byzantine => others / 3,
            Self::Crash => others / 2,
        }
    }

    /// How many of `n` members are a quorum.
    pub const fn quorum(self, n: usize) -> usize {
        match self {
            Self::Byzantine => (n + self.tolerated(n)) / 2 + 1,
            Self::Crash => n / 2 + 1,
        }
    }
}

/// One member as the genesis names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its number.
    pub id: MemberId,
    /// Its name for people.
    pub name: String,
    /// The key that it signs with and is let in with.
    pub key: PublicKey,
    /// Where its peers reach it, over UDP.
    pub address: SocketAddr,
}

/// What the founding operators agreed on. Its digest is the cluster's id, and its keys are all that an
/// outside auditor needs to trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// The cluster's name for people.
    pub name: String,
    /// The protocol that it starts with.
    pub protocol: Protocol,
    /// When it was made, in milliseconds since the Unix epoch. Also tells two clusters of one name apart.
    pub created_ms: u64,
    /// The founding members, in the order of their ids.
    pub members: Vec<Member>,
}

impl Genesis {
    /// The cluster's id.
    pub fn cluster_id(&self) -> ClusterId {
        let encoded = postcard::to_stdvec(self).expect("encoding into a growing buffer succeeds");
        let mut hasher = Domain::Genesis.hasher();
        hasher.update(&encoded);
        ClusterId(hasher.finish())
    }

    /// The members of epoch 0.
    ///
    /// # Errors
    /// The member list can't form a cluster: see [`InvalidMembership`].
    pub fn membership(&self) -> Result<Membership, InvalidMembership> {
        Membership::new(self.cluster_id(), Epoch(0), self.protocol, self.members.clone(), self.root())
    }

    /// The chain's first block: nothing is in it, and everybody knows it.
    fn root(&self) -> BlockRef {
        BlockRef { term: Term(0), index: Index(0), digest: self.cluster_id().0 }
    }
}

/// Why a list of members can't form a cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMembership {
    /// No member, or more than ids exist.
    #[error("a cluster has 1 to 255 members, not {0}")]
    Size(usize),
    /// Ids must rise from one member to the next, and start above 0.
    #[error("member ids must be above 0 and rise from one member to the next; {0} does not")]
    Order(MemberId),
    /// Two members with one key would vote twice.
    #[error("member {0} has the key of another member")]
    SharedKey(MemberId),
    /// A key whose signatures anybody can make.
    #[error("the key of member {0} is not a usable ed25519 key")]
    WeakKey(MemberId),
}

/// The members of one epoch: their keys, their order, and what a quorum of them is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    cluster: ClusterId,
    epoch: Epoch,
    protocol: Protocol,
    members: Vec<Member>,
    root: BlockRef,
}

impl Membership {
    /// A checked list of members.
    ///
    /// # Errors
    /// See [`InvalidMembership`].
    pub fn new(
        cluster: ClusterId,
        epoch: Epoch,
        protocol: Protocol,
        members: Vec<Member>,
        root: BlockRef,
    ) -> Result<Self, InvalidMembership> {
        if members.is_empty() || members.len() > usize::from(u8::MAX) {
            return Err(InvalidMembership::Size(members.len()));
        }
        let mut previous = MemberId(0);
        let mut keys = BTreeSet::new();
        for member in &members {
            if member.id <= previous {
                return Err(InvalidMembership::Order(member.id));
            }
            if !member.key.is_sound() {
                return Err(InvalidMembership::WeakKey(member.id));
            }
            if !keys.insert(member.key) {
                return Err(InvalidMembership::SharedKey(member.id));
            }
            previous = member.id;
        }
        Ok(Self { cluster, epoch, protocol, members, root })
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The protocol that the members run.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// What a member signs with: its key, or nothing where the protocol signs nothing.
    pub fn signer(&self, key: Arc<dyn Signer>) -> Arc<dyn Signer> {
        if self.protocol.row().signs { key } else { Arc::new(Unsigned(key.public_key())) }
    }

    /// The block that the epoch starts at. It ranks below every certificate of the epoch.
    pub fn root(&self) -> BlockRef {
        self.root
    }

    /// The members in the order of their ids.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The members' ids, rising.
    pub fn ids(&self) -> impl Iterator<Item = MemberId> + '_ {
        self.members.iter().map(|member| member.id)
    }

    /// The number of members.
    pub fn n(&self) -> usize {
        self.members.len()
    }

    /// How many members may be faulty.
    pub fn f(&self) -> usize {
        self.protocol.row().faults.tolerated(self.n())
    }

    /// How many members are a quorum.
    pub fn quorum(&self) -> usize {
        self.protocol.row().faults.quorum(self.n())
    }

    /// The block that so many of some members name that all correct ones of them may. Of a quorum's names there is at most one.
    pub fn named_by_correct(&self, named: &[Option<BlockRef>]) -> Option<BlockRef> {
        let count = |block| named.iter().filter(|name| **name == Some(block)).count();
        named.iter().flatten().copied().find(|block| count(*block) + self.f() >= named.len())
    }

    /// The member with this id.
    pub fn get(&self, id: MemberId) -> Option<&Member> {
        let at = self.members.binary_search_by_key(&id, |member| member.id).ok()?;
        self.members.get(at)
    }

    /// The member with this key.
    pub fn by_key(&self, key: &PublicKey) -> Option<&Member> {
        self.members.iter().find(|member| member.key == *key)
    }

    /// The leader of a term: members take turns, so nobody can rush elections.
    pub fn leader(&self, term: Term) -> MemberId {
        let at = usize::try_from(term.0 % self.n() as u64).expect("a remainder below 256 fits");
        self.members.get(at).expect("a remainder is a valid position").id
    }

    /// Whether `signers` are a quorum: at least q, each a member, none twice (they rise). The only place in
    /// the project where a quorum is counted.
    pub fn is_quorum(&self, signers: impl Iterator<Item = MemberId>) -> bool {
        let mut count = 0;
        let mut previous = None;
        for signer in signers {
            if previous.is_some_and(|previous| previous >= signer) || self.get(signer).is_none() {
                return false;
            }
            previous = Some(signer);
            count += 1;
        }
        count >= self.quorum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn quorums_intersect_in_a_correct_member_and_survive_f_faults() {
        for n in 1..=255 {
            let (f, q) = (Faults::Byzantine.tolerated(n), Faults::Byzantine.quorum(n));
            assert!(n > 3 * f, "n = {n}");
            assert!(n <= 3 * f + 3, "f is the largest possible, n = {n}");
            assert!(2 * q > n + f, "two quorums share more than f members, n = {n}");
            assert!(2 * (q - 1) <= n + f, "q is the smallest possible, n = {n}");
            assert!(q + f <= n, "the correct members are a quorum, n = {n}");

            let (f, q) = (Faults::Crash.tolerated(n), Faults::Crash.quorum(n));
            assert!(2 * q > n && 2 * (q - 1) <= n && q + f <= n, "n = {n}");
        }
    }

    fn members(ids: &[u8]) -> Vec<Member> {
        let address = "127.0.0.1:1".parse().unwrap();
        ids.iter()
            .map(|&id| Member {
                id: MemberId(id),
                name: format!("node{id}"),
                key: PublicKey([id + 10; 32]),
                address,
            })
            .collect()
    }

    fn membership(members: Vec<Member>) -> Result<Membership, InvalidMembership> {
        Genesis { name: "test".into(), protocol: Protocol::BftRaft, created_ms: 0, members }.membership()
    }

    #[test]
    fn a_quorum_is_distinct_members() {
        let members = membership(members(&[1, 2, 3, 4])).unwrap();
        let is_quorum = |ids: &[u8]| members.is_quorum(ids.iter().copied().map(MemberId));
        assert!(is_quorum(&[1, 2, 3]));
        assert!(is_quorum(&[1, 2, 3, 4]));
        assert!(!is_quorum(&[1, 2]), "one too few");
        assert!(!is_quorum(&[1, 2, 2]), "a duplicate");
        assert!(!is_quorum(&[1, 2, 5]), "an outsider");
        assert!(!is_quorum(&[1, 2, 3, 5]), "a quorum and an outsider");
        assert!(!is_quorum(&[3, 2, 1]), "not rising, so one signature list has one encoding");
    }

    #[test]
    fn leaders_take_turns() {
        let members = membership(members(&[2, 3, 7])).unwrap();
        let leaders: Vec<_> = (0..4).map(|term| members.leader(Term(term)).0).collect();
        assert_eq!(leaders, [2, 3, 7, 2]);
    }

    #[test]
    fn bad_member_lists_are_refused() {
        assert_eq!(membership(vec![]), Err(InvalidMembership::Size(0)));
        assert_eq!(membership(members(&[2, 1])), Err(InvalidMembership::Order(MemberId(1))));
        assert_eq!(membership(members(&[1, 1])), Err(InvalidMembership::Order(MemberId(1))));
        assert_eq!(membership(members(&[0])), Err(InvalidMembership::Order(MemberId(0))));
        let mut shared = members(&[1, 2]);
        shared[1].key = shared[0].key;
        assert_eq!(membership(shared), Err(InvalidMembership::SharedKey(MemberId(2))));
        let mut weak = members(&[1]);
        weak[0].key = PublicKey([0; 32]);
        assert_eq!(membership(weak), Err(InvalidMembership::WeakKey(MemberId(1))));
    }
}
