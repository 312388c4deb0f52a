//! `lora variants`

use anyhow::Result;
use lora::{Part, VARIANTS};

use super::{emit, say};

/// List the methods, and which hole of the formula each fills
#[derive(clap::Args)]
pub(crate) struct Args {
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !args.json {
        say!("W' = top( storage(W) + scaling(alpha, r) * update )\n");
    }
    for v in VARIANTS {
        let hole = match v.part {
            Part::Storage(..) => "storage",
            Part::Update(_) => "update",
            Part::Scaling(_) => "scaling",
            Part::Top(_) => "top",
        };
        if args.json {
            let row = serde_json::json!({ "name": v.name, "hole": hole, "about": v.about, "paper": v.paper,
                "peft_flag": v.flag });
            emit(row);
        } else {
            say!("{:8} {hole:8} {}", v.name, v.about);
            if !v.paper.is_empty() {
                say!("{:8} {:8} {}", "", "", v.paper);
            }
        }
    }
    if !args.json {
        say!("\nJoin them by `+`, at most one a hole: lora train --variant qlora+dora+rslora ...");
    }
    Ok(())
}
