//! What clients have already of what lies beside the weights.

use super::bytes;
use super::model::Model;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// By client: which making of it, and how many bytes.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Had(BTreeMap<String, (u64, u64)>);

impl Had {
    /// Bytes that the model's next task brings to `client`: of what lies beside what came to it since its last one, or
    /// all of it where it was made anew.
    pub(super) fn comes(&self, client: &str, model: &Model) -> u64 {
        let all = beside(model);
        match self.0.get(client) {
            Some((made, had)) if *made == model.made => all.saturating_sub(*had),
            _ => all,
        }
    }

    /// A client has what the model's task brought.
    pub(super) fn has(&mut self, client: &str, model: &Model) {
        if !model.beside.is_empty() {
            self.0.insert(client.to_owned(), (model.made, beside(model)));
        }
    }
}

fn beside(model: &Model) -> u64 {
    bytes(model.beside.values().flat_map(|(a, b)| [a, b]))
}
