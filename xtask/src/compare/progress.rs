//! Runs being done: those that are done already are found, the others are run, some at once, and told of.

use super::gather::Ended;
use super::jobs::Job;
use super::outcome::Failure;
use super::run::Settings;
use super::runner::Runner;
use serde_json::Value;
use std::cell::Cell;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is shared by those who run.
pub(crate) struct Progress<'a> {
    runner: &'a Runner,
    jobs: u32,
    only_found: bool,
    /// By when all must have ended.
    until: Option<Instant>,
    left: Mutex<Left>,
}

struct Left {
    runs: usize,
    /// Seconds, and runs that took them.
    spent: (f64, u32),
    longest: Duration,
}

impl<'a> Progress<'a> {
    /// `runs` are all of the plan; `time`: what they may take from now on.
    pub(crate) fn new(
        runner: &'a Runner,
        jobs: u32,
        only_found: bool,
        runs: usize,
        time: Option<Duration>,
    ) -> Self {
        let left = Mutex::new(Left { runs, spent: (0.0, 0), longest: Duration::ZERO });
        let until = time.and_then(|time| Instant::now().checked_add(time));
        Self { runner, jobs, only_found, until, left }
    }

    /// Whether a run that begins now would end too late, if it takes as long as the longest so far.
    fn too_late(&self) -> bool {
        let longest = locked(&self.left).longest;
        self.until.is_some_and(|until| Instant::now() + longest > until)
    }

    /// What came of each job, in their order: of an earlier time, or of now.
    pub(crate) fn work(&self, jobs: &[Job]) -> Vec<Ended> {
        // A peer's run stays behind the one that it repeats.
        let mut groups: Vec<Vec<(usize, &Job)>> = Vec::new();
        for (at, job) in jobs.iter().enumerate() {
            match groups.last_mut().filter(|_| job.ours.is_some()) {
                Some(group) => group.push((at, job)),
                None => groups.push(vec![(at, job)]),
            }
        }
        let queue = Mutex::new(groups.into_iter());
        let ended = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..self.jobs {
                scope.spawn(|| {
                    loop {
                        let Some(group) = locked(&queue).next() else { break };
                        for (at, job) in group {
                            let one = self.one(job);
                            locked(&ended).extend(one.map(|one| (at, one)));
                        }
                    }
                });
            }
        });
        let mut ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
        ended.sort_by_key(|(at, _)| *at);
        ended.into_iter().map(|(_, one)| one).collect()
    }

    /// None: it is not there, and will not begin.
    fn one(&self, job: &Job) -> Option<Ended> {
        let Job { settings, ours } = job;
        // Not while another comparison is waited for, which tells nothing of how long a run takes.
        let begun = Cell::new(None::<Instant>);
        let begins = || {
            begun.set(Some(Instant::now()));
            !self.too_late()
        };
        let outcome = match self.runner.known(settings, self.only_found) {
            Some(known) => known,
            None if self.only_found || self.too_late() => return None,
            None => {
                self.runner.run(settings, ours.as_ref(), begins).map_err(|e| Failure::of(&e)).transpose()?
            }
        };
        self.tell(settings, &outcome, begun.get().map(|begun| begun.elapsed()));
        let dir = self.runner.dir(settings);
        Some(Ended { settings: settings.clone(), outcome: outcome.map(|found| (found, dir)) })
    }

    /// Counts a run that ended, and says what came of it if it was done now.
    fn tell(&self, settings: &Settings, outcome: &Result<Value, Failure>, took: Option<Duration>) {
        let mut left = locked(&self.left);
        left.runs -= 1;
        let Some(took) = took else { return };
        let seconds = took.as_secs_f64();
        let said = match outcome {
            Ok(found) => score(found),
            Err(failure) => format!("FAILED: {failure}"),
        };
        left.spent = (left.spent.0 + seconds, left.spent.1 + 1);
        left.longest = left.longest.max(took);
        let minutes = left.runs as f64 * left.spent.0 / f64::from(left.spent.1) / f64::from(self.jobs) / 60.0;
        eprintln!("{:60} {said}  ({seconds:.0} s; {} left, {minutes:.0} min)", settings.title(), left.runs);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn score(found: &Value) -> String {
    let number = |path: &str| found.pointer(path).and_then(Value::as_f64);
    let accuracy =
        number("/eval/labels/accuracy").map_or(String::new(), |a| format!("{:.1} % right, ", 100.0 * a));
    format!("{accuracy}loss {:.4}", number("/eval/loss").unwrap_or(f64::NAN))
}
