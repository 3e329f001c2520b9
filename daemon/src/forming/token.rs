//! Tokens: what an operator carries from the host that gathers to a host that shall join.
//!
//! A token pins the inviter's key, so whoever reads along or answers in its place gains nothing but the token's secret, and
//! that is told to nobody but the holder of that key. It is one word of letters and digits, with a checksum: a word that was
//! cut off is told apart from a token that is not known.

use std::net::SocketAddr;

use aws_lc_rs::{digest, rand};
use bftd_core::crypto::{Digest, PublicKey};
use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};

/// What every token begins with: its format.
const PREFIX: &str = "bftd1";
/// Bytes of the checksum at a token's end.
const CHECKSUM: usize = 4;
/// The longest token that is looked at, in characters. Ours are shorter.
const LONGEST: usize = 512;

/// Tells one inviter's tokens apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenId(pub u64);

/// Shows that somebody was invited.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret([u8; 16]);

/// Nothing of a secret is ever shown.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// What the inviter keeps in its place.
    pub fn digest(&self) -> Digest {
        let hash = digest::digest(&digest::SHA256, &self.0);
        let mut kept = [0; 32];
        kept.copy_from_slice(hash.as_ref());
        Digest(kept)
    }
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// The key of the daemon that gathers.
    pub inviter: PublicKey,
    /// Where it is.
    pub address: SocketAddr,
    /// The cluster's name.
    pub cluster: String,
    /// Which token it is.
    pub id: TokenId,
    /// What shows it.
    pub secret: Secret,
}

impl Invitation {
    /// An invitation with a fresh secret.
    pub fn new(inviter: PublicKey, address: SocketAddr, cluster: &str) -> Self {
        let (mut id, mut secret) = ([0; 8], [0; 16]);
        rand::fill(&mut id).expect("the system's source of randomness works");
        rand::fill(&mut secret).expect("the system's source of randomness works");
        // Files keep it as a signed number.
        let id = TokenId(u64::from_le_bytes(id) >> 1);
        Self { inviter, address, cluster: cluster.to_owned(), id, secret: Secret(secret) }
    }

    /// The token.
    pub fn to_token(&self) -> String {
        let mut bytes = postcard::to_stdvec(self).expect("encoding into a growing buffer succeeds");
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        format!("{PREFIX}{}", BASE32_NOPAD.encode(&bytes)).to_lowercase()
    }

    /// What a token says.
    ///
    /// # Errors
    /// Why it is no token, for people.
    pub fn of_token(token: &str) -> Result<Self, String> {
        let token = token.trim();
        let Some(text) = token
            .get(..PREFIX.len())
            .filter(|it| it.eq_ignore_ascii_case(PREFIX))
            .and(token.get(PREFIX.len()..))
        else {
            return Err(format!("a token begins with `{PREFIX}`"));
        };
        let damaged = || "a part of it is missing or was changed on the way".to_owned();
        if text.len() > LONGEST {
            return Err(damaged());
        }
        let bytes = BASE32_NOPAD.decode(text.to_uppercase().as_bytes()).map_err(|_| damaged())?;
        let (body, found) =
            bytes.split_at_checked(bytes.len().saturating_sub(CHECKSUM)).ok_or_else(damaged)?;
        if found != checksum(body) {
            return Err(damaged());
        }
        match postcard::take_from_bytes(body) {
            Ok((invitation, [])) => Ok(invitation),
            _ => Err("it was made by another version of bftd".to_owned()),
        }
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let hash = digest::digest(&digest::SHA256, bytes);
    let mut first = [0; CHECKSUM];
    first.copy_from_slice(hash.as_ref().get(..CHECKSUM).expect("a digest has 32 bytes"));
    first
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_token_says_what_was_put_in_and_shows_damage() {
        let made = Invitation::new(PublicKey([7; 32]), "10.0.0.1:7000".parse().unwrap(), "prod");
        let token = made.to_token();
        assert!(token.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()), "{token}");
        assert_eq!(Invitation::of_token(&token).unwrap(), made);
        assert_eq!(Invitation::of_token(&format!(" {}\n", token.to_uppercase())).unwrap(), made);

        for cut in 0..token.len() {
            let error = Invitation::of_token(&token[..cut]).unwrap_err();
            assert_eq!(error.contains("begins with"), cut < PREFIX.len(), "{error}");
        }
        for at in PREFIX.len()..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'a' { b'b' } else { b'a' };
            Invitation::of_token(std::str::from_utf8(&bytes).unwrap()).unwrap_err();
        }
        assert!(Invitation::of_token(&format!("bftd1{}", "a".repeat(100_000))).is_err());
        assert!(Invitation::of_token("grüße").is_err());
        assert!(!format!("{made:?}").contains(&format!("{:?}", made.secret.0)), "a secret is not shown");
        let other = Invitation::new(made.inviter, made.address, "prod");
        assert!(other.id != made.id && other.secret != made.secret);
    }
}
