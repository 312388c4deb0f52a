"""Reads GGUF files that `lora export` wrote, by the gguf package, and compares them with what went in.

    python xtask/peers/check_gguf.py BASE.gguf ADAPTER_FOLDER ADAPTER.gguf MERGED.gguf
    python xtask/peers/check_gguf.py BASE.gguf OF_A_FOLDER.gguf [--bits]

ADAPTER.gguf: f32, of the PEFT folder. MERGED.gguf: BASE with that adapter, in any type. q's and k's rows lie in llama.cpp's
order (convert_hf_to_gguf.py, `permute`). Fails unless metadata, names, shapes and numbers are right.

OF_A_FOLDER.gguf: written from the same model's Hugging Face folder. Its network, its tokenizer and the names of its tensors
must be those of BASE, which llama.cpp's own converter made; with --bits also its tensors, where both are of one folder and
of one type.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def field(reader: gguf.GGUFReader, key: str):
    return reader.fields[key].contents()


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    shape = rows.shape
    return rows.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def values(reader: gguf.GGUFReader) -> dict[str, np.ndarray]:
    return {t.name: gguf.dequantize(t.data, t.tensor_type).reshape(tuple(reversed(t.shape))) for t in reader.tensors}


# What the converter leaves to llama.cpp's defaults, and what it says that llama.cpp does not look at.
SPELT_OUT = ("attention.key_length", "attention.value_length", "attention.sliding_window", "vocab_size", "rope.dimension_count",
             "ggml.add_eos_token", "ggml.add_space_prefix", "ggml.eot_token_id")
UNUSED = {"tokenizer.ggml.add_sep_token", "tokenizer.ggml.add_space_prefix"}


def of_a_folder(base: gguf.GGUFReader, ours: gguf.GGUFReader) -> None:
    arch, theirs, mine = field(base, "general.architecture"), set(base.fields), set(ours.fields)
    # Of the file, of its name, and of the model card.
    general = lambda key: key.startswith(("GGUF.", "general.", "split.", "quantize."))  # noqa: E731
    unknown = [key for key in mine - theirs if not general(key) and not key.endswith(SPELT_OUT)]
    missing = [key for key in theirs - mine if not general(key) and key not in UNUSED]
    assert not unknown and not missing, (unknown, missing)
    keys = [key for key in theirs & mine if not general(key) or key.startswith("general.sampling.")]
    # Of SentencePiece's scores `tokenizer.json` keeps the order alone.
    keys = [key for key in keys if key != "tokenizer.ggml.scores"] + ["general.architecture", "general.size_label"]
    for key in keys:
        assert base.fields[key].types == ours.fields[key].types and field(base, key) == field(ours, key), key
    a, b = ({t.name: t for t in reader.tensors} for reader in (base, ours))
    assert {n: tuple(t.shape) for n, t in a.items()} == {n: tuple(t.shape) for n, t in b.items()}
    alike = [n for n in a if a[n].tensor_type == b[n].tensor_type] if "--bits" in sys.argv else []
    for name in alike:
        np.testing.assert_array_equal(a[name].data.view(np.uint8), b[name].data.view(np.uint8), err_msg=name)
    assert "--bits" not in sys.argv or len(alike) == len(a), "types differ"
    print(f"{arch}: {len(keys)} fields, {len(a)} tensors' names and shapes, {len(alike)} tensors' bytes: as they should be; "
          f"spelt out here alone: {', '.join(sorted(key for key in mine - theirs if not general(key))) or 'nothing'}")


def main() -> None:
    if len(sys.argv) == 3 or "--bits" in sys.argv:
        return of_a_folder(*map(gguf.GGUFReader, sys.argv[1:3]))
    base, adapter, merged = (gguf.GGUFReader(path) for path in (sys.argv[1], sys.argv[3], sys.argv[4]))
    folder = Path(sys.argv[2])
    config, peft = json.loads((folder / "adapter_config.json").read_text()), load_file(folder / "adapter_model.safetensors")
    assert field(adapter, "general.type") == "adapter" and field(adapter, "adapter.type") == "lora"
    arch = field(base, "general.architecture")
    assert field(adapter, "general.architecture") == arch == field(merged, "general.architecture")
    alpha, kinds = field(adapter, "adapter.lora.alpha"), {t.tensor_type.name for t in merged.tensors}
    heads = {"attn_q": field(base, f"{arch}.attention.head_count"), "attn_k": field(base, f"{arch}.attention.head_count_kv")}
    a, b, w = values(adapter), values(merged), values(base)

    worst, adapted = 0.0, set()
    for key in sorted(key for key in peft if key.endswith("lora_A.weight")):
        _, _, _, _, layer, *part, _, _ = key.split(".")
        name = f"blk.{layer}.{NAMES['.'.join(part)]}.weight"
        down, up = peft[key], peft[key.replace("lora_A", "lora_B")]
        rank = down.shape[0]
        scale = config["lora_alpha"] / (rank ** 0.5 if config["use_rslora"] else rank)
        up = permute(up, heads[name.split(".")[2]]) if name.split(".")[2] in heads and arch == "llama" else up
        np.testing.assert_array_equal(a[f"{name}.lora_a"], down)
        delta = scale * (up.astype(np.float64) @ down)
        theirs = alpha / rank * (a[f"{name}.lora_b"].astype(np.float64) @ a[f"{name}.lora_a"])
        np.testing.assert_allclose(theirs, delta, rtol=1e-5, atol=1e-7)
        error = np.abs(b[name] - (w[name] + delta)).max() / np.abs(w[name]).max()
        worst, adapted = max(worst, error), adapted | {name}
    assert len(a) == 2 * len(adapted) > 0
    assert b.keys() == w.keys()
    for name in w.keys() - adapted:
        error = np.abs(b[name] - w[name]).max() / np.abs(w[name]).max()
        worst = max(worst, error)
    limit = {"F32": 1e-6, "F16": 1e-3, "BF16": 5e-3, "Q8_0": 5e-3}[max(kinds - {"F32"} or {"F32"})]
    assert worst < limit, f"merged weights are off by {worst:.1e} of the largest"

    changed = {"general.file_type", "general.quantization_version", "general.alignment"}
    skip = lambda key: key.startswith(("GGUF.", "split.", "quantize.")) or key in changed  # noqa: E731
    for key in base.fields:
        assert skip(key) or field(base, key) == field(merged, key), key
    print(f"{len(adapted)} pairs of the adapter, {len(b)} tensors of the model ({', '.join(sorted(kinds))}; worst {worst:.1e} "
          f"of the largest weight), {len(base.fields)} metadata fields: as they should be")


if __name__ == "__main__":
    main()
