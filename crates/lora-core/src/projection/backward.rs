//! The gradients: `dv = g ∘ dy`, `dh = dv B`, `dx = Σ dv W + dh (sA)`, `dA = s dhᵀ x`, `dB = dvᵀ h`,
//! `dm = Σ dy ∘ z / n`. What lies beside W adds its own `(dv B) A` to dx.

use tch::Tensor;
use tch_ext::{Function, Product, Sum, gemm};

use super::each::Each;
use super::gain;
use super::part::{Low, Part, Side};
use super::{LAYERS, Remake, flat_of, like};
use crate::weight::master_kind;

pub(super) struct Backward {
    pub(super) remake: Remake,
    pub(super) parts: Vec<Part>,
    pub(super) h: Tensor,
    /// Where gradients go text by text, if that is wanted.
    pub(super) each: Option<Each>,
    pub(super) wants_dx: bool,
    /// Whether the output was added to one, the last input.
    pub(super) residual: bool,
}

impl Function for Backward {
    fn backward(&mut self, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        let _inside = LAYERS.enter();
        let Some(some) = grads.iter().flatten().next() else { return self.nothing() };
        let kind = some.kind();
        let masters = (master_kind(kind), some.device());
        let (dv, dm): (Vec<Option<Tensor>>, Vec<Option<Tensor>>) =
            self.parts.iter().zip(grads).map(|(p, dy)| p.through_gain(dy.as_ref())).unzip();
        let parts = || self.parts.iter().zip(&dv).filter_map(|(p, dv)| dv.as_ref().map(|dv| (p, dv)));
        let lows = || parts().filter_map(|(p, dv)| p.low.as_ref().map(|low| (low, dv)));

        let dh = self.h.empty_like();
        let columns: Vec<Tensor> = lows().map(|(low, _)| low.columns(&dh)).collect();
        let sums =
            lows().zip(&columns).map(|((low, dv), out)| Sum::new(vec![Product::plain(dv, &low.b)], out));
        gemm(&sums.collect::<Vec<_>>());

        // Everything that remains depends on dh alone: one call.
        let x = (self.remake)();
        let (x, shape) = (flat_of(&x), x);
        if let Some(each) = &self.each {
            each.write(&self.parts, (grads, &dv), (&self.h, &dh), &x);
        }
        let summed = || lows().filter(|_| self.each.is_none());
        let hs: Vec<_> = summed().map(|(low, _)| low.columns(&self.h)).collect();
        let all_da = Tensor::empty([self.h.size()[1], x.size()[1]], masters);
        let da: Vec<Tensor> = summed().map(|(low, _)| all_da.narrow(0, low.first, low.rank)).collect();
        let dbt: Vec<Tensor> = summed().map(|(low, _)| Tensor::empty(low.b.tr().size(), masters)).collect();
        let (seen, scales): (Vec<_>, Vec<_>) = summed().map(|(low, _)| (low.seen(&x), low.scale)).collect();
        // Updates that see one x in one product, if they have one scale too.
        let one = summed().all(|(low, _)| low.mask.is_none()) && scales.iter().all(|s| *s == scales[0]);
        let mut sums: Vec<Sum<'_>> = if one && da.len() == self.lows() && !da.is_empty() {
            vec![Sum { scale: scales[0], ..Sum::new(vec![Product::over_tokens(&dh, &x)], &all_da) }]
        } else {
            let each = columns.iter().zip(&seen).zip(da.iter().zip(&scales));
            each.map(|((dh, x), (da, &scale))| Sum {
                scale,
                ..Sum::new(vec![Product::over_tokens(dh, x)], da)
            })
            .collect()
        };
        sums.extend(
            summed()
                .zip(&hs)
                .zip(&dbt)
                .map(|(((_, dv), h), db)| Sum::new(vec![Product::over_tokens(h, dv)], db)),
        );
        let dx = self.wants_dx.then(|| x.empty_like());
        let weights: Vec<Tensor> =
            if self.wants_dx { parts().map(|(p, _)| p.weight.bare(kind)).collect() } else { vec![] };
        let side = |(part, dv): (&Part, &Tensor)| {
            let side = Side::of(part.weight.as_ref(), kind)?;
            let back = side.back(dv);
            Some((side, back))
        };
        let sides: Vec<(Side, Tensor)> =
            if self.wants_dx { parts().filter_map(side).collect() } else { vec![] };
        if let Some(dx) = &dx {
            let whole = parts().zip(&weights).map(|((_, dv), w)| Product::plain(dv, w));
            let unmasked = lows().zip(&columns).filter(|((low, _), _)| low.mask.is_none());
            let low = unmasked.map(|((low, _), dh)| Product::plain(dh, &low.a));
            let beside = sides.iter().map(|(side, dh)| Product::plain(dh, &side.a));
            sums.push(Sum::new(whole.chain(beside).chain(low).collect(), dx));
        }
        if !sums.is_empty() {
            gemm(&sums);
        }
        drop(sums);
        let dx = dx.map(|mut dx| {
            for ((low, _), dh) in lows().zip(&columns) {
                if let Some(mask) = &low.mask {
                    let own = dx.empty_like();
                    gemm(&[Sum::new(vec![Product::plain(dh, &low.a)], &own)]);
                    let _ = dx.g_add_(&(own * mask));
                }
            }
            like(&dx, &shape)
        });

        let mut all = vec![dx];
        let mut made = da.into_iter().zip(dbt);
        for ((part, dv), dm) in self.parts.iter().zip(&dv).zip(dm) {
            let Some(low) = &part.low else { continue };
            let pair = if dv.is_some() { made.next() } else { None };
            let (da, db) = pair.map(|(da, dbt)| (da, dbt.tr())).unzip();
            all.extend([da, db]);
            all.extend(low.gain.as_ref().map(|_| dm.filter(|_| self.each.is_none())));
        }
        all.extend(self.residual.then(|| grads[0].as_ref().map(Tensor::shallow_clone)));
        all
    }
}

impl Backward {
    fn lows(&self) -> usize {
        self.parts.iter().filter(|part| part.low.is_some()).count()
    }

    fn nothing(&self) -> Vec<Option<Tensor>> {
        let count: usize = self.parts.iter().filter_map(|p| p.low.as_ref()).map(Low::leaves).sum();
        (0..=count + usize::from(self.residual)).map(|_| None).collect()
    }
}

impl Part {
    /// The gradient of the sum before the gain, `[n, out]`, and the magnitude's `[out]`.
    fn through_gain(&self, dy: Option<&Tensor>) -> (Option<Tensor>, Option<Tensor>) {
        let Some(dy) = dy.map(flat_of) else { return (None, None) };
        let Some((gain, y)) = super::part::gain(&self.low).and_then(|gain| Some((gain, gain.y.as_ref()?)))
        else {
            return (Some(dy), None);
        };
        let (dv, dm) = gain::backward(&dy, &flat_of(y.get()), gain);
        (Some(dv), Some(dm))
    }
}
