//! Every group of ranks computes the same and fails alike: solo, threads and tcp here, MPI in
//! `worker/tests/mpi.rs`.

#![allow(
    clippy::unwrap_used,
    reason = "a helper that fails fails the test that called it"
)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use synfire::collective::{Collective, CollectiveError, Pending, Solo, Tcp, Wire, threads};
use synfire_shared::ids::Rank;
use synfire_tests::ranks::{self, Order};

const SECRET: &str = "generation 1";

/// Long enough for a loaded machine; no test that passes waits for it.
const PATIENCE: Duration = Duration::from_mins(1);

type Group = Vec<Box<dyn Collective>>;

fn threads_group(world: usize) -> Group {
    let boxed = |member| Box::new(member) as Box<dyn Collective>;
    threads::group(world).into_iter().map(boxed).collect()
}

fn tcp_group(world: usize) -> Group {
    let (listeners, addresses) = listeners(world);
    let members = listeners.into_iter().enumerate().map(|(rank, listener)| {
        let addresses = addresses.clone();
        thread::spawn(move || connect(rank, &addresses, listener, SECRET))
    });
    let members: Vec<_> = members.collect();
    let member = |member: thread::JoinHandle<Tcp>| member.join().unwrap();
    let boxed = |member| Box::new(member) as Box<dyn Collective>;
    members.into_iter().map(member).map(boxed).collect()
}

fn listeners(world: usize) -> (Vec<TcpListener>, Vec<SocketAddr>) {
    let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let listeners: Vec<_> = (0..world).map(bind).collect();
    let address = |listener: &TcpListener| listener.local_addr().unwrap();
    let addresses = listeners.iter().map(address).collect();
    (listeners, addresses)
}

fn connect(rank: usize, addresses: &[SocketAddr], listener: TcpListener, secret: &str) -> Tcp {
    let rank = Rank(u32::try_from(rank).unwrap());
    Tcp::connect(rank, addresses, listener, secret, PATIENCE).unwrap()
}

