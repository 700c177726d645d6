//! Ranks in processes of their own, each this very binary, and what becomes of them.

use std::env;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use synfire::collective::Tcp;
use synfire_shared::ids::Rank;

/// In the environment of the ranks: what they do, and where they meet.
const CASE: &str = "SYNFIRE_TEST_NCCL_CASE";
const MEETING: &str = "SYNFIRE_TEST_NCCL_MEETING";

/// For a job on a loaded machine; none that passes comes near.
const LIMIT: Duration = Duration::from_secs(100);

/// How a rank ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) text: String,
}

/// One rank's place.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub(super) rank: usize,
    pub(super) world: usize,
    meeting: SocketAddr,
}

/// Starts ranks that play this case, each with these variables, and waits for them.
pub(super) fn job(
    world: usize,
    case: &str,
    variables: impl Fn(usize) -> Vec<(&'static str, String)>,
) -> Vec<Ended> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let meeting = listener.local_addr().unwrap();
    thread::spawn(move || bring_together(&listener, world));
    let ranks: Vec<Child> = (0..world)
        .map(|rank| {
            let mut command = Command::new(env::current_exe().unwrap());
            command.args(["--ignored", "--exact", "needs_nccl_one_rank", "--nocapture"]);
            command.env(CASE, case);
            command.env(MEETING, format!("{meeting} {rank} {world}"));
            command.env("SYNFIRE_STAND_IN_DEVICES", "4");
            command.envs(variables(rank));
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let began = Instant::now();
    ranks
        .into_iter()
        .map(|child| end_of(child, began))
        .collect()
}

/// Waits for a rank; one that does not end is killed, which its status shows.
fn end_of(mut child: Child, began: Instant) -> Ended {
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = thread::spawn(move || {
        let mut text = String::new();
        let _ = out.read_to_string(&mut text);
        text
    });
    let errors = thread::spawn(move || {
        let mut text = String::new();
        let _ = err.read_to_string(&mut text);
        text
    });
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if began.elapsed() > LIMIT {
            let _ = child.kill();
        }
        thread::sleep(Duration::from_millis(10));
    };
    let mut text = read.join().unwrap();
    let errors = errors.join().unwrap();
    write!(text, "\n{errors}\n{status}").unwrap();
    Ended { status, text }
}

/// Tells every rank where all of them listen, as often as they want to know.
fn bring_together(listener: &TcpListener, world: usize) {
    loop {
        let mut ranks: Vec<Option<(TcpStream, String)>> = (0..world).map(|_| None).collect();
        while ranks.iter().any(Option::is_none) {
            let Ok((stream, _)) = listener.accept() else {
                return;
            };
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap())
                .read_line(&mut line)
                .unwrap();
            let (rank, address) = line.trim().split_once(' ').unwrap();
            ranks[rank.parse::<usize>().unwrap()] = Some((stream, address.to_owned()));
        }
        let all: Vec<String> = ranks.iter().flatten().map(|(_, a)| a.clone()).collect();
        for (stream, _) in ranks.iter_mut().flatten() {
            writeln!(stream, "{}", all.join(" ")).unwrap();
        }
    }
}

/// The case and the place of this process, if it is a rank.
pub(super) fn seat() -> Option<(String, Seat)> {
    let case = env::var(CASE).ok()?;
    let meeting = env::var(MEETING).unwrap();
    let words: Vec<&str> = meeting.split(' ').collect();
    let seat = Seat {
        rank: words[1].parse().unwrap(),
        world: words[2].parse().unwrap(),
        meeting: words[0].parse().unwrap(),
    };
    Some((case, seat))
}

impl Seat {
    /// A group on the host of all ranks.
    pub(super) fn tcp(&self) -> Tcp {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut stream = TcpStream::connect(self.meeting).unwrap();
        writeln!(stream, "{} {}", self.rank, listener.local_addr().unwrap()).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        let addresses: Vec<SocketAddr> = line
            .split_whitespace()
            .map(|address| address.parse().unwrap())
            .collect();
        let rank = Rank(u32::try_from(self.rank).unwrap());
        Tcp::connect(rank, &addresses, listener, "secret", LIMIT).unwrap()
    }
}
