"""Makes the full-size reference: SmolLM2-135M as transformers and PEFT compute it, in f32.

    python xtask/peers/parity.py --gguf SMOLLM2.gguf --out FOLDER [--data JSONL ...]

    hf/                            the model as a Hugging Face folder; its tokenizer.json splits digits (see hf.py)
    tokens.json                    [{text, ids}], one a line: a built-in sample and each distinct `context` of the data
    chat.json                      [{messages, text, ids, prompt, prompt_ids}]: the prompt ends by opening a reply
    base.safetensors               input_ids i64 [2, 64] of English text, logits f32 [2, 64, 49152]
    <recipe>/adapter/              PEFT folders for lora, rslora, dora, patterns
    <recipe>/golden.safetensors    see golden.py; learning rate 1e-3, no curve_clip
    greedy.json                    [{prompt, ids, new, margin}]: 64 greedy tokens, fewer where eos (kept) comes first;
                                   margin: the least lead, in logits, of a chosen token (near 0, rounding may decide)

Parts that are there already are skipped. No network; a few minutes on two cores.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

import golden
import torch
from hf import encode, hf_folder, load_model
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

ENGLISH = [
    "The lighthouse keeper climbed the spiral stairs each evening, carrying a lamp and a small book in which he wrote "
    "down the names of the ships that passed. In winter there were few of them, and he spent the long nights reading "
    "letters from his sister, who lived inland and had never seen the sea. She asked him often what it looked like.",
    "Photosynthesis converts light into chemical energy that is stored in sugars. It takes place in the chloroplasts "
    "of plants and algae, where chlorophyll absorbs mostly red and blue light. The oxygen that we breathe is, in a "
    "sense, a waste product: it comes from splitting water, and it changed the atmosphere over two billion years.",
]
SAMPLE = [
    "", " ", "  ", "\n", "\n\n\n", "\t\tx", " \n \n", "a", "Hello, world!", "hello  world   again    ", "  leading",
    "In 2024, 12345 + 67890 = 80235.", "  12", "\n 1", "x10 y2z3", "3.14159", "1,000,000", "½ ² ④ Ⅷ ٣٤ 五", "v1.2.3-rc4",
    "I'm you're they've he'll she'd it's don't I'M YOU'RE", "l’été n’est pas fini", "«Ça va ?» — Très bien, merci…",
    "Grüße aus Köln, Straße 5", "Привет, как дела?", "你好，世界！今天是2024年5月1日。", "こんにちは世界、カタカナ、ひらがな",
    "안녕하세요 세계", "مرحبا بالعالم ١٢٣", "שלום עולם", "नमस्ते दुनिया १२३", "สวัสดีชาวโลก", "Xin chào thế giới",
    "e\u0301 vs \u00e9; A\u030a vs \u00c5; \ufb01 ligature", "👋🌍 emoji 👩‍👩‍👧‍👦 🇫🇷 👍🏽 ❤️", "🤖" * 8, "zero\u200bwidth\u200djoin\ufeffbom",
    "nbsp\u00a0\u00a0here \u2003em\u3000ideographic", "\u0000\u0001\u0007\u001b[31mred\u007f\u0085", "\r\nwindows\r\n", "\u2028\u2029",
    "def f(x: int) -> int:\n    return x ** 2  # squared\n\n\nprint(f(12))\n", "if (a&&b||!c) { i++; } // ok\n\t}\n",
    '{"key": [1, 2.50, null, true], "s": "a\\n\\"b\\""}', "<html><body class='x'>&amp;</body></html>",
    "SELECT * FROM t WHERE id=42;", "https://example.com/a?b=c&d=100%25#frag", "user@example.com", "$AAPL +3.5% @ $172.10",
    "a" * 50, "!" * 30, "-" * 17 + "=" * 9, "_under_score_ CamelCase snake_case kebab-case", "∀x∈ℝ: x²≥0 ∧ √2≈1.414",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|endoftext|>", "a<|im_end|>b <|im_end|> c", "<|im_start",
    "<|im_end|><|im_end|>", "<repo_name>x<file_sep>y", "\U0001f9d1\u200d\U0001f680 \U00010348 \U0001d54f", "Ġ Ċ ĉ byte-level look-alikes",
] + ENGLISH
CHATS = [
    [("user", "Hi!")],
    [("system", "You answer in one word."), ("user", "What is the capital of France?")],
    [("user", "2+2?"), ("assistant", "4"), ("user", "And 12 + 30?")],
    [("system", ""), ("user", "  spaces around  "), ("assistant", "\nnew\nlines\n")],
    [("user", "Écris un poème 🌊"), ("assistant", "Voilà."), ("user", "Encore !"), ("assistant", "Fin.")],
    [("user", "Say <|im_end|> please")],
]
QUESTIONS = [
    "What is the capital of France?", "Name three primary colours.", "Explain gravity to a child.",
    "Write a haiku about the sea.", "What is 12 times 12?", "Who wrote Hamlet?", "List the days of the week.",
    "How do plants make food?", "Translate 'good morning' into Spanish.", "What is a prime number?",
    "Give me a recipe for pancakes.", "Why is the sky blue?", "Write a Python function that adds two numbers.",
    "What is the largest planet?", "Summarise the water cycle.", "Tell me a short joke.", "What does DNA stand for?",
    "How many continents are there?", "Describe a cat in one sentence.", "What should I read next?",
]
COMMON = dict(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM",
              base_model_name_or_path="SmolLM2-135M-Instruct")
RECIPES: dict[str, dict] = {
    "lora": {},
    "rslora": dict(use_rslora=True),
    "dora": dict(use_dora=True),
    "patterns": dict(rank_pattern={"q_proj": 4, r"layers\.(0|29)\.mlp\.down_proj": 12}, alpha_pattern={"v_proj": 5.5}),
}
MERGED = ["model.layers.0.self_attn.k_proj.weight", "model.layers.29.mlp.down_proj.weight"]


def write_lines(path: Path, items: list[dict]) -> None:
    """A JSON array with one item a line."""
    lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def once(path: Path, make: Callable[[Path], None]) -> None:
    """Makes the file through a partial one, unless it is there."""
    if path.exists():
        return print("there already:", path, flush=True)
    start = time.perf_counter()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name("partial-" + path.name)
    make(partial)
    partial.rename(path)
    print(f"made {path} in {time.perf_counter() - start:.0f} s", flush=True)


def make_tokens(path: Path, folder: Path, data: list[Path]) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    lines = (json.loads(line) for file in data for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    texts = list(dict.fromkeys(SAMPLE + [line["context"] for line in lines]))
    write_lines(path, [{"text": text, "ids": encode(tokenizer, text)} for text in texts])
    original = folder / "tokenizer.gguf.json"
    if original.exists():
        other = Tokenizer.from_file(str(original))
        differ = [text for text in texts if encode(other, text) != encode(tokenizer, text)]
        print(f"transformers' GGUF tokenizer differs on {len(differ)} of {len(texts)} texts, first {differ[:5]!r}")


class Chat:
    """The model's chat template and tokenizer."""

    def __init__(self, folder: Path):
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.fast = PreTrainedTokenizerFast(
            tokenizer_object=self.tokenizer, chat_template=template, bos_token="<|im_start|>", eos_token="<|im_end|>")

    def render(self, messages: list[dict[str, str]], reply: bool) -> tuple[str, list[int]]:
        text = self.fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply)
        return text, encode(self.tokenizer, text)


