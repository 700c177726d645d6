//! Messages to the coordinator over HTTP, with limits of size and time.

use super::ControlError;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Certificate, StatusCode, Url, redirect};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::error::Error as _;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use synfire_shared::protocol::{MAX_ANSWER_BYTES, Refusal, Refused, shortened};
use synfire_shared::token::Token;

/// A longer file of certificates is refused: the system's own has some 200 KiB.
const MAX_CERTIFICATES_BYTES: u64 = 4 << 20;
/// A connection that was not used for so long is not used again: the coordinator closes it after 5 s.
const IDLE: Duration = Duration::from_secs(3);

/// Where the coordinator is, and how to be known there.
#[derive(Clone, Debug)]
pub struct Coordinator {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub url: String,
    /// The token.
    pub token: Token,
    /// A PEM file with the certificates to trust, in place of the system's.
    pub ca: Option<PathBuf>,
}

/// A connection that is made anew where it broke.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    url: Url,
}

/// Why a message has no answer.
#[derive(Debug)]
pub(super) enum CallError {
    /// Nobody answered in time, or with a fault that may pass: trying again may help.
    Unreachable(String),
    /// The token is wrong.
    Token,
    /// The message is refused.
    Refused(Refused),
    /// The answer is none of this protocol.
    Answer(String),
}

impl CallError {
    /// The reason in one line.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Unreachable(reason) | Self::Answer(reason) => reason.clone(),
            Self::Token => "it refuses the token".into(),
            Self::Refused(refused) => refused.reason.clone(),
        }
    }
}

impl Client {
    pub(super) fn new(coordinator: &Coordinator) -> Result<Self, ControlError> {
        let url = checked(&coordinator.url)?;
        let setup = |reason: String| ControlError::Setup { reason };
        let bearer = format!("Bearer {}", coordinator.token.reveal());
        let mut bearer = HeaderValue::from_str(&bearer).map_err(|e| setup(e.to_string()))?;
        bearer.set_sensitive(true);
        let json = HeaderValue::from_static("application/json");
        let headers = HeaderMap::from_iter([(AUTHORIZATION, bearer), (CONTENT_TYPE, json)]);
        let mut http = reqwest::Client::builder()
            .default_headers(headers)
            // The token goes to the coordinator and nobody else.
            .redirect(redirect::Policy::none())
            .pool_idle_timeout(IDLE)
            .no_proxy();
        if let Some(path) = &coordinator.ca {
            http = http.tls_certs_only(certificates(path)?);
        } else if url.scheme() == "http" {
            // No need of the system's certificates, which a small image may not have.
            http = http.tls_certs_only([]);
        }
        let http = http.build().map_err(|error| setup(causes(&error)))?;
        Ok(Self { http, url })
    }

    /// The coordinator's URL, for messages.
    pub(super) fn url(&self) -> String {
        self.url.as_str().trim_end_matches('/').to_owned()
    }

    /// Sends a message; the answer comes within the timeout, or an error.
    pub(super) async fn call<A: DeserializeOwned>(
        &self,
        path: &str,
        message: &impl Serialize,
        timeout: Duration,
    ) -> Result<A, CallError> {
        let mut url = self.url.clone();
        let base = url.path().trim_end_matches('/');
        url.set_path(&format!("{base}{path}"));
        let body = serde_json::to_vec(message).map_err(|e| CallError::Answer(e.to_string()))?;
        let unreachable = |error: reqwest::Error| CallError::Unreachable(causes(&error));
        let request = self.http.post(url).body(body).timeout(timeout);
        let mut answer = request.send().await.map_err(unreachable)?;
        let status = answer.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
            if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
                let reason = format!("it sends more than {MAX_ANSWER_BYTES} bytes");
                return Err(CallError::Answer(reason));
            }
            bytes.extend_from_slice(&chunk);
        }
        understand(status, &bytes)
    }
}

fn understand<A: DeserializeOwned>(status: StatusCode, bytes: &[u8]) -> Result<A, CallError> {
    if status == StatusCode::UNAUTHORIZED {
        return Err(CallError::Token);
    }
    if status.is_success() {
        let read = serde_json::from_slice(bytes);
        return read.map_err(|e| CallError::Answer(format!("its answer cannot be read: {e}")));
    }
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        return Err(CallError::Unreachable(format!("it answers with {status}")));
    }
    match serde_json::from_slice::<Refused>(bytes) {
        Ok(refused) => Err(CallError::Refused(Refused {
            reason: shortened(&refused.reason),
            ..refused
        })),
        Err(_) if status == StatusCode::CONFLICT => Err(CallError::Refused(Refused {
            code: Refusal::Other,
            reason: "it does not say why".into(),
        })),
        Err(_) => Err(CallError::Answer(format!("it answers with {status}"))),
    }
}

