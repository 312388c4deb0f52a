//! Protobuf over HTTP POST, as Flower speaks it since 1.40: the body is the bare message, errors are JSON.

use std::fmt;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use lora_core::{Error, ErrorKind, Result};
use prost::Message;
use serde::Deserialize;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

const CONNECT: Duration = Duration::from_secs(10);
/// For each read and write, and for a whole call: a peer that drips is cut off too.
const STEP: Duration = Duration::from_secs(60);
const CALL: Duration = Duration::from_secs(600);
const IDLE: Duration = Duration::from_secs(3);
/// An error's text is for people.
const ERROR_BODY: u64 = 64 * 1024;
/// A certificate file is small.
const ROOTS: u64 = 1 << 20;
const TRIES: u32 = 5;

/// The SuperLink's code for a run that is over.
pub(crate) const RUN_OVER: i64 = 2007;

/// The most bytes of an answer that carries no object.
pub(crate) const CONTROL: usize = 8 << 20;

/// Why a call gave nothing.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The server said no: its status, Flower's code, its words.
    Refused { status: u16, code: i64, detail: String },
    /// No answer came; another try may bring one.
    Unreachable(String),
    /// TLS did not trust the server, or it us.
    Untrusted(String),
    /// What came is not what was sent; another try may fare better.
    Garbled(String),
    /// An answer that is not what was asked for.
    Malformed(String),
}

impl Fault {
    /// Is another try of any use?
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Garbled(_) => true,
            Self::Refused { status, .. } => matches!(status, 502..=504),
            _ => false,
        }
    }

    /// Whether it may be for what one node sent, or is sent: an answer that cannot be read, or a request over which the server
    /// broke. What else is refused (401, 403, 412, a run that is over) would be whatever it is about.
    pub(crate) fn is_of_one(&self) -> bool {
        match self {
            Self::Malformed(_) => true,
            Self::Refused { status, code, .. } => {
                *code != RUN_OVER && matches!(status, 400 | 404 | 422 | 500)
            }
            _ => false,
        }
    }

    /// Flower's code, or 0.
    pub(crate) fn code(&self) -> i64 {
        if let Self::Refused { code, .. } = self { *code } else { 0 }
    }

    /// The HTTP status of a refusal, or 0.
    pub(crate) fn status(&self) -> u16 {
        if let Self::Refused { status, .. } = self { *status } else { 0 }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { status, code: 0, detail } => write!(f, "refused (HTTP {status}): {detail}"),
            Self::Refused { status, code, detail } => write!(f, "refused (HTTP {status}, {code}): {detail}"),
            Self::Unreachable(what) => write!(f, "no answer: {what}"),
            Self::Untrusted(what) | Self::Garbled(what) => write!(f, "TLS: {what}"),
            Self::Malformed(what) => write!(f, "an answer that is no Flower answer: {what}"),
        }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        let hint = match &fault {
            Fault::Refused { status: 401, .. } => "is the clock right, and the key registered?",
            Fault::Refused { code: 2001, .. } => {
                "register the key with `flwr supernode register`, and do not self-register"
            }
            Fault::Refused { code: 2004, .. } => {
                "register the key with `flwr supernode register`; is another node using it?"
            }
            Fault::Refused { .. } => "see the SuperLink's log",
            Fault::Unreachable(_) => "is the SuperLink running, and the address right?",
            Fault::Untrusted(_) => "give the CA certificate that signed the SuperLink's",
            Fault::Garbled(_) => "does it speak TLS? if it does, somebody between disturbs what is sent",
            Fault::Malformed(_) => "is it a SuperLink of flwr 1.40 or later?",
        };
        let kind = if fault.is_passing() { ErrorKind::Io } else { ErrorKind::Data };
        Error::faults(kind, fault.to_string(), Vec::new()).at("SuperLink").hint(hint)
    }
}

pub(crate) type Answer<T> = std::result::Result<T, Fault>;

/// One server.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    agent: ureq::Agent,
    base: String,
}

