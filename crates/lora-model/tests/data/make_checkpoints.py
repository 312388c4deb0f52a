"""Makes the GGUF files of this folder and what transformers reads from them.

Needs gguf, numpy, safetensors, torch and transformers (5.x). Run in this folder: python make_checkpoints.py

For every ARCH: ARCH.gguf, tiny, with blocks of every type whose bytes are random (scales of any finite value), and
ARCH.safetensors, the f32 weights by Hugging Face name as transformers loads them from that GGUF file. k_quants.gguf: a
llama in the types whose blocks are long, with scales like a model's.
"""

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

HIDDEN, INTER, VOCAB = 32, 32, 8
# heads, key heads, head size, layers; transformers reads no head size from qwen3 files but takes 128
SHAPES = {"llama": (4, 2, 8, 2), "qwen2": (4, 2, 8, 1), "qwen3": (1, 1, 128, 1)}
TYPES = [gguf.GGMLQuantizationType[t] for t in ("Q4_0", "Q4_1", "Q8_0", "F16", "BF16", "F32")]
rng = np.random.default_rng(7)


def half(n):
    """Any finite f16: subnormal, negative, huge, both zeros."""
    bits = rng.integers(0, 1 << 16, n, dtype=np.uint16)
    bits[: min(n, 4)] = [0x0001, 0x8000, 0x7BFF, 0xFBFF][: min(n, 4)]
    return np.where((bits & 0x7C00) == 0x7C00, bits & 0x83FF, bits).astype(np.uint16)


