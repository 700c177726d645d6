use super::*;
use std::ffi::OsString;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::symlink;

/// A machine in a folder of its own.
struct Machine {
    root: PathBuf,
    environment: Environment,
}

impl Machine {
    fn new(name: &str) -> Self {
        let name = format!("synfire-libraries-{name}-{}", std::process::id());
        let root = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).unwrap();
        let environment = Environment {
            root: Some(root.clone()),
            ..Environment::default()
        };
        Self { root, environment }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn list(&self, paths: &[&str]) -> OsString {
        let paths = paths.iter().map(|path| self.at(path));
        std::env::join_paths(paths).unwrap()
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn library(&self, path: &str) {
        self.write(path, &library_bytes());
    }

    fn find(&self, library: Library) -> Result<Found, NotFound> {
        find_in(library, &self.environment)
    }

    /// The file that is found, from the root.
    fn path(&self, library: Library) -> String {
        let found = self.find(library).unwrap();
        let path = found.path.strip_prefix(&self.root).unwrap();
        path.to_string_lossy().into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// The smallest library for this machine, after the header of this test: one part that is loaded.
fn library_bytes() -> Vec<u8> {
    let mut test = fs::File::open(std::env::current_exe().unwrap()).unwrap();
    let mut bytes = vec![0; 64];
    test.read_exact(&mut bytes).unwrap();
    let mut part = vec![0; 56];
    part[0] = 1;
    part[32] = 64 + 56;
    bytes[16] = 3;
    bytes[32..40].copy_from_slice(&64_u64.to_ne_bytes());
    bytes[56..58].copy_from_slice(&1_u16.to_ne_bytes());
    bytes.extend(part);
    bytes
}

#[test]
fn each_place_comes_before_the_later_ones() {
    let mut machine = Machine::new("order");
    let environment = &mut machine.environment;
    let root = environment.root.clone().unwrap();
    let at = |path: &str| Some(root.join(path).into_os_string());
    environment.virtual_env = at("venv");
    environment.conda_prefix = at("conda");
    environment.path = at("python/bin");
    environment.home = at("home");
    environment.toolkits = vec![at("toolkit").unwrap()];
    machine.environment.synfire_libraries = Some(machine.list(&["none", "named"]));
    machine.environment.ld_library_path = Some(machine.list(&["loaded"]));
    machine.write("python/bin/python3", b"");
    let files = [
        "named/libnccl.so.2",
        "loaded/libnccl.so.2",
        "venv/lib/python3.12/site-packages/nvidia/nccl/lib/libnccl.so.2",
        "conda/lib/python3.9/site-packages/nvidia/nccl/lib/libnccl.so.2",
        "python/lib/python3.12/site-packages/nvidia/nccl/lib/libnccl.so.2",
        "python/lib/python3.9/site-packages/nvidia/nccl/lib/libnccl.so.2",
        "usr/lib/python3/dist-packages/nvidia/nccl/lib/libnccl.so.2",
        "usr/local/lib/python3.11/dist-packages/nvidia/nccl/lib/libnccl.so.2",
        "home/.local/lib/python3.12/site-packages/nvidia/nccl/lib/libnccl.so.2",
        "toolkit/lib64/libnccl.so.2",
        "usr/local/cuda/lib64/libnccl.so.2",
        "usr/local/cuda-13.0/targets/x86_64-linux/lib/libnccl.so.2",
        "usr/local/cuda-12.8/lib64/libnccl.so.2",
        "usr/lib/x86_64-linux-gnu/libnccl.so.2",
        "usr/local/nvidia/lib64/libnccl.so.2",
        "opt/deep/libnccl.so.2",
    ];
    for file in files {
        machine.library(file);
    }
    let last = machine.at("opt/deep/libnccl.so.2");
    machine.write(
        "etc/ld.so.cache",
        &cache::written(&[last.to_str().unwrap()]),
    );
    for file in files {
        assert_eq!(machine.path(Library::Nccl), file);
        fs::remove_file(machine.at(file)).unwrap();
    }
    let error = machine.find(Library::Nccl).unwrap_err();
    let told = error.to_string();
    for file in files {
        let folder = machine.at(file);
        let folder = folder.parent().unwrap();
        assert!(error.looked_in.contains(&folder.to_owned()), "{told}");
        assert!(told.contains(folder.to_str().unwrap()), "{told}");
    }
    assert!(
        told.starts_with("libnccl.so.2 (NCCL) was not found; looked in "),
        "{told}"
    );
    assert!(told.ends_with(Library::Nccl.remedy()), "{told}");
}

#[test]
fn a_folder_is_named_once_and_the_loaders_list_is_named_where_it_is_silent() {
    let mut machine = Machine::new("once");
    machine.environment.synfire_libraries = Some(machine.list(&["a", "a"]));
    machine.environment.ld_library_path = Some(OsString::from(":"));
    let looked_in = machine.find(Library::Cudnn).unwrap_err().looked_in;
    let is_a = |path: &&PathBuf| **path == machine.at("a");
    assert_eq!(looked_in.iter().filter(is_a).count(), 1, "{looked_in:?}");
    assert_eq!(looked_in.last(), Some(&machine.at("etc/ld.so.cache")));
    let here = std::env::current_dir().unwrap();
    assert!(!looked_in.contains(&here), "{looked_in:?}");
    assert!(!looked_in.contains(&PathBuf::new()), "{looked_in:?}");
}

#[test]
fn files_that_are_no_library_are_passed_over_and_named() {
    let mut machine = Machine::new("garbage");
    machine.environment.synfire_libraries = Some(machine.list(&[
        "empty", "text", "folder", "other", "old", "cut", "bare", "stubs", "good",
    ]));
    machine.write("empty/libcuda.so.1", b"");
    machine.write("text/libcuda.so.1", &b"#!/bin/sh\n".repeat(20));
    fs::create_dir_all(machine.at("folder/libcuda.so.1")).unwrap();
    let mut other = library_bytes();
    other[18] ^= 0xff;
    machine.write("other/libcuda.so.1", &other);
    let mut narrow = library_bytes();
    narrow[4] = 1;
    machine.write("old/libcuda.so.1", &narrow);
    let mut long = library_bytes();
    long[64 + 32] += 1;
    machine.write("cut/libcuda.so.1", &long);
    machine.write("bare/libcuda.so.1", &long[..64]);
    machine.library("stubs/libcuda.so.1");
    let error = machine.find(Library::Driver).unwrap_err();
    assert_eq!(error.passed_over.len(), 8, "{error}");
    for why in [
        "is no library",
        "is no file",
        "another kind of machine",
        "has 120 bytes of 121 and more: it was cut short",
        "is a stub",
    ] {
        assert!(error.to_string().contains(why), "{error}");
    }
    machine.library("good/libcuda.so.1");
    let found = machine.find(Library::Driver).unwrap();
    assert_eq!(found.path, machine.at("good/libcuda.so.1"));
    assert_eq!(found.passed_over, error.passed_over);
    assert_eq!(found.place, "SYNFIRE_LIBRARIES");
}

#[test]
fn versions_are_read_off_the_names_of_files() {
    let mut machine = Machine::new("versions");
    machine.environment.synfire_libraries = Some(machine.list(&["named"]));
    machine.environment.virtual_env = Some(machine.at("venv").into());
    let shown = |machine: &Machine, library| {
        let found = machine.find(library).unwrap();
        (found.version.map(|v| v.to_string()), found.package)
    };
    // The real file behind a link.
    machine.library("named/libnvrtc.so.13.0.88");
    symlink("libnvrtc.so.13.0.88", machine.at("named/libnvrtc.so.13")).unwrap();
    let version = |text: &str| Some(text.to_owned());
    assert_eq!(shown(&machine, Library::Nvrtc), (version("13.0.88"), None));
    machine.library("named/libcudnn.so.9");
    assert_eq!(shown(&machine, Library::Cudnn), (version("9"), None));
    // "1" of libcuda.so.1 is no version of the driver.
    machine.library("named/libcuda.so.1");
    assert_eq!(shown(&machine, Library::Driver), (None, None));
    machine.library("named/libcuda.so.580.65.06");
    fs::remove_file(machine.at("named/libcuda.so.1")).unwrap();
    symlink("libcuda.so.580.65.06", machine.at("named/libcuda.so.1")).unwrap();
    assert_eq!(
        shown(&machine, Library::Driver),
        (version("580.65.6"), None)
    );
    // Packages of Python.
    fs::remove_dir_all(machine.at("named")).unwrap();
    let site = "venv/lib/python3.11/site-packages";
    machine.library(&format!("{site}/nvidia/cu13/lib/libnvrtc.so.13"));
    machine.library(&format!("{site}/nvidia/cu13/lib/libnvrtc-builtins.so.13.0"));
    assert_eq!(shown(&machine, Library::Nvrtc), (version("13.0"), None));
    for package in [
        "nvidia_cuda_nvrtc-13.0.88",
        "nvidia_cuda_nvrtc_cu12-12.8.93",
        "odd",
    ] {
        machine.write(&format!("{site}/{package}.dist-info/METADATA"), b"");
    }
    let package = Some("nvidia-cuda-nvrtc 13.0.88".to_owned());
    assert_eq!(
        shown(&machine, Library::Nvrtc),
        (version("13.0.88"), package)
    );
    // That of the older one, which lies beside it.
    fs::remove_dir_all(machine.at(&format!("{site}/nvidia/cu13"))).unwrap();
    machine.library(&format!("{site}/nvidia/cuda_nvrtc/lib/libnvrtc.so.12"));
    let package = Some("nvidia-cuda-nvrtc-cu12 12.8.93".to_owned());
    assert_eq!(
        shown(&machine, Library::Nvrtc),
        (version("12.8.93"), package)
    );
    machine.library(&format!("{site}/nvidia/cudnn/lib/libcudnn.so.9"));
    machine.write(
        &format!("{site}/nvidia_cudnn_cu13-9.13.1.26.dist-info/METADATA"),
        b"",
    );
    machine.write(
        &format!("{site}/nvidia_cudnn_frontend-9.99.dist-info/METADATA"),
        b"",
    );
    let package = Some("nvidia-cudnn-cu13 9.13.1.26".to_owned());
    assert_eq!(
        shown(&machine, Library::Cudnn),
        (version("9.13.1.26"), package)
    );
}

#[test]
fn of_several_nvrtcs_one_that_the_driver_takes_is_preferred() {
    let mut machine = Machine::new("nvrtc");
    machine.environment.synfire_libraries = Some(machine.list(&["new", "old", "fit"]));
    for (folder, name) in [
        ("new", "libnvrtc.so.13.2.51"),
        ("old", "libnvrtc.so.12.4.1"),
        ("fit", "libnvrtc.so.13.0.88"),
    ] {
        machine.library(&format!("{folder}/{name}"));
        let link = machine.at(folder).join(&name[..14]);
        symlink(name, link).unwrap();
    }
    // Nothing is known of the driver.
    assert_eq!(machine.path(Library::Nvrtc), "new/libnvrtc.so.13");
    machine.environment.driver_cuda = Version::parse("13.0");
    assert_eq!(machine.path(Library::Nvrtc), "fit/libnvrtc.so.13");
    let found = machine.find(Library::Nvrtc).unwrap();
    let whys: Vec<_> = found
        .passed_over
        .iter()
        .map(|passed| passed.why.as_str())
        .collect();
    let too_old = "is 12.4.1, older than 12.8, the first that knows every architecture";
    assert_eq!(
        whys,
        ["is 13.2.51, newer than the driver's CUDA 13.0", too_old]
    );
    // The newer one is better than none.
    fs::remove_dir_all(machine.at("fit")).unwrap();
    assert_eq!(machine.path(Library::Nvrtc), "new/libnvrtc.so.13");
    fs::remove_dir_all(machine.at("new")).unwrap();
    let error = machine.find(Library::Nvrtc).unwrap_err().to_string();
    assert!(error.contains(too_old), "{error}");
}

#[test]
fn the_driver_says_its_version_in_a_file_of_its_kernel_module() {
    let machine = Machine::new("proc");
    let cuda = || version::driver_cuda(&machine.environment).map(|v| v.to_string());
    assert_eq!(cuda(), None);
    let closed =
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23\nGCC 12.2\n";
    machine.write("proc/driver/nvidia/version", closed.as_bytes());
    assert_eq!(cuda().as_deref(), Some("12.8"));
    let open =
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n";
    machine.write("proc/driver/nvidia/version", open.as_bytes());
    assert_eq!(cuda().as_deref(), Some("13.0"));
    for garbage in [
        &b"\xff\xfe"[..],
        b"NVRM version:",
        b"NVRM version: 99999999999.1",
        b"",
    ] {
        machine.write("proc/driver/nvidia/version", garbage);
        assert_eq!(cuda(), None);
    }
}

#[test]
fn a_damaged_list_of_the_loader_is_no_list() {
    let machine = Machine::new("cache");
    machine.library("usr/lib64/libother.so.2");
    let path = machine.at("deep/libnccl.so.2");
    let path = path.to_str().unwrap();
    let names = Library::Nccl.files();
    let good = cache::written(&["/x/libother.so.1", path]);
    let list = machine.at("etc/ld.so.cache");
    let folders = |bytes: &[u8]| {
        machine.write("etc/ld.so.cache", bytes);
        cache::folders(&list, names)
    };
    assert_eq!(folders(&good), [machine.at("deep")]);
    // The older form before it.
    let older = [b"ld.so-1.7.0\0\0\0\0\0".as_slice(), &good].concat();
    assert_eq!(folders(&older), [machine.at("deep")]);
    for length in 0..good.len() {
        let found = folders(&good[..length]);
        assert!(found.len() <= 1, "{found:?}");
    }
    for at in 20..good.len() {
        let mut bytes = good.clone();
        bytes[at] = 0xff;
        assert!(folders(&bytes).len() <= 2);
    }
}

#[test]
fn programs_are_found_on_the_path_and_in_toolkits() {
    let mut machine = Machine::new("tools");
    machine.environment.path = Some(machine.list(&["bin"]));
    let find = |machine: &Machine, tool| find_tool(tool, &machine.environment);
    assert_eq!(find(&machine, Tool::Ptxas), None);
    machine.write("usr/local/cuda-13.0/bin/ptxas", b"");
    let path = Some(machine.at("usr/local/cuda-13.0/bin/ptxas"));
    assert_eq!(find(&machine, Tool::Ptxas), path);
    machine.write("bin/ptxas", b"");
    assert_eq!(find(&machine, Tool::Ptxas), Some(machine.at("bin/ptxas")));
    machine.write("usr/local/cuda/bin/compute-sanitizer", b"");
    let path = Some(machine.at("usr/local/cuda/bin/compute-sanitizer"));
    assert_eq!(find(&machine, Tool::ComputeSanitizer), path);
}
