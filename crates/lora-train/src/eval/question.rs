//! Answers that are generated, and whether they are right.

use lora_core::Result;
use lora_model::{Model, Sampling, Tokenizer, generate_all};
use serde::Serialize;

use super::reference;
use crate::data::template;
use crate::rows::Row;

/// One generated answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// What was given.
    pub prompt: String,
    /// What the data says.
    pub reference: String,
    /// What the model says, without what the chat template writes around a content.
    pub answer: String,
    /// Whether they are equal.
    pub right: bool,
}

/// A row without its answer, to be answered.
#[derive(Debug, Clone)]
pub struct Question {
    prompt: String,
    ids: Vec<i64>,
    limit: usize,
    reference: String,
    /// What the model is to say before the reference, in its place, and behind it: a chat template may write more than that.
    said: [String; 3],
    /// What it is to write before and behind its reasoning, where the row has one or the prompt opens one: it may reason in
    /// other words.
    reasoning: Option<[String; 2]>,
}

impl Question {
    /// The row's, to be answered by at most `max_tokens` tokens but as many as the reference has, with what the chat template
    /// writes around it; none for a row without an answer.
    ///
    /// # Errors
    /// A template that fails.
    pub fn of(tokenizer: &Tokenizer, row: &Row, max_tokens: usize) -> Result<Option<Self>> {
        let (prompt, ids, turn, told, opened) = match row {
            Row::Text(_) => return Ok(None),
            Row::Pair { prompt, completion, .. } => {
                let turn = [String::new(), completion.clone(), String::new()];
                (prompt.clone(), tokenizer.encode(prompt, true)?, turn, None, opened(prompt))
            }
            Row::Chat(chat) => {
                let turn = template(tokenizer, chat)?.last_turn(&chat.messages)?;
                let Some(turn) = turn else { return Ok(None) };
                let asked = chat.messages.iter().nth_back(1).map(|m| m.content.clone()).unwrap_or_default();
                let ids = tokenizer.encode(&turn.prompt, false)?;
                let opened = opened(&turn.prompt);
                (asked, ids, [turn.before, turn.content, turn.behind], turn.reasoning, opened)
            }
        };
        // A reference longer than the limit would be wrong by force. Behind a blank it may take other tokens.
        let whole = turn.concat();
        let (text, after) = (tokenizer.encode(&whole, false)?, tokenizer.encode_after(&whole)?);
        let limit = max_tokens.max(text.len().max(after.len()) + 1);
        let [before, content, behind] = turn.map(|part| shown(tokenizer, &part));
        let mut said = [before?, content?, behind?];
        let mut reference = reference(row).unwrap_or(&said[1]).to_owned();
        let apart = told.is_some();
        let reasoning = match told.or(opened).map(|parts| parts.map(|part| shown(tokenizer, &part))) {
            Some([opening, closing]) => Some([opening?, closing?]),
            None => None,
        };
        // What is not told apart may stand in the row's own answer.
        if let Some(around) = reasoning.as_ref().filter(|_| !apart) {
            for text in [&mut reference, &mut said[1]] {
                if let Some(answer) = reasoned(text, around).map(str::to_owned) {
                    *text = answer;
                }
            }
        }
        Ok(Some(Self { prompt, ids, limit, reference, said, reasoning }))
    }

    /// The answer, in what was generated.
    fn judge(&self, text: &str) -> Answer {
        let [before, content, behind] = &self.said;
        let text = self.reasoning.as_ref().and_then(|around| reasoned(text, around)).unwrap_or(text);
        let answer = within(text, before, behind).to_owned();
        let right = [&self.reference, content].iter().any(|wanted| answer.trim() == wanted.trim());
        Answer { prompt: self.prompt.clone(), reference: self.reference.clone(), answer, right }
    }
}

/// What stands around a reasoning that the prompt opens: to be ended by the model, whatever the row says.
fn opened(prompt: &str) -> Option<[String; 2]> {
    prompt.trim_end().ends_with("<think>").then(|| [String::new(), "</think>".to_owned()])
}

