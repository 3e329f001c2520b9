//! One client's connection.

use std::{
    future::pending,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bftd_client::{
    Failure,
    frame::{self, FrameError},
    protocol::{CONNECTION, Call, Reply, Request, Response},
};
use bytes::BytesMut;
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::AsyncWriteExt,
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::{BYTES_IN_FLIGHT, IN_FLIGHT, Limits, PeerCredentials, Service, WATCHES};

/// From how many bytes of unwritten answers on no more are gathered.
const WRITE_AT: usize = 256 << 10;
/// A buffer that grew larger is given back once it is written.
const KEPT: usize = 1 << 20;

/// Serves a connection until its client closes it or misbehaves, or until `closing` is set and all is answered.
pub(super) async fn serve<S: Service>(
    stream: UnixStream,
    connection: u64,
    service: Arc<S>,
    limits: Limits,
    closing: watch::Receiver<bool>,
) {
    match converse(stream, connection, &*service, limits, closing).await {
        Ok(()) => {}
        // A client that is killed breaks its connection: that is no news.
        Err(FrameError::Io(error)) => tracing::debug!(%error, "a client's connection broke"),
        Err(error) => tracing::warn!(%error, "closed a client's connection"),
    }
}

async fn converse<S: Service>(
    stream: UnixStream,
    connection: u64,
    service: &S,
    limits: Limits,
    closing: watch::Receiver<bool>,
) -> Result<(), FrameError> {
    let credentials = stream.peer_cred()?;
    let (uid, gid, pid) = (credentials.uid(), credentials.gid(), credentials.pid());
    let peer = PeerCredentials { uid, gid, pid, connection };
    let (mut reader, mut writer) = stream.into_split();
    let mut input = BytesMut::new();
    let greeting = async {
        writer.write_all(&frame::greeting(env!("CARGO_PKG_VERSION"))).await?;
        frame::read_greeting(&mut reader, &mut input).await
    };
    let late = FrameError::Late { what: "the greeting", seconds: limits.greeting.as_secs() };
    timeout(limits.greeting, greeting).await.map_err(|_| late)??;

    let mut output = Output::default();
    let party = Party { peer, service, limits, closing };
    let ended = answer_calls(&mut reader, &mut writer, input, &mut output, party).await;
    match &ended {
        Ok(()) | Err(FrameError::Io(_) | FrameError::Late { what: TAKING, .. }) => {}
        Err(broken_rule) => {
            let response = Response::Failed(Failure::Protocol(broken_rule.to_string()));
            output.add(Reply { id: CONNECTION, response });
            let late = || FrameError::Late { what: TAKING, seconds: limits.write.as_secs() };
            timeout(limits.write, writer.write_all(output.rest())).await.map_err(|_| late())??;
        }
    }
    ended
}

/// Who is served, by whom, within what limits and for how long.
struct Party<'a, S> {
    peer: PeerCredentials,
    service: &'a S,
    limits: Limits,
    /// Set when the daemon stops: no more calls are read then, and the connection ends when all are answered.
    closing: watch::Receiver<bool>,
}

/// What a client that is sent answers owes us.
const TAKING: &str = "the taking of answers";

