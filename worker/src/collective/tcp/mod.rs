//! Ranks on one machine, without MPI: a connection between every two, and sums in rank order.
//!
//! Each segment of the numbers is summed by one rank, which gets the others' and gives the sum to
//! all: every number goes out once and comes back once, as in the best of all-reduces, and the bits
//! are those of [`threads`](super::threads). This is for one machine and for tests: between machines
//! MPI and NCCL know the network better, and what travels here is neither encrypted nor signed.
//!
//! # Layout
//!
//! - `handshake`: how the ranks find each other.
//! - `frame`: what travels.
//! - `peer`: one connection.
//! - `lane`: segments in their order.
//! - `round`: one call.
//! - `link`: what the caller asks of the thread.
//! - `progress`: the thread that moves everything.
//! - `ending`: how it ends.

mod ending;
mod frame;
mod handshake;
mod lane;
mod link;
mod peer;
mod progress;
mod round;

use std::collections::VecDeque;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mio::{Interest, Poll, Token, Waker};
use synfire_shared::ids::{Rank, World};

use super::pending::{Board, Call, Driver, Ticket, check_bytes, check_root, check_values};
use super::{Collective, CollectiveError, Interrupt, Pending, Wire, rank_of};
use link::{Command, Link};
use peer::Peer;
use progress::Progress;

/// The most ranks of a group.
pub const MAX_WORLD: usize = 256;

/// One rank of a group whose ranks are connected to each other. What it does it does on a thread of
/// its own; dropping it closes its connections, after what the others still need has been written
/// (for a second at most).
pub struct Tcp {
    rank: usize,
    world: usize,
    board: Arc<Board>,
    link: Arc<Link>,
}

impl Tcp {
    /// Joins the group of so many ranks as there are `addresses`, which are those of the ranks'
    /// listeners, by rank. All ranks call this with the same addresses and `secret`, each with its own
    /// listener, and it returns when all are connected. The listener is closed then.
    ///
    /// Who connects without the secret is dropped, and harms nobody. A new generation of a group
    /// takes a new secret.
    ///
    /// # Errors
    ///
    /// [`CollectiveError::Deadline`] with those who have not come by then; `Group` if there is no such
    /// rank or there are too many; `Io` if the listener fails.
    pub fn connect(
        rank: Rank,
        addresses: &[SocketAddr],
        listener: TcpListener,
        secret: &str,
        deadline: Duration,
    ) -> Result<Self, CollectiveError> {
        Self::connect_unless(&|| None, rank, addresses, listener, secret, deadline)
    }

    /// As [`Self::connect`], but gives up as soon as `reason` says why: another rank is lost, or
    /// this one is to stop.
    ///
    /// # Errors
    ///
    /// [`CollectiveError::Interrupted`] with that reason; others as there.
    pub fn connect_unless(
        reason: &dyn Fn() -> Option<String>,
        rank: Rank,
        addresses: &[SocketAddr],
        listener: TcpListener,
        secret: &str,
        deadline: Duration,
    ) -> Result<Self, CollectiveError> {
        let (place, world) = (rank.0 as usize, addresses.len());
        if place >= world || world > MAX_WORLD {
            let reason = format!("{rank} of {world}, and at most {MAX_WORLD} are possible");
            return Err(CollectiveError::Group { reason });
        }
        let seat = handshake::Seat {
            rank: place,
            addresses,
            secret,
        };
        let streams = handshake::meet(&seat, &listener, deadline, reason)?;
        drop(listener);
        let board = Board::new();
        let link = start(place, streams, &board)
            .map_err(|error| CollectiveError::io("the connections between ranks", error))?;
        Ok(Self {
            rank: place,
            world,
            board,
            link,
        })
    }

    fn call(&self, call: Call) -> Result<Ticket, CollectiveError> {
        let sequence = self.board.open()?;
        self.link.send(Command::Call(call));
        Ok(Ticket::new(&self.board, self.driver(), sequence))
    }

