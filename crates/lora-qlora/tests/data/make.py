"""Makes nf4.safetensors: what bitsandbytes (0.50, on the CPU) makes of random and of hard weights.

    python crates/lora-qlora/tests/data/make.py          (torch, bitsandbytes and safetensors installed)

A case is called "<options> <dtype> <shape>", with the options as behind `qlora:`. It holds `weight` and `weight.<part>`
(what would be saved), and `dense` (dequantised, in the dtype). What it was made from is "source.<dtype> <shape>".
"""

from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from safetensors.torch import save_file


def source(shape: tuple[int, int], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Rows of different sizes, as in a model; a block of zeros, tiny numbers, a huge one, equal ones."""
    torch.manual_seed(seed)
    weight = 0.02 * torch.randn(shape) * torch.logspace(-2, 1, shape[0])[:, None]
    flat = weight.view(-1)
    if flat.numel() > 3000:
        flat[640:704] = 0
        flat[768:832] = 1e-41
        flat[1000] = 3e4
        flat[1500:1600] = flat[1500]
        # The borders between codes themselves, beside a 1.
        for at, code in ((2048, "nf4"), (2304, "fp4")):
            book = bnb.get_4bit_type(code, device="cpu").sort().values
            flat[at:at + 256] = 0.5
            flat[at:at + 15] = (book[1:] + book[:-1]) / 2
            flat[at + 15] = 1
    return weight.to(dtype)


def dense(packed: torch.Tensor, state) -> torch.Tensor:
    """By bitsandbytes' own definition: its AVX-512 kernel takes wrong scales where rows are no whole blocks."""
    absmax = state.absmax
    if state.nested:
        absmax = bnb.dequantize_blockwise(absmax, state.state2) + state.offset
    make = getattr(_dequantize_4bit_compute, "__wrapped__", _dequantize_4bit_compute)
    by_definition = make(packed.reshape(-1), absmax, state.code, state.blocksize, state.shape, state.dtype)
    if state.shape[1] % state.blocksize == 0:
        assert torch.equal(by_definition, bnb.dequantize_4bit(packed, state)), "bitsandbytes disagrees with itself"
    return by_definition


def main() -> None:
    tensors = {}
    shapes = [(48, 100), (300, 64), (7, 43), (1, 1), (16, 512)]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for seed, shape in enumerate(shapes):
            if dtype is not torch.float32 and seed > 0:
                continue
            about = f"{str(dtype).removeprefix('torch.')} {shape[0]}x{shape[1]}"
            weight = source(shape, dtype, seed)
            tensors[f"source.{about}"] = weight
            for code in ("nf4", "fp4"):
                for block in (32, 64, 128, 4096):
                    for nested in (True, False):
                        if (code, block, nested) != ("nf4", 64, True) and (seed in (1, 3) or seed > 0 and block < 4096):
                            continue
                        name = f"{code}:{block}{'' if nested else ':single'} {about}"
                        packed, state = bnb.quantize_4bit(
                            weight, blocksize=block, compress_statistics=nested, quant_type=code)
                        tensors |= {f"{name}.weight": packed.contiguous(),
                                    f"{name}.dense": dense(packed, state).contiguous()}
                        tensors |= {f"{name}.weight.{part}": t.contiguous().clone()
                                    for part, t in state.as_dict(packed=True).items()}
    save_file(tensors, Path(__file__).with_name("nf4.safetensors"))


if __name__ == "__main__":
    main()
