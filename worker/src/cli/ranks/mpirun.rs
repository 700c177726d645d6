//! Ranks that an `mpirun` started: rank 0's process has the coordinator in it.

use super::super::say;
use super::super::train::Job;
use super::Seat;
use super::member::{Means, run_member};
use crate::collective::environment::MpiLaunch;
use crate::collective::{Collective, Mpi};
use crate::control::environment::Place;
use crate::control::{Coordinator, Waits, host};
use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use synfire_coordinator::serve::draw_token;
use synfire_coordinator::{Level, Options, Policy, Server};
use synfire_shared::storage::Store;
use synfire_shared::token::Token;

/// For the other ranks to say that they are done.
const FAREWELLS: Duration = Duration::from_secs(10);

/// Where the coordinator is, as rank 0 tells the others.
#[derive(Default, Serialize, Deserialize)]
struct Where {
    host: String,
    port: u16,
    token: String,
    /// Why there is none.
    failed: Option<String>,
}

pub(super) fn run(launch: MpiLaunch, job: &Job<'_>) -> anyhow::Result<ExitCode> {
    let mut mpi = Mpi::start()?;
    if let Some(world) = launch.world {
        ensure!(
            world == mpi.world(),
            "{} started {} ranks, but {} knows of {}: synfire was built with another MPI than \
             this mpirun belongs to; build it with that one's mpicc (MPICC=mpicc.openmpi or \
             mpicc.mpich)",
            launch.launcher,
            world.0,
            mpi.name(),
            mpi.world().0
        );
    }
    let (seat, server) = match meet(&mut mpi, job) {
        Ok(met) => met,
        Err(error) => {
            // Others may be in the middle of something: the job ends, and says why.
            mpi.abort(&format!("{error:#}"));
            return Err(error);
        }
    };
    let mut means = Means::Mpi(Some(Box::new(mpi)));
    let result = run_member(&seat, &mut means, job);
    if let (Err(error), Means::Mpi(Some(collective))) = (&result, &mut means) {
        collective.abort(&format!("{error:#}"));
    }
    if let (Ok(_), Some(server)) = (&result, server) {
        wait_for_farewells(&server);
    }
    result
}

/// Lets the other ranks say that they are done.
fn wait_for_farewells(server: &Server) {
    let begin = Instant::now();
    let is_done = || server.view().members.iter().all(|member| member.has_left);
    while begin.elapsed() < FAREWELLS && !is_done() {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Starts the coordinator in rank 0 and tells all ranks where it is.
fn meet(mpi: &mut Mpi, job: &Job<'_>) -> anyhow::Result<(Seat, Option<Server>)> {
    let (rank, world) = (mpi.rank(), mpi.world());
    let hosts = mpi.gather(host().as_bytes())?;
    let is_one_machine = hosts.iter().all(|host| *host == hosts[0]);
    let mut place = Where::default();
    let mut server = None;
    if rank.0 == 0 {
        match serve(job, world.0, is_one_machine) {
            Ok((started, found)) => (server, place) = (Some(started), found),
            Err(error) => place.failed = Some(format!("{error:#}")),
        }
    }
    let told = serde_json::to_vec(&place).context("texts and numbers are JSON")?;
    let told = mpi.gather(&told)?;
    let place: Where = serde_json::from_slice(&told[0]).context("what rank 0 sent")?;
    if let Some(reason) = place.failed {
        anyhow::bail!("the coordinator in rank 0 cannot start: {reason}");
    }
    let name = if is_one_machine {
        Ipv4Addr::LOCALHOST.to_string()
    } else {
        place.host
    };
    let seat = Seat {
        coordinator: Coordinator {
            url: format!("http://{name}:{}", place.port),
            token: Token::new(&place.token, "rank 0")?,
            ca: None,
        },
        place: Place {
            rank: Some(rank.0),
            world: Some(world.0),
            source: None,
        },
        waits: Waits::default(),
        bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
        with_parent: false,
        is_rank_0_the_coordinator: true,
    };
    Ok((seat, server))
}

/// Starts the coordinator.
fn serve(job: &Job<'_>, world: u32, is_one_machine: bool) -> anyhow::Result<(Server, Where)> {
    let policy = Policy {
        folder: job.run.folder.clone(),
        ..Policy::new(world, env!("CARGO_PKG_VERSION"))?
    };
    let store = match &job.run.folder {
        Some(folder) => Store::create(folder)?,
        None => Store::in_memory(),
    };
    let address = if is_one_machine {
        Ipv4Addr::LOCALHOST
    } else {
        Ipv4Addr::UNSPECIFIED
    };
    let token = draw_token()?;
    let options = Options {
        listen: SocketAddr::from((address, 0)),
        token: token.clone(),
        tls: None,
        policy,
        observer: Some(Box::new(|level, line| match level {
            Level::Info => tracing::info!("{line}"),
            Level::Warn => tracing::warn!("{line}"),
        })),
    };
    let server = Server::start(options, store, crate::checkpoint::CHECKPOINTS)?;
    say!("coordinator at {}", server.url());
    let found = Where {
        host: host(),
        port: server.address().port(),
        token: token.reveal().to_owned(),
        failed: None,
    };
    Ok((server, found))
}
