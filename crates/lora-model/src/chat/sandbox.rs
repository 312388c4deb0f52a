//! Runs a template where it can do no harm.
//!
//! minijinja's fuel bounds most of what a template can do, not all: values nested by the hundred thousand
//! overflow a small stack when they are dropped, and the length of a list that is doubled again and again is
//! counted through every half. So a template runs in a thread of its own, with a deep stack and a time limit. A thread cannot be
//! ended from outside: one that passes its limit goes on until the process ends. A long-lived server that takes
//! templates from strangers should run them in a process of their own.

use std::io;
use std::sync::mpsc;
use std::time::Duration;

use lora_core::{Error, Result};
use minijinja::{Environment, Value};

use super::NAME;
use super::environment::template_error;

/// Address space, not memory: pages are taken as they are touched. `MAX_FUEL` cannot nest deeper than this.
const STACK: usize = 512 << 20;
const MAX_FUEL: u64 = 4_000_000;
/// Steps a rendering may take beyond those that the length of the conversation pays for.
const BASE_FUEL: u64 = 1_000_000;
/// Bytes a rendering may give beyond four times the conversation.
const BASE_OUTPUT: usize = 1 << 20;
const TIME: Duration = Duration::from_secs(5);

/// Renders the template of `env`; `size` is the length of what goes in.
pub(super) fn render(mut env: Environment<'static>, context: Value, size: usize) -> Result<String> {
    let paid = 4 * size as u64;
    env.set_fuel(Some(BASE_FUEL.saturating_add(paid).min(MAX_FUEL)));
    let limit = BASE_OUTPUT.saturating_add(size.saturating_mul(4));
    let (sender, receiver) = mpsc::channel();
    let work = move || {
        let mut output = Capped { bytes: Vec::new(), limit };
        let template = env.get_template(NAME);
        let rendered =
            template.and_then(|template| template.render_captured_to(context, &mut output).map(drop));
        let result = rendered.map_err(|e| template_error(&e)).map(|()| output.bytes);
        // The caller may have stopped waiting.
        let _ = sender.send(result);
    };
    let thread = std::thread::Builder::new().name(NAME.into()).stack_size(STACK).spawn(work);
    thread.map_err(|e| Error::internal(format!("cannot start a thread: {e}")).at(NAME).because(e))?;
    let bytes = match receiver.recv_timeout(TIME) {
        Ok(result) => result?,
        Err(mpsc::RecvTimeoutError::Timeout) => {
            let what = format!("the template runs longer than {} seconds", TIME.as_secs());
            return Err(Error::unsupported(what).at(NAME).hint("look for an endless loop in the template"));
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            let error = Error::data("the template makes the template engine fail").at(NAME);
            return Err(error.hint("correct the template, or choose another"));
        }
    };
    String::from_utf8(bytes).map_err(|e| Error::internal(e.to_string()).at(NAME))
}

/// Collects the output up to a limit.
struct Capped {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Capped {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.len() > self.limit.saturating_sub(self.bytes.len()) {
            return Err(io::Error::other("output limit"));
        }
        self.bytes.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
