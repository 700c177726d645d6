//! A thread that gives the metrics to who asks over HTTP.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use synfire_shared::metrics::{self, Metrics};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};

/// Connections at a time; more of them wait to be accepted.
const MAX_CONNECTIONS: usize = 16;
/// Bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Headers of a request.
const MAX_HEADERS: usize = 64;
/// For the head of a request, from when it may come.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For a whole connection, which is one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// After an accept that failed, say for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why there is no exporter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExporterError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address} for --metrics-addr")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The operating system gives no thread or no event queue.
    #[error("cannot start the thread that serves metrics")]
    Start(#[source] io::Error),
}

/// A thread that answers `GET /metrics`. Dropping it stops the thread and its connections.
#[derive(Debug)]
pub struct Exporter {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Exporter {
    /// Listens on the address; port 0 means any that is free.
    ///
    /// # Errors
    /// If it cannot be listened on: another port, or an address of this machine, is the remedy.
    pub fn start(address: SocketAddr, metrics: Arc<Metrics>) -> Result<Self, ExporterError> {
        let listen = |source| ExporterError::Listen { address, source };
        let listener = std::net::TcpListener::bind(address).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_io().enable_time().build();
        let runtime = runtime.map_err(ExporterError::Start)?;
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener).map_err(ExporterError::Start)?
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let serve = move || {
            // The thread drives the task until it is told to stop.
            runtime.spawn(accept(listener, metrics));
            let _ = runtime.block_on(stopped);
            // Connections end with the runtime.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name("metrics".into()).spawn(serve);
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread.map_err(ExporterError::Start)?),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        // Dropping the sender stops the thread, which waits for nothing.
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, metrics: Arc<Metrics>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let place = place.expect("the semaphore is never closed");
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            connection(stream, metrics).await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, metrics: Arc<Metrics>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), &metrics);
        async { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    // A peer that breaks off or talks nonsense is its own affair. A request's body is never read.
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, served).await;
}

fn answer(method: &Method, path: &str, metrics: &Metrics) -> Response<Full<Bytes>> {
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    let (status, kind, text) = if path != "/metrics" {
        let text = "only /metrics is here\n".into();
        (StatusCode::NOT_FOUND, plain, text)
    } else if method != Method::GET && method != Method::HEAD {
        let text = "only GET and HEAD are answered\n".into();
        (StatusCode::METHOD_NOT_ALLOWED, plain, text)
    } else {
        let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
        (StatusCode::OK, kind, metrics.text())
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    if status == StatusCode::METHOD_NOT_ALLOWED {
        let allowed = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let timeout = Some(Duration::from_secs(20));
        stream.set_read_timeout(timeout).unwrap();
        stream.set_write_timeout(timeout).unwrap();
        // A server that has refused may have closed before all of it was written.
        let _ = stream.write_all(request.as_bytes());
        let mut response = Vec::new();
        let _ = stream.read_to_end(&mut response);
        String::from_utf8(response).unwrap()
    }

    fn exporter() -> Exporter {
        let address = "127.0.0.1:0".parse().unwrap();
        Exporter::start(address, Arc::new(Metrics::new())).unwrap()
    }

    #[test]
    fn only_get_and_head_of_metrics_are_answered() {
        let exporter = exporter();
        let ask = |line: &str| {
            let request = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            ask(exporter.address(), &request)
        };
        let text = ask("GET /metrics");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.contains("content-type: text/plain; version=0.0.4"));
        assert!(text.contains("\nsynfire_images_total 0\n"), "{text}");
        assert!(ask("GET /metrics?x=1").starts_with("HTTP/1.1 200 "));
        assert!(ask("HEAD /metrics").starts_with("HTTP/1.1 200 "));
        assert!(!ask("HEAD /metrics").contains("synfire_"));
        for path in ["/", "/metrics/", "/../etc/passwd", "//metrics"] {
            let text = ask(&format!("GET {path}"));
            assert!(text.starts_with("HTTP/1.1 404 "), "{path}: {text}");
        }
        assert!(ask("POST /metrics").starts_with("HTTP/1.1 405 "));
        assert!(ask("DELETE /metrics").starts_with("HTTP/1.1 405 "));
    }

    #[test]
    fn a_head_that_is_too_large_and_nonsense_are_refused() {
        let exporter = exporter();
        let large = "x".repeat(2 * MAX_HEAD_BYTES);
        let many = "A: b\r\n".repeat(2 * MAX_HEADERS);
        for head in [format!("Large: {large}\r\n"), many, "\0\0\r\n".to_owned()] {
            let request = format!("GET /metrics HTTP/1.1\r\n{head}\r\n");
            let text = ask(exporter.address(), &request);
            assert!(!text.contains("200 OK"), "{text}");
        }
        let close = "GET /metrics HTTP/1.0\r\n\r\n";
        assert!(ask(exporter.address(), close).contains("200 OK"));
    }

    #[test]
    fn it_stops_at_once_even_with_a_silent_peer() {
        let exporter = exporter();
        let address = exporter.address();
        let silent = std::net::TcpStream::connect(address).unwrap();
        let close = "GET /metrics HTTP/1.0\r\n\r\n";
        assert!(ask(address, close).contains("200 OK"));
        drop(exporter);
        drop(silent);
        assert!(std::net::TcpStream::connect(address).is_err());
    }

    #[test]
    fn an_address_in_use_is_an_error_that_names_it() {
        let exporter = exporter();
        let error = Exporter::start(exporter.address(), Arc::new(Metrics::new())).unwrap_err();
        let address = exporter.address().to_string();
        assert!(error.to_string().contains(&address), "{error}");
    }
}
