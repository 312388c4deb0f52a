//! The wish that a run may end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Asked, from any thread, a run ends behind the step that it is at. Clones are one wish.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks for it.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether somebody did.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
