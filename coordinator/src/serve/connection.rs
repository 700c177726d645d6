//! Who may connect, and for how long.
//!
//! A connection is a stranger's until a request on it shows the token. Strangers have few places and
//! little time, and one request each, so that however many come, the connections of ranks, which are
//! kept open, stay.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower_service::Service as _;

use super::{Shared, Tls, routes};

/// Connections that have not shown the token; more are closed at once.
const MAX_STRANGERS: usize = 64;
/// Connections that have; 64 ranks and their launchers need fewer.
const MAX_KNOWN: usize = 512;
/// Bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Headers of a request.
const MAX_HEADERS: usize = 64;
/// For the TLS handshake, and for the head of a request, from when it may come.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// For a request, its body included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// For a stranger's connection as a whole.
const STRANGER_TIMEOUT: Duration = Duration::from_secs(20);
/// After an accept that failed, say for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The other end of a connection.
pub(super) struct Peer {
    /// Where it is.
    pub(super) ip: IpAddr,
    place: Mutex<Place>,
    known: Arc<Semaphore>,
}

/// What a connection holds of the limits.
enum Place {
    Stranger(#[expect(dead_code, reason = "it is held, not read")] OwnedSemaphorePermit),
    Known(#[expect(dead_code, reason = "it is held, not read")] OwnedSemaphorePermit),
}

impl Peer {
    /// It showed the token. Where there are too many already, it remains a stranger to the limits.
    pub(super) fn is_known_now(&self) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*place, Place::Known(_)) {
            return;
        }
        if let Ok(known) = Arc::clone(&self.known).try_acquire_owned() {
            *place = Place::Known(known);
        }
    }

    pub(super) fn is_known(&self) -> bool {
        let place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*place, Place::Known(_))
    }
}

pub(super) async fn accept(listener: TcpListener, tls: Option<Tls>, shared: Arc<Shared>) {
    let strangers = Arc::new(Semaphore::new(MAX_STRANGERS));
    let known = Arc::new(Semaphore::new(MAX_KNOWN));
    let acceptor = tls.map(|tls| tls.acceptor());
    let router = routes::router(&shared);
    loop {
        let Ok((stream, address)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&strangers).try_acquire_owned() else {
            shared.metrics.refused("connections");
            continue;
        };
        let peer = Arc::new(Peer {
            ip: address.ip(),
            place: Mutex::new(Place::Stranger(place)),
            known: Arc::clone(&known),
        });
        let (acceptor, router) = (acceptor.clone(), router.clone());
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            // Answers are short and waited for.
            let _ = stream.set_nodelay(true);
            match acceptor {
                None => serve(stream, &peer, router).await,
                Some(acceptor) => match handshake(&acceptor, stream).await {
                    Some(stream) => serve(stream, &peer, router).await,
                    None => shared.metrics.refused("tls"),
                },
            }
        });
    }
}

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    let shaken = timeout(HEAD_TIMEOUT, acceptor.accept(stream)).await;
    shaken.ok()?.ok()
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, peer: &Arc<Peer>, router: Router) {
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(Arc::clone(peer));
        let answer = router.clone().call(request.map(Body::new));
        async {
            let late = || routes::refusal(408, "timeout", "the request took too long");
            let answer = timeout(REQUEST_TIMEOUT, answer).await;
            let answer: Response = answer.map_or_else(|_| late(), |Ok(answer)| answer);
            Ok::<_, Infallible>(routes::finished(answer, peer))
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = pin!(served);
    // A peer that breaks off or talks nonsense is its own affair.
    let is_late = timeout(STRANGER_TIMEOUT, served.as_mut()).await.is_err();
    if is_late && peer.is_known() {
        let _ = served.await;
    }
}
