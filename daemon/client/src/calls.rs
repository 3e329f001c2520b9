//! The typed calls that a [`Client`] and a [`Session`] have in common. Each is one change, made by `execute`, or one question, asked by
//! `query`: what these do about a lost answer is all in which the two differ.

use std::time::Duration;

use bftd_core::kv::{
    Answer, Changes, CompactUntil, Entry, Expect, LeaseStatus, Listing, Operation, Outcome, Query, Range,
    Span, Taken, Transaction,
};
use bytes::Bytes;

use crate::{
    client::{Changed, Client, Error, another_question},
    protocol::{At, Consistency},
    session::Session,
};

macro_rules! typed_calls {
    ($caller:ty) => {
        impl $caller {
            /// Stores a value. Whether `expect` held is in the outcome.
            ///
            /// # Errors
            /// See [`Error`].
            pub async fn put(&self, key: Bytes, value: Bytes, expect: Expect) -> Result<Changed, Error> {
                self.execute(Operation::Put { key, value, expect, lease: 0 }).await
            }

            /// Deletes a key.
            ///
            /// # Errors
            /// See [`Error`].
            pub async fn delete(&self, key: Bytes) -> Result<Changed, Error> {
                self.execute(Operation::Delete { key }).await
            }

            /// Deletes every key that begins with `prefix`.
            ///
            /// # Errors
            /// See [`Error`].
            pub async fn delete_prefix(&self, prefix: Bytes) -> Result<Changed, Error> {
                self.execute(Operation::DeletePrefix { prefix }).await
            }

            /// Does one of two things, whichever comparisons say. What came of it, and whether they held, is in the outcome.
            ///
            /// # Errors
            /// See [`Error`].
            pub async fn transact(&self, transaction: Transaction) -> Result<(Taken, Changed), Error> {
                let changed = self.execute(Operation::Transaction(transaction)).await?;
                match &changed.outcome {
                    Outcome::Transaction { taken, .. } => Ok((taken.clone(), changed)),
                    _ => Err(another_question()),
                }
            }

            /// Looks a key up.
            ///
            /// # Errors
            /// See [`Error`].
            pub async fn get(
                &self,
                key: Bytes,
                consistency: Consistency,
            ) -> Result<(Option<Entry>, At), Error> {
                match self.query(Query::Get { key }, consistency).await? {
                    (Answer::Entry(entry), at) => Ok((entry, at)),
                    _ => Err(another_question()),
                }
            }

            /// Reads keys: now or as of a revision, filtered, sorted, limited.
            ///
            /// # Errors
            /// See [`Error`]; [`Refusal::Compacted`](crate::Refusal::Compacted) and [`Refusal::FutureRevision`](crate::Refusal::FutureRevision) where the revision can't be read.
            pub async fn range(
                &self,
                range: Range,
                consistency: Consistency,
            ) -> Result<(Listing, At), Error> {
                match self.query(Query::Range(range), consistency).await? {
                    (Answer::Listing(listing), at) => Ok((listing, at)),
                    _ => Err(another_question()),
                }
            }

            /// Counts keys.
            ///
            /// # Errors
            /// See [`Error`].
            pub async fn count(&self, keys: Span, consistency: Consistency) -> Result<(u64, At), Error> {
                let (listing, at) = self.range(Range::count_of(keys), consistency).await?;
                Ok((listing.count.unwrap_or_default(), at))
            }

            /// How a key changed, the newest change first: before a revision, if that is not 0, and at most `limit` changes, if that is not 0.
            ///
            /// # Errors
            /// See [`Error`].
            pub async fn history(
                &self,
                key: Bytes,
                (before, limit): (u64, u64),
                consistency: Consistency,
            ) -> Result<(Changes, At), Error> {
                match self.query(Query::History { key, before, limit }, consistency).await? {
                    (Answer::Changes(changes), at) => Ok((changes, at)),
                    _ => Err(another_question()),
                }
            }

            /// Forgets what keys were before a revision, and says which one is the oldest that can be read now.
            ///
            /// # Errors
            /// See [`Error`]; [`Refusal::Compacted`](crate::Refusal::Compacted) where it was forgotten before, [`Refusal::FutureRevision`](crate::Refusal::FutureRevision).
            pub async fn compact(&self, until: CompactUntil) -> Result<(u64, Changed), Error> {
                let changed = self.execute(Operation::Compact { until }).await?;
                match changed.outcome {
                    Outcome::Compacted { compacted, .. } => Ok((compacted, changed)),
                    _ => Err(another_question()),
                }
            }

            /// Makes a lease, with this id or one that the cluster chooses where it is 0, which lives for so long unless it is kept. Answers with
            /// its id.
            ///
            /// # Errors
            /// See [`Error`]; [`Refusal::LeaseExists`](crate::Refusal::LeaseExists), [`Refusal::TimeToLive`](crate::Refusal::TimeToLive), [`Refusal::TooManyLeases`](crate::Refusal::TooManyLeases).
            pub async fn grant_lease(&self, lease: u64, ttl: Duration) -> Result<(u64, Changed), Error> {
                let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
                let changed = self.execute(Operation::GrantLease { lease, ttl_ms }).await?;
                match changed.outcome {
                    Outcome::LeaseGranted { lease, .. } => Ok((lease, changed)),
                    _ => Err(another_question()),
                }
            }

            /// Keeps a lease for its time to live from now on.
            ///
            /// # Errors
            /// See [`Error`]; [`Refusal::NoSuchLease`](crate::Refusal::NoSuchLease).
            pub async fn keep_lease(&self, lease: u64) -> Result<Changed, Error> {
                self.execute(Operation::KeepLease { lease }).await
            }

            /// Ends a lease, and deletes the keys that hang on it: how many.
            ///
            /// # Errors
            /// See [`Error`]; [`Refusal::NoSuchLease`](crate::Refusal::NoSuchLease).
            pub async fn revoke_lease(&self, lease: u64) -> Result<(u64, Changed), Error> {
                let changed = self.execute(Operation::RevokeLease { lease }).await?;
                match changed.outcome {
                    Outcome::LeaseRevoked { keys, .. } => Ok((keys, changed)),
                    _ => Err(another_question()),
                }
            }

            /// One lease with the keys that hang on it, if there is such a lease; or all leases without their keys.
            ///
            /// # Errors
            /// See [`Error`].
            pub async fn leases(
                &self,
                lease: Option<u64>,
                consistency: Consistency,
            ) -> Result<(Vec<LeaseStatus>, At), Error> {
                match self.query(Query::Leases { lease }, consistency).await? {
                    (Answer::Leases(leases), at) => Ok((leases, at)),
                    _ => Err(another_question()),
                }
            }
        }
    };
}

typed_calls!(Client);
typed_calls!(Session);
