//! One client's connection.

use std::{io, pin::pin, sync::Arc};

use bftd_client::{
    frame::{self, FrameError},
    protocol::{Call, Reply},
};
use bytes::BytesMut;
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixStream, unix::OwnedReadHalf},
    time::{Instant, sleep_until, timeout},
};

use super::{FRAME_DEADLINE, GREETING_DEADLINE, IN_FLIGHT, PeerCredentials, Service};

/// From how many bytes of answers on they are written although more calls could be read.
const WRITE_AT: usize = 256 << 10;

/// Serves a connection until its client closes it or misbehaves.
pub(super) async fn serve<S: Service>(stream: UnixStream, service: Arc<S>) {
    match converse(stream, &*service).await {
        Ok(()) => {}
        // A client that is killed breaks its connection: that is no news.
        Err(FrameError::Io(error)) => tracing::debug!(%error, "a client's connection broke"),
        Err(error) => tracing::warn!(%error, "closed a client's connection"),
    }
}

async fn converse<S: Service>(stream: UnixStream, service: &S) -> Result<(), FrameError> {
    let credentials = stream.peer_cred()?;
    let peer = PeerCredentials { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() };
    let (mut reader, mut writer) = stream.into_split();
    let mut input = BytesMut::new();
    let greeting = async {
        writer.write_all(&frame::greeting(env!("CARGO_PKG_VERSION"))).await?;
        frame::read_greeting(&mut reader, &mut input).await
    };
    timeout(GREETING_DEADLINE, greeting).await.map_err(|_| late("its greeting"))??;

    let mut answers = FuturesUnordered::new();
    let mut output = Vec::new();
    let mut begun: Option<Instant> = None;
    let mut is_open = true;
    while is_open || !answers.is_empty() {
        while answers.len() < IN_FLIGHT {
            let Some(call) = frame::take::<Call>(&mut input)? else { break };
            begun = None;
            answers.push(
                async move { Reply { id: call.id, response: service.handle(peer, call.request).await } },
            );
        }
        if input.is_empty() {
            begun = None;
        } else if answers.len() < IN_FLIGHT {
            begun.get_or_insert_with(Instant::now);
        }
        let deadline =
            begun.map_or_else(|| Instant::now() + 2 * FRAME_DEADLINE, |begun| begun + FRAME_DEADLINE);
        let may_read = is_open && answers.len() < IN_FLIGHT;
        tokio::select! {
            Some(reply) = answers.next(), if !answers.is_empty() => {
                write_reply(&mut output, reply)?;
                gather(&mut answers, &mut output).await?;
                writer.write_all(&output).await?;
                output.clear();
            }
            count = read_some(&mut reader, &mut input), if may_read => {
                if count? == 0 {
                    if !input.is_empty() {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                    is_open = false;
                }
            }
            () = pin!(sleep_until(deadline)), if begun.is_some() => return Err(late("the rest of a frame")),
        }
    }
    Ok(())
}

/// Adds the answers that are ready too, so that one write carries them all.
async fn gather<F: Future<Output = Reply>>(
    answers: &mut FuturesUnordered<F>,
    output: &mut Vec<u8>,
) -> Result<(), FrameError> {
    while output.len() < WRITE_AT && !answers.is_empty() {
        let ready = std::future::poll_fn(|context| {
            std::task::Poll::Ready(match answers.poll_next_unpin(context) {
                std::task::Poll::Ready(reply) => reply,
                std::task::Poll::Pending => None,
            })
        });
        match ready.await {
            Some(reply) => write_reply(output, reply)?,
            None => break,
        }
    }
    Ok(())
}

fn write_reply(output: &mut Vec<u8>, reply: Reply) -> Result<(), FrameError> {
    frame::write(output, &reply)
}

async fn read_some(reader: &mut OwnedReadHalf, input: &mut BytesMut) -> io::Result<usize> {
    const CHUNK: usize = 64 << 10;
    input.reserve(CHUNK);
    reader.read_buf(input).await
}

fn late(what: &str) -> FrameError {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} did not come in time")).into()
}
