//! Frames: a length of four bytes, little-endian, then one item in postcard's encoding.

use std::io;

use bytes::{Buf, BytesMut};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::protocol::{Greeting, MAGIC, MAX_FRAME, VERSION};

/// How many bytes the length takes.
const LENGTH: usize = 4;
/// How many bytes are read at once, if as many are there.
const READ_AT_ONCE: usize = 64 << 10;
/// A buffer that held a frame of more bytes is given back once it is empty.
const KEPT: usize = 1 << 20;

/// Why the other side can't be understood.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// A frame is larger than allowed.
    #[error("a frame of {bytes} bytes is larger than the {MAX_FRAME} allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// A frame does not hold what it should.
    #[error("a frame that makes no sense")]
    Malformed,
    /// The other side was silent for too long.
    #[error("{what} did not come within {seconds} s")]
    Late {
        /// What was due.
        what: &'static str,
        /// How long was waited for it.
        seconds: u64,
    },
    /// The other side is not what was expected there.
    #[error("the other side does not speak bftd's admin protocol")]
    NotBftd,
    /// The other side speaks another version.
    #[error(
        "the other side ({software}) speaks version {theirs} of the admin protocol, this one version {VERSION}"
    )]
    Version {
        /// Its version.
        theirs: u32,
        /// Its program's version.
        software: String,
    },
}

/// Appends an item's frame to a buffer.
///
/// # Errors
/// The frame would be too large; the buffer is as it was.
pub fn write<T: Serialize>(buffer: &mut Vec<u8>, item: &T) -> Result<(), FrameError> {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; LENGTH]);
    let taken = std::mem::take(buffer);
    *buffer = postcard::to_extend(item, taken).expect("encoding into a growing buffer succeeds");
    let bytes = buffer.len() - start - LENGTH;
    if bytes > MAX_FRAME {
        buffer.truncate(start);
        return Err(FrameError::TooLarge { bytes });
    }
    let length = u32::try_from(bytes).expect("the largest frame's length fits").to_le_bytes();
    if let Some(place) = buffer.get_mut(start..start + LENGTH) {
        place.copy_from_slice(&length);
    }
    Ok(())
}

/// Takes the next item out of a buffer; none while its frame is not complete.
///
/// # Errors
/// The frame is too large, or makes no sense.
pub fn take<T: DeserializeOwned>(buffer: &mut BytesMut) -> Result<Option<T>, FrameError> {
    let Some(length) = buffer.first_chunk::<LENGTH>() else { return Ok(None) };
    let bytes = u32::from_le_bytes(*length) as usize;
    if bytes > MAX_FRAME {
        return Err(FrameError::TooLarge { bytes });
    }
    if buffer.len() < LENGTH + bytes {
        buffer.reserve(LENGTH + bytes - buffer.len());
        return Ok(None);
    }
    buffer.advance(LENGTH);
    let frame = buffer.split_to(bytes);
    if bytes > KEPT && buffer.is_empty() {
        *buffer = BytesMut::new();
    }
    match postcard::take_from_bytes(&frame) {
        Ok((item, [])) => Ok(Some(item)),
        _ => Err(FrameError::Malformed),
    }
}

/// Reads until the next item is complete; none where the other side has closed the connection between two frames.
///
/// # Errors
/// See [`FrameError`]; a connection that ends within a frame is an I/O error.
pub async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
) -> Result<Option<T>, FrameError> {
    loop {
        if let Some(item) = take(buffer)? {
            return Ok(Some(item));
        }
        if fill(stream, buffer).await? == 0 {
            if buffer.is_empty() {
                return Ok(None);
            }
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// Reads what is there, up to 64 KiB, or the rest of the frame that [`take`] made room for. 0 bytes are the end.
///
/// # Errors
/// The connection broke.
pub async fn fill(stream: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> io::Result<usize> {
    buffer.reserve(READ_AT_ONCE);
    stream.read_buf(buffer).await
}

/// This program's greeting, as a frame.
pub fn greeting(software: &str) -> Vec<u8> {
    let mut buffer = Vec::new();
    let greeting = Greeting { magic: MAGIC, version: VERSION, software: software.to_owned() };
    write(&mut buffer, &greeting).expect("a greeting is small");
    buffer
}

/// Reads the other side's greeting.
///
/// # Errors
/// It is none, or of another version. A connection closed before it is an I/O error.
pub async fn read_greeting(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
) -> Result<Greeting, FrameError> {
    let greeting: Greeting = match read(stream, buffer).await {
        Ok(Some(greeting)) => greeting,
        Ok(None) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        Err(FrameError::Io(error)) => return Err(FrameError::Io(error)),
        _ => return Err(FrameError::NotBftd),
    };
    if greeting.magic != MAGIC {
        return Err(FrameError::NotBftd);
    }
    if greeting.version != VERSION {
        return Err(FrameError::Version { theirs: greeting.version, software: greeting.software });
    }
    Ok(greeting)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_whatever_the_pieces() {
        let mut bytes = Vec::new();
        write(&mut bytes, &"one".to_owned()).unwrap();
        write(&mut bytes, &"two".to_owned()).unwrap();
        let mut buffer = BytesMut::new();
        let mut found: Vec<String> = Vec::new();
        for byte in bytes {
            buffer.extend_from_slice(&[byte]);
            found.extend(take::<String>(&mut buffer).unwrap());
        }
        assert_eq!(found, ["one", "two"]);
    }

    #[test]
    fn oversized_and_malformed_frames_are_refused() {
        let mut buffer = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
        assert!(matches!(take::<String>(&mut buffer), Err(FrameError::TooLarge { .. })));
        let mut buffer = BytesMut::from(&[2, 0, 0, 0, 9, 9][..]);
        assert!(matches!(take::<String>(&mut buffer), Err(FrameError::Malformed)));
        let mut out = vec![7];
        assert!(write(&mut out, &"x".repeat(MAX_FRAME)).is_err());
        assert_eq!(out, [7], "what was there before stays");
    }
}
