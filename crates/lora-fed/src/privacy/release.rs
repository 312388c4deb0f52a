//! One step of differentially private learning over plain numbers: draw, clip, add, noise, charge, release.
//!
//! Whatever trains, trains through this: example by example (DP-SGD) or client by client (DP-FedAvg). The order is
//! fixed by the types: a [`Step`] has its sample and its noise before it sees a gradient, and gives its sum only
//! against a charge on the disk.

use sha2::{Digest, Sha256};

use super::error::{Result, require};
use super::keys::{Secret, StepInputs, StepKey};
use super::lattice::Lattice;
use super::ledger::Ledger;
use super::mechanism::Mechanism;
use super::noise::DiscreteGaussian;
use super::sampling::PoissonSampler;
use super::step::{Step, Sum};

/// What every step of a run has in common. All of it is public.
#[derive(Debug, Clone, PartialEq)]
pub struct ReleaseConfig {
    /// C, the largest L2 norm of one record's contribution, over all trained numbers together.
    pub clip: f64,
    /// The noise multiplier, and the rate with which a record is drawn.
    pub mechanism: Mechanism,
    /// How many records there are: a public number, for it sets how many coins are thrown.
    pub records: usize,
    /// How many numbers are trained.
    pub dimension: usize,
    /// What sums are divided by: a public constant such as the expected batch, never the batch that was drawn.
    pub divisor: f64,
    /// The lattice's bits, from 8 to 30; 20 is a good choice.
    pub bits: u32,
    /// The run's identity: two runs never share one.
    pub run: String,
    /// A fingerprint of the data: of every record, in order.
    pub data: [u8; 32],
    /// A hash of all else that shapes a gradient: model, learning rate, precision. (The numbers above are added to it.)
    pub configuration: [u8; 32],
}

impl ReleaseConfig {
    fn hash(&self) -> [u8; 32] {
        let mut sha = Sha256::new();
        sha.update(self.configuration);
        for number in [self.clip, self.mechanism.sigma(), self.mechanism.q(), self.divisor] {
            sha.update(number.to_bits().to_le_bytes());
        }
        for number in [self.records as u64, self.dimension as u64, u64::from(self.bits)] {
            sha.update(number.to_le_bytes());
        }
        sha.finalize().into()
    }
}

/// A run's source of private sums.
///
/// ```
/// use lora_fed::privacy::{Accounting, Budget, Ledger, Mechanism, Release, ReleaseConfig, Secret, Unit};
/// # fn gradient_of(_: usize) -> Vec<f32> { vec![0.5, -2.0] }
/// let budget = Budget { unit: Unit::Example, epsilon: 8.0, delta: 1e-5, accounting: Accounting::Pld };
/// let ledger = Ledger::in_memory(&budget)?; // a real run keeps it: Ledger::open
/// let mechanism = Mechanism::new(1.0, 0.1)?;
/// let config = ReleaseConfig {
///     clip: 1.0, mechanism, records: 500, dimension: 2, divisor: 50.0, bits: 20,
///     run: "example".into(), data: [0; 32], configuration: [0; 32],
/// };
/// let mut release = Release::new(config, Secret::generate()?, ledger)?;
/// let mut step = release.step(0, b"a hash of weights and optimiser")?;
/// for record in step.drawn().to_vec() {
///     step.add(record, &gradient_of(record), 1.0)?;
/// }
/// let mean = step.release()?;
/// assert_eq!(mean.len(), 2);
/// assert!(release.ledger().spent()? > 0.0);
/// # Ok::<(), lora_fed::privacy::PrivacyError>(())
/// ```
#[derive(Debug)]
pub struct Release {
    pub(super) config: ReleaseConfig,
    configuration: [u8; 32],
    sampler: PoissonSampler,
    pub(super) lattice: Lattice,
    /// None in a run without any protection.
    noise: Option<DiscreteGaussian>,
    pub(super) secret: Secret,
    pub(super) ledger: Ledger,
    /// Where a record is rounded before it is added.
    pub(super) rounded: Vec<i32>,
}

impl Release {
    /// Refuses numbers that make no sense, and noise too small for the lattice (below 1024 of its units).
    pub fn new(config: ReleaseConfig, secret: Secret, ledger: Ledger) -> Result<Self> {
        let mut release = Self::without_noise(config, secret, ledger)?;
        release.noise = Some(release.lattice.noise(release.config.mechanism.sigma())?);
        Ok(release)
    }

    /// No noise and no rounding, for tests: with a huge clip it is plain training. Its ledger says infinite.
    #[doc(hidden)]
    pub fn unprotected(config: ReleaseConfig, secret: Secret) -> Result<Self> {
        let ledger = Ledger::unprotected(&secret);
        Self::without_noise(config, secret, ledger)
    }

    fn without_noise(config: ReleaseConfig, secret: Secret, ledger: Ledger) -> Result<Self> {
        let divisor = config.divisor;
        require(divisor > 0.0 && divisor.is_finite(), "the divisor", divisor, "above 0, and finite")?;
        Ok(Self {
            lattice: Lattice::new(config.clip, config.dimension, config.bits)?,
            sampler: PoissonSampler::new(config.mechanism.q())?,
            configuration: config.hash(),
            config,
            noise: None,
            ledger: ledger.under(&secret),
            secret,
            rounded: Vec::new(),
        })
    }

    /// Draws the sample and the noise of a step, before any data is touched: how long noise takes must not tell what
    /// it is added to. `weights` is a hash of the trainable weights and of the optimiser's state.
    ///
    /// The same step of the same state is a replay: the same sample, the same noise, and no second charge. Refuses a
    /// step that the budget does not allow; nothing was charged then.
    pub fn step(&mut self, step: u64, weights: &[u8]) -> Result<Step<'_>> {
        let (run, data, configuration) = (&self.config.run, &self.config.data, &self.configuration);
        let key = StepKey::new(&StepInputs { run, step, data, configuration, weights });
        self.ledger.allow(&key, self.config.mechanism)?;
        let drawn = self.sampler.draw(self.config.records, &key.randomness(&self.secret, "sample"));
        let sum = match self.noise {
            Some(noise) => {
                let mut sum = vec![0; self.config.dimension];
                noise.fill(&key.randomness(&self.secret, "noise"), &mut sum);
                Sum::Lattice(sum)
            }
            None => Sum::Plain(vec![0.0; self.config.dimension]),
        };
        Ok(Step::new(self, key, drawn, sum))
    }

    /// What was spent.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What all steps have in common.
    pub fn config(&self) -> &ReleaseConfig {
        &self.config
    }
}