/// A URL of a coordinator; one that carries credentials is refused and not repeated.
fn checked(text: &str) -> Result<Url, ControlError> {
    let shown = |url: &Url| {
        let mut url = url.clone();
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.set_query(None);
        url.set_fragment(None);
        url.to_string()
    };
    let refused = |url: String, reason: &str| {
        let reason = reason.to_owned();
        Err(ControlError::Url { url, reason })
    };
    let url = Url::parse(text).ok();
    let url = url.filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
    let Some(url) = url else {
        // What is no such URL may have a password anywhere.
        let has_secret = text.contains(['@', '?', '#']);
        let shown = if has_secret { "URL" } else { text };
        return refused(shown.into(), "it is no URL of a server");
    };
    let has_user = !url.username().is_empty() || url.password().is_some();
    if has_user || url.query().is_some() || url.fragment().is_some() {
        return refused(
            shown(&url),
            "credentials, queries and fragments do not belong there: the token comes from \
             SYNFIRE_TOKEN or a file",
        );
    }
    Ok(url)
}

fn certificates(path: &std::path::Path) -> Result<Vec<Certificate>, ControlError> {
    use std::io::Read as _;
    let failed = |source| ControlError::Certificates {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut pem = Vec::new();
    let mut limited = file.take(MAX_CERTIFICATES_BYTES + 1);
    limited.read_to_end(&mut pem).map_err(failed)?;
    let invalid = |reason: String| failed(io::Error::new(io::ErrorKind::InvalidData, reason));
    if pem.len() as u64 > MAX_CERTIFICATES_BYTES {
        return Err(invalid(format!(
            "it has more than {MAX_CERTIFICATES_BYTES} bytes, the limit"
        )));
    }
    let read = Certificate::from_pem_bundle(&pem);
    let read = read.map_err(|error| invalid(causes(&error)))?;
    if read.is_empty() {
        return Err(invalid("it has no certificate in PEM form".into()));
    }
    Ok(read)
}

/// An error with its causes, in one line. The innermost says most.
fn causes(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".into();
    }
    let mut cause = error.source();
    let mut text = error.to_string();
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    shortened(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_file_of_certificates_is_refused_and_named() {
        let name = format!("synfire-certificates-{}.pem", std::process::id());
        let path = std::env::temp_dir().join(name);
        // What is cut at the limit would still have the certificate at its beginning.
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(MAX_CERTIFICATES_BYTES + 1).unwrap();
        let error = certificates(&path).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(text.contains("synfire-certificates-"), "{text}");
        assert!(text.contains("more than 4194304 bytes"), "{text}");
    }

    #[test]
    fn urls_are_http_and_carry_no_secret() {
        for good in [
            "http://127.0.0.1:9470",
            "https://host:1/",
            "http://[::1]:2/prefix",
        ] {
            assert!(checked(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "host:9470",
            "127.0.0.1:9470",
            "ftp://host",
            "http://",
            "http://user:geheim@host",
            "http://host/?token=geheim",
            "http://host/#geheim",
            "ftp://user:geheim@host",
            "user:geheim@host",
            "http://user:ge heim@ho st",
        ] {
            let error = checked(bad).unwrap_err().to_string();
            assert!(error.contains("http://HOST:PORT"), "{error}");
            assert!(!error.contains("heim"), "{error}");
        }
    }

    #[test]
    fn answers_are_taken_apart_by_status() {
        use synfire_shared::protocol::Done;
        let understand = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            understand::<Done>(status, body.as_bytes())
        };
        assert!(understand(200, "{}").is_ok());
        assert!(matches!(
            understand(200, "<html>"),
            Err(CallError::Answer(_))
        ));
        assert!(matches!(understand(401, ""), Err(CallError::Token)));
        assert!(matches!(
            understand(503, ""),
            Err(CallError::Unreachable(_))
        ));
        assert!(matches!(understand(302, ""), Err(CallError::Answer(_))));
        let refused = understand(409, r#"{"code":"plan","reason":"x"}"#);
        let Err(CallError::Refused(refused)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!((refused.code, &*refused.reason), (Refusal::Plan, "x"));
        let refused = understand(409, "no JSON");
        assert!(matches!(refused, Err(CallError::Refused(_))), "{refused:?}");
    }
}
