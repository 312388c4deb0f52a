"""Times training steps of transformers + PEFT, as a knowledgeable user would run them, and prints one JSON line.

    python xtask/peers/peft_step.py --model GGUF|FOLDER --cache FOLDER --variant lora|dora|rslora|qlora --dtype
        bf16|f32 [--batch 4] [--seq 256] [--rank 8] [--steps 5] [--warmup 1] [--checkpointing] [--data JSONL]
        [--device cpu|cuda]

    {"tok_s": tokens over seconds, "s_step": median, "peak_mb": VmHWM, "first_loss_s": since the process began,
     without looking for the folder of a GGUF file, "losses": [of every step, warm-up included]}

The base is in --dtype with fused attention; the adapter (all-linear, alpha = 2r, no dropout) in the dtype PEFT chooses,
trained by AdamW at 1e-4. Each step sees the same batch of random ids, every position supervised:
x[0] = 42, x[n+1] = x[n] * 6364136223846793005 + 1442695040888963407 mod 2^64, ids[i] = (x[i+1] >> 33) % vocab.
With --data, step n sees rows n * batch .. (n + 1) * batch of the file (`context` + `target`), padded on the right to
the longest; the target and the end of text are supervised, and tokens are counted without padding.
qlora: bitsandbytes' NF4 with double quantisation, computed in --dtype.
A GGUF file is converted once, in another process, so that converting does not count as training memory, into a folder
of --cache that is known by what is in the file.
"""

import argparse
import json
import re
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

import torch
from hf import converted, encode, load_model
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import BitsAndBytesConfig
from transformers.utils import logging

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def random_ids(batch: int, seq: int, vocab: int) -> torch.Tensor:
    x, ids = 42, []
    for _ in range(batch * seq):
        x = (x * 6364136223846793005 + 1442695040888963407) % 2**64
        ids.append((x >> 33) % vocab)
    return torch.tensor(ids).reshape(batch, seq)


def read_batches(path: Path, folder: Path, size: int, count: int) -> list[dict[str, torch.Tensor]]:
    """Padded batches of prompts and completions, in the file's order, from the start again at its end."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    batches = []
    for n in range(count):
        pairs = [rows[(n * size + i) % len(rows)] for i in range(size)]
        pairs = [(encode(tokenizer, p["context"]), encode(tokenizer, p["target"]) + [2]) for p in pairs]
        longest = max(len(a) + len(b) for a, b in pairs)
        pad = [longest - len(a) - len(b) for a, b in pairs]
        batches.append({
            "input_ids": torch.tensor([a + b + [2] * n for (a, b), n in zip(pairs, pad)]),
            "attention_mask": torch.tensor([[1] * (len(a) + len(b)) + [0] * n for (a, b), n in zip(pairs, pad)]),
            "labels": torch.tensor([[-100] * len(a) + b + [-100] * n for (a, b), n in zip(pairs, pad)]),
        })
    return batches


def peak_mb() -> int:
    """The most memory this process has ever held, in MB (2^20 bytes)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024 // 10**6


def device_peak_mb(device: str) -> int:
    """Of the process, or of what torch has handed out on the GPU."""
    return peak_mb() if device == "cpu" else torch.cuda.max_memory_allocated() // 10**6


def age() -> float:
    """Seconds since this process was started."""
    start = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]
    return float(Path("/proc/uptime").read_text().split()[0]) - int(start) / 100


def train(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> tuple[list[float], list[float], float]:
    """Losses and seconds of each step, and when the first loss was there."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    losses, seconds, first = [], [], 0.0
    for batch in batches:
        start = time.perf_counter()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if loss.is_cuda:
            torch.cuda.synchronize()
        losses.append(round(loss.item(), 5))
        first = first or age()
        seconds.append(time.perf_counter() - start)
    return losses, seconds, first


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--variant", choices=["lora", "dora", "rslora", "qlora"], default="lora")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    for name, value in dict(batch=4, seq=256, rank=8, steps=5, warmup=1).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--checkpointing", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    logging.disable_progress_bar()
    dtype, begin = DTYPES[args.dtype], time.perf_counter()
    folder = converted(args.model, args.cache, dtype) if args.model.is_file() else args.model
    # No user of PEFT reads a GGUF file through before each run.
    looked = time.perf_counter() - begin
    torch.manual_seed(0)
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
    ) if args.variant == "qlora" else None
    base = load_model(folder, dtype, attention="sdpa", quantization_config=four_bits, device_map=args.device)
    base.config.use_cache = False
    if args.checkpointing:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    model = get_peft_model(base, LoraConfig(
        r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM",
        use_dora=args.variant == "dora", use_rslora=args.variant == "rslora",
    ))
    count = args.warmup + args.steps
    if args.data:
        batches = read_batches(args.data, folder, args.batch, count)
        tokens = [int(batch["attention_mask"].sum()) for batch in batches]
    else:
        ids = random_ids(args.batch, args.seq, base.config.vocab_size)
        batches, tokens = [{"input_ids": ids, "labels": ids}] * count, [ids.numel()] * count
    batches = [{name: tensor.to(args.device) for name, tensor in batch.items()} for batch in batches]
    losses, seconds, first = train(model.train(), batches)
    measured = slice(args.warmup, None)
    rate = sum(tokens[measured]) / sum(seconds[measured])
    if not args.data:
        rate = ids.numel() / statistics.median(seconds[measured])
    print(json.dumps({
        "tok_s": round(rate, 1), "s_step": round(statistics.median(seconds[measured]), 4), "peak_mb": device_peak_mb(args.device),
        "first_loss_s": round(first - looked, 2), "losses": losses,
    }))


if __name__ == "__main__":
    main()
