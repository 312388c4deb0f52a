//! What training shows while it runs: a bar on a terminal, a line now and then elsewhere; every event as JSONL.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use lora::train::{Event, StepReport};
use lora::{Error, Result};

use crate::commands::{aside, shown};

/// The bar and the log.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    /// None after what it cannot write: training goes on.
    log: Option<(PathBuf, BufWriter<File>)>,
    smooth: Option<f64>,
    tokens: usize,
    seconds: f64,
    /// Steps that another process did.
    done: u64,
    /// It was said that texts count for nothing.
    warned: bool,
}

impl Progress {
    /// Writes events to `log`, which is begun anew, or keeps what it tells of the first steps, which are `done`. A log
    /// of an adapter that is still there is `kept` under that name until another takes its place.
    pub(crate) fn new(log: &Path, kept: Option<&Path>, done: Option<u64>) -> Result<Self> {
        let io = |e| Error::io("write the metrics", log, e);
        if let Some(kept) = kept.filter(|kept| log.exists() && !kept.exists()) {
            std::fs::rename(log, kept).map_err(io)?;
        }
        let file = match done {
            Some(done) => shortened(log, done)?,
            None => File::create(log).map_err(io)?,
        };
        Ok(Self {
            bar: None,
            log: Some((log.to_owned(), BufWriter::new(file))),
            smooth: None,
            tokens: 0,
            seconds: 0.0,
            done: done.unwrap_or(0),
            warned: false,
        })
    }

    /// Shows and logs one event.
    pub(crate) fn event(&mut self, event: &Event) -> Result<()> {
        let line = serde_json::to_string(event).map_err(|e| Error::internal(e.to_string()))?;
        if let Some((path, log)) = &mut self.log
            && let Err(e) = writeln!(log, "{line}").and_then(|()| log.flush())
        {
            let warning = format!(
                "warning   {}: cannot write the metrics: {e}; training goes on without",
                path.display()
            );
            self.log = None;
            self.line(&warning);
        }
        match event {
            Event::Step(step) => self.step(step),
            Event::Eval { step, loss } => self.line(&format!("step {step}: held-out loss {loss:.4}")),
            Event::Saved { failed: None, .. } => {}
            Event::Saved { step, failed: Some(why) } => {
                self.line(&format!("warning   step {step} was not saved: {why}"));
            }
        }
        Ok(())
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }

    fn step(&mut self, step: &StepReport) {
        self.tokens += step.tokens;
        self.seconds += step.seconds;
        if step.left_out > 0 && !self.warned {
            self.warned = true;
            let why = step.left_out_for.as_deref().unwrap_or("unknown");
            self.line(&format!(
                "warning   step {}: {} texts count for nothing, the first: {why}; for numbers that are not finite try a lower \
                 learning rate, or with bf16 --dtype f32",
                step.step, step.left_out
            ));
        }
        // Of a private step that drew nobody there is none.
        if step.loss.is_finite() {
            self.smooth = Some(self.smooth.map_or(step.loss, |old| 0.9 * old + 0.1 * step.loss));
        }
        let smooth = self.smooth.unwrap_or(f64::NAN);
        let rate = self.tokens as f64 / self.seconds.max(1e-9);
        let memory = lora::tch_ext::memory::process().map_or(0.0, |m| m.peak as f64 / 1e9);
        let text = format!("loss {:.4} (smoothed {smooth:.4})  {rate:.0} tok/s  {memory:.2} GB", step.loss);
        if std::io::stderr().is_terminal() {
            let bar = self.bar.get_or_insert_with(|| bar(step.steps, self.done));
            bar.set_position(step.step);
            bar.set_message(text);
        } else if step.step == self.done + 1
            || step.step == step.steps
            || step.step.is_multiple_of(step.steps.div_ceil(20))
        {
            let here = step.step.saturating_sub(self.done).max(1);
            let left = self.seconds / here as f64 * (step.steps - step.step) as f64;
            let left = HumanDuration(std::time::Duration::from_secs_f64(left));
            self.line(&format!("step {}/{}  {text}  {left} left", step.step, step.steps));
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(shown(text)),
            None => aside(text),
        }
    }
}

/// The log with what it tells of the first `done` steps alone, replaced whole, to be written on.
fn shortened(log: &Path, done: u64) -> Result<File> {
    let told = match std::fs::read(log) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io("read the metrics", log, e)),
        told => told.unwrap_or_default(),
    };
    // A character may be torn with its line.
    let told = String::from_utf8_lossy(&told);
    let kept = told.lines().filter(|line| step_of(line).is_some_and(|step| step <= done));
    let kept: String = kept.flat_map(|line| [line, "\n"]).collect();
    if kept.len() != told.len() {
        lora::write_file(log, kept)?;
    }
    let file = File::options().append(true).create(true).open(log);
    file.map_err(|e| Error::io("write the metrics", log, e))
}

/// Of a line of the log.
fn step_of(line: &str) -> Option<u64> {
    serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64()
}

fn bar(steps: u64, done: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {eta} left");
    let bar = ProgressBar::new(steps).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_position(done);
    bar.reset_eta();
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was told of steps that are done again goes, and a line that was torn.
    #[test]
    fn a_log_goes_on_behind_the_steps_that_are_done() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("out.metrics.jsonl");
        let line = |step: u64| format!("{{\"event\":\"step\",\"step\":{step}}}\n");
        let lines = |steps: std::ops::RangeInclusive<u64>| steps.map(line).collect::<String>();
        std::fs::write(&log, [lines(1..=9).as_bytes(), b"{\"why\":\"\xc3"].concat()).unwrap();
        for done in [5, 5, 0] {
            let mut file = shortened(&log, done).unwrap();
            assert_eq!(std::fs::read_to_string(&log).unwrap(), lines(1..=done));
            file.write_all(line(done + 1).as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&log).unwrap(), lines(1..=done + 1));
        }
        std::fs::remove_file(&log).unwrap();
        shortened(&log, 5).unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "");
        assert!(shortened(folder.path(), 5).is_err(), "what cannot be read is not replaced");
    }
}
