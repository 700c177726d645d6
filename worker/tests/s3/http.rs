//! Requests and answers on a connection.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::TcpStream;

use super::BUCKET;

const MAX_HEAD_BYTES: usize = 1 << 16;

pub(super) struct Request {
    pub(super) method: String,
    /// As it was sent.
    pub(super) path: String,
    /// Decoded.
    pub(super) query: BTreeMap<String, String>,
    /// By names in lower case.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
    /// Decoded, without the bucket; empty for the bucket itself.
    pub(super) key: String,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// The next request; nothing where the connection ends or what comes is none.
pub(super) fn read(connection: &mut TcpStream) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
        assert!(
            head.len() < MAX_HEAD_BYTES,
            "a head of {} bytes",
            head.len()
        );
    }
    let head = String::from_utf8(head).ok()?;
    let mut lines = head.trim_end().split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?);
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let len = headers
        .get("content-length")
        .map_or(0, |len| len.parse().unwrap());
    let mut body = vec![0; len];
    connection.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (
                decoded(&name.replace('+', " ")),
                decoded(&value.replace('+', " ")),
            )
        });
    let key = decoded(path);
    let key = key
        .strip_prefix(&format!("/{BUCKET}"))?
        .trim_start_matches('/');
    Some(Request {
        method,
        path: path.into(),
        query: query.collect(),
        key: key.into(),
        headers,
        body,
    })
}

fn decoded(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
            let digits = std::str::from_utf8(&digits).unwrap();
            plain.push(u8::from_str_radix(digits, 16).unwrap());
        } else {
            plain.push(byte);
        }
    }
    String::from_utf8(plain).unwrap()
}

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let headers = Vec::new();
        let body = body.into();
        Self {
            status,
            headers,
            body,
        }
    }

    pub(super) fn error(status: u16, code: &str, message: &str) -> Self {
        let xml = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
        Self::new(status, xml)
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Writes; of a torn body the first half.
    pub(super) fn write(
        &self,
        connection: &mut TcpStream,
        request: &Request,
        is_torn: bool,
    ) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} As it is\r\n", self.status);
        for (name, value) in &self.headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        if self.status != 204 {
            let _ = write!(head, "Content-Length: {}\r\n", self.body.len());
        }
        head += "\r\n";
        connection.write_all(head.as_bytes())?;
        if request.method != "HEAD" {
            let len = if is_torn {
                self.body.len() / 2
            } else {
                self.body.len()
            };
            connection.write_all(&self.body[..len])?;
        }
        connection.flush()
    }
}
