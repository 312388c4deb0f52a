//! A Flower deployment on this machine, gone with the value.

use crate::sh;
use anyhow::{Context, Result, bail};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Where server apps run.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Isolation {
    /// Below the SuperLink: Flower's own.
    Subprocess,
    /// Wherever they like: ours.
    Process,
}

/// A SuperLink and all that was started beside it.
pub(super) struct Deployment {
    dir: PathBuf,
    venv: PathBuf,
    address: String,
    processes: Vec<(String, Group)>,
}

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(900);

impl Deployment {
    /// With TLS and node authentication, by certificates of its own.
    pub(super) fn start(venv: &Path, dir: &Path, isolation: Isolation) -> Result<Self> {
        for folder in ["home", "app/lorafed"] {
            fs::create_dir_all(dir.join(folder)).with_context(|| dir.display().to_string())?;
        }
        let app = sh::root().join("xtask/data/flower");
        for file in
            ["pyproject.toml", "LICENSE", "lorafed/__init__.py", "lorafed/server.py", "lorafed/client.py"]
        {
            fs::copy(app.join(file), dir.join("app").join(file)).with_context(|| file.to_owned())?;
        }
        fs::write(dir.join("secret"), "a secret for tests, of thirty-two")?;
        let port = free_port()?;
        let flower = Self {
            dir: dir.to_owned(),
            venv: venv.to_owned(),
            address: format!("127.0.0.1:{port}"),
            processes: Vec::new(),
        };
        let config = format!(
            "[superlink]\ndefault = \"here\"\n[superlink.here]\naddress = \"{}\"\nroot-certificates = \"{}\"\n",
            flower.address,
            flower.at("ca.pem").display()
        );
        fs::write(flower.at("home/config.toml"), config)?;
        let certificates = sh::root().join("crates/lora-fed/tests/flower/peer/certificates.py");
        sh::run(flower.python("python").arg(certificates).arg(dir))?;
        flower.link(isolation, port)
    }

    fn link(mut self, isolation: Isolation, port: u16) -> Result<Self> {
        let mut link = self.python("flower-superlink");
        link.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--enable-supernode-auth"]);
        link.arg("--disable-runtime-dependency-installation");
        for (flag, file) in [("certfile", "server.pem"), ("keyfile", "server.key"), ("ca-certfile", "ca.pem")]
        {
            link.arg(format!("--ssl-{flag}")).arg(self.at(file));
        }
        if isolation == Isolation::Process {
            link.args(["--isolation", "process", "--superexec-auth-secret-file"]).arg(self.at("secret"));
        }
        self.spawn("superlink", link)?;
        let address = self.address.clone();
        self.wait("the SuperLink", || TcpStream::connect(&address).is_ok())?;
        Ok(self)
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    fn python(&self, program: &str) -> Command {
        let bin = self.venv.join("bin");
        let mut command = Command::new(bin.join(program));
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", bin.display())).env("FLWR_HOME", self.at("home"));
        command.env("FLWR_TELEMETRY_ENABLED", "0").env("FLWR_DISABLE_UPDATE_CHECK", "1").env("NO_COLOR", "1");
        command
    }

    /// Starts a program whose words go to NAME.log.
    pub(super) fn spawn(&mut self, name: &str, mut command: Command) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.at(&format!("{name}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| sh::show(&command))?;
        self.processes.push((name.to_owned(), Group(child)));
        Ok(())
    }

    /// Kills the program of that name where it stands; was it still running?
    pub(super) fn kill(&mut self, name: &str) -> Result<bool> {
        let place = self.processes.iter().position(|(n, _)| n == name);
        let place = place.with_context(|| format!("{name} was never started"))?;
        let (_, mut group) = self.processes.remove(place);
        let ran = group.0.try_wait()?.is_none();
        group.0.kill()?;
        group.0.wait()?;
        Ok(ran)
    }

    /// Makes the SuperLink know the key in NAME.pub.
    pub(super) fn register(&self, name: &str) -> Result<()> {
        let mut flwr = self.python("flwr");
        sh::capture(flwr.args(["supernode", "register"]).arg(self.at(&format!("{name}.pub"))).arg("here"))?;
        Ok(())
    }

    /// A node of Flower's own.
    pub(super) fn stock_node(&mut self) -> Result<()> {
        self.register("stock")?;
        let mut node = self.python("flower-supernode");
        node.args(["--superlink", &self.address, "--port", &free_port()?.to_string()]);
        node.arg("--root-certificates").arg(self.at("ca.pem"));
        node.arg("--auth-supernode-private-key").arg(self.at("stock.key"));
        self.spawn("stock", node)
    }

    /// Starts a run.
    pub(super) fn submit(&self, config: &str) -> Result<()> {
        let mut flwr = self.python("flwr");
        flwr.arg("run").arg(self.at("app")).arg("here");
        if !config.is_empty() {
            flwr.args(["--run-config", config]);
        }
        sh::capture(&mut flwr)?;
        Ok(())
    }

    /// Whether the SuperLink says that a run's server app is done.
    pub(super) fn ended(&self) -> bool {
        let said = fs::read_to_string(self.at("superlink.log")).unwrap_or_default();
        let ended = said.contains("Finished task");
        if ended {
            sleep(Duration::from_secs(1));
        }
        ended
    }

    /// Waits; if it takes too long, says what the others said last.
    pub(super) fn wait(&self, what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while !done() {
            if Instant::now() > until {
                for entry in fs::read_dir(&self.dir)?
                    .flatten()
                    .filter(|e| e.path().extension() == Some("log".as_ref()))
                {
                    let text = fs::read_to_string(entry.path()).unwrap_or_default();
                    let from = text.len().saturating_sub(2000);
                    eprintln!("--- {}\n{}", entry.path().display(), text.get(from..).unwrap_or(&text));
                }
                bail!("waited in vain for {what}");
            }
            sleep(Duration::from_millis(200));
        }
        Ok(())
    }
}

/// What a node says that must not get in.
pub(super) fn refused(what: &str, mut node: Command) -> Result<String> {
    let mut child = node.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let until = Instant::now() + Duration::from_secs(120);
    while child.try_wait()?.is_none() {
        if Instant::now() > until {
            let _ = child.kill();
            bail!("{what} was not refused");
        }
        sleep(Duration::from_millis(100));
    }
    let out = child.wait_with_output()?;
    if out.status.success() {
        bail!("{what} was not refused");
    }
    let said = String::from_utf8_lossy(&out.stderr);
    Ok(said.lines().find(|line| line.starts_with("error")).unwrap_or("(no error)").to_owned())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A process that ends with the value.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // Politely first: a SuperLink ends those that it started.
        let _ = Command::new("kill").arg(self.0.id().to_string()).stderr(Stdio::null()).status();
        for _ in 0..50 {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            sleep(Duration::from_millis(100));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
