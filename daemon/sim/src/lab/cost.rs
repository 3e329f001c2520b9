//! What work takes, and the counting of signatures where they are really made and checked.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bftd_core::crypto::{CheckSignature, PublicKey, Signature, Signer};
use serde::Serialize;

/// What work takes, in nanoseconds. The defaults were measured on one core of a small virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Costs {
    /// To make a signature: ed25519 of aws-lc.
    pub sign_ns: u64,
    /// To check one.
    pub verify_ns: u64,
    /// What a message costs its sender, and once more its receiver: half each of the 2.1 µs that both ends together take a message
    /// over a QUIC stream that is kept busy, rounded.
    pub message_ns: u64,
    /// To make what has gathered durable: an `fdatasync` of a page that is overwritten in a file that is there already.
    pub fsync_ns: u64,
}

impl Default for Costs {
    fn default() -> Self {
        Self { sign_ns: 5_500, verify_ns: 24_000, message_ns: 1_000, fsync_ns: 100_000 }
    }
}

impl Costs {
    /// Nothing takes any time.
    pub const NONE: Self = Self { sign_ns: 0, verify_ns: 0, message_ns: 0, fsync_ns: 0 };

    /// What a member did, in time.
    pub(super) fn of(&self, work: Work) -> u64 {
        work.signed * self.sign_ns + work.verified * self.verify_ns + work.recognised * self.sign_ns
    }
}

/// Signatures of one member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// It made so many.
    pub signed: u64,
    /// It checked so many of others.
    pub verified: u64,
    /// It checked so many of its own, by signing again.
    pub recognised: u64,
}

/// Counts a member's signatures.
#[derive(Debug, Default)]
pub(super) struct Meter {
    signed: AtomicU64,
    verified: AtomicU64,
    recognised: AtomicU64,
}

impl Meter {
    /// What was done since this was last asked.
    pub fn take(&self) -> Work {
        let take = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        Work {
            signed: take(&self.signed),
            verified: take(&self.verified),
            recognised: take(&self.recognised),
        }
    }
}

/// Makes a member's signatures, for its replica or for its verifier.
pub(super) struct Counted {
    pub inner: Arc<dyn Signer>,
    pub meter: Arc<Meter>,
    /// Whether it signs to recognise a signature of its own.
    pub recognises: bool,
}

impl Signer for Counted {
    fn public_key(&self) -> PublicKey {
        self.inner.public_key()
    }

    fn sign(&self, bytes: &[u8]) -> Signature {
        let count = if self.recognises { &self.meter.recognised } else { &self.meter.signed };
        count.fetch_add(1, Ordering::Relaxed);
        self.inner.sign(bytes)
    }
}

/// Checks signatures for a member.
pub(super) struct CountedCheck {
    pub inner: Arc<dyn CheckSignature>,
    pub meter: Arc<Meter>,
}

impl CheckSignature for CountedCheck {
    fn check(&self, key: &PublicKey, bytes: &[u8], signature: &Signature) -> bool {
        self.meter.verified.fetch_add(1, Ordering::Relaxed);
        self.inner.check(key, bytes, signature)
    }
}
