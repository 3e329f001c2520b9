//! What clients ask of the state machine, and what it answers.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    range::MAX_SORTED,
    session::{SESSION_WINDOW, SessionRequest},
    transaction::{
        MAX_DELETED, MAX_DELETED_BYTES, MAX_STEPS, MAX_TRANSACTION, MAX_VISITED, Taken, Transaction,
    },
};
use crate::{
    limits::{MAX_KEY, MAX_LEASES, MAX_TTL_MS, MAX_VALUE, MIN_QUOTA, MIN_TTL_MS},
    protocol::Protocol,
};

/// A change, decided by consensus. `B` is how its keys and values are held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation<B = Bytes> {
    /// Stores a value.
    Put {
        /// The key: 1 B to 4 KiB.
        key: B,
        /// The value: up to 1 MiB.
        value: B,
        /// What must hold of the key, or nothing is changed.
        expect: Expect,
        /// The lease that the key hangs on from now on; 0 is none.
        lease: u64,
    },
    /// Deletes a key.
    Delete {
        /// The key.
        key: B,
    },
    /// Deletes every key that begins with a prefix; an empty one is the prefix of all.
    DeletePrefix {
        /// The prefix.
        prefix: B,
    },
    /// Lets the cluster go over to another protocol, from the next term on. No key is changed.
    SetProtocol {
        /// The protocol.
        protocol: Protocol,
    },
    /// Does one of two things, whichever comparisons say.
    Transaction(Transaction<B>),
    /// Forgets what keys were before a revision.
    Compact {
        /// How far.
        until: CompactUntil,
    },
    /// Makes a lease.
    GrantLease {
        /// Its id; 0 lets the cluster choose one.
        lease: u64,
        /// Its time to live, in milliseconds: [`MIN_TTL_MS`] to [`MAX_TTL_MS`].
        ttl_ms: u64,
    },
    /// Keeps a lease for its time to live from now on.
    KeepLease {
        /// Its id.
        lease: u64,
    },
    /// Ends a lease, and deletes the keys that hang on it.
    RevokeLease {
        /// Its id.
        lease: u64,
    },
    /// Sets how many bytes of keys and values the store may hold, with the history that is not compacted.
    SetQuota {
        /// How many: at least [`MIN_QUOTA`].
        bytes: u64,
    },
    /// Does nothing: with any block time passes, and leases end.
    Tick,
    /// Does what is asked in a session, once.
    InSession(SessionRequest<B>),
}

/// How far the history is forgotten. What keys were as of that revision can still be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompactUntil {
    /// This revision.
    Revision(u64),
    /// The last revision that is so old when the request is executed, by the time of its block, in milliseconds.
    Age(u64),
}

/// What must hold of a key for an operation to change it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// Nothing.
    #[default]
    Anything,
    /// The key does not exist.
    Absent,
    /// The key was last changed at this revision.
    Revision(u64),
}

impl<B> Operation<B> {
    /// Stores a value, whatever the key is.
    pub fn put(key: B, value: B) -> Self {
        Self::Put { key, value, expect: Expect::Anything, lease: 0 }
    }
}

impl<B: AsRef<[u8]>> Operation<B> {
    /// Checks the sizes, before anything is sent and again before it is executed.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn check(&self) -> Result<(), Refusal> {
        match self {
            Self::Put { key, value, .. } => {
                check_key(key.as_ref())?;
                check_value(value.as_ref())
            }
            Self::Delete { key } => check_key(key.as_ref()),
            Self::DeletePrefix { prefix } => {
                let bytes = prefix.as_ref().len();
                if bytes > MAX_KEY { Err(Refusal::KeyLength { bytes: bytes as u64 }) } else { Ok(()) }
            }
            Self::SetProtocol { protocol } => {
                let is_known = Protocol::switchable().any(|known| known == *protocol);
                if is_known { Ok(()) } else { Err(Refusal::Protocol) }
            }
            Self::Transaction(transaction) => transaction.check(),
            Self::GrantLease { ttl_ms, .. } if !(MIN_TTL_MS..=MAX_TTL_MS).contains(ttl_ms) => {
                Err(Refusal::TimeToLive { ms: *ttl_ms })
            }
            Self::GrantLease { lease, .. } if *lease >= 1 << 63 => Err(Refusal::LeaseId { lease: *lease }),
            Self::SetQuota { bytes } if *bytes < MIN_QUOTA => Err(Refusal::Quota { bytes: *bytes }),
            Self::Compact { .. }
            | Self::SetQuota { .. }
            | Self::GrantLease { .. }
            | Self::KeepLease { .. }
            | Self::RevokeLease { .. }
            | Self::Tick => Ok(()),
            Self::InSession(request) => request.open().map(|_| ()),
        }
    }
}

