//! A folder with a tiny model in it, and the program to run there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use assert_cmd::Command;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// One token a character: 96 of them, as many as the model has.
const TOKENIZER: &str = include_str!("../data/tokenizer.json");
const TEMPLATE: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\
                        {% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}\
                        {% if add_generation_prompt %}<|assistant|>{% endif %}";
const ROWS: &str = r#"{"prompt": "two and two is ", "completion": "four"}
{"prompt": "three and three is ", "completion": "six"}
{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
"#;

/// The goldens; a test binary that runs on another machine is told by `LORA_ROOT`.
fn goldens() -> PathBuf {
    let root = std::env::var_os("LORA_ROOT").map(PathBuf::from);
    let root = root.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    root.join("tests/goldens")
}

/// One thread, and lines of one length.
const QUIET: [(&str, &str); 3] =
    [("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "passive"), ("COLUMNS", "100")];

/// A federation of two clients.
pub(crate) const SIMULATE: &str = "fed simulate --model model --dtype f32 --client a=data.jsonl --client b=data.jsonl --out out --batch-size 2 --rank 2";

/// A temporary folder holding `model/` and `data.jsonl`.
pub(crate) struct Bench(TempDir);

/// How a run ended.
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// The program; in a bundle it lies elsewhere than where it was built.
fn program() -> PathBuf {
    std::env::var_os("CARGO_BIN_EXE_lora").map_or_else(|| env!("CARGO_BIN_EXE_lora").into(), PathBuf::from)
}

impl Bench {
    pub(crate) fn new() -> Self {
        let bench = Self(tempfile::Builder::new().prefix("lora-cli-").tempdir().unwrap());
        bench.copy("smollm/model", "model");
        bench.write("model/tokenizer.json", TOKENIZER);
        bench.write("model/tokenizer_config.json", r#"{"bos_token": "<s>", "eos_token": "</s>"}"#);
        bench.write("model/chat_template.jinja", TEMPLATE);
        bench.write("data.jsonl", ROWS);
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Makes the model's tokenizer one of a sort that llama.cpp has, with the same ids.
    pub(crate) fn byte_level(&self) {
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let mut tokenizer: Value = serde_json::from_str(TOKENIZER).unwrap();
        let vocab: Map<_, _> = tokenizer["model"]["vocab"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(token, id)| (token.replace(' ', "Ġ").replace('\n', "Ċ"), id.clone()))
            .collect();
        tokenizer["model"] = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": []
        });
        tokenizer["normalizer"] = Value::Null;
        tokenizer["pre_tokenizer"] = byte_level.clone();
        tokenizer["decoder"] = byte_level;
        tokenizer["post_processor"] = Value::Null;
        self.write("model/tokenizer.json", tokenizer.to_string());
    }

    /// Copies a flat folder of the goldens.
    pub(crate) fn copy(&self, golden: &str, name: &str) {
        fs::create_dir(self.path(name)).unwrap();
        for entry in fs::read_dir(goldens().join(golden)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), self.path(name).join(entry.file_name())).unwrap();
        }
    }

    /// Replaces the one place where `from` stands in a file by `to`, both of one length.
    pub(crate) fn patch(&self, name: &str, from: &[u8], to: &[u8]) {
        let mut bytes = fs::read(self.path(name)).unwrap();
        assert_eq!(from.len(), to.len());
        let at: Vec<_> = (0..bytes.len() - from.len()).filter(|&i| bytes[i..].starts_with(from)).collect();
        assert_eq!(at.len(), 1, "{from:?} in {name}");
        bytes[at[0]..][..to.len()].copy_from_slice(to);
        self.write(name, bytes);
    }

    /// Every file below the folder, sorted.
    pub(crate) fn files(&self) -> Vec<String> {
        fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                found.push(path.strip_prefix(root).unwrap().display().to_string());
                if path.is_dir() {
                    walk(root, &path, found);
                }
            }
        }
        let mut found = Vec::new();
        walk(self.0.path(), self.0.path(), &mut found);
        found.sort();
        found
    }

    /// Runs the program in the folder; words are split at white space, and `''` is an empty one.
    pub(crate) fn lora(&self, words: &str) -> Run {
        self.run(Command::new(program()), words)
    }

    /// As [`lora`](Self::lora), with files of 32 KiB at most: what a full disk is to the program.
    pub(crate) fn lora_without_room(&self, words: &str) -> Run {
        let mut shell = Command::new("sh");
        // Ignored, the signal becomes an error of `write`, as a full disk is.
        shell.args(["-c", r#"trap '' XFSZ; ulimit -f 64; exec "$0" "$@""#]).arg(program());
        self.run(shell, words)
    }

    /// Starts the program, as [`lora`](Self::lora) runs it, to be killed.
    pub(crate) fn start(&self, words: &str) -> std::process::Child {
        self.start_into(words, Stdio::null())
    }

    /// As [`start`](Self::start), with standard error going elsewhere.
    pub(crate) fn start_into(&self, words: &str, stderr: Stdio) -> std::process::Child {
        let mut command = std::process::Command::new(program());
        command.current_dir(self.0.path()).args(words.split_whitespace()).envs(QUIET);
        command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap()
    }

    /// A file of JSON lines.
    pub(crate) fn lines(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// As [`lora`](Self::lora), with standard output going elsewhere.
    pub(crate) fn lora_into(&self, words: &str, stdout: impl Into<Stdio>) -> Run {
        let mut command = std::process::Command::new(program());
        command.current_dir(self.0.path()).args(words.split_whitespace()).envs(QUIET);
        let output = command.stdin(Stdio::null()).stdout(stdout).output().unwrap();
        Run { code: output.status.code(), out: String::new(), err: String::from_utf8(output.stderr).unwrap() }
    }

    fn run(&self, mut command: Command, words: &str) -> Run {
        let words = words.split_whitespace().map(|w| if w == "''" { "" } else { w });
        command.current_dir(self.0.path()).args(words);
        let output = command.envs(QUIET).write_stdin("").output().unwrap();
        let text = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).unwrap();
            text.replace(&*self.0.path().to_string_lossy(), "[TMP]")
        };
        let run = Run { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
        for bad in ["panicked", "this is a bug", "RUST_BACKTRACE"] {
            assert!(!run.err.contains(bad), "{}", run.err);
        }
        run
    }
}

impl Run {
    /// The output of a run that must succeed.
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.err);
        self.out
    }
}

/// Runs what must end with this code and say all of this.
pub(crate) fn refused(bench: &Bench, words: &str, code: i32, said: &[&str]) {
    let run = bench.lora(words);
    assert_eq!(run.code, Some(code), "{words}: {}{}", run.out, run.err);
    assert!(said.iter().all(|said| run.err.contains(said)), "{words}: {}", run.err);
}
