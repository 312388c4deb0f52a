"""Turns SmolLM2's GGUF file into a Hugging Face folder, once; imported by the other scripts here.

transformers (5.23) reads the weights exactly, but builds SmolLM2's tokenizer without its first pre-tokenizer, the one
that splits digits (GGUF's `tokenizer.ggml.pre = smollm`). Without it "  12" becomes two spaces and two digits instead
of one double space and two digits. The folder written here has the true sequence: Digits, then ByteLevel.
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

from multiprocessing import get_context
from pathlib import Path

import torch
from converted import folder_of, once
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer


def hf_folder(gguf: Path, folder: Path, dtype: torch.dtype = torch.float32, keep_original: bool = False) -> Path:
    """The folder with config, weights in `dtype` and tokenizer; nothing is done if it is there already.

    With `keep_original`, `tokenizer.gguf.json` is transformers' own tokenizer, for comparison.
    """
    if (folder / "complete").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if keep_original:
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.gguf.json"))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    tokenizer.save_pretrained(folder)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers refuses to save what it calls quantised, although it has dequantised it: copy into a plain model.
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config
    model = AutoModelForCausalLM.from_config(read.config, dtype=dtype)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    (folder / "complete").touch()
    return folder


def converted(gguf: Path, cache: Path, dtype: torch.dtype) -> Path:
    """The folder in `cache` that is made of this file, in another process: converting is no memory of this one's."""

    def convert(partial: Path) -> None:
        process = get_context("spawn").Process(target=hf_folder, args=(gguf, partial, dtype))
        process.start()
        process.join()
        if process.exitcode != 0:
            sys.exit(f"{gguf} could not be converted for transformers")

    return once(folder_of(gguf, cache, {torch.bfloat16: "bf16", torch.float32: "f32"}[dtype]), convert)


def load_model(
    folder: Path, dtype: torch.dtype = torch.float32, attention: str = "eager", **more: object
) -> torch.nn.Module:
    """The causal language model of a Hugging Face folder, in evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention, **more).eval()


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of `text`; special tokens written in it are recognised, none are added."""
    return tokenizer.encode(text, add_special_tokens=False).ids
