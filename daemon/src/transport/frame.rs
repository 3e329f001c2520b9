//! Frames on a stream: a little-endian `u32` length, then that many bytes.

use bftd_core::limits::MAX_MESSAGE;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of the length in front of a frame.
pub(super) const HEADER: usize = 4;
/// Frames up to this many bytes are copied together into one buffer; longer ones are passed on as they are.
const COPY_UP_TO: usize = 16 << 10;
/// The most that is reserved on the word of a header alone; beyond it, memory grows with what has really come.
const RESERVE_UP_TO: usize = 64 << 10;

/// A header that announces more than [`MAX_MESSAGE`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {length} bytes, over the limit of {MAX_MESSAGE}")]
pub(super) struct Oversized {
    length: usize,
}

/// Appends what goes onto the stream for `frames`, in order, as few buffers. Each frame must keep to
/// [`MAX_MESSAGE`].
pub(super) fn pack(frames: &[Bytes], buffers: &mut Vec<Bytes>) {
    let copied = |frame: &Bytes| if frame.len() <= COPY_UP_TO { frame.len() } else { 0 };
    let mut buffer = BytesMut::with_capacity(frames.iter().map(|frame| HEADER + copied(frame)).sum());
    for frame in frames {
        buffer.put_u32_le(u32::try_from(frame.len()).expect("a frame keeps to MAX_MESSAGE"));
        if frame.len() <= COPY_UP_TO {
            buffer.put_slice(frame);
        } else {
            buffers.push(buffer.split().freeze());
            buffers.push(frame.clone());
        }
    }
    if !buffer.is_empty() {
        buffers.push(buffer.freeze());
    }
}

/// Takes a stream apart into frames. Holds at most one unfinished frame.
#[derive(Default)]
pub(super) struct Decoder {
    /// The beginning of a frame, header included, whose end has not come yet.
    unfinished: BytesMut,
}

impl Decoder {
    /// Takes the next frame out of `chunk`; `None` when all of `chunk` is used and the frame is not complete.
    /// A frame that lies within the chunk is not copied.
    pub(super) fn next(&mut self, chunk: &mut Bytes) -> Result<Option<Bytes>, Oversized> {
        if self.unfinished.is_empty()
            && let Some(length) = length(chunk)?
            && chunk.len() >= HEADER + length
        {
            chunk.advance(HEADER);
            return Ok(Some(chunk.split_to(length)));
        }
        self.move_from(chunk, HEADER);
        let Some(length) = length(&self.unfinished)? else {
            return Ok(None);
        };
        self.unfinished.reserve((HEADER + length).min(RESERVE_UP_TO).saturating_sub(self.unfinished.len()));
        self.move_from(chunk, HEADER + length);
        if self.unfinished.len() < HEADER + length {
            return Ok(None);
        }
        let mut frame = std::mem::take(&mut self.unfinished);
        frame.advance(HEADER);
        Ok(Some(frame.freeze()))
    }

    /// Moves bytes over until `target` are there, or the chunk is empty.
    fn move_from(&mut self, chunk: &mut Bytes, target: usize) {
        let missing = target.saturating_sub(self.unfinished.len()).min(chunk.len());
        self.unfinished.extend_from_slice(&chunk.split_to(missing));
    }
}

/// The length that a header announces; `None` when it has not come whole.
fn length(bytes: &[u8]) -> Result<Option<usize>, Oversized> {
    let Some(header) = bytes.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*header) as usize;
    if length > MAX_MESSAGE { Err(Oversized { length }) } else { Ok(Some(length)) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn decode(decoder: &mut Decoder, stream: &[u8], step: usize) -> Vec<Bytes> {
        let mut frames = Vec::new();
        for part in stream.chunks(step) {
            let mut chunk = Bytes::copy_from_slice(part);
            while let Some(frame) = decoder.next(&mut chunk).unwrap() {
                frames.push(frame);
            }
            assert!(chunk.is_empty());
        }
        frames
    }

    #[test]
    fn frames_survive_any_cutting() {
        let sizes = [0, 1, 3, 4, 5, 200, COPY_UP_TO, COPY_UP_TO + 1, 0, 70_000, 7];
        let frames: Vec<Bytes> = (1u8..).zip(sizes).map(|(n, size)| Bytes::from(vec![n; size])).collect();
        let mut buffers = Vec::new();
        pack(&frames, &mut buffers);
        assert!(buffers.len() <= 5, "small frames share a buffer");
        let stream = buffers.concat();
        for step in [1, 2, 3, 4, 5, 7, 1200, 20_000, stream.len()] {
            let mut decoder = Decoder::default();
            assert_eq!(decode(&mut decoder, &stream, step), frames, "step {step}");
            assert!(decoder.unfinished.is_empty());
        }
    }

    #[test]
    fn the_limit_holds_exactly() {
        let mut at_limit = Bytes::from((MAX_MESSAGE as u32).to_le_bytes().to_vec());
        let mut decoder = Decoder::default();
        assert_eq!(decoder.next(&mut at_limit), Ok(None));
        assert!(decoder.unfinished.capacity() <= 2 * RESERVE_UP_TO, "nothing is reserved on a header's word");

        let over = (MAX_MESSAGE as u32 + 1).to_le_bytes();
        for step in [1, 4] {
            let mut decoder = Decoder::default();
            let last =
                over.chunks(step).map(|part| decoder.next(&mut Bytes::copy_from_slice(part))).last().unwrap();
            assert_eq!(last, Err(Oversized { length: MAX_MESSAGE + 1 }));
        }
    }
}
