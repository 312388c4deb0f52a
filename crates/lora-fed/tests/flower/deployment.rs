//! A Flower deployment on this machine, gone with the value.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The virtual environment with flwr, if there is one.
pub(crate) fn venv() -> Option<PathBuf> {
    let found = std::env::var_os("FLWR").map(PathBuf::from);
    if found.is_none() {
        eprintln!("skipped: set FLWR to a virtual environment with flwr 1.41.0");
    }
    found
}

pub(crate) fn wait_for(what: &str, most: Duration, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + most;
    while !done() {
        assert!(Instant::now() < until, "waited {most:?} in vain for {what}");
        sleep(Duration::from_millis(100));
    }
}

/// Processes that end with the test, and all that they started.
struct Group(Child);

impl Group {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        Self(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")))
    }

    fn ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.0.wait();
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Isolation {
    Subprocess,
    Process,
}

pub(crate) struct Deployment {
    dir: tempfile::TempDir,
    venv: PathBuf,
    address: String,
    ports: u32,
    runs: usize,
    processes: Vec<Group>,
    server: Option<Group>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// An example of this crate.
fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "first: cargo build --release -p lora-fed --examples");
    path
}

const CERTIFICATES: &str = r#"
import datetime, ipaddress, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization as s
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

def name(text): return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
def made(subject, key, issuer, signer, ca):
    now = datetime.datetime.now(datetime.timezone.utc)
    b = (x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer)).public_key(key.public_key())
         .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
         .not_valid_after(now + datetime.timedelta(days=2)).add_extension(x509.BasicConstraints(ca, None), True))
    if not ca:
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        b = b.add_extension(x509.SubjectAlternativeName(names), False)
    return b.sign(signer, hashes.SHA256()).public_bytes(s.Encoding.PEM)

folder = sys.argv[1]
for ca in ("ca", "other"):
    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    open(f"{folder}/{ca}.pem", "wb").write(made(ca, root, ca, root, True))
    if ca == "ca":
        open(f"{folder}/server.pem", "wb").write(made("server", leaf, ca, root, False))
        private = leaf.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
        open(f"{folder}/server.key", "wb").write(private)
key = ec.generate_private_key(ec.SECP384R1())
open(f"{folder}/stock.key", "wb").write(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.OpenSSH, s.NoEncryption()))
open(f"{folder}/stock.pub", "wb").write(key.public_key().public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH))
"#;

const PROJECT: &str = r#"
[project]
name = "adder"
version = "1.0.0"
description = "adds"
license = { file = "LICENSE" }
dependencies = []
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "adder.server:app"
clientapp = "adder.client:app"
[tool.flwr.app.config]
num-server-rounds = 1
nodes = 2
out = ""
"#;

const SERVER: &str = r#"
import json
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()

@app.main()
def main(grid, context):
    start = ArrayRecord({"w": Array(np.array([0.5, -1.0, 2.0], np.float32)), "large": Array(np.zeros((3, 1 << 20), np.float32))})
    n = context.run_config["nodes"]
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=1.0, min_train_nodes=n, min_evaluate_nodes=n, min_available_nodes=n)
    result = strategy.start(grid=grid, initial_arrays=start, num_rounds=context.run_config["num-server-rounds"], timeout=180)
    out = Path(context.run_config["out"])
    out.with_suffix(".part").write_text(json.dumps(result.arrays["w"].numpy().astype(float).tolist()))
    out.with_suffix(".part").rename(out)
"#;

const CLIENT: &str = r#"
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    arrays = ArrayRecord({k: Array(v.numpy() + np.float32(0.5)) for k, v in message.content["arrays"].items()})
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 30})}), reply_to=message)

@app.evaluate()
def evaluate(message, context):
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 30})}), reply_to=message)
"#;

