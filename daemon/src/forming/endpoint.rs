//! The UDP socket of a daemon that has no cluster yet: QUIC with everything finite.
//!
//! Strangers may dial: whoever has a key is let in, and must then show a token. At most [`STRANGERS`] of them are served at
//! a time, for [`STRANGER_DEADLINE`] each; beyond half of that a dialler must show that its address is its own. A connection
//! holds a few small buffers. So whatever strangers do costs a bounded amount of memory.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{Arc, OnceLock},
    time::Duration,
};

use bftd_client::forming::FormFailure;
use bftd_core::crypto::PublicKey;
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, ServerConfig, TokioRuntime, TransportConfig,
    ValidationTokenConfig, VarInt,
};
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};

use super::wire::{MAX_ASK, MAX_REPLY};
use crate::{
    identity::Identity,
    transport::{TlsError, settings, tls},
};

/// How many diallers that have shown no token are served at a time. More are refused.
pub const STRANGERS: usize = 32;
/// How long a dialler may take to show a token.
pub const STRANGER_DEADLINE: Duration = Duration::from_secs(5);
/// How long a dialled daemon may take to answer.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(5);
/// How long a silent connection is believed in.
const IDLE_TIMEOUT_MS: u32 = 4_000;
/// How often a joiner says that it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// The first guess of a round trip, as between members.
const INITIAL_RTT: Duration = Duration::from_millis(10);
/// What is buffered for a dialler that waits for its turn: a few packets of a handshake.
const WAITING_BYTES: u64 = 16 << 10;
/// How long a port that we have used may take to be free again.
const PORT_DEADLINE: Duration = Duration::from_secs(2);
/// TLS needs some name; keys are what counts.
const SERVER_NAME: &str = "bftd";
/// TLS alerts as QUIC error codes (RFC 9001, §4.8): 0x100, plus the alert.
const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;
const CERTIFICATE_UNKNOWN: u64 = 0x100 + 46;
const DECRYPT_ERROR: u64 = 0x100 + 51;

/// Opens the socket.
pub fn bind(identity: &Identity, listen: SocketAddr) -> Result<Endpoint, FormFailure> {
    let failed = |why: String| FormFailure::CantListen { address: listen, why };
    let config = server(identity).map_err(|error| failed(error.to_string()))?;
    UdpSocket::bind(listen)
        .and_then(|socket| {
            Endpoint::new(settings::endpoint(identity), Some(config), socket, Arc::new(TokioRuntime))
        })
        .map_err(|error| failed(error.to_string()))
}

/// Closes the socket, ends the tasks that use it, and waits until its port is free for who comes next.
pub async fn close(endpoint: Endpoint, listen: SocketAddr, tasks: Vec<AbortHandle>) {
    endpoint.close(VarInt::from_u32(0), b"done");
    tasks.iter().for_each(AbortHandle::abort);
    // A peer that is gone never acknowledges.
    let _ = timeout(Duration::from_millis(500), endpoint.wait_idle()).await;
    drop(endpoint);
    let deadline = Instant::now() + PORT_DEADLINE;
    while UdpSocket::bind(listen).is_err() && Instant::now() < deadline {
        sleep(Duration::from_millis(5)).await;
    }
}

/// Dials the holder of a key.
pub async fn dial(
    endpoint: &Endpoint,
    identity: &Identity,
    address: SocketAddr,
    key: PublicKey,
    deadline: Duration,
) -> Result<Connection, FormFailure> {
    let found = Arc::new(OnceLock::new());
    let config = client(identity, key, Arc::clone(&found))
        .map_err(|error| FormFailure::Impossible(error.to_string()))?;
    let connecting = endpoint
        .connect_with(config, address, SERVER_NAME)
        .map_err(|error| FormFailure::BadAddress(format!("can't dial {address}: {error}")))?;
    match timeout(deadline, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(match found.get() {
            Some(found) if *found != key => FormFailure::WrongKey { address, expected: key, found: *found },
            _ => explain(&error, address),
        }),
        Err(_) => Err(FormFailure::InviterUnreachable { address, seconds: deadline.as_secs() }),
    }
}

/// What the end of a connection to the daemon that gathers means.
pub fn explain(error: &ConnectionError, address: SocketAddr) -> FormFailure {
    match error {
        ConnectionError::ConnectionClosed(close) => match u64::from(close.error_code) {
            NO_APPLICATION_PROTOCOL => FormFailure::OtherVersion(address),
            CERTIFICATE_UNKNOWN => FormFailure::FormedWithout(address),
            _ => FormFailure::InviterBusy(address),
        },
        ConnectionError::VersionMismatch => FormFailure::OtherVersion(address),
        // Our own TLS says so: a signature of the handshake is not the certificate's.
        ConnectionError::TransportError(error) if u64::from(error.code) == DECRYPT_ERROR => {
            let what = "it shows the inviter's key and does not have it: somebody is in between".to_owned();
            FormFailure::InviterMisbehaves { address, what }
        }
        // It runs: it has just closed the connection, or was started anew.
        ConnectionError::ApplicationClosed(_) | ConnectionError::Reset => FormFailure::InviterBusy(address),
        _ => FormFailure::InviterUnreachable { address, seconds: u64::from(IDLE_TIMEOUT_MS) / 1000 },
    }
}

fn server(identity: &Identity) -> Result<ServerConfig, TlsError> {
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0);
    let mut config = ServerConfig::with_crypto(Arc::new(tls::forming_server_config(identity)?));
    config
        .transport_config(Arc::new(transport(1, 0)))
        .validation_token_config(tokens)
        .migration(false)
        .max_incoming(STRANGERS)
        .incoming_buffer_size(WAITING_BYTES)
        .incoming_buffer_size_total(WAITING_BYTES * STRANGERS as u64);
    Ok(config)
}

fn client(
    identity: &Identity,
    key: PublicKey,
    found: Arc<OnceLock<PublicKey>>,
) -> Result<ClientConfig, TlsError> {
    let mut transport = transport(0, 1);
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    let mut config = ClientConfig::new(Arc::new(tls::forming_client_config(identity, key, found)?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// So many streams may the other side open for questions, and for a word unasked.
fn transport(questions: u32, unasked: u32) -> TransportConfig {
    let window = if questions > 0 { MAX_ASK } else { MAX_REPLY };
    let window = u32::try_from(window).unwrap_or(u32::MAX);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(questions))
        .max_concurrent_uni_streams(VarInt::from_u32(unasked))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(window))
        .receive_window(VarInt::from_u32(window.saturating_mul(2)))
        .send_window(2 * MAX_REPLY as u64)
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT_MS).into()))
        .initial_rtt(INITIAL_RTT);
    config
}
