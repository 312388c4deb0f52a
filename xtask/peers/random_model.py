"""Writes a model of a known shape with random weights, for measuring: a Hugging Face folder in bf16, shard by shard.

    python xtask/peers/random_model.py SHAPE FOLDER     (SHAPE: smollm2-135m, llama-3.2-1b, llama-3-8b, or one of
        them with fewer layers, as llama-3-8b:4)

Weights are N(0, 0.02), norms 1, from a generator seeded with 0 (a GPU's, where there is one). Holds one shard in memory; the folder is complete when
`complete` is in it.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8,
    "bos_token_id": 128000, "eos_token_id": 128001, "attention_bias": False, "mlp_bias": False,
    "initializer_range": 0.02, "torch_dtype": "bfloat16",
}
SHAPES = {
    "llama-3.2-1b": LLAMA | {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
        "max_position_embeddings": 131072, "tie_word_embeddings": True,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "smollm2-135m": LLAMA | {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "head_dim": 64, "vocab_size": 49152,
        "num_attention_heads": 9, "num_key_value_heads": 3, "rope_theta": 100000.0, "max_position_embeddings": 8192,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True,
    },
    "llama-3-8b": LLAMA | {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128,
        "max_position_embeddings": 8192, "tie_word_embeddings": False,
    },
}


def shards(config: dict) -> list[dict[str, list[int]]]:
    """Names and shapes: the embedding, each layer, and what comes after them."""
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q, kv = (config[heads] * config["head_dim"] for heads in ("num_attention_heads", "num_key_value_heads"))
    layer = {
        "self_attn.q_proj": [q, hidden], "self_attn.k_proj": [kv, hidden], "self_attn.v_proj": [kv, hidden],
        "self_attn.o_proj": [hidden, q], "mlp.gate_proj": [ffn, hidden], "mlp.up_proj": [ffn, hidden],
        "mlp.down_proj": [hidden, ffn], "input_layernorm": [hidden], "post_attention_layernorm": [hidden],
    }
    last = {"model.norm.weight": [hidden]}
    if not config["tie_word_embeddings"]:
        last["lm_head.weight"] = [vocab, hidden]
    layers = [
        {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        for i in range(config["num_hidden_layers"])
    ]
    return [{"model.embed_tokens.weight": [vocab, hidden]}, *layers, last]


def main() -> None:
    shape, _, layers = sys.argv[1].partition(":")
    config, folder = dict(SHAPES[shape]), Path(sys.argv[2])
    if layers:
        config["num_hidden_layers"] = int(layers)
    if (folder / "complete").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    random, parts, index = torch.Generator(device).manual_seed(0), shards(config), {}
    for n, part in enumerate(parts):
        name, tensors = f"model-{n + 1:05}-of-{len(parts):05}.safetensors", {}
        for key, shape in part.items():
            weight = torch.empty(shape, dtype=torch.bfloat16, device=device)
            weight = weight.fill_(1) if len(shape) == 1 else weight.normal_(0, 0.02, generator=random)
            tensors[key] = weight.cpu()
            index[key] = name
        save_file(tensors, folder / name, metadata={"format": "pt"})
        print(f"{name}: {sum(t.numel() for t in tensors.values()) * 2 / 1e6:.0f} MB", file=sys.stderr, flush=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "complete").touch()


if __name__ == "__main__":
    main()