impl Deployment {
    pub(crate) fn start(venv: &Path, isolation: Isolation) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["home", "app/adder"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        fs::write(at("app/pyproject.toml"), PROJECT).unwrap();
        fs::write(at("app/LICENSE"), "none").unwrap();
        fs::write(at("app/adder/__init__.py"), "").unwrap();
        fs::write(at("app/adder/server.py"), SERVER).unwrap();
        fs::write(at("app/adder/client.py"), CLIENT).unwrap();
        fs::write(at("secret"), b"0123456789abcdef0123456789abcdef").unwrap();
        fs::write(at("wrong"), b"another").unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let config = format!(
            "[superlink]\ndefault = \"loc\"\n[superlink.loc]\naddress = \"{address}\"\nroot-certificates = \"{}\"\n",
            at("ca.pem").display()
        );
        fs::write(at("home/config.toml"), config).unwrap();
        let venv = venv.to_owned();
        let mut flower = Self { dir, venv, address, ports: 0, runs: 0, processes: Vec::new(), server: None };
        let made =
            flower.python("python").arg("-c").arg(CERTIFICATES).arg(flower.dir.path()).status().unwrap();
        assert!(made.success(), "no certificates");
        let (host, port) = flower.address.split_once(':').unwrap();
        let mut link = flower.python("flower-superlink");
        link.args(["--host", host, "--port", port, "--enable-supernode-auth"]);
        link.arg("--disable-runtime-dependency-installation");
        for (flag, file) in [("certfile", "server.pem"), ("keyfile", "server.key"), ("ca-certfile", "ca.pem")]
        {
            link.arg(format!("--ssl-{flag}")).arg(flower.at(file));
        }
        if isolation == Isolation::Process {
            link.args(["--isolation", "process", "--superexec-auth-secret-file"]).arg(flower.at("secret"));
        }
        let link = Group::start(&mut link, &flower.at("superlink.log"));
        flower.processes.push(link);
        let address = flower.address.clone();
        wait_for("the SuperLink", Duration::from_secs(60), || TcpStream::connect(&address).is_ok());
        flower
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn python(&self, program: &str) -> Command {
        let bin = self.venv.join("bin");
        let mut command = Command::new(bin.join(program));
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", bin.display())).env("FLWR_HOME", self.at("home"));
        command.env("FLWR_TELEMETRY_ENABLED", "0").env("FLWR_DISABLE_UPDATE_CHECK", "1").env("NO_COLOR", "1");
        command
    }

    fn flwr(&self, arguments: &[&str]) -> String {
        let out = self.python("flwr").args(arguments).output().unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "flwr {arguments:?}: {said}");
        said
    }

    /// A node of ours with a key of its own; it does not run yet.
    pub(crate) fn node(&self, name: &str, add: f64, examples: u32) -> Node {
        let key = self.at(&format!("{name}.key"));
        if !key.exists() {
            let out =
                Command::new(example("node")).args(["keys", "--keys", "--key"]).arg(&key).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            fs::write(self.at(&format!("{name}.pub")), out.stdout).unwrap();
        }
        let store = self.at(&format!("{name}.db"));
        let roots = self.at("ca.pem");
        let numbers = [add.to_string(), examples.to_string()];
        Node { name: name.into(), address: self.address.clone(), key, store, roots, numbers, child: None }
    }

    pub(crate) fn register(&self, node: &Node) {
        let public = self.at(&format!("{}.pub", node.name));
        self.flwr(&["supernode", "register", public.to_str().unwrap(), "loc"]);
    }

    pub(crate) fn stock_node(&mut self) {
        self.flwr(&["supernode", "register", self.at("stock.pub").to_str().unwrap(), "loc"]);
        let port = free_port().to_string();
        let mut node = self.python("flower-supernode");
        node.args(["--superlink", &self.address, "--port", &port, "--root-certificates"])
            .arg(self.at("ca.pem"));
        node.arg("--auth-supernode-private-key").arg(self.at("stock.key"));
        let node = Group::start(&mut node, &self.at("stock.log"));
        self.processes.push(node);
        self.ports += 1;
    }

    pub(crate) fn other_ca(&self) -> PathBuf {
        self.at("other.pem")
    }

    pub(crate) fn submit(&mut self, rounds: u32, nodes: u32) {
        self.runs += 1;
        let out = self.at(&format!("result{}.json", self.runs));
        let config = format!("num-server-rounds={rounds} nodes={nodes} out=\"{}\"", out.display());
        self.flwr(&["run", self.at("app").to_str().unwrap(), "loc", "--run-config", &config]);
    }

    pub(crate) fn start_fedavg(&mut self, rounds: u32, nodes: u32) -> Run {
        self.submit(rounds, nodes);
        Run {
            out: self.at(&format!("result{}.json", self.runs)),
            logs: vec![self.at("superlink.log"), self.at("stock.log")],
        }
    }

    pub(crate) fn fedavg(&mut self, rounds: u32, nodes: u32) -> Vec<f64> {
        self.start_fedavg(rounds, nodes).finish()
    }

