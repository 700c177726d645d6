//! Requests that are asked again where the connection broke: the client below repeats what failed
//! before an answer came, but not all that broke within one.

use std::time::{Duration, Instant};

use object_store::client::HttpError;
use object_store::{Error, Result};

const MAX_REPEATS: u32 = 6;
/// Before the first repeat; each waits twice as long as the one before.
const PAUSE: Duration = Duration::from_millis(100);

/// Asks until there is an answer, the store itself refuses, or the deadline has passed.
pub(super) async fn repeat<T, F>(deadline: Duration, mut ask: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let begin = Instant::now();
    let mut repeats = 0;
    loop {
        let result = ask().await;
        let Err(error) = &result else {
            return result;
        };
        if !is_broken(error) || repeats == MAX_REPEATS || begin.elapsed() >= deadline {
            return result;
        }
        tokio::time::sleep(PAUSE * 2_u32.pow(repeats)).await;
        repeats += 1;
    }
}

/// Whether the connection failed, not the store.
fn is_broken(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<HttpError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use object_store::client::HttpErrorKind;

    use super::*;

    fn asked(deadline: Duration, error: impl Fn() -> Error) -> u32 {
        let mut count = 0;
        let result: Result<()> = super::super::wait(repeat(deadline, || {
            count += 1;
            std::future::ready(if count == 3 { Ok(()) } else { Err(error()) })
        }));
        assert_eq!(result.is_ok(), count == 3);
        count
    }

    #[test]
    fn a_broken_connection_is_asked_again_and_a_refusal_is_not() {
        let broken = || Error::Generic {
            store: "S3",
            source: HttpError::new(HttpErrorKind::Unknown, std::io::Error::other("torn")).into(),
        };
        let refused = || Error::PermissionDenied {
            path: "a".into(),
            source: "no".into(),
        };
        assert_eq!(asked(Duration::MAX, broken), 3);
        assert_eq!(asked(Duration::ZERO, broken), 1);
        assert_eq!(asked(Duration::MAX, refused), 1);
    }
}
