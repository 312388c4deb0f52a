//! Rows as token ids.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use lora_core::ErrorKind;
use lora_model::{IGNORE, Tokenizer};
use lora_train::{Choices, DataOptions, Dataset, Long, Row, Sample, labels_of, read_rows, reference};
use serde_json::{Value, json};

fn tokenizer(kind: &str) -> Tokenizer {
    let texts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lora-model/tests/data/text");
    Tokenizer::open(&texts.join(format!("{kind}.gguf"))).unwrap()
}

/// A chat template of a known model.
fn template(name: &str) -> String {
    let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lora-model/tests/data/templates");
    std::fs::read_to_string(templates.join(format!("{name}.jinja"))).unwrap()
}

/// A folder with that chat template.
fn with_template(dir: &Path, template: &str) -> Tokenizer {
    tokenizer("smollm").save(dir).unwrap();
    std::fs::write(dir.join("chat_template.jinja"), template).unwrap();
    Tokenizer::open(dir).unwrap()
}

const COMPLETIONS: [&str; 8] = ["hello", " hello", "  hello", "\nhello", "éa 😀", "1234", " ", "▁a"];

/// Nothing comes between prompt and completion, whatever the tokenizer puts before a text; the prompt is what generation
/// starts from.
#[test]
fn a_completion_follows_its_prompt() {
    let dir = tempfile::tempdir().unwrap();
    for kind in ["spm", "spm-plain", "smollm", "llama-bpe"] {
        let tokenizer = tokenizer(kind);
        for prompt in ["say it:", "say it: ", "\n"] {
            let row = |completion: &&str| {
                let row = serde_json::json!({ "prompt": prompt, "completion": completion });
                format!("{row}\n")
            };
            let file = dir.path().join("rows.jsonl");
            std::fs::write(&file, COMPLETIONS.iter().map(row).collect::<String>()).unwrap();
            let options = DataOptions { max_length: 100, long: Long::Refused };
            let data = Dataset::read(&file, &tokenizer, options).unwrap();
            let given = tokenizer.encode(prompt, true).unwrap();
            for (sample, completion) in data.samples.iter().zip(COMPLETIONS) {
                let place = format!("{kind}, {prompt:?}, {completion:?}");
                assert!(sample.ids.starts_with(&given), "{place}");
                let mut learnt: Vec<i64> = sample.labels.iter().copied().filter(|&l| l != IGNORE).collect();
                assert_eq!(sample.labels[given.len() - 1..], learnt, "{place}");
                assert_eq!(learnt.pop(), tokenizer.eos_ids().first().copied(), "{place}");
                // SentencePiece's character for a blank is one.
                let shown =
                    |text: &str| if kind.starts_with("spm") { text.replace('▁', " ") } else { text.into() };
                let whole = tokenizer.decode(&[&given[..], &learnt].concat(), true).unwrap();
                assert_eq!(whole, shown(&format!("{prompt}{completion}")), "{place}");
                // Of an answer alone a blank at its beginning is not told from the one before a text.
                let answer = tokenizer.decode(&learnt, true).unwrap();
                let said = shown(completion);
                assert!(answer == said || format!(" {answer}") == said, "{place}: {answer:?}");
            }
        }
    }
}

