//! Which errors another try may mend, and the exit status that says so.

use crate::checkpoint::CheckpointError;
use crate::collective::CollectiveError;
use crate::control::ControlError;
use crate::data::DataError;
use crate::train::TrainError;
use std::error::Error;
use std::process::ExitCode;
use synfire_shared::storage::{StorageError, system_error_may_pass};

/// The exit status of a run that ends because of something that may pass (`EX_TEMPFAIL` of
/// `sysexits.h`): a store or a coordinator out of reach, a full disk, ranks that are lost.
pub(super) const TEMPORARY: u8 = 75;

/// An error that another try may mend.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Temporary(pub(super) String);

/// The exit status of training that ended with this error.
pub(super) fn code(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(may_pass) {
        ExitCode::from(TEMPORARY)
    } else {
        ExitCode::FAILURE
    }
}

fn may_pass(error: &(dyn Error + 'static)) -> bool {
    fn is<E: Error + 'static>(error: &(dyn Error + 'static), passes: fn(&E) -> bool) -> bool {
        error.downcast_ref().is_some_and(passes)
    }
    error.is::<Temporary>()
        || is(error, training)
        || is(error, CheckpointError::may_pass)
        || is(error, data)
        || is(error, collective)
        || is(error, control)
        || is(error, StorageError::may_pass)
}

// What an error shows as its own text is no cause in its chain: each kind is looked into.
fn training(error: &TrainError) -> bool {
    match error {
        TrainError::Data(error) => data(error),
        TrainError::Checkpoint(error) => error.may_pass(),
        // The next start takes an older one.
        TrainError::DamagedStart { has_older, .. } => *has_older,
        TrainError::Ranks(error) => collective(error),
        TrainError::Device { what, .. } => what.may_pass,
        TrainError::Node(_)
        | TrainError::Weights(_)
        | TrainError::Disagree { .. }
        | TrainError::BatchTooLarge { .. }
        | TrainError::Evaluation { .. }
        | TrainError::Fault { .. } => false,
    }
}

fn data(error: &DataError) -> bool {
    match error {
        DataError::Storage(error) => error.may_pass(),
        DataError::Read { source, .. } | DataError::Cache { source, .. } => {
            system_error_may_pass(source)
        }
        // What is missing, damaged or of another kind is so again.
        DataError::Missing { .. }
        | DataError::TooLarge { .. }
        | DataError::Length { .. }
        | DataError::Label { .. }
        | DataError::Share(_)
        | DataError::BuiltIn { .. }
        | DataError::Index(_)
        | DataError::NoIndex { .. }
        | DataError::Shard { .. }
        | DataError::Sample { .. }
        | DataError::AllBad { .. }
        | DataError::Plan(_)
        | DataError::AutoAugment
        | DataError::Unusable { .. } => false,
    }
}

fn collective(error: &CollectiveError) -> bool {
    match error {
        CollectiveError::Lost { .. }
        | CollectiveError::Deadline { .. }
        | CollectiveError::Left { .. }
        | CollectiveError::Interrupted { .. }
        | CollectiveError::Device { .. }
        | CollectiveError::Io { .. } => true,
        CollectiveError::Unequal { .. }
        | CollectiveError::OutOfStep { .. }
        | CollectiveError::TooLong { .. }
        | CollectiveError::Group { .. } => false,
    }
}

fn control(error: &ControlError) -> bool {
    match error {
        ControlError::Unreachable { .. } | ControlError::Missing { .. } => true,
        ControlError::Url { .. }
        | ControlError::Certificates { .. }
        | ControlError::Setup { .. }
        | ControlError::Random { .. }
        | ControlError::Token { .. }
        | ControlError::Refused { .. }
        | ControlError::Answer { .. }
        | ControlError::Interrupted => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Failure;
    use std::io;
    use synfire_shared::ids::Rank;

    #[test]
    fn what_may_pass_is_told_from_what_will_not() {
        let store = |kind| CheckpointError::Store {
            what: "write",
            name: "a".into(),
            source: io::Error::from(kind),
        };
        let lost = CollectiveError::Lost {
            rank: Rank(1),
            reason: "the connection was closed".into(),
        };
        let not_written = |may_pass| CheckpointError::LastNotWritten {
            reason: "x".into(),
            may_pass,
        };
        let folder = "runs/1".to_owned();
        let read = |kind| DataError::Read {
            path: "a".into(),
            source: io::Error::from(kind),
        };
        let device = |may_pass| TrainError::Device {
            epoch: 0,
            batch: 0,
            what: Failure {
                what: "it is lost".into(),
                may_pass,
            },
        };
        let passing: [anyhow::Error; 8] = [
            device(true).into(),
            TrainError::from(store(io::ErrorKind::StorageFull)).into(),
            anyhow::Error::from(TrainError::from(lost)).context("rank 0"),
            read(io::ErrorKind::TimedOut).into(),
            TrainError::from(not_written(true)).into(),
            Temporary("rank 1 was lost".into()).into(),
            ControlError::Unreachable {
                url: "http://host".into(),
                seconds: 60,
                reason: "no answer in time".into(),
            }
            .into(),
            anyhow::Error::from(ControlError::Missing {
                seconds: 600,
                missing: Vec::new(),
            }),
        ];
        for error in passing {
            assert!(error.chain().any(may_pass), "{error:?}");
        }
        let staying: [anyhow::Error; 9] = [
            device(false).into(),
            TrainError::from(not_written(false)).into(),
            TrainError::from(store(io::ErrorKind::PermissionDenied)).into(),
            TrainError::from(CheckpointError::TakenOver { folder }).into(),
            read(io::ErrorKind::NotFound).into(),
            TrainError::BatchTooLarge { len: 1, batch: 2 }.into(),
            ControlError::Token {
                url: "http://host".into(),
            }
            .into(),
            // Of what was done a bare error of the system says nothing.
            io::Error::from(io::ErrorKind::TimedOut).into(),
            anyhow::anyhow!("the run is over"),
        ];
        for error in staying {
            assert!(!error.chain().any(may_pass), "{error:?}");
        }
    }
}
