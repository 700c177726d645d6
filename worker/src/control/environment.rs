//! Which rank the environment says this process is.
//!
//! Cluster managers (Slurm, Kubernetes) start programs, and those may be launchers of processes
//! (Open MPI, PMI, torchrun), whose ranks then are what counts: the inner one is believed. Two of the
//! same kind that contradict each other are an error.

use std::ffi::OsString;

/// What says which rank a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// What sets the variables.
    pub name: &'static str,
    rank: &'static str,
    /// Kubernetes tells no number of ranks.
    world: Option<&'static str>,
}

/// Launchers of processes.
const INNER: [Source; 3] = [
    source(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        Some("OMPI_COMM_WORLD_SIZE"),
    ),
    source("PMI", "PMI_RANK", Some("PMI_SIZE")),
    source("torchrun", "RANK", Some("WORLD_SIZE")),
];
/// Managers of clusters.
const OUTER: [Source; 2] = [
    source("Slurm", "SLURM_PROCID", Some("SLURM_NTASKS")),
    source("Kubernetes", "JOB_COMPLETION_INDEX", None),
];

const fn source(name: &'static str, rank: &'static str, world: Option<&'static str>) -> Source {
    Source { name, rank, world }
}

/// The rank that a process asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The rank; without one the coordinator gives one.
    pub rank: Option<u32>,
    /// The number of ranks, where it is known.
    pub world: Option<u32>,
    /// What said so; `None` for the command line or nothing.
    pub source: Option<Source>,
}

/// Why the environment cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvironmentError {
    /// A variable holds something else.
    #[error("{variable} is {value:?}, no whole number: correct or unset it, or give --rank")]
    Number {
        /// The variable.
        variable: &'static str,
        /// Its value, cut where it is long.
        value: String,
    },
    /// Two variables contradict each other.
    #[error(
        "{first} is {first_value}, but {second} is {second_value}: unset what is not meant, or give \
         --rank"
    )]
    Conflict {
        /// A variable.
        first: &'static str,
        /// Its value.
        first_value: u32,
        /// Another.
        second: &'static str,
        /// Its value.
        second_value: u32,
    },
    /// A rank that the world does not have.
    #[error("{rank_variable} is {rank}, but {world_variable} is {world}: ranks are 0 to {}", i64::from(*world) - 1)]
    Range {
        /// The variable with the rank.
        rank_variable: &'static str,
        /// The rank.
        rank: u32,
        /// The variable with the number of ranks.
        world_variable: &'static str,
        /// The number of ranks.
        world: u32,
    },
}

/// The place that `lookup` (the environment) tells, unless the command line gives a rank, which
/// always counts. A number of ranks alone, without a rank, says nothing.
///
/// # Errors
/// If a variable is no number, contradicts another, or the rank is none of the world's.
pub fn place(
    rank: Option<u32>,
    lookup: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Place, EnvironmentError> {
    if rank.is_some() {
        return Ok(Place {
            rank,
            ..Place::default()
        });
    }
    for sources in [&INNER[..], &OUTER[..]] {
        let mut found: Option<(Source, u32, Option<u32>)> = None;
        for &source in sources {
            let Some((rank, world)) = told(source, lookup)? else {
                continue;
            };
            if let Some((first, first_rank, first_world)) = &mut found {
                agree(first.rank, *first_rank, source.rank, rank)?;
                if let (Some(a), Some(b)) = (*first_world, world) {
                    agree(world_of(*first), a, world_of(source), b)?;
                }
                *first_world = first_world.or(world);
            } else {
                found = Some((source, rank, world));
            }
        }
        if let Some((source, rank, world)) = found {
            return Ok(Place {
                rank: Some(rank),
                world,
                source: Some(source),
            });
        }
    }
    Ok(Place::default())
}

fn world_of(source: Source) -> &'static str {
    source.world.unwrap_or("its number of ranks")
}

fn agree(
    first: &'static str,
    first_value: u32,
    second: &'static str,
    second_value: u32,
) -> Result<(), EnvironmentError> {
    if first_value == second_value {
        return Ok(());
    }
    Err(EnvironmentError::Conflict {
        first,
        first_value,
        second,
        second_value,
    })
}

