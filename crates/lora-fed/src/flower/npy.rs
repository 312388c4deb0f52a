//! NumPy's file format, version 1.0, for the three dtypes that travel.
//!
//! <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>. Written byte for byte as NumPy writes
//! it; read strictly: NumPy's own header and nothing else.

use lora_core::{Error, Result};

use super::records::{Dtype, NdArray};

const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";

/// NumPy's room for the first dimension to grow in place.
const GROWTH: usize = 21;

/// The file.
pub(crate) fn write(array: &NdArray) -> Vec<u8> {
    let shape = match array.shape() {
        [] => "()".to_owned(),
        [one] => format!("({one},)"),
        many => format!("({})", many.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    };
    let mut header =
        format!("{{'descr': '{}', 'fortran_order': False, 'shape': {shape}, }}", array.dtype().descr());
    if let Some(first) = array.shape().first() {
        header.push_str(&" ".repeat(GROWTH.saturating_sub(first.to_string().len())));
    }
    // NumPy pads to a multiple of 64, and by a whole 64 where nothing is missing.
    let used = MAGIC.len() + 2 + header.len() + 1;
    header.push_str(&" ".repeat(64 - used % 64));
    header.push('\n');
    let mut file = Vec::with_capacity(MAGIC.len() + 2 + header.len() + array.bytes().len());
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&(header.len() as u16).to_le_bytes());
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(array.bytes());
    file
}

/// Reads a file of at most `most_dims` dimensions.
///
/// # Errors
/// For another version, dtype or byte order, and where the shape does not fit the bytes.
pub(crate) fn read(file: &[u8], most_dims: usize) -> Result<NdArray> {
    let bad = |what: &str| Error::data(format!("not a NumPy array that is understood: {what}"));
    let rest = file.strip_prefix(MAGIC).ok_or_else(|| bad("it does not begin as version 1.0 does"))?;
    let (length, rest) = rest.split_first_chunk().ok_or_else(|| bad("it ends in its header"))?;
    let (header, numbers) = rest
        .split_at_checked(usize::from(u16::from_le_bytes(*length)))
        .ok_or_else(|| bad("it ends in its header"))?;
    let header = std::str::from_utf8(header).map_err(|_| bad("its header is no text"))?;
    let (dtype, fortran, shape) = parse(header, most_dims).ok_or_else(|| bad(header.trim_end()))?;
    if !fortran || shape.len() < 2 || numbers.is_empty() {
        return NdArray::new(dtype, shape, numbers.to_vec());
    }
    // The first dimension fastest: the reversed array, transposed.
    let checked = NdArray::new(dtype, shape.iter().rev().copied().collect(), numbers.to_vec())?;
    let turned = transposed(checked.bytes(), &shape, dtype.size());
    NdArray::new(dtype, shape, turned)
}

/// `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`.
fn parse(header: &str, most_dims: usize) -> Option<(Dtype, bool, Vec<usize>)> {
    let rest = header.strip_prefix("{'descr': '")?;
    let (descr, rest) = rest.split_once('\'')?;
    let rest = rest.strip_prefix(", 'fortran_order': ")?;
    let (order, rest) = rest.split_once(", 'shape': (")?;
    let (shape, rest) = rest.split_once(')')?;
    if !(rest.strip_prefix(", }")?.trim_end().is_empty() && rest.ends_with('\n')) {
        return None;
    }
    let fortran = match order {
        "True" => true,
        "False" => false,
        _ => return None,
    };
    let mut dims = Vec::new();
    let shape = shape.strip_suffix(',').unwrap_or(shape);
    for dim in shape.split(", ").filter(|_| !shape.is_empty()) {
        if dims.len() == most_dims || !dim.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        dims.push(dim.parse().ok().filter(|&d: &usize| i64::try_from(d).is_ok())?);
    }
    Some((Dtype::parse(descr).filter(|d| d.descr() == descr)?, fortran, dims))
}

/// The numbers of an array of `shape` whose first dimension is fastest, the last made fastest.
fn transposed(bytes: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    // How far apart, in numbers, two neighbours along each dimension are.
    let steps: Vec<usize> = shape
        .iter()
        .scan(1, |step, &dim| {
            let this = *step;
            *step *= dim;
            Some(this)
        })
        .collect();
    let mut turned = Vec::with_capacity(bytes.len());
    let mut index = vec![0; shape.len()];
    while turned.len() < bytes.len() {
        let at: usize = index.iter().zip(&steps).map(|(i, step)| i * step).sum();
        turned.extend_from_slice(bytes.get(at * size..(at + 1) * size).unwrap_or_default());
        for (i, dim) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < *dim {
                break;
            }
            *i = 0;
        }
    }
    turned
}
