//! Vectors over Z/2^32 and Z/2^64, and the ChaCha20 streams that hide them.

use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher};
use zeroize::Zeroizing;

use super::error::{Result, SecAggError};
use super::keys::Secret;
use super::plan::{MAX_LEN, Ring};

/// Coordinates that stay in the nearest cache while all masks go over them.
const BLOCK: usize = 1024;

/// Whether a mask is added or taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// Added.
    Plus,
    /// Taken away.
    Minus,
}

impl Sign {
    /// The other.
    #[must_use]
    pub const fn flipped(self) -> Self {
        match self {
            Self::Plus => Self::Minus,
            Self::Minus => Self::Plus,
        }
    }
}

/// Adds to every coordinate the next 4 or 8 bytes of each seed's stream (RFC 8439, nonce 0, from block 0),
/// little-endian, modulo the ring. A seed must serve one vector only.
pub fn apply<'a>(
    vector: &mut [u64],
    ring: Ring,
    masks: impl IntoIterator<Item = (&'a Secret, Sign)>,
) -> Result<()> {
    // Well below the 2^38 bytes after which the stream ends.
    if vector.len() > MAX_LEN {
        return Err(SecAggError::WrongLength { got: vector.len(), want: MAX_LEN });
    }
    let mut streams: Vec<(ChaCha20, Sign)> = masks
        .into_iter()
        .map(|(seed, sign)| (ChaCha20::new(seed.expose().into(), &[0; 12].into()), sign))
        .collect();
    let mut buffer = Zeroizing::new([0u8; BLOCK * 8]);
    for block in vector.chunks_mut(BLOCK) {
        let bytes = &mut buffer[..block.len() * ring.bytes()];
        for (stream, sign) in &mut streams {
            bytes.fill(0);
            stream.apply_keystream(bytes);
            match ring {
                Ring::U32 => add::<4>(block, bytes, *sign),
                Ring::U64 => add::<8>(block, bytes, *sign),
            }
        }
        block.iter_mut().for_each(|x| *x = ring.reduce(*x));
    }
    Ok(())
}

fn add<const BYTES: usize>(block: &mut [u64], stream: &[u8], sign: Sign) {
    let (words, _) = stream.as_chunks::<BYTES>();
    let pairs = block.iter_mut().zip(words);
    match sign {
        Sign::Plus => pairs.for_each(|(x, word)| *x = x.wrapping_add(read(word))),
        Sign::Minus => pairs.for_each(|(x, word)| *x = x.wrapping_sub(read(word))),
    }
}

fn read<const BYTES: usize>(word: &[u8; BYTES]) -> u64 {
    let mut wide = [0; 8];
    wide[..BYTES].copy_from_slice(word);
    u64::from_le_bytes(wide)
}

/// The vector as it is sent: little-endian, 4 or 8 bytes a coordinate.
pub fn to_bytes(vector: &[u64], ring: Ring) -> Vec<u8> {
    let mut bytes = vec![0; vector.len() * ring.bytes()];
    for (chunk, x) in bytes.chunks_exact_mut(ring.bytes()).zip(vector) {
        chunk.copy_from_slice(&x.to_le_bytes()[..ring.bytes()]);
    }
    bytes
}

/// Adds a vector as it was sent.
pub fn add_bytes(sum: &mut [u64], ring: Ring, bytes: &[u8]) -> Result<()> {
    if bytes.len() != sum.len() * ring.bytes() {
        return Err(SecAggError::WrongLength { got: bytes.len() / ring.bytes(), want: sum.len() });
    }
    match ring {
        Ring::U32 => add::<4>(sum, bytes, Sign::Plus),
        Ring::U64 => add::<8>(sum, bytes, Sign::Plus),
    }
    sum.iter_mut().for_each(|x| *x = ring.reduce(*x));
    Ok(())
}

/// The sum that the protocol must arrive at, taken in the open: its oracle.
pub fn plain_sum<'a>(vectors: impl IntoIterator<Item = &'a [u64]>, ring: Ring, len: usize) -> Vec<u64> {
    let mut sum = vec![0u64; len];
    for vector in vectors {
        sum.iter_mut().zip(vector).for_each(|(s, x)| *s = ring.reduce(s.wrapping_add(*x)));
    }
    sum
}
