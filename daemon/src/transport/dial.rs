//! Outgoing: one task per peer that dials it, writes both lanes, and dials again when the connection is gone.
//!
//! Between attempts it waits: 50 ms, doubling to 2 s, each shortened at random by up to half. A connection that was
//! accepted and lived for [`STEADY`] sets this back; so does not one that the peer ends at once. A peer that dials us
//! is up, and ends the wait.

use std::{
    future,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::rand;
use bftd_core::ids::MemberId;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, SendStream, VarInt, WriteError};
use tokio::time::{sleep, timeout};

use super::{
    CloseCode, Counted, Lane, Shared, frame,
    notice::Notice,
    peer::{Peer, is_confirmed},
    settings::DIAL_DEADLINE,
};

/// The first wait between attempts.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The longest.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// How long a connection lives before it counts as a success.
const STEADY: Duration = Duration::from_secs(1);
/// How often a failure that stays the same is logged again.
const REPEAT_LOG: Duration = Duration::from_secs(60);
/// TLS needs some name; keys are what counts.
const SERVER_NAME: &str = "bftd";
/// Votes go before blocks.
const VOTES_PRIORITY: i32 = 1;
/// TLS alerts as QUIC error codes (RFC 9001, §4.8): 0x100, plus the alert.
const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;
const CERTIFICATE_UNKNOWN: u64 = 0x100 + 46;

/// Keeps a connection to the peer. Never returns.
pub(super) async fn keep_dialling(
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    endpoint: Endpoint,
    config: ClientConfig,
) {
    let mut state = State {
        peer: peer.id,
        wait: FIRST_WAIT,
        logged: None,
        failures: Notice::default(),
        successes: Notice::default(),
    };
    loop {
        match dial(&shared, &peer, &endpoint, config.clone()).await {
            Ok(connection) => {
                let error = use_connection(&peer, &connection, &mut state).await;
                note_refusal(&shared, &peer, &error);
                state.failed(&explain(&error));
            }
            Err(failure) => state.failed(&failure),
        }
        tokio::select! {
            () = sleep(shortened(state.wait)) => state.wait = (state.wait * 2).min(LONGEST_WAIT),
            () = peer.is_up.notified() => {}
        }
    }
}

/// One attempt; the error is for people.
async fn dial(
    shared: &Shared,
    peer: &Peer,
    endpoint: &Endpoint,
    config: ClientConfig,
) -> Result<Connection, String> {
    let connecting =
        endpoint.connect_with(config, peer.address, SERVER_NAME).map_err(|error| error.to_string())?;
    match timeout(DIAL_DEADLINE, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => {
            note_refusal(shared, peer, &error);
            Err(explain(&error))
        }
        Err(_) => Err("no answer".into()),
    }
}

/// Writes both lanes until the connection ends; returns why.
async fn use_connection(peer: &Peer, connection: &Connection, state: &mut State) -> ConnectionError {
    peer.set_outgoing(Some(connection.clone()));
    let success = async {
        sleep(STEADY).await;
        if is_confirmed(connection) {
            state.succeeded(peer.address);
        }
        future::pending().await
    };
    let error = tokio::select! {
        error = write_lanes(peer, connection) => error,
        error = connection.closed() => error,
        error = success => error,
    };
    peer.set_outgoing(None);
    connection.close(CloseCode::Protocol.into(), b"cannot write");
    error
}

/// Streams are told apart by their order: votes, then bulk.
async fn write_lanes(peer: &Peer, connection: &Connection) -> ConnectionError {
    let streams = async { Ok((connection.open_uni().await?, connection.open_uni().await?)) };
    let (votes, bulk) = match streams.await {
        Ok(streams) => streams,
        Err(error) => return error,
    };
    // Fails only for a stream that has ended already, and then so does the first write.
    let _ = votes.set_priority(VOTES_PRIORITY);
    let error = tokio::select! {
        error = write_lane(peer, Lane::Votes, votes) => error,
        error = write_lane(peer, Lane::Bulk, bulk) => error,
    };
    match error {
        WriteError::ConnectionLost(error) => error,
        // The peer has stopped the stream: this connection is of no more use.
        _ => ConnectionError::LocallyClosed,
    }
}

