"""Times training steps of Unsloth: peft_step.py's command line, work and JSON line, with the model from Unsloth.

    python xtask/peers/unsloth_step.py --model FOLDER --cache FOLDER --device cuda [as peft_step.py]

Needs an NVIDIA GPU and no network. A GGUF file is not converted: pass the folder that peft_step.py made of it. As in
Unsloth's trainer, the model runs under bf16 autocast with LoRA factors in f32, the loss is fused with the output
projection, and each layer is compiled during the first steps: take --warmup 3. --checkpointing is Unsloth's own, which
keeps the layers' inputs in host memory from 512 tokens on. Unsloth has no kernels for DoRA: PEFT's layers compute it.
"""

import json
import os
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

scratch = TemporaryDirectory(prefix="unsloth-")
# Read while Unsloth is imported; the Python it generates would go into the working directory.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["UNSLOTH_COMPILE_LOCATION"] = f"{scratch.name}/compiled"

import unsloth  # First, as it patches the libraries that follow.

import torch
from peft_step import DTYPES, arguments, device_peak_mb, random_ids, read_batches, train
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def with_tokenizer(folder: Path) -> Path:
    """`folder`, or links to its files beside a tokenizer of three words: Unsloth loads no model without one."""
    if (folder / "tokenizer.json").exists():
        return folder
    linked = Path(scratch.name) / folder.name
    linked.mkdir()
    for file in folder.iterdir():
        (linked / file.name).symlink_to(file.resolve())
    config = json.loads((folder / "config.json").read_text())
    words = {"<s>": config["bos_token_id"], "</s>": config["eos_token_id"], "<pad>": config["vocab_size"] - 1}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")), bos_token="<s>", eos_token="</s>",
        pad_token="<pad>",
    ).save_pretrained(linked)
    return linked


def main() -> None:
    args = arguments()
    if args.device != "cuda" or not args.model.is_dir():
        sys.exit("Unsloth needs --device cuda and the folder of a model")
    logging.disable_progress_bar()
    dtype, checkpointing = DTYPES[args.dtype], "unsloth" if args.checkpointing else False
    count = args.warmup + args.steps
    if args.data:
        batches = read_batches(args.data, args.model, args.batch, count)
        tokens = [int(batch["attention_mask"].sum()) for batch in batches]
    else:
        config = json.loads((args.model / "config.json").read_text())
        ids = random_ids(args.batch, args.seq, config["vocab_size"])
        batches, tokens = [{"input_ids": ids, "labels": ids}] * count, [ids.numel()] * count
    base, _ = unsloth.FastLanguageModel.from_pretrained(
        model_name=str(with_tokenizer(args.model)), dtype=dtype, load_in_4bit=args.variant == "qlora",
        max_seq_length=max(batch["input_ids"].shape[1] for batch in batches), use_gradient_checkpointing=checkpointing,
    )
    model = unsloth.FastLanguageModel.get_peft_model(
        base, r=args.rank, lora_alpha=2 * args.rank, target_modules=LINEAR, lora_dropout=0, bias="none",
        use_gradient_checkpointing=checkpointing, random_state=0, use_rslora=args.variant == "rslora",
        use_dora=args.variant == "dora",
    )
    unsloth.FastLanguageModel.for_training(model)
    if dtype != torch.float32:
        # The forward pass alone, as the trainer does it.
        model.forward = torch.autocast(args.device, dtype=dtype)(model.forward)
    batches = [{name: tensor.to(args.device) for name, tensor in batch.items()} for batch in batches]
    losses, seconds, first = train(model, batches)
    measured = slice(args.warmup, None)
    rate = sum(tokens[measured]) / sum(seconds[measured])
    if not args.data:
        rate = ids.numel() / statistics.median(seconds[measured])
    print(json.dumps({
        "tok_s": round(rate, 1), "s_step": round(statistics.median(seconds[measured]), 4),
        "peak_mb": device_peak_mb(args.device), "first_loss_s": round(first, 2), "losses": losses,
    }))


if __name__ == "__main__":
    main()
