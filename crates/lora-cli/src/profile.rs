//! `lora train --profile`: where a step's time and memory go, and how near it comes to what the machine can do.

use lora::model::Model;
use lora::tch_ext::{Spent, memory, profile};
use lora::train::{Outcome, Work, matmul_rate, required_flops};

use crate::commands::say;

/// What is known before the first step.
pub(crate) struct Profile {
    /// Resident before the model was loaded.
    program: u64,
    rate: f64,
}

impl Profile {
    /// Measures the machine. `program`: bytes resident before the model was.
    pub(crate) fn begin(model: &dyn Model, tokens: i64, program: u64) -> Self {
        let rate = matmul_rate(model, tokens.max(1));
        memory::trim();
        memory::reset_peak();
        Self { program, rate }
    }

    /// Runs `work` and tells what each region of it took.
    pub(crate) fn watch<R>(work: impl FnOnce() -> R) -> (R, Vec<Spent>) {
        profile(work)
    }

    /// Prints the tables, of which the first `done` steps took no time here.
    pub(crate) fn print(
        &self,
        model: &dyn Model,
        (outcome, done): (&Outcome, Option<u64>),
        spent: &[Spent],
        planned: Option<u64>,
    ) {
        let steps = outcome.steps.max(1) as f64;
        // What is done already, another process did.
        let here = outcome.steps.saturating_sub(done.unwrap_or(0)).max(1) as f64;
        let whole: f64 = spent.iter().map(|s| s.seconds).sum();
        say!("\ntime      {:.1} ms a step, evaluation included", 1e3 * whole / here);
        for s in spent {
            let (ms, share) = (1e3 * s.seconds / here, 100.0 * s.seconds / whole.max(1e-12));
            say!("  {:24} {ms:9.2} ms {share:6.1} %", s.name);
        }
        let Work { tokens, positions, .. } = outcome.work;
        let best = required_flops(model, &outcome.work) / self.rate;
        say!(
            "limit     the matrix products that {:.0} tokens need{} take {:.1} ms at this machine's {:.0} GFLOP/s: \
             {:.2} of the step's time",
            tokens / steps,
            if positions < tokens {
                format!(", {:.0} of them begun alike,", (tokens - positions) / steps)
            } else {
                String::new()
            },
            1e3 * best / steps,
            self.rate / 1e9,
            best / outcome.seconds
        );
        self.print_memory(planned);
    }

    fn print_memory(&self, planned: Option<u64>) {
        let (Some(process), parts) = (memory::process(), memory::alive_at_peak()) else { return };
        let mb = |bytes: u64| bytes as f64 / 1e6;
        if memory::cpu().is_none() {
            say!("memory    {:.0} MB of this process at the highest point", mb(process.peak));
            return say!(
                "  (whose it was is not known: a limit on addresses, as of `ulimit -v`, keeps the allocator out)"
            );
        }
        say!("memory    {:.0} MB of this process at the highest point; then alive:", mb(process.peak));
        for part in parts.iter().filter(|part| part.bytes >= 50_000) {
            let what = match part.name {
                "layers" => "outputs of layers, for backward",
                "element-wise" | "attention" => "for backward",
                "loss" => "logits of a few rows, and their gradient",
                "optimiser" => "moments",
                "adapters" => "parameters, gradients",
                _ => "",
            };
            let line = format!("  {:24} {:9.1} MB  {what}", part.name, mb(part.bytes));
            say!("{}", line.trim_end());
        }
        say!("  {:24} {:9.1} MB", "program, libraries, data", mb(self.program));
        let sum = self.program + parts.iter().map(|part| part.bytes).sum::<u64>();
        say!("  {:24} {:9.1} MB  {:.2} of what was measured", "sum", mb(sum), mb(sum) / mb(process.peak));
        if let Some(planned) = planned {
            say!("  {:24} {:9.1} MB  {:.2}", "planned", mb(planned), mb(planned) / mb(process.peak));
        }
        if let Some(device) = memory::cuda(0) {
            say!("  {:24} {:9.1} MB at its own highest point", "CUDA device 0", mb(device.peak));
        }
    }
}