impl Operation {
    /// The operation as a request of a batch.
    pub fn encode(&self) -> Bytes {
        postcard::to_stdvec(self).expect("encoding into a growing buffer succeeds").into()
    }

    /// The operation in a request.
    ///
    /// # Errors
    /// The request is not exactly one operation.
    pub fn decode(request: &[u8]) -> Result<Self, Refusal> {
        decode(request)
    }
}

impl<'a> Operation<&'a [u8]> {
    /// The operation in a request, without copying: what [`Operation::decode`] gives.
    ///
    /// # Errors
    /// The request is not exactly one operation.
    pub(super) fn decode_in(request: &'a [u8]) -> Result<Self, Refusal> {
        decode(request)
    }
}

fn decode<'a, T: Deserialize<'a>>(request: &'a [u8]) -> Result<T, Refusal> {
    match postcard::take_from_bytes(request) {
        Ok((operation, [])) => Ok(operation),
        _ => Err(Refusal::Malformed),
    }
}

pub(super) fn check_value(value: &[u8]) -> Result<(), Refusal> {
    let bytes = value.len();
    if bytes > MAX_VALUE { Err(Refusal::ValueTooLong { bytes: bytes as u64 }) } else { Ok(()) }
}

pub(super) fn check_key(key: &[u8]) -> Result<(), Refusal> {
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(Refusal::KeyLength { bytes: key.len() as u64 });
    }
    Ok(())
}

/// What came of an operation. Part of no digest by itself: it follows from the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The value is stored.
    Put {
        /// The store's revision now, and the key's.
        revision: u64,
    },
    /// Keys are deleted.
    Deleted {
        /// The store's revision now.
        revision: u64,
        /// How many; where it is 0 the revision is what it was.
        keys: u64,
    },
    /// What was expected of the key did not hold; nothing was changed.
    Mismatch {
        /// The store's revision.
        revision: u64,
        /// The revision of the key's last change; 0 where it does not exist.
        found: u64,
    },
    /// The operation can't be executed by anybody; nothing was changed.
    Refused(Refusal),
    /// The cluster goes over to a protocol.
    ProtocolSet {
        /// The store's revision, which is what it was.
        revision: u64,
        /// The protocol.
        protocol: Protocol,
    },
    /// What a transaction did.
    Transaction {
        /// The store's revision now: where nothing was written it is what it was.
        revision: u64,
        /// What came of its first part.
        taken: Taken,
    },
    /// The history is forgotten.
    Compacted {
        /// The store's revision, which is what it was.
        revision: u64,
        /// Up to this revision.
        compacted: u64,
    },
    /// There is a new lease.
    LeaseGranted {
        /// The store's revision, which is what it was.
        revision: u64,
        /// The lease's id.
        lease: u64,
        /// Its time to live, in milliseconds.
        ttl_ms: u64,
    },
    /// The lease is kept.
    LeaseKept {
        /// The store's revision, which is what it was.
        revision: u64,
        /// Its time to live from now on, in milliseconds.
        ttl_ms: u64,
    },
    /// The lease is no more.
    LeaseRevoked {
        /// The store's revision now.
        revision: u64,
        /// How many keys were deleted with it; where it is 0 the revision is what it was.
        keys: u64,
    },
    /// The store may hold so much.
    QuotaSet {
        /// The store's revision, which is what it was.
        revision: u64,
        /// How many bytes it holds.
        used: u64,
        /// How many it may hold.
        quota: u64,
    },
    /// A block was made.
    Ticked {
        /// The store's revision.
        revision: u64,
    },
}

