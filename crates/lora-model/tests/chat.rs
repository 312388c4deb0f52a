//! Rendered conversations and assistant ranges against transformers (see data/make_text.py), and hostile templates.

#[path = "chat/messages.rs"]
mod messages;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lora_core::{Error, ErrorKind};
use lora_model::{ChatTemplate, Message, Tokenizer};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Case {
    template: String,
    title: String,
    bos: String,
    eos: String,
    messages: Vec<Message>,
    text: Option<String>,
    prompted: Option<String>,
    spans: Option<Vec<[usize; 2]>>,
    error: Option<String>,
    ids: Option<Vec<i64>>,
    mask: Option<Vec<u8>>,
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn source(name: &str) -> String {
    fs::read_to_string(data().join("templates").join(format!("{name}.jinja"))).unwrap()
}

fn cases() -> Vec<(Case, ChatTemplate)> {
    let cases: Vec<Case> = serde_json::from_slice(&fs::read(data().join("text/chat.json")).unwrap()).unwrap();
    let compile = |case: Case| {
        let template = ChatTemplate::new(&source(&case.template), &case.bos, &case.eos).unwrap();
        let template = template.at_time(1_700_000_000);
        (case, template)
    };
    cases.into_iter().map(compile).collect()
}

#[test]
fn renderings_are_those_of_transformers() {
    for (case, template) in cases() {
        let place = format!("{}, {}", case.template, case.title);
        match &case.error {
            Some(raised) => {
                let error = template.render(&case.messages, false).unwrap_err();
                assert!(error.to_string().contains(raised.as_str()), "{place}: {error}");
            }
            None => {
                assert_eq!(template.render(&case.messages, false).ok(), case.text, "{place}");
                assert_eq!(template.render(&case.messages, true).ok(), case.prompted, "{place}, prompted");
            }
        }
    }
}

#[test]
fn spans_hold_what_the_assistant_writes_and_its_end_of_turn() {
    let mut checked = 0;
    for (case, template) in cases() {
        let Some(expected) = case.spans else { continue };
        let (text, spans) = template.render_with_spans(&case.messages).unwrap();
        assert_eq!(Some(&text), case.text.as_ref());
        let spans: Vec<_> = spans.iter().map(|span| [span.start, span.end]).collect();
        let read =
            |spans: &[[usize; 2]]| spans.iter().map(|s| text[s[0]..s[1]].to_owned()).collect::<Vec<_>>();
        assert_eq!(read(&spans), read(&expected), "{}, {}", case.template, case.title);
        assert_eq!(spans, expected, "{}, {}", case.template, case.title);
        checked += 1;
    }
    assert!(checked > 40, "{checked}");
}

#[test]
fn generation_blocks_give_the_token_mask_of_transformers() {
    let tokenizer = Tokenizer::open(&data().join("text/smollm")).unwrap();
    let mut refused = 0;
    for (case, template) in cases() {
        let (Some(ids), Some(mask)) = (case.ids, case.mask) else { continue };
        assert!(template.has_generation_blocks());
        let (text, spans) = match template.render_with_spans(&case.messages) {
            // transformers learns an empty answer there.
            Err(e) if e.to_string().contains("does not write `tool_calls`") => {
                refused += 1;
                continue;
            }
            spans => spans.unwrap(),
        };
        let encoded = tokenizer.encode_with_offsets(&text, false).unwrap();
        assert_eq!(encoded.ids, ids, "{}", case.title);
        let got: Vec<u8> = encoded.mask(&spans).into_iter().map(u8::from).collect();
        assert_eq!(got, mask, "{}", case.title);
    }
    assert_eq!(refused, 1);
}

/// Contents that also occur elsewhere must not be found there.
#[test]
fn spans_do_not_depend_on_what_is_said() {
    let turns = ["assistant", "yes", "<|im_end|>", "yes<|im_end|>\n", "", " "];
    for name in ["chatml", "smollm2", "qwen25", "qwen3"] {
        let template = ChatTemplate::new(&source(name), "", "<|im_end|>").unwrap();
        for said in turns {
            let one = [Message::new("user", said), Message::new("assistant", said)];
            let messages = [one.clone(), one.clone(), one].concat();
            let (text, spans) = template.render_with_spans(&messages).unwrap();
            assert_eq!(spans.len(), 3);
            for span in spans {
                assert!(text[..span.start].ends_with("<|im_start|>assistant\n"), "{name} {said:?}");
                assert!(text[span.clone()].ends_with(&format!("{said}<|im_end|>\n")), "{name} {said:?}");
                assert!(text[span.end..].is_empty() || text[span.end..].starts_with("<|im_start|>user"));
            }
        }
    }
}

/// The parts of a rendering are of one instant, and so are comparable, while the clock goes on.
#[test]
fn the_clock_stands_still_while_a_conversation_is_rendered() {
    let source = "{% for m in messages %}<{{ strftime_now('%H:%M:%S') }}>{{ m.content }}{% endfor %}\
                  {% if add_generation_prompt %}<{{ strftime_now('%H:%M:%S') }}>{% endif %}";
    let template = ChatTemplate::new(source, "", "").unwrap();
    let messages = [Message::new("user", "When?"), Message::new("assistant", "Now.")];
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1050) {
        let (text, spans) = template.render_with_spans(&messages).unwrap();
        assert_eq!((&text[spans[0].clone()], spans.len()), ("Now.", 1));
        assert_eq!(template.last_turn(&messages).unwrap().unwrap().content, "Now.");
    }
    // Told by hand it is UTC.
    let then = template.at_time(1_700_000_000).render(&messages[..1], false).unwrap();
    assert_eq!(then, "<22:13:20>When?");
}

