//! How good a classification is.

use serde::Serialize;

/// The figures of a classification by label scores.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Classified {
    /// Share of the rows whose likeliest label is the right one.
    pub accuracy: f64,
    /// See [`macro_f1`].
    pub macro_f1: f64,
    /// Expected calibration error over ten bins of equal width (Guo et al. 2017, equation 5), of the likeliest
    /// label's share of probability among the labels.
    pub calibration_error: f64,
    /// Mean squared distance of those shares from the truth, summed over the labels (Brier 1950): 0 to 2.
    pub brier: f64,
}

impl Classified {
    /// From the truth (a label's number) and the labels' log-probabilities, row by row. Figures of no rows are NaN.
    pub fn new(rows: &[(usize, Vec<f64>)]) -> Self {
        const BINS: usize = 10;
        let (mut brier, mut pairs) = (0.0, Vec::new());
        // Rows, sum of confidence, right ones.
        let mut bins = [(0.0, 0.0, 0.0); BINS];
        for (truth, scores) in rows {
            let shares = softmax(scores);
            let best = likeliest(&shares).unwrap_or(0);
            brier += shares
                .iter()
                .enumerate()
                .map(|(i, p)| (p - f64::from(u8::from(i == *truth))).powi(2))
                .sum::<f64>();
            let confidence = shares.get(best).copied().unwrap_or(0.0);
            let bin = &mut bins[((confidence * BINS as f64) as usize).min(BINS - 1)];
            bin.0 += 1.0;
            bin.1 += confidence;
            bin.2 += f64::from(u8::from(best == *truth));
            pairs.push((*truth, Some(best)));
        }
        let n = rows.len() as f64;
        Self {
            accuracy: pairs.iter().filter(|(truth, label)| Some(*truth) == *label).count() as f64 / n,
            macro_f1: macro_f1(&pairs),
            calibration_error: bins.iter().map(|(_, sure, right)| (sure - right).abs()).sum::<f64>() / n,
            brier: brier / n,
        }
    }
}

/// The mean of each class's F1 (scikit-learn's `f1_score(average="macro")`), over the classes that are true of a row
/// or were predicted. A prediction that is no class at all (None) is a miss of the true class and of nothing else.
pub fn macro_f1(pairs: &[(usize, Option<usize>)]) -> f64 {
    let classes =
        pairs.iter().map(|(truth, label)| label.map_or(*truth, |l| l.max(*truth)) + 1).max().unwrap_or(0);
    // Hits, and rows in which the class was true or predicted, each counted.
    let mut counts = vec![(0.0, 0.0); classes];
    for (truth, label) in pairs {
        counts[*truth].1 += 1.0;
        if let Some(label) = label {
            counts[*label].1 += 1.0;
            counts[*label].0 += f64::from(u8::from(label == truth));
        }
    }
    let f1: Vec<f64> =
        counts.iter().filter(|(_, seen)| *seen > 0.0).map(|(hits, seen)| 2.0 * hits / seen).collect();
    f1.iter().sum::<f64>() / f1.len() as f64
}

/// The number of the largest; of equals the first.
pub fn likeliest(scores: &[f64]) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (i, &score) in scores.iter().enumerate() {
        if best.is_none_or(|(_, most)| score > most) {
            best = Some((i, score));
        }
    }
    best.map(|(i, _)| i)
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let parts: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
    let sum: f64 = parts.iter().sum();
    parts.iter().map(|p| p / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// scikit-learn 1.7: `f1_score(y, z, average="macro")`.
    #[test]
    fn macro_f1_is_scikit_learns() {
        let truth = [0, 0, 1, 1, 2, 2, 2];
        let guess = [0, 1, 1, 1, 2, 0, 2];
        let pairs: Vec<_> = truth.into_iter().zip(guess.into_iter().map(Some)).collect();
        assert!((macro_f1(&pairs) - 0.7).abs() < 1e-15, "{}", macro_f1(&pairs));
        // No class at all: the true class is missed, no other is blamed.
        let pairs = [(0, Some(0)), (0, None), (1, Some(1))];
        assert!((macro_f1(&pairs) - (2.0 / 3.0 + 1.0) / 2.0).abs() < 1e-15);
        assert!(macro_f1(&[]).is_nan());
    }

    #[test]
    fn calibration_by_hand() {
        let row = |truth: usize, p: f64| (truth, vec![p.ln(), (1.0 - p).ln()]);
        // Two rows at 0.8 of which one is right, one at 0.65 that is right.
        let c = Classified::new(&[row(0, 0.8), row(1, 0.8), row(0, 0.65)]);
        assert!((c.calibration_error - (0.6 + 0.35) / 3.0).abs() < 1e-12, "{c:?}");
        assert!((c.accuracy - 2.0 / 3.0).abs() < 1e-12);
        let brier = (2.0 * 0.04 + 2.0 * 0.64 + 2.0 * 0.1225) / 3.0;
        assert!((c.brier - brier).abs() < 1e-12, "{c:?}");
    }

    #[test]
    fn equal_scores_give_the_first() {
        assert_eq!(likeliest(&[-1.0, -1.0]), Some(0));
        assert_eq!(likeliest(&[f64::NAN, -2.0, -1.0]), Some(0));
        assert_eq!(likeliest(&[]), None);
    }
}
