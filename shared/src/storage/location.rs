//! URLs to stores; credentials from the environment alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{ClientConfigKey, ObjectStore, RetryConfig};
use url::Url;

use super::{Reason, StorageError, Store};

/// The variable with the seconds for which a failing request is tried again.
pub const DEADLINE_VARIABLE: &str = "SYNFIRE_STORE_DEADLINE_SECONDS";
/// For how long a failing request is tried again, unless the environment says otherwise.
const RETRY_DEADLINE: Duration = Duration::from_mins(3);
/// Enough for the pauses between them, which grow to 15 s, to fill the longest deadline.
const MAX_RETRIES: usize = 300;
/// How long one attempt may take: a shard of 64 MiB at 1 MiB/s.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(90);
/// More is not waited for anything.
const MAX_SECONDS: u64 = 3600;

/// Whole seconds that a variable of the environment gives, or else the default.
///
/// # Errors
///
/// [`StorageError::Environment`] if it is set, not empty, and no whole number from 1 to 3600.
pub fn seconds_from_environment(
    variable: &'static str,
    default: Duration,
) -> Result<Duration, StorageError> {
    let value = std::env::var_os(variable).filter(|value| !value.is_empty());
    let value = value.map(|value| value.to_string_lossy().into_owned());
    seconds(variable, value, default)
}

fn seconds(
    variable: &'static str,
    value: Option<String>,
    default: Duration,
) -> Result<Duration, StorageError> {
    let Some(value) = value else {
        return Ok(default);
    };
    let seconds = value.parse().ok();
    let seconds = seconds.filter(|seconds| (1..=MAX_SECONDS).contains(seconds));
    let seconds = seconds.ok_or(StorageError::Environment { variable, value });
    Ok(Duration::from_secs(seconds?))
}

/// What a URL means.
pub(super) enum Location {
    /// A folder of this machine.
    Folder(PathBuf),
    /// An object store.
    Remote(Url),
}

/// A URL without what may hold credentials.
pub(super) fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or("");
    match url.split_once("://") {
        None => url.into(),
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = host.rsplit('@').next().unwrap_or("");
            format!("{scheme}://{host}/{path}")
        }
    }
}

/// A text that may hold a URL, without what may be credentials there, also where those are written
/// so that the URL cannot be read; other texts as they are.
pub(crate) fn without_credentials(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.into();
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or("");
    // A password may have any letter in it, also those that end a host.
    let rest = match rest.rsplit_once('@') {
        Some((_, after)) if host.contains(['@', ':']) => after,
        _ => rest,
    };
    let rest = rest.split(['?', '#']).next().unwrap_or("");
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    // What stands where a port would, and is none, may be a password. Brackets hold an IPv6 address.
    let host = match host.split_once(':') {
        Some((name, port))
            if !host.starts_with('[') && !port.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            name
        }
        _ => host,
    };
    format!("{scheme}://{host}{path}")
}

/// What `url` means; one that carries credentials is refused.
pub(super) fn parse(url: &str) -> Result<Location, StorageError> {
    if !url.contains("://") {
        return Ok(Location::Folder(url.into()));
    }
    let refused = |reason: &str| StorageError::Url {
        url: without_credentials(url),
        reason: reason.into(),
    };
    let parsed = Url::parse(url).map_err(|error| refused(&error.to_string()))?;
    let has_user = !parsed.username().is_empty() || parsed.password().is_some();
    if has_user || parsed.query().is_some() || parsed.fragment().is_some() {
        let reason = "credentials, queries and fragments do not belong in a URL: set the variables \
                      of the service, such as AWS_ACCESS_KEY_ID, in the environment";
        return Err(refused(reason));
    }
    match parsed.scheme() {
        "file" => parsed
            .to_file_path()
            .map(Location::Folder)
            .map_err(|()| refused("it is no path of this machine")),
        "s3" | "gs" | "az" | "http" | "https" => Ok(Location::Remote(parsed)),
        _ => Err(refused(
            "use a path, file://, s3://, gs://, az://, http:// or https://",
        )),
    }
}

