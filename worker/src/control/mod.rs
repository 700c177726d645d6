//! What a worker has to do with the coordinator: it joins, shows signs of life, and is told what to
//! do. Training never waits for it.
//!
//! # Layout
//!
//! - [`environment`]: which rank the environment says this process is.
//! - `client`: messages over HTTP, with limits of size and time.
//! - `join`: [`Control`], which waits for a place in a generation, as long as it is told to.
//! - `membership`: [`Membership`], the thread with the heartbeats of a generation.
//! - `error`: what can go wrong, with its remedy.

mod client;
pub mod environment;
mod error;
mod join;
mod membership;

pub use client::Coordinator;
pub use error::ControlError;
pub use join::{Control, Joined, Waiting, Waits};
pub use membership::{Membership, Notice, Report};

/// A new process's id: 128 random bits as 32 hexadecimal digits, for
/// [`process`](synfire_shared::protocol::JoinRequest::process).
///
/// # Errors
/// [`ControlError::Random`] if the operating system gives none.
pub fn process_id() -> Result<String, ControlError> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).map_err(|error| ControlError::Random {
        reason: error.to_string(),
    })?;
    Ok(format!("{:032x}", u128::from_be_bytes(bits)))
}

/// What this machine is called, in messages.
pub fn host() -> String {
    const MAX_BYTES: usize = 64;
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain = |c: &char| !c.is_control() && !c.is_whitespace();
    let mut name: String = name.chars().filter(plain).collect();
    name.truncate(name.floor_char_boundary(MAX_BYTES));
    if name.is_empty() {
        "unknown".into()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_differ_and_hosts_can_be_shown() {
        let (a, b) = (super::process_id().unwrap(), super::process_id().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.len(), synfire_shared::protocol::PROCESS_DIGITS);
        let host = super::host();
        assert!(!host.is_empty() && host.len() <= 64 && !host.contains('\n'));
    }
}
