//! Decode, random-resized-crop to 224, flip and normalise: photographs per second of one thread.
//!
//! `SYNFIRE_SHARED` names the folder with `data/imagenet/one_per_class`; `decode_pillow.py` in
//! benches/rivals times the same pictures. One sample is a pass over all of them.

use std::fs;
use std::path::{Path, PathBuf};

use divan::Bencher;
use divan::counter::ItemsCount;
use synfire::data::imagenet::{Options, SIDE, Transform, normalise};
use synfire::data::picture::Picture;
use synfire_shared::ids::Epoch;

fn main() {
    divan::main();
}

/// The bytes of every photograph; none where the folder is not named.
fn photographs() -> Vec<Vec<u8>> {
    let Ok(shared) = std::env::var("SYNFIRE_SHARED") else {
        return Vec::new();
    };
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).expect("the folder is readable");
        let mut paths: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
        paths.sort();
        paths
    };
    let root = Path::new(&shared).join("data/imagenet/one_per_class");
    let files = entries(&root).into_iter().flat_map(|class| entries(&class));
    files
        .map(|file| fs::read(file).expect("the file is readable"))
        .collect()
}

#[divan::bench(sample_count = 10)]
fn decode(bencher: Bencher<'_, '_>) {
    let photographs = photographs();
    let mut picture = Picture::default();
    let bencher = bencher.counter(ItemsCount::new(photographs.len()));
    bencher.bench_local(|| {
        for bytes in &photographs {
            picture.decode(bytes).expect("every photograph decodes");
        }
    });
}

#[divan::bench(sample_count = 10)]
fn train(bencher: Bencher<'_, '_>) {
    let photographs = photographs();
    let mut transform = Transform::new(&normalise(), Options::default());
    let mut out = vec![0.0; (SIDE * SIDE * 3) as usize];
    let bencher = bencher.counter(ItemsCount::new(photographs.len()));
    bencher.bench_local(|| {
        for (sample, bytes) in (0..).zip(&photographs) {
            let done = transform.train(bytes, (1, Epoch(0), sample), &mut out);
            done.expect("every photograph decodes");
        }
    });
}

#[divan::bench(sample_count = 10)]
fn test(bencher: Bencher<'_, '_>) {
    let photographs = photographs();
    let mut transform = Transform::new(&normalise(), Options::default());
    let mut out = vec![0.0; (SIDE * SIDE * 3) as usize];
    let bencher = bencher.counter(ItemsCount::new(photographs.len()));
    bencher.bench_local(|| {
        for bytes in &photographs {
            transform
                .test(bytes, &mut out)
                .expect("every photograph decodes");
        }
    });
}
