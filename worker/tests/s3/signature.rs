//! AWS signature version 4, as its documentation describes it.

use sha2::{Digest as _, Sha256};

use super::http::{Answer, Request};
use super::{KEY_ID, SECRET, TOKEN};

const BLOCK_BYTES: usize = 64;

/// Why a request is not let in. As the real one does, the answer repeats what was signed.
pub(super) fn refusal(request: &Request) -> Option<Answer> {
    let refused = |code: &str| Some(Answer::error(403, code, "look at your credentials"));
    let Some(authorization) = request.header("authorization") else {
        return refused("AccessDenied");
    };
    let field = |name: &str| {
        let (_, value) = authorization.split_once(&format!("{name}="))?;
        value.split(',').next()
    };
    let (Some(credential), Some(names), Some(signature)) = (
        field("Credential"),
        field("SignedHeaders"),
        field("Signature"),
    ) else {
        return refused("AuthorizationHeaderMalformed");
    };
    let Some((key, scope)) = credential.split_once('/').filter(|(key, _)| *key == KEY_ID) else {
        return refused("InvalidAccessKeyId");
    };
    assert_eq!(key, KEY_ID);
    if request.header("x-amz-security-token") != Some(TOKEN) {
        return refused("InvalidToken");
    }
    let body = hex(&Sha256::digest(&request.body));
    let said = request.header("x-amz-content-sha256").unwrap_or("");
    if said != "UNSIGNED-PAYLOAD" && said != body {
        return Some(Answer::error(
            400,
            "XAmzContentSHA256Mismatch",
            "a torn body",
        ));
    }
    let canonical = canonical(request, names, said);
    if sign(&canonical, scope, request.header("x-amz-date")?) == signature {
        return None;
    }
    let body = format!(
        "<Error><Code>SignatureDoesNotMatch</Code><Message>look at your credentials</Message>\
         <CanonicalRequest>{canonical}</CanonicalRequest></Error>"
    );
    Some(Answer::new(403, body))
}

fn canonical(request: &Request, names: &str, body: &str) -> String {
    let mut pairs: Vec<String> = request
        .query
        .iter()
        .map(|(name, value)| format!("{}={}", encoded(name), encoded(value)))
        .collect();
    pairs.sort();
    let header = |name| [name, ":", request.header(name).unwrap_or(""), "\n"];
    let headers: String = names.split(';').flat_map(header).collect();
    let (method, path, query) = (&request.method, &request.path, pairs.join("&"));
    format!("{method}\n{path}\n{query}\n{headers}\n{names}\n{body}")
}

fn sign(canonical: &str, scope: &str, date: &str) -> String {
    let digest = hex(&Sha256::digest(canonical));
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{digest}");
    let mut key = format!("AWS4{SECRET}").into_bytes();
    for part in scope.split('/') {
        key = hmac(&key, part.as_bytes());
    }
    hex(&hmac(&key, text.as_bytes()))
}

/// RFC 2104 with SHA-256.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut block = [0; BLOCK_BYTES];
    if key.len() > BLOCK_BYTES {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let with = |pad: u8, text: &[u8]| {
        let padded: Vec<u8> = block.iter().map(|byte| byte ^ pad).collect();
        Sha256::new()
            .chain_update(padded)
            .chain_update(text)
            .finalize()
    };
    with(0x5c, &with(0x36, text)).to_vec()
}

fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let encode = |byte: u8| {
        if plain(byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(encode).collect()
}

fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from_digit(u32::from(half), 16).unwrap();
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(digit).collect()
}

#[test]
fn hmac_is_that_of_rfc_4231() {
    assert_eq!(
        hex(&hmac(b"Jefe", b"what do ya want for nothing?")),
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    );
}
