//! What is refused of a message: too long, or it contradicts itself.

use super::{
    Assignment, Checkpoint, Directive, Heartbeat, Identity, JoinRequest, JoinResponse, Leave,
    MAX_LINES, MAX_NAME_BYTES, MAX_SETTINGS, MAX_TEXT_BYTES, Malformed, Member, Order,
    PROCESS_DIGITS, Reason, Start,
};
use crate::checkpoint::{Digest, manifest_of_name};
use crate::shard_plan::MAX_LANES;

fn bad(field: &'static str, reason: impl Into<String>) -> Malformed {
    let reason = reason.into();
    Malformed { field, reason }
}

fn ensure(is_so: bool, field: &'static str, reason: &str) -> Result<(), Malformed> {
    is_so.then_some(()).ok_or_else(|| bad(field, reason))
}

/// A short word that may be shown as it is.
fn name(field: &'static str, text: &str) -> Result<(), Malformed> {
    if text.len() > MAX_NAME_BYTES {
        let reason = format!("has {} bytes, more than {MAX_NAME_BYTES}", text.len());
        return Err(bad(field, reason));
    }
    let is_plain = !text.is_empty() && !text.chars().any(char::is_control);
    ensure(is_plain, field, "is empty or has control characters")
}

fn text(field: &'static str, text: &str) -> Result<(), Malformed> {
    let reason = || format!("has {} bytes, more than {MAX_TEXT_BYTES}", text.len());
    let fits = text.len() <= MAX_TEXT_BYTES;
    fits.then_some(()).ok_or_else(|| bad(field, reason()))
}

fn process(field: &'static str, id: &str) -> Result<(), Malformed> {
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let is_id = id.len() == PROCESS_DIGITS && id.bytes().all(is_digit);
    ensure(
        is_id,
        field,
        "is not 32 hexadecimal digits, 0 to 9 and a to f",
    )
}

fn manifest(field: &'static str, name: &str) -> Result<u64, Malformed> {
    match manifest_of_name(name) {
        Some(named) => Ok(named.batches_done),
        None => Err(bad(field, "is no name of a manifest")),
    }
}

fn signal(number: i32) -> Result<(), Malformed> {
    let is_signal = (1..=64).contains(&number);
    ensure(is_signal, "signal", "is no number of a signal, 1 to 64")
}

impl Identity {
    /// Whether it can be kept and shown.
    ///
    /// # Errors
    ///
    /// [`Malformed`]: too long, or it contradicts itself.
    pub fn check(&self) -> Result<(), Malformed> {
        if self.settings.len() > MAX_SETTINGS {
            let reason = format!("are {}, more than {MAX_SETTINGS}", self.settings.len());
            return Err(bad("settings", reason));
        }
        for (key, value) in &self.settings {
            name("a setting's key", key)?;
            text("a setting's value", value)?;
        }
        let is_its_own = Digest::of_settings(&self.settings) == self.configuration;
        ensure(
            is_its_own,
            "configuration",
            "is not the digest of the settings",
        )?;
        ensure(self.batch > 0, "batch", "is 0")?;
        let fits = (1..=MAX_LANES).contains(&self.lanes);
        ensure(fits, "lanes", "are none, or more than a plan has")?;
        self.folder.as_deref().map_or(Ok(()), |f| text("folder", f))
    }
}

impl JoinRequest {
    /// Whether it can be kept and shown. The protocol and the version are not looked at, so that
    /// whoever speaks another one can be told.
    ///
    /// # Errors
    ///
    /// [`Malformed`]: too long, or it contradicts itself.
    pub fn check(&self) -> Result<(), Malformed> {
        name("version", &self.version)?;
        process("process", &self.process)?;
        name("host", &self.host)?;
        ensure(self.world != Some(0), "world", "is 0")?;
        if let (Some(rank), Some(world)) = (self.rank, self.world) {
            ensure(rank < world, "rank", "is not below the number of ranks")?;
        }
        self.identity.check()
    }
}

impl Member {
    fn check(&self) -> Result<(), Malformed> {
        process("process", &self.process)?;
        name("host", &self.host)
    }
}