/// A part of a turn as it is read once it is generated, up to the turn's end and without white space around it.
fn shown(tokenizer: &Tokenizer, part: &str) -> Result<String> {
    let ids = tokenizer.encode_after(part)?;
    let ids = ids.split(|id| tokenizer.eos_ids().contains(id)).next().unwrap_or_default();
    Ok(tokenizer.decode(ids, true)?.trim().to_owned())
}

/// What stands behind a reasoning that the text begins with, whatever it says.
fn reasoned<'a>(text: &'a str, [opening, closing]: &[String; 2]) -> Option<&'a str> {
    let reasoning = text.trim_start().strip_prefix(opening.as_str()).filter(|_| !closing.is_empty())?;
    reasoning.split_once(closing.as_str()).map(|(_, answer)| answer)
}

/// The text without what it begins with, and without what it ends with, where it does.
fn within<'a>(text: &'a str, before: &str, behind: &str) -> &'a str {
    // White space goes with what it is around alone: an answer is shown as it was said.
    let begins = text.trim_start().strip_prefix(before).filter(|_| !before.is_empty());
    let text = begins.unwrap_or(text);
    let ends = text.trim_end().strip_suffix(behind).filter(|_| !behind.is_empty());
    ends.unwrap_or(text)
}

/// Generates the answers to these questions, greedily, all at once.
///
/// # Errors
/// A prompt longer than the model's context.
pub fn answers(model: &dyn Model, tokenizer: &Tokenizer, questions: &[&Question]) -> Result<Vec<Answer>> {
    let prompts: Vec<_> = questions.iter().map(|q| (&q.ids[..], q.limit)).collect();
    let texts = generate_all(model, &prompts, tokenizer.eos_ids(), Sampling::Greedy)?;
    let answered =
        |(question, ids): (&&Question, Vec<i64>)| Ok(question.judge(&tokenizer.decode(&ids, true)?));
    questions.iter().zip(texts).map(answered).collect()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use serde_json::{Value, json};

    use super::*;
    use crate::{Conversation, labels_of};

    fn data(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../lora-model/tests/data").join(name)
    }

    fn with_template(template: &str) -> Tokenizer {
        let dir = tempfile::tempdir().unwrap();
        Tokenizer::open(&data("text/smollm.gguf")).unwrap().save(dir.path()).unwrap();
        std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
        Tokenizer::open(dir.path()).unwrap()
    }

    fn qwen3_template() -> String {
        std::fs::read_to_string(data("templates/qwen3.jinja")).unwrap()
    }

    fn qwen3() -> Tokenizer {
        with_template(&qwen3_template())
    }

    /// A conversation that ends with this turn of the assistant's, but for its role.
    fn row(mut last: Value) -> Row {
        last["role"] = "assistant".into();
        let messages = json!([{"role": "user", "content": "Rain in Ulm?"}, last]);
        let messages = serde_json::from_value(messages).unwrap();
        Row::Chat(Conversation { messages, ..Conversation::default() })
    }

    /// What is said beside it is not the answer without it, and is no label.
    #[test]
    fn a_call_is_part_of_an_answer() {
        let tokenizer = qwen3();
        let calls = json!([{"function": {"name": "weather", "arguments": {"city": "Ulm"}}}]);
        let call = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm\"}}\n</tool_call>";
        for (content, said) in [(Value::Null, ""), (json!("Let me check"), "Let me check\n")] {
            let row = row(json!({"content": content, "tool_calls": calls}));
            let question = Question::of(&tokenizer, &row, 1).unwrap().unwrap();
            let whole = format!("<think>\n\n</think>\n\n{said}{call}");
            assert!(question.limit > tokenizer.encode(&whole, false).unwrap().len());
            let other = whole.replace("Ulm", "Bonn");
            for (text, right) in [
                ("", false),
                ("<think>\n\n</think>\n\n", false),
                ("Let me check", false),
                ("<think>\n\n</think>\n\nLet me check", false),
                (other.as_str(), false),
                (whole.as_str(), true),
            ] {
                let answer = question.judge(text);
                assert_eq!(answer.right, right, "{answer:?}");
            }
            assert_eq!(reference(&row), None);
            assert_eq!(labels_of(&[row], 2).unwrap(), [""; 0]);
        }
    }

    #[test]
    fn an_answer_may_be_reasoned_in_other_words() {
        let tokenizer = qwen3();
        let row = row(json!({"content": "No.", "reasoning_content": "Ulm is dry"}));
        let question = Question::of(&tokenizer, &row, 1).unwrap().unwrap();
        for (text, answer, right) in [
            ("<think>\nUlm is dry\n</think>\n\nNo.", "\n\nNo.", true),
            (" <think>\nNo cloud there.\n</think>\n\nNo.\n", "\n\nNo.\n", true),
            ("<think></think>No.", "No.", true),
            ("No.", "No.", true),
            ("<think>\nUlm is dry\n</think>\n\nYes.", "\n\nYes.", false),
            // What is not ended is no answer.
            ("<think>\nNo.", "<think>\nNo.", false),
            ("No cloud.</think>No.", "No cloud.</think>No.", false),
        ] {
            let judged = question.judge(text);
            assert_eq!((judged.answer.as_str(), judged.right), (answer, right), "{text:?}");
        }
        // What was trained not to reason is not right to.
        let row = self::row(json!({"content": "No."}));
        let question = Question::of(&tokenizer, &row, 1).unwrap().unwrap();
        assert!(question.judge("<think>\n\n</think>\n\nNo.").right);
        assert!(!question.judge("<think>\nUlm is dry\n</think>\n\nNo.").right);
    }

    /// DeepSeek-R1's template leaves the reasoning of a turn out, Qwen3-Thinking's writes it, if it is there.
    #[test]
    fn a_reasoning_that_the_prompt_opens_is_no_part_of_an_answer() {
        let r1 = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content.split('</think>')[-1] }}\
                  <|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}";
        let [free, opening] = ["'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>\\n' }}"];
        assert_eq!(qwen3_template().matches(free).count(), 1);
        let thinking = qwen3_template().replace(free, opening);
        let pair = |completion: &str| Row::Pair {
            prompt: "Rain in Ulm?<think>\n".into(),
            completion: completion.into(),
            end: String::new(),
        };
        for (tokenizer, row) in [
            (with_template(r1), row(json!({"content": "No."}))),
            (with_template(r1), row(json!({"content": "<think>\nUlm is dry\n</think>\n\nNo."}))),
            (with_template(&thinking), row(json!({"content": "No."}))),
            (with_template(&thinking), row(json!({"content": "No.", "reasoning_content": "Ulm is dry"}))),
            (qwen3(), pair("No.")),
            (qwen3(), pair("Ulm is dry\n</think>\n\nNo.")),
        ] {
            let question = Question::of(&tokenizer, &row, 1).unwrap().unwrap();
            for (text, right) in [
                ("\n</think>\n\nNo.", true),
                ("No cloud there.\n</think>\n\nNo.\n", true),
                ("No cloud there.\n</think>\n\nYes.", false),
                // What is not ended is no answer.
                ("No cloud there.\n\nNo.", false),
            ] {
                let judged = question.judge(text);
                assert_eq!(judged.right, right, "{row:?}: {judged:?}");
                assert_eq!(judged.reference.trim(), "No.", "{row:?}");
            }
        }
    }

    #[test]
    fn an_answer_stands_within_what_its_template_writes() {
        for (text, before, behind, answer) in [
            ("[] yes", "[]", "", " yes"),
            (" [] yes\n", "[]", "", " yes\n"),
            ("yes (end) ", "", "(end)", "yes "),
            ("[]yes(end)", "[]", "(end)", "yes"),
            // As it was said.
            (" yes ", "", "", " yes "),
            (" yes ", "[]", "(end)", " yes "),
            ("[]", "[]", "", ""),
        ] {
            assert_eq!(within(text, before, behind), answer, "{text:?}");
        }
    }
}
