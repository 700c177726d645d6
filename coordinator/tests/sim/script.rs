//! A history as plain text.

use std::fmt;
use std::str::FromStr;

use super::Outcome;

/// Something that goes wrong. Places are numbered from 0; times are milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// The process in a place ends, and its peers notice at once.
    Kill(usize),
    /// The host of a place loses its power: its peers hear nothing more.
    Cut(usize),
    /// The process in a place stands still (SIGSTOP) for so long.
    Stop(usize, u64),
    /// The coordinator and the process in a place do not hear each other for so long.
    Part(usize, u64),
    /// The training thread in a place makes no more progress.
    Hang(usize),
    /// The process in a place is told to stop.
    Signal(usize),
    /// All coordinators end; a new one starts so much later.
    Crash(u64),
    /// A second coordinator starts; the first ends so much later.
    Second(u64),
    /// The coordinators stand still for so long.
    Freeze(u64),
    /// The clock of the coordinators jumps.
    Jump(i64),
    /// The newest checkpoint that counts is damaged.
    Damage,
    /// Half of what is asked of the store fails for so long, and may be done nevertheless.
    StoreFails(u64),
}

/// What a hand-written history has to come to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Expectation {
    /// So many generations began.
    Generations(u64),
    /// The reason of a generation's end has this text.
    Reason(String),
    /// The run ended for a reason with this text, and did not finish.
    Over(String),
    /// The run finished before this time.
    Before(u64),
}

/// A history.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    pub(crate) seed: u64,
    pub(crate) ranks: u32,
    pub(crate) min_ranks: u32,
    pub(crate) wait_seconds: u64,
    /// The rank that the process in each place asks for, and when it first starts.
    pub(crate) places: Vec<(Option<u32>, u64)>,
    /// Of 100 messages so many are lost, doubled, late.
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) late: u64,
    /// Of 100 requests to the store so many are slow.
    pub(crate) slow: u64,
    /// Nothing goes wrong after this time.
    pub(crate) calm: u64,
    /// Who ends is not started again.
    pub(crate) is_bare: bool,
    pub(crate) faults: Vec<(u64, Fault)>,
    pub(crate) expected: Vec<Expectation>,
}

impl Script {
    /// Whether the history came to what it says.
    pub(crate) fn holds(&self, outcome: &Outcome) -> Result<(), String> {
        for expected in &self.expected {
            let holds = match expected {
                Expectation::Generations(number) => outcome.generations == *number,
                Expectation::Reason(text) => outcome.reasons.iter().any(|r| r.contains(text)),
                Expectation::Over(text) => outcome
                    .over
                    .as_ref()
                    .is_some_and(|over| over.contains(text)),
                Expectation::Before(time) => outcome.finished_at.is_some_and(|at| at < *time),
            };
            if !holds {
                return Err(format!("expected {expected:?}"));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        writeln!(
            f,
            "ranks {} {} {}",
            self.ranks, self.min_ranks, self.wait_seconds
        )?;
        for (rank, at) in &self.places {
            match rank {
                Some(rank) => writeln!(f, "place {at} {rank}")?,
                None => writeln!(f, "place {at}")?,
            }
        }
        writeln!(f, "messages {} {} {}", self.lost, self.doubled, self.late)?;
        writeln!(f, "slow {}", self.slow)?;
        writeln!(f, "calm {}", self.calm)?;
        if self.is_bare {
            writeln!(f, "bare")?;
        }
        for (at, fault) in &self.faults {
            match fault {
                Fault::Kill(place) => writeln!(f, "{at} kill {place}")?,
                Fault::Cut(place) => writeln!(f, "{at} cut {place}")?,
                Fault::Stop(place, ms) => writeln!(f, "{at} stop {place} {ms}")?,
                Fault::Part(place, ms) => writeln!(f, "{at} part {place} {ms}")?,
                Fault::Hang(place) => writeln!(f, "{at} hang {place}")?,
                Fault::Signal(place) => writeln!(f, "{at} signal {place}")?,
                Fault::Crash(ms) => writeln!(f, "{at} crash {ms}")?,
                Fault::Second(ms) => writeln!(f, "{at} second {ms}")?,
                Fault::Freeze(ms) => writeln!(f, "{at} freeze {ms}")?,
                Fault::Jump(ms) => writeln!(f, "{at} jump {ms}")?,
                Fault::Damage => writeln!(f, "{at} damage")?,
                Fault::StoreFails(ms) => writeln!(f, "{at} store-fails {ms}")?,
            }
        }
        for expected in &self.expected {
            writeln!(f, "expect {expected:?}")?;
        }
        Ok(())
    }
}

impl FromStr for Script {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut script = Self {
            ranks: 2,
            min_ranks: 2,
            wait_seconds: 60,
            calm: 60_000,
            ..Self::default()
        };
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if !line.is_empty() {
                script
                    .line(line)
                    .ok_or_else(|| format!("not understood: {line}"))?;
            }
        }
        Ok(script)
    }
}

impl Script {
    fn line(&mut self, line: &str) -> Option<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at)?.parse::<u64>().ok();
        let small = |at: usize| words.get(at)?.parse::<u32>().ok();
        match words[0] {
            "seed" => self.seed = number(1)?,
            "ranks" => {
                self.ranks = small(1)?;
                self.min_ranks = small(2).unwrap_or(self.ranks);
                self.wait_seconds = number(3).unwrap_or(60);
            }
            "place" => self.places.push((small(2), number(1)?)),
            "messages" => {
                (self.lost, self.doubled, self.late) = (number(1)?, number(2)?, number(3)?);
            }
            "slow" => self.slow = number(1)?,
            "calm" => self.calm = number(1)?,
            "bare" => self.is_bare = true,
            "expect" => {
                let rest = line.splitn(3, ' ').nth(2)?.to_owned();
                self.expected.push(match words[1] {
                    "generations" => Expectation::Generations(number(2)?),
                    "before" => Expectation::Before(number(2)?),
                    "reason" => Expectation::Reason(rest),
                    "over" => Expectation::Over(rest),
                    _ => return None,
                });
            }
            at => {
                let fault = fault(&words)?;
                self.faults.push((at.parse().ok()?, fault));
            }
        }
        Some(())
    }
}

fn fault(words: &[&str]) -> Option<Fault> {
    let number = |at: usize| words.get(at)?.parse::<u64>().ok();
    let place = || words.get(2)?.parse::<usize>().ok();
    Some(match *words.get(1)? {
        "kill" => Fault::Kill(place()?),
        "cut" => Fault::Cut(place()?),
        "stop" => Fault::Stop(place()?, number(3)?),
        "part" => Fault::Part(place()?, number(3)?),
        "hang" => Fault::Hang(place()?),
        "signal" => Fault::Signal(place()?),
        "crash" => Fault::Crash(number(2)?),
        "second" => Fault::Second(number(2)?),
        "freeze" => Fault::Freeze(number(2)?),
        "jump" => Fault::Jump(words.get(2)?.parse().ok()?),
        "damage" => Fault::Damage,
        "store-fails" => Fault::StoreFails(number(2)?),
        _ => return None,
    })
}
