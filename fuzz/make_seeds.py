"""Makes the seeds of the fuzz targets: small files that are read, or nearly, each with another part of the format.

Needs Python alone. Run in this folder: python make_seeds.py
"""

import json
import math
import pathlib
import random
import struct

ROOT = pathlib.Path(__file__).parent / "seeds"
U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
FORMS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}
# ggml's number of each block type, with values and bytes a block.
BLOCKS = {
    0: (1, 4), 1: (1, 2), 30: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 20: (32, 18),
}
rng = random.Random(5)


def text(s):
    s = s.encode()
    return struct.pack("<Q", len(s)) + s


def scalar(kind, x):
    return text(x) if kind == STR else struct.pack("<" + FORMS[kind], x)


def value(kind, x):
    if isinstance(x, list):
        return struct.pack("<IIQ", ARR, kind, len(x)) + b"".join(scalar(kind, y) for y in x)
    return struct.pack("<I", kind) + scalar(kind, x)


def gguf(meta, tensors, version=3, align=32):
    """`meta`: key to (type, value); `tensors`: name to (innermost size first, type, bytes or None)."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(meta))
    for key, (kind, x) in meta.items():
        out += text(key) + value(kind, x)
    data = b""
    for name, (shape, kind, raw) in tensors.items():
        values, size = BLOCKS[kind]
        raw = raw or bytes(rng.randrange(1, 56) for _ in range(math.prod(shape) // values * size))
        data += bytes(-len(data) % align)
        out += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", d) for d in shape)
        out += struct.pack("<IQ", kind, len(data))
        data += raw
    return out + bytes(-len(out) % align) + data


def model(arch, **more):
    keys = {
        "embedding_length": (U32, 4), "feed_forward_length": (U32, 2), "block_count": (U32, 1),
        "attention.head_count": (U32, 1), "attention.layer_norm_rms_epsilon": (F32, 1e-5),
        "context_length": (U32, 64),
    }
    keys.update({k.replace("__", "."): v for k, v in more.items()})
    return {"general.architecture": (STR, arch), **{f"{arch}.{k}": v for k, v in keys.items()}}


def layer(n=0, kind=0, bias=(), norms=()):
    w = {f"blk.{n}.{p}.weight": ([2, 2], kind, None) for p in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate")}
    w |= {f"blk.{n}.{p}.bias": ([2], 0, None) for p in bias}
    return w | {f"blk.{n}.{p}.weight": ([2], 0, None) for p in ("attn_norm", "ffn_norm", *norms)}


EMBED = {"token_embd.weight": ([4, 2], 1, None), "output_norm.weight": ([4], 0, None)}
TOKENS = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "ab", "▁ab"]
PIECES = {
    "tokenizer.ggml.model": (STR, "llama"), "tokenizer.ggml.tokens": (STR, TOKENS),
    "tokenizer.ggml.scores": (F32, [0.0] * 5 + [-1.0, -2.0, -3.0, -4.0]),
    "tokenizer.ggml.token_type": (I32, [2, 3, 3, 6, 1, 1, 1, 1, 1]),
    "tokenizer.ggml.bos_token_id": (U32, 1), "tokenizer.ggml.eos_token_id": (U32, 2),
}


def bpe(pre, **more):
    keys = {
        "model": (STR, "gpt2"), "pre": (STR, pre), "tokens": (STR, ["a", "b", "ab", "Ġ", "Ċ", "<e>", "[PAD1]"]),
        "merges": (STR, ["a b"]), "token_type": (I32, [1, 1, 1, 1, 1, 3, 5]), "eos_token_id": (U32, 5),
    }
    return {f"tokenizer.ggml.{k}": v for k, v in (keys | more).items()}


def llama3_factors():
    """As transformers computes them, for a head of 4."""
    out = []
    for i in range(2):
        length = 2 * math.pi * 500000 ** (2 * i / 4)
        smooth = (8192 / length - 1) / 3
        out.append(1.0 if length < 2048 else 8.0 if length > 8192 else 1 / ((1 - smooth) / 8 + smooth))
    return struct.pack("<2f", *out)


def ggufs():
    yield "llama", gguf(model("llama", rope__freq_base=(F32, 5e5)), EMBED | {"output.weight": ([4, 2], 30, None)} | layer())
    yield "qwen2", gguf(model("qwen2", attention__head_count_kv=(U32, 1)), EMBED | layer(bias=["attn_q", "attn_k", "attn_v"]))
    qwen3 = model("qwen3", attention__key_length=(U32, 2), rope__dimension_count=(U32, 2), rope__scaling__type=(STR, "none"))
    yield "qwen3", gguf(qwen3, EMBED | layer(norms=["attn_q_norm", "attn_k_norm"]), version=2)
    biases = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate"]
    linear = model("llama", rope__scaling__type=(STR, "linear"), rope__scaling__factor=(F32, 4.0), expert_count=(U32, 0))
    yield "linear", gguf(linear, EMBED | layer(kind=1, bias=biases))
    table = {"rope_freqs.weight": ([2], 0, llama3_factors())}
    yield "llama3", gguf(model("llama", rope__freq_base=(F32, 5e5)), EMBED | table | layer())
    blocks = {f"blk.{i}.ffn_down.weight": ([v], kind, None) for i, (kind, (v, _)) in enumerate(BLOCKS.items())}
    yield "blocks", gguf(model("llama"), EMBED | blocks)
    kinds = {U8: 7, I8: -7, U16: 9, I16: -9, U32: 11, I32: -11, F32: 0.5, BOOL: True, STR: "é", U64: 13, I64: -13, F64: 0.25}
    every = {f"x.{k}": (k, x) for k, x in kinds.items()} | {f"y.{k}": (k, [x, x]) for k, x in kinds.items()}
    yield "values", gguf({"general.alignment": (U32, 8), "general.name": (STR, "n")} | every | model("llama"), EMBED, align=8)
    yield "pieces", gguf(model("llama") | PIECES, EMBED)


def tokenizers():
    one = {"token_embd.weight": ([1, 1], 1, None)}
    flags = {"tokenizer.ggml.add_space_prefix": (BOOL, False), "tokenizer.ggml.add_eos_token": (BOOL, True)}
    yield "pieces", gguf(model("llama") | PIECES, one)
    yield "flags", gguf(PIECES | flags | {"tokenizer.ggml.merges": (STR, ["a b", "▁ ab"])}, one)
    template = {"tokenizer.chat_template": (STR, "{% for m in messages %}{{ m['content'] }}{% endfor %}")}
    for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"):
        yield pre, gguf(bpe(pre, bos_token_id=(U32, 5), eot_token_id=(U32, 5)) | template, one)


def safetensors(tensors):
    """`tensors`: name to (dtype, shape, bytes)."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(head)) + head + data


