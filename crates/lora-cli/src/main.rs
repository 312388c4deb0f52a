//! The `lora` program. One file a verb under `commands/`.

mod commands;
mod open;
mod origin;
mod paths;
mod planning;
mod privacy;
mod profile;
mod progress;
mod rounding;
mod settings;
mod stop;

use std::any::TypeId;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use lora::ErrorKind;

/// Fine-tune language models with LoRA, rsLoRA, DoRA and QLoRA.
#[derive(Parser)]
#[command(name = "lora", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "A first run, with the demo's model and data: cargo xtask demo")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Train(Box<commands::train::Args>),
    Plan(Box<commands::plan::Args>),
    Init(commands::init::Args),
    Eval(commands::eval::Args),
    Generate(commands::generate::Args),
    Merge(commands::merge::Args),
    Quantize(commands::quantize::Args),
    Export(commands::export::Args),
    Fed(commands::fed::Args),
    Inspect(commands::inspect::Args),
    Variants(commands::variants::Args),
    Doctor(commands::doctor::Args),
}

/// An option that takes a number takes a negative one too: its own check says what is wrong with it, where clap would say
/// that there is no option of that name.
fn with_negatives(command: clap::Command) -> clap::Command {
    let numbers = [
        TypeId::of::<f64>(),
        TypeId::of::<i32>(),
        TypeId::of::<i64>(),
        TypeId::of::<u16>(),
        TypeId::of::<u64>(),
        TypeId::of::<usize>(),
    ];
    let allow = |arg: clap::Arg| {
        let is_number = numbers.iter().any(|number| arg.get_value_parser().type_id() == *number);
        arg.allow_negative_numbers(is_number)
    };
    command.mut_args(allow).mut_subcommands(with_negatives)
}

/// Idle threads of libtorch's pool spin for tens of microseconds and then sleep: on a machine with other work to do
/// a step is several times as fast, on an idle one as fast. The pool reads this at load time, so the program starts
/// anew.
#[cfg(unix)]
fn wait_passively() {
    use std::os::unix::process::CommandExt;
    if std::env::var_os("OMP_WAIT_POLICY").is_none()
        && let Ok(program) = std::env::current_exe()
    {
        // Comes back only if it failed; then all is as before.
        let _ = std::process::Command::new(program)
            .args(std::env::args_os().skip(1))
            .env("OMP_WAIT_POLICY", "passive")
            .env("GOMP_SPINCOUNT", "10000")
            .exec();
    }
}

#[cfg(not(unix))]
fn wait_passively() {}

fn main() -> ExitCode {
    wait_passively();
    // Errors come out as text with a hint; a panic is a bug of ours and says so, without a Rust back trace.
    std::panic::set_hook(Box::new(|info| {
        let text = info.to_string();
        let first = text.lines().take(3).collect::<Vec<_>>().join(" ");
        commands::aside(format_args!("error: this is a bug in lora: {first}"));
    }));
    let told = with_negatives(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&told).unwrap_or_else(|e| e.exit());
    let result = std::panic::catch_unwind(|| match cli.verb {
        Verb::Train(args) => commands::train::run(&args),
        Verb::Plan(args) => commands::plan::run(&args),
        Verb::Init(args) => commands::init::run(&args),
        Verb::Eval(args) => commands::eval::run(&args),
        Verb::Generate(args) => commands::generate::run(&args),
        Verb::Merge(args) => commands::merge::run(&args),
        Verb::Quantize(args) => commands::quantize::run(&args),
        Verb::Export(args) => commands::export::run(&args),
        Verb::Fed(args) => commands::fed::run(&args),
        Verb::Inspect(args) => commands::inspect::run(&args),
        Verb::Variants(args) => commands::variants::run(&args),
        Verb::Doctor(args) => commands::doctor::run(&args),
    });
    match result {
        Ok(Ok(())) => commands::all_told().map_or_else(|e| report(&e), |()| ExitCode::SUCCESS),
        Ok(Err(e)) => report(&e),
        Err(_) => ExitCode::from(70),
    }
}

/// The error, its hint, and an exit code by its sort: 2 usage, 3 data, 4 unsupported, 5 input and output, 6 not
/// finite, 1 the rest. A run that was stopped has 128 and its signal.
fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(stopped) = error.downcast_ref::<stop::Stopped>() {
        commands::aside(format_args!("{stopped}"));
        return ExitCode::from(stopped.code());
    }
    let ours = error.downcast_ref::<lora::Error>();
    match ours {
        // It tells its cause in its own words.
        Some(ours) => commands::aside(format_args!("error: {ours}")),
        None => commands::aside(format_args!("error: {error:#}")),
    }
    if let Some(hint) = ours.and_then(lora::Error::hint_text) {
        commands::aside(format_args!("hint: {hint}"));
    }
    ExitCode::from(match ours.map(lora::Error::kind) {
        Some(ErrorKind::Usage) => 2,
        Some(ErrorKind::Data) => 3,
        Some(ErrorKind::Unsupported) => 4,
        Some(ErrorKind::Io) => 5,
        Some(ErrorKind::NonFinite) => 6,
        _ => 1,
    })
}