/// A folder whose tokenizer puts its end behind every text.
fn ending(dir: &Path) -> Tokenizer {
    tokenizer("smollm").save(dir).unwrap();
    let file = dir.join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let text = |id: &str, part: u8| json!({"Sequence": {"id": id, "type_id": part}});
    let end = json!({"SpecialToken": {"id": "<|im_end|>", "type_id": 0}});
    json["post_processor"] = json!({"type": "TemplateProcessing",
        "single": [text("A", 0), end], "pair": [text("A", 0), text("B", 1)],
        "special_tokens": {"<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}}});
    std::fs::write(file, json.to_string()).unwrap();
    Tokenizer::open(dir).unwrap()
}

/// What writes its own end, with white space behind it or none, has no second one, though its tokenizer puts one behind every
/// text, and its answer is what stands before.
#[test]
fn an_end_that_is_there_is_not_added() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.jsonl");
    let ending = ending(&dir.path().join("ending"));
    assert_eq!(ending.encode("a", true).unwrap().last(), Some(&2));
    for (kind, tokenizer) in [("spm", tokenizer("spm")), ("smollm", tokenizer("smollm")), ("ending", ending)]
    {
        let end = tokenizer.decode(&tokenizer.eos_ids()[..1], false).unwrap();
        let read = |end: &str| {
            let said = |text: &str| format!("{text}{end}");
            let pair = serde_json::json!({ "prompt": format!("say it:{end}"), "completion": said("four") });
            let text = serde_json::json!({ "text": said("two and two") });
            std::fs::write(&file, format!("{pair}\n{text}\n")).unwrap();
            Dataset::read(&file, &tokenizer, DataOptions { max_length: 100, long: Long::Refused }).unwrap()
        };
        let without = read("");
        for end in ["", "\n", " \n\n"].map(|space| format!("{end}{space}")) {
            let with = read(&end);
            // In a prompt it is the row's affair.
            let given = tokenizer.encode(&format!("say it:{end}"), true).unwrap();
            assert!(with.samples[0].ids.starts_with(&given), "{kind}, {end:?}");
            let learnt = |data: &Dataset| -> Vec<i64> {
                data.samples[0].labels.iter().copied().filter(|&l| l != IGNORE).collect()
            };
            assert_eq!(learnt(&with), learnt(&without), "{kind}, {end:?}");
            assert_eq!(with.samples[1], without.samples[1], "{kind}, {end:?}");
            assert_eq!(reference(&with.rows[0]), Some("four"), "{kind}, {end:?}");
            assert_eq!(with.rows[1], without.rows[1], "{kind}, {end:?}");
        }
    }
}

/// Nor is another end that stops a generation part of an answer. It is learnt where it stands, with a label in the answer's place
/// too, and the tokenizer's own behind it.
#[test]
fn an_answer_stands_before_every_end() {
    let dir = tempfile::tempdir().unwrap();
    with_template(dir.path(), &template("chatml"));
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token": "<|endoftext|>"}"#).unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(tokenizer.eos_ids(), [0, 2]);
    let file = dir.path().join("rows.jsonl");
    let yes = tokenizer.encode_after("yes").unwrap();
    let [line] = tokenizer.encode_after("\n").unwrap()[..] else { panic!("a token") };
    for (end, ids) in [
        ("", vec![0_i64]),
        ("<|endoftext|>", vec![0]),
        ("<|endoftext|>\n", vec![0]),
        ("<|im_end|>", vec![2, 0]),
        ("<|im_end|>\n", vec![2, line, 0]),
        ("<|im_end|><|endoftext|>", vec![2, 0]),
        ("<|im_end|>\n<|endoftext|> \n", vec![2, line, 0]),
    ] {
        let pair = json!({ "prompt": "Rain?", "completion": format!("yes{end}") });
        let text = json!({ "text": format!("yes{end}") });
        std::fs::write(&file, format!("{pair}\n{text}\n")).unwrap();
        let options = DataOptions { max_length: 100, long: Long::Refused };
        let data = Dataset::read(&file, &tokenizer, options).unwrap();
        let [pair, text] = &data.samples[..] else { panic!("{data:?}") };
        let learnt = |sample: &Sample| -> Vec<i64> {
            sample.labels.iter().copied().filter(|&l| l != IGNORE).collect()
        };
        assert_eq!(learnt(pair), [&yes[..], &ids].concat(), "{end}");
        assert_eq!([&text.ids[..1], &learnt(text)].concat(), [&yes[..], &ids].concat(), "{end}");
        assert_eq!(reference(&data.rows[0]), Some("yes"), "{end}");
        let labels = labels_of(&data.rows, 2).unwrap();
        assert_eq!(labels, ["yes"], "{end}");
        let choices = Choices::of(&tokenizer, &data.rows[0], &labels).unwrap().unwrap();
        assert_eq!(choices.longest(), pair.ids.len(), "{end}");
    }
}

/// What is no JSON lines is called what it is, with a way to make it some.
#[test]
fn files_of_other_kinds_are_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let row = r#"{"text": "a, b"}"#;
    let files: [(&str, &[u8], &str, &str); 16] = [
        ("a.jsonl", b"\x1f\x8b\x08\x00\xff", "packed by gzip", "gzip -dc"),
        ("a.jsonl", b"PAR1\x15\x04", "a Parquet file", "read_parquet"),
        ("a.jsonl", b"\xff\xfe{\x00", "UTF-16", "iconv"),
        ("a.json", b"\n [\n  {\"text\": \"a\"}\n]", "a JSON array", "jq -c '.[]'"),
        ("a.csv", b"prompt,completion\na,b\n", "CSV", "csv.DictReader(sys.stdin)"),
        ("a.csv", b"\xef\xbb\xbftext\na\n", "CSV", "csv.DictReader(sys.stdin)"),
        ("a.txt", b"prompt\tcompletion\na\tb\n", "CSV", r#"delimiter="\t""#),
        ("a.txt", b"\"prompt\",\"completion\"\r\na,b\r\n", "CSV", "csv.DictReader(sys.stdin)"),
        ("a.txt", b"Hello, world\n", "a.txt:1: not JSON", "one JSON object a line"),
        ("a.txt", b"Hello, world\nand all\n", "a.txt:1: not JSON", "one JSON object a line"),
        ("a.txt", b"a, b\n{\"text\": \"a, b\"}\n", "a.txt:1: not JSON", "one JSON object a line"),
        ("a.jsonl", b"\"a, b\"\n\"c, d\"\n", "a.jsonl:1: not a JSON object", "a row is a JSON object"),
        ("a.jsonl", b"a, b\n[1, 2]\n", "a.jsonl:1: not JSON", "one JSON object a line"),
        ("a.jsonl", b"{\n  \"text\": \"a\"\n}\n", "not JSON: EOF", "jq -c ."),
        ("a.jsonl", b"{\"text\": \"\xe9\"}\n", "not UTF-8", "iconv"),
        ("a.jsonl", b"hello\n", "a.jsonl:1: not JSON", "one JSON object a line"),
    ];
    for (name, bytes, what, how) in files {
        let file = dir.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        let e = read_rows(&file).unwrap_err();
        assert!(e.to_string().contains(name) && e.to_string().contains(what), "{name}: {e}");
        let hint = e.hint_text().unwrap();
        assert!(hint.contains(how), "{name}: {hint}");
    }
    for rows in [row.to_owned(), format!("\u{feff}{row}\n"), format!("\n\n{row}\n")] {
        let file = dir.path().join("a.csv");
        std::fs::write(&file, rows).unwrap();
        assert_eq!(read_rows(&file).unwrap().len(), 1);
    }
}

/// Faults of every kind are told together, the first ten with their lines, and what to do about each kind.
#[test]
fn all_that_is_wrong_with_a_file_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.jsonl");
    let tokenizer = with_template(&dir.path().join("smollm2"), &template("smollm2"));
    let read = |lines: &[&str]| {
        std::fs::write(&file, lines.concat()).unwrap();
        Dataset::read(&file, &tokenizer, DataOptions { max_length: 40, long: Long::Refused }).unwrap_err()
    };
    let long = format!("{{\"text\": \"{}\"}}\n", "a b ".repeat(100));
    let chat = "{\"messages\": [{\"role\": \"gpt\", \"content\": \"a\"}]}\n";
    let kinds = ["{\"text\": \"a\"}\n", "{\"text\": \"a\"\n", "{\"prompt\": \"a\"}\n", "\n", &long, chat];
    let e = read(&kinds);
    for (line, what) in [(2, "not JSON"), (3, "without `completion`"), (5, "at most 40 fit"), (6, "`gpt`")] {
        let place = format!("rows.jsonl:{line}: ");
        assert!(e.to_string().lines().any(|l| l.contains(&place) && l.contains(what)), "{e}");
    }
    assert_eq!(e.to_string().lines().count(), 5, "{e}");
    let hint = e.hint_text().unwrap();
    for what in
        ["one JSON object a line", "a row is a JSON object", "--max-length", "did you mean `assistant`"]
    {
        assert_eq!(hint.matches(what).count(), 1, "{hint}");
    }
    let e = read(&kinds.repeat(3));
    assert_eq!(e.to_string().lines().count(), 12, "{e}");
    assert!(e.to_string().ends_with("rows.jsonl:15: `prompt` without `completion`\n  - and 2 more"), "{e}");
    assert_eq!(e.hint_text().unwrap().lines().count(), 4);

    // What no row is to be blamed for is asked of ten alone.
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let tokenizer = with_template(&dir.path().join("endless"), endless);
    std::fs::write(&file, chat.replace("gpt", "assistant").repeat(20)).unwrap();
    let options = DataOptions { max_length: 40, long: Long::Refused };
    let e = Dataset::read(&file, &tokenizer, options).unwrap_err();
    assert!(e.to_string().ends_with("further lines were not looked at"), "{e}");
    assert_eq!((e.to_string().lines().count(), e.kind()), (12, ErrorKind::Unsupported), "{e}");
    // A single row that is to be blamed, and it is the data.
    std::fs::write(&file, [kinds[2], &chat.replace("gpt", "assistant")].concat()).unwrap();
    let e = Dataset::read(&file, &tokenizer, options).unwrap_err();
    assert_eq!((e.to_string().lines().count(), e.kind()), (3, ErrorKind::Data), "{e}");
}

/// A cut is proposed where something is left to learn, and long rows are left out only if that is asked for.
#[test]
fn what_becomes_of_long_rows() {
    let dir = tempfile::tempdir().unwrap();
    let (file, tokenizer) = (dir.path().join("rows.jsonl"), tokenizer("smollm"));
    let long = "a b ".repeat(50);
    let [asking, saying, short] = [(long.as_str(), "b"), ("a", long.as_str()), ("a", "b")]
        .map(|(prompt, completion)| format!("{}\n", json!({ "prompt": prompt, "completion": completion })));
    let read = |rows: &[&String], long: Long| {
        std::fs::write(&file, rows.iter().map(|row| row.as_str()).collect::<String>()).unwrap();
        Dataset::read(&file, &tokenizer, DataOptions { max_length: 40, long })
    };
    for (row, long, cut) in
        [(&saying, Long::Refused, true), (&asking, Long::Refused, false), (&asking, Long::Cut, false)]
    {
        let e = read(&[&short, row], long).unwrap_err();
        assert!(e.to_string().contains("rows.jsonl:2: ") && e.to_string().contains("at most 40 fit"), "{e}");
        let hint = e.hint_text().unwrap();
        assert!(hint.contains("--truncate") == cut && hint.contains("--drop-long"), "{hint}");
    }
    let data = read(&[&saying, &short], Long::Cut).unwrap();
    assert_eq!((data.samples[0].ids.len(), data.samples.len(), data.truncated, data.left_out), (39, 2, 1, 0));
    let data = read(&[&saying, &short, &asking, &short], Long::LeftOut).unwrap();
    assert_eq!((data.rows.len(), data.truncated, data.left_out), (2, 0, 2));
    assert_eq!(data.samples.iter().map(|sample| sample.line).collect::<Vec<_>>(), [2, 4]);
    let e = read(&[&saying, &asking], Long::LeftOut).unwrap_err();
    assert!(e.to_string().contains("all of its 2 rows have more than 40 tokens"), "{e}");
}

#[test]
fn a_message_that_cannot_be_read_is_told_by_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.jsonl");
    let user = json!({"role": "user", "content": [{"type": "text", "text": "Rain?"}]});
    let read = |messages: Value| {
        std::fs::write(&file, json!({ "messages": messages }).to_string()).unwrap();
        read_rows(&file)
    };
    let rows = read(json!([user, {"role": "assistant", "content": "No."}])).unwrap();
    assert!(matches!(&rows[0].1, Row::Chat(chat) if chat.messages[0].content == "Rain?"), "{rows:?}");
    for (messages, said) in [
        (json!([user, {"role": "user", "content": [{"type": "image"}]}]), "`messages`, message 2: a part of"),
        (json!([user, user, {"content": "No."}]), "`messages`, message 3: missing field `role`"),
        (json!([user, "No."]), "`messages`, message 2: "),
        (json!("Rain?"), "`messages` is not a list"),
        (json!([]), "`messages` is empty"),
    ] {
        let e = read(messages).unwrap_err().to_string();
        assert!(e.contains("rows.jsonl:1: ") && e.contains(said), "{e}");
    }
}