impl Client {
    /// `address` is `host:port`. TLS with the system's public roots, or with only those of the file `roots`; plaintext
    /// if `insecure`, and then to this machine only.
    pub(crate) fn new(address: &str, roots: Option<&Path>, insecure: bool) -> Result<Self> {
        let host = host(address)?;
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .https_only(!insecure)
            .max_redirects(0)
            // Before the server drops it (Flower's after 5 s): a request into a dead connection looks lost.
            .max_idle_age(IDLE)
            .max_redirects_will_error(false)
            .user_agent(concat!("lora-fed/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(STEP))
            .timeout_per_write(Some(STEP))
            .timeout_per_call(Some(CALL));
        let scheme = if insecure {
            if !is_loopback(host) {
                return Err(Error::usage(format!("plaintext to {host}, which is another machine"))
                    .hint("use TLS; plaintext is for tests on one machine"));
            }
            if roots.is_some() {
                return Err(Error::usage("a CA certificate, and plaintext").hint("drop one of the two"));
            }
            config = config.proxy(None);
            "http"
        } else {
            if let Some(path) = roots {
                config = config.tls_config(TlsConfig::builder().root_certs(certificates(path)?).build());
            }
            "https"
        };
        Ok(Self { agent: config.build().new_agent(), base: format!("{scheme}://{address}") })
    }

    /// One call; `most` bounds the answer's bytes.
    pub(crate) fn call<T: Message + Default>(
        &self,
        path: &str,
        headers: &[(&str, String)],
        request: &impl Message,
        most: usize,
    ) -> Answer<T> {
        let mut post = self
            .agent
            .post(format!("{}{path}", self.base))
            .header("content-type", "application/protobuf")
            .header("accept", "application/protobuf");
        for (name, value) in headers {
            post = post.header(*name, value);
        }
        let answer = post.send(&request.encode_to_vec()).map_err(fault)?;
        let status = answer.status().as_u16();
        let most = if status == 200 { most as u64 } else { ERROR_BODY };
        let mut body = Vec::new();
        let mut reader = answer.into_body().into_reader().take(most + 1);
        reader.read_to_end(&mut body).map_err(|e| Fault::Unreachable(e.to_string()))?;
        if status != 200 {
            return Err(refused(status, &body));
        }
        if body.len() as u64 > most {
            return Err(Fault::Malformed(format!("more than {most} bytes")));
        }
        T::decode(body.as_slice()).map_err(|e| Fault::Malformed(e.to_string()))
    }
}

/// Calls again while that is of use: for calls whose repetition does no harm.
pub(crate) fn patiently<T>(mut call: impl FnMut() -> Answer<T>) -> Answer<T> {
    let mut wait = 0.25;
    for _ in 1..TRIES {
        match call() {
            Err(fault) if fault.is_passing() => {
                // Not all at once when a server comes back.
                let jitter = f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX);
                sleep(Duration::from_secs_f64(wait * (0.75 + 0.5 * jitter)));
                wait *= 2.0;
            }
            answer => return answer,
        }
    }
    call()
}

/// Of what comes of bytes that were changed on the way, in lower case; the others are about trust.
const GARBLED: [&str; 10] = [
    "corrupt message",
    "cannot decrypt",
    "peer misbehaved",
    "unexpected message",
    "unexpected handshake message",
    "alert: badrecordmac",
    "alert: decodeerror",
    "alert: decrypterror",
    "alert: recordoverflow",
    "alert: unexpectedmessage",
];

fn fault(error: ureq::Error) -> Fault {
    let text = error.to_string();
    let lower = text.to_lowercase();
    let says = |any: &[&str]| any.iter().any(|words| lower.contains(words));
    // As rustls writes them; within a handshake they come as faults of reading.
    match error {
        _ if says(&GARBLED) => Fault::Garbled(text),
        ureq::Error::Tls(_) | ureq::Error::Pem(_) | ureq::Error::Rustls(_) => Fault::Untrusted(text),
        _ if says(&["certificate", "fatal alert"]) => Fault::Untrusted(text),
        ureq::Error::Io(_)
        | ureq::Error::Timeout(_)
        | ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed => Fault::Unreachable(text),
        _ => Fault::Malformed(text),
    }
}

fn refused(status: u16, body: &[u8]) -> Fault {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Told {
        code: i64,
        detail: String,
        extra: String,
    }
    let told: Told = serde_json::from_slice(body).unwrap_or_default();
    let mut detail: String = told.detail.chars().take(500).collect();
    if !told.extra.is_empty() {
        detail.push_str(" - ");
        detail.extend(told.extra.chars().take(500));
    }
    Fault::Refused { status, code: told.code, detail: detail.escape_debug().to_string() }
}

/// The host of `host:port`.
fn host(address: &str) -> Result<&str> {
    let bad = || {
        Error::usage(format!("`{address}` is no address"))
            .hint("give it as host:port, such as fed.example:8000")
    };
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let fits = match inner {
        Some(v6) => v6.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()),
        None => {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        }
    };
    if !fits || port.parse::<u16>().map_or(true, |p| p == 0) {
        return Err(bad());
    }
    Ok(inner.unwrap_or(host))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn certificates(path: &Path) -> Result<RootCerts> {
    let read = |path: &Path| {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(ROOTS).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read(path).map_err(|e| Error::io("read the CA certificates", path, e))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&bytes) {
        match item {
            Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
            Ok(_) => {}
            Err(e) => return Err(Error::data(e.to_string()).at(path.display())),
        }
    }
    if certificates.is_empty() {
        return Err(Error::data("no certificate").at(path.display()).hint("a PEM file is wanted"));
    }
    Ok(RootCerts::from(certificates))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error as Io, ErrorKind as Sort};

    #[test]
    fn a_cut_connection_passes_and_a_wrong_certificate_does_not() {
        let cut = "peer closed connection without sending TLS close_notify";
        for passing in [Io::new(Sort::UnexpectedEof, cut), Io::from(Sort::ConnectionReset)] {
            let fault = fault(ureq::Error::Io(passing));
            assert!(fault.is_passing(), "{fault}");
            assert_eq!(Error::from(fault).kind(), ErrorKind::Io);
        }
        for garbled in ["cannot decrypt peer's message", "received fatal alert: BadRecordMac"] {
            let fault = fault(ureq::Error::Io(Io::new(Sort::InvalidData, garbled)));
            assert!(matches!(fault, Fault::Garbled(_)) && fault.is_passing(), "{fault}");
        }
        for lasting in ["invalid peer certificate: Expired", "received fatal alert: HandshakeFailure"] {
            let fault = fault(ureq::Error::Io(Io::new(Sort::InvalidData, lasting)));
            assert!(matches!(fault, Fault::Untrusted(_)), "{fault}");
            assert_eq!(Error::from(fault).kind(), ErrorKind::Data);
        }
    }
}
