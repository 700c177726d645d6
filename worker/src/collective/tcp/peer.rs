//! The connection to one rank: whole frames in, whole frames out, and nothing blocks.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use mio::net::TcpStream;

use super::super::CollectiveError;
use super::frame::{HEADER, Header, MAX_PAYLOAD, What};

/// The most calls that a rank may be ahead of this one.
const MAX_AHEAD: usize = 1 << 16;

/// The connection to one rank, and what it has said of its calls.
pub(super) struct Peer {
    pub(super) stream: TcpStream,
    /// Cleared when the operating system has nothing, set by its next event.
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// Why nothing more comes from it.
    pub(super) closed: Option<String>,
    /// From which call on it has left, and what that means to this rank.
    pub(super) farewell: Option<(u64, CollectiveError)>,
    /// Nothing more goes to it.
    deaf: bool,
    input: Vec<u8>,
    have: usize,
    output: Vec<u8>,
    sent: usize,
    /// What will go out after `output`.
    pub(super) queue: VecDeque<Out>,
    /// What goes out when `queue` is empty: segments that it sums, by call and index.
    pub(super) parts: VecDeque<(u64, usize)>,
    /// How many of those have no result yet.
    pub(super) unanswered: usize,
    /// The calls that it has begun, from the oldest on that is under way here.
    pub(super) starts: VecDeque<Start>,
}

/// How many parts may be under way to a rank: 1 MiB.
const WINDOW: usize = 8;

/// A call that a rank has begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Start {
    pub(super) what: What,
    pub(super) length: u64,
}

/// A frame to be written when there is room.
pub(super) enum Out {
    Start { sequence: u64, start: Start },
    Part { sequence: u64, index: usize },
    Result { sequence: u64, index: usize },
    Farewell(Vec<u8>),
}

impl Peer {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            readable: true,
            writable: true,
            closed: None,
            farewell: None,
            deaf: false,
            // A frame, and the header after it.
            input: vec![0; HEADER + MAX_PAYLOAD + HEADER],
            have: 0,
            output: Vec::with_capacity(2 * (HEADER + MAX_PAYLOAD)),
            sent: 0,
            queue: VecDeque::new(),
            parts: VecDeque::new(),
            unanswered: 0,
            starts: VecDeque::new(),
        }
    }

    /// Reads on until there is a whole frame, or nothing more for now.
    ///
    /// # Errors
    ///
    /// What no rank sends.
    pub(super) fn next_frame(&mut self) -> Result<Option<Header>, String> {
        loop {
            let header = match self.input[..self.have].first_chunk() {
                Some(bytes) => Some(Header::read(bytes)?),
                None => None,
            };
            let need = HEADER + header.map_or(0, |header| header.payload);
            if self.have >= need {
                return Ok(header);
            }
            if !self.readable || self.closed.is_some() {
                return Ok(None);
            }
            match self.stream.read(&mut self.input[self.have..need + HEADER]) {
                Ok(0) => self.closed = Some("it closed its connection".into()),
                Ok(count) => self.have += count,
                Err(error) => self.stumble(&error),
            }
        }
    }

    /// What a failed read means.
    fn stumble(&mut self, error: &io::Error) {
        if error.kind() == io::ErrorKind::WouldBlock {
            self.readable = false;
        } else if error.kind() != io::ErrorKind::Interrupted {
            self.closed = Some(format!("its connection broke: {error}"));
        }
    }

    /// The input's buffer, for as long as a frame in it is being looked at.
    pub(super) fn take_input(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.input)
    }

    /// Gives it back without the frame.
    pub(super) fn consume(&mut self, mut input: Vec<u8>, header: &Header) {
        let frame = HEADER + header.payload;
        input.copy_within(frame..self.have, 0);
        self.have -= frame;
        self.input = input;
    }

    /// Forgets what has come, and what comes.
    pub(super) fn discard(&mut self) {
        self.have = 0;
        while self.readable && self.closed.is_none() {
            match self.stream.read(&mut self.input) {
                Ok(0) => self.closed = Some(String::new()),
                Ok(_) => {}
                Err(error) => self.stumble(&error),
            }
        }
    }

    pub(super) fn begin(&mut self, start: Start) -> Result<(), String> {
        if self.starts.len() == MAX_AHEAD {
            return Err(format!("it is {MAX_AHEAD} calls ahead"));
        }
        self.starts.push_back(start);
        Ok(())
    }

    /// Whether `output` has room for one more frame of any size.
    pub(super) fn has_room(&self) -> bool {
        self.output.len() < HEADER + MAX_PAYLOAD && !self.deaf
    }

    /// The next frame to write. Few parts are under way at a time, so that they are still in a cache
    /// when the other side reads them; results never wait for parts, or two ranks could wait for
    /// each other.
    pub(super) fn next_out(&mut self) -> Option<Out> {
        let out = self.queue.pop_front();
        if out.is_some() || self.unanswered >= WINDOW {
            return out;
        }
        let (sequence, index) = self.parts.pop_front()?;
        self.unanswered += 1;
        Some(Out::Part { sequence, index })
    }

    /// Forgets what is to go out, but not that calls before `first` have begun.
    pub(super) fn clear_queue(&mut self, first: u64) {
        self.parts.clear();
        self.queue
            .retain(|out| matches!(out, Out::Start { sequence, .. } if *sequence < first));
    }

    pub(super) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Writes as much as goes; whether any did.
    pub(super) fn write(&mut self) -> bool {
        let mut progress = false;
        while self.writable && !self.deaf && self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(count) => {
                    self.sent += count;
                    progress = true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                // What it said before may still be there to be read.
                Err(_) => self.deaf = true,
            }
        }
        if self.sent == self.output.len() || self.deaf {
            self.output.clear();
            self.sent = 0;
        }
        progress
    }

    pub(super) fn is_deaf(&self) -> bool {
        self.deaf
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.deaf || (self.queue.is_empty() && self.parts.is_empty() && self.output.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn who_leaves_still_tells_that_ended_calls_had_begun() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let stream = std::net::TcpStream::connect(address).unwrap();
        let mut peer = Peer::new(TcpStream::from_std(stream));
        let start = Start {
            what: What::default(),
            length: 1,
        };
        for sequence in 0..3 {
            peer.queue.push_back(Out::Start { sequence, start });
            peer.parts.push_back((sequence, 0));
        }
        peer.clear_queue(2);
        let next = || peer.next_out();
        let left: Vec<Out> = std::iter::from_fn(next).collect();
        let sequences = left.iter().map(|out| match out {
            Out::Start { sequence, .. } => *sequence,
            Out::Part { .. } | Out::Result { .. } | Out::Farewell(_) => u64::MAX,
        });
        assert_eq!(sequences.collect::<Vec<_>>(), [0, 1]);
    }
}
