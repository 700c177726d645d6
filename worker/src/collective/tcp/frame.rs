//! What travels between two ranks, as bytes. All numbers are little-endian.
//!
//! A frame is a header of 24 bytes and up to 128 KiB of payload, and no field of it makes a receiver
//! allocate: how long a payload may be depends on the receiver's own call.

use serde::{Deserialize, Serialize};

use super::super::pending::Call;
use super::super::{CollectiveError, MAX_GATHER_BYTES, Wire, bf16, rank_of};
use synfire_shared::ids::Rank;

/// The bytes of a header.
pub(super) const HEADER: usize = 24;

/// The numbers of a segment: what is sent, summed and sent back as one. Small enough that a segment
/// stays in a core's own cache from the socket to the sum.
pub(super) const SEGMENT: usize = 32 << 10;

/// The bytes of a segment of a gather, and the most that a payload has.
pub(super) const MAX_PAYLOAD: usize = SEGMENT * 4;

/// The most bytes of a reason that travel.
const MAX_REASON: usize = 4 << 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// The sender has begun a call; `index` is its length. No payload.
    Start,
    /// A segment of the sender's own numbers, to the rank that sums it; or of its bytes.
    Part,
    /// A segment as all ranks get it, from the rank that summed it.
    Result,
    /// Why the sender is no more of this group; it has sent all that calls before this one need.
    Farewell,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Which call, in a `Start`.
    pub(super) what: What,
    pub(super) payload: usize,
    /// The call's number.
    pub(super) sequence: u64,
    /// Which segment; of a `Start`, the length.
    pub(super) index: u64,
}

/// What all ranks must have asked for alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct What {
    code: u8,
    root: u16,
}

impl What {
    pub(super) fn of(call: &Call) -> Self {
        let (code, root) = match call {
            Call::Mean { wire, .. } => match wire {
                Wire::F32 => (0, 0),
                Wire::Bf16 => (1, 0),
            },
            Call::Broadcast { from, .. } => (2, u16::try_from(from.0).expect("below MAX_WORLD")),
            Call::Gather { .. } => (3, 0),
        };
        Self { code, root }
    }

    pub(super) fn name(self) -> String {
        match self.code {
            0 => "a mean in f32".into(),
            1 => "a mean in bf16".into(),
            2 => format!("a broadcast from {}", rank_of(self.root.into())),
            3 => "a gather".into(),
            code => format!("call {code}"),
        }
    }

    pub(super) fn is_gather(self) -> bool {
        self.code == 3
    }
}

impl Header {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let kind: u8 = match self.kind {
            Kind::Start => 1,
            Kind::Part => 2,
            Kind::Result => 3,
            Kind::Farewell => 4,
        };
        out.extend_from_slice(&[kind, self.what.code]);
        out.extend_from_slice(&self.what.root.to_le_bytes());
        let payload = u32::try_from(self.payload).expect("at most MAX_PAYLOAD");
        out.extend_from_slice(&payload.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.index.to_le_bytes());
    }

    /// # Errors
    ///
    /// What no rank sends.
    pub(super) fn read(bytes: &[u8; HEADER]) -> Result<Self, String> {
        let long = |at: usize| {
            let (field, _) = bytes[at..].split_first_chunk().expect("a header has it");
            u64::from_le_bytes(*field)
        };
        let [kind, code, r0, r1, p0, p1, p2, p3, ..] = *bytes;
        let kind = match kind {
            1 => Kind::Start,
            2 => Kind::Part,
            3 => Kind::Result,
            4 => Kind::Farewell,
            other => return Err(format!("a frame of kind {other}")),
        };
        let payload = u32::from_le_bytes([p0, p1, p2, p3]) as usize;
        if payload > MAX_PAYLOAD {
            return Err(format!("a frame of {payload} bytes"));
        }
        let header = Self {
            kind,
            what: What {
                code,
                root: u16::from_le_bytes([r0, r1]),
            },
            payload,
            sequence: long(8),
            index: long(16),
        };
        let gathers = kind == Kind::Start && header.what.is_gather();
        if gathers && header.index > MAX_GATHER_BYTES as u64 {
            return Err(format!("a gather of {} bytes", header.index));
        }
        Ok(header)
    }
}

/// The bytes of so many numbers.
pub(super) fn wire_bytes(numbers: usize, wire: Wire) -> usize {
    match wire {
        Wire::F32 => numbers * 4,
        Wire::Bf16 => numbers * 2,
    }
}

pub(super) fn put_values(out: &mut Vec<u8>, values: &[f32], wire: Wire) {
    let start = out.len();
    out.resize(start + wire_bytes(values.len(), wire), 0);
    match wire {
        Wire::F32 => {
            let (bytes, _) = out[start..].as_chunks_mut();
            for (bytes, value) in bytes.iter_mut().zip(values) {
                *bytes = value.to_le_bytes();
            }
        }
        Wire::Bf16 => {
            let (bytes, _) = out[start..].as_chunks_mut();
            for (bytes, value) in bytes.iter_mut().zip(values) {
                *bytes = bf16::to_bf16(*value).to_le_bytes();
            }
        }
    }
}

