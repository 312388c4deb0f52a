"""Makes and checks what 4-bit parity is measured against: bitsandbytes' codes and checkpoints of real weights.

    python xtask/peers/quant.py make  --hf FOLDER --out FOLDER     FOLDER of parity.py's `hf`
    python xtask/peers/quant.py check --ours FOLDER --theirs FOLDER

`make` writes (parts that are there already are skipped):

    source.safetensors             real weights of a layer, and hard ones
    cases/<options> <dtype>.safetensors    <name>.weight and its parts, as bitsandbytes would save them
    crc.json                       {case: {name: CRC-32 of the dequantised weight}}
    gguf/TYPE.gguf, gguf/crc.json  a real weight, quantised by the gguf package where it can, and random blocks; what it makes of them
    theirs-nf4, theirs-fp4         the model as transformers + bitsandbytes save it: nested and plain, in shards
    unpacked.safetensors           input_ids, and logits in f32 of theirs-nf4 dequantised
    unpacked/                      an adapter and its golden on theirs-nf4 so dequantised, see golden.py

`check` loads two 4-bit folders in transformers and fails unless both give the same logits.
"""

import argparse
import json
import sys
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

import bitsandbytes as bnb
import gguf
import golden
import numpy as np
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise, get_4bit_type, quantize_4bit
from hf import load_model
from parity import COMMON, MERGED, once
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import logging

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
REAL = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"]


def sources(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of a layer, and hard ones: odd tails, zeros, denormals, a huge number, ties, one element."""
    weights = load_file(folder / "model.safetensors")
    found = {name: weights[f"model.layers.15.{name}.weight"].float() for name in REAL}
    torch.manual_seed(0)
    hard = 0.02 * torch.randn(130, 257)
    hard[2], hard[20], hard[9, 3] = 0, 1e-41, 3e4
    for row, code in ((40, "nf4"), (41, "fp4")):
        book = get_4bit_type(code, device="cpu").sort().values
        hard[row], hard[row, :15], hard[row, 15] = 0.5, (book[1:] + book[:-1]) / 2, 1
    return {name: t.contiguous() for name, t in found.items()} | {
        "hard": hard, "odd": torch.randn(7, 43), "one": torch.randn(1, 1), "zeros": torch.zeros(64, 64)}


def dequantised(packed: torch.Tensor, state, differ: list[str], name: str) -> torch.Tensor:
    """By bitsandbytes' definition. Its AVX-512 kernel takes wrong scales where rows are not whole blocks: listed."""
    absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    make = getattr(_dequantize_4bit_compute, "__wrapped__", _dequantize_4bit_compute)
    weight = make(packed.reshape(-1), absmax, state.code, state.blocksize, state.shape, state.dtype)
    if not torch.equal(weight, dequantize_4bit(packed, state)):
        assert state.shape[1] % state.blocksize, f"{name}: bitsandbytes disagrees with its definition"
        differ.append(name)
    return weight


def make_cases(out: Path) -> None:
    source, crcs, differ = load_file(out / "source.safetensors"), {}, []
    (out / "cases").mkdir(exist_ok=True)
    for code in ("nf4", "fp4"):
        for block in BLOCKS:
            for nested in (True, False):
                for dtype in DTYPES:
                    case = f"{code}:{block}{'' if nested else ':single'} {dtype}"
                    tensors, crcs[case] = {}, {}
                    for name, weight in source.items():
                        packed, state = quantize_4bit(
                            weight.to(DTYPES[dtype]), blocksize=block, compress_statistics=nested, quant_type=code)
                        dense = dequantised(packed, state, differ, f"{case} {name}").contiguous()
                        crcs[case][name] = zlib.crc32(dense.view(-1).view(torch.uint8).numpy().tobytes())
                        tensors[f"{name}.weight"] = packed.contiguous()
                        tensors |= {f"{name}.weight.{part}": t.contiguous().clone()
                                    for part, t in state.as_dict(packed=True).items()}
                    save_file(tensors, out / "cases" / f"{case}.safetensors")
    shapes = sorted({name.split()[-1] for name in differ})
    print(f"bitsandbytes' own kernel differs from its definition in {len(differ)} cases, where rows are no whole "
          f"blocks ({', '.join(shapes)}); ours is held to the definition", flush=True)
    (out / "crc.json").write_text(json.dumps(crcs))


def make_theirs(hf: Path, folder: Path, code: str, nested: bool) -> None:
    if (folder / "complete").exists():
        return
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=code, bnb_4bit_use_double_quant=nested,
                                bnb_4bit_compute_dtype=torch.bfloat16)
    load_4bit(hf, config).save_pretrained(folder, max_shard_size="40MB")
    (folder / "complete").touch()


