"""Makes this folder's goldens: tiny random models, and what transformers and PEFT compute from them.

    python tests/goldens/make.py          (torch, transformers and peft installed; no network; about a minute)

    <family>/model/                    config.json and f32 safetensors
    <family>/golden.safetensors        input_ids i64 [2, 24]; logits f32 [2, 24, 96]; prompt i64 [5]; greedy i64 [16]
    <family>/adapters/<recipe>/        a folder as PEFT writes it
    <family>/golden_<recipe>.safetensors   see xtask/peers/golden.py; for bf16 only logits and merged
    targets.json                       which modules PEFT adapts, and with which [r, alpha], for many configurations

Running it again on the same machine gives the same bytes; elsewhere f32 rounding may differ.
"""

import os
import sys

if os.environ.get("PYTHONHASHSEED") != "0":  # PEFT writes sets in hash order
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"})

import json
import shutil
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "xtask" / "peers"))
sys.dont_write_bytecode = True

import golden
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

logging.disable_progress_bar()
logging.set_verbosity_error()
warnings.filterwarnings("ignore")
torch.set_num_threads(1)

SIZES = dict(
    vocab_size=96, hidden_size=32, num_hidden_layers=2, intermediate_size=48, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, hidden_act="silu",
    attention_dropout=0.0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
)
# The first five are written as most published checkpoints are (rope_theta, rope_scaling); qwen3 as transformers 5
# writes it (rope_parameters).
FAMILIES: dict[str, dict] = {
    "smollm": dict(model_type="llama", tie_word_embeddings=True, rope_theta=100000.0, rope_scaling=None),
    "llama2": dict(model_type="llama", num_key_value_heads=4, rope_theta=10000.0, rope_scaling=None),
    # Head size 8 has wavelengths 6, 63, 628, 6283: kept, blended, and scaled twice.
    "llama3": dict(model_type="llama", rope_theta=10000.0, rope_scaling=dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=64)),
    "mistral": dict(model_type="mistral", sliding_window=8, rope_theta=10000.0),
    "qwen2": dict(model_type="qwen2", rope_theta=10000.0, tie_word_embeddings=True, rms_norm_eps=1e-6,
        use_sliding_window=False, sliding_window=8, max_window_layers=2),
    "qwen3": dict(model_type="qwen3", head_dim=16, attention_bias=False, rms_norm_eps=1e-6, use_sliding_window=False,
        rope_parameters=dict(rope_type="default", rope_theta=1000000.0)),
}
ARCHITECTURES = dict(
    llama="LlamaForCausalLM", mistral="MistralForCausalLM", qwen2="Qwen2ForCausalLM", qwen3="Qwen3ForCausalLM")

PATTERNS = dict(
    lora_alpha=12.5, rank_pattern={"q_proj": 2, "layers.1.mlp.down_proj": 6}, alpha_pattern={"k_proj": 5.5},
    exclude_modules=["layers.0.self_attn.v_proj"],
)
RECIPES: dict[str, dict] = {
    "lora": {},
    "rslora": dict(use_rslora=True),
    "dora": dict(use_dora=True),
    "dora+rslora": dict(use_dora=True, use_rslora=True),
    "patterns": PATTERNS,
    "bf16": {},
}
REGEX = r".*\.(self_attn\.[qkv]_proj|mlp\.(up|down)_proj)"
LIST = ["q_proj", "k_proj", "v_proj", "up_proj", "mlp.down_proj"]
MERGED = ["model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.down_proj.weight"]