/// Reads calls, has them answered, writes the answers: all three side by side, so that neither a slow client nor a
/// slow answer holds up what could go on.
async fn answer_calls<S: Service>(
    reader: &mut OwnedReadHalf,
    writer: &mut OwnedWriteHalf,
    mut input: BytesMut,
    output: &mut Output,
    party: Party<'_, S>,
) -> Result<(), FrameError> {
    let Party { peer, service, limits, mut closing } = party;
    let (mut is_closing, mut has_taken_leave) = (false, false);
    let mut answers = FuturesUnordered::new();
    let mut in_flight = Load::default();
    // When the frame that is not complete yet began to come. Time in which we don't read doesn't count.
    let mut begun: Option<Instant> = None;
    // Since when the client has taken nothing of what waits for it.
    let mut stuck: Option<Instant> = None;
    loop {
        let may_take = loop {
            if answers.len() >= IN_FLIGHT || in_flight.bytes >= BYTES_IN_FLIGHT {
                break false;
            }
            let before = input.len();
            let Some(call) = frame::take::<Call>(&mut input)? else { break !is_closing };
            let watches = usize::from(matches!(call.request, Request::Watch { .. }));
            let load = Load { bytes: before - input.len(), watches };
            in_flight.add(load);
            begun = None;
            let is_refused = watches > 0 && in_flight.watches > WATCHES;
            answers.push(async move {
                let response = if is_refused {
                    Response::Failed(Failure::TooManyWatches { limit: WATCHES as u64 })
                } else {
                    service.handle(peer, call.request).await
                };
                (Reply { id: call.id, response }, load)
            });
        };
        if is_closing && answers.is_empty() && !has_taken_leave {
            has_taken_leave = true;
            output.add(Reply { id: CONNECTION, response: Response::Failed(Failure::Closing) });
        }
        if has_taken_leave && output.is_empty() {
            return Ok(());
        }
        if input.is_empty() || !may_take {
            begun = None;
        } else {
            begun.get_or_insert_with(Instant::now);
        }
        if output.is_empty() {
            stuck = None;
        } else {
            stuck.get_or_insert_with(Instant::now);
        }
        let may_gather = !answers.is_empty() && output.len() < WRITE_AT;
        // In this order most answers share a write. Nothing starves: without reading there are ever fewer answers, and
        // without writing none are gathered.
        tokio::select! {
            biased;
            Some((reply, load)) = answers.next(), if may_gather => {
                output.add(reply);
                in_flight.remove(load);
                gather(&mut answers, output, &mut in_flight);
            }
            count = writer.write(output.rest()), if !output.is_empty() => {
                output.written(count?);
                stuck = None;
            }
            _ = closing.wait_for(|closing| *closing), if !is_closing => is_closing = true,
            count = frame::fill(reader, &mut input), if may_take => {
                if count? == 0 {
                    return Ok(());
                }
            }
            () = passed(begun, limits.frame) => {
                let seconds = limits.frame.as_secs();
                return Err(FrameError::Late { what: "the rest of a frame", seconds });
            }
            () = passed(stuck, limits.write) => {
                return Err(FrameError::Late { what: TAKING, seconds: limits.write.as_secs() });
            }
        }
    }
}

/// What calls under way count for.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    bytes: usize,
    watches: usize,
}

impl Load {
    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.watches += other.watches;
    }

    fn remove(&mut self, other: Self) {
        self.bytes -= other.bytes;
        self.watches -= other.watches;
    }
}

/// Waits until a time has passed since `start`; for ever where there is none.
async fn passed(start: Option<Instant>, time: Duration) {
    match start {
        Some(start) => sleep_until(start + time).await,
        None => pending().await,
    }
}

/// Adds the answers that are ready too, so that one write carries them all.
fn gather<F>(answers: &mut FuturesUnordered<F>, output: &mut Output, in_flight: &mut Load)
where
    F: Future<Output = (Reply, Load)>,
{
    // Whatever is not ready is polled again, with a real waker, before the session waits.
    let mut context = Context::from_waker(Waker::noop());
    while output.len() < WRITE_AT {
        let Poll::Ready(Some((reply, load))) = answers.poll_next_unpin(&mut context) else { break };
        output.add(reply);
        in_flight.remove(load);
    }
}

/// Frames on their way to the client: at most [`WRITE_AT`] bytes and one frame that are not taken, and at most as many
/// again, or [`WRITE_AT`], that are.
#[derive(Debug, Default)]
struct Output {
    frames: Vec<u8>,
    /// How many bytes of them the client's side has taken.
    taken: usize,
}

impl Output {
    fn add(&mut self, reply: Reply) {
        let id = reply.id;
        if let Err(error) = frame::write(&mut self.frames, &reply) {
            let response = Response::Failed(Failure::Internal(format!("the answer is too large: {error}")));
            frame::write(&mut self.frames, &Reply { id, response }).expect("a failure's text is small");
        }
    }

    fn rest(&self) -> &[u8] {
        self.frames.get(self.taken..).expect("no more is taken than there is")
    }

    fn len(&self) -> usize {
        self.frames.len() - self.taken
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn written(&mut self, bytes: usize) {
        self.taken += bytes;
        if self.is_empty() {
            self.taken = 0;
            self.frames.clear();
            if self.frames.capacity() > KEPT {
                self.frames = Vec::new();
            }
        } else if self.taken >= WRITE_AT && self.taken >= self.frames.len() / 2 {
            self.frames.drain(..self.taken);
            self.taken = 0;
        }
    }
}
