//! A coordinator on loopback, and processes that are none.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use synfire_coordinator::{Options, Policy, Server};
use synfire_shared::checkpoint::Digest;
use synfire_shared::protocol::{Identity, JoinRequest, PROTOCOL};
use synfire_shared::storage::Store;
use synfire_shared::token::Token;

pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// For anything that is waited for.
pub const DEADLINE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(250);

/// A folder that is gone when this is dropped.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("synfire-coordinator-{}-{next}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn options(ranks: u32) -> Options {
    Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        token: Token::new(TOKEN, "test").unwrap(),
        tls: None,
        policy: Policy::new(ranks, "0.1.0").unwrap(),
        observer: None,
    }
}

pub fn server(ranks: u32, store: &Store) -> Server {
    Server::start(options(ranks), store.clone(), "checkpoints").unwrap()
}

/// An answer: status, head and body.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// Reads one answer, to the end of its body.
pub fn read(stream: &mut impl Read) -> std::io::Result<Answer> {
    let mut bytes = Vec::new();
    let mut one = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut one)?;
        bytes.push(one[0]);
    }
    let head = String::from_utf8(bytes).unwrap().to_lowercase();
    let length = head.split("content-length: ").nth(1).unwrap();
    let length = length.split('\r').next().unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        body: String::from_utf8(body).unwrap(),
        head,
    })
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Sends bytes as they are and reads the answer.
pub fn raw(address: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = connect(address);
    // A server that has refused may have closed before all of it was written.
    let _ = stream.write_all(request);
    read(&mut stream).unwrap()
}

/// A request with these headers, each ending in a line break.
pub fn ask(address: SocketAddr, line: &str, headers: &str, body: &str) -> Answer {
    let length = body.len();
    let head = format!("{line} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{headers}\r\n");
    raw(address, format!("{head}{body}").as_bytes())
}

pub fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, &format!("GET {path}"), "", "")
}

pub fn bearer() -> String {
    format!("Authorization: Bearer {TOKEN}\r\n")
}

pub fn post(address: SocketAddr, path: &str, body: &str) -> Answer {
    ask(address, &format!("POST {path}"), &bearer(), body)
}

/// A process that is none.
pub struct Fake {
    pub request: JoinRequest,
}

impl Fake {
    pub fn new(number: u32, rank: Option<u32>) -> Self {
        let settings = BTreeMap::from([("run.seed".to_owned(), "1".to_owned())]);
        let port = u16::try_from(9000 + number).unwrap();
        let request = JoinRequest {
            protocol: PROTOCOL,
            version: "0.1.0".into(),
            process: format!("{number:032x}"),
            host: format!("node-{number}"),
            pid: 100 + number,
            rank,
            world: None,
            identity: Identity {
                configuration: Digest::of_settings(&settings),
                settings,
                data: Digest::of(b"data"),
                plan: Digest::of(b"plan"),
                lanes: 4,
                batch: 8,
                folder: None,
            },
            collective: Some(SocketAddr::from(([127, 0, 0, 1], port))),
            metrics: Some(SocketAddr::from(([0, 0, 0, 0], port + 100))),
            left: 0,
        };
        Self { request }
    }

    pub fn process(&self) -> &str {
        &self.request.process
    }

    pub fn join(&self, address: SocketAddr) -> Answer {
        post(
            address,
            "/v1/join",
            &serde_json::to_string(&self.request).unwrap(),
        )
    }

    pub fn heartbeat(&self, address: SocketAddr, generation: u64, update: u64) -> Value {
        let status = json!({
            "phase": "training", "epoch": 1, "batch": 3, "batches_done": 10 + update,
            "batches_in_all": 100, "update": update, "images_per_second": 120.5,
            "loss": 0.25, "slowest_step_seconds": 0.1, "busy_seconds": 0.0,
        });
        let process = self.process();
        let heartbeat = json!({"process": process, "generation": generation, "status": status});
        let answer = post(address, "/v1/heartbeat", &heartbeat.to_string());
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }
}

/// Asks until there is something.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < DEADLINE, "waited too long for {what}");
        std::thread::sleep(PAUSE);
    }
}

/// The number of the generation that these processes form; each then has the rank of its place.
pub fn form(address: SocketAddr, processes: &[&Fake]) -> u64 {
    let mut generation = None;
    for (rank, process) in processes.iter().enumerate() {
        let number = wait_for("a generation", || {
            for process in processes {
                process.join(address);
            }
            let answer = process.join(address).json();
            (answer["answer"] == "start").then(|| {
                assert_eq!(answer["rank"], rank, "{answer}");
                assert_eq!(answer["world"], processes.len(), "{answer}");
                answer["generation"].as_u64().unwrap()
            })
        });
        assert_eq!(*generation.get_or_insert(number), number);
    }
    generation.unwrap()
}

/// The value of a metric as it is written, 0 where it is not there yet.
pub fn metric(address: SocketAddr, name: &str) -> String {
    let text = get(address, "/metrics").body;
    let value = |line: &str| {
        line.strip_prefix(name)?
            .strip_prefix(' ')
            .map(str::to_owned)
    };
    text.lines().find_map(value).unwrap_or_else(|| "0".into())
}

/// How often something was refused.
pub fn refused(address: SocketAddr, reason: &str) -> u32 {
    let name = format!("synfire_coordinator_refusals_total{{reason=\"{reason}\"}}");
    metric(address, &name).parse().unwrap()
}
