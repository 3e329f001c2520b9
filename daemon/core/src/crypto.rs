//! Digests, keys and signatures: ed25519 and SHA-256, both from aws-lc.
//!
//! What is signed or hashed always begins with a [`Domain`]: a tag of its own per kind of object, and the
//! cluster. So a signature made for one role or one cluster is worthless in every other.
//!
//! The core only knows the traits [`Signer`] and [`CheckSignature`]; a simulation runs the same replicas on a
//! scheme that costs less.

use std::{fmt, io::Write, str::FromStr};

use aws_lc_rs::{
    digest,
    signature::{self, Ed25519KeyPair, KeyPair},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Fixed-length bytes: raw in binary formats, lower-case hexadecimal in text, abbreviated in `Debug`.
macro_rules! fixed_bytes {
    ($(#[$doc:meta])* $name:ident, $length:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $length]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let hex = data_encoding::HEXLOWER.encode(&self.0);
                f.write_str(hex.get(..8).unwrap_or(&hex))
            }
        }

        impl FromStr for $name {
            type Err = InvalidHex;

            fn from_str(text: &str) -> Result<Self, InvalidHex> {
                data_encoding::HEXLOWER_PERMISSIVE
                    .decode(text.as_bytes())
                    .ok()
                    .and_then(|bytes| bytes.try_into().ok())
                    .map(Self)
                    .ok_or(InvalidHex { digits: 2 * $length })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "{} bytes", $length)
                    }

                    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<$name, E> {
                        let bytes = bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))?;
                        Ok($name(bytes))
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                if deserializer.is_human_readable() {
                    deserializer.deserialize_str(Visitor)
                } else {
                    deserializer.deserialize_bytes(Visitor)
                }
            }
        }
    };
}

fixed_bytes!(
    /// A SHA-256 digest.
    Digest,
    32
);
fixed_bytes!(
    /// An ed25519 public key: a member's identity.
    PublicKey,
    32
);
fixed_bytes!(
    /// An ed25519 signature.
    Signature,
    64
);

/// A text that is not the expected number of hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {digits} hexadecimal digits")]
pub struct InvalidHex {
    digits: usize,
}

impl Digest {
    /// Thirty-two zero bytes: the parent of a genesis block, and the digest of an empty subtree.
    pub const ZERO: Self = Self([0; 32]);

    fn of_output(output: digest::Digest) -> Self {
        let mut out = [0; 32];
        out.copy_from_slice(output.as_ref());
        Self(out)
    }
}

/// The points of small order. Whoever names one as a key could later deny
/// every signature made with it.
const SMALL_ORDER: [&str; 7] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

impl PublicKey {
    /// Whether a signature takes the private key. It does not for points of small order: anybody can sign for those.
    pub fn is_sound(&self) -> bool {
        !SMALL_ORDER.contains(&self.to_string().as_str())
    }
}

impl Signature {
    /// What stands where a protocol signs nothing.
    pub const NONE: Self = Self([0; 64]);
}

/// A cluster's identity: the digest of its genesis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub Digest);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Up to how many bytes are gathered to be hashed at once. The room for them is cleared first: mostly little is needed.
const SHORT: usize = 1024;
/// See [`SHORT`].
const SHORTER: usize = 192;

/// What kind of object some bytes are signed or hashed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// A genesis; its digest is the cluster's id.
    Genesis,
    /// A batch of an origin's requests.
    Batch,
    /// The list of a block's batches.
    Batches,
    /// A block's header.
    Header,
    /// A leader's signature over a header.
    Proposal,
    /// A Prepare or Commit vote.
    Vote,
    /// A suspicion of a term's leader.
    Suspect,
    /// A promise to have left all lower terms.
    TermVote,
    /// An entry of the replicated state.
    Entry,
    /// A node of the state's digest tree.
    State,
    /// A row of the store's history.
    History,
    /// A signed text with its signatures, as a verifier remembers it.
    Remembered,
    /// A proof of misbehaviour.
    Evidence,
}