    fn driver(&self) -> Arc<dyn Driver> {
        Arc::<Link>::clone(&self.link)
    }
}

/// Starts the thread that moves the numbers.
fn start(
    rank: usize,
    streams: Vec<Option<std::net::TcpStream>>,
    board: &Arc<Board>,
) -> std::io::Result<Arc<Link>> {
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), Token(usize::MAX))?;
    let link = Arc::new(Link::new(waker));
    let mut peers = Vec::new();
    for (rank, stream) in streams.into_iter().enumerate() {
        let Some(stream) = stream else {
            peers.push(None);
            continue;
        };
        let mut stream = mio::net::TcpStream::from_std(stream);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registry = poll.registry();
        registry.register(&mut stream, Token(rank), interest)?;
        peers.push(Some(Peer::new(stream)));
    }
    let progress = Progress {
        rank,
        poll,
        peers,
        board: Arc::clone(board),
        link: Arc::clone(&link),
        rounds: VecDeque::new(),
        first: 0,
        scratch: round::Scratch::default(),
        verdict: None,
        over: None,
    };
    thread::Builder::new()
        .name(format!("tcp {}", rank_of(rank)))
        .spawn(move || progress.run())?;
    Ok(link)
}

impl Collective for Tcp {
    fn name(&self) -> String {
        "tcp".into()
    }

    fn rank(&self) -> Rank {
        rank_of(self.rank)
    }

    fn world(&self) -> World {
        World(rank_of(self.world).0)
    }

    fn start_mean(&mut self, values: Vec<f32>, wire: Wire) -> Result<Pending, CollectiveError> {
        check_values(&values)?;
        Ok(Pending::new(self.call(Call::Mean { values, wire })?))
    }

    fn broadcast(&mut self, from: Rank, values: &mut [f32]) -> Result<(), CollectiveError> {
        check_root(from, self.world)?;
        check_values(values)?;
        let call = Call::Broadcast {
            values: values.to_vec(),
            from,
        };
        values.copy_from_slice(&self.call(call)?.values()?);
        Ok(())
    }

    fn gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        check_bytes(bytes)?;
        let bytes = bytes.to_vec();
        self.call(Call::Gather { bytes })?.gathered()
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.board.set_deadline(deadline);
    }

    fn abort(&mut self, reason: &str) {
        let error = CollectiveError::Left {
            rank: self.rank(),
            reason: reason.into(),
        };
        self.link.send(Command::Fail(error));
        self.link.wait_until_flushed();
    }

    fn interrupt(&self) -> Interrupt {
        Interrupt::new(&self.board, self.driver())
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        self.link.send(Command::Close);
        self.link.wait_until_flushed();
    }
}

