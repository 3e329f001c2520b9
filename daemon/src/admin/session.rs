//! One client's connection.

use std::{
    io,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bftd_client::{
    Failure,
    frame::{self, FrameError},
    protocol::{CONNECTION, Call, Reply, Response},
};
use bytes::BytesMut;
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, sleep_until, timeout},
};

use super::{IN_FLIGHT, Limits, PeerCredentials, Service, WRITE_DEADLINE};

/// From how many bytes of answers on they are written although more are ready.
const WRITE_AT: usize = 256 << 10;
/// How much is read at once.
const READ_AT_ONCE: usize = 64 << 10;

/// Serves a connection until its client closes it or misbehaves.
pub(super) async fn serve<S: Service>(stream: UnixStream, service: Arc<S>, limits: Limits) {
    match converse(stream, &*service, limits).await {
        Ok(()) => {}
        // A client that is killed breaks its connection: that is no news.
        Err(FrameError::Io(error)) => tracing::debug!(%error, "a client's connection broke"),
        Err(error) => tracing::warn!(%error, "closed a client's connection"),
    }
}

async fn converse<S: Service>(stream: UnixStream, service: &S, limits: Limits) -> Result<(), FrameError> {
    let credentials = stream.peer_cred()?;
    let peer = PeerCredentials { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() };
    let (mut reader, mut writer) = stream.into_split();
    let mut input = BytesMut::new();
    let greeting = async {
        writer.write_all(&frame::greeting(env!("CARGO_PKG_VERSION"))).await?;
        frame::read_greeting(&mut reader, &mut input).await
    };
    let late = FrameError::Late { what: "the greeting", seconds: limits.greeting.as_secs() };
    timeout(limits.greeting, greeting).await.map_err(|_| late)??;

    let ended = answer_calls(&mut reader, &mut writer, input, peer, service, limits.frame).await;
    match &ended {
        Ok(()) | Err(FrameError::Io(_)) => {}
        Err(broken_rule) => {
            let response = Response::Failed(Failure::Protocol(broken_rule.to_string()));
            let mut reason = Vec::new();
            frame::write(&mut reason, &Reply { id: CONNECTION, response })?;
            send(&mut writer, &reason).await?;
        }
    }
    ended
}

/// Reads calls, has them answered, writes the answers.
async fn answer_calls<S: Service>(
    reader: &mut OwnedReadHalf,
    writer: &mut OwnedWriteHalf,
    mut input: BytesMut,
    peer: PeerCredentials,
    service: &S,
    frame_deadline: Duration,
) -> Result<(), FrameError> {
    let mut answers = FuturesUnordered::new();
    let mut output = Vec::new();
    // When the frame that is not complete yet began to come. Time in which we don't read doesn't count.
    let mut begun: Option<Instant> = None;
    loop {
        while answers.len() < IN_FLIGHT {
            let Some(call) = frame::take::<Call>(&mut input)? else { break };
            begun = None;
            answers.push(
                async move { Reply { id: call.id, response: service.handle(peer, call.request).await } },
            );
        }
        let may_read = answers.len() < IN_FLIGHT;
        if input.is_empty() || !may_read {
            begun = None;
        } else {
            begun.get_or_insert_with(Instant::now);
        }
        tokio::select! {
            Some(reply) = answers.next(), if !answers.is_empty() => {
                write_reply(&mut output, reply);
                gather(&mut answers, &mut output);
                send(writer, &output).await?;
                output.clear();
            }
            count = read_some(reader, &mut input), if may_read => {
                if count? == 0 {
                    return Ok(());
                }
            }
            () = pin!(sleep_until(begun.unwrap_or_else(Instant::now) + frame_deadline)), if begun.is_some() => {
                let seconds = frame_deadline.as_secs();
                return Err(FrameError::Late { what: "the rest of a frame", seconds });
            }
        }
    }
}

/// Adds the answers that are ready too, so that one write carries them all.
fn gather<F: Future<Output = Reply>>(answers: &mut FuturesUnordered<F>, output: &mut Vec<u8>) {
    // Whatever is not ready is polled again, with a real waker, before the session waits.
    let mut context = Context::from_waker(Waker::noop());
    while output.len() < WRITE_AT {
        let Poll::Ready(Some(reply)) = answers.poll_next_unpin(&mut context) else { return };
        write_reply(output, reply);
    }
}

fn write_reply(output: &mut Vec<u8>, reply: Reply) {
    let id = reply.id;
    if let Err(error) = frame::write(output, &reply) {
        let response = Response::Failed(Failure::Internal(format!("the answer is too large: {error}")));
        frame::write(output, &Reply { id, response }).expect("a failure's text is small");
    }
}

async fn send(writer: &mut OwnedWriteHalf, output: &[u8]) -> io::Result<()> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "the client does not take its answers");
    timeout(WRITE_DEADLINE, writer.write_all(output)).await.map_err(|_| late())?
}

async fn read_some(reader: &mut OwnedReadHalf, input: &mut BytesMut) -> io::Result<usize> {
    input.reserve(READ_AT_ONCE);
    reader.read_buf(input).await
}