def make_model(family: str, folder: Path) -> None:
    """Writes a model whose biases and norms all matter, and whose logits are of the order of 1."""
    given = SIZES | FAMILIES[family]
    config = AutoConfig.for_model(**json.loads(json.dumps(given)))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(sum(map(ord, family)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.2 * noise)
    model.save_pretrained(folder, max_shard_size="64KB" if family == "llama2" else "5GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    published = given | dict(architectures=[ARCHITECTURES[given["model_type"]]], torch_dtype="float32")
    if "rope_parameters" not in given:
        (folder / "config.json").write_text(json.dumps(published, indent=2, sort_keys=True) + "\n")


def load_model(family: str) -> PreTrainedModel:
    folder = HERE / family / "model"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def greedy(model: PreTrainedModel, prompt: torch.Tensor, count: int) -> torch.Tensor:
    """The likeliest continuation, computed without a cache; its choices must not hang on rounding."""
    ids = prompt[None]
    for _ in range(count):
        best = golden.logits_of(model, ids)[0, -1].topk(2)
        assert best.values[0] - best.values[1] > 1e-3, "near tie: choose another seed"
        ids = torch.cat([ids, best.indices[:1, None]], dim=1)
    return ids[0, len(prompt):].contiguous()


def make_family(family: str) -> torch.Tensor:
    make_model(family, HERE / family / "model")
    model = load_model(family)
    ids = torch.randint(3, SIZES["vocab_size"], (2, 24), generator=torch.Generator().manual_seed(7))
    prompt = ids[0, :5].clone()
    save_file({
        "input_ids": ids, "logits": golden.logits_of(model, ids), "prompt": prompt, "greedy": greedy(model, prompt, 16),
    }, HERE / family / "golden.safetensors")
    return ids


def make_adapter(family: str, recipe: str, ids: torch.Tensor) -> None:
    targets = "all-linear" if recipe != "patterns" else REGEX if family == "smollm" else LIST
    config = LoraConfig(**dict(
        r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM",
        base_model_name_or_path=family,
    ) | RECIPES[recipe])
    folder = HERE / family / "adapters" / recipe
    dtype = torch.bfloat16 if recipe == "bf16" else torch.float32
    golden.save_adapter(load_model(family), config, folder, b_std=0.1, dtype=dtype)
    path = HERE / family / f"golden_{recipe}.safetensors"
    if recipe == "bf16":
        tensors = {"logits": golden.logits_of(golden.load_adapter(load_model(family), folder), ids)}
        tensors |= golden.merged_weights(golden.load_adapter(load_model(family), folder), MERGED)
    else:
        tensors = golden.adapter_golden(lambda: load_model(family), folder, ids, rate=1e-2, merged=MERGED, clip=True)
    save_file(tensors, path)


TARGETS: list[dict] = [
    dict(target_modules="all-linear"),
    dict(target_modules="all-linear", exclude_modules=["down_proj"]),
    dict(target_modules="all-linear", exclude_modules=r".*layers\.0\..*"),
    dict(target_modules=["q_proj"]),
    dict(target_modules=["q_proj", "v_proj"], r=3, lora_alpha=6),
    dict(target_modules=["proj"]),
    dict(target_modules=["self_attn.q_proj"]),
    dict(target_modules=["layers.1.mlp.up_proj", "model.layers.0.mlp.up_proj"]),
    dict(target_modules=["lm_head"]),
    dict(target_modules=["nothing_of_the_kind"]),
    dict(target_modules=["self_attn"]),
    dict(target_modules=["norm"]),
    dict(target_modules=["q_proj"], exclude_modules=["self_attn.q_proj"]),
    dict(target_modules=["q_proj", "k_proj"], exclude_modules=["layers.1.self_attn.q_proj", "k"]),
    dict(target_modules=r".*\.(q|v)_proj"),
    dict(target_modules=r"q_proj"),
    dict(target_modules=r"model\.layers\.1\..*_proj"),
    dict(target_modules=r".*mlp.(gate|up)_proj", exclude_modules=["layers.0.mlp.gate_proj"]),
    dict(target_modules=["q_proj", "down_proj"], layers_to_transform=1),
    dict(target_modules=["q_proj", "down_proj"], layers_to_transform=[0, 1]),
    dict(target_modules=["q_proj"], layers_to_transform=[]),
    dict(target_modules=["q_proj"], layers_to_transform=[7]),
    dict(target_modules=["q_proj"], layers_to_transform=[0], layers_pattern="layers"),
    dict(target_modules=["q_proj"], layers_to_transform=[0], layers_pattern=["h", "layers"]),
    dict(target_modules=["q_proj"], layers_to_transform=[0], layers_pattern="h"),
    dict(target_modules=["q_proj"], layers_pattern="layers"),
    dict(target_modules=r".*q_proj", layers_to_transform=[0]),
    dict(target_modules="all-linear", layers_to_transform=[0]),
    dict(target_modules=["q_proj", "k_proj"], rank_pattern={"q_proj": 2}, alpha_pattern={"k_proj": 5.5}),
    dict(target_modules=["q_proj"], rank_pattern={"layers.0.self_attn.q_proj": 2, "q_proj": 3}),
    dict(target_modules=["q_proj"], rank_pattern={"q_proj": 3, "layers.0.self_attn.q_proj": 2}),
    dict(target_modules=["q_proj", "up_proj"], rank_pattern={r".*\.1\..*": 6}, alpha_pattern={"(q|k)_proj": 1}),
    dict(target_modules=["q_proj"], rank_pattern={"proj": 2}, alpha_pattern={"model.layers.1.self_attn.q_proj": 3}),
    dict(target_modules=["q_proj"], rank_pattern={"^model.layers.0.self_attn.q_proj": 2}),
]


def targets() -> dict:
    """PEFT's own answer for each configuration, read off the model it builds."""
    cases = []
    for given in TARGETS:
        config = dict(r=4, lora_alpha=8) | given
        try:
            model = get_peft_model(load_model("smollm"), LoraConfig(task_type="CAUSAL_LM", **config)).base_model.model
            adapted = {name: [m.r["default"], m.lora_alpha["default"]]
                       for name, m in model.named_modules() if isinstance(m, LoraLayer)}
            cases.append(dict(config=config, expect=adapted))
        except ValueError as error:
            cases.append(dict(config=config, expect="error", why=str(error).splitlines()[0][:120]))
    model = load_model("smollm")
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    return dict(modules=[name for name, _ in model.named_modules() if name], linear=linear, cases=cases)


def main() -> None:
    for family in FAMILIES:
        shutil.rmtree(HERE / family, ignore_errors=True)
        ids = make_family(family)
        for recipe in RECIPES if family in ("smollm", "qwen2", "qwen3") else ():
            make_adapter(family, recipe, ids)
        print("made", family, flush=True)
    lines = targets()
    cases = ",\n".join("    " + json.dumps(case) for case in lines.pop("cases"))
    head = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in lines.items())
    (HERE / "targets.json").write_text(f'{{\n{head},\n  "cases": [\n{cases}\n  ]\n}}\n')


if __name__ == "__main__":
    main()
