//! Who has started this process, as far as its environment tells.

use synfire_shared::ids::{Rank, World};

/// The place that an MPI launcher gave to this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MpiLaunch {
    /// This process's rank.
    pub rank: Rank,
    /// How many processes there are; none if the launcher does not say.
    pub world: Option<World>,
    /// Whose variables told it: "Open MPI", "PMI (MPICH, Intel MPI, Slurm)".
    pub launcher: &'static str,
}

impl MpiLaunch {
    /// The variable of the environment that told the rank.
    pub fn variable(&self) -> &'static str {
        let mut launchers = LAUNCHERS.iter();
        let found = launchers.find(|(_, _, launcher)| *launcher == self.launcher);
        found.map_or("PMI_RANK", |(rank, ..)| rank)
    }
}

/// Variables of rank and world, by launcher; the first that is there counts.
const LAUNCHERS: &[(&str, &str, &str)] = &[
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "Open MPI"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MVAPICH"),
    ("PMI_RANK", "PMI_SIZE", "PMI (MPICH, Intel MPI, Slurm)"),
    ("PMIX_RANK", "SLURM_STEP_NUM_TASKS", "PMIx"),
];

/// Whether this process was started by an `mpirun`, `mpiexec` or a launcher that speaks PMI, also
/// without the feature `mpi`: N processes that do not know of each other would be N runs.
///
/// Slurm's `srun` gives these variables to programs without MPI as well, if that is its default.
pub fn launched_by_mpi() -> Option<MpiLaunch> {
    launch_from(|name| std::env::var(name).ok())
}

fn launch_from(variable: impl Fn(&str) -> Option<String>) -> Option<MpiLaunch> {
    let number = |name: &str| variable(name)?.trim().parse().ok();
    LAUNCHERS.iter().find_map(|&(rank, world, launcher)| {
        Some(MpiLaunch {
            rank: Rank(number(rank)?),
            world: number(world).map(World),
            launcher,
        })
    })
}

/// How an MPI library is called shortly: "Open MPI 4.1.4" of "Open MPI v4.1.4, package: ...", "MPICH 4.0.2" of "MPICH Version:\t4.0.2\n...".
pub fn short_version(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let line = line.split(',').next().unwrap_or_default();
    let word = |word: &str| match word {
        "Version:" => None,
        version => Some(version.strip_prefix('v').unwrap_or(version).to_owned()),
    };
    let words: Vec<String> = line.split_whitespace().filter_map(word).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Option<(u32, Option<u32>, &'static str)> {
        let launch = launch_from(|name| {
            let found = variables.iter().find(|(other, _)| *other == name)?;
            Some(found.1.to_owned())
        })?;
        Some((launch.rank.0, launch.world.map(|w| w.0), launch.launcher))
    }

    #[test]
    fn launchers_are_told_by_their_variables() {
        let open = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4")];
        assert_eq!(launch(&open), Some((1, Some(4), "Open MPI")));
        let pmi = launch(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")]);
        assert_eq!(pmi, Some((0, Some(2), "PMI (MPICH, Intel MPI, Slurm)")));
        assert_eq!(launch(&[("PMIX_RANK", "3")]), Some((3, None, "PMIx")));
        let both = [open[0], open[1], ("PMIX_RANK", "3")];
        assert_eq!(launch(&both), Some((1, Some(4), "Open MPI")));
    }

    #[test]
    fn nothing_and_nonsense_are_no_launch() {
        assert_eq!(launch(&[]), None);
        assert_eq!(launch(&[("OMPI_COMM_WORLD_SIZE", "4")]), None);
        assert_eq!(launch(&[("PMI_RANK", "first"), ("PMI_SIZE", "2")]), None);
    }

    #[test]
    fn a_library_is_named_shortly() {
        let open = "Open MPI v4.1.4, package: Debian OpenMPI, ident: 4.1.4, May 26, 2022";
        assert_eq!(short_version(open), "Open MPI 4.1.4");
        let mpich = "MPICH Version:\t4.0.2\nMPICH Release date:\tThu Apr  7\n";
        assert_eq!(short_version(mpich), "MPICH 4.0.2");
        assert_eq!(short_version(""), "");
    }
}