/// With a template that prints it, the time is that of the file: the same texts at any time, and others once it was changed.
#[test]
fn a_file_gives_the_same_texts_at_any_time() {
    let dir = tempfile::tempdir().unwrap();
    let template = "{{ strftime_now('%Y %S') }}: {% for m in messages %}{{ m.content }}\
                    {{ eos_token if m.role == 'assistant' else '\\n' }}{% endfor %}";
    let tokenizer = with_template(dir.path(), template);
    let file = dir.path().join("rows.jsonl");
    let row =
        r#"{"messages": [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "Then."}]}"#;
    std::fs::write(&file, row).unwrap();
    let read = |seconds: u64| {
        let rows = std::fs::File::options().append(true).open(&file).unwrap();
        rows.set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        Dataset::read(&file, &tokenizer, DataOptions { max_length: 100, long: Long::Refused }).unwrap()
    };
    for (seconds, text) in
        [(1_700_000_000, "2023 20: When?\nThen."), (1_500_000_000, "2017 00: When?\nThen.")]
    {
        let data = read(seconds);
        assert_eq!(tokenizer.decode(&data.samples[0].ids, false).unwrap(), text);
        let learnt: Vec<i64> = data.samples[0].labels.iter().copied().filter(|&l| l != IGNORE).collect();
        assert_eq!(tokenizer.decode(&learnt, false).unwrap(), "Then.<|im_end|>");
        // What is asked of the row later is asked as of then.
        let time = i64::try_from(seconds).unwrap();
        assert!(matches!(&data.rows[0], Row::Chat(chat) if chat.time == Some(time)), "{:?}", data.rows);
    }
}

