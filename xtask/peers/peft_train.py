"""Repeats a run of `lora train --trace` with transformers + PEFT, judges it, and prints one JSON line.

    python xtask/peers/peft_train.py --model GGUF|FOLDER --cache FOLDER --trace FOLDER --asked JSONL --metrics JSONL
        --out FOLDER [--dtype bf16|f32] [--device cpu|cuda]

--trace holds the adapter as ours started, and `batches.jsonl`, the token ids and labels of every step; --asked those of
the rows to judge by (`lora eval --trace`); --metrics is what ours logged, of which the learning rate of each
step is taken. So start, batches, schedule and questions are the same; the rest is theirs: fused attention, padded
batches, torch's AdamW and clipping to a joint norm of 1. OUT/adapter.metrics.jsonl and OUT/rows.jsonl are written as
ours are. A row is judged by the total log-probability of each of its answers, if it comes with several.

    {"train": {"outcome": {"seconds"}, "parameters", "peak_bytes", "load_seconds"},
     "eval": {"examples", "loss", "labels": {"accuracy", "macro_f1"}}}
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
from peft import PeftModel
from peft_step import DTYPES, device_peak_mb
from transformers.utils import logging

# Behind a text, where nothing attends.
PAD = 0


def read(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def padded(texts: list[dict], device: torch.device) -> dict[str, torch.Tensor]:
    """Ids and labels, padded on the right, on the device."""
    # Ours names the token that follows each position; theirs the token at it.
    texts = [(t["ids"] + [max(t["labels"][-1], PAD)], [-100] + t["labels"]) for t in texts]
    longest = max(len(ids) for ids, _ in texts)
    rest = [longest - len(ids) for ids, _ in texts]
    batch = {
        "input_ids": torch.tensor([ids + [PAD] * n for (ids, _), n in zip(texts, rest)]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * n for (ids, _), n in zip(texts, rest)]),
        "labels": torch.tensor([labels + [-100] * n for (_, labels), n in zip(texts, rest)]),
    }
    return {name: values.to(device) for name, values in batch.items()}


def train(model: torch.nn.Module, steps: list[dict], rates: list[float], log: Path) -> float:
    """Trains on the traced texts; seconds of all steps."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
    total = 0.0
    with log.open("w") as file:
        for step, rate in zip(steps, rates, strict=True):
            start = time.perf_counter()
            loss = model(**padded(step["texts"], model.device)).loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            # On a GPU the step ends when its numbers are there.
            loss, norm = loss.item(), norm.item()
            seconds = time.perf_counter() - start
            total += seconds
            tokens = sum(len(t["ids"]) for t in step["texts"])
            line = {"event": "step", "step": step["step"], "loss": loss, "grad_norm": norm, "lr": rate,
                    "tokens": tokens, "seconds": seconds}
            file.write(json.dumps(line) + "\n")
            file.flush()
    return total


@torch.inference_mode()
def judge(model: torch.nn.Module, rows: list[dict], out: Path) -> dict:
    """Scores of the answers of every row; loss, accuracy and macro-F1."""
    nats, count, pairs = 0.0, 0, []
    with out.open("w") as file:
        for row in rows:
            batch = padded(row["texts"], model.device)
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            logp = logits[:, :-1].float().log_softmax(-1)
            wanted = batch["labels"][:, 1:]
            each = logp.gather(-1, wanted.clamp_min(0).unsqueeze(-1)).squeeze(-1)
            scores = (each * (wanted >= 0)).sum(-1).tolist()
            truth, line = row.get("right", 0), {"line": row["line"]}
            nats, count = nats - scores[truth], count + int((wanted[truth] >= 0).sum())
            if answers := row.get("answers"):
                best = max(range(len(answers)), key=lambda i: scores[i])
                pairs.append((answers[truth], answers[best]))
                line |= {"reference": answers[truth], "label": answers[best], "scores": dict(zip(answers, scores))}
            file.write(json.dumps(line) + "\n")
    judged = {"examples": len(rows), "loss": nats / count}
    if pairs:
        labels = sorted({label for pair in pairs for label in pair})
        hits = [sum(t == g == c for t, g in pairs) for c in labels]
        seen = [sum((t == c) + (g == c) for t, g in pairs) for c in labels]
        f1 = [2 * h / s for h, s in zip(hits, seen)]
        judged["labels"] = {"accuracy": sum(hits) / len(pairs), "macro_f1": sum(f1) / len(f1)}
    return judged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "cache", "trace", "asked", "metrics", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=found, help="cpu or cuda; default: cuda where it is, as ours")
    args = parser.parse_args()
    logging.disable_progress_bar()
    steps, rows = read(args.trace / "batches.jsonl"), read(args.asked)
    dtype = DTYPES[args.dtype]
    folder = converted(args.model, args.cache, dtype) if args.model.is_file() else args.model
    begin = time.perf_counter()
    base = load_model(folder, dtype, attention="sdpa")
    base.config.use_cache = False
    model = PeftModel.from_pretrained(base.to(args.device), args.trace, is_trainable=True)
    loaded = time.perf_counter() - begin
    rates = [event["lr"] for event in read(args.metrics) if event["event"] == "step"]
    seconds = train(model.train(), steps, rates, args.out / "adapter.metrics.jsonl")
    peak = device_peak_mb(args.device) * 10**6
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    judged = judge(model.eval(), rows, args.out / "rows.jsonl")
    print(json.dumps({
        "train": {"outcome": {"seconds": seconds}, "parameters": trained, "peak_bytes": peak, "load_seconds": loaded},
        "eval": judged,
    }))


if __name__ == "__main__":
    main()
