"""Times generation of transformers and PEFT, and prints one JSON line.

    python xtask/peers/peft_generate.py --gguf FILE --cache FOLDER [--batch 1] [--prompt 256] [--tokens 64]

    {"prefill_STATE": tok/s, "decode_STATE": tok/s} for STATE in base, merged, unmerged

bf16, fused attention, a random prompt, greedy tokens one at a time over a key-value cache; the best of four runs that
take turns. The adapter is LoRA of rank 8 on all linear layers.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

import torch
from hf import converted, load_model
from peft import LoraConfig, get_peft_model
from transformers.utils import logging


@torch.inference_mode()
def run(model: torch.nn.Module, ids: torch.Tensor, tokens: int) -> tuple[float, float]:
    """Tokens a second of the prompt, and of those after it."""
    start = time.perf_counter()
    out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    token = out.logits[:, -1:].argmax(-1)
    prefill = ids.numel() / (time.perf_counter() - start)
    start = time.perf_counter()
    for _ in range(tokens):
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
    return prefill, tokens * ids.shape[0] / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    for name, value in dict(batch=1, prompt=256, tokens=64).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    logging.disable_progress_bar()
    folder = converted(args.gguf, args.cache, torch.bfloat16)
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    base = load_model(folder, torch.bfloat16, attention="sdpa")
    model = get_peft_model(load_model(folder, torch.bfloat16, attention="sdpa"), config).eval()
    ids = torch.randint(base.config.vocab_size, (args.batch, args.prompt))
    best: dict[str, float] = {}
    for _ in range(4):
        for state in ["base", "merged", "unmerged"]:
            if state == "merged":
                model.merge_adapter()
            rates = run(base if state == "base" else model, ids, args.tokens)
            if state == "merged":
                model.unmerge_adapter()
            for what, rate in zip(("prefill", "decode"), rates):
                best[f"{what}_{state}"] = max(round(rate, 1), best.get(f"{what}_{state}", 0.0))
    print(json.dumps(best))


if __name__ == "__main__":
    main()
