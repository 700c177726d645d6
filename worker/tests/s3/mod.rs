//! A small S3-compatible server on loopback, in memory, for tests: whole and conditional puts, range
//! reads, pages of lists, uploads in pieces, deletes; signatures (version 4) are checked. It can
//! fail on purpose, and hold requests back.
//!
//! # Layout
//!
//! - this file: the server, its faults and what a test may look at or alter.
//! - `hold`: requests that are held back.
//! - `http`: requests and answers on a connection.
//! - `signature`: who may ask.
//! - `objects`: what is asked for.
#![allow(
    clippy::unwrap_used,
    reason = "a helper that fails fails the test that called it"
)]

mod hold;
mod http;
mod objects;
mod signature;

pub(crate) use hold::{Hold, When};
use http::{Answer, Request};
use objects::Objects;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

pub(crate) const BUCKET: &str = "bucket";
/// Made up; what starts with "sesame" must be seen nowhere.
pub(crate) const KEY_ID: &str = "AKIDLOOPBACK";
pub(crate) const SECRET: &str = "sesame/secret+of/the+tests/0123456789";
pub(crate) const TOKEN: &str = "sesame-token-of-the-tests-9876543210";

/// A way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An error before anything is done.
    Status(u16),
    /// All is done, but the connection ends before the answer.
    LostAnswer,
    /// The answer's body ends in its middle.
    TornBody,
    /// No answer for so long that nobody waits for it.
    Hang,
}

/// Of a request's method, key and number: whether it fails.
type Plan = Box<dyn FnMut(&str, &str, u64) -> Option<Fault> + Send>;

struct Shared {
    objects: Mutex<Objects>,
    plan: Mutex<Plan>,
    holds: Mutex<Vec<Arc<Hold>>>,
    requests: AtomicU64,
    faults: AtomicU64,
    is_down: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

/// The server; it ends when this is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepts: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            objects: Mutex::default(),
            plan: Mutex::new(Box::new(|_, _, _| None)),
            holds: Mutex::default(),
            requests: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            is_down: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let accepts = Some(accept(listener, Arc::clone(&shared)));
        Self {
            address,
            shared,
            accepts,
        }
    }

    /// What a command needs to find the server and be let in.
    pub(crate) fn environment(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("AWS_") || name.to_lowercase().ends_with("_proxy") {
                command.env_remove(name);
            }
        }
        command
            .env("AWS_ENDPOINT", format!("http://{}", self.address))
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("AWS_SESSION_TOKEN", TOKEN);
    }

    /// From now on requests fail as the plan says.
    pub(crate) fn fail(&self, plan: impl FnMut(&str, &str, u64) -> Option<Fault> + Send + 'static) {
        *self.shared.plan.lock().unwrap() = Box::new(plan);
    }

    /// Holds the first request back that comes from now on with such a method and key.
    pub(crate) fn hold(
        &self,
        when: When,
        is_it: impl Fn(&str, &str) -> bool + Send + Sync + 'static,
    ) -> Arc<Hold> {
        let hold = Arc::new(Hold::new(when, is_it));
        self.shared.holds.lock().unwrap().push(Arc::clone(&hold));
        hold
    }

    /// The keys of all objects that were put whole, one by one.
    pub(crate) fn put_keys(&self) -> Vec<String> {
        self.shared.objects.lock().unwrap().put_keys.clone()
    }

    /// How many requests have failed on purpose.
    pub(crate) fn faults(&self) -> u64 {
        self.shared.faults.load(Ordering::Relaxed)
    }

    /// Ends all connections and takes no more.
    pub(crate) fn go_down(&mut self) {
        {
            // What is being answered is done before, or not at all.
            let _objects = self.shared.objects.lock().unwrap();
            self.shared.is_down.store(true, Ordering::SeqCst);
        }
        for connection in self.shared.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        // It waits in accept.
        let _ = TcpStream::connect(self.address);
        if let Some(accepts) = self.accepts.take() {
            accepts.join().unwrap();
        }
    }

    /// Takes connections again, at the same address.
    pub(crate) fn come_back(&mut self) {
        self.shared.is_down.store(false, Ordering::SeqCst);
        let listener = TcpListener::bind(self.address).unwrap();
        self.accepts = Some(accept(listener, Arc::clone(&self.shared)));
    }

    /// The objects below a prefix, by the rest of their keys.
    pub(crate) fn contents(&self, prefix: &str) -> BTreeMap<String, Vec<u8>> {
        self.shared.objects.lock().unwrap().contents(prefix)
    }

    /// Takes an object away; whether it was there.
    pub(crate) fn remove(&self, key: &str) -> bool {
        self.shared.objects.lock().unwrap().remove(key)
    }

    /// Writes over an object, as nobody should.
    pub(crate) fn alter(&self, key: &str, bytes: &[u8]) {
        self.shared.objects.lock().unwrap().alter(key, bytes);
    }

    /// Objects that went up in pieces, ever.
    pub(crate) fn uploads(&self) -> u64 {
        self.shared.objects.lock().unwrap().uploads_completed
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.go_down();
    }
}

fn accept(listener: TcpListener, shared: Arc<Shared>) -> JoinHandle<()> {
    thread::spawn(move || {
        for connection in listener.incoming() {
            if shared.is_down.load(Ordering::SeqCst) {
                break;
            }
            let Ok(connection) = connection else {
                continue;
            };
            let known = connection.try_clone().unwrap();
            shared.connections.lock().unwrap().push(known);
            let shared = Arc::clone(&shared);
            thread::spawn(move || serve(connection, &shared));
        }
    })
}

/// Answers until the other side has no more requests, or a fault ends the connection.
fn serve(mut connection: TcpStream, shared: &Shared) {
    let _ = connection.set_nodelay(true);
    while let Some(request) = http::read(&mut connection) {
        if shared.is_down.load(Ordering::SeqCst) {
            break;
        }
        let number = shared.requests.fetch_add(1, Ordering::Relaxed);
        let fault = (shared.plan.lock().unwrap())(&request.method, &request.key, number);
        shared
            .faults
            .fetch_add(u64::from(fault.is_some()), Ordering::Relaxed);
        let holds = shared.holds.lock().unwrap().clone();
        let hold = holds
            .iter()
            .find(|hold| hold.takes(&request.method, &request.key));
        let waits = |when| hold.is_none_or(|hold| hold.when != when || hold.wait());
        if !waits(When::Before) {
            break;
        }
        let answer = |request: &Request| {
            signature::refusal(request).or_else(|| {
                let mut objects = shared.objects.lock().unwrap();
                let is_up = !shared.is_down.load(Ordering::SeqCst);
                is_up.then(|| objects.answer(request))
            })
        };
        let answer = match fault {
            None | Some(Fault::TornBody) => {
                let Some(answer) = answer(&request) else {
                    break;
                };
                answer
            }
            Some(Fault::Status(status)) => Answer::error(status, "InternalError", "on purpose"),
            Some(Fault::LostAnswer) => {
                answer(&request);
                break;
            }
            Some(Fault::Hang) => {
                thread::sleep(Duration::from_secs(30));
                break;
            }
        };
        if !waits(When::Behind) {
            break;
        }
        let is_torn = fault == Some(Fault::TornBody);
        if answer.write(&mut connection, &request, is_torn).is_err() || is_torn {
            break;
        }
    }
    let _ = connection.shutdown(std::net::Shutdown::Both);
}