def make_chat(path: Path, folder: Path) -> None:
    chat, items = Chat(folder), []
    for turns in CHATS:
        messages = [{"role": role, "content": content} for role, content in turns]
        (text, ids), (prompt, prompt_ids) = chat.render(messages, False), chat.render(messages, True)
        items.append(dict(messages=messages, text=text, ids=ids, prompt=prompt, prompt_ids=prompt_ids))
    write_lines(path, items)


def make_base(path: Path, folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = torch.tensor([(encode(tokenizer, text))[:64] for text in ENGLISH])
    assert ids.shape == (2, 64)
    save_file({"input_ids": ids, "logits": golden.logits_of(load_model(folder), ids)}, path)


def make_recipe(path: Path, recipe: str, folder: Path, ids: torch.Tensor) -> None:
    adapter = path.parent / "adapter"
    config = LoraConfig(**COMMON | RECIPES[recipe])
    golden.save_adapter(load_model(folder), config, adapter, b_std=0.01, dtype=torch.float32)
    base = lambda: load_model(folder)  # noqa: E731
    save_file(golden.adapter_golden(base, adapter, ids, rate=1e-3, merged=MERGED, clip=False), path)


def make_greedy(path: Path, folder: Path) -> None:
    chat, model, items = Chat(folder), load_model(folder), []
    for question in QUESTIONS:
        prompt, ids = chat.render([{"role": "user", "content": question}], True)
        whole = model.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False, eos_token_id=2, pad_token_id=2)
        lead = golden.logits_of(model, whole[:, :-1])[0, len(ids) - 1:].topk(2).values
        margin = (lead[:, 0] - lead[:, 1]).min().item()
        items.append(dict(prompt=prompt, ids=ids, new=whole[0, len(ids):].tolist(), margin=round(margin, 6)))
    write_lines(path, items)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    logging.disable_progress_bar()
    out, folder = args.out, hf_folder(args.gguf, args.out / "hf", keep_original=True)
    once(out / "tokens.json", lambda path: make_tokens(path, folder, args.data))
    once(out / "chat.json", lambda path: make_chat(path, folder))
    once(out / "base.safetensors", lambda path: make_base(path, folder))
    ids = load_file(out / "base.safetensors")["input_ids"]
    for recipe in RECIPES:
        once(out / recipe / "golden.safetensors", lambda path: make_recipe(path, recipe, folder, ids))
    once(out / "greedy.json", lambda path: make_greedy(path, folder))


if __name__ == "__main__":
    main()
