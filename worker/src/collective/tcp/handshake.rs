//! How the ranks of a group find each other: each connects to the lower ranks and accepts the
//! higher, and both sides prove that they know the group's secret before either is believed.
//!
//! A proof is a digest of the secret and of who greets whom. Whoever can read this machine's
//! loopback could repeat one; the transport is for one machine, whose users it does not guard
//! against its administrator.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::super::{CollectiveError, rank_of};

const MAGIC: &[u8; 8] = b"synfireC";
const VERSION: u32 = 1;
const GREETING: usize = 56;

/// Connections that have not yet greeted; the oldest goes when there are more.
const MAX_STRANGERS: usize = 64;

/// How long one may take to greet.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long one attempt to connect may take, and how long until the next.
const ATTEMPT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

/// Who this rank is.
pub(super) struct Seat<'a> {
    pub(super) rank: usize,
    pub(super) addresses: &'a [SocketAddr],
    pub(super) secret: &'a str,
}

/// A connection, and what has come of its greeting.
struct Guest {
    stream: TcpStream,
    since: Instant,
    greeting: [u8; GREETING],
    have: usize,
}

/// By rank, the connection to it; none to this rank itself.
///
/// # Errors
///
/// Who has not come by the deadline is named.
pub(super) fn meet(
    seat: &Seat<'_>,
    listener: &TcpListener,
    deadline: Duration,
    stops: &dyn Fn() -> Option<String>,
) -> Result<Vec<Option<TcpStream>>, CollectiveError> {
    let began = Instant::now();
    let world = seat.addresses.len();
    let nonblocking = listener.set_nonblocking(true);
    nonblocking.map_err(|e| CollectiveError::io("the listener of this rank", e))?;
    let mut peers: Vec<Option<TcpStream>> = (0..world).map(|_| None).collect();
    let mut outgoing: Vec<Caller> = (0..seat.rank).map(|_| Caller::default()).collect();
    let mut strangers = Vec::new();
    loop {
        accept(listener, &mut strangers)?;
        strangers.retain_mut(|guest| receive(seat, guest, &mut peers));
        for (to, caller) in outgoing.iter_mut().enumerate() {
            if peers[to].is_none() {
                peers[to] = caller.call(seat, to);
            }
        }
        let absent = |&rank: &usize| rank != seat.rank && peers[rank].is_none();
        let missing: Vec<_> = (0..world).filter(absent).map(rank_of).collect();
        if missing.is_empty() {
            return Ok(peers);
        }
        if let Some(reason) = stops() {
            return Err(CollectiveError::Interrupted { reason });
        }
        if began.elapsed() >= deadline {
            let seconds = deadline.as_secs_f64();
            return Err(CollectiveError::Deadline { seconds, missing });
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn accept(listener: &TcpListener, strangers: &mut Vec<Guest>) -> Result<(), CollectiveError> {
    // So many at once at most, so that a flood does not keep this rank from its own calls.
    for _ in 0..MAX_STRANGERS {
        match listener.accept() {
            Ok((stream, _)) => {
                if strangers.len() == MAX_STRANGERS {
                    strangers.remove(0);
                }
                strangers.extend(Guest::new(stream));
            }
            Err(error) if passes(&error) => return Ok(()),
            Err(error) => return Err(CollectiveError::io("accepting a rank", error)),
        }
    }
    Ok(())
}

/// What says nothing about the listener itself.
fn passes(error: &io::Error) -> bool {
    // "Too many open files" passes as well: strangers go away in time.
    const EMFILE: i32 = 24;
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
    ) || error.raw_os_error() == Some(EMFILE)
}

/// Hears one out; whether to go on listening to it. Who greets well becomes a peer.
fn receive(seat: &Seat<'_>, guest: &mut Guest, peers: &mut [Option<TcpStream>]) -> bool {
    match guest.hear() {
        Heard::Nothing => return true,
        Heard::End => return false,
        Heard::All => {}
    }
    let from = u32::from_le_bytes([
        guest.greeting[16],
        guest.greeting[17],
        guest.greeting[18],
        guest.greeting[19],
    ]) as usize;
    let expected = from > seat.rank && from < peers.len() && peers[from].is_none();
    if expected && same(&guest.greeting, &greeting(seat, from, seat.rank)) {
        let answer = greeting(seat, seat.rank, from);
        // The buffer of a new connection has room for it.
        if guest.stream.write_all(&answer).is_ok() {
            peers[from] = guest.stream.try_clone().ok();
        }
    }
    false
}

/// The calls to one lower rank.
#[derive(Default)]
struct Caller {
    guest: Option<Guest>,
    not_before: Option<Instant>,
}

impl Caller {
    fn call(&mut self, seat: &Seat<'_>, to: usize) -> Option<TcpStream> {
        if self.guest.is_none() {
            if self.not_before.is_some_and(|time| Instant::now() < time) {
                return None;
            }
            self.not_before = Some(Instant::now() + PAUSE);
            let mut stream = TcpStream::connect_timeout(&seat.addresses[to], ATTEMPT).ok()?;
            stream.write_all(&greeting(seat, seat.rank, to)).ok()?;
            self.guest = Guest::new(stream);
        }
        let guest = self.guest.as_mut()?;
        match guest.hear() {
            Heard::Nothing => return None,
            Heard::End => {}
            Heard::All => {
                if same(&guest.greeting, &greeting(seat, to, seat.rank)) {
                    return self.guest.take().map(|guest| guest.stream);
                }
            }
        }
        self.guest = None;
        None
    }
}

enum Heard {
    Nothing,
    All,
    End,
}

impl Guest {
    fn new(stream: TcpStream) -> Option<Self> {
        stream.set_nonblocking(true).ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self {
            stream,
            since: Instant::now(),
            greeting: [0; GREETING],
            have: 0,
        })
    }

    /// Reads no more than a greeting has: what follows it is for the group.
    fn hear(&mut self) -> Heard {
        while self.have < GREETING {
            match self.stream.read(&mut self.greeting[self.have..]) {
                Ok(0) => return Heard::End,
                Ok(count) => self.have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let patient = self.since.elapsed() < PATIENCE;
                    return if patient { Heard::Nothing } else { Heard::End };
                }
                Err(_) => return Heard::End,
            }
        }
        Heard::All
    }
}

