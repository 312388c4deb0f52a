//! Where the SuperLink is: the arguments that `node` and `serve` share.

use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct LinkArgs {
    /// The SuperLink, HOST:PORT
    #[arg(long, value_name = "HOST:PORT", help_heading = "Flower")]
    pub(super) address: String,
    /// Certificates (PEM) that may vouch for it [default: the public ones]
    #[arg(long, value_name = "PEM", help_heading = "Flower")]
    pub(super) roots: Option<PathBuf>,
    /// Without TLS, which is for this machine alone
    #[arg(long, help_heading = "Flower")]
    pub(super) insecure: bool,
}
