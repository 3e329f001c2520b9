//! Which keys.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Refusal, operation::check_key};
use crate::limits::MAX_KEY;

/// Keys in order, without a gap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Span<B = Bytes> {
    /// One key, which may not exist.
    Key(B),
    /// Those that begin with a prefix; with an empty one all.
    Prefix(B),
    /// From a key on, and before another one.
    Range {
        /// The first one that may be in it.
        from: B,
        /// The first one that is not.
        end: B,
    },
    /// From a key on.
    From(B),
}

impl Span {
    /// Of the keys that begin with a prefix those after a key.
    pub fn prefix_after(prefix: &[u8], after: &[u8]) -> Self {
        let mut from = after.to_vec();
        from.push(0);
        let from = Bytes::from(from).max(Bytes::copy_from_slice(prefix));
        match end_of_prefix(prefix) {
            Some(end) => Self::Range { from, end },
            None => Self::From(from),
        }
    }
}

/// The first key after all that begin with a prefix; none where there is no such key.
fn end_of_prefix(prefix: &[u8]) -> Option<Bytes> {
    let kept = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut end = prefix.get(..=kept)?.to_vec();
    *end.last_mut()? += 1;
    Some(end.into())
}

impl<B: AsRef<[u8]>> Span<B> {
    /// The lowest key that may be in it.
    pub fn first(&self) -> &[u8] {
        match self {
            Self::Key(key) | Self::Prefix(key) | Self::Range { from: key, .. } | Self::From(key) => {
                key.as_ref()
            }
        }
    }

    /// Whether a key that is not below [`Span::first`] is in it.
    pub fn reaches(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(only) => key == only.as_ref(),
            Self::Prefix(prefix) => key.starts_with(prefix.as_ref()),
            Self::Range { end, .. } => key < end.as_ref(),
            Self::From(_) => true,
        }
    }

    /// Whether a key is in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.first() && self.reaches(key)
    }

    /// The same keys, borrowed.
    pub fn borrowed(&self) -> Span<&[u8]> {
        match self {
            Self::Key(key) => Span::Key(key.as_ref()),
            Self::Prefix(prefix) => Span::Prefix(prefix.as_ref()),
            Self::Range { from, end } => Span::Range { from: from.as_ref(), end: end.as_ref() },
            Self::From(from) => Span::From(from.as_ref()),
        }
    }

    /// How many bytes it carries.
    pub fn size(&self) -> usize {
        match self {
            Self::Range { from, end } => from.as_ref().len() + end.as_ref().len(),
            Self::Key(_) | Self::Prefix(_) | Self::From(_) => self.first().len(),
        }
    }

    /// Checks the lengths.
    ///
    /// # Errors
    /// [`Refusal::KeyLength`].
    pub fn check(&self) -> Result<(), Refusal> {
        // The end of a prefix, or what follows a key, may be a byte longer than a key.
        let short = |bytes: &B| match bytes.as_ref().len() {
            length if length <= MAX_KEY + 1 => Ok(()),
            length => Err(Refusal::KeyLength { bytes: length as u64 }),
        };
        match self {
            Self::Key(key) => check_key(key.as_ref()),
            Self::Prefix(bytes) | Self::From(bytes) => short(bytes),
            Self::Range { from, end } => short(from).and_then(|()| short(end)),
        }
    }
}
