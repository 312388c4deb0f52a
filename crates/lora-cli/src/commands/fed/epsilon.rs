//! `lora fed epsilon`

use anyhow::Result;
use lora::Error;
use lora::fed::privacy::{Accountant, Accounting, sigma_for};

use crate::commands::say;

/// What a run would give away, or how much noise a promise takes: before anything is trained
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lora fed epsilon --rows 942 --batch 16 --epochs 3 --epsilon 8    how much noise
  lora fed epsilon --rows 942 --batch 16 --epochs 3 --noise 1.1    how much is given away
  lora fed epsilon --rows 100 --batch 10 --steps 500 --noise 2    of 100 clients, 10 a round")]
pub(crate) struct Args {
    /// Records: rows, or clients
    #[arg(long, value_name = "N")]
    rows: u64,
    /// Expected records a step: each is drawn by its own coin
    #[arg(long, value_name = "N")]
    batch: u64,
    /// Passes over the records
    #[arg(long, default_value_t = 1.0, conflicts_with = "steps")]
    epochs: f64,
    /// Steps, instead of passes
    #[arg(long)]
    steps: Option<u64>,
    /// The chance that the promise does not hold [default: a tenth of one over the records]
    #[arg(long)]
    delta: Option<f64>,
    /// The promise: find the noise for it
    #[arg(long, required_unless_present = "noise", conflicts_with = "noise")]
    epsilon: Option<f64>,
    /// The noise multiplier: the noise's deviation over the clipping norm
    #[arg(long)]
    noise: Option<f64>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.rows == 0 || args.batch == 0 || args.batch > args.rows {
        let what = format!("{} of {} records a step", args.batch, args.rows);
        return Err(Error::usage(what).hint("at least one, and at most all").into());
    }
    if !(args.epochs > 0.0 && args.epochs.is_finite()) {
        return Err(Error::usage(format!("{} passes over the records", args.epochs))
            .hint("more than none")
            .into());
    }
    let rate = args.batch as f64 / args.rows as f64;
    let steps = args.steps.unwrap_or((args.rows.div_ceil(args.batch) as f64 * args.epochs).ceil() as u64);
    let delta = args.delta.unwrap_or(0.1 / args.rows as f64);
    say!("{steps} steps, each of {} in {} records, delta {delta:e}", args.batch, args.rows);
    if delta * args.rows as f64 >= 1.0 {
        say!(
            "warning: delta is one over the records or more, so giving one record away whole would be allowed"
        );
    }
    for (name, accounting) in
        [("loss distributions", Accounting::Pld), ("Renyi divergences", Accounting::Rdp)]
    {
        let noise = match (args.noise, args.epsilon) {
            (Some(noise), _) => noise,
            (None, Some(epsilon)) => {
                sigma_for(accounting, epsilon, delta, rate, steps).map_err(lora::Error::from)?
            }
            (None, None) => return Err(Error::usage("give --epsilon or --noise").into()),
        };
        let mut spent = Accountant::new(accounting);
        spent.steps(noise, rate, steps).map_err(lora::Error::from)?;
        let epsilon = spent.epsilon(delta).map_err(lora::Error::from)?;
        say!("by {name}: noise {noise:.4}, epsilon {epsilon:.4}");
    }
    Ok(())
}
