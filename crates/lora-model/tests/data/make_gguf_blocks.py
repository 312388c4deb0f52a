"""Makes gguf_blocks.safetensors: blocks of every GGUF type that is read, and what the `gguf` package makes of them.

Needs gguf 0.19 and safetensors. Run in this folder: python make_gguf_blocks.py

TYPE.blocks (u8): random bytes, with f16 scales that are finite but of any size. TYPE.values (f32): dequantised.
quantize.floats (f32): of many sizes, with zeros and ties. quantize.Q8_0 (u8): quantised.
"""

import gguf
import numpy as np
from safetensors.numpy import save_file

# Where a block has its f16 scales.
SCALES = {
    "F32": [], "F16": [0], "BF16": [], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0],
}
rng = np.random.default_rng(11)


def half(n):
    """Half of them like a weight's scale, half any finite f16: subnormal, negative, huge, both zeros."""
    sane = (rng.standard_normal(n) * 0.02).astype(np.float16).view(np.uint16)
    wild = rng.integers(0, 1 << 16, n, dtype=np.uint16)
    wild[:5] = [0x0001, 0x8000, 0x7BFF, 0xFBFF, 0x0000]
    wild = np.where((wild & 0x7C00) == 0x7C00, wild & 0x83FF, wild).astype(np.uint16)
    return np.where(np.arange(n) % 2 == 0, wild, sane).astype(np.uint16)


tensors = {}
for name, places in SCALES.items():
    kind = gguf.GGMLQuantizationType[name]
    values, size = gguf.GGML_QUANT_SIZES[kind]
    n = 2048 // values if values < 256 else 20
    blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
    for at in places:
        blocks[:, at : at + 2] = half(n).reshape(-1, 1).view(np.uint8)
    if name in ("F32", "BF16"):  # no infinity, no NaN
        blocks[:, -1] &= 0xBF
    out = gguf.dequantize(blocks, kind).astype(np.float32).reshape(-1)
    assert np.isfinite(out).all(), name
    tensors[f"{name}.blocks"] = blocks.reshape(-1)
    tensors[f"{name}.values"] = out
floats = rng.standard_normal((64, 32)) * np.exp2(rng.uniform(-20, 10, (64, 1)))
floats[3] = 0
floats[4] = -0.0
floats[5] = np.arange(-16, 16) * 0.5  # d is not exact here, so few are ties
floats[6] = np.append(np.arange(-15.5, 15.5), 127)  # d is 1: all but one are ties
floats[7] = np.append(np.zeros(31), 3e-7)  # d is subnormal as f16
floats = floats.astype(np.float32)
tensors["quantize.floats"] = floats.reshape(-1)
tensors["quantize.Q8_0"] = gguf.quantize(floats, gguf.GGMLQuantizationType.Q8_0).reshape(-1)
save_file(tensors, "gguf_blocks.safetensors")