/// Everything that waits goes out in one write.
async fn write_lane(peer: &Peer, lane: Lane, mut stream: SendStream) -> WriteError {
    let mut batch = Vec::new();
    let mut buffers = Vec::new();
    loop {
        peer.queue(lane).take(&mut batch).await;
        frame::pack(&batch, &mut buffers);
        if let Err(error) = stream.write_all_chunks(&mut buffers).await {
            return error;
        }
        peer.sent.add(batch.len() as u64, batch.iter().map(|frame| frame.len() as u64).sum());
        batch.clear();
        buffers.clear();
    }
}

/// Counts and logs a refusal, by us or by the peer.
fn note_refusal(shared: &Shared, peer: &Peer, error: &ConnectionError) {
    let warn = |counted: &Counted, reason: &str| {
        counted.count(|left_out| {
            tracing::warn!(peer = peer.id.0, address = %peer.address, left_out, "not connected: {reason}");
        });
    };
    match error {
        ConnectionError::TransportError(error) if is_alert(u64::from(error.code)) => {
            warn(&shared.strangers, plain_reason(&error.reason));
        }
        ConnectionError::ConnectionClosed(close)
            if u64::from(close.error_code) == NO_APPLICATION_PROTOCOL =>
        {
            shared.count_other_cluster(|left_out| {
                tracing::warn!(peer = %peer.id, address = %peer.address, left_out, "not connected: {OTHER_CLUSTER}");
            });
        }
        _ => {}
    }
}

/// What a connection's end means, for people.
fn explain(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TransportError(error) if is_alert(u64::from(error.code)) => {
            plain_reason(&error.reason).into()
        }
        ConnectionError::ConnectionClosed(close) => match u64::from(close.error_code) {
            NO_APPLICATION_PROTOCOL => OTHER_CLUSTER.into(),
            CERTIFICATE_UNKNOWN => format!(
                "the daemon there does not let us in ({}): do both have the same genesis?",
                plain_reason(&String::from_utf8_lossy(&close.reason))
            ),
            _ => error.to_string(),
        },
        ConnectionError::ApplicationClosed(close)
            if close.error_code == VarInt::from(CloseCode::Replaced) =>
        {
            "replaced by a newer connection with our key: does another process run with this identity?".into()
        }
        error => error.to_string(),
    }
}

const OTHER_CLUSTER: &str = "the daemon at this address belongs to another cluster, or to none yet, or speaks another version of the protocol";

/// Whether a QUIC error code is a TLS alert.
pub(super) fn is_alert(code: u64) -> bool {
    (0x100..0x200).contains(&code)
}

/// A refusal by one of our verifiers, without what rustls wraps around it.
pub(super) fn plain_reason(reason: &str) -> &str {
    reason
        .strip_prefix("invalid peer certificate: Other(OtherError(")
        .and_then(|reason| reason.strip_suffix("))"))
        .unwrap_or(reason)
}

/// From half of `wait` to all of it, so that diallers don't keep step.
fn shortened(wait: Duration) -> Duration {
    let mut random = [0; 1];
    rand::fill(&mut random).expect("the system's source of randomness works");
    wait / 2 + wait * u32::from(random[0]) / (2 * u32::from(u8::MAX))
}

/// What a dialler remembers from one attempt to the next.
struct State {
    peer: MemberId,
    /// The next wait.
    wait: Duration,
    /// The failure that was logged last, and when.
    logged: Option<(Instant, String)>,
    /// A peer that comes and goes must not fill the log.
    failures: Notice,
    successes: Notice,
}

impl State {
    /// Says what is wrong once, and again when that changes or lasts.
    fn failed(&mut self, reason: &str) {
        let known =
            self.logged.as_ref().is_some_and(|(at, last)| last == reason && at.elapsed() < REPEAT_LOG);
        if !known {
            let (peer, logged) = (self.peer.0, &mut self.logged);
            self.failures.give(|left_out| {
                tracing::info!(peer, left_out, "no connection to this member: {reason}");
                *logged = Some((Instant::now(), reason.into()));
            });
        }
    }

    fn succeeded(&mut self, address: SocketAddr) {
        let peer = self.peer.0;
        self.successes.give(|left_out| tracing::info!(peer, %address, left_out, "connected to this member"));
        self.logged = None;
        self.wait = FIRST_WAIT;
    }
}