impl fmt::Debug for Tcp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Tcp({} of {})", self.rank, self.world)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Ipv4Addr;

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    /// A process that stops after it has begun a call: its connections stay.
    fn stopped(seat: &handshake::Seat<'_>, listener: &TcpListener) -> Vec<std::net::TcpStream> {
        let streams = handshake::meet(seat, listener, LONG, &|| None).unwrap();
        let call = Call::Mean {
            values: vec![0.0; 10],
            wire: Wire::F32,
        };
        let mut frame = Vec::new();
        let header = frame::Header {
            kind: frame::Kind::Start,
            what: frame::What::of(&call),
            payload: 0,
            sequence: 0,
            index: 10,
        };
        header.write(&mut frame);
        let mut streams: Vec<_> = streams.into_iter().flatten().collect();
        for stream in &mut streams {
            stream.write_all(&frame).unwrap();
        }
        streams
    }

    #[test]
    fn who_waits_for_a_rank_that_is_lost_gives_up_when_told() {
        let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
        // It accepts the others, calls them, or both, where they listen and are never heard of, or are gone.
        for (rank, are_gone) in [(0, false), (1, false), (2, false), (1, true), (2, true)] {
            let mut listeners: Vec<_> = (0..3).map(|_| listener()).collect();
            let address = |listener: &TcpListener| listener.local_addr().unwrap();
            let addresses: Vec<_> = listeners.iter().map(address).collect();
            let own = listeners.remove(rank as usize);
            if are_gone {
                listeners.clear();
            }
            // So often it is asked at all, once told to stop: not until a deadline.
            let asked = std::cell::Cell::new(0);
            let reason = || {
                asked.set(asked.get() + 1);
                (asked.get() > 3).then(|| "another rank is lost".to_owned())
            };
            let tcp = Tcp::connect_unless(&reason, Rank(rank), &addresses, own, "secret", LONG);
            let error = tcp.unwrap_err();
            assert!(
                matches!(error, CollectiveError::Interrupted { .. }),
                "{error}"
            );
            assert!(
                error.to_string().contains("another rank is lost"),
                "{error}"
            );
            assert_eq!(asked.get(), 4);
        }
    }

    #[test]
    fn a_rank_that_stops_within_a_call_is_named_by_those_who_wait_for_others_as_well() {
        let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut listeners: Vec<_> = (0..3).map(bind).collect();
        let address = |listener: &TcpListener| listener.local_addr().unwrap();
        let addresses: Vec<_> = listeners.iter().map(address).collect();
        let last = listeners.pop().unwrap();
        thread::scope(|scope| {
            let addresses = &addresses[..];
            let ranks: Vec<_> = (0..)
                .zip(listeners)
                .map(|(rank, listener)| {
                    scope.spawn(move || {
                        let tcp = Tcp::connect(Rank(rank), addresses, listener, "", LONG);
                        let mut tcp = tcp.unwrap();
                        // Rank 1 waits for the sum of rank 0, and its deadline comes first.
                        let deadline = [1500, 1250][rank as usize];
                        tcp.set_deadline(Duration::from_millis(deadline));
                        let pending = tcp.start_mean(vec![0.0; 10], Wire::F32);
                        let error = pending.and_then(Pending::wait).unwrap_err();
                        (error, tcp)
                    })
                })
                .collect();
            let seat = handshake::Seat {
                rank: 2,
                addresses,
                secret: "",
            };
            let streams = stopped(&seat, &last);
            for rank in ranks {
                let (error, _) = rank.join().unwrap();
                let CollectiveError::Deadline { missing, .. } = &error else {
                    panic!("{error}");
                };
                assert_eq!(missing[..], [Rank(2)], "{error}");
            }
            drop(streams);
        });
    }

    #[test]
    fn what_no_rank_sends_ends_the_group_and_names_the_sender() {
        let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for nonsense in [vec![0xff; 24], vec![3; 24], vec![2; 4096]] {
            let listeners: Vec<_> = (0..2).map(bind).collect();
            let address = |listener: &TcpListener| listener.local_addr().unwrap();
            let addresses: Vec<_> = listeners.iter().map(address).collect();
            let addresses = &addresses[..];
            let error = thread::scope(|scope| {
                let fake = scope.spawn(|| {
                    let seat = handshake::Seat {
                        rank: 1,
                        addresses,
                        secret: "",
                    };
                    let mut streams =
                        handshake::meet(&seat, &listeners[1], LONG, &|| None).unwrap();
                    let stream = streams[0].as_mut().unwrap();
                    stream.write_all(&nonsense).unwrap();
                    streams
                });
                let listener = listeners[0].try_clone().unwrap();
                let tcp = Tcp::connect(Rank(0), addresses, listener, "", LONG);
                let mut tcp = tcp.unwrap();
                let pending = tcp.start_mean(vec![0.0; 10], Wire::F32);
                let error = pending.and_then(Pending::wait).unwrap_err();
                drop(fake.join().unwrap());
                error
            });
            let text = error.to_string();
            assert!(text.starts_with("rank 1 is lost: "), "{text}");
            assert!(!text.contains("closed"), "{text}");
        }
    }
}