def packed(kind, rows, cols):
    """Random bytes of `rows` rows of type `kind`, finite once dequantised."""
    n = rows * cols
    if kind.name in ("F32", "BF16"):
        bits = rng.integers(0, 1 << 32, n, dtype=np.uint32)
        bits = np.where((bits & 0x7F800000) == 0x7F800000, bits & 0x807FFFFF, bits).astype(np.uint32)
        if kind.name == "F32":
            return bits.view(np.float32).reshape(rows, cols)
        return (bits >> 16).astype(np.uint16).view(np.uint8).reshape(rows, -1)
    if kind.name == "F16":
        return half(n).view(np.float16).reshape(rows, cols)
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, (n // 32, size), dtype=np.uint8)
    blocks[:, 0:2] = half(n // 32).reshape(-1, 1).view(np.uint8)
    if kind.name == "Q4_1":
        blocks[:, 2:4] = half(n // 32)[::-1].copy().reshape(-1, 1).view(np.uint8)
    return blocks.reshape(rows, -1)


def write(arch):
    heads, kv, dim, layers = SHAPES[arch]
    w = gguf.GGUFWriter(f"{arch}.gguf", arch)
    w.add_name(f"Tiny {arch}")
    w.add_block_count(layers)
    w.add_context_length(512)
    w.add_embedding_length(HIDDEN)
    w.add_feed_forward_length(INTER)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(50000.0)
    w.add_vocab_size(VOCAB)
    if arch == "qwen3":
        w.add_key_length(dim)
        w.add_value_length(dim)
    w.add_token_list([f"t{i}" for i in range(VOCAB)])
    w.add_token_scores([-0.5 * i for i in range(VOCAB)])
    w.add_token_types([1] * VOCAB)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)

    turn = 0

    def add(name, rows, cols):
        nonlocal turn
        kind = TYPES[turn % len(TYPES)]
        turn += 1
        w.add_tensor(name, packed(kind, rows, cols), raw_dtype=kind)

    def vector(name, n):
        w.add_tensor(name, rng.standard_normal(n).astype(np.float32))

    add("token_embd.weight", VOCAB, HIDDEN)
    vector("output_norm.weight", HIDDEN)
    if arch != "llama":
        add("output.weight", VOCAB, HIDDEN)
    for i in range(layers):
        b = f"blk.{i}."
        vector(b + "attn_norm.weight", HIDDEN)
        vector(b + "ffn_norm.weight", HIDDEN)
        add(b + "attn_q.weight", heads * dim, HIDDEN)
        add(b + "attn_k.weight", kv * dim, HIDDEN)
        add(b + "attn_v.weight", kv * dim, HIDDEN)
        add(b + "attn_output.weight", HIDDEN, heads * dim)
        add(b + "ffn_gate.weight", INTER, HIDDEN)
        add(b + "ffn_up.weight", INTER, HIDDEN)
        add(b + "ffn_down.weight", HIDDEN, INTER)
        if arch == "qwen2":
            vector(b + "attn_q.bias", heads * dim)
            vector(b + "attn_k.bias", kv * dim)
            vector(b + "attn_v.bias", kv * dim)
        if arch == "qwen3":
            vector(b + "attn_q_norm.weight", dim)
            vector(b + "attn_k_norm.weight", dim)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


for arch in ("llama", "qwen2", "qwen3"):
    write(arch)
    model = AutoModelForCausalLM.from_pretrained(".", gguf_file=f"{arch}.gguf", dtype=torch.float32)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    if arch == "llama":  # tied
        state.pop("lm_head.weight")
    # transformers' names and shapes, gguf's own dequantisation: they must agree on what is not permuted.
    for t in gguf.GGUFReader(f"{arch}.gguf").tensors:
        if t.name.endswith("ffn_down.weight"):
            i = t.name.split(".")[1]
            want = gguf.dequantize(t.data, t.tensor_type)
            assert np.array_equal(want.view(np.uint32), state[f"model.layers.{i}.mlp.down_proj.weight"].numpy().view(np.uint32))
    save_file(state, f"{arch}.safetensors")


def permute(w, heads):
    """What llama.cpp's convert_hf_to_gguf.py does to q and k of a llama."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def write_llama3(heads=2, kv=1, dim=16, theta=500000.0, factor=8.0, low=1.0, high=4.0, original=8192):
    """llama3.gguf: Llama 3's rope factors as llama.cpp stores them, biases on q, k, v, o; llama3.safetensors: q and k."""
    w = gguf.GGUFWriter("llama3.gguf", "llama")
    w.add_block_count(1)
    w.add_context_length(131072)
    w.add_embedding_length(HIDDEN)
    w.add_feed_forward_length(INTER)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(theta)
    w.add_eos_token_id(2)
    w.add_eot_token_id(9)
    inv = 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim)
    factors = []
    for wave in (2 * np.pi / inv).tolist():
        smooth = (original / wave - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        factors.append(1 if wave < original / high else factor if wave > original / low else between)
    rule = dict(rope_type="llama3", rope_theta=theta, factor=factor, low_freq_factor=low, high_freq_factor=high)
    config = LlamaConfig(hidden_size=HIDDEN, num_attention_heads=heads, max_position_embeddings=131072,
                         rope_parameters=rule | {"original_max_position_embeddings": original})
    want, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
    assert torch.allclose(inv / torch.tensor(factors), want, rtol=1e-6, atol=0)
    w.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))
    plain = {}
    for name, shape, hf, over in (
        ("token_embd.weight", (VOCAB, HIDDEN), None, None), ("output_norm.weight", (HIDDEN,), None, None),
        ("blk.0.attn_norm.weight", (HIDDEN,), None, None), ("blk.0.ffn_norm.weight", (HIDDEN,), None, None),
        ("blk.0.attn_q.weight", (heads * dim, HIDDEN), "q_proj.weight", heads),
        ("blk.0.attn_k.weight", (kv * dim, HIDDEN), "k_proj.weight", kv),
        ("blk.0.attn_q.bias", (heads * dim,), "q_proj.bias", heads), ("blk.0.attn_k.bias", (kv * dim,), "k_proj.bias", kv),
        ("blk.0.attn_v.weight", (kv * dim, HIDDEN), None, None), ("blk.0.attn_v.bias", (kv * dim,), None, None),
        ("blk.0.attn_output.weight", (HIDDEN, heads * dim), None, None), ("blk.0.attn_output.bias", (HIDDEN,), None, None),
        ("blk.0.ffn_gate.weight", (INTER, HIDDEN), None, None), ("blk.0.ffn_up.weight", (INTER, HIDDEN), None, None),
        ("blk.0.ffn_down.weight", (HIDDEN, INTER), None, None),
    ):
        value = rng.standard_normal(shape).astype(np.float32)
        if hf:
            plain[f"model.layers.0.self_attn.{hf}"] = torch.from_numpy(value)
        w.add_tensor(name, permute(value, over) if over else value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    save_file(plain, "llama3.safetensors")


write_llama3()


def write_k_quants(hidden=256, heads=2, kv=1, dim=16, vocab=16):
    w = gguf.GGUFWriter("k_quants.gguf", "llama")
    w.add_block_count(1)
    w.add_context_length(64)
    w.add_embedding_length(hidden)
    w.add_feed_forward_length(hidden)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_key_length(dim)
    w.add_value_length(dim)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(vocab)
    w.add_tensor("output_norm.weight", np.ones(hidden, dtype=np.float32))
    for norm in ("attn_norm", "ffn_norm"):
        w.add_tensor(f"blk.0.{norm}.weight", np.ones(hidden, dtype=np.float32))
    # type, rows, values a row, and where a block has its f16 scales
    for name, kind, rows, cols, scales in (
        ("token_embd", "Q5_0", vocab, hidden, [0]), ("output", "Q6_K", vocab, hidden, [208]),
        ("blk.0.attn_q", "Q4_K", heads * dim, hidden, [0, 2]), ("blk.0.attn_k", "Q5_K", kv * dim, hidden, [0, 2]),
        ("blk.0.attn_v", "Q6_K", kv * dim, hidden, [208]), ("blk.0.attn_output", "Q5_1", hidden, heads * dim, [0, 2]),
        ("blk.0.ffn_gate", "Q3_K", hidden, hidden, [108]), ("blk.0.ffn_up", "IQ4_NL", hidden, hidden, [0]),
        ("blk.0.ffn_down", "Q2_K", hidden, hidden, [80, 82]),
    ):
        kind = gguf.GGMLQuantizationType[kind]
        values, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (rows * cols // values, size), dtype=np.uint8)
        for at in scales:
            blocks[:, at : at + 2] = (rng.standard_normal((len(blocks), 1)) * 1e-3).astype(np.float16).view(np.uint8)
        w.add_tensor(f"{name}.weight", blocks.reshape(rows, -1), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


write_k_quants()