impl Domain {
    /// The tag, unique per kind and never a prefix of another (each ends with a NUL).
    fn tag(self) -> &'static [u8] {
        match self {
            Self::Genesis => b"bftd/genesis/1\0",
            Self::Batch => b"bftd/batch/1\0",
            Self::Batches => b"bftd/batches/1\0",
            Self::Header => b"bftd/header/1\0",
            Self::Proposal => b"bftd/proposal/1\0",
            Self::Vote => b"bftd/vote/1\0",
            Self::Suspect => b"bftd/suspect/1\0",
            Self::TermVote => b"bftd/term-vote/1\0",
            Self::Entry => b"bftd/entry/1\0",
            Self::State => b"bftd/state/1\0",
            Self::History => b"bftd/history/1\0",
            Self::Remembered => b"bftd/remembered/1\0",
            Self::Evidence => b"bftd/evidence/1\0",
        }
    }

    /// The bytes to sign for `object` in `cluster`.
    pub fn signed_bytes<T: Serialize>(self, cluster: ClusterId, object: &T) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(192);
        bytes.extend_from_slice(self.tag());
        bytes.extend_from_slice(&cluster.0.0);
        postcard::to_extend(object, bytes).expect("encoding into a growing buffer succeeds")
    }

    /// The digest of this domain's tag and `parts`, one after another: what [`Domain::hasher`] gives, but short inputs
    /// cost little more than their hashing. The caller makes the parts separable.
    pub fn digest(self, parts: &[&[u8]]) -> Digest {
        self.digest_within::<SHORTER>(parts).or_else(|| self.digest_within::<SHORT>(parts)).unwrap_or_else(
            || {
                let mut hasher = self.hasher();
                for part in parts {
                    hasher.update(part);
                }
                hasher.finish()
            },
        )
    }

    /// [`Domain::digest`] of what has at most `N` bytes.
    fn digest_within<const N: usize>(self, parts: &[&[u8]]) -> Option<Digest> {
        let mut input = [0; N];
        let mut free = input.as_mut_slice();
        let mut tag_and_parts = std::iter::once(self.tag()).chain(parts.iter().copied());
        let fits = tag_and_parts.all(|part| free.write_all(part).is_ok());
        let unused = free.len();
        fits.then(|| Digest::of_output(digest::digest(&digest::SHA256, input.split_at(N - unused).0)))
    }

    /// A running hash whose input begins with this domain's tag.
    pub fn hasher(self) -> Hasher {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(self.tag());
        Hasher(context)
    }
}

/// A SHA-256 computation within one [`Domain`].
#[derive(Clone)]
pub struct Hasher(digest::Context);

impl Hasher {
    /// Adds bytes. The caller makes the parts separable: fixed lengths, or a length in front.
    pub fn update(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(bytes);
        self
    }

    /// Adds the length of `bytes`, then `bytes`.
    pub fn update_sized(&mut self, bytes: &[u8]) -> &mut Self {
        self.update(&(bytes.len() as u64).to_le_bytes()).update(bytes)
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        Digest::of_output(self.0.finish())
    }
}

/// Holds one private key.
pub trait Signer: Send + Sync {
    /// The key that verifies this signer's signatures.
    fn public_key(&self) -> PublicKey;

    /// Signs bytes that begin with a [`Domain`]. Deterministic: the same bytes give the same signature.
    fn sign(&self, bytes: &[u8]) -> Signature;
}

/// Stands in for a signer where a protocol signs nothing.
pub(crate) struct Unsigned(pub PublicKey);

impl Signer for Unsigned {
    fn public_key(&self) -> PublicKey {
        self.0
    }

    fn sign(&self, _bytes: &[u8]) -> Signature {
        Signature::NONE
    }
}

/// Checks signatures.
pub trait CheckSignature: Send + Sync {
    /// Whether `signature` is `key`'s signature over `bytes`.
    fn check(&self, key: &PublicKey, bytes: &[u8], signature: &Signature) -> bool;
}

/// The ed25519 scheme of RFC 8032 (cofactorless, S below the group order).
#[derive(Clone, Copy, Debug, Default)]
pub struct Ed25519;

impl CheckSignature for Ed25519 {
    fn check(&self, key: &PublicKey, bytes: &[u8], signature: &Signature) -> bool {
        signature::UnparsedPublicKey::new(&signature::ED25519, &key.0).verify(bytes, &signature.0).is_ok()
    }
}

/// An ed25519 private key.
pub struct Ed25519Signer(Ed25519KeyPair);

impl Ed25519Signer {
    /// The key of a 32-byte seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(seed).expect("every 32-byte seed is an ed25519 key"))
    }

    /// The key in a PKCS #8 document.
    ///
    /// # Errors
    /// The document is not an ed25519 private key.
    pub fn from_pkcs8(document: &[u8]) -> Result<Self, InvalidKey> {
        Ed25519KeyPair::from_pkcs8(document).map(Self).map_err(|_| InvalidKey)
    }
}

impl fmt::Debug for Ed25519Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ed25519Signer({:?})", self.public_key())
    }
}

impl Signer for Ed25519Signer {
    fn public_key(&self) -> PublicKey {
        let mut key = [0; 32];
        key.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(key)
    }

    fn sign(&self, bytes: &[u8]) -> Signature {
        let mut out = [0; 64];
        out.copy_from_slice(self.0.sign(bytes).as_ref());
        Signature(out)
    }
}

/// Bytes that hold no ed25519 private key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an ed25519 private key in PKCS #8 form")]
pub struct InvalidKey;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_at_once_is_that_of_a_running_hash() {
        for length in [0, 1, SHORTER - 100, SHORTER, SHORTER + 1, SHORT - 100, SHORT, SHORT + 1, 10 * SHORT] {
            let text = vec![7; length];
            let mut hasher = Domain::Entry.hasher();
            hasher.update(b"head").update(&text);
            assert_eq!(Domain::Entry.digest(&[b"head", &text]), hasher.finish(), "{length}");
        }
    }
}
