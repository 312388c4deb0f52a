//! The library's own steps.

use lora_fed::privacy::{Accounting, Budget, Ledger, Mechanism, Release, ReleaseConfig, Secret, Unit};

use super::{CLIP, DELTA, DIMENSION, Setting, gradient, train};

pub(crate) struct Honest {
    setting: Setting,
    release: Release,
}

impl Honest {
    /// With a ledger for all games together, which nobody looks at.
    pub(crate) fn new(setting: Setting) -> Self {
        let budget = Budget { unit: Unit::Example, epsilon: 1e9, delta: DELTA, accounting: Accounting::Rdp };
        Self::with(setting, Ledger::in_memory(&budget).unwrap())
    }

    pub(crate) fn with(setting: Setting, ledger: Ledger) -> Self {
        let config = ReleaseConfig {
            clip: CLIP,
            mechanism: Mechanism::new(setting.sigma, setting.q).unwrap(),
            records: setting.records,
            dimension: DIMENSION,
            divisor: setting.divisor(),
            bits: 16,
            run: "audit".into(),
            data: [0; 32],
            configuration: [0; 32],
        };
        Self { setting, release: Release::new(config, Secret::from_bytes([3; 32]), ledger).unwrap() }
    }

    /// One game. With and without the record are different data, which is told by the hash of the weights here.
    pub(crate) fn run(&mut self, present: bool, run: u64) -> f64 {
        let setting = self.setting;
        train(setting, |step, weights| {
            let mut hash = vec![u8::from(present)];
            hash.extend(run.to_le_bytes());
            weights.iter().for_each(|w| hash.extend(w.to_le_bytes()));
            let mut step_ = self.release.step(step, &hash).unwrap();
            for record in step_.drawn().to_vec() {
                step_.add(record, &gradient(setting, weights, record, step, present), 1.0).unwrap();
            }
            step_.release().unwrap().into_iter().map(f64::from).collect()
        })
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        self.release.ledger()
    }
}