/// Rank and world as one source tells them, if it does.
fn told(
    source: Source,
    lookup: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Option<(u32, Option<u32>)>, EnvironmentError> {
    let Some(rank) = number(source.rank, lookup)? else {
        return Ok(None);
    };
    let Some(world_variable) = source.world else {
        return Ok(Some((rank, None)));
    };
    let world = number(world_variable, lookup)?;
    match world {
        Some(world) if rank >= world => Err(EnvironmentError::Range {
            rank_variable: source.rank,
            rank,
            world_variable,
            world,
        }),
        _ => Ok(Some((rank, world))),
    }
}

fn number(
    variable: &'static str,
    lookup: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Option<u32>, EnvironmentError> {
    /// Of a value that is repeated in an error.
    const MAX_CHARS: usize = 40;
    // One that is set but empty says nothing.
    let Some(value) = lookup(variable).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let value = value.to_string_lossy();
    let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
    match value.parse() {
        Ok(number) if is_number => Ok(Some(number)),
        Ok(_) | Err(_) => Err(EnvironmentError::Number {
            variable,
            value: value.chars().take(MAX_CHARS).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rank: Option<u32>, variables: &[(&str, &str)]) -> Result<Place, EnvironmentError> {
        place(rank, &|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    type Variables = &'static [(&'static str, &'static str)];

    #[test]
    fn each_launcher_tells_its_rank() {
        type Told = Option<(u32, Option<u32>, &'static str)>;
        let cases: [(Variables, Told); 13] = [
            (&[], None),
            (&[("RANK", ""), ("WORLD_SIZE", "")], None),
            (
                &[("RANK", ""), ("SLURM_PROCID", "1"), ("SLURM_NTASKS", "")],
                Some((1, None, "Slurm")),
            ),
            (&[("WORLD_SIZE", "4")], None),
            (&[("SLURM_NTASKS", "x")], None),
            (
                &[("JOB_COMPLETION_INDEX", "3")],
                Some((3, None, "Kubernetes")),
            ),
            (
                &[("SLURM_PROCID", "1"), ("SLURM_NTASKS", "4")],
                Some((1, Some(4), "Slurm")),
            ),
            (
                &[("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "3")],
                Some((2, Some(3), "Open MPI")),
            ),
            (
                &[("PMI_RANK", "0"), ("PMI_SIZE", "2")],
                Some((0, Some(2), "PMI")),
            ),
            (
                &[("RANK", "7"), ("WORLD_SIZE", "8")],
                Some((7, Some(8), "torchrun")),
            ),
            (&[("RANK", "7")], Some((7, None, "torchrun"))),
            // srun with PMI: both tell the same; the inner one is named.
            (
                &[
                    ("PMI_RANK", "1"),
                    ("SLURM_PROCID", "1"),
                    ("SLURM_NTASKS", "2"),
                ],
                Some((1, None, "PMI")),
            ),
            // mpirun in a batch script of Slurm: every process has the script's SLURM_PROCID.
            (
                &[
                    ("OMPI_COMM_WORLD_RANK", "3"),
                    ("OMPI_COMM_WORLD_SIZE", "4"),
                    ("SLURM_PROCID", "0"),
                    ("SLURM_NTASKS", "4"),
                ],
                Some((3, Some(4), "Open MPI")),
            ),
        ];
        for (variables, wanted) in cases {
            let place = of(None, variables).unwrap();
            let got = place.rank.map(|rank| {
                let source = place.source.unwrap().name;
                (rank, place.world, source)
            });
            assert_eq!(got, wanted, "{variables:?}");
        }
    }

    #[test]
    fn a_rank_of_the_command_line_counts_whatever_the_environment_says() {
        let place = of(Some(5), &[("RANK", "nonsense"), ("PMI_RANK", "1")]).unwrap();
        assert_eq!((place.rank, place.world), (Some(5), None));
    }

    #[test]
    fn contradictions_and_what_is_no_number_are_errors_that_name_the_variable() {
        let cases: [(Variables, &[&str]); 9] = [
            (&[("RANK", "one")], &["RANK is \"one\""]),
            (&[("RANK", " ")], &["RANK is \" \""]),
            (&[("RANK", "+1")], &["RANK is \"+1\""]),
            (&[("RANK", "4294967296")], &["RANK is \"4294967296\""]),
            (
                &[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "-1")],
                &["SLURM_NTASKS is \"-1\"", "--rank"],
            ),
            (
                &[("OMPI_COMM_WORLD_RANK", "0"), ("RANK", "1")],
                &["OMPI_COMM_WORLD_RANK is 0", "RANK is 1", "--rank"],
            ),
            (
                &[
                    ("PMI_RANK", "0"),
                    ("PMI_SIZE", "2"),
                    ("RANK", "0"),
                    ("WORLD_SIZE", "4"),
                ],
                &["PMI_SIZE is 2", "WORLD_SIZE is 4"],
            ),
            (
                &[("SLURM_PROCID", "1"), ("JOB_COMPLETION_INDEX", "0")],
                &["SLURM_PROCID is 1", "JOB_COMPLETION_INDEX is 0"],
            ),
            (
                &[("RANK", "4"), ("WORLD_SIZE", "4")],
                &["RANK is 4", "WORLD_SIZE is 4", "0 to 3"],
            ),
        ];
        for (variables, wanted) in cases {
            let error = of(None, variables).unwrap_err().to_string();
            for part in wanted {
                assert!(error.contains(part), "{variables:?}: {error}");
            }
        }
        let long = "x".repeat(1000);
        let error = of(None, &[("RANK", &long)]).unwrap_err().to_string();
        assert!(error.len() < 200, "{error}");
    }
}
