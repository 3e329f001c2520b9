//! What a daemon without a cluster has been told to do: kept in `forming.toml`, so that a restart takes it up again.
//!
//! Rules of gathering:
//! - A member is who holds its key. One that is among the members is so whatever has become of its token.
//! - Each name, each address and each key is there once.
//! - Who is taken out again takes the token along that it came with.
//! - A token counts the keys that used it, so that a joiner that asks again does not use it up.
//! - The genesis follows from what is kept here alone: members in the order of their names, numbered from 1.

use std::path::Path;

use bftd_client::{
    forming::{FormFailure, Phase},
    genesis::is_name,
};
use bftd_core::{
    crypto::{Digest, PublicKey},
    ids::MemberId,
    limits::Timing,
    membership::{Genesis, Member},
    protocol::Protocol,
};
use serde::{Deserialize, Serialize};

use super::{
    files::{self, FileError},
    token::{Invitation, Secret, TokenId},
    wire::Candidate,
};

/// The plan's name within the data directory.
pub const PLAN_FILE: &str = "forming.toml";
/// How many tokens are kept. Expired ones make room.
pub const MAX_TOKENS: usize = 64;

/// What this daemon was told to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plan {
    /// Gather the members of a new cluster.
    Gathering(Gathering),
    /// Join those that another daemon gathers.
    Joining(Joining),
}

/// See [`Plan::Joining`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Joining {
    /// The token.
    pub token: String,
    /// This daemon's name.
    pub name: String,
    /// Where the others reach it.
    pub address: std::net::SocketAddr,
}

/// See [`Plan::Gathering`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gathering {
    /// The cluster's name.
    pub name: String,
    /// What it shall run.
    pub protocol: Protocol,
    /// How many members it shall have.
    pub expect: u8,
    /// When it was begun, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// In the order in which they came, this daemon first.
    pub members: Vec<Candidate>,
    /// In the order in which they were made.
    #[serde(default)]
    pub tokens: Vec<KnownToken>,
}

/// A token as the inviter keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownToken {
    id: TokenId,
    secret: Digest,
    expires_ms: u64,
    uses: u16,
    used_by: Vec<PublicKey>,
}

/// Somebody who asks to be a member, and what shows that it may.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Who it would be. It has proved to hold the key.
    pub candidate: &'a Candidate,
    /// Its token.
    pub token: TokenId,
    /// The token's secret.
    pub secret: &'a Secret,
    /// Its clock, in milliseconds since the Unix epoch.
    pub clock_ms: u64,
}

impl Plan {
    /// What it makes of a daemon.
    pub fn phase(&self) -> Phase {
        match self {
            Self::Gathering(_) => Phase::Gathering,
            Self::Joining(_) => Phase::Joining,
        }
    }

    /// What is kept in a directory.
    ///
    /// # Errors
    /// It can't be read, or makes no sense.
    pub fn load(directory: &Path) -> Result<Option<Self>, FileError> {
        let Some(text) = files::read(directory, PLAN_FILE)? else { return Ok(None) };
        toml::from_str(&text).map(Some).map_err(|error| FileError::malformed(directory, PLAN_FILE, &error))
    }

    /// Keeps it, durably.
    ///
    /// # Errors
    /// It can't be written.
    pub fn store(&self, directory: &Path) -> Result<(), FileError> {
        let text = toml::to_string(self).expect("a plan is plain tables");
        files::replace(directory, PLAN_FILE, text.as_bytes())
    }

    /// Forgets it, durably.
    ///
    /// # Errors
    /// It can't be removed.
    pub fn forget(directory: &Path) -> Result<(), FileError> {
        files::remove(directory, PLAN_FILE)
    }
}

impl Gathering {
    /// Whether a claim is good, by the inviter's clock.
    ///
    /// # Errors
    /// Why it is not. Who shows no token learns nothing else.
    pub fn check(&self, claim: &Claim<'_>, now_ms: u64) -> Result<(), FormFailure> {
        let Claim { candidate, clock_ms, .. } = *claim;
        let token = self.token_of(claim);
        let is_known = self.members.iter().any(|member| member.key == candidate.key);
        if token.is_none() && !is_known {
            return Err(FormFailure::UnknownToken);
        }
        let ahead_ms = i64::try_from(clock_ms)
            .unwrap_or(i64::MAX)
            .saturating_sub(i64::try_from(now_ms).unwrap_or(i64::MAX));
        if ahead_ms.unsigned_abs() > Timing::default().max_ahead_ms {
            return Err(FormFailure::ClockOff { ahead_ms });
        }
        if let Some(token) = token.filter(|_| !is_known) {
            if now_ms >= token.expires_ms {
                return Err(FormFailure::TokenExpired { ago_s: (now_ms - token.expires_ms) / 1000 });
            }
            if !token.used_by.contains(&candidate.key) && token.used_by.len() >= usize::from(token.uses) {
                return Err(FormFailure::TokenUsedUp { uses: token.uses });
            }
        }
        if !candidate.key.is_sound() {
            return Err(FormFailure::Impossible("anybody can sign for this host's key".to_owned()));
        }
        self.check_place(candidate)?;
        if !is_known && self.is_complete() {
            return Err(FormFailure::Full { expect: self.expect.into() });
        }
        Ok(())
    }

