//! Autograd functions whose backward is Rust.

use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{TchError, Tensor};

/// The backward half of an operation, owning what it saved in the forward.
///
/// `Send` because libtorch may run it on one of its own threads (CUDA, and deeply nested graphs).
pub trait Function: Send {
    /// From the gradients of the outputs (`None`: not needed downstream) to those of the inputs, in the order
    /// given to [`attach`] (`None`: no gradient). Gradient mode is off. A panic in here, for instance from one
    /// of tch's operators, comes out of `backward()` as an error.
    fn backward(&mut self, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>>;
}

type State = Box<dyn Function>;

unsafe extern "C" {
    fn tch_ext_attach(
        outputs: *const *const c_void,
        n_out: usize,
        inputs: *const *const c_void,
        n_in: usize,
        state: *mut c_void,
        attached: *mut *mut c_void,
    ) -> *mut c_char;
    fn tch_ext_free_c_string(text: *mut c_char);
    fn tch_ext_grad_enabled() -> bool;
    fn tch_ext_set_grad_enabled(enabled: bool);
}

/// Whether operations are recorded for backward here: not under `tch::no_grad`.
pub fn grad_enabled() -> bool {
    // SAFETY: reads a setting of this thread.
    unsafe { tch_ext_grad_enabled() }
}

/// What `work` gives, or what its panic says. Operations are recorded for backward as before: a panic inside
/// `tch::no_grad` would leave it to the thread that they never are again.
pub(crate) fn caught<R>(work: impl FnOnce() -> R) -> Result<R, String> {
    let enabled = grad_enabled();
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        // SAFETY: sets a setting of this thread.
        unsafe { tch_ext_set_grad_enabled(enabled) };
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
    })
}

/// Puts `outputs`, computed from `inputs` without gradient tracking, into the autograd graph with `function`
/// as their backward. Where no input wants a gradient, or gradient mode is off, `function` is dropped at once.
///
/// Saved tensors must not be changed in place before backward; as [`crate::Saved`] they are checked, as libtorch's own
/// are. Gradients of gradients are refused.
///
/// # Errors
/// What libtorch says, for instance for an undefined input.
///
/// ```
/// use tch::{Kind, Device, Tensor};
/// struct Double;
/// impl tch_ext::Function for Double {
///     fn backward(&mut self, g: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
///         vec![g[0].as_ref().map(|g| g * 2.0)]
///     }
/// }
/// let x = Tensor::ones([3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let y = tch::no_grad(|| &x * 2.0);
/// let y = tch_ext::attach(&[&y], &[&x], Double).unwrap().remove(0);
/// y.sum(Kind::Float).backward();
/// assert_eq!(x.grad(), Tensor::from_slice(&[2.0f32, 2.0, 2.0]));
/// ```
pub fn attach(
    outputs: &[&Tensor],
    inputs: &[&Tensor],
    function: impl Function + 'static,
) -> Result<Vec<Tensor>, TchError> {
    let state: State = Box::new(function);
    let outs: Vec<_> = outputs.iter().map(|t| t.as_ptr() as *const c_void).collect();
    let ins: Vec<_> = inputs.iter().map(|t| t.as_ptr() as *const c_void).collect();
    let mut attached = vec![std::ptr::null_mut(); outs.len()];
    // SAFETY: the pointers are live at::Tensors for the call; the state goes over to the callee, which gives it
    // back exactly once through `tch_ext_drop`; the returned tensors are owned by us.
    unsafe {
        let error = tch_ext_attach(
            outs.as_ptr(),
            outs.len(),
            ins.as_ptr(),
            ins.len(),
            Box::into_raw(Box::new(state)).cast(),
            attached.as_mut_ptr(),
        );
        let made = attached.into_iter().filter(|p| !p.is_null()).map(|p| Tensor::from_ptr(p.cast()));
        let made: Vec<_> = made.collect();
        if error.is_null() {
            return Ok(made);
        }
        let text = CStr::from_ptr(error).to_string_lossy().into_owned();
        tch_ext_free_c_string(error);
        Err(TchError::Torch(text))
    }
}

/// # Safety
/// Called by the bridge alone, with a state made by [`attach`] and arrays of the given lengths.
#[unsafe(no_mangle)]
unsafe extern "C" fn tch_ext_backward(
    state: *mut c_void,
    grads: *const *mut c_void,
    n_grads: usize,
    out: *mut *mut c_void,
    n_out: usize,
) -> *mut c_char {
    let made = caught(|| {
        // SAFETY: see above; the bridge holds a lock, so nobody else has this state.
        let (state, grads) =
            unsafe { (&mut *state.cast::<State>(), std::slice::from_raw_parts(grads, n_grads)) };
        let grads: Vec<_> = grads
            .iter()
            // SAFETY: non-null entries are live tensors, of which a shallow copy is made.
            .map(|&g| (!g.is_null()).then(|| unsafe { Tensor::clone_from_ptr(g.cast()) }))
            .collect();
        state.backward(&grads)
    });
    let made = match made {
        Ok(made) if made.len() == n_out => made,
        Ok(made) => {
            return message(&format!("backward gave {} gradients for {n_out} inputs", made.len()));
        }
        Err(text) => return message(&text),
    };
    for (i, tensor) in made.into_iter().enumerate() {
        if let Some(mut tensor) = tensor {
            // SAFETY: `out` has `n_out` entries; the bridge takes the at::Tensor, so we must not free it.
            unsafe { *out.add(i) = tensor.as_mut_ptr().cast() };
            std::mem::forget(tensor);
        }
    }
    std::ptr::null_mut()
}

fn message(text: &str) -> *mut c_char {
    CString::new(text.replace('\0', " ")).unwrap_or_default().into_raw()
}

/// # Safety
/// Called by the bridge alone, once per state.
#[unsafe(no_mangle)]
unsafe extern "C" fn tch_ext_drop(state: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `attach`. A drop that panics must not unwind into C++.
    let state = unsafe { Box::from_raw(state.cast::<State>()) };
    let _ = catch_unwind(AssertUnwindSafe(move || drop(state)));
}

/// # Safety
/// Called by the bridge alone, with a string made by [`message`].
#[unsafe(no_mangle)]
unsafe extern "C" fn tch_ext_free_string(text: *mut c_char) {
    // SAFETY: made by `CString::into_raw`.
    drop(unsafe { CString::from_raw(text) });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_without_gradient_does_not_outlast_it() {
        let panics = || tch::no_grad(|| -> i32 { panic!("so it {}", "ends") });
        assert_eq!(caught(panics), Err("so it ends".to_owned()));
        assert!(grad_enabled());
        tch::no_grad(|| {
            assert!(caught(|| tch::with_grad(|| panic!())).is_err());
            assert!(!grad_enabled());
        });
        assert_eq!(caught(|| 5), Ok(5));
    }
}
