//! What lies one behind another in a packed row.

use lora_core::{Error, Result};
use tch_ext::Bounds;

/// A run of tokens in a packed row: a text, or a beginning that several texts share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its tokens.
    pub len: i64,
    /// The number of the piece that it goes on from: an earlier one, which itself goes on from none. It sees that
    /// piece's tokens before its own, and its positions follow theirs.
    pub behind: Option<usize>,
}

impl Piece {
    /// Texts of these lengths, each by itself.
    pub fn texts(lengths: &[i64]) -> Vec<Self> {
        lengths.iter().map(|&len| Self { len, behind: None }).collect()
    }

    /// How long it is together with what it goes on from, which is one of `pieces`.
    pub fn end(&self, pieces: &[Self]) -> i64 {
        self.len + self.behind.and_then(|at| pieces.get(at)).map_or(0, |lead| lead.len)
    }
}

/// The pieces of a row, or what a device alone knows of them.
#[derive(Debug)]
pub struct Pieces {
    bounds: Bounds,
    pieces: Option<Vec<Piece>>,
}

impl Pieces {
    /// Of these pieces.
    ///
    /// # Errors
    /// [`Error::usage`] if one goes on from what it cannot.
    pub fn of(pieces: &[Piece]) -> Result<Self> {
        let wrong = pieces
            .iter()
            .enumerate()
            .position(|(i, piece)| piece.behind.is_some_and(|at| at >= i || pieces[at].behind.is_some()));
        if let Some(i) = wrong {
            return Err(Error::usage(format!(
                "piece {i} goes on from one that is not before it, or goes on itself"
            )));
        }
        let lengths: Vec<i64> = pieces.iter().map(|piece| piece.len).collect();
        Ok(Self { bounds: Bounds::of(&lengths), pieces: Some(pieces.to_vec()) })
    }

    /// Texts whose bounds a device holds.
    pub(crate) fn held(bounds: Bounds) -> Self {
        Self { bounds, pieces: None }
    }

    /// None if only a device knows them.
    pub(crate) fn pieces(&self) -> Option<&[Piece]> {
        self.pieces.as_deref()
    }

    /// Where the texts lie, if each is by itself.
    pub(crate) fn apart(&self) -> Option<&Bounds> {
        let joined = self.pieces.iter().flatten().any(|piece| piece.behind.is_some());
        (!joined).then_some(&self.bounds)
    }

    /// The position of each piece's first token.
    pub(crate) fn starts(pieces: &[Piece]) -> impl Iterator<Item = i64> {
        pieces.iter().map(|piece| piece.end(pieces) - piece.len)
    }
}