/// What a model says again is what training has it say, with what the template writes around the content.
#[test]
fn the_last_turn_is_what_training_has_the_model_say() {
    let qwen3 = ChatTemplate::new(&source("qwen3"), "", "<|im_end|>").unwrap();
    let last = |template: &ChatTemplate, messages: serde_json::Value| {
        let messages: Vec<Message> = serde_json::from_value(messages).unwrap();
        let turn = template.last_turn(&messages).unwrap()?;
        let text = template.render(&messages, false).unwrap();
        assert_eq!(format!("{}{}{}{}", turn.prompt, turn.before, turn.content, turn.behind), text);
        assert!(turn.prompt.ends_with("<|im_start|>assistant\n"), "{turn:?}");
        Some([turn.before, turn.content, turn.behind])
    };
    let user = json!({"role": "user", "content": "card?"});
    let empty = "<think>\n\n</think>\n\n";
    for (said, parts) in [
        ("card / high", [empty, "card / high", "<|im_end|>\n"]),
        // What the template writes is not looked for in the content, nor the content in what it writes.
        ("think", [empty, "think", "<|im_end|>\n"]),
        ("", [empty, "", "<|im_end|>\n"]),
        // The place of a content that the template takes apart cannot be told.
        ("<think>\nhm\n</think>\n\nyes", ["", "<think>\nhm\n</think>\n\nyes<|im_end|>\n", ""]),
    ] {
        let answer = json!({"role": "assistant", "content": said});
        assert_eq!(
            last(&qwen3, json!([user, answer, user, answer])),
            Some(parts.map(str::to_owned)),
            "{said}"
        );
    }
    let call =
        json!({"role": "assistant", "content": null, "tool_calls": [{"name": "weather", "arguments": {}}]});
    let asked = json!({"role": "assistant", "content": "One moment", "tool_calls": call["tool_calls"]});
    // A call is all of the turn, whatever is said beside it.
    for called in [call, asked.clone()] {
        let [before, content, behind] = last(&qwen3, json!([user, called])).unwrap();
        assert!(content.starts_with(empty) && content.contains("weather"), "{content}");
        assert!(before.is_empty() && behind.is_empty(), "{before} {behind}");
    }
    let none = json!({"role": "assistant", "content": "yes", "tool_calls": []});
    assert_eq!(last(&qwen3, json!([user, none])).unwrap()[1], "yes");
    // What stands around a reasoning does not hang on it.
    for field in ["reasoning_content", "thinking", "reasoning"] {
        let reasoned = json!([user, {"role": "assistant", "content": "yes", field: "hm</think>"}]);
        let messages: Vec<Message> = serde_json::from_value(reasoned).unwrap();
        let turn = qwen3.last_turn(&messages).unwrap().unwrap();
        assert_eq!([turn.before, turn.content], ["<think>\nhm</think>\n</think>\n\n", "yes"]);
        assert_eq!(turn.reasoning.unwrap(), ["<think>\n", "\n</think>\n\n"]);
    }
    assert_eq!(qwen3.last_turn(&[Message::new("user", "card?")]).unwrap(), None);
    // Where the beginning is written otherwise, the content is all there is.
    let source = "{% for m in messages %}{{ loop.length }}{{ m.content }}\
                  {% if m.tool_calls %}({{ m.tool_calls[0].name }}){% endif %}{% endfor %}";
    let counting = ChatTemplate::new(source, "", "").unwrap();
    let mut messages = [Message::new("user", "card?"), Message::new("assistant", "yes")];
    let turn = counting.last_turn(&messages).unwrap().unwrap();
    assert_eq!([turn.before, turn.content, turn.behind], ["", "yes", ""]);
    // But for a call.
    messages[1] = serde_json::from_value(asked).unwrap();
    let turn = counting.last_turn(&messages).unwrap().unwrap();
    assert_eq!([turn.before, turn.content, turn.behind], ["", "2One moment(weather)", ""]);
}

