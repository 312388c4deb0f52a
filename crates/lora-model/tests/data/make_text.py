"""Makes the tokenizers, GGUF vocabularies and expected texts that tests/tokenizer.rs and tests/chat.rs read.

Needs transformers, tokenizers, gguf, numpy; writes into text/ beside this file. The reference tokenizers are put
together here in the shape of the tokenizer.json of SmolLM2, GPT-2, Llama 3, Qwen2, Mistral Nemo and Llama 2, and
run by transformers; the merges for SentencePiece come from transformers' own `generate_merges`.
"""

import json
import unicodedata
from pathlib import Path

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

HERE = Path(__file__).parent
OUT = HERE / "text"
OUT.mkdir(exist_ok=True)

TEXTS = [
    "", " ", "Hello, world!", "  two leading blanks", "trailing  ", "I'll say it's WE'RE done, they'd've gone",
    "1234567 3.14159 2024-07-26 ٣٤٥ ½ Ⅷ x86_64", "Grüße aus Köln, façade, naïve, Ångström",
    unicodedata.normalize("NFD", "Grüße aus Köln, façade, naïve"), "Привет, мир! Как дела?",
    "你好，世界。今天天气很好。", "こんにちは世界、テスト", "안녕하세요 세계", "مرحبا بالعالم", "नमस्ते दुनिया",
    "สวัสดีชาวโลก", "😀 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️", "def f(x):\n    return {'a': x ** 2}  # comment\n\n\n\tif x != 0:\r\n\t\tpass\n",
    "<div class=\"a\">&amp;</div>\n\n   \n  end", "a\x00b\x01\x02\x1b[31m\x7f\x85\u00ad\ufeff\u200b\u2028\u2029z",
    "tabs\t\t\tand\u00a0nbsp\u3000wide", "<|im_start|>user\nhi<|im_end|>\n", "a<|im_end|>  b<think> c</s> d<s>e",
    "quixotry zebra quixotry", "\n\n\n   \n x", "CamelCaseWord iPhone HTTPServer straße/path//to", "e\u0301\u0323 A\u030a",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀 \U0010ffff \ue000", "!!!???...---===>>>", "▁already ▁▁marked",
]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER = ["<think>"]

GPT2 = None
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def split(regex):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# name in the GGUF: pre-tokenizer, normalizer, ignore_merges, BOS by default
PRE = {
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), None, False, False),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                        pre_tokenizers.ByteLevel(add_prefix_space=False)]), None, False, False),
    "llama-bpe": (split(LLAMA3), None, True, True),
    "qwen2": (split(QWEN2), normalizers.NFC(), False, False),
    "tekken": (split(TEKKEN), None, True, True),
}