    fn server(&self, secret: &str) -> Command {
        let mut server = Command::new(example("server"));
        server.args(["--address", &self.address, "--nodes", "2", "--secret"]).arg(self.at(secret));
        server
            .arg("--roots")
            .arg(self.at("ca.pem"))
            .arg("--out")
            .arg(self.at(&format!("result{}.json", self.runs)));
        server.arg("--store").arg(self.at(&format!("app{}.db", self.runs)));
        server
    }

    pub(crate) fn serve(&mut self, flags: &[&str]) {
        self.server = None;
        let log = self.at("server.log");
        self.server = Some(Group::start(self.server("secret").args(flags), &log));
    }

    pub(crate) fn server_refused(&self) -> String {
        let out = self.server("wrong").output().unwrap();
        assert!(!out.status.success());
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    pub(crate) fn server_died(&mut self, most: Duration) -> bool {
        let out = self.at(&format!("result{}.json", self.runs));
        let server = self.server.as_mut().unwrap();
        wait_for("the server app to end", most, || server.ended());
        !out.exists()
    }

    pub(crate) fn served(&self) -> Vec<f64> {
        let out = self.at(&format!("result{}.json", self.runs));
        Run { out, logs: vec![self.at("superlink.log"), self.at("server.log")] }.finish()
    }
}

pub(crate) struct Run {
    out: PathBuf,
    logs: Vec<PathBuf>,
}

impl Run {
    pub(crate) fn is_done(&self) -> bool {
        self.out.exists()
    }

    pub(crate) fn finish(&self) -> Vec<f64> {
        let until = Instant::now() + Duration::from_secs(200);
        while !self.is_done() {
            if Instant::now() > until {
                for log in &self.logs {
                    let text = fs::read_to_string(log).unwrap_or_default();
                    let from = text.len().saturating_sub(6000);
                    eprintln!("--- {}\n{}", log.display(), text.get(from..).unwrap_or(&text));
                }
                panic!("the run gave no result");
            }
            sleep(Duration::from_millis(100));
        }
        sleep(Duration::from_millis(50));
        let text = fs::read_to_string(&self.out).unwrap();
        text.trim_matches(['[', ']', '\n']).split(',').map(|x| x.trim().parse().unwrap()).collect()
    }
}

pub(crate) struct Node {
    name: String,
    address: String,
    key: PathBuf,
    store: PathBuf,
    roots: PathBuf,
    numbers: [String; 2],
    child: Option<Group>,
}

impl Node {
    fn command(&self, roots: &Path) -> Command {
        let mut node = Command::new(example("node"));
        node.args(["--address", &self.address, "--add", &self.numbers[0], "--examples", &self.numbers[1]]);
        node.arg("--key").arg(&self.key).arg("--store").arg(&self.store).arg("--roots").arg(roots);
        node
    }

    pub(crate) fn run(&mut self, flags: &[&str]) {
        let _ = fs::remove_file(self.with(".stop"));
        self.child = None;
        let log = self.with(".err");
        self.child = Some(Group::start(self.command(&self.roots).args(flags), &log));
    }

    fn with(&self, suffix: &str) -> PathBuf {
        PathBuf::from(format!("{}{suffix}", self.store.display()))
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.with(".log")).unwrap_or_default()
    }

    pub(crate) fn forget_log(&self) {
        fs::write(self.with(".log"), "").unwrap();
    }

    /// Ends it politely.
    pub(crate) fn stop(&mut self) {
        fs::write(self.with(".stop"), "").unwrap();
        if let Some(child) = &mut self.child {
            wait_for("a node to leave", Duration::from_secs(20), || child.ended());
        }
        self.child = None;
    }

    pub(crate) fn wait_for_death(&mut self, most: Duration) -> bool {
        let until = Instant::now() + most;
        let child = self.child.as_mut().unwrap();
        while !child.ended() {
            if Instant::now() > until {
                return false;
            }
            sleep(Duration::from_millis(50));
        }
        true
    }

    fn fails(mut command: Command) -> String {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        wait_for("a node to be refused", Duration::from_secs(60), || child.try_wait().unwrap().is_some());
        assert!(!child.wait().unwrap().success());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }

    pub(crate) fn refused(&self, flags: &[&str]) -> String {
        let mut command = self.command(&self.roots);
        command.args(flags);
        Self::fails(command)
    }

    pub(crate) fn refused_with_roots(&self, roots: &Path) -> String {
        Self::fails(self.command(roots))
    }

    pub(crate) fn refused_in_clear(&self) -> String {
        let mut node = Command::new(example("node"));
        node.args(["--address", &self.address, "--insecure", "--key"])
            .arg(&self.key)
            .arg("--store")
            .arg(&self.store);
        Self::fails(node)
    }
}