/// The payload has as many numbers as `values`; who calls has checked.
pub(super) fn get_values(payload: &[u8], values: &mut [f32], wire: Wire) {
    match wire {
        Wire::F32 => {
            for (value, bytes) in values.iter_mut().zip(payload.as_chunks().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        Wire::Bf16 => {
            for (value, bytes) in values.iter_mut().zip(payload.as_chunks().0) {
                *value = bf16::from_bf16(u16::from_le_bytes(*bytes));
            }
        }
    }
}

/// Why a rank left, as it tells the others. What it learnt from a third, they learn of the third.
#[derive(Serialize, Deserialize)]
enum Farewell {
    Lost { rank: u32, reason: String },
    Deadline { seconds: f64, missing: Vec<u32> },
    Unequal { lengths: Vec<u64> },
    Left { rank: u32, reason: String },
}

/// A whole frame that says why this rank leaves, and which call is the first that fails by it.
pub(super) fn farewell(rank: Rank, sequence: u64, error: &CollectiveError) -> Vec<u8> {
    let farewell = match error {
        CollectiveError::Lost { rank, reason } => Farewell::Lost {
            rank: rank.0,
            reason: shortened(reason),
        },
        CollectiveError::Deadline { seconds, missing } => Farewell::Deadline {
            seconds: *seconds,
            missing: missing.iter().map(|rank| rank.0).collect(),
        },
        CollectiveError::Unequal { lengths } => Farewell::Unequal {
            lengths: lengths.clone(),
        },
        CollectiveError::Left { rank, reason } => Farewell::Left {
            rank: rank.0,
            reason: shortened(reason),
        },
        CollectiveError::OutOfStep { .. }
        | CollectiveError::Interrupted { .. }
        | CollectiveError::TooLong { .. }
        | CollectiveError::Group { .. }
        | CollectiveError::Device { .. }
        | CollectiveError::Io { .. } => Farewell::Left {
            rank: rank.0,
            reason: shortened(&error.to_string()),
        },
    };
    let text = serde_json::to_vec(&farewell).expect("numbers and strings are JSON");
    let header = Header {
        kind: Kind::Farewell,
        what: What::default(),
        payload: text.len(),
        sequence,
        index: 0,
    };
    let mut frame = Vec::with_capacity(HEADER + text.len());
    header.write(&mut frame);
    frame.extend_from_slice(&text);
    frame
}

/// What a rank's farewell means to this one.
pub(super) fn read_farewell(from: Rank, payload: &[u8]) -> CollectiveError {
    match serde_json::from_slice(payload) {
        Ok(Farewell::Lost { rank, reason }) => CollectiveError::Lost {
            rank: Rank(rank),
            reason,
        },
        Ok(Farewell::Deadline { seconds, missing }) => CollectiveError::Deadline {
            seconds,
            missing: missing.into_iter().map(Rank).collect(),
        },
        Ok(Farewell::Unequal { lengths }) => CollectiveError::Unequal { lengths },
        Ok(Farewell::Left { rank, reason }) => CollectiveError::Left {
            rank: Rank(rank),
            reason,
        },
        Err(_) => CollectiveError::Lost {
            rank: from,
            reason: "it left, and its reason cannot be read".into(),
        },
    }
}

fn shortened(reason: &str) -> String {
    let end = reason.floor_char_boundary(MAX_REASON);
    reason[..end].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_and_what_no_rank_sends_is_refused() {
        let header = Header {
            kind: Kind::Part,
            what: What { code: 2, root: 258 },
            payload: MAX_PAYLOAD,
            sequence: u64::MAX - 1,
            index: 1 << 40,
        };
        let mut bytes = Vec::new();
        header.write(&mut bytes);
        let mut bytes: [u8; HEADER] = bytes.try_into().unwrap();
        assert_eq!(Header::read(&bytes), Ok(header));
        bytes[4] += 1;
        assert!(Header::read(&bytes).is_err());
        bytes[0] = 9;
        assert!(Header::read(&bytes).is_err());
        let endless = Header {
            kind: Kind::Start,
            what: What { code: 3, root: 0 },
            payload: 0,
            index: MAX_GATHER_BYTES as u64 + 1,
            ..header
        };
        let mut bytes = Vec::new();
        endless.write(&mut bytes);
        assert!(Header::read(&bytes.try_into().unwrap()).is_err());
    }

    #[test]
    fn values_come_back_as_their_wire_has_them() {
        let values = [1.5, -0.0, 1.0 / 3.0, f32::INFINITY];
        for wire in [Wire::F32, Wire::Bf16] {
            let mut bytes = vec![7];
            put_values(&mut bytes, &values, wire);
            assert_eq!(bytes.len(), 1 + wire_bytes(4, wire));
            let (mut back, mut expected) = ([0.0; 4], values);
            get_values(&bytes[1..], &mut back, wire);
            super::super::super::mean::travel(&mut expected, wire);
            assert_eq!(back.map(f32::to_bits), expected.map(f32::to_bits));
        }
    }

    #[test]
    fn a_long_reason_is_cut_and_an_unreadable_one_is_told() {
        let error = CollectiveError::Left {
            rank: Rank(3),
            reason: "ä".repeat(1 << 20),
        };
        let frame = farewell(Rank(3), 0, &error);
        assert!(frame.len() < 2 * MAX_REASON + HEADER);
        let read = read_farewell(Rank(3), &frame[HEADER..]).to_string();
        assert!(read.starts_with("rank 3 gave up: ää"), "{read}");
        let read = read_farewell(Rank(2), b"{}").to_string();
        assert!(read.contains("rank 2 is lost"), "{read}");
    }
}
