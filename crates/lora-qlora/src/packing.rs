//! bitsandbytes' serialised form (`functional.py`, `QuantState.as_dict(packed=True)`): beside the codes, `absmax`,
//! `quant_map`, for nested scales `nested_absmax` and `nested_quant_map`, and a JSON text, as bytes, with the rest.

use std::sync::Arc;

use lora_core::{BaseWeight, Error, Packing, Parts, Result, python_repr};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};
use tch_ext::elements;

use crate::four_bit::FourBit;
use crate::options::{Code, checked};
use crate::scales::{NEST, Nested, Scales};

/// The JSON's part is called `quant_state.bitsandbytes__nf4` or `...fp4`.
const STATE: &str = "quant_state.bitsandbytes__";

/// The longest JSON text read.
const MAX_STATE: i64 = 1 << 16;

/// Weights as bitsandbytes saves them.
#[derive(Debug)]
pub struct Bitsandbytes;

#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<i64>,
    nested_blocksize: Option<usize>,
    nested_dtype: Option<String>,
    nested_offset: Option<f64>,
}

impl Packing for Bitsandbytes {
    fn describe(&self, parts: &Parts<'_>) -> Result<Option<((i64, i64), Kind)>> {
        if !parts.names.iter().any(|name| name.starts_with(STATE)) {
            return Ok(None);
        }
        let state = State::read(parts)?;
        Ok(Some((state.shape()?, state.kind()?)))
    }

    fn read(&self, parts: &Parts<'_>, kind: Kind) -> Result<Box<dyn BaseWeight>> {
        let state = State::read(parts)?;
        let (shape, code) = (state.shape()?, state.code()?);
        let block = checked(state.blocksize).map_err(|_| fault(format!("blocks of {}", state.blocksize)))?;
        let n = (shape.0 * shape.1) as usize;
        let blocks = n.div_ceil(block);

        let packed = bytes(parts.get("")?)?;
        expect("the codes", packed.numel(), n.div_ceil(2))?;
        let absmax = parts.get("absmax")?.f_reshape([-1])?;
        expect("`absmax`", absmax.numel(), blocks)?;
        let book = floats::<16>(parts, "quant_map")?;
        let scales = match (state.nested_offset, absmax.kind()) {
            (None, Kind::Float) => {
                finite("`absmax`", &absmax)?;
                Scales::Plain(absmax)
            }
            (Some(offset), Kind::Uint8) => Scales::Nested(state.nested(parts, absmax, offset as f32)?),
            (nested, kind) => {
                let state = if nested.is_some() { "nested" } else { "plain" };
                return Err(fault(format!("`absmax` of {kind:?} for {state} scales")));
            }
        };
        let packed = padded(packed, blocks * block / 2);
        Ok(Box::new(FourBit::of(packed, scales, (block, code, book), shape, (state.kind()?, kind))))
    }
}

impl State {
    fn read(parts: &Parts<'_>) -> Result<Self> {
        let name = parts.names.iter().find(|name| name.starts_with(STATE)).copied().unwrap_or(STATE);
        let text = parts.get(name)?;
        if text.kind() != Kind::Uint8 || text.numel() as i64 > MAX_STATE {
            return Err(fault(format!("{} elements of {:?} as `{name}`", text.numel(), text.kind())));
        }
        let text = elements::<u8>(&text).unwrap_or_default();
        let state: Self = serde_json::from_slice(text)
            .map_err(|e| fault(format!("`{name}` is malformed: {e}")).because(e))?;
        if name.strip_prefix(STATE) != Some(&state.quant_type) {
            return Err(fault(format!("`{name}` holds the state of `{}`", state.quant_type)));
        }
        Ok(state)
    }

    fn code(&self) -> Result<Code> {
        [Code::Nf4, Code::Fp4].into_iter().find(|code| code.name() == self.quant_type).ok_or_else(|| {
            Error::unsupported(format!("the quantisation type `{}`", self.quant_type))
                .hint("nf4 and fp4 are read")
        })
    }

    fn kind(&self) -> Result<Kind> {
        match self.dtype.as_str() {
            "float32" => Ok(Kind::Float),
            "bfloat16" => Ok(Kind::BFloat16),
            "float16" => Ok(Kind::Half),
            other => Err(fault(format!("a dtype `{other}`"))),
        }
    }

