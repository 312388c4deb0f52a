//! What a model's weights are known by, whatever file they lie in and however they are kept in memory.

use lora_core::Result;
use lora_model::{Checkpoint, tensor_shapes};
use sha2::{Digest, Sha256};

/// Numbers of a tensor that count. Training changes a good part of a matrix, and those of all tensors are tens of thousands.
const COUNTED: u64 = 256;

/// The golden ratio's fraction of 2^64: its multiples lie evenly, and in no column more than in others.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A name for the weights of a checkpoint, 16 hexadecimal digits: of every tensor's name and shape, and of 256 numbers of each.
///
/// It goes by the numbers that the file means, so it is one for shards, another float type that holds them all, a GGUF without
/// rounding, and for whatever becomes of them in memory (dtype, 4 bits, device). A file whose own numbers are rounded, as GGUF's
/// blocks are, is another model: 4 bits move weights further than most fine-tuning does, so one cannot be told from the other.
/// An edit of a few rows alone may go unseen, and the configuration is not looked at: what must be exact takes a hash of files.
///
/// Of a file in 4 bits of bitsandbytes' all tensors are unpacked, one at a time; of others little more than those numbers is read.
///
/// # Errors
/// Tensors that are missing or of another shape than the configuration says; those of [`Checkpoint::load`].
pub fn fingerprint(checkpoint: &dyn Checkpoint) -> Result<String> {
    let mut hash = Sha256::new();
    for (name, shape) in tensor_shapes(checkpoint)? {
        hash.update(name.as_bytes());
        hash.update([0]);
        shape.iter().for_each(|size| hash.update(size.to_le_bytes()));
        let numel = shape.iter().product::<i64>().unsigned_abs();
        let numbers = checkpoint.numbers_at(&name, &places(numel))?;
        numbers.iter().for_each(|number| hash.update(number.to_le_bytes()));
    }
    // Numbers that were unpacked to be looked at.
    tch_ext::memory::trim();
    Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

/// Places all over a tensor of so many numbers.
fn places(numel: u64) -> Vec<i64> {
    let place = |i: u64| ((u128::from(i.wrapping_mul(GOLDEN)) * u128::from(numel)) >> 64) as i64;
    (0..COUNTED.min(numel)).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::places;

    #[test]
    fn places_are_all_over_and_inside() {
        for numel in [0, 1, 3, 256, 576, 576 * 1536, 1 << 32] {
            let mut places = places(numel);
            assert_eq!(places.len() as u64, numel.min(256));
            assert!(places.iter().all(|&place| (0..numel as i64).contains(&place)));
            places.sort_unstable();
            // Nowhere a hole of more than a hundredth.
            let hole = places.windows(2).map(|two| two[1] - two[0]).max().unwrap_or(0) as u64;
            assert!(numel < 256 || hole <= numel / 100, "{numel}: {hole}");
        }
        let columns: std::collections::BTreeSet<i64> =
            places(576 * 1536).iter().map(|at| at % 1536).collect();
        assert!(columns.len() > 150, "{}", columns.len());
    }
}
