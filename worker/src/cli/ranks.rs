//! The ranks of a run: who started this process, with whom it trains, and how.
//!
//! # Layout
//!
//! - this file: the arguments, and what they and the environment mean.
//! - `member`: one rank of a generation that a coordinator forms.
//! - `parent`: what a launcher tells its ranks.
//! - `mpirun`: ranks that an `mpirun` started, with the coordinator in rank 0.

mod member;
#[cfg(feature = "mpi")]
mod mpirun;
mod parent;

use crate::collective::environment::{MpiLaunch, launched_by_mpi};
use crate::control::environment;
use crate::control::{Coordinator, Waits};
use crate::data::Source;
use anyhow::{Context as _, bail, ensure};
pub(super) use member::{Means, run_member};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use synfire_shared::Run;
use synfire_shared::checkpoint::Digest;
use synfire_shared::protocol::Identity;
use synfire_shared::shard_plan::ShardPlan;
use synfire_shared::token::{self, Token};

/// The variable with the coordinator's URL.
const COORDINATOR: &str = "SYNFIRE_COORDINATOR";

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Several ranks")]
#[expect(
    clippy::doc_markdown,
    reason = "variables of the environment in a help text"
)]
pub(super) struct Arguments {
    /// Train as one of the ranks that this coordinator brings together: http://HOST:PORT or https://.
    /// SYNFIRE_COORDINATOR says the same. The token is in --token-file or SYNFIRE_TOKEN
    #[arg(long, value_name = "URL")]
    coordinator: Option<String>,
    /// The file with the coordinator's token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A PEM file with the certificates to trust for https://, in place of the system's
    #[arg(long, value_name = "FILE")]
    coordinator_ca: Option<PathBuf>,
    /// The rank to ask for. By default that of the environment (Kubernetes' JOB_COMPLETION_INDEX,
    /// Slurm, Open MPI, PMI, torchrun's RANK), or one that the coordinator gives
    #[arg(long, value_name = "N")]
    rank: Option<u32>,
    /// For so many seconds other ranks that are missing are waited for. While a generation trains without
    /// this process, it waits for the next one for as long as that takes
    #[arg(long, value_name = "S", default_value_t = 600)]
    wait_for_ranks: u32,
    /// The address of this machine at which other ranks reach this one. CPU ranks without MPI are
    /// meant for one machine
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    bind: IpAddr,
    /// End when standard input does: a launcher that is gone must not leave ranks behind
    #[arg(long, hide = true)]
    with_parent: bool,
}

/// With whom this process trains.
#[derive(Debug)]
pub(super) enum Company {
    /// Nobody.
    Alone,
    /// The ranks that `mpirun` started.
    Mpi(MpiLaunch),
    /// Those that a coordinator brings together.
    Coordinator(Seat),
}

impl Company {
    /// The rank, as far as it is known.
    pub(super) fn rank(&self) -> u32 {
        match self {
            Self::Alone => 0,
            Self::Mpi(launch) => launch.rank.0,
            Self::Coordinator(seat) => seat.place.rank.unwrap_or(0),
        }
    }

    /// Ends the job of an `mpirun` if this rank cannot begin: MPICH's would let the others wait for
    /// it for ever.
    pub(super) fn give_up(&self, error: &anyhow::Error) {
        if let Self::Mpi(_) = self {
            give_up_under_mpi(error);
        }
    }
}

/// What a rank needs to join.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub(super) coordinator: Coordinator,
    pub(super) place: environment::Place,
    pub(super) waits: Waits,
    pub(super) bind: IpAddr,
    pub(super) with_parent: bool,
    /// The coordinator is in rank 0's process: one that is silent means that rank 0 is lost.
    pub(super) is_rank_0_the_coordinator: bool,
}

impl Arguments {
    /// Whether arguments say with whom to train.
    pub(super) fn name_company(&self) -> bool {
        self.coordinator.is_some() || self.rank.is_some() || self.token_file.is_some()
    }

    /// What the arguments and the environment say.
    pub(super) fn company(&self) -> anyhow::Result<Company> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let url = self.coordinator.clone();
        let url = url.or_else(|| Some(variable(COORDINATOR)?.to_string_lossy().into_owned()));
        let Some(url) = url else {
            ensure!(
                self.rank.is_none(),
                "--rank goes with --coordinator: without one nobody brings ranks together"
            );
            return Ok(match launched_by_mpi() {
                Some(launch) if launch.world.is_none_or(|world| world.0 > 1) => {
                    Company::Mpi(launch)
                }
                _ => Company::Alone,
            });
        };
        let token = if let Some(path) = &self.token_file {
            Token::read(path)?
        } else {
            let text = variable(token::VARIABLE).with_context(|| {
                format!(
                    "{url} wants a token: give --token-file, or {} in the environment",
                    token::VARIABLE
                )
            })?;
            Token::new(&text.to_string_lossy(), token::VARIABLE)?
        };
        Ok(Company::Coordinator(Seat {
            coordinator: Coordinator {
                url,
                token,
                ca: self.coordinator_ca.clone(),
            },
            place: environment::place(self.rank, &|name| std::env::var_os(name))?,
            waits: Waits {
                ranks: Duration::from_secs(self.wait_for_ranks.into()),
                ..Waits::default()
            },
            bind: self.bind,
            with_parent: self.with_parent,
            is_rank_0_the_coordinator: false,
        }))
    }
}

/// Trains with the ranks of an `mpirun`.
#[cfg(feature = "mpi")]
pub(super) fn run_under_mpi(
    launch: MpiLaunch,
    job: &super::train::Job<'_>,
) -> anyhow::Result<ExitCode> {
    mpirun::run(launch, job)
}

#[cfg(feature = "mpi")]
fn give_up_under_mpi(error: &anyhow::Error) {
    use crate::collective::{Collective as _, Mpi};
    if let Ok(mut mpi) = Mpi::start() {
        mpi.abort(&format!("{error:#}"));
    }
}

/// All ranks end by themselves.
#[cfg(not(feature = "mpi"))]
fn give_up_under_mpi(_: &anyhow::Error) {}

/// Says that this program was built without MPI: N processes that do not know of each other would be
/// N runs.
#[cfg(not(feature = "mpi"))]
pub(super) fn run_under_mpi(
    launch: MpiLaunch,
    _: &super::train::Job<'_>,
) -> anyhow::Result<ExitCode> {
    let ranks = launch
        .world
        .map_or("several".to_owned(), |world| world.0.to_string());
    bail!(
        "this process was started as one of {ranks} by {}, but synfire was built without MPI: build \
         it with --features mpi, or start the ranks with synfire launch -n {ranks} -- train ...; to \
         train alone all the same, unset {}",
        launch.launcher,
        launch.variable()
    )
}

/// What has to be the same on all ranks.
pub(super) fn identity(run: &Run, source: &Source) -> anyhow::Result<Identity> {
    let settings = run.settings();
    let plan = source.shard_plan();
    let batch = u32::try_from(run.data.batch).context("data.batch")?;
    if plan.is_none() {
        bail!(
            "the training set has {} images, data.batch is {batch}: make the batch smaller",
            source.info().train_len
        );
    }
    Ok(Identity {
        configuration: Digest::of_settings(&settings),
        settings,
        data: source.info().fingerprint,
        plan: plan.map_or_else(Digest::default, ShardPlan::digest),
        lanes: plan.map_or(1, ShardPlan::num_lanes),
        batch,
        folder: run.folder.clone(),
    })
}
