"""Reads GGUF files that `lora export` wrote, by the gguf package, and compares them with what went in.

    python xtask/peers/check_gguf.py BASE.gguf ADAPTER_FOLDER ADAPTER.gguf MERGED.gguf
    python xtask/peers/check_gguf.py BASE.gguf OF_A_FOLDER.gguf

ADAPTER.gguf: f32, of the PEFT folder. MERGED.gguf: BASE with that adapter, in any type. q's and k's rows lie in llama.cpp's
order (convert_hf_to_gguf.py, `permute`). Fails unless metadata, names, shapes and numbers are right.

OF_A_FOLDER.gguf: written from the same model's Hugging Face folder. Its network, its tokenizer and the names of its tensors
must be those of BASE, which llama.cpp's own converter made.
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


def of_a_folder(base: gguf.GGUFReader, ours: gguf.GGUFReader) -> None:
    arch = field(base, "general.architecture")
    keys = [key for key in base.fields if key.startswith((f"{arch}.", "tokenizer."))]
    # Said of SentencePiece's vocabularies alone; llama.cpp does not look at it for others.
    keys.remove("tokenizer.ggml.add_space_prefix") if field(base, "tokenizer.ggml.model") == "gpt2" else None
    for key in ["general.architecture", "general.size_label", *keys]:
        assert field(base, key) == field(ours, key), key
    names = [{t.name: tuple(t.shape) for t in reader.tensors} for reader in (base, ours)]
    assert names[0] == names[1]
    print(f"{len(keys) + 2} fields of network and tokenizer, {len(names[0])} tensors' names and shapes: as they should be")


def main() -> None:
    if len(sys.argv) == 3:
        return of_a_folder(*map(gguf.GGUFReader, sys.argv[1:]))
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
