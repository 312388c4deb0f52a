"""Makes the files beside it with PEFT itself: `python make.py` (peft 0.21.2, transformers 5.23, torch 2.11).

configs/*.json  what `LoraConfig.save_pretrained` writes
targets.json    which modules PEFT adapts, with what rank and alpha, or that it fails
tensors.safetensors, tensors.json   what `safetensors.torch.save_file` writes, and the values as little-endian hex
"""

import json
import pathlib
import shutil
import tempfile
import warnings

import safetensors.torch
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

warnings.filterwarnings("ignore")
here = pathlib.Path(__file__).parent

CONFIGS = {
    "plain": dict(r=4, lora_alpha=8, target_modules=["v_proj", "q_proj"], task_type="CAUSAL_LM"),
    "rich": dict(r=16, lora_alpha=22.5, lora_dropout=0.05, target_modules=["q_proj", "down_proj"],
                 exclude_modules=["layers.0.mlp.down_proj"], layers_to_transform=[0, 2], layers_pattern="layers",
                 rank_pattern={"q_proj": 2, "^model.layers.2.mlp.down_proj": 4}, alpha_pattern={"layers.2.*": 3},
                 use_dora=True, use_rslora=True, base_model_name_or_path="base/model", revision="main",
                 init_lora_weights="gaussian"),
    "regex": dict(target_modules=r".*\.(?!k_)[a-z]+_proj", exclude_modules=r".*mlp.*", init_lora_weights=False),
    "eva": dict(target_modules=["q_proj"], init_lora_weights="eva"),
    "refused": dict(target_modules=["q_proj"], init_lora_weights="pissa_niter_4", lora_bias=False, bias="all",
                    modules_to_save=["lm_head"], fan_in_fan_out=True, use_qalora=True,
                    layer_replication=[(0, 1)], trainable_token_indices=[3], target_parameters=["w"],
                    alora_invocation_tokens=[1, 2], megatron_config={"a": 1}, ensure_weight_tying=True),
}


def configs():
    (here / "configs").mkdir(exist_ok=True)
    for name, fields in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            config = LoraConfig(**fields)
            config.inference_mode = True  # as PeftModel.save_pretrained does
            config.save_pretrained(folder)
            shutil.copy(folder + "/adapter_config.json", here / f"configs/{name}.json")


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=12, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=32))


class Experts(torch.nn.Module):
    """An index inside an index, and two lists of layers."""

    def __init__(self):
        super().__init__()
        block = lambda: torch.nn.ModuleDict({"experts": torch.nn.ModuleList(
            torch.nn.ModuleDict({"up": torch.nn.Linear(6, 4), "down": torch.nn.Linear(4, 6)}) for _ in range(3))})
        self.layers = torch.nn.ModuleList(block() for _ in range(3))
        self.encoder = torch.nn.ModuleDict({"h": torch.nn.ModuleList(block() for _ in range(2))})
        self.down = torch.nn.Linear(4, 4)


LLAMA = [
    dict(target_modules="all-linear"),
    dict(target_modules="All-Linear", exclude_modules=["k_proj", "layers.1.mlp.up_proj"]),
    dict(target_modules=["q_proj", "v_proj"]),
    dict(target_modules=["lm_head", "model.layers.3.self_attn.o_proj", "1.self_attn.k_proj"]),
    dict(target_modules=["roj"]),
    dict(target_modules=r".*\.(q|v)_proj"),
    dict(target_modules=r"q_proj"),
    dict(target_modules=r"model\.layers\.(?!1\.|11\.)\d+\.mlp\.(?:gate|up)_proj"),
    dict(target_modules=r".*layers\.3\..*"),
    dict(target_modules=r".*layers\.3\..*", exclude_modules=r".*(attn|mlp|norm|act_fn).?|.*layernorm"),
    dict(target_modules=r".*\.(?P<p>q)_proj|.*\.k_proj"),
    dict(target_modules=["q_proj", "down_proj"], layers_to_transform=1),
    dict(target_modules=["q_proj", "down_proj"], layers_to_transform=[0, 11], layers_pattern="layers"),
    dict(target_modules=["q_proj"], layers_to_transform=[]),
    dict(target_modules=["q_proj"], layers_to_transform=[2], layers_pattern=["h", "layers"]),
    dict(target_modules=["q_proj"], layers_to_transform=[2], layers_pattern=["h"]),
    dict(target_modules=["q_proj"], exclude_modules=["q_proj"]),
    dict(target_modules=["q_proj", "k_proj"], exclude_modules=r".*\.1\d?\..*"),
    dict(target_modules=["self_attn"]),
    dict(target_modules=["q_proj", "up_proj"], rank_pattern={"q_proj": 2, "layers.1.self_attn.q_proj": 3},
         alpha_pattern={"layers.1.*": 5, "^model.layers.11.mlp.up_proj": 6.5, "up_proj": 7}),
    dict(target_modules=["q_proj", "up_proj"], rank_pattern={r"layers\.\d\..*": 2, "proj|q_proj": 1}),
]
EXPERTS = [
    dict(target_modules="all-linear"),
    dict(target_modules=["down"]),
    dict(target_modules=["up"], layers_to_transform=[1]),
    dict(target_modules=["up", "down"], layers_to_transform=[1], layers_pattern="layers"),
    dict(target_modules=["up", "down"], layers_to_transform=[0, 1], layers_pattern=["h", "layers"]),
    dict(target_modules=["up", "down"], layers_to_transform=[2], layers_pattern="experts"),
    dict(target_modules=["1.up"], exclude_modules=r"layers\.(0|2).*"),
]


def case(build, fields):
    config = LoraConfig(r=4, lora_alpha=9, **fields)
    try:
        model = get_peft_model(build(), config).base_model.model
    except ValueError as e:
        return {"config": fields, "error": str(e)[:100]}
    picked = [[name, layer.r["default"], layer.lora_alpha["default"]]
              for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    return {"config": fields, "selected": picked}


def targets():
    models = []
    for build, cases, head in [(llama, LLAMA, "lm_head"), (Experts, EXPERTS, None)]:
        linear = [[n, list(m.weight.shape)] for n, m in build().named_modules() if isinstance(m, torch.nn.Linear)]
        models.append({"modules": linear, "output_head": head, "cases": [case(build, c) for c in cases]})
    (here / "targets.json").write_text(json.dumps(models, indent=1) + "\n")


def tensors():
    torch.manual_seed(0)
    named = {f"a.{str(kind)[6:]}": (torch.randn(3, 5) * 50).to(kind) for kind in
             [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
              torch.int8, torch.uint8, torch.bool]}
    named |= {"scalar": torch.tensor(-0.0), "empty": torch.zeros(0, 4, dtype=torch.bfloat16),
              "subnormal": torch.tensor([1e-45, 1.0])}
    safetensors.torch.save_file(named, here / "tensors.safetensors", metadata={"format": "pt"})
    bits = {n: [str(t.dtype)[6:], list(t.shape), t.numpy(force=True).tobytes().hex() if t.dtype != torch.bfloat16
                else t.view(torch.int16).numpy().tobytes().hex()] for n, t in named.items()}
    (here / "tensors.json").write_text(json.dumps(bits, indent=1) + "\n")


configs()
targets()
tensors()
