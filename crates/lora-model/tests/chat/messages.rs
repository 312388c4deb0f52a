//! What messages may say, and what of it a template must write.

use lora_core::ErrorKind;
use lora_model::{ChatTemplate, Message};
use serde_json::json;

use super::source;

/// Some templates print the tool calls of a message only where its content is null.
#[test]
fn templates_tell_null_and_nothing_from_an_empty_content() {
    let source = "{% for m in messages %}{% if m['content'] is not defined %}-{% elif m['content'] is none %}\
                  {{ m['tool_calls'][0]['name'] }}{% else %}<{{ m['content'] }}>{% endif %}{% endfor %}";
    let template = ChatTemplate::new(source, "", "").unwrap();
    let json = json!([{"role": "user", "content": "Rain?"}, {"role": "user", "content": ""}, {"role": "user"},
        {"role": "assistant", "content": null, "tool_calls": [{"name": "weather"}]}]);
    let messages: Vec<Message> = serde_json::from_value(json.clone()).unwrap();
    assert!(messages[1..].iter().all(|message| message.content.is_empty()));
    assert_eq!(template.render(&messages, false).unwrap(), "<Rain?><>-weather");
    assert_eq!(serde_json::to_value(&messages).unwrap(), json);
    let (text, spans) = template.render_with_spans(&messages).unwrap();
    assert_eq!((&text[spans[0].clone()], spans.len()), ("weather", 1));
    // Another text in its place is one.
    let answered = Message { content: "No.".into(), ..messages[3].clone() };
    assert_eq!(template.render(&[answered], false).unwrap(), "<No.>");
}