/// Why an operation can't be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The key's length is out of bounds.
    #[error("a key has 1 to {MAX_KEY} bytes, this one has {bytes}")]
    KeyLength {
        /// Its length.
        bytes: u64,
    },
    /// The value is too long.
    #[error("a value has at most {MAX_VALUE} bytes, this one has {bytes}")]
    ValueTooLong {
        /// Its length.
        bytes: u64,
    },
    /// The request is not an operation.
    #[error("the request is not an operation that this version knows")]
    Malformed,
    /// No running cluster goes over to this protocol.
    #[error(
        "a running cluster goes over from one of bft-raft, pbft and ccro to another; raft is for crashes alone"
    )]
    Protocol,
    /// The transaction is too long.
    #[error(
        "a transaction has at most {MAX_STEPS} comparisons and {MAX_STEPS} steps, those of nested ones included; this one has \
         {steps}"
    )]
    TooManySteps {
        /// How many of one of the two.
        steps: u64,
    },
    /// The transaction carries too much.
    #[error("a transaction carries at most {MAX_TRANSACTION} bytes of keys and values, this one has {bytes}")]
    TransactionTooLarge {
        /// How many.
        bytes: u64,
    },
    /// Two steps that may be taken together write one key.
    #[error("a transaction writes each key once: this one puts a key twice, or puts one that it deletes")]
    WrittenTwice,
    /// Its comparisons would read too many keys.
    #[error(
        "a transaction looks at no more than {} keys, and all that a member brings into a block at four times as many: \
         compare fewer keys, or try again when there are fewer others",
        MAX_VISITED / 4 / 4096
    )]
    ReadsTooMuch,
    /// It would delete too many keys.
    #[error(
        "the requests that a member brings into a block delete no more than {MAX_DELETED} keys of ranges, or {} MiB of them: delete \
         them in parts",
        MAX_DELETED_BYTES >> 20
    )]
    DeletesTooMuch,
    /// As many keys hang on the lease as may.
    #[error("no more keys can hang on the lease {lease:x}: {MAX_DELETED}, or {} MiB of them, may", MAX_DELETED_BYTES >> 20)]
    LeaseFull {
        /// Its id.
        lease: u64,
    },
    /// No lease can have this id.
    #[error("the id of a lease is below 2^63, this one is {lease:x}")]
    LeaseId {
        /// The id.
        lease: u64,
    },
    /// What was asked for is forgotten.
    #[error("revision {compacted} is the oldest that can be read: what was before it is compacted")]
    Compacted {
        /// The compacted revision.
        compacted: u64,
    },
    /// What was asked for is yet to come.
    #[error("the store is at revision {revision}: what was asked for is yet to come")]
    FutureRevision {
        /// The store's revision.
        revision: u64,
    },
    /// Too many keys would have to be sorted.
    #[error("at most {MAX_SORTED} keys, and 64 MiB, are sorted: ask for fewer, or for the order of keys")]
    SortsTooMuch,
    /// There is no room.
    #[error(
        "there is no room for it: the store holds {used} bytes of the {quota} that it may, and what is put counts twice, as it is and in \
         the history; delete keys and compact, or raise the quota"
    )]
    NoSpace {
        /// How many bytes it holds.
        used: u64,
        /// How many it may hold.
        quota: u64,
    },
    /// The quota is too small.
    #[error("a quota has at least {MIN_QUOTA} bytes, this one has {bytes}")]
    Quota {
        /// What was asked for.
        bytes: u64,
    },
    /// The time to live is out of bounds.
    #[error("a lease lives for {} to {} seconds, not for {ms} ms", MIN_TTL_MS / 1000, MAX_TTL_MS / 1000)]
    TimeToLive {
        /// What was asked for.
        ms: u64,
    },
    /// The id is taken.
    #[error("there is a lease {lease:x} already")]
    LeaseExists {
        /// The id.
        lease: u64,
    },
    /// There are as many leases as there may be.
    #[error("there are {MAX_LEASES} leases, and no more may be: revoke some, or wait until some end")]
    TooManyLeases,
    /// There is no such lease, or its time is up.
    #[error("there is no lease {lease:x}: it was revoked, its time was up, or it never was")]
    NoSuchLease {
        /// Its id.
        lease: u64,
    },
    /// The session is not known, and will not be.
    #[error(
        "the session has ended: it was not used for an hour, or too many others were used later. What was sent in it before may or may          not have been done; what is sent now is not"
    )]
    SessionEnded,
    /// The session says that it was opened at a time that is yet to come.
    #[error(
        "the session was opened at a time that is yet to come: for the cluster it is {time_ms} ms since 1970"
    )]
    SessionAhead {
        /// The time of the block.
        time_ms: u64,
    },
    /// The client has said that it needs no answer to this request any more.
    #[error(
        "the session needs no answers below number {answered} any more: what is sent below that is not done"
    )]
    AnsweredBefore {
        /// The lowest number that is open.
        answered: u64,
    },
    /// Too many requests of the session are without an answer that its client is known to have.
    #[error(
        "a session has at most {SESSION_WINDOW} changes under way, and the answer to its number {answered} is not known to have come"
    )]
    SessionWindow {
        /// The lowest number that is open.
        answered: u64,
    },
    /// Another operation was executed under the number.
    #[error(
        "under this number of the session another change was made; this one was not: somebody else uses the session"
    )]
    NumberTaken,
    /// The operation can't be in a session.
    #[error("protocol and quota are not set in a session: they can be set again, nothing comes of that")]
    NotInSession,
}

/// A key's value and history in numbers, as in etcd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The value.
    pub value: Bytes,
    /// The revision at which the key was created.
    pub create_revision: u64,
    /// The revision of its last change.
    pub mod_revision: u64,
    /// How often it was put since it was created, starting at 1.
    pub version: u64,
    /// The lease that the key hangs on; 0 is none.
    pub lease: u64,
}
