"""Makes nf4.safetensors: what bitsandbytes (0.50, on the CPU) makes of random weights.

    python crates/lora-qlora/tests/data/make.py          (torch, bitsandbytes and safetensors installed)

For each dtype `d` of f32, bf16: d.weight [48, 100]; d.packed u8 (two codes a byte); d.codes u8, d.nested f32 and
d.offset f32 (the block scales, quantised once more); d.dense [48, 100] in d, dequantised. One block is all zeros.
`many.*` is the same for f32 [300, 64], whose 300 scales need a second block of 256.
"""

from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import save_file

tensors = {}
for name, dtype, shape in [("f32", torch.float32, (48, 100)), ("bf16", torch.bfloat16, (48, 100)),
                           ("many", torch.float32, (300, 64))]:
    torch.manual_seed(len(name))
    # Rows of different sizes, as in a model: scales that vary are what is hard to quantise.
    weight = (0.02 * torch.randn(shape) * torch.logspace(-2, 1, shape[0])[:, None]).to(dtype)
    weight.view(-1)[640:704] = 0
    packed, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    assert state.state2.blocksize == 256
    tensors |= {
        f"{name}.weight": weight,
        f"{name}.packed": packed.view(-1).contiguous(),
        f"{name}.codes": state.absmax.view(-1).contiguous(),
        f"{name}.nested": state.state2.absmax.view(-1).contiguous(),
        f"{name}.offset": state.offset.view(1).contiguous(),
        f"{name}.dense": bnb.dequantize_4bit(packed, state).contiguous(),
    }
save_file(tensors, Path(__file__).with_name("nf4.safetensors"))
