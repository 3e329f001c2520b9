//! What crosses the wire between a daemon that joins and the one that gathers.
//!
//! One question a stream that both sides use; the answer to [`Ask::Join`] comes when there is something new to tell. A daemon
//! whose cluster is formed takes no questions: it tells its members the genesis unasked, on a stream of its own
//! (`transport`).

use std::net::SocketAddr;

use bftd_client::forming::FormFailure;
use bftd_core::{crypto::PublicKey, membership::Genesis, protocol::Protocol};
use quinn::{RecvStream, SendStream};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::token::{Secret, TokenId};

/// The largest question, in bytes.
pub const MAX_ASK: usize = 1 << 10;
/// The largest answer, in bytes: 255 members take less than half.
pub const MAX_REPLY: usize = 128 << 10;

/// What a joiner asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// To be among the members, and to hear of the others.
    Join {
        /// Which token.
        token: TokenId,
        /// What shows it.
        secret: Secret,
        /// The joiner's name.
        name: String,
        /// Where its peers shall reach it.
        address: SocketAddr,
        /// Its clock, in milliseconds since the Unix epoch.
        clock_ms: u64,
        /// The revision that it has heard of.
        seen: u64,
    },
    /// Nothing: it has the genesis, durably.
    Stored,
}

/// What it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is among the members; others are missing.
    Gathered(Gathered),
    /// All are there.
    Formed(Genesis),
    /// It may not join.
    Refused(FormFailure),
    /// To [`Ask::Stored`].
    Noted,
}

/// The members so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gathered {
    /// Rises with each change.
    pub revision: u64,
    /// The cluster's name.
    pub cluster: String,
    /// What it shall run.
    pub protocol: Protocol,
    /// How many members it shall have.
    pub expect: u8,
    /// Who is there.
    pub members: Vec<Candidate>,
}

/// Who wants to be a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Its key.
    pub key: PublicKey,
    /// Where its peers reach it.
    pub address: SocketAddr,
}

/// Sends one item, and ends the stream.
///
/// # Errors
/// Why it can't be sent.
pub async fn send(stream: &mut SendStream, item: &impl Serialize) -> Result<(), String> {
    let bytes = postcard::to_stdvec(item).expect("encoding into a growing buffer succeeds");
    stream.write_all(&bytes).await.map_err(|error| error.to_string())?;
    // Only a stream that was ended before can't be ended.
    let _ = stream.finish();
    Ok(())
}

/// Takes one item, which ends its stream.
///
/// # Errors
/// Why none came.
pub async fn receive<T: DeserializeOwned>(stream: &mut RecvStream, most: usize) -> Result<T, String> {
    let bytes = stream.read_to_end(most).await.map_err(|error| error.to_string())?;
    match postcard::take_from_bytes(&bytes) {
        Ok((item, [])) => Ok(item),
        _ => Err("a message that makes no sense".to_owned()),
    }
}
