//! A client of `bftd`: the admin socket's protocol, and an async [`Client`] for it.
//!
//! A client talks to its own daemon, which it trusts; the daemon passes requests on to whoever leads. Many calls may be in
//! flight on one connection, and a [`Client`] is cheap to clone.
//!
//! ```no_run
//! # async fn example() -> Result<(), bftd_client::Error> {
//! use bftd_client::{Client, Consistency, Expect};
//!
//! let client = Client::connect("/run/bftd/admin.sock".as_ref()).await?;
//! let put = client.put("greeting".into(), "hello".into(), Expect::Anything).await?;
//! let (entry, at) = client.get("greeting".into(), Consistency::Linearizable).await?;
//! assert!(at.index >= put.index);
//! assert_eq!(entry.map(|entry| entry.value), Some("hello".into()));
//! # Ok(())
//! # }
//! ```
//!
//! A [`Client`] is one connection: when it breaks, nobody knows whether a change under way was made. A [`Session`] reconnects, to another
//! daemon if it must, and sends such changes again; each is made **once**.

mod calls;
mod client;
pub mod forming;
pub mod frame;
pub mod genesis;
mod link;
mod lock;
pub mod protocol;
mod session;
pub mod watch;

pub use bftd_core::{
    crypto::Ed25519,
    evidence,
    kv::{
        Answer, Changes, CompactUntil, Compare, Entry, Event, Events, Expect, Filter, Kinds, LeaseStatus,
        Listing, Operation, Order, Outcome, Part, Position, Property, Query, Range, Refusal, Relation,
        SESSION_MS, SESSION_WINDOW, SessionId, SessionRequest, SortBy, Span, Step as TransactionStep,
        StepOutcome, Taken, Transaction, Want, Watched,
    },
    limits::{MAX_KEY, MAX_VALUE},
};
pub use bytes::Bytes;
pub use client::{Changed, Client, DEFAULT_DEADLINE, Error};
pub use lock::{Lock, LockError, fence};
pub use protocol::{
    Accusation, At, BlockAt, ClusterStatus, Consistency, DiskUse, Failure, FaultChange, Finding, Health,
    MemberStatus, NodeTally, Phase, Request, Response, Status, Step, Trace, Verdict,
};
pub use session::{Session, SessionOptions};
pub use watch::{News, Watch, WatchError, Watcher};