/// A conversation with tools is read with their descriptions, as a list, as its text, or as a list of texts.
#[test]
fn a_template_is_given_a_rows_tools() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = with_template(dir.path(), &template("qwen25"));
    let file = dir.path().join("rows.jsonl");
    let read = |tools: Value| {
        let call = json!({"function": {"name": "weather", "arguments": {"city": "Ulm"}}});
        let row = json!({"tools": tools, "messages": [
            {"role": "user", "content": "Rain?"}, {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "content": "dry"}, {"role": "assistant", "content": "No."}]});
        std::fs::write(&file, row.to_string()).unwrap();
        Dataset::read(&file, &tokenizer, DataOptions { max_length: 2000, long: Long::Refused })
    };
    let text = |tools: Value| tokenizer.decode(&read(tools).unwrap().samples[0].ids, false).unwrap();
    let about = "What the sky does";
    let tools = json!([{"type": "function", "function": {"name": "weather", "description": about}}]);
    let told = text(tools.clone());
    assert!(told.contains(about) && told.contains("\"city\": \"Ulm\""), "{told}");
    assert_eq!(text(tools.to_string().into()), told);
    assert_eq!(text(json!([tools[0].to_string()])), told);
    for none in [Value::Null, json!("null"), json!([])] {
        assert!(!text(none).contains("# Tools"));
    }
    for bad in
        [json!(3), json!({"name": "weather"}), json!("[weather"), json!(["x"]), json!([null]), json!(["[]"])]
    {
        let e = read(bad).unwrap_err().to_string();
        assert!(e.contains("rows.jsonl:1") && e.contains("`tools`"), "{e}");
    }
}

