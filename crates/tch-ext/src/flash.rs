//! Attention over texts one behind another, on CUDA: libtorch's own kernels (FlashAttention-2, Dao 2023), which `tch`
//! reaches only half of.

use std::cell::OnceCell;
use std::ffi::{CStr, c_char, c_void};

use tch::{Device, Kind, TchError, Tensor};

use crate::{Function, Saved, attach};

unsafe extern "C" {
    fn tch_ext_flash(
        q: *const c_void,
        k: *const c_void,
        v: *const c_void,
        queries: *const c_void,
        keys: *const c_void,
        used: *const c_void,
        most_queries: i64,
        most_keys: i64,
        before: i64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn tch_ext_free_c_string(text: *mut c_char);
}

/// Where texts one behind another begin and end. A device is told once, for all the layers that ask.
#[derive(Debug)]
pub struct Bounds {
    lengths: Option<Vec<i64>>,
    /// Rows from the beginning of one to the next, where they are not the lengths.
    room: Option<i64>,
    longest: i64,
    sent: OnceCell<Sent>,
}

#[derive(Debug)]
struct Sent {
    /// The first row of each text, and behind them the number of rows: `[texts + 1]`, i32.
    bounds: Tensor,
    /// The rows of each that are in use, `[texts]`, i32, where that is not all of them.
    used: Option<Tensor>,
}

impl Bounds {
    /// Those of texts of these lengths.
    pub fn of(lengths: &[i64]) -> Self {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        Self { lengths: Some(lengths.to_vec()), room: None, longest, sent: OnceCell::new() }
    }

    /// Those of texts of these lengths that have `room` rows each, the first of which are theirs.
    pub fn padded(lengths: &[i64], room: i64) -> Self {
        Self { room: Some(room), ..Self::of(lengths) }
    }

    /// Those that a device holds already, `[texts + 1]`, i32: the first row of each text, and the number of rows. No text
    /// is longer than `longest`.
    pub fn held(bounds: Tensor, longest: i64) -> Self {
        Self { lengths: None, room: None, longest, sent: OnceCell::from(Sent { bounds, used: None }) }
    }

    fn on(&self, device: Device) -> Sent {
        let make = || {
            let lengths = self.lengths.as_deref().unwrap_or_default();
            let sums = lengths.iter().scan(0, |sum, n| {
                *sum += self.room.unwrap_or(*n) as i32;
                Some(*sum)
            });
            let there = |numbers: Vec<i32>| Tensor::from_slice(&numbers).to_device(device);
            let used = self.room.map(|_| there(lengths.iter().map(|n| *n as i32).collect()));
            Sent { bounds: there([0].into_iter().chain(sums).collect()), used }
        };
        let sent = self.sent.get_or_init(make);
        if sent.bounds.device() == device || self.lengths.is_none() { sent.share() } else { make() }
    }
}

impl Sent {
    fn share(&self) -> Self {
        Self { bounds: self.bounds.shallow_clone(), used: self.used.as_ref().map(Tensor::shallow_clone) }
    }
}

/// Whether libtorch has a kernel for [`flash_attention`] there.
pub fn has_flash_attention(device: Device, kind: Kind, dim: i64) -> bool {
    let fits = matches!(kind, Kind::BFloat16 | Kind::Half) && dim % 8 == 0 && (8..=256).contains(&dim);
    fits && matches!(device, Device::Cuda(index) if crate::cuda::generation(index) >= 8)
}

/// `softmax(q kᵀ / √dim) v [n, heads, dim]` of each text, whose queries are the last of its positions, causal: a position
/// sees itself and those before it, with a window the `window - 1` before it. `q [n, heads, dim]`, `k, v [m, kv_heads,
/// dim]`, bf16 or f16; heads is a multiple of kv_heads; the lengths of `queries` add up to n, those of `keys`, which has as
/// many texts, or the room of all, to m. Nothing of size n m is made. `None` where libtorch has no such kernel: elsewhere
/// than on CUDA, for other dtypes, for a dim that is no multiple of 8 or above 256. Through keys with room no gradient
/// flows.
///
/// # Errors
/// What libtorch says.
pub fn flash_attention(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    (queries, keys): (&Bounds, &Bounds),
    window: Option<i64>,
) -> Result<Option<Tensor>, TchError> {
    let &[_, _, dim] = q.size().as_slice() else { return Ok(None) };
    if !has_flash_attention(q.device(), q.kind(), dim) {
        return Ok(None);
    }
    let longest = [queries.longest, keys.longest];
    let (Sent { bounds: queries, .. }, Sent { bounds: keys, used }) =
        (queries.on(q.device()), keys.on(q.device()));
    let before = window.map(|w| w - 1);
    let guard = tch::no_grad_guard();
    let (q_now, k_now, v_now) = (q.detach(), k.detach(), v.detach());
    let mut out = [std::ptr::null_mut(); 4];
    // SAFETY: live tensors for the call; on success four tensors that we own.
    let [y, lse, state, unused] = unsafe {
        let at = |t: &Tensor| t.as_ptr() as *const c_void;
        let in_use = used.as_ref().map_or(std::ptr::null(), at);
        let [q, k, v] = [&q_now, &k_now, &v_now].map(at);
        let [most_queries, most_keys] = longest;
        let before = before.unwrap_or(-1);
        let (queries, keys) = (at(&queries), at(&keys));
        let error =
            tch_ext_flash(q, k, v, queries, keys, in_use, most_queries, most_keys, before, out.as_mut_ptr());
        if !error.is_null() {
            let text = CStr::from_ptr(error).to_string_lossy().into_owned();
            tch_ext_free_c_string(error);
            return Err(TchError::Torch(text));
        }
        out.map(|t| Tensor::from_ptr(t.cast()))
    };
    drop(guard);
    if used.is_some() {
        return Ok(Some(y));
    }
    let kept = Flash {
        inputs: [q_now, k_now, v_now].map(Saved::new),
        y: Saved::new(y.shallow_clone()),
        lse,
        bounds: [queries, keys].map(Saved::new),
        states: [state, unused],
        longest,
        before,
    };
    Ok(Some(attach(&[&y], &[q, k, v], kept)?.swap_remove(0)))
}

struct Flash {
    inputs: [Saved; 3],
    y: Saved,
    lse: Tensor,
    bounds: [Saved; 2],
    states: [Tensor; 2],
    longest: [i64; 2],
    before: Option<i64>,
}

impl Function for Flash {
    fn backward(&mut self, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        let Some(dy) = &grads[0] else { return vec![None, None, None] };
        let ([q, k, v], [state, unused]) = (self.inputs.each_ref().map(Saved::get), &self.states);
        let ([queries, keys], [most_queries, most_keys]) =
            (self.bounds.each_ref().map(Saved::get), self.longest);
        let (dq, dk, dv) = Tensor::internal_flash_attention_backward(
            &dy.contiguous(),
            q,
            k,
            v,
            self.y.get(),
            &self.lse,
            queries,
            keys,
            most_queries,
            most_keys,
            0.0,
            true,
            state,
            unused,
            None,
            self.before,
            self.before.map(|_| 0),
        );
        vec![Some(dq), Some(dk), Some(dv)]
    }
}