# Where a block of each type has its f16 scales.
GGUF = {"F32": [], "F16": [], "BF16": [], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
        "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0]}


def make_gguf(out: Path, weight: np.ndarray) -> None:
    """One layer's down_proj in every type. Random blocks have scales of a weight's size, and all codes."""
    out.mkdir(exist_ok=True)
    crcs, random = {}, np.random.default_rng(5)
    for name, scales in GGUF.items():
        kind = gguf.GGMLQuantizationType[name]
        values, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = {}
        try:
            blocks["real"] = gguf.quantize(weight, kind)
        except NotImplementedError:
            pass
        if scales:
            rows = random.integers(0, 256, (weight.size // values, size), dtype=np.uint8)
            for at in scales:
                half = (random.standard_normal(len(rows)) * 0.02).astype(np.float16)
                rows[:, at:at + 2] = half.reshape(-1, 1).view(np.uint8)
            blocks["random"] = rows.reshape(weight.shape[0], -1)
        for sort, data in blocks.items():
            writer = gguf.GGUFWriter(out / f"{name}-{sort}.gguf", "llama")
            for add, value in (("block_count", 1), ("context_length", 64), ("embedding_length", weight.shape[0]),
                               ("feed_forward_length", weight.shape[1]), ("head_count", 9), ("head_count_kv", 3),
                               ("layer_norm_rms_eps", 1e-5), ("vocab_size", 8)):
                getattr(writer, f"add_{add}")(value)
            data = data.view(np.uint16) if name == "BF16" else data
            writer.add_tensor("blk.0.ffn_down.weight", data, raw_dtype=kind)
            writer.add_tensor("token_embd.weight", np.zeros((8, weight.shape[0]), np.float32))
            for write in ("header_to_file", "kv_data_to_file", "tensors_to_file"):
                getattr(writer, f"write_{write}")()
            writer.close()
            read = gguf.GGUFReader(out / f"{name}-{sort}.gguf").tensors[0]
            dense = gguf.dequantize(read.data, read.tensor_type).astype(np.float32).reshape(weight.shape)
            crcs[f"{name}-{sort}"] = zlib.crc32(np.ascontiguousarray(dense).tobytes())
    (out / "crc.json").write_text(json.dumps(crcs))


def load_4bit(folder: Path, config: BitsAndBytesConfig | None = None) -> torch.nn.Module:
    more = {"quantization_config": config} if config else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": "cpu"}, **more).eval()


def unpacked(hf: Path, theirs: Path) -> torch.nn.Module:
    """The f32 model with all weights of `theirs`, those in 4 bits dequantised, in bf16 as bitsandbytes does."""
    model, packed = load_model(hf), load_4bit(theirs)
    with torch.no_grad():
        for name, weight in packed.named_parameters():
            if isinstance(weight, bnb.nn.Params4bit):
                weight = dequantize_4bit(weight.data, weight.quant_state)
                assert weight.dtype == torch.bfloat16
            model.get_parameter(name).copy_(weight)
    return model


def make(hf: Path, out: Path) -> None:
    once(out / "source.safetensors", lambda path: save_file(sources(hf), path))
    if not (out / "crc.json").exists():
        make_cases(out)
    if not (out / "gguf" / "crc.json").exists():
        make_gguf(out / "gguf", load_file(out / "source.safetensors")["mlp.down_proj"].numpy())
    for code, nested in (("nf4", True), ("fp4", False)):
        make_theirs(hf, out / f"theirs-{code}", code, nested)
    ids = load_file(hf.parent / "base.safetensors")["input_ids"]
    base = lambda: unpacked(hf, out / "theirs-nf4")  # noqa: E731
    once(out / "unpacked.safetensors",
         lambda path: save_file({"input_ids": ids, "logits": golden.logits_of(base(), ids)}, path))

    def adapter(path: Path) -> None:
        folder = path.parent / "adapter"
        golden.save_adapter(base(), LoraConfig(**COMMON), folder, b_std=0.01, dtype=torch.float32)
        save_file(golden.adapter_golden(base, folder, ids, rate=1e-3, merged=MERGED, clip=False), path)

    once(out / "unpacked" / "golden.safetensors", adapter)


def check(ours: Path, theirs: Path) -> None:
    ids = torch.arange(5, 133)[None]
    a, b = (golden.logits_of(load_4bit(folder), ids) for folder in (ours, theirs))
    assert torch.equal(a, b), f"logits differ by up to {(a - b).abs().max()}"
    assert a.isfinite().all() and a.std() > 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["make", "check"])
    for name in ("hf", "out", "ours", "theirs"):
        parser.add_argument(f"--{name}", type=Path)
    args = parser.parse_args()
    logging.disable_progress_bar()
    if args.verb == "make":
        args.out.mkdir(parents=True, exist_ok=True)
        make(args.hf, args.out)
    else:
        check(args.ours, args.theirs)


if __name__ == "__main__":
    main()