/// The store of a remote URL.
pub(super) fn remote(url: &Url) -> Result<Store, StorageError> {
    let shown = shown(url.as_str());
    let deadline = seconds_from_environment(DEADLINE_VARIABLE, RETRY_DEADLINE)?;
    let retry = RetryConfig {
        max_retries: MAX_RETRIES,
        retry_timeout: deadline,
        ..RetryConfig::default()
    };
    let attempt = format!("{} seconds", deadline.min(ATTEMPT_TIMEOUT).as_secs());
    let opened = objects(url, retry, &attempt);
    let objects = opened.map_err(|source| StorageError::Open {
        url: shown.clone(),
        source: Reason::of(&source),
    })?;
    let prefix = Path::from_url_path(url.path()).map_err(|error| StorageError::Url {
        url: shown.clone(),
        reason: error.to_string(),
    })?;
    Ok(Store {
        objects,
        prefix,
        url: shown,
        folder: None,
        is_read_only: url.scheme().starts_with("http"),
        deadline,
    })
}

fn objects(
    url: &Url,
    retry: RetryConfig,
    attempt: &str,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    let timeout = ClientConfigKey::Timeout;
    let has = |variable: &str| std::env::var_os(variable).is_some();
    Ok(match url.scheme() {
        "s3" => {
            let mut builder = AmazonS3Builder::from_env().with_url(url.as_str());
            if !has("AWS_TIMEOUT") {
                builder = builder.with_config(AmazonS3ConfigKey::Client(timeout), attempt);
            }
            Arc::new(builder.with_retry(retry).build()?)
        }
        "gs" => {
            let mut builder = GoogleCloudStorageBuilder::from_env().with_url(url.as_str());
            if !has("GOOGLE_TIMEOUT") {
                builder = builder.with_config(GoogleConfigKey::Client(timeout), attempt);
            }
            Arc::new(builder.with_retry(retry).build()?)
        }
        "az" => {
            let mut builder = MicrosoftAzureBuilder::from_env().with_url(url.as_str());
            if !has("AZURE_TIMEOUT") {
                builder = builder.with_config(AzureConfigKey::Client(timeout), attempt);
            }
            Arc::new(builder.with_retry(retry).build()?)
        }
        _ => {
            let origin = url.origin().ascii_serialization();
            let builder = HttpBuilder::new().with_url(origin).with_retry(retry);
            let builder = builder.with_config(timeout, attempt);
            Arc::new(
                builder
                    .with_config(ClientConfigKey::AllowHttp, "true")
                    .build()?,
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_cut_out_of_texts() {
        for (text, shown) in [
            ("a@b?c#d", "a@b?c#d"),
            ("s3://bucket/a@b", "s3://bucket/a@b"),
            ("s3://key:secret@bucket/run", "s3://bucket/run"),
            (
                "run.folder=s3://key:se/c?r#et@bucket/run",
                "run.folder=s3://bucket/run",
            ),
            ("http://host:80/a?sig=secret#secret", "http://host:80/a"),
            ("s3://key:secret/run", "s3://key/run"),
            ("http://[::1]:80/a", "http://[::1]:80/a"),
        ] {
            assert_eq!(without_credentials(text), shown);
        }
        for url in [
            "s3://k:se/cret@b/r",
            "s3://b/r?secret",
            "s3://b/r#secret",
            "ftp://k:secret@b",
            "s3://key:secret/run",
        ] {
            let error = parse(url).err().map(|error| error.to_string()).unwrap();
            assert!(!error.contains("cret"), "{error}");
        }
    }

    #[test]
    fn seconds_are_whole_and_have_a_limit() {
        let parse = |value: Option<&str>| {
            let value = value.map(str::to_owned);
            seconds(DEADLINE_VARIABLE, value, Duration::from_secs(7))
        };
        assert_eq!(parse(None).unwrap().as_secs(), 7);
        assert_eq!(parse(Some("3600")).unwrap().as_secs(), 3600);
        for wrong in ["", "0", "3601", "1.5", "-1", "1 s"] {
            let error = parse(Some(wrong)).unwrap_err().to_string();
            assert!(error.contains("SYNFIRE_STORE_DEADLINE_SECONDS"), "{error}");
            assert!(error.contains(&format!("{wrong:?}")), "{error}");
        }
    }
}
