//! What lies one behind another in a packed row.

use std::cell::OnceCell;

use lora_core::{Error, Result};
use tch::Tensor;
use tch_ext::Bounds;

/// A run of tokens in a packed row: a text, or a beginning that several texts share, or what goes on from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its tokens.
    pub len: i64,
    /// The number of the piece that it goes on from, an earlier one. It sees what that one sees before its own tokens, and
    /// its positions follow theirs.
    pub behind: Option<usize>,
}

impl Piece {
    /// Texts of these lengths, each by itself.
    pub fn texts(lengths: &[i64]) -> Vec<Self> {
        lengths.iter().map(|&len| Self { len, behind: None }).collect()
    }

    /// Where each begins in the row.
    pub(crate) fn places(pieces: &[Self]) -> impl Iterator<Item = i64> {
        pieces.iter().scan(0, |next, piece| Some(std::mem::replace(next, *next + piece.len)))
    }

    /// How long each is together with all that it goes on from.
    pub fn ends(pieces: &[Self]) -> Vec<i64> {
        let mut ends: Vec<i64> = Vec::new();
        for piece in pieces {
            ends.push(piece.len + piece.behind.and_then(|at| ends.get(at)).unwrap_or(&0));
        }
        ends
    }

    /// The pieces that each sees, itself the last.
    pub(crate) fn chains(pieces: &[Self]) -> Vec<Vec<usize>> {
        let mut chains: Vec<Vec<usize>> = Vec::new();
        for (i, piece) in pieces.iter().enumerate() {
            let before = piece.behind.map_or(&[][..], |at| &chains[at]);
            chains.push([before, &[i]].concat());
        }
        chains
    }
}

/// The pieces of a row, or what a device alone knows of them.
#[derive(Debug)]
pub struct Pieces {
    bounds: Bounds,
    pieces: Option<Vec<Piece>>,
    /// Made where a kernel asks for it.
    seen: OnceCell<Seen>,
}

/// What the pieces of a row see, one behind another: a beginning as often as a piece goes on from it.
#[derive(Debug)]
pub(crate) struct Seen {
    rows: Vec<i64>,
    pub(crate) bounds: Bounds,
    sent: OnceCell<Tensor>,
}

impl Seen {
    fn of(pieces: &[Piece]) -> Self {
        let starts: Vec<i64> = Piece::places(pieces).collect();
        let rows =
            Piece::chains(pieces).into_iter().flatten().flat_map(|i| starts[i]..starts[i] + pieces[i].len);
        Self { rows: rows.collect(), bounds: Bounds::of(&Piece::ends(pieces)), sent: OnceCell::new() }
    }

    /// Of a row `x [heads, n, dim]`, as `[heads, m, dim]`.
    pub(crate) fn of_row(&self, x: &Tensor) -> Tensor {
        // A pass has one device.
        let rows = self.sent.get_or_init(|| Tensor::from_slice(&self.rows).to_device(x.device()));
        x.index_select(1, rows)
    }
}

impl Pieces {
    /// Of these pieces.
    ///
    /// # Errors
    /// [`Error::usage`] if one goes on from what it cannot.
    pub fn of(pieces: &[Piece]) -> Result<Self> {
        let wrong = pieces.iter().enumerate().position(|(i, piece)| piece.behind.is_some_and(|at| at >= i));
        if let Some(i) = wrong {
            return Err(Error::usage(format!("piece {i} goes on from one that is not before it")));
        }
        let lengths: Vec<i64> = pieces.iter().map(|piece| piece.len).collect();
        Ok(Self { bounds: Bounds::of(&lengths), pieces: Some(pieces.to_vec()), seen: OnceCell::new() })
    }

    /// Texts whose bounds a device holds.
    pub(crate) fn held(bounds: Bounds) -> Self {
        Self { bounds, pieces: None, seen: OnceCell::new() }
    }

    /// None if only a device knows them.
    pub(crate) fn pieces(&self) -> Option<&[Piece]> {
        self.pieces.as_deref()
    }

    /// Where they lie in the row.
    pub(crate) fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// What each sees, if that is not itself alone.
    pub(crate) fn seen(&self) -> Option<&Seen> {
        let joined = |pieces: &&[Piece]| pieces.iter().any(|piece| piece.behind.is_some());
        let pieces = self.pieces().filter(joined)?;
        Some(self.seen.get_or_init(|| Seen::of(pieces)))
    }

    /// The position of each piece's first token.
    pub(crate) fn starts(pieces: &[Piece]) -> impl Iterator<Item = i64> {
        Piece::ends(pieces).into_iter().zip(pieces).map(|(end, piece)| end - piece.len)
    }
}
