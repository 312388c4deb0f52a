//! Runs a template where it can do no harm.
//!
//! minijinja's fuel bounds most of what a template can do, not all: values nested by the hundred thousand
//! overflow a small stack when they are dropped, and the length of a list that is doubled again and again is
//! counted through every half. So a template runs in a thread of its own, with a deep stack and a time limit. Starting
//! one takes longer than most renderings: it waits for the next. A thread cannot be ended from outside: one that passes its
//! limit goes on until the process ends, and another takes its place. A long-lived server that takes templates from strangers
//! should run them in a process of their own.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
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

/// Runs a template and its clones.
#[derive(Debug, Clone, Default)]
pub(super) struct Sandbox {
    idle: Arc<Mutex<Vec<Worker>>>,
}

/// Gives a thread its work; the thread ends with it.
type Worker = mpsc::Sender<Job>;

struct Job {
    env: Environment<'static>,
    context: Value,
    limit: usize,
    answer: mpsc::Sender<Result<Vec<u8>>>,
}

impl Sandbox {
    /// Renders the template of `env`; `size` is the length of what goes in.
    pub(super) fn render(
        &self,
        mut env: Environment<'static>,
        context: Value,
        size: usize,
    ) -> Result<String> {
        let paid = 4 * size as u64;
        env.set_fuel(Some(BASE_FUEL.saturating_add(paid).min(MAX_FUEL)));
        let limit = BASE_OUTPUT.saturating_add(size.saturating_mul(4));
        let (answer, receiver) = mpsc::channel();
        let idle = self.idle().pop();
        let worker = idle.map_or_else(start, Ok)?;
        // Of a thread that has ended there is no answer.
        let _ = worker.send(Job { env, context, limit, answer });
        let result = match receiver.recv_timeout(TIME) {
            Ok(result) => result,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let what = format!("the template runs longer than {} seconds", TIME.as_secs());
                return Err(Error::unsupported(what)
                    .at(NAME)
                    .hint("look for an endless loop in the template"));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let error = Error::unsupported("the template makes the template engine fail").at(NAME);
                return Err(error.hint("correct the template, or choose another"));
            }
        };
        // Only what has answered is free.
        self.idle().push(worker);
        String::from_utf8(result?).map_err(|e| Error::internal(e.to_string()).at(NAME))
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Worker>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn start() -> Result<Worker> {
    let (worker, jobs) = mpsc::channel::<Job>();
    let work = move || jobs.into_iter().for_each(Job::run);
    let thread = std::thread::Builder::new().name(NAME.into()).stack_size(STACK).spawn(work);
    thread.map_err(|e| Error::internal(format!("cannot start a thread: {e}")).at(NAME).because(e))?;
    Ok(worker)
}

impl Job {
    fn run(self) {
        let Self { env, context, limit, answer } = self;
        let mut output = Capped { bytes: Vec::new(), limit };
        let template = env.get_template(NAME);
        let rendered =
            template.and_then(|template| template.render_captured_to(context, &mut output).map(drop));
        let result = rendered.map_err(|e| template_error(&e)).map(|()| output.bytes);
        // The caller may have stopped waiting.
        let _ = answer.send(result);
    }
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use lora_core::ErrorKind;
    use minijinja::context;

    use super::*;

    fn thread_of(sandbox: &Sandbox, source: &'static str) -> Result<String> {
        let mut env = Environment::new();
        env.add_function("thread", || format!("{:?}", std::thread::current().id()));
        env.add_function("fall", || -> String { panic!("a fault of the engine's") });
        env.add_function("sleep", || {
            std::thread::sleep(TIME + Duration::from_secs(1));
            String::new()
        });
        env.add_template(NAME, source).unwrap();
        sandbox.render(env, context! {}, 0)
    }

    /// Renderings have one thread, one after the other, until it falls or does not end.
    #[test]
    fn a_thread_is_used_again() {
        let sandbox = Sandbox::default();
        let thread = || thread_of(&sandbox.clone(), "{{ thread() }}").unwrap();
        let mut last = thread();
        for (source, fault) in [
            ("{{ nothing.at_all }}", "line 1"),
            ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "too long"),
        ] {
            let error = thread_of(&sandbox, source).unwrap_err();
            assert!(error.to_string().contains(fault), "{error}");
            assert_eq!(thread(), last, "{source}");
        }
        for (source, fault) in [("{{ fall() }}", "engine fail"), ("{{ sleep() }}", "5 seconds")] {
            let error = thread_of(&sandbox, source).unwrap_err();
            assert!(error.to_string().contains(fault), "{error}");
            // The next row would fare no better.
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            let next = thread();
            assert_ne!(next, last, "{source}");
            last = next;
        }
    }

    /// And ends with the last of those who may ask it for one.
    #[test]
    fn a_thread_ends_with_its_sandbox() {
        thread_local! {
            static HELD: RefCell<Option<mpsc::Sender<()>>> = const { RefCell::new(None) };
        }
        let (held, end) = mpsc::channel();
        let mut env = Environment::new();
        env.add_function("hold", move || {
            HELD.set(Some(held.clone()));
            String::new()
        });
        env.add_template(NAME, "{{ hold() }}").unwrap();
        let sandbox = Sandbox::default();
        sandbox.clone().render(env, context! {}, 0).unwrap();
        let wait = Duration::from_millis(100);
        assert_eq!(end.recv_timeout(wait), Err(mpsc::RecvTimeoutError::Timeout));
        drop(sandbox);
        assert_eq!(end.recv_timeout(TIME), Err(mpsc::RecvTimeoutError::Disconnected));
    }
}
