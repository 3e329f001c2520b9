//! How values are encoded in the log: postcard, followed by a seal, the first bytes of the encoding's SHA-256.
//!
//! The seal finds what a disk has altered. It is no protection against whoever can write to the file.

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Serialize, de::DeserializeOwned};

/// The length of a seal in bytes.
const SEAL: usize = 8;

/// Encodes a value into `buffer`, whose allocation is reused.
pub(super) fn encode<'a, T: Serialize + ?Sized>(value: &T, buffer: &'a mut Vec<u8>) -> &'a [u8] {
    let mut bytes = std::mem::take(buffer);
    bytes.clear();
    bytes = postcard::to_extend(value, bytes).expect("encoding into a growing buffer succeeds");
    let seal = seal(&bytes);
    bytes.extend_from_slice(&seal);
    *buffer = bytes;
    buffer
}

/// Decodes a value; none if the bytes are not exactly what [`encode`] made.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (encoded, sealed) = bytes.split_last_chunk::<SEAL>()?;
    if seal(encoded) != *sealed {
        return None;
    }
    match postcard::take_from_bytes(encoded) {
        Ok((value, [])) => Some(value),
        _ => None,
    }
}

fn seal(encoded: &[u8]) -> [u8; SEAL] {
    let digest = digest(&SHA256, encoded);
    *digest.as_ref().first_chunk().expect("a SHA-256 digest is longer than a seal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_found() {
        let mut buffer = Vec::new();
        let bytes = encode(&(7_u64, "text"), &mut buffer).to_vec();
        assert_eq!(decode::<(u64, String)>(&bytes), Some((7, "text".into())));
        for bit in 0..8 * bytes.len() {
            let mut altered = bytes.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode::<(u64, String)>(&altered), None, "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert_eq!(decode::<(u64, String)>(&bytes[..length]), None, "length {length}");
        }
    }
}
