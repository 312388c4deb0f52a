//! A Flower deployment on this machine, gone with the value.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::nodes::Node;

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
pub(crate) struct Group(Child);

impl Group {
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        Self(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")))
    }

    pub(crate) fn ended(&mut self) -> bool {
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
    isolation: Isolation,
    runs: usize,
    processes: Vec<Group>,
    superlink: Option<Group>,
    server: Option<Group>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// An example of this crate.
pub(crate) fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "first: cargo build --release -p lora-fed --examples");
    path
}

const CERTIFICATES: &str = include_str!("peer/certificates.py");
const PROJECT: &str = include_str!("peer/pyproject.toml");
const SERVER: &str = include_str!("peer/server.py");
const CLIENT: &str = include_str!("peer/client.py");

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
        let mut flower = Self {
            dir,
            venv,
            address,
            isolation,
            runs: 0,
            processes: Vec::new(),
            superlink: None,
            server: None,
        };
        let made =
            flower.python("python").arg("-c").arg(CERTIFICATES).arg(flower.dir.path()).status().unwrap();
        assert!(made.success(), "no certificates");
        flower.start_superlink();
        flower
    }

    fn start_superlink(&mut self) {
        let (host, port) = self.address.split_once(':').unwrap();
        let mut link = self.python("flower-superlink");
        link.args(["--host", host, "--port", port, "--enable-supernode-auth"]);
        link.arg("--disable-runtime-dependency-installation");
        for (flag, file) in [("certfile", "server.pem"), ("keyfile", "server.key"), ("ca-certfile", "ca.pem")]
        {
            link.arg(format!("--ssl-{flag}")).arg(self.at(file));
        }
        match self.isolation {
            Isolation::Process => {
                link.args(["--isolation", "process", "--superexec-auth-secret-file"]).arg(self.at("secret"))
            }
            // The state on the disk, as a SuperLink in earnest has it.
            Isolation::Subprocess => link.arg("--database").arg(self.at("state.db")),
        };
        self.superlink = Some(Group::start(&mut link, &self.at("superlink.log")));
        let address = self.address.clone();
        wait_for("the SuperLink", Duration::from_secs(60), || TcpStream::connect(&address).is_ok());
    }

    /// Killed, away for so long, and back.
    pub(crate) fn restart_superlink(&mut self, away: Duration) {
        self.superlink = None;
        sleep(away);
        self.start_superlink();
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
