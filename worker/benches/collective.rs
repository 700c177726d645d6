//! How fast groups of ranks average: gigabytes of f32 per second, for buckets of 4 KiB to 64 MiB.
//!
//! `cargo bench --bench collective` measures two ranks in threads and over tcp; a binary with the
//! feature `mpi`, started by `mpirun -n 2`, measures MPI. Each line is the best of a few rounds,
//! because other programs only ever make it slower.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use synfire::collective::{Collective, Pending, Tcp, Wire, threads};
use synfire_shared::ids::Rank;

const WORLD: usize = 2;
const ROUNDS: usize = 5;

/// How long a round takes, about.
const ROUND: Duration = Duration::from_millis(100);

fn main() {
    #[cfg(feature = "mpi")]
    if synfire::collective::environment::launched_by_mpi().is_some() {
        let mut group = synfire::collective::Mpi::start().expect("mpirun has started this");
        return measure(&mut group);
    }
    in_ranks(threads::group(WORLD));
    in_ranks(tcp_group());
}

fn in_ranks<C: Collective>(group: Vec<C>) {
    thread::scope(|scope| {
        for mut member in group {
            scope.spawn(move || measure(&mut member));
        }
    });
}

fn tcp_group() -> Vec<Tcp> {
    let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
    let listeners: Vec<_> = (0..WORLD).map(bind).collect();
    let address = |listener: &TcpListener| listener.local_addr().expect("it is bound");
    let addresses: Vec<SocketAddr> = listeners.iter().map(address).collect();
    thread::scope(|scope| {
        let addresses = &addresses;
        let connect = |(rank, listener)| {
            scope.spawn(move || {
                let deadline = Duration::from_secs(10);
                Tcp::connect(Rank(rank), addresses, listener, "bench", deadline)
            })
        };
        let members: Vec<_> = (0..).zip(listeners).map(connect).collect();
        let join = |member: thread::ScopedJoinHandle<'_, _>| member.join().expect("no panic");
        let members = members.into_iter().map(join);
        members.collect::<Result<_, _>>().expect("loopback")
    })
}

fn measure(group: &mut dyn Collective) {
    for wire in [Wire::F32, Wire::Bf16] {
        for bytes in [4 << 10, 64 << 10, 1 << 20, 10 << 20, 64 << 20] {
            let seconds = best(group, bytes / 4, wire);
            if group.rank() == Rank(0) {
                let text = format!(
                    "{:>8} {wire:?} {:>6} KiB {:>10.1} us {:>7.3} GB/s",
                    group.name(),
                    bytes >> 10,
                    seconds * 1e6,
                    bytes as f64 / seconds / 1e9
                );
                tell(&text);
            }
        }
    }
}

/// Seconds for one mean.
fn best(group: &mut dyn Collective, length: usize, wire: Wire) -> f64 {
    let mut values = vec![1.0; length];
    let mut mean = |group: &mut dyn Collective, times: u32| {
        let began = Instant::now();
        for _ in 0..times {
            let pending = group.start_mean(std::mem::take(&mut values), wire);
            values = pending.and_then(Pending::wait).expect("the group is whole");
        }
        began.elapsed().as_secs_f64() / f64::from(times)
    };
    let first = mean(group, 2);
    // All ranks must call equally often: rank 0 decides.
    let times = (1..2000).find(|&times| f64::from(times) * first >= ROUND.as_secs_f64());
    let times = times.unwrap_or(2000_u32).to_le_bytes();
    let all = group.gather(&times).expect("the group is whole");
    let times = all[0].first_chunk().expect("four bytes were sent");
    let times = u32::from_le_bytes(*times);
    let rounds = (0..ROUNDS).map(|_| mean(group, times));
    rounds.fold(first, f64::min)
}

#[expect(clippy::print_stdout, reason = "it is what this program is for")]
fn tell(text: &str) {
    println!("{text}");
}
