//! `lora generate`

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;

use anyhow::Result;
use lora::Error;
use lora::model::{Message, Sampling, generate};

use super::{emit, told};
use crate::open::ModelArgs;

/// Answer a prompt, with or without an adapter
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lora generate --model SmolLM2.gguf --prompt 'What is a mortgage?'
  lora generate --model SmolLM2.gguf --adapter my-adapter --prompt 'My card is gone'
  echo 'Once upon a time' | lora generate --model SmolLM2.gguf --raw --temperature 0.8 --seed 7")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// An adapter folder (PEFT's format)
    #[arg(long, value_name = "FOLDER")]
    adapter: Option<PathBuf>,
    /// How the base is kept: lora (as it is) or qlora (4 bits)
    #[arg(long, default_value = "lora")]
    variant: String,
    /// The prompt; without it, standard input
    #[arg(long, allow_hyphen_values = true)]
    prompt: Option<String>,
    /// A system message before it
    #[arg(long, conflicts_with = "raw", allow_hyphen_values = true)]
    system: Option<String>,
    /// Continue the text as it is, without the model's chat template
    #[arg(long)]
    raw: bool,
    /// At most so many tokens
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Choose among so many; 0: all
    #[arg(long, default_value_t = 0)]
    top_k: i64,
    /// Choose among the likeliest whose probabilities reach this sum
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Of the random choice
    #[arg(long, default_value_t = 42)]
    seed: i64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let sampling = args.sampling()?;
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None => read_prompt()?,
    };
    if prompt.trim().is_empty() {
        return Err(Error::usage("the prompt is empty").hint("give --prompt TEXT or standard input").into());
    }
    let opened = args.model.open(args.adapter.as_deref(), &args.variant)?;
    opened.tell_of(args.adapter.as_deref());
    let tokenizer = &opened.tokenizer;
    let ids = match tokenizer.chat_template().filter(|_| !args.raw) {
        Some(template) => {
            let system = args.system.iter().map(|s| Message::new("system", s));
            let messages: Vec<_> = system.chain([Message::new("user", prompt)]).collect();
            tokenizer.encode(&template.render(&messages, true)?, false)?
        }
        None if args.system.is_some() => {
            return Err(Error::usage("--system, and the model has no chat template")
                .hint("put it before the prompt")
                .into());
        }
        None => tokenizer.encode(&prompt, true)?,
    };
    tch::manual_seed(args.seed);
    let mut stream = tokenizer.stream(true);
    let mut failed = None;
    let put = |text: String| {
        let mut out = std::io::stdout();
        told(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
    };
    generate(&opened.model, &ids, args.max_tokens, tokenizer.eos_ids(), sampling, |id| {
        match stream.push(id) {
            Ok(text) => put(text),
            Err(e) => {
                failed = Some(e);
                false
            }
        }
    })?;
    if let Some(e) = failed {
        return Err(e.into());
    }
    put(stream.finish()?);
    emit("");
    Ok(())
}

fn read_prompt() -> Result<String> {
    let mut text = String::new();
    if std::io::stdin().is_terminal() {
        let _ = writeln!(std::io::stderr(), "Type the prompt, then Ctrl-D:");
    }
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|e| Error::io("read the prompt from", "standard input".as_ref(), e))?;
    Ok(text.trim_end_matches('\n').to_owned())
}

impl Args {
    fn sampling(&self) -> Result<Sampling> {
        let (temperature, top_k, top_p) = (self.temperature, self.top_k, self.top_p);
        let sound =
            temperature >= 0.0 && temperature.is_finite() && top_k >= 0 && top_p > 0.0 && top_p <= 1.0;
        if !sound {
            return Err(Error::usage("temperature, top-k or top-p is out of range")
                .hint("temperature and top-k from 0, top-p above 0 and at most 1")
                .into());
        }
        if temperature == 0.0 && (top_k > 0 || top_p < 1.0) {
            return Err(Error::usage(
                "at temperature 0 the likeliest token is taken, whatever top-k or top-p",
            )
            .hint("give a --temperature too, as 1")
            .into());
        }
        Ok(if temperature == 0.0 { Sampling::Greedy } else { Sampling::Random { temperature, top_k, top_p } })
    }
}
