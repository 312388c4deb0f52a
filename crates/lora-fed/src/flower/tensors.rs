//! Arrays of the wire as tensors of libtorch, and back.

use std::collections::BTreeMap;

use lora_core::{Error, Result};
use tch::{Device, Kind, Tensor};

use super::records::{Arrays, Dtype, NdArray};

/// Tensors as arrays, by name in order: f32 on the wire (NumPy knows no bf16), integers as i64.
///
/// # Errors
/// For kinds that are no numbers.
pub fn to_arrays(tensors: &BTreeMap<String, Tensor>) -> Result<Arrays> {
    let one =
        |(name, tensor): (&String, &Tensor)| Ok((name.clone(), to_array(tensor).map_err(|e| e.at(name))?));
    tensors.iter().map(one).collect()
}

/// Arrays as tensors on the CPU, of the wire's dtype.
///
/// # Errors
/// For shapes that libtorch does not take.
pub fn to_tensors(arrays: &Arrays) -> Result<BTreeMap<String, Tensor>> {
    let one =
        |(name, array): (&String, &NdArray)| Ok((name.clone(), to_tensor(array).map_err(|e| e.at(name))?));
    arrays.iter().map(one).collect()
}

fn to_array(tensor: &Tensor) -> Result<NdArray> {
    let (dtype, kind) = match tensor.kind() {
        Kind::Float | Kind::Double | Kind::BFloat16 | Kind::Half => (Dtype::F32, Kind::Float),
        Kind::Int64 | Kind::Int | Kind::Int16 | Kind::Int8 | Kind::Uint8 => (Dtype::I64, Kind::Int64),
        other => return Err(Error::unsupported(format!("{other:?} does not travel"))),
    };
    let flat = tensor.detach().f_to_device(Device::Cpu)?.f_to_kind(kind)?.f_reshape([-1])?;
    let mut bytes = vec![0; flat.numel() * dtype.size()];
    flat.f_copy_data_u8(&mut bytes, flat.numel())?;
    let shape = tensor.size().into_iter().map(|d| usize::try_from(d).unwrap_or(0)).collect();
    NdArray::new(dtype, shape, bytes)
}

fn to_tensor(array: &NdArray) -> Result<Tensor> {
    let kind = match array.dtype() {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::I64 => Kind::Int64,
    };
    let shape: std::result::Result<Vec<i64>, _> = array.shape().iter().map(|&d| i64::try_from(d)).collect();
    let shape = shape.map_err(|_| Error::data("a dimension is too large"))?;
    Ok(Tensor::f_from_data_size(array.bytes(), &shape, kind)?)
}
