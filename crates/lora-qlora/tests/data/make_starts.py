"""Writes starts.safetensors: PEFT's own PiSSA, OLoRA and LoftQ of one weight.

    python crates/lora-qlora/tests/data/make_starts.py      (peft, bitsandbytes, safetensors, torch)

PiSSA and OLoRA are `get_peft_model` on a layer. LoftQ is `loftq_init`, which wants a GPU: its compute device is made the
CPU, where bitsandbytes quantises as well.
"""

import inspect
from pathlib import Path

import peft.utils.loftq_utils as loftq
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

OUT, IN, RANK, ALPHA = 48, 128, 4, 12


def layer(weight: torch.Tensor) -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(IN, OUT, bias=False))
    model[0].weight.data = weight.clone()
    return model


def main() -> None:
    torch.manual_seed(0)
    weight = torch.randn(OUT, IN) * 0.1
    tensors = {"weight": weight}
    for name in ("pissa", "olora"):
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"], init_lora_weights=name)
        made = get_peft_model(layer(weight), config).base_model.model[0]
        tensors[f"{name}.a"] = made.lora_A["default"].weight.data.clone()
        tensors[f"{name}.b"] = made.lora_B["default"].weight.data.clone()
        tensors[f"{name}.residual"] = made.base_layer.weight.data.clone()
    source = inspect.getsource(loftq.loftq_init)
    device = 'compute_device = "xpu" if is_xpu_available() else "cuda"'
    assert device in source
    source = source.replace(device, 'compute_device = "cpu"')
    scope = vars(loftq)
    scope["clear_device_cache"] = lambda: None
    exec(source, scope)
    for rounds in (1, 3):
        base, a, b = scope["loftq_init"](weight, num_bits=4, reduced_rank=RANK, num_iter=rounds)
        tensors |= {f"loftq{rounds}.a": a, f"loftq{rounds}.b": b, f"loftq{rounds}.base": base}
    tensors = {key: value.detach().contiguous() for key, value in tensors.items()}
    save_file(tensors, Path(__file__).parent / "starts.safetensors")


if __name__ == "__main__":
    main()
