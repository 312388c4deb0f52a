//! From what clients learnt to the next model.

use super::Federation;
use super::model::{A, B, Model, upload};
use crate::aggregate::{Aggregate, Layer, Rule, ServerOptimiser, Upload};
use lora_core::{Error, Result, all_finite};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

impl Federation {
    /// Puts together what all learnt in the mean: `mean` has the numbers of the tensors that clients send, one tensor after
    /// another.
    pub(super) fn move_by(&mut self, rule: Rule, mean: &[f64]) -> Result<()> {
        let mut next: BTreeMap<String, Tensor> = self.model.share().adapter;
        let mut rest = mean;
        let (_, sends) = rule.trains();
        for (name, before) in self.model.adapter.iter().filter(|(name, _)| sends.holds(name)) {
            let (mine, others) = rest.split_at(before.numel().min(rest.len()));
            let moved = Tensor::from_slice(mine).view(before.size().as_slice()).to_device(before.device());
            let wide = before.to_kind(Kind::Double) + moved;
            next.insert(name.clone(), wide.to_kind(before.kind()));
            rest = others;
        }
        let whole = upload("all", 1.0, &next, &self.scale)?;
        self.put_together(rule, vec![whole])
    }

    /// Does it, or leaves the model and what the server remembers as they were.
    pub(super) fn whole<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let (model, moments) = (self.model.share(), self.server.as_ref().map(ServerOptimiser::share));
        let had = self.had.clone();
        let done = work(self);
        if done.is_err() {
            (self.model, self.had) = (model, had);
            if let (Some(server), Some(moments)) = (&mut self.server, moments) {
                server.moments = moments;
            }
        }
        done
    }

    pub(super) fn put_together(&mut self, rule: Rule, uploads: Vec<Upload>) -> Result<()> {
        self.whole(|federation| federation.move_together(rule, uploads))
    }

    pub(super) fn move_together(&mut self, rule: Rule, uploads: Vec<Upload>) -> Result<()> {
        let uploads = match self.settings.robust {
            Some(robust) => vec![robust.aggregate(&uploads)?],
            None => uploads,
        };
        // FedSVD makes both factors anew: the server moves before that.
        let before = rule == Rule::FedSvd && self.server.is_some();
        let uploads = if before { vec![self.moved(Rule::Ffa, &uploads)?] } else { uploads };
        let all = rule.aggregate(&uploads)?;
        let mut model = Model { rounds: self.model.rounds + 1, ..self.model.share() };
        for (name, value) in self.means(rule, &all)? {
            let old = &self.model.adapter[&name];
            let value = match &mut self.server {
                Some(server) if !before => server.step(&name, old, &value)?,
                _ => value,
            };
            model.adapter.insert(name, value.to_kind(old.kind()).contiguous());
        }
        if let (Some(server), true) = (&mut self.server, before) {
            for (module, shared) in &all.layers {
                let (a, b) = (format!("{module}{A}"), format!("{module}{B}"));
                if let Some(new) = &shared.a {
                    server.turn(&b, &self.model.adapter[&a], new);
                }
            }
        }
        all.side.iter().try_for_each(|(module, side)| model.lay_beside(module, side))?;
        if rule == Rule::Flora {
            for (module, shared) in all.layers {
                let (Some(a), Some(b)) = (shared.a, shared.b) else { continue };
                model.lay_beside(&module, &Layer { a, b, scale: shared.scale })?;
            }
            model.begin_anew(self.settings.seed);
        }
        model.make_anew()?;
        self.model = model;
        Ok(())
    }

    /// The model where the server moves to from the means by that rule.
    fn moved(&mut self, rule: Rule, uploads: &[Upload]) -> Result<Upload> {
        let mut next = self.model.share().adapter;
        for (name, mean) in self.means(rule, &rule.aggregate(uploads)?)? {
            if let Some(server) = &mut self.server {
                let value = server.step(&name, &self.model.adapter[&name], &mean)?;
                next.insert(name, value);
            }
        }
        upload("all", 1.0, &next, &self.scale)
    }

    /// What the round says the adapter's tensors should be, by name; what it says nothing of stays.
    fn means(&self, rule: Rule, all: &Aggregate) -> Result<Vec<(String, Tensor)>> {
        let mut means: Vec<_> =
            all.others.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
        for (module, sum) in &all.sums {
            // Whoever took part, the model keeps its rank.
            let rank = self.model.adapter.get(&format!("{module}{A}")).map_or(1, |a| a.size()[0]);
            let (b, a) = sum.at_rank(rank.min(sum.s.size()[0]));
            let b = b.constant_pad_nd([0, rank - b.size()[1]]) / (self.scale)(module, rank);
            means.push((format!("{module}{A}"), self.model.grown(module, &a, rank, self.settings.seed)));
            means.push((format!("{module}{B}"), b));
        }
        let anew = matches!(rule, Rule::Flora | Rule::FlexLora);
        for (module, shared) in all.layers.iter().filter(|_| !anew) {
            means.extend(shared.a.as_ref().map(|a| (format!("{module}{A}"), a.shallow_clone())));
            if let Some(b) = &shared.b {
                let rank = b.size().last().copied().unwrap_or(1);
                let factor = shared.scale / (self.scale)(module, rank);
                let b = if factor == 1.0 { b.shallow_clone() } else { b * factor };
                means.push((format!("{module}{B}"), b));
            }
        }
        match means.iter().find(|(_, mean)| !all_finite(mean)) {
            Some((name, _)) => Err(Error::non_finite("the clients' mean is not finite").at(name)),
            None => Ok(means),
        }
    }
}
