//! Where ranks are: which of a machine's a rank is, and by that which GPU it takes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Collective, CollectiveError, rank_of};

/// Variables in which launchers say which of its machine's processes this is: Open MPI, MVAPICH, MPICH
/// and Intel MPI, Slurm, torchrun.
const LOCAL_RANKS: &[&str] = &[
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "SLURM_LOCALID",
    "LOCAL_RANK",
];

/// What a rank says of where it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Spot {
    machine: String,
    told: Option<u32>,
}

fn host() -> String {
    let read = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}"));
        text.unwrap_or_default().trim().to_owned()
    };
    format!("{} {}", read("hostname"), read("random/boot_id"))
}

/// How many ranks of this group come before this one on its machine, as all their launchers say, or else
/// as is counted. Every rank makes this call.
///
/// # Errors
///
/// As [`Collective::gather`].
///
/// # Panics
///
/// Never: texts and numbers are JSON.
pub fn local_rank(collective: &mut dyn Collective) -> Result<u32, CollectiveError> {
    let mine = Spot {
        machine: host(),
        told: told(|name| std::env::var(name).ok()),
    };
    let mine = serde_json::to_vec(&mine).expect("texts and numbers are JSON");
    let rank = collective.rank().0 as usize;
    let all = collective.gather(&mine)?;
    let read = |(rank, bytes): (usize, &Vec<u8>)| {
        serde_json::from_slice(bytes).map_err(|error| CollectiveError::Group {
            reason: format!("{} sent no place ({error})", rank_of(rank)),
        })
    };
    let all: Vec<Spot> = all.iter().enumerate().map(read).collect::<Result<_, _>>()?;
    Ok(local_ranks(&all)[rank])
}

fn told(variable: impl Fn(&str) -> Option<String>) -> Option<u32> {
    let number = |name: &&str| variable(name)?.trim().parse().ok();
    LOCAL_RANKS.iter().find_map(number)
}

/// By rank. What launchers say counts only where it is a place for each: a shell may have variables of
/// a job that started something else.
fn local_ranks(all: &[Spot]) -> Vec<u32> {
    let told: Option<Vec<(&str, u32)>> = all
        .iter()
        .map(|spot| Some((spot.machine.as_str(), spot.told?)))
        .collect();
    if let Some(mut places) = told {
        let numbers = places.iter().map(|(_, place)| *place).collect();
        places.sort_unstable();
        places.dedup();
        if places.len() == all.len() {
            return numbers;
        }
    }
    let mut counts = BTreeMap::new();
    let count = |spot: &Spot| {
        let count: &mut u32 = counts.entry(spot.machine.clone()).or_default();
        *count += 1;
        *count - 1
    };
    all.iter().map(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::threads;

    fn spots(spots: &[(&str, Option<u32>)]) -> Vec<Spot> {
        let spot = |&(machine, told): &(&str, Option<u32>)| Spot {
            machine: machine.to_owned(),
            told,
        };
        spots.iter().map(spot).collect()
    }

    #[test]
    fn ranks_are_counted_on_each_machine() {
        let all = spots(&[
            ("a", None),
            ("b", None),
            ("a", None),
            ("b", None),
            ("a", None),
        ]);
        assert_eq!(local_ranks(&all), [0, 0, 1, 1, 2]);
    }

    #[test]
    fn what_launchers_say_counts_where_it_makes_sense() {
        let all = spots(&[("a", Some(1)), ("a", Some(0)), ("b", Some(0))]);
        assert_eq!(local_ranks(&all), [1, 0, 0]);
        // One does not say, or two say the same.
        let all = spots(&[("a", Some(1)), ("a", None)]);
        assert_eq!(local_ranks(&all), [0, 1]);
        let all = spots(&[("a", Some(0)), ("a", Some(0))]);
        assert_eq!(local_ranks(&all), [0, 1]);
        let says = |wanted: &'static str, value: &'static str| {
            told(move |name| (name == wanted).then(|| value.to_owned()))
        };
        assert_eq!(says("OMPI_COMM_WORLD_LOCAL_RANK", "3"), Some(3));
        assert_eq!(says("SLURM_LOCALID", "2"), Some(2));
        assert_eq!(says("LOCAL_RANK", "none"), None);
    }

    #[test]
    fn a_group_in_one_process_is_on_one_machine() {
        let ranks: Vec<_> = threads::group(3)
            .into_iter()
            .map(|mut rank| std::thread::spawn(move || local_rank(&mut rank).unwrap()))
            .collect();
        let found: Vec<u32> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        assert_eq!(found, [0, 1, 2]);
    }
}