/// Runs a body in each rank's thread; what each gave, by rank.
fn in_ranks<T: Send>(group: Group, body: impl Fn(Box<dyn Collective>) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let body = &body;
        let spawn = |member: Box<dyn Collective>| scope.spawn(move || body(member));
        let ranks: Vec<_> = group.into_iter().map(spawn).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Every kind of group in every size that a failure can have.
fn every_group(worlds: std::ops::RangeInclusive<usize>, check: impl Fn(Group)) {
    for world in worlds {
        check(threads_group(world));
        check(tcp_group(world));
    }
}

fn fails(member: &mut dyn Collective, length: usize) -> CollectiveError {
    let pending = member.start_mean(vec![1.0; length], Wire::F32);
    pending.and_then(Pending::wait).unwrap_err()
}

fn works(member: &mut dyn Collective) {
    let pending = member.start_mean(vec![1.0; 3], Wire::F32).unwrap();
    assert_eq!(pending.wait().unwrap(), [1.0; 3]);
}

#[test]
fn one_rank_keeps_its_numbers() {
    ranks::check(&mut Solo::new(), Order::Rank);
}

#[test]
fn ranks_in_threads_average_in_rank_order() {
    for world in 1..=5 {
        in_ranks(threads_group(world), |mut m| {
            ranks::check(&mut *m, Order::Rank);
        });
    }
}

#[test]
fn ranks_over_tcp_average_in_rank_order() {
    for world in 1..=5 {
        in_ranks(tcp_group(world), |mut m| ranks::check(&mut *m, Order::Rank));
    }
}

#[test]
fn unequal_lengths_are_refused_on_every_rank_with_all_lengths() {
    every_group(2..=5, |group| {
        let world = group.len();
        let errors = in_ranks(group, |mut member| {
            works(&mut *member);
            let last = member.rank().0 as usize == world - 1;
            let error = fails(&mut *member, if last { 70_000 } else { 5 });
            // The group is over.
            assert!(member.gather(&[]).is_err());
            error
        });
        for error in errors {
            let CollectiveError::Unequal { lengths } = &error else {
                panic!("{error}");
            };
            assert_eq!(lengths.len(), world);
            assert_eq!((lengths[0], lengths[world - 1]), (5, 70_000));
        }
    });
}

#[test]
fn unequal_broadcasts_and_different_calls_are_refused() {
    every_group(2..=3, |group| {
        for error in in_ranks(group, |mut member| {
            let mut values = vec![0.0; 1 + member.rank().0 as usize];
            member.broadcast(Rank(1), &mut values).unwrap_err()
        }) {
            assert!(matches!(error, CollectiveError::Unequal { .. }), "{error}");
        }
    });
    every_group(2..=3, |group| {
        let errors = in_ranks(group, |mut member| match member.rank() {
            Rank(0) => fails(&mut *member, 1),
            _ => member.gather(&[1]).unwrap_err(),
        });
        let text = errors[0].to_string();
        let expected = "rank 1 asked for a gather while this rank asked for a mean in f32";
        assert!(
            text.starts_with(expected) || text.contains("gave up"),
            "{text}"
        );
    });
}

#[test]
fn a_rank_that_dies_is_named_by_all_others() {
    every_group(2..=5, |group| {
        let world = group.len();
        let errors = in_ranks(group, |mut member| {
            works(&mut *member);
            if member.rank().0 as usize == world - 1 {
                return None;
            }
            Some((fails(&mut *member, 100_000), member))
        });
        for (error, _) in errors.iter().flatten() {
            let CollectiveError::Lost { rank, .. } = error else {
                panic!("{error}");
            };
            assert_eq!(rank.0 as usize, world - 1);
        }
        assert_eq!(errors.iter().flatten().count(), world - 1);
    });
}

#[test]
fn a_rank_that_ends_after_its_last_call_harms_nobody() {
    every_group(2..=3, |group| {
        in_ranks(group, |mut member| {
            let mut start = || member.start_mean(vec![2.0; 100_000], Wire::F32).unwrap();
            let pending: Vec<Pending> = (0..4).map(|_| start()).collect();
            for pending in pending {
                assert_eq!(pending.wait().unwrap(), vec![2.0; 100_000]);
            }
        });
    });
}

#[test]
fn a_rank_that_hangs_is_named_at_the_deadline() {
    every_group(2..=4, |group| {
        let world = group.len();
        let errors = in_ranks(group, |mut member| {
            works(&mut *member);
            if member.rank() == Rank(1) {
                return (None, member);
            }
            // Only the first waits so short, the others learn it from there.
            let seconds = if member.rank() == Rank(0) { 1.5 } else { 60.0 };
            member.set_deadline(Duration::from_secs_f64(seconds));
            // Of threads each finds it out alone.
            if member.name() == "threads" {
                member.set_deadline(Duration::from_millis(1500));
            }
            (Some(fails(&mut *member, 10)), member)
        });
        let mut named = 0;
        for error in errors.iter().filter_map(|(error, _)| error.as_ref()) {
            let CollectiveError::Deadline { missing, .. } = error else {
                panic!("{error}");
            };
            assert_eq!(missing[..], [Rank(1)], "{error}");
            named += 1;
        }
        assert_eq!(named, world - 1);
    });
}

#[test]
fn a_rank_that_gives_up_says_why() {
    every_group(2..=4, |group| {
        for (error, _) in in_ranks(group, |mut member| {
            if member.rank() == Rank(1) {
                member.abort("the disk is full");
            }
            (fails(&mut *member, 100), member)
        }) {
            let text = error.to_string();
            assert_eq!(text, "rank 1 gave up: the disk is full");
        }
    });
}

#[test]
fn an_interrupt_ends_a_wait_at_once() {
    every_group(2..=2, |group| {
        let (over, is_over) = mpsc::sync_channel(1);
        let is_over = Mutex::new(is_over);
        let errors = in_ranks(group, |mut member| {
            if member.rank() == Rank(1) {
                is_over.lock().unwrap().recv_timeout(PATIENCE).unwrap();
                // What the other gave before it was interrupted may still count.
                let pending = member.start_mean(vec![0.0; 9], Wire::F32);
                let first = pending.and_then(Pending::wait);
                return match first {
                    Ok(_) => fails(&mut *member, 9).to_string(),
                    Err(error) => error.to_string(),
                };
            }
            let interrupt = member.interrupt();
            let pending = member.start_mean(vec![0.0; 9], Wire::F32).unwrap();
            let caller = thread::spawn(move || {
                // So that the wait has begun, mostly; it must end either way.
                thread::sleep(Duration::from_millis(50));
                interrupt.interrupt("rank 1 is cut off".into());
            });
            let error = pending.wait().unwrap_err().to_string();
            caller.join().unwrap();
            // Then the group is over.
            assert_eq!(fails(&mut *member, 9).to_string(), error);
            drop(member);
            over.send(()).unwrap();
            error
        });
        assert_eq!(errors[0], "interrupted: rank 1 is cut off");
        let told = [
            "rank 0 gave up: interrupted: rank 1 is cut off",
            "rank 0 is lost",
        ];
        let expected = told.iter().any(|told| errors[1].starts_with(told));
        assert!(expected, "{}", errors[1]);
    });
}

#[test]
fn strangers_and_wrong_secrets_do_not_harm_a_group() {
    let (mut listeners, addresses) = listeners(3);
    let last = listeners.pop().unwrap();
    let early: Vec<_> = listeners
        .into_iter()
        .enumerate()
        .map(|(rank, listener)| {
            let addresses = addresses.clone();
            thread::spawn(move || connect(rank, &addresses, listener, SECRET))
        })
        .collect();
    // Some say nothing, some say too much, one has another secret.
    let mut silent: Vec<_> = (0..100)
        .map(|_| TcpStream::connect(addresses[0]).unwrap())
        .collect();
    for stream in &mut silent[..50] {
        let _ = stream.write_all(&[b'x'; 4096]);
    }
    let fake = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let seconds = Duration::from_millis(300);
    let error = Tcp::connect(Rank(2), &addresses, fake, "generation 0", seconds).unwrap_err();
    let CollectiveError::Deadline { missing, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(missing[..], [Rank(0), Rank(1)]);
    let mut group: Group = vec![Box::new(connect(2, &addresses, last, SECRET))];
    for member in early {
        group.push(Box::new(member.join().unwrap()));
    }
    group.rotate_left(1);
    // A stranger learns nothing; one that spoke is cut off.
    let mut answer = Vec::new();
    let _ = silent[0].read_to_end(&mut answer);
    assert!(answer.is_empty());
    in_ranks(group, |mut member| works(&mut *member));
}

#[test]
fn who_does_not_come_is_named() {
    let (mut listeners, addresses) = listeners(3);
    let seconds = Duration::from_millis(300);
    let listener = listeners.remove(1);
    let error = Tcp::connect(Rank(1), &addresses, listener, SECRET, seconds).unwrap_err();
    let text = error.to_string();
    assert_eq!(text, "waited 0.3 s for rank 0, rank 2");
    let listener = listeners.remove(0);
    let error = Tcp::connect(Rank(3), &addresses, listener, SECRET, seconds).unwrap_err();
    assert!(matches!(error, CollectiveError::Group { .. }), "{error}");
}

#[test]
fn too_much_and_a_root_that_is_none_are_refused_before_they_travel() {
    for mut member in [threads_group(1), tcp_group(1)].into_iter().flatten() {
        let error = member.gather(&vec![0; (64 << 20) + 1]).unwrap_err();
        assert!(matches!(error, CollectiveError::TooLong { .. }), "{error}");
        let error = member.broadcast(Rank(1), &mut []).unwrap_err();
        assert!(matches!(error, CollectiveError::Group { .. }), "{error}");
        // Neither ended the group.
        works(&mut *member);
    }
}
