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

use super::{StorageError, Store};

/// How long a request may take, its retries included.
const RETRY_DEADLINE: Duration = Duration::from_mins(3);
const MAX_RETRIES: usize = 10;
/// How long one attempt may take: a shard of 64 MiB at 1 MiB/s.
const ATTEMPT_TIMEOUT: &str = "90 seconds";

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

/// What `url` means; one that carries credentials is refused.
pub(super) fn parse(url: &str) -> Result<Location, StorageError> {
    if !url.contains("://") {
        return Ok(Location::Folder(url.into()));
    }
    let refused = |reason: &str| StorageError::Url {
        url: shown(url),
        reason: reason.into(),
    };
    let parsed = Url::parse(url).map_err(|error| refused(&error.to_string()))?;
    if !parsed.username().is_empty() || parsed.password().is_some() || parsed.query().is_some() {
        let reason = "credentials and queries do not belong in a URL: set the variables of the \
                      service, such as AWS_ACCESS_KEY_ID, in the environment";
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
    let retry = RetryConfig {
        max_retries: MAX_RETRIES,
        retry_timeout: RETRY_DEADLINE,
        ..RetryConfig::default()
    };
    let opened = objects(url, retry);
    let objects = opened.map_err(|source| StorageError::Open {
        url: shown.clone(),
        source,
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
    })
}

fn objects(url: &Url, retry: RetryConfig) -> object_store::Result<Arc<dyn ObjectStore>> {
    let timeout = ClientConfigKey::Timeout;
    let has = |variable: &str| std::env::var_os(variable).is_some();
    Ok(match url.scheme() {
        "s3" => {
            let mut builder = AmazonS3Builder::from_env().with_url(url.as_str());
            if !has("AWS_TIMEOUT") {
                builder = builder.with_config(AmazonS3ConfigKey::Client(timeout), ATTEMPT_TIMEOUT);
            }
            Arc::new(builder.with_retry(retry).build()?)
        }
        "gs" => {
            let mut builder = GoogleCloudStorageBuilder::from_env().with_url(url.as_str());
            if !has("GOOGLE_TIMEOUT") {
                builder = builder.with_config(GoogleConfigKey::Client(timeout), ATTEMPT_TIMEOUT);
            }
            Arc::new(builder.with_retry(retry).build()?)
        }
        "az" => {
            let mut builder = MicrosoftAzureBuilder::from_env().with_url(url.as_str());
            if !has("AZURE_TIMEOUT") {
                builder = builder.with_config(AzureConfigKey::Client(timeout), ATTEMPT_TIMEOUT);
            }
            Arc::new(builder.with_retry(retry).build()?)
        }
        _ => {
            let origin = url.origin().ascii_serialization();
            let builder = HttpBuilder::new().with_url(origin).with_retry(retry);
            let builder = builder.with_config(timeout, ATTEMPT_TIMEOUT);
            Arc::new(
                builder
                    .with_config(ClientConfigKey::AllowHttp, "true")
                    .build()?,
            )
        }
    })
}
