//! Which request means which event, and who may send it.
//!
//! Everything that changes the run or tells more than the page does needs the token. The page, the
//! metrics and the targets do not: browsers and Prometheus read them. They tell hosts, addresses and
//! progress, and no secret.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use hyper::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, REFERRER_POLICY,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{HeaderMap, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use subtle::ConstantTimeEq as _;
use synfire_shared::protocol::{self, JoinRequest, MAX_REQUEST_BYTES, PROTOCOL, Refusal};
use synfire_shared::token::Token;
use tokio::sync::oneshot;

use super::connection::Peer;
use super::{Message, Shared, page, show};
use crate::event::{Event, Reply};

type App = State<Arc<Shared>>;

pub(super) fn router(shared: &Arc<Shared>) -> Router {
    use protocol::path;
    let guard = middleware::from_fn_with_state(Arc::clone(shared), guard);
    let guarded = Router::new()
        .route(path::JOIN, post(join))
        .route(path::HEARTBEAT, post(heartbeat))
        .route(path::CHECKPOINT, post(checkpoint))
        .route(path::LEAVE, post(leave))
        .route(path::DIRECTIVE, post(directive))
        .route(path::STATUS, get(show::status))
        .route_layer(guard);
    let open = Router::new()
        .route("/", get(page::page))
        .route(path::METRICS, get(show::metrics))
        .route(path::TARGETS, get(show::targets));
    let nothing = || async { refusal(404, "route", "there is nothing here: see /") };
    open.merge(guarded)
        .fallback(nothing)
        .method_not_allowed_fallback(|| async { refusal(405, "method", "not with this method") })
        .with_state(Arc::clone(shared))
}

/// Lets in who shows the token. The body of anybody else is not read.
async fn guard(State(shared): App, request: Request, next: Next) -> Response {
    if !shows(request.headers(), &shared.token) {
        shared.metrics.refused("token");
        let mut answer = refusal(401, "token", "show the token: Authorization: Bearer TOKEN");
        let bearer = HeaderValue::from_static("Bearer");
        answer.headers_mut().insert(WWW_AUTHENTICATE, bearer);
        return answer;
    }
    if let Some(peer) = request.extensions().get::<Arc<Peer>>() {
        peer.is_known_now();
    }
    // Only routes that are there come here: few words.
    shared.metrics.requested(request.uri().path());
    next.run(request).await
}

/// Whether a request has the token, in a time that does not tell how much of it is right.
fn shows(headers: &HeaderMap, token: &Token) -> bool {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (all.next(), all.next()) else {
        return false;
    };
    let Some((scheme, shown)) = value.as_bytes().split_at_checked("Bearer ".len()) else {
        return false;
    };
    scheme.eq_ignore_ascii_case(b"Bearer ") && shown.ct_eq(token.reveal().as_bytes()).into()
}

async fn join(State(shared): App, request: Request) -> Response {
    let peer = request.extensions().get::<Arc<Peer>>().map(|peer| peer.ip);
    let body = match body(&shared, request).await {
        Ok(body) => body,
        Err(refused) => return *refused,
    };
    // Another version's request may have another form, and is to be told why it is refused.
    if let Ok(Head { protocol }) = serde_json::from_slice(&body)
        && protocol != PROTOCOL
    {
        let name = Refusal::Protocol.name();
        shared.metrics.refused(name);
        let reason = format!(
            "the worker speaks version {protocol} of the protocol, the coordinator {PROTOCOL}: use \
             the same version of synfire for both"
        );
        return refusal(409, name, &reason);
    }
    let mut request: JoinRequest = match parsed(&shared, &body) {
        Ok(request) => request,
        Err(refused) => return *refused,
    };
    if let Some(ip) = peer {
        // Who listens on all addresses is reached by the one that it came from.
        for address in [&mut request.collective, &mut request.metrics] {
            if let Some(address) = address.as_mut().filter(|a| a.ip().is_unspecified()) {
                address.set_ip(ip);
            }
        }
    }
    ask(&shared, move |id| Event::Join(id, Box::new(request))).await
}