def listed(tensors):
    """The same file as the list of its parts that src/parts.rs reads."""
    out = b""
    for name, (dtype, shape, raw) in tensors.items():
        shape = "*" if ".quant_state." in name else json.dumps(shape, separators=(",", ":"))
        out += b"\xff\xfe" * bool(out) + f"{name}\n{dtype}\n{shape}\n".encode() + raw
    return out


def floats(*x):
    return struct.pack(f"<{len(x)}f", *x)


def packed(name, shape, code="nf4", block=64, nested=True, codes="U8"):
    n = math.prod(shape)
    blocks, width = -(-n // block), {"U8": 1, "BF16": 2, "F32": 4}[codes]
    raw = bytes(rng.randrange(256) for _ in range(-(-n // 2)))
    state = {"quant_type": code, "blocksize": block, "dtype": "bfloat16", "shape": shape}
    parts = {"": (codes, [len(raw) // width, 1], raw)}
    if nested:
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}
        parts["absmax"] = ("U8", [blocks], bytes(blocks))
        parts["nested_absmax"] = ("F32", [-(-blocks // 256)], floats(*[1.0] * -(-blocks // 256)))
        parts["nested_quant_map"] = ("F32", [256], bytes(1024))
    else:
        parts["absmax"] = ("F32", [blocks], floats(*[1.0] * blocks))
    parts["quant_map"] = ("F32", [16], bytes(64))
    state = json.dumps(state).encode()
    parts[f"quant_state.bitsandbytes__{code}"] = ("U8", [len(state)], state)
    return {f"{name}.{part}" if part else name: x for part, x in parts.items()}


def weights():
    norm = {"n": ("BF16", [2], b"\x80\x3f\x80\x3f")}
    return {
        "nested": norm | packed("w", [2, 32]),
        "plain": packed("w", [2, 32], nested=False) | norm,
        "fp4": packed("w", [3, 5], "fp4", 32, nested=False),
        "bf16": packed("w", [4, 16], codes="BF16", nested=False),
        "two": packed("a.w", [1, 1], nested=False) | packed("a.v", [1, 64], "fp4", nested=False),
        "within": packed("w", [1, 2], nested=False) | packed("w.x", [1, 2], nested=False),
    }


def folders():
    yield from ((name, safetensors(tensors)) for name, tensors in weights().items())
    kinds = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "F8_E4M3": 1, "BOOL": 1}
    yield "dense", safetensors({k: (k, [1], bytes(n)) for k, n in kinds.items()} | {"e": ("F32", [0, 3], b"")})


def lists():
    yield from ((name, listed(tensors)) for name, tensors in weights().items())


if __name__ == "__main__":
    every = {
        "gguf": ggufs(), "gguf_tokenizer": tokenizers(), "bitsandbytes": folders(), "bitsandbytes_parts": lists(),
    }
    for folder, seeds in every.items():
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        for name, seed in seeds:
            (ROOT / folder / name).write_bytes(seed)
