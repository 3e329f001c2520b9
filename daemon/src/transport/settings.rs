//! QUIC as this project uses it: every buffer finite, every wait with an end.

use std::{net::UdpSocket, sync::Arc, time::Duration};

use aws_lc_rs::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use quinn::{
    AckFrequencyConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig, ServerConfig, TransportConfig,
    ValidationTokenConfig, VarInt,
    congestion::CubicConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};

use crate::identity::Identity;

/// How long a dialler that was let in may take for its handshake.
pub(super) const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(3);
/// How long one attempt to dial lasts. Shorter than [`HANDSHAKE_DEADLINE`], because the gaps between repeated first packets
/// double, and a peer that comes up within a gap should not wait it out.
pub(super) const DIAL_DEADLINE: Duration = Duration::from_secs(2);
/// How long a silent connection is believed in.
const IDLE_TIMEOUT_MS: u32 = 3_000;
/// How often a dialler says that it is there. The acceptor's acknowledgement proves the other direction.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// The first guess of a round trip: members are in one data centre, or a few. QUIC's own 333 ms would let the first lost
/// packet cost a second; a guess that is too low only repeats a packet or two.
const INITIAL_RTT: Duration = Duration::from_millis(10);
/// What may be in flight before the first acknowledgement: less than a default UDP receive buffer (208 KiB), and
/// enough for most blocks without a round of slow start.
const INITIAL_WINDOW: u64 = 128 << 10;
/// What all peers together may make this node buffer per lane, in bytes, and the least and most that one may.
const STREAM_WINDOWS: u32 = 64 << 20;
const MIN_STREAM_WINDOW: u32 = 256 << 10;
const MAX_STREAM_WINDOW: u32 = 4 << 20;
/// The lanes of a connection: the only streams there are.
const LANES: u32 = 2;
/// How many handshakes are worked on or wait at a time, per member. More are refused.
const HANDSHAKES_PER_MEMBER: usize = 4;
/// What is buffered for a dialler that waits for its turn: a few packets of a handshake.
const WAITING_BYTES: u64 = 16 << 10;
/// A peer may wait for so many packets, or for 25 ms, before it acknowledges: nothing goes the other way on a connection, so each
/// acknowledgement is a packet of its own, and wakes a process.
const ACK_AFTER: u32 = 10;
/// Bytes in a connection id.
const CONNECTION_ID: usize = 8;

/// What the kernel should hold of a burst of packets while this process does something else, each way, in bytes. A few blocks
/// at once from all peers; the kernel's own default is 208 KiB.
pub(crate) const UDP_BUFFER: usize = 2 << 20;

/// Asks for [`UDP_BUFFER`]. The kernel gives no more than its `rmem_max` and `wmem_max`; with less packets are lost in bursts,
/// and sent again, so that is no error. `bftctl doctor` tells of it.
pub(super) fn enlarge_buffers(socket: &UdpSocket) {
    use rustix::net::sockopt;
    for set in [sockopt::set_socket_recv_buffer_size, sockopt::set_socket_send_buffer_size] {
        if let Err(error) = set(socket, UDP_BUFFER) {
            tracing::debug!(%error, "the UDP socket's buffers stay as they are");
        }
    }
}

/// The most incoming handshakes at a time in a cluster of `n`.
pub(super) fn max_handshakes(n: usize) -> usize {
    HANDSHAKES_PER_MEMBER * n
}

/// The endpoint. What marks our packets is derived from the identity, so that after a restart this node recognises the
/// packets of its former connections and resets them: peers notice the restart at once, not after the idle time-out.
pub(crate) fn endpoint(identity: &Identity) -> EndpointConfig {
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, &identity.derive(b"bftd/quic-reset/1"));
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config.cid_generator(|| Box::new(RandomIds(SystemRandom::new())));
    config
}

/// Connections that we accept.
pub(super) fn server(tls: QuicServerConfig, n: usize) -> ServerConfig {
    let waiting = max_handshakes(n);
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0);
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config
        .transport_config(Arc::new(transport(n, LANES)))
        .validation_token_config(tokens)
        .migration(false)
        .max_incoming(waiting)
        .incoming_buffer_size(WAITING_BYTES)
        .incoming_buffer_size_total(WAITING_BYTES * waiting as u64);
    config
}

/// Connections that we dial. Nothing but acknowledgements comes back on them.
pub(super) fn client(tls: QuicClientConfig, n: usize) -> quinn::ClientConfig {
    let mut transport = transport(n, 0);
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    config
}

/// A stream's window is what a lane whose reader is slow can make us hold. A connection's is twice that on both sides,
/// so that a lane that has used up its own never takes the other's room.
/// Left at their defaults: MTU discovery (FACTS: 8952 with GSO hangs), Cubic.
fn transport(n: usize, streams: u32) -> TransportConfig {
    let stream = stream_window(n);
    let mut congestion = CubicConfig::default();
    congestion.initial_window(INITIAL_WINDOW);
    let mut acknowledgements = AckFrequencyConfig::default();
    acknowledgements.ack_eliciting_threshold(VarInt::from_u32(ACK_AFTER));
    let mut config = TransportConfig::default();
    config
        .ack_frequency_config(Some(acknowledgements))
        .max_concurrent_uni_streams(VarInt::from_u32(streams))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(stream))
        .receive_window(VarInt::from_u32(stream * LANES))
        .send_window(u64::from(stream) * u64::from(LANES))
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT_MS).into()))
        .initial_rtt(INITIAL_RTT)
        .congestion_controller_factory(Arc::new(congestion));
    config
}

fn stream_window(n: usize) -> u32 {
    let peers = u32::try_from(n.saturating_sub(1).max(1)).unwrap_or(u32::MAX);
    (STREAM_WINDOWS / peers).clamp(MIN_STREAM_WINDOW, MAX_STREAM_WINDOW)
}

/// Random connection ids. Unlike quinn's default they carry no check that a restart would invalidate.
struct RandomIds(SystemRandom);

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID];
        self.0.fill(&mut id).expect("the system's source of randomness works");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_shrink_with_the_number_of_peers() {
        assert_eq!(stream_window(1), MAX_STREAM_WINDOW);
        assert_eq!(stream_window(4), MAX_STREAM_WINDOW);
        assert_eq!(stream_window(100), STREAM_WINDOWS / 99);
        assert_eq!(stream_window(255), MIN_STREAM_WINDOW.max(STREAM_WINDOWS / 254));
    }
}