/// What `from` says to `to` in a group of so many with this secret.
fn greeting(seat: &Seat<'_>, from: usize, to: usize) -> [u8; GREETING] {
    let mut greeting = [0; GREETING];
    greeting[..8].copy_from_slice(MAGIC);
    let field = |place| rank_of(place).0;
    let world = seat.addresses.len();
    let fields = [VERSION, field(world), field(from), field(to)];
    for (bytes, field) in greeting[8..24].chunks_exact_mut(4).zip(fields) {
        bytes.copy_from_slice(&field.to_le_bytes());
    }
    let proof = Sha256::new()
        .chain_update(&greeting[..24])
        .chain_update(seat.secret.as_bytes())
        .finalize();
    greeting[24..].copy_from_slice(&proof);
    greeting
}

/// In a time that does not tell where they differ.
fn same(a: &[u8; GREETING], b: &[u8; GREETING]) -> bool {
    a.iter().zip(b).fold(0, |seen, (a, b)| seen | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_differs_by_secret_ranks_and_world() {
        let addresses = [SocketAddr::from(([127, 0, 0, 1], 1)); 3];
        let of = |world: usize, secret, from, to| {
            let addresses = &addresses[..world];
            let seat = Seat {
                rank: 0,
                addresses,
                secret,
            };
            greeting(&seat, from, to)
        };
        let first = of(3, "a", 1, 0);
        assert!(same(&first, &of(3, "a", 1, 0)));
        for other in [
            of(3, "b", 1, 0),
            of(3, "a", 0, 1),
            of(3, "a", 2, 0),
            of(2, "a", 1, 0),
        ] {
            assert!(!same(&first, &other));
            // Not only what is said in the clear differs.
            assert_ne!(first[24..], other[24..]);
        }
    }
}