/// Templates that expect a text are given one.
#[test]
fn a_content_may_come_in_parts() {
    let of = |content: serde_json::Value| {
        serde_json::from_value::<Message>(json!({"role": "user", "content": content, "name": "Ann"}))
    };
    let parts = json!([{"type": "text", "text": "Rain "}, {"type": "text", "text": "in Ulm?"}]);
    let message = of(parts).unwrap();
    assert_eq!(message, of(json!("Rain in Ulm?")).unwrap());
    let template = ChatTemplate::new(&source("smollm2"), "", "").unwrap();
    assert!(template.render(&[message], false).unwrap().contains("user\nRain in Ulm?<|im_end|>"));
    let none = of(json!([])).unwrap();
    assert_eq!((none.content.as_str(), none.unsaid), ("", None));
    for (content, said) in [
        (json!([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]), "`image_url`"),
        (json!([{"type": "text"}]), "not of the form"),
        (json!(["a"]), "not of the form"),
        (json!(3), "neither a text"),
        (json!({"text": "a"}), "neither a text"),
    ] {
        let error = of(content).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

/// The message, where a template adds a content to text that is not there; the template, where it fails at something else.
#[test]
fn templates_that_need_a_content_name_the_message() {
    let said = |json: serde_json::Value| -> Vec<Message> { serde_json::from_value(json).unwrap() };
    let call = json!({"role": "assistant", "content": null, "tool_calls": [{"name": "weather"}]});
    let mut messages = said(
        json!([{"role": "user", "content": "Rain?"}, {"role": "assistant"}, {"role": "tool", "content": "No."}]),
    );
    let smollm2 = ChatTemplate::new(&source("smollm2"), "", "").unwrap();
    let writing = "{% for m in messages %}{{ '' + m.content }}\
                   {% if m.tool_calls %}{{ m.tool_calls[0].name }}{% endif %}{% endfor %}";
    let writing = ChatTemplate::new(writing, "", "").unwrap();
    let calling = said(json!([{"role": "user", "content": "Rain?"}, call]));
    for error in [
        smollm2.render(&messages, true).unwrap_err(),
        smollm2.render_with_spans(&messages).unwrap_err(),
        writing.render_with_spans(&calling).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Data, "{error}");
        assert!(error.hint_text().unwrap().starts_with("message 2 has no content"), "{error}");
    }
    messages[1].unsaid = None;
    assert!(smollm2.render(&messages, true).unwrap().contains("<|im_start|>assistant\n<|im_end|>"));

    // The first does without, the third does not.
    let source =
        "{% for m in messages %}{% if not m.tool_calls %}{{ '' + m.content }}{% endif %}{% endfor %}";
    let picky = ChatTemplate::new(source, "", "").unwrap();
    let messages = said(json!([call, {"role": "user", "content": "?"}, {"role": "user"}]));
    let error = picky.render(&messages, false).unwrap_err();
    assert!(error.hint_text().unwrap().starts_with("message 3 has no content"), "{error}");
    let broken = ChatTemplate::new("{{ '' + messages }}", "", "").unwrap();
    let error = broken.render(&messages, false).unwrap_err();
    assert!(error.hint_text().unwrap().contains("correct the template"), "{error}");
}

/// A call of which nothing stands in the text would be learnt as an empty answer.
#[test]
fn what_a_template_does_not_write_of_tools_is_refused() {
    let template = |source: &str| ChatTemplate::new(source, "", "<|im_end|>").unwrap();
    // The calls beside a null content alone, as DeepSeek's do.
    let null = "{% for m in messages %}{% if m.content is none %}{{ m.tool_calls[0].function.name }}{% else %}\
                {{ m.content }}{% endif %}{% endfor %}";
    let (smollm2, qwen25, null) = (template(&source("smollm2")), template(&source("qwen25")), template(null));
    let calls = json!([{"function": {"name": "weather", "arguments": {"city": "Ulm"}}}]);
    let refused = |template: &ChatTemplate, content: serde_json::Value, calls: &serde_json::Value| {
        let call = json!({"role": "assistant", "content": content, "tool_calls": calls});
        let messages = json!([{"role": "user", "content": "Rain?"}, call, {"role": "tool", "content": "No."},
            {"role": "assistant", "content": "No."}]);
        let messages: Vec<Message> = serde_json::from_value(messages).unwrap();
        template.render_with_spans(&messages).err().map(|error| {
            assert_eq!(error.kind(), ErrorKind::Data, "{error}");
            assert!(!error.hint_text().unwrap().contains("has no content"), "{error}");
            error.to_string()
        })
    };
    let unwritten =
        "the chat template does not write `tool_calls`; nothing would be learnt of those of message 2";
    for content in [json!(null), json!(""), json!("One moment")] {
        assert_eq!(refused(&smollm2, content.clone(), &calls).as_deref(), Some(unwritten), "{content}");
        assert_eq!(refused(&qwen25, content.clone(), &calls), None, "{content}");
        let wanted = (!content.is_null()).then_some(unwritten);
        assert_eq!(refused(&null, content, &calls).as_deref(), wanted);
    }
    assert_eq!(refused(&smollm2, json!("No."), &json!([])), None);
    let tools = json!([{"type": "function", "function": {"name": "weather"}}]);
    let told = |template: &ChatTemplate, content| {
        refused(&template.clone().with_variable("tools", tools.clone()), content, &calls)
    };
    let unwritten = "the chat template does not write `tools`";
    for (template, content) in [(&smollm2, json!("No.")), (&null, json!(null))] {
        assert_eq!(told(template, content).as_deref(), Some(unwritten));
    }
    assert_eq!(told(&qwen25, json!(null)), None);
    // Nobody calls them; and none.
    let uncalled = smollm2.clone().with_variable("tools", tools.clone());
    assert_eq!(refused(&uncalled, json!("No."), &json!([])), None);
    assert_eq!(refused(&null.with_variable("tools", json!([])), json!(null), &calls), None);
}

/// Templates that write any role would read a turn of a misspelt assistant, and nothing would be learnt of it.
#[test]
fn roles_that_are_anothers_misspelt_are_refused() {
    let spans = |template: &ChatTemplate, role: &str| {
        let messages =
            [Message::new("user", "hi"), Message::new(role, "ho"), Message::new("assistant", "he")];
        template.render_with_spans(&messages).map(|(_, spans)| spans.len())
    };
    let template = |source: &str| ChatTemplate::new(source, "", "").unwrap();
    let smollm2 = template(&source("smollm2"));
    for role in ["system", "user", "tool", "developer", "function", "ipython"] {
        assert_eq!(spans(&smollm2, role).unwrap(), 1, "{role}");
    }
    assert_eq!(spans(&smollm2, "assistant").unwrap(), 2);
    for (role, meant) in [
        ("assistnt", "assistant"),
        ("Assistant", "assistant"),
        ("gpt", "assistant"),
        ("model", "assistant"),
        ("human", "user"),
        (" user", "user"),
        ("sytsem", "system"),
        ("uesr", "user"),
        ("asisstant", "assistant"),
        ("Tools", "tool"),
        ("", ""),
        (" ", ""),
    ] {
        let error = spans(&smollm2, role).unwrap_err();
        assert!(error.to_string().contains(&format!("message 2 has an unknown role, `{role}`")), "{error}");
        let hint = error.hint_text().unwrap();
        assert_eq!(hint.contains(&format!("did you mean `{meant}`?")), !meant.is_empty(), "{role}: {hint}");
    }
    // Nobody's but its own is a role like any.
    for role in ["critic", "context", "observation", "narrator", "seer", "peer", "tom"] {
        assert_eq!(spans(&smollm2, role).unwrap(), 1, "{role}");
    }
    // A template may know others by name. Of another name for the assistant it must say what is learnt.
    let named = "{% for m in messages %}{% if m.role in ['human', \"model\"] %}{% endif %}\
                 {% generation %}{{ m.content }}{% endgeneration %}{% endfor %}";
    let unmarked = named.replace("{% generation %}", "").replace("{% endgeneration %}", "");
    assert_eq!(spans(&template(&unmarked), "human").unwrap(), 1);
    assert!(spans(&template(&unmarked), "model").is_err());
    assert_eq!(spans(&template(named), "model").unwrap(), 3);
    // An empty text is no name.
    assert!(spans(&template("{% for m in messages %}{{ '' ~ m.content }}{% endfor %}"), "").is_err());
}
