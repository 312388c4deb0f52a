//! A CPU tensor's numbers as a slice.

use half::{bf16, f16};
use tch::{Device, Kind, Tensor};

/// A Rust type of tensor elements.
///
/// # Safety
/// `KIND` must be the dtype whose elements are `Self`, bit for bit, and every bit pattern must be valid.
pub unsafe trait Element: Copy + Send + Sync + 'static {
    /// The dtype.
    const KIND: Kind;
}

// SAFETY: the dtypes named are these types.
unsafe impl Element for f32 {
    const KIND: Kind = Kind::Float;
}
// SAFETY: as above.
unsafe impl Element for f64 {
    const KIND: Kind = Kind::Double;
}
// SAFETY: as above.
unsafe impl Element for bf16 {
    const KIND: Kind = Kind::BFloat16;
}
// SAFETY: as above.
unsafe impl Element for f16 {
    const KIND: Kind = Kind::Half;
}
// SAFETY: as above.
unsafe impl Element for u8 {
    const KIND: Kind = Kind::Uint8;
}
// SAFETY: as above.
unsafe impl Element for i64 {
    const KIND: Kind = Kind::Int64;
}

/// The elements of `t`, in order; `None` unless it lies contiguous on the CPU with that dtype.
///
/// As with any tensor whose data are borrowed: do not change it in place, through another handle, meanwhile.
pub fn elements<T: Element>(t: &Tensor) -> Option<&[T]> {
    let fits = t.device() == Device::Cpu && t.kind() == T::KIND && t.is_contiguous();
    // SAFETY: the tensor holds that many elements of that type one after another, and lives as long as `t`.
    fits.then(|| match t.numel() {
        0 => &[][..],
        n => unsafe { std::slice::from_raw_parts(t.data_ptr().cast(), n) },
    })
}

/// All memory from the first element of `t` to the last, whatever lies between them, and the strides; `None` unless
/// it lies on the CPU with that dtype. As [`elements`].
pub fn span<T: Element>(t: &Tensor) -> Option<(&[T], Vec<usize>)> {
    let fits = t.device() == Device::Cpu && t.kind() == T::KIND;
    let strides: Vec<usize> = t.stride().into_iter().map(|s| usize::try_from(s).unwrap_or(0)).collect();
    let last: usize = t.size().iter().zip(&strides).map(|(n, s)| (*n as usize).saturating_sub(1) * s).sum();
    // SAFETY: the first element and the last lie in the tensor's memory, which lives as long as `t`; libtorch knows no
    // negative strides.
    fits.then(|| match t.numel() {
        0 => (&[][..], strides),
        _ => (unsafe { std::slice::from_raw_parts(t.data_ptr().cast(), last + 1) }, strides),
    })
}

unsafe extern "C" {
    fn tch_ext_changed(tensor: *mut std::ffi::c_void);
    fn tch_ext_set_grad(tensor: *mut std::ffi::c_void, grad: *const std::ffi::c_void) -> bool;
}

/// Says that `t`'s numbers were changed through another handle on its memory: `t.internal_version()` grows.
pub fn changed(t: &Tensor) {
    // SAFETY: a live tensor.
    unsafe { tch_ext_changed(t.as_ptr().cast_mut().cast()) };
}

/// Makes `grad` the gradient of the leaf `t`, or takes it away. Backward passes add to it in place: as a view of a
/// longer tensor it stays one.
///
/// # Panics
/// If `grad` has another shape, dtype or device than `t`.
pub fn set_grad(t: &Tensor, grad: Option<&Tensor>) {
    if let Some(grad) = grad {
        let of = |t: &Tensor| (t.size(), t.kind(), t.device());
        assert_eq!(of(t), of(grad), "a gradient is like its tensor");
    }
    let grad = grad.map_or(std::ptr::null(), |g| g.as_ptr().cast());
    // SAFETY: two live tensors, or a null.
    let done = unsafe { tch_ext_set_grad(t.as_ptr().cast_mut().cast(), grad) };
    assert!(done, "libtorch refuses a gradient for this tensor");
}

/// The elements of `t`, to be written; as [`elements`]. Other handles on the same data must lie still. Counts as a
/// change in place: `t.internal_version()` grows, and that of every other handle on the tensor.
pub fn elements_mut<T: Element>(t: &mut Tensor) -> Option<&mut [T]> {
    let fits = t.device() == Device::Cpu && t.kind() == T::KIND && t.is_contiguous();
    if fits {
        // SAFETY: a live tensor.
        unsafe { tch_ext_changed(t.as_mut_ptr().cast()) };
    }
    // SAFETY: as in `elements`; `t` is borrowed uniquely.
    fits.then(|| match t.numel() {
        0 => &mut [][..],
        n => unsafe { std::slice::from_raw_parts_mut(t.data_ptr().cast(), n) },
    })
}
