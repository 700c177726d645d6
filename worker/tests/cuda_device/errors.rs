//! Every error of a GPU, and of what it needs.

use crate::support::{in_a_process, open};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;
use synfire::kernel::cuda::device::{
    Arguments, Convolution, ConvolutionShape, CudaError, Device, Operands, Pass,
};

/// [`in_a_process`] of a test of this file.
fn in_process(test: &str, environment: &[(&str, &OsStr)], work: impl FnOnce() -> String) -> String {
    in_a_process(&format!("errors::{test}"), environment, work)
}

fn opening() -> String {
    match Device::open(0) {
        Ok(device) => format!("opened {}", device.name()),
        Err(error) => format!("{error:?} {error}"),
    }
}

/// A folder of its own for a test, empty.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("synfire-{name}-{}", std::process::id()));
    if std::env::var_os("SYNFIRE_TEST_CHILD").is_none() {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
    }
    folder
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_a_gpu_that_is_not_there_is_an_error_with_their_number() {
    let none = [
        ("CUDA_VISIBLE_DEVICES", OsStr::new("")),
        ("SYNFIRE_STAND_IN_DEVICES", OsStr::new("0")),
    ];
    let test = "needs_cuda_a_gpu_that_is_not_there_is_an_error_with_their_number";
    let told = in_process(test, &none, opening);
    assert!(
        told.starts_with("NoDevice { ordinal: 0, count: 0 }"),
        "{told}"
    );
    let error = Device::open(1000).unwrap_err();
    let CudaError::NoDevice { ordinal, count } = error else {
        panic!("{error}");
    };
    assert_eq!(ordinal, 1000);
    assert!(count >= 1);
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_a_fault_of_a_kernel_is_kept() {
    /// As in fill.cu.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Fault {
        thread: u64,
    }
    // SAFETY: the fields are those of fill.cu.
    unsafe impl Arguments for Fault {
        const KERNEL: &'static str = "fault";
    }
    // A process of its own: after a fault CUDA is lost to the whole of it.
    let told = in_process("needs_cuda_a_fault_of_a_kernel_is_kept", &[], || {
        let device = open();
        let memory = device.allocate(64).unwrap();
        // No thread has this number: nothing happens.
        device.launch([2, 1, 1], 32, &Fault { thread: 64 });
        device.wait();
        assert_eq!(device.fault(), None);
        device.launch([2, 1, 1], 32, &Fault { thread: 63 });
        device.wait();
        let fault = device.fault();
        assert_eq!(device.allocate(64).err(), fault);
        assert_eq!(device.memory_info().err(), fault);
        device.write(memory.pointer(), &[1; 64]);
        let later = device.read_later(memory.pointer(), 64);
        assert!(later.is_ready());
        assert_eq!(later.wait(), [0; 64]);
        drop(memory);
        drop(device);
        format!("{fault:?}")
    });
    assert!(told.starts_with("Some(Fault {"), "{told}");
    assert!(told.contains("CUDA_ERROR_LAUNCH_FAILED"), "{told}");
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_a_kernel_that_is_not_there_or_differs_is_a_fault() {
    #[derive(Clone, Copy)]
    struct Nothing;
    // SAFETY: no kernel is called so.
    unsafe impl Arguments for Nothing {
        const KERNEL: &'static str = "nothing";
    }
    #[derive(Clone, Copy)]
    struct Short(#[allow(dead_code, reason = "too short to be launched")] u64);
    // SAFETY: the size differs, which is found before the launch.
    unsafe impl Arguments for Short {
        const KERNEL: &'static str = "fill";
    }
    let device = open();
    device.launch([1, 1, 1], 32, &Nothing);
    let kernel = "nothing";
    assert_eq!(device.fault(), Some(CudaError::UnknownKernel { kernel }));
    let device = open();
    device.launch([1, 1, 1], 32, &Short(0));
    let (kernel, host, on_device) = ("fill", 8, 24);
    let expected = CudaError::ArgumentBytes {
        kernel,
        host,
        device: on_device,
    };
    assert_eq!(device.fault(), Some(expected));
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_kernels_are_cached_and_damaged_ones_compiled_again() {
    let test = "needs_cuda_kernels_are_cached_and_damaged_ones_compiled_again";
    let folder = folder("kernel-cache");
    let environment = [("SYNFIRE_CACHE", folder.as_os_str())];
    let entries = || -> Vec<(PathBuf, Vec<u8>, SystemTime)> {
        let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        let read = |path: PathBuf| {
            let modified = fs::metadata(&path).unwrap().modified().unwrap();
            (path.clone(), fs::read(path).unwrap(), modified)
        };
        paths.into_iter().map(read).collect()
    };
    let run = || in_process(test, &environment, opening);
    assert!(run().starts_with("opened"));
    let first = entries();
    assert!(!first.is_empty());
    assert!(run().starts_with("opened"));
    assert_eq!(entries(), first, "written once");
    for (path, bytes, _) in &first {
        let mut damaged = bytes.clone();
        *damaged.last_mut().unwrap() ^= 1;
        fs::write(path, damaged).unwrap();
    }
    assert!(run().starts_with("opened"));
    for ((_, then, _), (_, now, _)) in first.iter().zip(&entries()) {
        assert!(then == now, "compiled again, to the same");
    }
    // No folder can be made under a file.
    let nowhere = first[0].0.join("folder");
    let told = in_process(test, &[("SYNFIRE_CACHE", nowhere.as_os_str())], opening);
    assert!(told.starts_with("opened"), "{told}");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
#[ignore = "needs the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_stand_in_an_old_driver_is_an_error_with_its_version() {
    let test = "needs_cuda_stand_in_an_old_driver_is_an_error_with_its_version";
    let old = [("SYNFIRE_STAND_IN_DRIVER_VERSION", OsStr::new("12080"))];
    let told = in_process(test, &old, opening);
    assert!(told.starts_with("OldDriver { found: \"12.8\""), "{told}");
    assert!(told.contains("CUDA 13.0 is wanted"), "{told}");
}

#[test]
#[ignore = "needs the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_stand_in_what_is_missing_is_named_with_its_remedy() {
    let test = "needs_cuda_stand_in_what_is_missing_is_named_with_its_remedy";
    let folder = folder("libraries");
    let run = || {
        let environment = [
            // The system's loader knows nothing of the folder: what is opened by its path is found by name.
            ("LD_LIBRARY_PATH", OsStr::new("")),
            ("SYNFIRE_LIBRARIES", folder.as_os_str()),
            ("VIRTUAL_ENV", OsStr::new("")),
            ("PATH", OsStr::new("")),
            ("HOME", OsStr::new("")),
            ("SYNFIRE_CACHE", folder.as_os_str()),
        ];
        in_process(test, &environment, opening)
    };
    let link = |name: &str, library: &str| {
        std::os::unix::fs::symlink(library_file(library), folder.join(name)).unwrap();
    };
    let shown = folder.display().to_string();
    let missing = |library: &str, remedy: &str| {
        let told = run();
        let begin = format!("MissingLibrary {{ library: {library}, ");
        assert!(told.starts_with(&begin), "{told}");
        assert!(told.contains(&shown) && told.contains(remedy), "{told}");
    };
    missing("Driver", "driver 580");
    link("libcuda.so.1", "libcuda.so.1");
    missing("Nvrtc", "pip install 'nvidia-cuda-nvrtc");
    link("libnvrtc.so.13", "libnvrtc.so.13");
    link("libnvrtc-builtins.so.13.0", "libnvrtc-builtins.so.13.0");
    missing("Cudnn", "pip install nvidia-cudnn-cu13");
    // A library that is another, by the name inside it.
    link("libcudnn.so.9", "libcuda.so.1");
    missing("Cudnn", "calls itself something else");
    fs::remove_file(folder.join("libcudnn.so.9")).unwrap();
    // One that has no functions.
    let status = Command::new("g++")
        .args(["-shared", "-Wl,-soname,libcudnn.so.9", "-o"])
        .arg(folder.join("libcudnn.so.9"))
        .args(["-x", "c++", "/dev/null"])
        .status();
    assert!(status.unwrap().success());
    let told = run();
    let begin = "MissingSymbol { library: Cudnn, ";
    assert!(told.starts_with(begin), "{told}");
    assert!(told.contains("cudnnBackendCreateDescriptor"), "{told}");
    // One that is older than a function of the graph API.
    library_without("cudnnBackendExecute", &folder.join("libcudnn.so.9"));
    let told = run();
    assert!(told.starts_with(begin), "{told}");
    assert!(told.contains("no function cudnnBackendExecute"), "{told}");
    assert!(told.contains("pip install nvidia-cudnn-cu13"), "{told}");
    // A file that is none.
    fs::remove_file(folder.join("libcudnn.so.9")).unwrap();
    fs::write(folder.join("libcudnn.so.9"), "no library").unwrap();
    missing("Cudnn", "pip install nvidia-cudnn-cu13");
    fs::remove_file(folder.join("libcudnn.so.9")).unwrap();
    link("libcudnn.so.9", "libcudnn.so.9");
    let told = run();
    assert!(told.starts_with("opened"), "{told}");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
#[ignore = "needs the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_stand_in_engines_that_are_no_good_are_counted_in_the_error() {
    let test = "needs_cuda_stand_in_engines_that_are_no_good_are_counted_in_the_error";
    let side = |channels| [8, 8, channels];
    let shape = ConvolutionShape {
        samples: 2,
        input: side(4),
        output: side(6),
        kernel: 3,
        stride: 1,
        padding: 1,
        operands: Operands::F32,
    };
    let preparing = || {
        let device = open();
        let mut convolution = Convolution::by_graphs(&device, &shape).unwrap();
        let made = convolution.prepare(&device, Pass::Data { accumulate: true });
        assert_eq!(device.fault(), None);
        match made {
            Ok(_) => convolution.algorithms(),
            Err(error) => format!("{error:?} {error}"),
        }
    };
    for (engines, expected) in [
        (
            "",
            "of 0 engines 0 are not deterministic, 0 round f32, 0 need more than 1024 MiB",
        ),
        (
            "0,4,7,9",
            "of 4 engines 1 are not deterministic, 1 round f32, 1 need more than 1024 MiB",
        ),
        ("0,4,7,9", "1 are refused"),
        (
            "0,4,7,9",
            "the data gradient of a 3x3 convolution of 2 x 8x8x4",
        ),
        (
            "0,4,7,9",
            "leave run.convolutions, or --convolutions, \"legacy\"",
        ),
    ] {
        let environment = [("SYNFIRE_STAND_IN_ENGINES", OsStr::new(engines))];
        let told = in_process(test, &environment, preparing);
        assert!(told.starts_with("NoPlan {"), "{told}");
        assert!(told.contains(expected), "{told}");
    }
    let told = in_process(test, &[], preparing);
    assert!(
        told.ends_with("data gradient: engine 1 (3180 bytes)"),
        "{told}"
    );
}

#[test]
#[ignore = "needs the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_stand_in_a_stub_before_the_driver_is_an_error_with_its_path() {
    let test = "needs_cuda_stand_in_a_stub_before_the_driver_is_an_error_with_its_path";
    let folder = folder("stubs");
    let stub = folder.join("libcuda.so");
    let driver = library_file("libcuda.so.1");
    // In the process that is started there is no such folder.
    if folder.exists() {
        fs::copy(&driver, &stub).unwrap();
    }
    let before = std::env::var_os("LD_LIBRARY_PATH").unwrap();
    let path = std::env::split_paths(&before);
    let path = std::env::join_paths([folder.clone()].into_iter().chain(path)).unwrap();
    let told = in_process(test, &[("LD_LIBRARY_PATH", &path)], opening);
    assert!(
        told.starts_with("MissingLibrary { library: Driver, "),
        "{told}"
    );
    let expected = format!("{} is found before ", stub.display());
    assert!(told.contains(&expected), "{told}");
    let remedy = "libcuda.so.1: take its folder out of LD_LIBRARY_PATH";
    assert!(told.contains(remedy), "{told}");
    fs::remove_dir_all(folder).unwrap();
}

/// A file with all functions of cuDNN's stand-in but one, which do nothing.
fn library_without(function: &str, file: &Path) {
    let names = Command::new("nm")
        .args(["--dynamic", "--defined-only", "--format=just-symbols"])
        .arg(library_file("libcudnn.so.9"))
        .output()
        .unwrap();
    let names = String::from_utf8(names.stdout).unwrap();
    let names = names.lines().filter(|name| name.starts_with("cudnn"));
    let (left_out, others): (Vec<_>, Vec<_>) = names.partition(|name| *name == function);
    assert_eq!(left_out, [function]);
    let source = file.with_extension("c");
    let functions = others
        .iter()
        .map(|name| format!("void {name}(void) {{}}\n"));
    fs::write(&source, functions.collect::<String>()).unwrap();
    let status = Command::new("gcc")
        .args(["-shared", "-fPIC", "-Wl,-soname,libcudnn.so.9", "-o"])
        .args([file, source.as_path()])
        .status();
    assert!(status.unwrap().success());
}

/// A file of a library that this process could load.
fn library_file(name: &str) -> PathBuf {
    let folders = std::env::var_os("LD_LIBRARY_PATH").unwrap();
    let mut files = std::env::split_paths(&folders).map(|folder| folder.join(name));
    let file = files.find(|file| file.exists());
    fs::canonicalize(file.unwrap_or_else(|| panic!("{name} is not in LD_LIBRARY_PATH"))).unwrap()
}
