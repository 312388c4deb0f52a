//! What a template must know of a conversation that is learnt: what it leaves out, it leaves out without a word.

use lora_core::{Error, Result};
use strsim::osa_distance;

use super::{ChatTemplate, Message};

/// What chat templates in use call those who speak; rows may name others.
const ROLES: [&str; 7] = ["system", "user", "assistant", "tool", "developer", "function", "ipython"];

const HINT: &str =
    "use a model whose chat template knows tools, or write what is to be learnt into `content`";

impl ChatTemplate {
    /// Refuses a role that is another's, misspelt or by another name: many templates write any role, and nothing would be learnt
    /// of an assistant's. One of its own (`critic`, `context`) is whatever the template makes of it.
    pub(super) fn check_roles(&self, messages: &[Message]) -> Result<()> {
        let roles = messages.iter().map(|message| message.role.as_str()).enumerate();
        for (at, role) in roles.filter(|(_, role)| !ROLES.contains(role)) {
            let meant = meant(role);
            let named =
                ['\'', '"'].iter().any(|quote| self.source.contains(&format!("{quote}{role}{quote}")));
            // Another name for the assistant is learnt where the template itself says what is.
            let own = meant.is_none() || named && (self.marked || meant != Some("assistant"));
            if own && !role.trim().is_empty() {
                continue;
            }
            let did = meant.map(|meant| format!("did you mean `{meant}`? ")).unwrap_or_default();
            let hint = format!("{did}chat templates know the roles {}", ROLES.join(", "));
            return Err(Error::data(format!("message {} has an unknown role, `{role}`", at + 1)).hint(hint));
        }
        Ok(())
    }

    /// Refuses a conversation with calls of tools if nothing of them, or of the tools, stands in its rendering, `text`: an empty
    /// answer would be learnt in the place of a call. Tools that nobody calls may stay unsaid.
    pub(super) fn check_tools(&self, messages: &[Message], text: &str) -> Result<()> {
        if self.tools && messages.iter().any(Message::calls_tools) {
            let mut without = self.clone();
            without.env.add_global("tools", ());
            if without.part(messages, false)?.as_deref() == Some(text) {
                return Err(Error::data("the chat template does not write `tools`").hint(HINT));
            }
        }
        for (at, _) in messages.iter().enumerate().filter(|(_, message)| message.calls_tools()) {
            if !self.writes_calls(messages, at, text)? {
                return Err(unwritten(at));
            }
        }
        Ok(())
    }

    /// Whether the calls of a message make a difference to the rendering; a template that fails without them minds them.
    fn writes_calls(&self, messages: &[Message], at: usize, text: &str) -> Result<bool> {
        let mut without = messages.to_vec();
        if let Some(message) = without.get_mut(at) {
            message.other.remove("tool_calls");
        }
        Ok(self.part(&without, false)?.as_deref() != Some(text))
    }

    /// The error of a template that fails for want of the content of message `at`. An empty one helps no message whose calls
    /// are not written.
    pub(super) fn without_content(&self, messages: &[Message], at: usize, error: Error) -> Error {
        let mut given = messages.to_vec();
        given.iter_mut().for_each(|message| message.unsaid = None);
        if given.get(at).is_some_and(Message::calls_tools)
            && let Ok(Some(text)) = self.part(&given, false)
            && let Ok(false) = self.writes_calls(&given, at, &text)
        {
            return unwritten(at);
        }
        error.hint(format!(
            "message {} has no content, and this template cannot do without: give it one (\"\" will do)",
            at + 1
        ))
    }
}

fn unwritten(at: usize) -> Error {
    let what = "the chat template does not write `tool_calls`";
    Error::data(format!("{what}; nothing would be learnt of those of message {}", at + 1)).hint(HINT)
}

/// The role that another name stands for: the same, or nearest to it if at most a third of the letters differ.
fn meant(role: &str) -> Option<&'static str> {
    let role = role.trim().to_lowercase();
    match role.as_str() {
        "gpt" | "chatgpt" | "model" | "bot" | "chatbot" | "ai" => Some("assistant"),
        "human" | "prompter" => Some("user"),
        role => {
            let near = ROLES.into_iter().min_by_key(|known| osa_distance(role, known))?;
            (osa_distance(role, near) <= (role.chars().count() / 3).max(1)).then_some(near)
        }
    }
}
