//! Fine-tuning a [`lora_model::Model`]'s adapters: data, batches, optimiser, schedule, loop, evaluation.
//!
//! The trainer knows parameters by name and a loss; which adapter they belong to is no concern of its.

mod arena;
mod batches;
mod data;
mod eval;
mod limit;
mod optim;
mod plan;
mod private;
mod recorder;
mod report;
mod rows;
mod save;
mod schedule;
mod sharing;
mod stop;
mod trainer;

pub use arena::{Arena, Norms};
pub use batches::{Batch, Batches};
pub use data::{DataOptions, Dataset, Long, Sample, read_ids};
pub use eval::{
    Answer, Choices, Classified, Evaluation, MOST_TOKENS, Question, answers, in_one_pass, label_scores,
    labels_of, likeliest, macro_f1, mean_loss, reference, summed_loss,
};
pub use limit::{Work, matmul_rate, required_flops};
pub use optim::{AdamW, AdamWConfig, CUDA_SOURCES};
pub use plan::{Fit, Load, Plan, Planner, Setting};
pub use private::{check_rows, fingerprint, no_dropout, train_privately};
pub use recorder::Recorder;
pub use report::{Event, Outcome, StepReport};
pub use rows::{Conversation, Row, read_rows};
pub use save::SavePoint;
pub use schedule::Schedule;
pub use sharing::may_share;
pub use stop::Stop;
pub use trainer::{TrainConfig, train};
