//! Tensors that a backward pass needs as they were in the forward.

use tch::Tensor;

/// A tensor that is found again as it was saved, or not at all: so libtorch's own functions keep theirs.
#[derive(Debug)]
pub struct Saved {
    tensor: Tensor,
    version: i64,
}

impl Saved {
    /// Nothing is copied.
    pub fn new(tensor: Tensor) -> Self {
        let version = tensor.internal_version();
        Self { tensor, version }
    }

    /// For a second reader: nothing is copied, and it is the moment of the first that counts.
    pub fn share(&self) -> Self {
        Self { tensor: self.tensor.shallow_clone(), version: self.version }
    }

    /// As it was.
    ///
    /// # Panics
    /// If its numbers were changed in place since, through any handle on them; a panic comes out of `backward()` as an
    /// error, in libtorch's words.
    pub fn get(&self) -> &Tensor {
        let (now, then) = (self.tensor.internal_version(), self.version);
        assert!(
            now == then,
            "one of the variables needed for gradient computation has been modified by an inplace operation: a tensor of \
             {:?} is at version {now}; expected version {then} instead",
            self.tensor.size()
        );
        &self.tensor
    }
}
