//! Keys and values of what was read.

use tch::Tensor;

/// Keys and values of the positions seen so far, a pair a layer. They lie in memory that grows ahead of them, so that
/// a new token does not copy the old ones. Without gradient.
#[derive(Debug, Default)]
pub struct Cache {
    layers: Vec<Layer>,
}

/// `[B, kv_heads, room, head_dim]`, of which `len` positions are in use.
#[derive(Debug)]
struct Layer {
    k: Tensor,
    v: Tensor,
    len: i64,
}

impl Cache {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Positions seen so far.
    pub fn len(&self) -> i64 {
        self.layers.first().map_or(0, |layer| layer.len)
    }

    /// Whether nothing was seen yet.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// What was seen, for `rows` continuations of it: one row becomes so many alike. This cache stays as it is.
    #[must_use]
    pub fn branch(&self, rows: i64) -> Self {
        let of = |t: &Tensor, len| t.narrow(2, 0, len).expand([rows, -1, -1, -1], false);
        let branch = |l: &Layer| Layer { k: of(&l.k, l.len), v: of(&l.v, l.len), len: l.len };
        Self { layers: self.layers.iter().map(branch).collect() }
    }

    /// Appends `k` and `v`, `[B, kv_heads, T, head_dim]`, to a layer (layers come in order) and gives all of them.
    pub(crate) fn extend(&mut self, layer: usize, k: Tensor, v: Tensor) -> (Tensor, Tensor) {
        let Some(old) = self.layers.get_mut(layer) else {
            let len = k.size()[2];
            self.layers.push(Layer { k: k.detach(), v: v.detach(), len });
            return (k, v);
        };
        let (start, new) = (old.len, k.size()[2]);
        old.len += new;
        let put = |old: &mut Tensor, new: &Tensor, len: i64| {
            let mut size = old.size();
            if size[2] < len {
                size[2] = (2 * size[2]).max(len).max(64);
                let larger = Tensor::empty(&size[..], (old.kind(), old.device()));
                larger.narrow(2, 0, start).copy_(&old.narrow(2, 0, start));
                *old = larger;
            }
            old.narrow(2, start, len - start).copy_(&new.detach());
            old.narrow(2, 0, len)
        };
        tch::no_grad(|| (put(&mut old.k, &k, old.len), put(&mut old.v, &v, old.len)))
    }
}
