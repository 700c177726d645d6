//! Memory that a GPU does not have, as the command tells of it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A GPU of the stand-in: its memory, and how much of it the first choice of cuDNN's algorithms wants.
#[derive(Clone, Copy)]
struct Gpu {
    memory_mib: u32,
    workspace_mib: u32,
}

impl Gpu {
    /// The exit status of a command on it, and its errors.
    fn run(self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_synfire"))
            .args(arguments)
            .args(["--device", "cuda"])
            .env("SYNFIRE_STAND_IN_MEMORY_MIB", self.memory_mib.to_string())
            .env(
                "SYNFIRE_STAND_IN_WORKSPACE_MIB",
                self.workspace_mib.to_string(),
            )
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), errors)
    }

    /// Trains on two batches of so many pictures of a set, and tests.
    fn train(self, set: &Set, batch: usize, more: &[&str]) -> (Option<i32>, String) {
        let path = format!("data.path={}", set.0.display());
        let batch = format!("data.batch={batch}");
        let keys = [
            "data.source=cifar10",
            &path,
            &batch,
            "model.width=0.25",
            "run.max_batches=2",
        ];
        let keys = keys.iter().chain(more).flat_map(|key| ["--set", key]);
        self.run(&["train"].into_iter().chain(keys).collect::<Vec<_>>())
    }
}

/// A folder with a set in the form of CIFAR-10, all of noise.
struct Set(PathBuf);

impl Set {
    fn new(test: &str, pictures: usize) -> Self {
        let name = format!("synfire-{test}-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let mut draws = crate::support::Draws(5);
        for (file, pictures) in [("data_batch_1.bin", pictures), ("test_batch.bin", 4)] {
            let mut records = draws.bytes(pictures * 3073);
            for record in records.chunks_exact_mut(3073) {
                record[0] %= 10;
            }
            std::fs::write(folder.join(file), records).unwrap();
        }
        Self(folder)
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The batch that would fit, as an error says.
fn fitting(told: &str) -> usize {
    let (_, behind) = told.split_once("a batch of ").expect(told);
    let behind = behind
        .rsplit_once("a batch of ")
        .map_or(behind, |(_, last)| last);
    let (number, rest) = behind.split_once(' ').expect(told);
    assert!(rest.starts_with("would fit"), "{told}");
    number.parse().expect(told)
}

#[test]
#[ignore = "needs the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_stand_in_memory_that_runs_out_in_training_is_told_with_the_largest_batch_that_fits() {
    let set = Set::new("out-of-memory", 100);
    let gpu = |memory_mib, workspace_mib| Gpu {
        memory_mib,
        workspace_mib,
    };
    let stol = &["algorithm.time_steps=2"][..];
    let bptt = &["algorithm.name=bptt", "algorithm.window="][..];
    let [four, eight] = ["algorithm.time_steps=4", "algorithm.time_steps=8"];
    let long = |steps| [bptt, &[steps, "run.precision=bf16"]].concat();
    for (gpu, more) in [
        // So little that scratch counts twice if the old one is not given back before the new one is taken.
        (gpu(16, 3), stol.to_vec()),
        // A workspace that is no smaller for a smaller batch.
        (gpu(24, 6), long(four)),
        // What the backward takes is wanted long after the first call for which there was no memory.
        (gpu(48, 7), long(eight)),
    ] {
        let (status, told) = gpu.train(&set, 100, &more);
        assert_eq!(status, Some(1), "{told}");
        // It leaves enough for the network's buffers, but not for the workspace beside them.
        let planned = fitting(&told);
        let (status, told) = gpu.train(&set, planned, &more);
        // Not 75: another try of the same batch would end as this one.
        assert_eq!(status, Some(1), "{told}");
        let what = "error: epoch 1, batch 1: the device failed: the GPU is out of memory: ";
        assert!(told.contains(what), "{told}");
        // One error: nothing is done with memory that is not there.
        assert!(!told.contains("the GPU cannot go on"), "{told}");
        let fits = fitting(&told);
        assert!(fits < planned && 2 * fits >= planned, "{fits} of {planned}");
        let (status, told) = gpu.train(&set, fits, &more);
        assert_eq!(status, Some(0), "{fits} of {planned}: {told}");
    }
}

#[test]
#[ignore = "needs the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_stand_in_memory_that_runs_out_elsewhere_is_told_too() {
    let gpu = Gpu {
        memory_mib: 8,
        workspace_mib: 8,
    };
    let traces = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let trace = traces.join("ms.stol_k2_saved.safetensors");
    let trace = trace.display().to_string();
    let network = ["--model", "small", "--width", "0.25", "--input", "3x32x32"];
    let bench = [&["bench", "--batch", "2"][..], &network].concat();
    for arguments in [&["verify", &trace][..], &bench] {
        let (status, told) = gpu.run(arguments);
        assert_eq!(status, Some(1), "{told}");
        assert!(told.contains("the GPU is out of memory"), "{told}");
        // No batch is so small that there is room for the workspace.
        assert!(told.contains("use fewer time steps"), "{told}");
        let (status, told) = Gpu {
            memory_mib: 64,
            ..gpu
        }
        .run(arguments);
        assert_eq!(status, Some(0), "{told}");
    }
}