    /// Whether a candidate's name and address are its own.
    fn check_place(&self, candidate: &Candidate) -> Result<(), FormFailure> {
        let Candidate { name, key, address } = candidate;
        if !is_name(name) {
            let name = name.chars().take(64).collect();
            return Err(FormFailure::BadName { name, of: "member's".to_owned() });
        }
        let others = || self.members.iter().filter(|member| member.key != *key);
        if let Some(other) = others().find(|other| other.name == *name) {
            return Err(FormFailure::NameTaken { name: name.clone(), key: other.key });
        }
        if let Some(other) = others().find(|other| other.address == *address) {
            return Err(FormFailure::AddressTaken { address: *address, name: other.name.clone() });
        }
        Ok(())
    }

    /// Takes in who has made a good claim. Whether that changed anything.
    pub fn record(&mut self, claim: &Claim<'_>) -> bool {
        debug_assert!(self.check_place(claim.candidate).is_ok());
        let candidate = claim.candidate;
        let used = self.tokens.iter_mut().find(|token| token.is_of(claim));
        let is_known = self.members.iter().any(|member| member.key == candidate.key);
        if let Some(token) = used.filter(|token| !is_known && !token.used_by.contains(&candidate.key)) {
            token.used_by.push(candidate.key);
        }
        match self.members.iter_mut().find(|member| member.key == candidate.key) {
            Some(member) if member == candidate => false,
            Some(member) => {
                *member = candidate.clone();
                true
            }
            None => {
                self.members.push(candidate.clone());
                true
            }
        }
    }

    /// Takes a member out again, and revokes the token that it came with: it asks again all the time, and may be somebody whom nobody
    /// invited. Answers with its key. The first one, which gathers, stays.
    pub fn remove(&mut self, name: &str) -> Option<PublicKey> {
        let found = self.members.iter().skip(1).position(|member| member.name == name);
        let key = found.map(|at| self.members.remove(at + 1))?.key;
        self.tokens.retain(|token| !token.used_by.contains(&key));
        Some(key)
    }

    /// A new token.
    ///
    /// # Errors
    /// Too many are valid.
    pub fn invite(&mut self, for_s: u64, uses: u16, now_ms: u64) -> Result<(Invitation, u64), FormFailure> {
        if self.tokens.len() >= MAX_TOKENS {
            self.tokens
                .retain(|token| now_ms < token.expires_ms && token.used_by.len() < usize::from(token.uses));
        }
        let inviter = self.members.first().filter(|_| self.tokens.len() < MAX_TOKENS);
        let inviter = inviter.ok_or(FormFailure::TooManyTokens(MAX_TOKENS as u64))?;
        let invitation = Invitation::new(inviter.key, inviter.address, &self.name);
        let expires_ms = now_ms.saturating_add(for_s.saturating_mul(1000)).min(i64::MAX as u64);
        self.tokens.push(KnownToken {
            id: invitation.id,
            secret: invitation.secret.digest(),
            expires_ms,
            uses,
            used_by: Vec::new(),
        });
        Ok((invitation, expires_ms))
    }

    /// Whether all members are there.
    pub fn is_complete(&self) -> bool {
        self.members.len() >= usize::from(self.expect)
    }

    /// The genesis, once all members are there.
    pub fn genesis(&self) -> Option<Genesis> {
        if !self.is_complete() {
            return None;
        }
        let mut candidates: Vec<_> = self.members.iter().collect();
        candidates.sort_by(|one, other| one.name.cmp(&other.name));
        let members = (1..=u8::MAX).zip(candidates).map(|(id, candidate)| Member {
            id: MemberId(id),
            name: candidate.name.clone(),
            key: candidate.key,
            address: candidate.address,
        });
        Some(Genesis {
            name: self.name.clone(),
            protocol: self.protocol,
            created_ms: self.created_ms,
            members: members.collect(),
        })
    }

    /// The token that a claim shows.
    fn token_of(&self, claim: &Claim<'_>) -> Option<&KnownToken> {
        self.tokens.iter().find(|token| token.is_of(claim))
    }
}

impl KnownToken {
    /// Secrets are compared by their digests, so the time that it takes tells nothing of use.
    fn is_of(&self, claim: &Claim<'_>) -> bool {
        self.id == claim.token && self.secret == claim.secret.digest()
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