/// And rendered by the template for tools, if there is one.
#[test]
fn a_row_with_tools_goes_by_the_template_for_tools() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    let path = dir.path().join("additional_chat_templates/tool_use.jinja");
    std::fs::write(path, "tools {{ tools | length }}: {{ messages[0].content }}{{ eos_token }}").unwrap();
    let tokenizer = with_template(dir.path(), "plain: {{ messages[0].content }}{{ eos_token }}");
    let file = dir.path().join("rows.jsonl");
    let text = |tools: Value| {
        let row = json!({"messages": [{"role": "assistant", "content": "Yes."}], "tools": tools});
        std::fs::write(&file, row.to_string()).unwrap();
        let options = DataOptions { max_length: 100, long: Long::Refused };
        let data = Dataset::read(&file, &tokenizer, options).unwrap();
        tokenizer.decode(&data.samples[0].ids, false).unwrap()
    };
    assert_eq!(text(json!(null)), "plain: Yes.");
    assert_eq!(text(json!([{"name": "f"}])), "tools 1: Yes.");
}

/// And what it sets of the template's variables.
#[test]
fn a_template_is_given_a_rows_variables() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = with_template(dir.path(), "{{ mood }}: {{ messages[0].content }}{{ eos_token }}");
    let file = dir.path().join("rows.jsonl");
    let read = |variables: Value| {
        let answer = json!([{"role": "assistant", "content": "Yes."}]);
        let row = json!({"messages": answer, "chat_template_kwargs": variables});
        std::fs::write(&file, row.to_string()).unwrap();
        Dataset::read(&file, &tokenizer, DataOptions { max_length: 100, long: Long::Refused })
    };
    let text = |variables: Value| tokenizer.decode(&read(variables).unwrap().samples[0].ids, false).unwrap();
    assert_eq!(text(json!({"mood": "glad"})), "glad: Yes.");
    assert_eq!(text(Value::Null), ": Yes.");
    for (bad, said) in [(json!("glad"), "not an object"), (json!({"messages": []}), "`messages` in")] {
        let e = read(bad).unwrap_err().to_string();
        assert!(e.contains("rows.jsonl:1") && e.contains(said), "{e}");
    }
}
