//! The token by which a coordinator knows those who may join.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// The variable of the environment that holds the token, for the coordinator and for workers.
pub const VARIABLE: &str = "SYNFIRE_TOKEN";
/// A shorter token could be guessed.
pub const MIN_BYTES: usize = 16;
/// A longer token would not fit where headers have limits.
pub const MAX_BYTES: usize = 256;
/// A longer file is refused: white space around the token is no reason to, a file without end is.
const MAX_FILE_BYTES: u64 = 4 * MAX_BYTES as u64;

/// A bearer token: 16 to 256 visible ASCII characters. Its `Debug` form does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It has another form. The text itself is not repeated.
    #[error(
        "the token in {origin} has {bytes} bytes or characters other than letters, digits and signs: \
         give {MIN_BYTES} to {MAX_BYTES} visible ASCII characters, such as those of openssl rand -hex 16"
    )]
    Form {
        /// Where it came from.
        origin: String,
        /// Its length.
        bytes: usize,
    },
    /// The file is no token with a line break.
    #[error(
        "the token file {} has more than {MAX_FILE_BYTES} bytes: give one that holds nothing but the \
         token",
        path.display()
    )]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read the token file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Token {
    /// The token that `text` is, without white space around it; `origin` says in an error where it
    /// came from.
    ///
    /// # Errors
    ///
    /// [`TokenError::Form`].
    pub fn new(text: &str, origin: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let has_length = (MIN_BYTES..=MAX_BYTES).contains(&text.len());
        if has_length && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(Self(text.to_owned()));
        }
        Err(TokenError::Form {
            origin: origin.to_owned(),
            bytes: text.len(),
        })
    }

    /// The token that a file holds.
    ///
    /// # Errors
    ///
    /// [`TokenError::Read`], [`TokenError::TooLong`] or [`TokenError::Form`].
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::Read {
            path: path.to_owned(),
            source,
        };
        let mut text = Vec::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(failed)?;
        if text.len() as u64 > MAX_FILE_BYTES {
            let path = path.to_owned();
            return Err(TokenError::TooLong { path });
        }
        let text = String::from_utf8_lossy(&text);
        Self::new(&text, &path.display().to_string())
    }

    /// A token of 128 random bits, as 32 hexadecimal digits.
    pub fn of_random(bits: [u8; 16]) -> Self {
        Self(format!("{:032x}", u128::from_be_bytes(bits)))
    }

    /// The token, for a header or a file: not for messages.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_long_visible_and_never_shown() {
        let token = Token::new(" 0123456789abcdef\n", "here").unwrap();
        assert_eq!(token.reveal(), "0123456789abcdef");
        assert_eq!(format!("{token:?}"), "Token(..)");
        let long = "x".repeat(MAX_BYTES + 1);
        for wrong in [
            "",
            "0123456789abcde",
            "0123456789 abcdef",
            "0123456789abcdé!",
            &long,
        ] {
            let error = Token::new(wrong, "SYNFIRE_TOKEN").unwrap_err().to_string();
            assert!(error.contains("SYNFIRE_TOKEN"), "{error}");
            assert!(wrong.is_empty() || !error.contains(wrong), "{error}");
        }
        let drawn = Token::of_random([1; 16]);
        assert!(Token::new(drawn.reveal(), "").is_ok());
        assert_eq!(Token::of_random([0; 16]).reveal().len(), 32);
    }

    #[test]
    fn a_file_that_is_not_there_or_never_ends_is_an_error_that_names_it() {
        for path in ["/nowhere/token", "/dev/zero"] {
            let error = Token::read(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains(path), "{error}");
        }
        // A token that other things follow is not cut where they begin.
        let name = format!("synfire-token-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let text = format!("0123456789abcdef{}x", " ".repeat(4 * MAX_BYTES - 16));
        std::fs::write(&path, text).unwrap();
        let error = Token::read(&path).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains("synfire-token-"), "{error}");
        assert!(error.contains("more than 1024 bytes"), "{error}");
    }
}
