//! Incoming: lets members in, and takes their frames.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use bftd_core::crypto::PublicKey;
use bytes::Bytes;
use quinn::{Connection, ConnectionError, Endpoint, Incoming, RecvStream, crypto::rustls::HandshakeData};
use rustls::pki_types::CertificateDer;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};

use super::{
    CloseCode, Deliver, Lane, Shared,
    dial::{is_alert, plain_reason},
    frame::{Decoder, Oversized},
    peer::Peer,
    settings::{HANDSHAKE_DEADLINE, max_handshakes},
    tls,
};

/// The most bytes taken from a stream at a time.
const CHUNK: usize = 256 << 10;
/// The alert `no_application_protocol` (RFC 7301), as a QUIC error code.
const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;

/// Accepts connections until the endpoint is closed. A bounded number of handshakes is under way at a time: beyond a
/// quarter of it diallers must show that their address is theirs, beyond all of it they are refused.
pub(super) async fn keep_accepting<D: Deliver>(shared: Arc<Shared>, endpoint: Endpoint, deliver: Arc<D>) {
    let most = max_handshakes(shared.members.n());
    let handshakes = Arc::new(Semaphore::new(most));
    let mut connections = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            Some(_) = connections.join_next() => continue,
        };
        let Some(incoming) = incoming else {
            return;
        };
        let under_load = handshakes.available_permits() < most - most / 4;
        match handshakes.clone().try_acquire_owned() {
            Ok(_) if under_load && !incoming.remote_address_validated() => {
                // Can't fail: only an address that is validated already can't be asked again.
                let _ = incoming.retry();
            }
            Ok(permit) => {
                connections.spawn(serve(shared.clone(), incoming, permit, deliver.clone()));
            }
            Err(_) => {
                let address = incoming.remote_address();
                incoming.refuse();
                shared.overload.count(|left_out| {
                    tracing::warn!(%address, left_out, "refused a connection: too many handshakes are under way");
                });
            }
        }
    }
}

/// One connection, from its first packet to its end.
async fn serve<D: Deliver>(
    shared: Arc<Shared>,
    incoming: Incoming,
    permit: OwnedSemaphorePermit,
    deliver: Arc<D>,
) {
    let address = incoming.remote_address();
    let accepted = async { incoming.accept()?.await };
    let connection = match timeout(HANDSHAKE_DEADLINE, accepted).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return note_refusal(&shared, address, &error),
        Err(_) => return tracing::debug!(%address, "a handshake was not finished in time"),
    };
    if protocol_of(&connection).as_deref() == Some(tls::FORMING_ALPN) {
        // The permit is held: so few are welcomed at a time.
        return welcome(&connection, &shared.welcome).await;
    }
    drop(permit);
    let member = key_of(&connection).and_then(|key| shared.members.by_key(&key));
    let Some(peer) = member.and_then(|member| shared.peer(member.id)) else {
        // The verifier has let in nobody else; but who is not known is not served.
        connection.close(CloseCode::Protocol.into(), b"not a member");
        return;
    };
    peer.set_incoming(connection.clone());
    tracing::debug!(peer = peer.id.0, %address, "let in");
    if let Err(breach) = receive(peer, &connection, deliver).await {
        note_breach(peer, &connection, &breach);
    }
}

/// Tells a member that has not heard of it that the cluster is formed.
async fn welcome(connection: &Connection, genesis: &Bytes) {
    let tell = async {
        let mut stream = connection.open_uni().await.ok()?;
        stream.write_all(genesis).await.ok()?;
        stream.finish().ok()?;
        stream.stopped().await.ok()
    };
    // A member that does not listen is not told.
    let _ = timeout(HANDSHAKE_DEADLINE, tell).await;
    connection.close(CloseCode::Shutdown.into(), b"the cluster is formed");
}

/// The protocol that both sides have agreed on.
fn protocol_of(connection: &Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}

/// Takes frames until the connection ends, or the peer breaks a rule.
async fn receive<D: Deliver>(
    peer: &Arc<Peer>,
    connection: &Connection,
    deliver: Arc<D>,
) -> Result<(), Breach> {
    let mut lanes = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_uni() => {
                let Ok(stream) = stream else { return Ok(()) };
                let lane = match stream.id().index() {
                    0 => Lane::Votes,
                    1 => Lane::Bulk,
                    _ => return Err(Breach::ExtraStream),
                };
                lanes.spawn(read_lane(peer.clone(), lane, stream, deliver.clone()));
            }
            Some(ended) = lanes.join_next() => {
                ended.unwrap_or_else(|failed| match failed.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => Ok(()),
                })?;
            }
        }
    }
}

/// Takes the frames of one lane until the connection ends.
async fn read_lane<D: Deliver>(
    peer: Arc<Peer>,
    lane: Lane,
    mut stream: RecvStream,
    deliver: Arc<D>,
) -> Result<(), Breach> {
    let mut decoder = Decoder::default();
    loop {
        let mut chunk = match stream.read_chunk(CHUNK, true).await {
            Ok(Some(chunk)) => chunk.bytes,
            Err(quinn::ReadError::ConnectionLost(_)) => return Ok(()),
            Ok(None) | Err(_) => return Err(Breach::EndedStream),
        };
        let mut frames = 0;
        while let Some(frame) = decoder.next(&mut chunk)? {
            frames += 1;
            peer.received.add(1, frame.len() as u64);
            deliver.deliver(peer.id, lane, frame).await;
        }
        if frames > 0 {
            peer.note_received(Instant::now());
        }
    }
}

/// What a peer may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Breach {
    #[error(transparent)]
    Oversized(#[from] Oversized),
    #[error("a stream that is no lane")]
    ExtraStream,
    #[error("a lane was ended")]
    EndedStream,
}

fn note_breach(peer: &Peer, connection: &Connection, breach: &Breach) {
    let (counter, code) = match breach {
        Breach::Oversized(_) => (&peer.oversized, CloseCode::Oversized),
        Breach::ExtraStream | Breach::EndedStream => (&peer.breaches, CloseCode::Protocol),
    };
    counter.fetch_add(1, Ordering::Relaxed);
    connection.close(code.into(), breach.to_string().as_bytes());
    peer.breach_notice.give(|left_out| {
        tracing::warn!(peer = peer.id.0, left_out, "closed a connection of this member, which sent {breach}");
    });
}

fn note_refusal(shared: &Shared, address: SocketAddr, error: &ConnectionError) {
    match error {
        ConnectionError::TransportError(error) if u64::from(error.code) == NO_APPLICATION_PROTOCOL => {
            let ours = tls::alpn(shared.members.cluster());
            shared.count_other_cluster(|left_out| {
                tracing::warn!(
                    %address, left_out, ours,
                    "refused a daemon of another cluster, or of another version of the protocol"
                );
            });
        }
        ConnectionError::TransportError(error) if is_alert(u64::from(error.code)) => {
            shared.strangers.count(|left_out| {
                tracing::warn!(%address, left_out, "refused a stranger: {}", plain_reason(&error.reason));
            });
        }
        error => tracing::debug!(%address, "a handshake failed: {error}"),
    }
}

/// The key that the other side has proved to hold.
pub(crate) fn key_of(connection: &Connection) -> Option<PublicKey> {
    let certificates = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    tls::key_of(certificates.first()?).ok()
}
