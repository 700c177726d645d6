//! What a store or the network says, in one line that has no secrets.

use std::error::Error;
use std::fmt;
use std::io;

use super::shown;

/// A longer text is cut.
const MAX_CHARS: usize = 600;
/// The beginnings of the names of variables with credentials.
const SERVICES: [&str; 3] = ["AWS_", "AZURE_", "GOOGLE_"];
/// What such a name has in it where its value is a secret.
const SECRETS: [&str; 5] = ["SECRET", "TOKEN", "KEY", "SAS", "PASSWORD"];
/// A shorter value may be part of any word.
const MIN_SECRET_BYTES: usize = 6;

/// What a store or the network says. Of a server's answer it has the code and the message: the rest
/// may repeat what was sent, the session's token among it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    text: String,
    is_refusal: bool,
}

impl Reason {
    /// The text of an error with what caused it.
    pub(super) fn of(error: &(dyn Error + 'static)) -> Self {
        let mut text = error.to_string();
        let mut is_refusal = refuses(error);
        let mut cause = error.source();
        while let Some(error) = cause {
            is_refusal |= refuses(error);
            let more = error.to_string();
            if !text.contains(&more) {
                text.push_str(": ");
                text.push_str(&more);
            }
            cause = error.source();
        }
        Self {
            text: clean(&text, &secrets(std::env::vars_os())),
            is_refusal,
        }
    }

    /// Whether the store says that this must not be, which it will say again.
    pub(super) fn is_refusal(&self) -> bool {
        self.is_refusal
    }
}

/// Whether this cause of an error is a refusal.
fn refuses(error: &(dyn Error + 'static)) -> bool {
    use object_store::Error as Refused;
    let by_store = error.downcast_ref::<Refused>().is_some_and(|error| {
        matches!(
            error,
            Refused::PermissionDenied { .. }
                | Refused::Unauthenticated { .. }
                | Refused::NotSupported { .. }
                | Refused::InvalidPath { .. }
                | Refused::UnknownConfigurationKey { .. }
        )
    });
    let by_system = error.downcast_ref::<io::Error>();
    by_store || by_system.is_some_and(|error| is_forbidden(error.kind()))
}

/// Whether the operating system says that this must not be.
pub(super) fn is_forbidden(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::PermissionDenied
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::InvalidInput
    )
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl Error for Reason {}

/// The values of variables with credentials, longest first, so that none is cut by another.
fn secrets(
    variables: impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
) -> Vec<(String, String)> {
    let mut secrets: Vec<(String, String)> = variables
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, value)| {
            let is_of_a_service = SERVICES.iter().any(|service| name.starts_with(service));
            let is_secret = SECRETS.iter().any(|secret| name.contains(secret));
            let is_public = name.ends_with("_ID") || name.ends_with("_FILE");
            is_of_a_service && is_secret && !is_public && value.len() >= MIN_SECRET_BYTES
        })
        .collect();
    secrets.sort_by_key(|(_, value)| std::cmp::Reverse(value.len()));
    secrets
}

fn clean(text: &str, secrets: &[(String, String)]) -> String {
    let mut text = without_body(text);
    for (name, value) in secrets {
        text = text.replace(value, &format!("[{name}]"));
    }
    // URLs without queries, which may hold signatures.
    let words = text.split_whitespace().map(|word| {
        if word.contains("://") {
            shown(word)
        } else {
            word.to_owned()
        }
    });
    let mut text = words.collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = text.char_indices().nth(MAX_CHARS) {
        text.truncate(end);
        text.push_str(" ...");
    }
    text
}

/// A text with the code and message of the XML in it instead of all of it.
fn without_body(text: &str) -> String {
    let Some((before, body)) = text.split_once('<') else {
        return text.into();
    };
    let field = |name: &str| {
        let (_, value) = body.split_once(&format!("{name}>"))?;
        Some(value.split('<').next().unwrap_or(""))
    };
    let fields = [field("Code"), field("Message")];
    let fields: Vec<&str> = fields.into_iter().flatten().collect();
    format!("{before}{}", fields.join(": "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_s_answer_is_its_code_and_message() {
        let text = "403 Forbidden:\n<?xml version=\"1.0\"?>\n<Error><Code>SignatureDoesNotMatch\
                    </Code><Message>Check your\nkey.</Message><CanonicalRequest>x-amz-security-\
                    token:sesame</CanonicalRequest></Error>";
        let told = clean(text, &[]);
        assert_eq!(
            told,
            "403 Forbidden: SignatureDoesNotMatch: Check your key."
        );
        assert_eq!(clean("503: <html>busy</html>", &[]), "503:");
    }

    #[test]
    fn secrets_and_queries_are_not_told() {
        let variables = [
            ("AWS_SECRET_ACCESS_KEY", "sesame/open"),
            ("AWS_SESSION_TOKEN", "sesame/open/wide"),
            ("AWS_ACCESS_KEY_ID", "PUBLIC1"),
            ("AZURE_STORAGE_SAS_KEY", "abc"),
            ("EDITOR_KEY", "written"),
        ];
        let secrets = secrets(variables.into_iter().map(|(n, v)| (n.into(), v.into())));
        let text = "written to http://u:p@host/a?sig=1: sesame/open/wide PUBLIC1 sesame/open abc";
        assert_eq!(
            clean(text, &secrets),
            "written to http://host/a [AWS_SESSION_TOKEN] PUBLIC1 [AWS_SECRET_ACCESS_KEY] abc"
        );
        assert!(clean(&"ä".repeat(5000), &[]).chars().count() < 700);
    }

    #[test]
    fn causes_are_told_once() {
        let error = std::io::Error::other(std::io::Error::other("refused"));
        assert_eq!(Reason::of(&error).to_string(), "refused");
    }

    #[test]
    fn what_is_forbidden_is_told_from_what_may_pass() {
        let of = |kind| {
            let source = Box::new(io::Error::from(kind));
            let store = "LocalFileSystem";
            Reason::of(&object_store::Error::Generic { store, source }).is_refusal()
        };
        assert!(of(io::ErrorKind::PermissionDenied) && of(io::ErrorKind::NotADirectory));
        assert!(!of(io::ErrorKind::TimedOut) && !of(io::ErrorKind::StorageFull));
        let denied = object_store::Error::PermissionDenied {
            path: "a".into(),
            source: "403".into(),
        };
        assert!(Reason::of(&denied).is_refusal());
    }
}
