//! A promise of privacy about some rows, and the files that keep it.

use std::path::PathBuf;

use lora_core::{Error, Result, sibling};
use lora_fed::privacy::{
    Accounting, Budget, Ledger, Mechanism, Release, ReleaseConfig, Secret, Unit, sigma_for,
};
use lora_train::{Dataset, fingerprint};
use sha2::{Digest, Sha256};

/// What is promised to whoever wrote one of the rows, and where it is kept.
#[derive(Debug, Clone)]
pub struct Promise {
    /// In nats.
    pub epsilon: f64,
    /// The chance that it does not hold; none: a tenth of one over the rows.
    pub delta: Option<f64>,
    /// The largest norm of one row's gradient.
    pub clip: f64,
    /// All that was ever given away of these rows: a file that outlives the run.
    pub ledger: PathBuf,
}

/// What a promise asks of training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// The noise multiplier.
    pub noise: f64,
    /// The chance of a row to be drawn in a step.
    pub rate: f64,
    /// The promise's, or the usual one.
    pub delta: f64,
}

/// The lattice's bits.
const BITS: u32 = 20;

impl Promise {
    /// The noise with which `steps` steps of `batch` expected rows out of `rows` keep the promise.
    ///
    /// # Errors
    /// [`Error::usage`] for numbers that make no sense, and where no noise is enough.
    pub fn terms(&self, rows: usize, batch: usize, steps: u64) -> Result<Terms> {
        if batch == 0 || batch > rows {
            let what = format!("a batch of {batch} rows cannot be drawn from {rows}");
            return Err(Error::usage(what).hint("use a batch of at most all rows"));
        }
        if !(self.clip > 0.0 && self.clip.is_finite()) {
            return Err(
                Error::usage(format!("the clipping norm is {}", self.clip)).hint("it must be above 0")
            );
        }
        let delta = self.delta.unwrap_or(0.1 / rows as f64);
        if delta * rows as f64 >= 1.0 {
            let what = format!("delta {delta:e} allows giving one of {rows} rows away whole");
            return Err(Error::usage(what).hint("use a delta well below one over the rows"));
        }
        let rate = batch as f64 / rows as f64;
        let noise = sigma_for(Accounting::Pld, self.epsilon, delta, rate, steps)?;
        Ok(Terms { noise, rate, delta })
    }

    /// Opens the ledger, and makes the source of private gradients of a run over rows. `configuration`: whatever else shapes
    /// a gradient, the base model among it; `dimension`: how many numbers train.
    ///
    /// # Errors
    /// Those of the files: a ledger of another promise or in use, a secret that is none.
    pub fn release(
        &self,
        data: &Dataset,
        terms: (usize, Terms),
        dimension: usize,
        run: &str,
        configuration: &[u8],
    ) -> Result<Release> {
        let records = (data.samples.len(), fingerprint(data));
        self.source(Unit::Example, records, terms, (dimension, run, configuration))
    }

    /// The same over clients, whose updates are its gradients.
    ///
    /// # Errors
    /// As [`Promise::release`].
    pub fn release_of_clients(
        &self,
        clients: &[String],
        terms: (usize, Terms),
        dimension: usize,
        configuration: &[u8],
    ) -> Result<Release> {
        let names = Sha256::digest(clients.join("\n")).into();
        self.source(Unit::Client, (clients.len(), names), terms, (dimension, "clients", configuration))
    }

    fn source(
        &self,
        unit: Unit,
        (records, data): (usize, [u8; 32]),
        (batch, terms): (usize, Terms),
        (dimension, run, configuration): (usize, &str, &[u8]),
    ) -> Result<Release> {
        let budget = Budget { unit, epsilon: self.epsilon, delta: terms.delta, accounting: Accounting::Pld };
        let ledger = Ledger::open(&self.ledger, &budget)?;
        let config = ReleaseConfig {
            clip: self.clip,
            mechanism: ledger.settled(Mechanism::new(terms.noise, terms.rate)?),
            records,
            dimension,
            divisor: batch as f64,
            bits: BITS,
            run: run.to_owned(),
            data,
            configuration: Sha256::digest(configuration).into(),
        };
        Ok(Release::new(config, Secret::kept_in(&self.secret_file())?, ledger)?)
    }

    /// Where the noise comes from: whoever reads it can take the noise off.
    pub fn secret_file(&self) -> PathBuf {
        sibling(&self.ledger, "secret")
    }
}
