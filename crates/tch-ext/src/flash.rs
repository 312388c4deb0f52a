//! Attention over texts one behind another, on CUDA: libtorch's own kernels (FlashAttention-2, Dao 2023), which `tch`
//! reaches only half of.

use std::cell::OnceCell;
use std::ffi::{CStr, c_char, c_void};

use tch::{Device, Kind, TchError, Tensor};

use crate::{Function, attach};

unsafe extern "C" {
    fn tch_ext_flash(
        q: *const c_void,
        k: *const c_void,
        v: *const c_void,
        bounds: *const c_void,
        longest: i64,
        before: i64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn tch_ext_free_c_string(text: *mut c_char);
}

/// Where texts one behind another begin and end. A device is told once, for all the layers that ask.
#[derive(Debug)]
pub struct Bounds {
    lengths: Option<Vec<i64>>,
    longest: i64,
    sent: OnceCell<Tensor>,
}

impl Bounds {
    /// Those of texts of these lengths.
    pub fn of(lengths: &[i64]) -> Self {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        Self { lengths: Some(lengths.to_vec()), longest, sent: OnceCell::new() }
    }

    /// Those that a device holds already, `[texts + 1]`, i32: the first row of each text, and the number of rows. No text
    /// is longer than `longest`.
    pub fn held(bounds: Tensor, longest: i64) -> Self {
        Self { lengths: None, longest, sent: OnceCell::from(bounds) }
    }

    /// The first row of each text, and behind them the number of rows: `[texts + 1]`, i32, on `device`.
    fn on(&self, device: Device) -> Tensor {
        let make = || {
            let sums = self.lengths.iter().flatten().scan(0, |sum, n| {
                *sum += *n as i32;
                Some(*sum)
            });
            let bounds: Vec<i32> = [0].into_iter().chain(sums).collect();
            Tensor::from_slice(&bounds).to_device(device)
        };
        let sent = self.sent.get_or_init(make);
        let here = sent.device() == device || self.lengths.is_none();
        if here { sent.shallow_clone() } else { make() }
    }
}

/// Whether libtorch has a kernel for [`flash_attention`] there.
pub fn has_flash_attention(device: Device, kind: Kind, dim: i64) -> bool {
    let fits = matches!(kind, Kind::BFloat16 | Kind::Half) && dim % 8 == 0 && (8..=256).contains(&dim);
    fits && matches!(device, Device::Cuda(index) if crate::cuda::generation(index) >= 8)
}

/// `softmax(q kᵀ / √dim) v [n, heads, dim]`, causal within these texts, whose lengths add up to n; with a window, a position
/// sees itself and the `window - 1` before it. `q [n, heads, dim]`, `k, v [n, kv_heads, dim]`, bf16 or f16;
/// heads is a multiple of kv_heads. Nothing of size n² is made. `None` where libtorch has no such kernel: elsewhere than
/// on CUDA, for other dtypes, for a dim that is no multiple of 8 or above 256.
///
/// # Errors
/// What libtorch says.
pub fn flash_attention(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    texts: &Bounds,
    window: Option<i64>,
) -> Result<Option<Tensor>, TchError> {
    let &[_, _, dim] = q.size().as_slice() else { return Ok(None) };
    if !has_flash_attention(q.device(), q.kind(), dim) {
        return Ok(None);
    }
    let bounds = texts.on(q.device());
    let longest = texts.longest;
    let before = window.map(|w| w - 1);
    let guard = tch::no_grad_guard();
    let (q_now, k_now, v_now) = (q.detach(), k.detach(), v.detach());
    let mut out = [std::ptr::null_mut(); 4];
    // SAFETY: live tensors for the call; on success four tensors that we own.
    let [y, lse, state, unused] = unsafe {
        let [q, k, v, bounds] = [&q_now, &k_now, &v_now, &bounds].map(|t| t.as_ptr() as *const c_void);
        let error = tch_ext_flash(q, k, v, bounds, longest, before.unwrap_or(-1), out.as_mut_ptr());
        if !error.is_null() {
            let text = CStr::from_ptr(error).to_string_lossy().into_owned();
            tch_ext_free_c_string(error);
            return Err(TchError::Torch(text));
        }
        out.map(|t| Tensor::from_ptr(t.cast()))
    };
    drop(guard);
    let kept = Flash {
        inputs: [q_now, k_now, v_now],
        y: y.shallow_clone(),
        lse,
        bounds,
        states: [state, unused],
        longest,
        before,
    };
    Ok(Some(attach(&[&y], &[q, k, v], kept)?.swap_remove(0)))
}

struct Flash {
    inputs: [Tensor; 3],
    y: Tensor,
    lse: Tensor,
    bounds: Tensor,
    states: [Tensor; 2],
    longest: i64,
    before: Option<i64>,
}

impl Function for Flash {
    fn backward(&mut self, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        let Some(dy) = &grads[0] else { return vec![None, None, None] };
        let ([q, k, v], [state, unused]) = (&self.inputs, &self.states);
        let (dq, dk, dv) = Tensor::internal_flash_attention_backward(
            &dy.contiguous(),
            q,
            k,
            v,
            &self.y,
            &self.lse,
            &self.bounds,
            &self.bounds,
            self.longest,
            self.longest,
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