    fn shape(&self) -> Result<(i64, i64)> {
        match self.shape[..] {
            [out, inp] if out > 0 && inp > 0 && out.checked_mul(inp).is_some_and(|n| n <= i64::MAX / 8) => {
                Ok((out, inp))
            }
            _ => Err(fault(format!("a weight of shape {:?}", self.shape))),
        }
    }

    fn nested(&self, parts: &Parts<'_>, codes: Tensor, offset: f32) -> Result<Nested> {
        if self.nested_blocksize != Some(NEST) || self.nested_dtype.as_deref() != Some("float32") {
            let (size, dtype) = (self.nested_blocksize, self.nested_dtype.as_deref().unwrap_or("no type"));
            return Err(fault(format!("nested blocks of {size:?} in {dtype}, not {NEST} in float32")));
        }
        if !offset.is_finite() {
            return Err(fault(format!("a `nested_offset` of {offset}")));
        }
        let absmax = parts.get("nested_absmax")?.f_reshape([-1])?;
        expect("`nested_absmax`", absmax.numel(), codes.numel().div_ceil(NEST))?;
        finite("`nested_absmax`", &absmax)?;
        let map = Arc::new(floats::<256>(parts, "nested_quant_map")?);
        Ok(Nested { codes, absmax, offset: Tensor::from(offset), map })
    }
}

/// The parts that bitsandbytes would save.
pub(crate) fn parts(weight: &FourBit) -> Vec<(String, Tensor)> {
    let here = |t: &Tensor| t.to_device(Device::Cpu);
    let (out, inp) = weight.shape();
    let packed = here(&weight.packed).narrow(0, 0, (out * inp + 1) / 2).view([-1, 1]);
    let mut parts = vec![(String::new(), packed)];
    let mut add = |name: &str, t: Tensor| parts.push((name.to_owned(), t));
    let dtype = match weight.state {
        Kind::BFloat16 => "bfloat16",
        Kind::Half => "float16",
        _ => "float32",
    };
    let name = weight.code.name();
    // As Python's json.dumps writes it.
    let mut state = format!(
        "{{\"quant_type\": \"{name}\", \"blocksize\": {}, \"dtype\": \"{dtype}\", \"shape\": [{out}, {inp}]",
        weight.block
    );
    match &weight.scales {
        Scales::Plain(absmax) => add("absmax", here(absmax)),
        Scales::Nested(nested) => {
            add("absmax", here(&nested.codes));
            add("nested_absmax", here(&nested.absmax));
            add("nested_quant_map", Tensor::from_slice(&nested.map[..]));
            let offset = python_repr(nested.offset.double_value(&[]));
            state += &format!(
                ", \"nested_blocksize\": {NEST}, \"nested_dtype\": \"float32\", \"nested_offset\": {offset}"
            );
        }
    }
    state.push('}');
    add("quant_map", Tensor::from_slice(&weight.book));
    add(&format!("{STATE}{name}"), Tensor::from_slice(state.as_bytes()));
    parts
}

fn fault(what: String) -> Error {
    Error::data(what).hint("the checkpoint is damaged, or not of bitsandbytes: fetch it again")
}

fn expect(what: &str, found: usize, wanted: usize) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(fault(format!("{what} have {found} elements, where its shape asks for {wanted}")))
}

fn finite(what: &str, t: &Tensor) -> Result<()> {
    let sound = elements::<f32>(t).is_some_and(|x| x.iter().all(|x| x.is_finite()));
    if sound {
        return Ok(());
    }
    Err(fault(format!("{what} is not of finite f32 numbers")))
}

fn floats<const N: usize>(parts: &Parts<'_>, part: &str) -> Result<[f32; N]> {
    let t = parts.get(part)?.f_reshape([-1])?;
    finite(&format!("`{part}`"), &t)?;
    expect(&format!("`{part}`"), t.numel(), N)?;
    elements::<f32>(&t).and_then(|x| x.try_into().ok()).ok_or_else(|| fault(format!("`{part}` is malformed")))
}

/// Codes are bytes, but may be stored as another type of the same memory (`bnb_4bit_quant_storage`).
fn bytes(t: Tensor) -> Result<Tensor> {
    let t = t.f_reshape([-1])?;
    Ok(if t.kind() == Kind::Uint8 { t } else { t.f_view_dtype(Kind::Uint8)? })
}

fn padded(packed: Tensor, len: usize) -> Tensor {
    let short = len - packed.numel();
    if short == 0 { packed } else { packed.constant_pad_nd([0, short as i64]) }
}
