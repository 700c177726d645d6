//! How ranks with a GPU each become one communicator: rank 0's id goes to all over the group on the
//! host, that of MPI or that of the coordinator's connections.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::{Collective, CollectiveError, rank_of};
use super::communicator::{Communicator, Trouble};
use super::driver::Context;
use super::library::{Functions, ID_BYTES};

/// By how much longer than NCCL the others are waited for, who tell how it went.
const MORE: Duration = Duration::from_secs(10);

/// Set where several ranks are to share a GPU, which NCCL can since 2.30.
const SHARED_GPU: &str = "NCCL_MULTI_RANK_GPU_ENABLE";

/// What a rank says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Hello {
    /// The GPU's number, as this rank counts.
    gpu: u32,
    /// The GPU's own name, which no other one in the world has: containers and `CUDA_VISIBLE_DEVICES`
    /// give them other numbers.
    uuid: String,
    /// Whether this rank's NCCL lets several ranks share a GPU.
    may_share: bool,
    version: String,
    /// Rank 0's id.
    id: Vec<u8>,
    /// Why it cannot.
    failed: Option<String>,
}

/// Opens this rank's part, when all ranks have theirs.
///
/// # Errors
///
/// The same on all ranks as far as can be: `Group` if a rank has no NCCL that will do, or no GPU of its
/// own; `Device` or `Deadline` if they cannot be connected; and as the group on the host fails.
pub(super) fn open(
    host: &mut dyn Collective,
    gpu: u32,
    deadline: Duration,
) -> Result<(Communicator, Arc<Context>), CollectiveError> {
    let ready = prepare(host.rank().0 == 0, gpu);
    let mine = Hello {
        gpu,
        uuid: ready
            .as_ref()
            .map_or_else(|_| String::new(), |r| r.1.uuid().to_owned()),
        may_share: std::env::var_os(SHARED_GPU).is_some(),
        version: ready
            .as_ref()
            .map_or_else(|_| String::new(), |r| r.0.version()),
        id: ready.as_ref().map_or_else(|_| Vec::new(), |r| r.2.to_vec()),
        failed: ready.as_ref().err().cloned(),
    };
    host.set_deadline(deadline);
    let all: Vec<Hello> = exchange(host, &mine)?;
    let id = agree(&all)?;
    let (functions, context, _) = ready.map_err(group)?;
    let seat = (host.rank().0 as usize, host.world().0 as usize);
    let interrupt = host.interrupt();
    let begun = Communicator::begin(functions, seat, id).and_then(|communicator| {
        communicator.settle(deadline, &|| interrupt.failure().is_some())?;
        Ok(communicator)
    });
    let told = begun.as_ref().err().map(said);
    host.set_deadline(deadline.saturating_add(MORE));
    let all: Vec<Option<String>> = exchange(host, &told)?;
    connected(&all, deadline)?;
    let communicator = begun.map_err(|trouble| CollectiveError::Device {
        reason: said(&trouble),
    })?;
    Ok((communicator, context))
}

/// What can fail before others are asked.
fn prepare(is_first: bool, gpu: u32) -> Result<(Functions, Arc<Context>, [u8; ID_BYTES]), String> {
    let context = Context::open(gpu)?;
    let functions = Functions::load()?;
    let mut id = [0; ID_BYTES];
    if is_first {
        id = functions.unique_id()?;
    }
    Ok((functions, context, id))
}

/// Rank 0's id, if all ranks can and each has a GPU of its own.
fn agree(all: &[Hello]) -> Result<[u8; ID_BYTES], CollectiveError> {
    for (rank, hello) in all.iter().enumerate() {
        let rank = rank_of(rank);
        if let Some(reason) = &hello.failed {
            return Err(group(format!("{rank} cannot average on its GPU: {reason}")));
        }
        if hello.version != all[0].version {
            return Err(group(format!(
                "{rank} has NCCL {} and rank 0 has {}: give all machines the same",
                hello.version, all[0].version
            )));
        }
    }
    if !all.iter().all(|hello| hello.may_share) {
        each_has_its_own(all)?;
    }
    let id = all[0].id.as_slice().try_into();
    id.map_err(|_| group("rank 0 sent no id of NCCL".into()))
}

fn each_has_its_own(all: &[Hello]) -> Result<(), CollectiveError> {
    for (rank, hello) in all.iter().enumerate() {
        let before = &all[..rank];
        let Some(first) = before.iter().position(|other| other.uuid == hello.uuid) else {
            continue;
        };
        return Err(group(format!(
            "{} and {} have the same GPU, number {} to the one and {} to the other ({}): start no more \
             ranks on a machine than it has GPUs, and name none by run.device = \"cuda:N\"",
            rank_of(first),
            rank_of(rank),
            before[first].gpu,
            hello.gpu,
            hello.uuid
        )));
    }
    Ok(())
}

