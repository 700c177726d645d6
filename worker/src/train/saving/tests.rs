use super::*;
use crate::node;
use crate::shape::Shape;
use std::fs;
use std::path::Path;
use synfire_shared::run::QUICKSTART;

fn record(epoch: u32, correct: u64) -> EpochRecord {
    let test = Tally {
        correct: vec![correct],
        samples: vec![100],
        ..Tally::default()
    };
    EpochRecord {
        epoch,
        lr: 0.1,
        train: Tally::default(),
        test: Some(test),
        train_seconds: 1.0,
        images_per_second: 1.0,
        data_wait_seconds: 0.0,
        exchange_wait_seconds: 0.0,
        updates: 1,
    }
}

fn is_there(folder: &Path, number: u64) -> bool {
    folder
        .join(format!("checkpoints/{number:012}.json"))
        .is_file()
}

#[test]
fn the_best_that_could_not_be_written_is_no_best() {
    let root = std::env::temp_dir().join(format!("synfire-best-{}", std::process::id()));
    let _ = fs::remove_dir_all(&root);
    let sets = ["model.width=0.25", "checkpoint.every_minutes=1000000"].map(str::to_owned);
    let folder = format!("run.folder={}", root.display());
    let run = Run::from_toml(QUICKSTART, "quickstart", &[&sets[..], &[folder]].concat()).unwrap();
    let source = Source::open(&run.data, run.seed).unwrap();
    let mut node = node::build(&run, Shape::new(28, 28, 1), 10).unwrap();
    let batches = source.train_batches() as u64;
    let mut ends = Vec::new();
    let mut tell = |event: Event| {
        if let Event::CheckpointEnded { bytes, .. } = event {
            ends.push(bytes.is_some());
        }
    };
    let options = Options::default();
    let mut saving = Saving::begin(&run, &options, &source, &mut node, &mut tell).unwrap();
    // The end of an epoch, after which what it saved, if anything, is written.
    let mut epoch = |saving: &mut Saving, epoch: u32, correct: u64| {
        let place = (epoch + 1, 0, u64::from(epoch + 1) * batches);
        saving.end_of_epoch(&mut node, &record(epoch, correct), place, false);
        let is_saved = saving.handed_over == Some(place.2);
        while is_saved && saving.attempts.is_empty() {
            saving.settle();
            std::thread::yield_now();
        }
        saving.attend(&mut tell).unwrap();
        is_saved
    };
    assert!(epoch(&mut saving, 0, 50));
    assert!(is_there(&root, batches));
    let (checkpoints, away) = (root.join("checkpoints"), root.join("away"));
    fs::rename(&checkpoints, &away).unwrap();
    fs::write(&checkpoints, "in the way").unwrap();
    assert!(epoch(&mut saving, 1, 90));
    fs::remove_file(&checkpoints).unwrap();
    fs::rename(&away, &checkpoints).unwrap();
    // Worse than what was lost, better than what there is.
    assert!(epoch(&mut saving, 2, 80));
    assert!(is_there(&root, 3 * batches));
    assert!(!epoch(&mut saving, 3, 80));
    saving.finish(&mut |_| ()).unwrap();
    assert_eq!(ends, [true, false, true]);

    // A resumed run knows it too.
    let mut saving = Saving::begin(&run, &options, &source, &mut node, &mut |_| ()).unwrap();
    assert_eq!(saving.best.map(|best| best.correct), Some(80));
    saving.attend(&mut |_| ()).unwrap();
    drop(saving);
    fs::remove_dir_all(root).unwrap();
}