def byte_level_vocab():
    """Merges learned without splitting, so that every way to split shows in the ids."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    corpus = [x for x in TEXTS if "quixotry" not in x for _ in range(2)] + ["12345 1234 123 it's they'll  x\n\n  y zeb", "Hello, world! don't"] * 3
    t.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=460, special_tokens=CONTROL + USER, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(t.to_str())["model"]
    for whole in ("Ġquixotry", "quixotry"):  # no merges lead here: found by ignore_merges only
        assert whole not in model["vocab"]
        model["vocab"][whole] = len(model["vocab"])
    return model["vocab"], [tuple(m) for m in model["merges"]]


def surround(t, token):
    t.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, t.token_to_id(token))])


def byte_level(vocab, merges, pre):
    pre_tokenizer, normalizer, ignore_merges, add_bos = PRE[pre]
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
    t.pre_tokenizer, t.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer:
        t.normalizer = normalizer
    t.add_special_tokens([AddedToken(c, special=True, normalized=False) for c in CONTROL])
    t.add_tokens([AddedToken(u, special=False, normalized=False) for u in USER])
    if add_bos:
        surround(t, CONTROL[0])
    return t


def sentence_piece_vocab():
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.train_from_iterator([x.lower() for x in TEXTS] * 2 + TEXTS[:8] * 3, trainers.BpeTrainer(vocab_size=330))
    pieces = sorted(json.loads(t.to_str())["model"]["vocab"].items(), key=lambda x: x[1])
    learned = [p for p, _ in pieces if len(p) > 1]
    letters = [p for p, _ in pieces if len(p) == 1 and ord(p) < 0x3000]  # the others fall back on bytes
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + learned + letters
    types = [2, 3, 3] + [6] * 256 + [1] * (len(learned) + len(letters))
    # Equal scores by twos, to test how ties are broken.
    scores = [0.0] * 259 + [-float(i // 2) for i in range(len(learned))] + [-1e4 - i for i in range(len(letters))]
    tokens, types, scores = tokens + USER, types + [4], scores + [0.0]
    return tokens, types, scores


def sentence_piece(tokens, scores, prefix):
    vocab = {t: i for i, t in enumerate(tokens)}
    merges = generate_merges(vocab, dict(zip(tokens, scores)))
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    before = [normalizers.Prepend("▁")] if prefix else []
    t.normalizer = normalizers.Sequence(before + [normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()] + strip)
    t.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in ("<s>", "</s>")])
    t.add_tokens([AddedToken(u, special=False, normalized=False) for u in USER])
    surround(t, "<s>")
    return t


def write_gguf(name, model, tokens, types, pre=None, merges=None, scores=None, ids=(0, 2), template=None, **flags):
    w = gguf.GGUFWriter(str(OUT / f"{name}.gguf"), "llama")
    w.add_tokenizer_model(model)
    if pre:
        w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types(types)
    if merges:
        w.add_token_merges([" ".join(m) for m in merges])
    if scores:
        w.add_token_scores(scores)
    w.add_bos_token_id(ids[0])
    w.add_eos_token_id(ids[1])
    if template:
        w.add_chat_template(template)
    for key, value in flags.items():
        w.add_bool(f"tokenizer.ggml.{key}", value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def expected(t):
    fast = PreTrainedTokenizerFast(tokenizer_object=t)
    plain = [fast(x, add_special_tokens=False)["input_ids"] for x in TEXTS]
    return {
        "ids": plain,
        "with_special": fast(TEXTS[2])["input_ids"],
        "decoded": [fast.decode(i, clean_up_tokenization_spaces=False) for i in plain],
        "decoded_plain": [fast.decode(i, skip_special_tokens=True, clean_up_tokenization_spaces=False) for i in plain],
    }


def byte_offsets(t, text):
    at = [len(text[:i].encode()) for i in range(len(text) + 1)]
    return [[at[a], at[b]] for a, b in t.encode(text, add_special_tokens=False).offsets]


# ---------------------------------------------------------------- chat

CONVERSATIONS = {
    "one turn": [("user", "What is 1+1?"), ("assistant", "It is two. Größe 😀")],
    "system": [("system", "Be brief."), ("user", "Hi\nthere"), ("assistant", "Hello to you.")],
    "many": [("user", "First question"), ("assistant", "Answer number one"), ("user", "Second <b> & question"),
             ("assistant", "  Answer number two\n"), ("user", "Third"), ("assistant", "你好，世界")],
    "system many": [("system", "Du bist höflich."), ("user", "Eins"), ("assistant", "Antwort eins"),
                    ("user", "Zwei"), ("assistant", "Antwort zwei")],
    "question": [("user", "Only a question")],
    "reasoning": [("user", "Q1"), ("assistant", "<think>\nhm one\n</think>\n\nReply one"), ("user", "Q2"),
                  ("assistant", "<think>\nhm two\n</think>\n\nReply two")],
    "reasoning field": [("user", "Q1"), ("assistant", "Reply one", {"reasoning_content": "thought"})],
    "tool": [("user", "Weather in Köln?"),
             ("assistant", "Looking.", {"tool_calls": [{"type": "function", "function": {
                 "name": "weather", "arguments": {"city": "Köln <&'>", "days": [1, 2.5, True, None, {}]}}}]}),
             ("tool", "{\"sky\": \"blue\"}"), ("assistant", "Blue sky.")],
    "two users": [("user", "a"), ("user", "b"), ("assistant", "c")],
    "assistant first": [("assistant", "Welcome here."), ("user", "Thanks"), ("assistant", "Gladly done.")],
}


def think(text, last):
    """A Qwen3 answer: the reasoning stays with the last turn only."""
    reasoning, answer = "", text
    if "</think>" in text:
        reasoning = text.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
        answer = text.split("</think>")[-1].lstrip("\n")
    body = f"<think>\n{reasoning}\n</think>\n\n{answer}" if last else answer
    return body + "<|im_end|>\n"


# template: (bos, eos, what the assistant writes in a turn)
TEMPLATES = {
    "smollm2": ("<|im_start|>", "<|im_end|>", lambda c, last: c + "<|im_end|>\n"),
    "chatml": ("", "<|im_end|>", lambda c, last: c + "<|im_end|>\n"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", lambda c, last: c.strip() + "<|eot_id|>"),
    "llama31": ("<|begin_of_text|>", "<|eot_id|>", lambda c, last: c.strip() + "<|eot_id|>"),
    "llama2": ("<s>", "</s>", lambda c, last: " " + c.strip() + " </s>"),
    "mistral": ("<s>", "</s>", lambda c, last: " " + c.strip() + "</s>"),
    "qwen25": ("", "<|im_end|>", lambda c, last: c + "<|im_end|>\n"),
    "qwen3": ("", "<|im_end|>", think),
    "marked": ("", "<|im_end|>", None),
}
PLACEABLE = {"one turn", "system", "many", "system many", "reasoning", "assistant first"}
CLOCK = 1700000000  # 14 Nov 2023


def chat_cases(fast):
    cases = []
    for name, (bos, eos, writes) in TEMPLATES.items():
        source = (HERE / "templates" / f"{name}.jinja").read_text()
        fast.bos_token, fast.eos_token = bos or None, eos
        extra = {"date_string": "14 Nov 2023"} if name == "llama31" else {}
        for title, turns in CONVERSATIONS.items():
            messages = [{"role": t[0], "content": t[1], **(t[2] if len(t) > 2 else {})} for t in turns]
            case = {"template": name, "title": title, "bos": bos, "eos": eos, "messages": messages}
            try:
                render = lambda prompt: fast.apply_chat_template(
                    messages, chat_template=source, tokenize=False, add_generation_prompt=prompt, **extra)
                case["text"], case["prompted"] = render(False), render(True)
            except Exception as e:  # the template's own raise_exception
                case["error"] = str(e)
                cases.append(case)
                continue
            text = case["text"]
            if writes and title in PLACEABLE:
                spans, at = [], 0
                for i, m in enumerate(messages):
                    if m["role"] == "assistant":
                        last = i == len(messages) - 1
                        # Qwen3 treats every turn after the last question as the last.
                        part = writes(m["content"], last)
                        assert text.count(part) == 1, (name, title, part, text)
                        at = text.index(part)
                        spans.append([len(text[:at].encode()), len(text[:at + len(part)].encode())])
                case["spans"] = spans
            if name == "marked":
                out = fast.apply_chat_template(messages, chat_template=source, return_dict=True,
                                               return_assistant_tokens_mask=True)
                case["ids"], case["mask"] = out["input_ids"], out["assistant_masks"]
            cases.append(case)
    return cases


def main():
    vocab, merges = byte_level_vocab()
    tokens = [t for t, _ in sorted(vocab.items(), key=lambda x: x[1])]
    types = [3 if t in CONTROL else 4 if t in USER else 1 for t in tokens]
    smollm2 = (HERE / "templates" / "smollm2.jinja").read_text()
    golden = {"texts": TEXTS, "kinds": {}}
    for pre in PRE:
        t = byte_level(vocab, merges, pre)
        golden["kinds"][pre] = expected(t)
        write_gguf(pre, "gpt2", tokens, types, pre, merges, template=smollm2 if pre == "smollm" else None)
        if pre == "smollm":
            golden["offsets"] = [byte_offsets(t, x) for x in TEXTS]
            folder = OUT / "smollm"
            PreTrainedTokenizerFast(tokenizer_object=t, eos_token="<|im_end|>", bos_token="<|im_start|>",
                                    pad_token="<|im_end|>", chat_template=smollm2).save_pretrained(folder)
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
            fast = PreTrainedTokenizerFast.from_pretrained(folder)
    tokens, types, scores = sentence_piece_vocab()
    for name, prefix in (("spm", True), ("spm-plain", False)):
        golden["kinds"][name] = expected(sentence_piece(tokens, scores, prefix))
        write_gguf(name, "llama", tokens, types, scores=scores, ids=(1, 2), add_space_prefix=prefix)
    (OUT / "tokens.json").write_text(json.dumps(golden, ensure_ascii=True, separators=(",", ":")))
    (OUT / "chat.json").write_text(json.dumps(chat_cases(fast), ensure_ascii=True, indent=1))


main()