/// Whether every rank is connected, by what each has to say.
fn connected(all: &[Option<String>], deadline: Duration) -> Result<(), CollectiveError> {
    let late = said(&Trouble::Late);
    let failed = || {
        all.iter()
            .enumerate()
            .filter_map(|(r, told)| Some((r, told.as_ref()?)))
    };
    // Who was late only waited: what another one says is the reason.
    let reason = failed()
        .find(|(_, told)| **told != late)
        .or_else(|| failed().next());
    match reason {
        None => Ok(()),
        Some((_, told)) if *told == late => Err(CollectiveError::Deadline {
            seconds: deadline.as_secs_f64(),
            missing: Vec::new(),
        }),
        Some((rank, told)) => Err(CollectiveError::Device {
            reason: format!("{} cannot connect: {told}", rank_of(rank)),
        }),
    }
}

fn said(trouble: &Trouble) -> String {
    match trouble {
        Trouble::Remote(reason) | Trouble::Unclear(reason) | Trouble::Own(reason) => reason.clone(),
        Trouble::Late => "NCCL has not connected the ranks in time".into(),
        Trouble::Aborted => "the group was ended".into(),
    }
}

fn group(reason: String) -> CollectiveError {
    CollectiveError::Group { reason }
}

/// Gives every rank what every rank says.
fn exchange<T: Serialize + for<'a> Deserialize<'a>>(
    host: &mut dyn Collective,
    mine: &T,
) -> Result<Vec<T>, CollectiveError> {
    let mine = serde_json::to_vec(mine).expect("numbers and texts are JSON");
    let all = host.gather(&mine)?;
    let read = |(rank, bytes): (usize, &Vec<u8>)| {
        serde_json::from_slice(bytes).map_err(|error| {
            let rank = rank_of(rank);
            group(format!(
                "{rank} sent what this rank cannot read ({error}): do they run the same version?"
            ))
        })
    };
    all.iter().enumerate().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(uuid: &str, gpu: u32) -> Hello {
        Hello {
            gpu,
            uuid: uuid.into(),
            may_share: false,
            version: "2.28.9".into(),
            id: vec![7; ID_BYTES],
            failed: None,
        }
    }

    #[test]
    fn ranks_agree_where_each_has_a_gpu_of_its_own() {
        // In containers each may be number 0.
        let all = [hello("a", 0), hello("b", 0), hello("c", 1)];
        assert_eq!(agree(&all).unwrap(), [7; ID_BYTES]);
        let mut all = [hello("a", 0), hello("b", 1), hello("b", 0)];
        let text = agree(&all).unwrap_err().to_string();
        let told =
            "rank 1 and rank 2 have the same GPU, number 1 to the one and 0 to the other (b)";
        assert!(text.contains(told), "{text}");
        // All of them have to know that they share.
        (all[1].may_share, all[2].may_share) = (true, true);
        assert!(agree(&all).is_err());
        all[0].may_share = true;
        assert!(agree(&all).is_ok());
    }

    #[test]
    fn what_keeps_a_rank_from_it_is_told_with_its_name() {
        let failed = Some("libnccl.so.2 was not found".to_owned());
        let all = [
            hello("a", 0),
            Hello {
                failed,
                ..hello("b", 1)
            },
        ];
        let text = agree(&all).unwrap_err().to_string();
        let expected = "rank 1 cannot average on its GPU: libnccl.so.2 was not found";
        assert!(text.ends_with(expected), "{text}");
        let version = "2.21.5".to_owned();
        let all = [
            hello("a", 0),
            Hello {
                version,
                ..hello("b", 1)
            },
        ];
        let text = agree(&all).unwrap_err().to_string();
        assert!(
            text.contains("rank 1 has NCCL 2.21.5 and rank 0 has 2.28.9"),
            "{text}"
        );
        let all = [Hello {
            id: vec![1; 5],
            ..hello("a", 0)
        }];
        assert!(agree(&all).is_err());
    }

    #[test]
    fn a_reason_counts_more_than_that_others_waited_for_it() {
        let seconds = Duration::from_secs(3);
        assert!(connected(&[None, None], seconds).is_ok());
        let late = || Some(said(&Trouble::Late));
        let error = connected(&[late(), None, late()], seconds).unwrap_err();
        assert!(matches!(error, CollectiveError::Deadline { .. }), "{error}");
        let own = Some("unhandled cuda error".to_owned());
        let text = connected(&[late(), own, None], seconds)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("rank 1 cannot connect: unhandled cuda error"),
            "{text}"
        );
    }
}