#[test]
fn variables_reach_the_template() {
    let template = ChatTemplate::new(&source("qwen3"), "", "<|im_end|>").unwrap();
    let template = template.with_variable("enable_thinking", json!(false));
    let text = template.render(&[Message::new("user", "hi")], true).unwrap();
    assert!(text.ends_with("<|im_start|>assistant\n<think>\n\n</think>\n\n"), "{text}");
}

#[test]
fn tojson_writes_as_python() {
    let show = |options: &str, value: serde_json::Value| {
        let source = format!("{{{{ value | tojson{options} }}}}");
        ChatTemplate::new(&source, "", "").unwrap().with_variable("value", value).render(&[], false).unwrap()
    };
    let value = json!({"b": "<é>\n", "a": [1, 2.5, true, null, {}, []]});
    // json.dumps(value, ensure_ascii=False) and its options, by Python 3.11.
    assert_eq!(show("", value.clone()), r#"{"b": "<é>\n", "a": [1, 2.5, true, null, {}, []]}"#);
    assert_eq!(
        show("(ensure_ascii=true, sort_keys=true)", json!({"b": "é😀", "a": 1})),
        r#"{"a": 1, "b": "\u00e9\ud83d\ude00"}"#
    );
    assert_eq!(
        show("", json!([1e-5, 1e-7, -1e16, 1e23, 1e5, 0.0001, u64::MAX])),
        "[1e-05, 1e-07, -1e+16, 1e+23, 100000.0, 0.0001, 18446744073709551615]"
    );
    assert_eq!(show("(separators=[',', ':'])", json!({"b": [1, 2]})), r#"{"b":[1,2]}"#);
    assert_eq!(
        show("(indent=2)", json!({"b": [1, {"c": 2}], "d": {}})),
        "{\n  \"b\": [\n    1,\n    {\n      \"c\": 2\n    }\n  ],\n  \"d\": {}\n}"
    );
}

/// As `str` of Python 3.11 has them.
#[test]
fn numbers_are_printed_as_python_prints_them() {
    for (value, text) in [
        (json!(1e16), "1e+16"),
        (json!(-1.5e-7), "-1.5e-07"),
        (json!(0.1), "0.1"),
        (json!(2.0), "2.0"),
        (json!(3), "3"),
        (json!(null), "None"),
        (json!("1e16"), "1e16"),
    ] {
        for source in ["{{ value }}", "{{ value | string }}", "{{ 'a' ~ (value | string) }}"] {
            let template = ChatTemplate::new(source, "", "").unwrap().with_variable("value", value.clone());
            assert_eq!(template.render(&[], false).unwrap().trim_start_matches('a'), text, "{source}");
        }
    }
    assert_eq!(ChatTemplate::new("{{ 1e16 }}", "", "").unwrap().render(&[], false).unwrap(), "1e+16");
}

fn fails(source: &str) -> Error {
    let start = Instant::now();
    let messages = [Message::new("user", "hi"), Message::new("assistant", "ho")];
    let error = match ChatTemplate::new(source, "", "") {
        Ok(template) => template.render_with_spans(&messages).expect_err(source),
        Err(error) => error,
    };
    assert!(start.elapsed() < Duration::from_secs(25), "{source}: {:?}", start.elapsed());
    assert!(matches!(error.kind(), ErrorKind::Data | ErrorKind::Unsupported), "{error}");
    assert!(error.to_string().contains("chat template") && error.hint_text().is_some(), "{error}");
    error
}

#[test]
fn bad_templates_are_refused_in_time() {
    let endless =
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a %}{% endfor %}{% endfor %}";
    assert!(fails(endless).to_string().contains("too long"));
    for hungry in [
        "{% set ns = namespace(x='aaaaaaaa') %}{% for a in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{{ 'a' * 99999999999 }}",
        "{% set ns = namespace(x=[0]) %}{% for a in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{{ range(999999999) | list | tojson }}",
        "{{ ('a' * 9999999).replace('a', 'b' * 9999999) }}",
    ] {
        fails(hungry);
    }
    assert!(
        fails("{% for a in range(90000) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaa' }}{% endfor %}")
            .to_string()
            .contains("more text")
    );
    let error = fails("line one\n{% if %}\n");
    assert!(error.to_string().contains("line 2"), "{error}");
    let error = fails("\n\n{{ messages[0].content.nothing() }}");
    assert!(error.to_string().contains("line 3"), "{error}");
    let error = fails("{% macro no() %}{{ raise_exception('no \"thanks\"') }}{% endmacro %}{{ no() }}");
    assert!(error.to_string().contains("no \"thanks\""), "{error}");
    // Walks that cost the engine's fuel nothing.
    fails(
        "{% set l = range(90000) | list %}{% for a in range(90000) %}{% set c = l.count(-1) %}{% endfor %}",
    );
    let knot =
        "{% set ns = namespace(x=[1]) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
    fails(&format!("{knot}{{{{ ns.x }}}}"));
    fails(&format!("{knot}{{{{ ns.x | tojson }}}}"));
    fails("{% generation %}x");
    fails("x{% endgeneration %}");
    fails("{% include 'passwd' %}");
}

/// Values nested by the hundred thousand must not overflow the stack when they are printed, compared or dropped.
#[test]
fn deep_values_are_survived() {
    for print in ["", "{{ ns.x }}", "{{ ns.x | tojson }}", "{{ ns.x == [ns.x] }}"] {
        let source = format!(
            "{{% set ns = namespace(x=[]) %}}{{% for a in range(15000) %}}\
             {{% set ns.x = [[[[[[[[[[ns.x]]]]]]]]]] %}}{{% endfor %}}{print}done"
        );
        let template = ChatTemplate::new(&source, "", "").unwrap();
        match template.render(&[Message::new("user", "hi")], false) {
            Ok(text) => assert!(text.ends_with("done")),
            Err(error) => assert!(error.to_string().contains("nested too deep"), "{error}"),
        }
    }
}

#[test]
fn unplaceable_turns_are_refused_with_a_hint() {
    // Everything about the assistant is printed reversed, and depends on what follows.
    let source = "{% for m in messages %}{{ loop.length }}{{ m.content[::-1] }}{% endfor %}";
    let error = fails(source);
    assert!(error.hint_text().unwrap().contains("{% generation %}"), "{error}");
    // A filter on a block would move the ranges.
    let filtered = "{% filter upper %}{% generation %}a{% endgeneration %}{% endfilter %}";
    fails(filtered);
}