impl Start {
    /// Whether it names what it says.
    ///
    /// # Errors
    ///
    /// [`Malformed`]: no manifest's name, or that of another one.
    pub fn check(&self) -> Result<(), Malformed> {
        let is_named = manifest("manifest", &self.manifest)? == self.batches_done;
        ensure(is_named, "manifest", "is of another number of batches")
    }
}

/// Whether these can be the ranks of a generation.
///
/// # Errors
///
/// [`Malformed`]: none or too many, not in the order of their ranks, or a process twice.
pub fn check_members(members: &[Member]) -> Result<(), Malformed> {
    let fits = !members.is_empty() && members.len() <= MAX_LANES as usize;
    ensure(fits, "members", "are none, or more than a plan has lanes")?;
    for (rank, member) in members.iter().enumerate() {
        member.check()?;
        let is_in_order = member.rank as usize == rank;
        ensure(
            is_in_order,
            "members",
            "are not in the order of their ranks",
        )?;
        let mut others = members[..rank].iter();
        let is_new = others.all(|other| other.process != member.process);
        ensure(is_new, "members", "have a process twice")?;
    }
    Ok(())
}

impl Assignment {
    /// Whether a worker can act on it.
    ///
    /// # Errors
    ///
    /// [`Malformed`]: too long, or it contradicts itself.
    pub fn check(&self) -> Result<(), Malformed> {
        check_members(&self.members)?;
        let is_all = self.world as usize == self.members.len();
        ensure(is_all, "world", "is not the number of members")?;
        ensure(self.rank < self.world, "rank", "is not below the world")?;
        ensure(self.generation > 0, "generation", "is 0")?;
        text("secret", &self.secret)?;
        self.start.as_ref().map_or(Ok(()), Start::check)
    }
}

impl JoinResponse {
    /// Whether a worker can act on it.
    ///
    /// # Errors
    ///
    /// [`Malformed`]: too long, or it contradicts itself.
    pub fn check(&self) -> Result<(), Malformed> {
        match self {
            Self::Wait { missing, .. } => {
                ensure(missing.len() <= MAX_LINES, "missing", "has too many lines")?;
                missing.iter().try_for_each(|line| text("missing", line))
            }
            Self::Start(assignment) => assignment.check(),
            Self::Over { reason, .. } => text("reason", reason),
        }
    }
}

impl Heartbeat {
    /// Whether it can be kept and shown.
    ///
    /// # Errors
    ///
    /// [`Malformed`]: no process.
    pub fn check(&self) -> Result<(), Malformed> {
        process("process", &self.process)
    }
}

impl Directive {
    /// Whether a worker can act on it.
    ///
    /// # Errors
    ///
    /// [`Malformed`]: too long, or no signal.
    pub fn check(&self) -> Result<(), Malformed> {
        match self {
            Self::Continue | Self::Save => Ok(()),
            Self::Stop { signal: number } => signal(*number),
            Self::Abandon { reason } => text("reason", reason),
        }
    }
}

impl Checkpoint {
    /// Whether it can be kept and shown.
    ///
    /// # Errors
    ///
    /// [`Malformed`]: no process, or no manifest of so many batches.
    pub fn check(&self) -> Result<(), Malformed> {
        process("process", &self.process)?;
        let is_named = manifest("manifest", &self.manifest)? == self.batches_done;
        ensure(is_named, "manifest", "is of another number of batches")
    }
}

impl Leave {
    /// Whether it can be kept and shown.
    ///
    /// # Errors
    ///
    /// [`Malformed`]: too long, no process, no manifest, or no signal.
    pub fn check(&self) -> Result<(), Malformed> {
        process("process", &self.process)?;
        match &self.reason {
            Reason::Finished => Ok(()),
            Reason::Stopped { signal: number } => signal(*number),
            Reason::Failed { message, lost: _ } => text("message", message),
            Reason::DamagedStart {
                manifest: named,
                message,
            } => {
                manifest("manifest", named)?;
                text("message", message)
            }
        }
    }
}

impl Order {
    /// Whether it can be acted on.
    ///
    /// # Errors
    ///
    /// [`Malformed`]: no signal that stops.
    pub fn check(&self) -> Result<(), Malformed> {
        match self {
            Self::Save => Ok(()),
            Self::Stop { signal: number } => {
                let stops = [2, 15].contains(number);
                ensure(stops, "signal", "is neither 2 (SIGINT) nor 15 (SIGTERM)")
            }
        }
    }
}