#[derive(serde::Deserialize)]
struct Head {
    protocol: u32,
}

async fn heartbeat(State(shared): App, request: Request) -> Response {
    event(&shared, request, Event::Heartbeat).await
}

async fn checkpoint(State(shared): App, request: Request) -> Response {
    event(&shared, request, Event::Checkpoint).await
}

async fn leave(State(shared): App, request: Request) -> Response {
    event(&shared, request, Event::Leave).await
}

async fn directive(State(shared): App, request: Request) -> Response {
    event(&shared, request, Event::Order).await
}

/// A message that means an event.
async fn event<M: DeserializeOwned + Send + 'static>(
    shared: &Shared,
    request: Request,
    event: fn(u64, M) -> Event,
) -> Response {
    let read = body(shared, request).await;
    match read.and_then(|body| parsed(shared, &body)) {
        Ok(message) => ask(shared, move |id| event(id, message)).await,
        Err(refused) => *refused,
    }
}

async fn body(shared: &Shared, request: Request) -> Result<axum::body::Bytes, Box<Response>> {
    let read = to_bytes(request.into_body(), MAX_REQUEST_BYTES).await;
    read.map_err(|_| {
        shared.metrics.refused("body");
        let reason = format!("the body breaks off, or has more than {MAX_REQUEST_BYTES} bytes");
        Box::new(refusal(413, "body", &reason))
    })
}

fn parsed<M: DeserializeOwned>(shared: &Shared, body: &[u8]) -> Result<M, Box<Response>> {
    serde_json::from_slice(body).map_err(|error| {
        let name = Refusal::Malformed.name();
        shared.metrics.refused(name);
        let reason: String = error.to_string().chars().take(200).collect();
        Box::new(refusal(400, name, &reason))
    })
}

/// Asks the state machine.
async fn ask(shared: &Shared, event: impl FnOnce(u64) -> Event + Send + 'static) -> Response {
    let (reply, answered) = oneshot::channel();
    let event = Box::new(event);
    if shared
        .messages
        .send(Message { event, reply })
        .await
        .is_err()
    {
        return refusal(503, "stopping", "the coordinator is stopping");
    }
    match answered.await {
        Ok(Reply::Join(answer)) => json(200, &answer),
        Ok(Reply::Directive(directive)) => json(200, &directive),
        Ok(Reply::Done(done)) => json(200, &done),
        Ok(Reply::Refused(refused)) => {
            let is_malformed = refused.code == Refusal::Malformed;
            json(if is_malformed { 400 } else { 409 }, &refused)
        }
        Err(_) => refusal(503, "stopping", "the coordinator is stopping"),
    }
}

/// An answer with a reason, in the form of [`protocol::Refused`].
pub(super) fn refusal(status: u16, code: &str, reason: &str) -> Response {
    #[derive(Serialize)]
    struct Body<'a> {
        code: &'a str,
        reason: &'a str,
    }
    json(status, &Body { code, reason })
}

pub(super) fn json(status: u16, value: &impl Serialize) -> Response {
    let text = serde_json::to_vec(value).expect("text keys and numbers are JSON");
    answer(status, "application/json", text)
}

pub(super) fn answer(status: u16, kind: &'static str, body: impl Into<Body>) -> Response {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = StatusCode::from_u16(status).expect("statuses are constants");
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let nowhere = HeaderValue::from_static("no-referrer");
    headers.insert(REFERRER_POLICY, nowhere);
    answer
}

/// An answer as it goes out: strangers have one request for each connection.
pub(super) fn finished(mut answer: Response, peer: &Peer) -> Response {
    if !peer.is_known() {
        let close = HeaderValue::from_static("close");
        answer.headers_mut().insert(CONNECTION, close);
    }
    answer
}
