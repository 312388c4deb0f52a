//! A module's line: how large its update is, and of how many directions.

use lora::{Recipe, Result, Selection};
use serde_json::json;
use tch::{Kind, Tensor};

use super::fit::Module;

/// Rank, parameters, and the Frobenius norms of A, B and s B A.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) rank: Option<i64>,
    pub(super) parameters: usize,
    pub(super) norms: [Option<f64>; 3],
    pub(super) effective_rank: Option<f64>,
}

impl Row {
    /// Of a module whose A and B, if it has them, are `[r, in]` and `[out, r]`, and finite.
    pub(super) fn new(s: &Selection, module: &Module, recipe: &Recipe, spectrum: bool) -> Result<Self> {
        let wide = |name: &str| module.get(name).map(|t| t.to_kind(Kind::Double));
        let (a, b) = (wide("lora_A.weight"), wide("lora_B.weight"));
        let norm = |t: &Tensor| t.norm().double_value(&[]);
        let pair = a.as_ref().zip(b.as_ref());
        let update = pair.map(|(a, b)| {
            // ‖BA‖² = tr(BᵀB AAᵀ): nothing of size [out, in] is built.
            let square = b.tr().matmul(b).matmul(&a.matmul(&a.tr())).trace().double_value(&[]);
            // Not `max`, which would make a 0 of what is no number.
            square.clamp(0.0, f64::INFINITY).sqrt() * recipe.scale(s.alpha, s.r)
        });
        let effective = pair.filter(|_| spectrum).map(|(a, b)| effective_rank(a, b)).transpose();
        Ok(Self {
            name: s.name.clone(),
            rank: a.is_some().then_some(s.r),
            parameters: module.values().map(Tensor::numel).sum(),
            norms: [a.as_ref().map(norm), b.as_ref().map(norm), update],
            effective_rank: effective.map_err(|e| e.at(&s.name))?.flatten(),
        })
    }

    /// What rows are sorted by: layer 2 comes before layer 10.
    pub(super) fn place(&self) -> Vec<(u64, String)> {
        place(&self.name)
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let [a, b, update] = self.norms;
        json!({ "name": self.name, "r": self.rank, "parameters": self.parameters,
            "norm_a": a, "norm_b": b, "norm_update": update,
            "effective_rank": self.effective_rank })
    }
}

fn place(name: &str) -> Vec<(u64, String)> {
    name.split('.').map(|part| (part.parse().unwrap_or(0), part.to_owned())).collect()
}

/// The effective rank of B A (Roy and Vetterli 2007): from 1, all in one direction, to r, all directions alike. None
/// for an update of zero.
fn effective_rank(a: &Tensor, b: &Tensor) -> Result<Option<f64>> {
    // Squared, the singular values of B A are the eigenvalues of Lᵀ BᵀB L, [r, r], where L Lᵀ = A Aᵀ.
    let (squares, vectors) = a.matmul(&a.tr()).f_linalg_eigh("L")?;
    let l = vectors * squares.clamp_min(0.0).sqrt().unsqueeze(0);
    let down = b.matmul(&l);
    let values = down.tr().matmul(&down).f_linalg_eigvalsh("L")?.clamp_min(0.0).sqrt();
    let sum = values.sum(Kind::Double).double_value(&[]);
    if !(sum > 0.0) {
        return Ok(None);
    }
    let shares = values / sum;
    // What is zero adds nothing.
    let entropy = -(&shares * shares.clamp_min(1e-300).log()).sum(Kind::Double);
    Ok(Some(entropy.exp().double_value(&[])))
}

/// The mean of the modules' effective ranks.
pub(super) fn mean_rank(rows: &[Row]) -> Option<f64> {
    let ranks: Vec<f64> = rows.iter().filter_map(|row| row.effective_rank).collect();
    (!ranks.is_empty()).then(|| ranks.iter().sum::<f64>() / ranks.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn layers_are_in_their_order() {
        let sorted =
            ["lm_head", "model.layers.0.a", "model.layers.2.a", "model.layers.2.b", "model.layers.10.a"];
        let mut names = sorted;
        names.sort_unstable();
        assert_ne!(names, sorted);
        names.sort_by_key(|name| place(name));
        assert_eq!(names, sorted);
    }
}
