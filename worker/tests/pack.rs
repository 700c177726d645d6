//! `synfire pack`, as a user calls it: every kind of source, killed and called again, opened in
//! Python.
#![allow(
    clippy::unwrap_used,
    reason = "a helper that fails fails the test that called it"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use synfire_shared::dataset::Index;

const CIFAR_BYTES: usize = 3072;

/// A folder of its own for each test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let name = format!("synfire-pack-{}-{test}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn command(kind: &str, source: &str, out: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_synfire"));
    command
        .args(["pack", kind, "--source", source, "--out", out])
        .args(more)
        .stdin(Stdio::null());
    command
}

fn run(kind: &str, source: &str, out: &str, more: &[&str]) -> Output {
    command(kind, source, out, more).output().unwrap()
}

/// What a call that must succeed prints.
fn pack(kind: &str, source: &str, out: &str, more: &[&str]) -> String {
    let output = run(kind, source, out, more);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

/// The error of a call that must fail.
fn refused(kind: &str, source: &str, out: &str, more: &[&str]) -> String {
    let output = run(kind, source, out, more);
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("error: "), "{error}");
    assert!(!Path::new(out).join("index.json").exists());
    error
}

fn index(out: &str) -> Index {
    let path = Path::new(out).join("index.json");
    let index = Index::parse(&fs::read(path).unwrap(), "index.json").unwrap();
    for split in [&index.train, &index.test] {
        for shard in split.shards() {
            let bytes = fs::read(Path::new(out).join(&shard.path)).unwrap();
            assert_eq!(bytes.len() as u64, shard.bytes);
        }
    }
    index
}

/// Every file of a folder with its bytes.
fn contents(folder: &str) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(path.is_file(), "{name} was left behind");
        files.insert(name, fs::read(path).unwrap());
    }
    files
}

/// The bytes of picture `i` of a split, by the index, and its label.
fn picture(out: &str, index: &Index, test: bool, i: u64) -> (Vec<u8>, u32) {
    let split = if test { &index.test } else { &index.train };
    let sample = split.sample(i).unwrap();
    let shard = &split.shards()[sample.shard_index];
    let tar = fs::read(Path::new(out).join(&shard.path)).unwrap();
    let begin = usize::try_from(sample.offset).unwrap();
    let len = usize::try_from(sample.len_bytes).unwrap();
    (tar[begin..begin + len].to_vec(), sample.label)
}

/// The pixels of a PNG.
fn decode(bytes: &[u8]) -> Vec<u8> {
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes))
        .read_info()
        .unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    pixels.truncate(info.buffer_size());
    pixels
}

/// Bytes that look random and are the same every time.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(byte).take(len).collect()
}

/// Records of CIFAR with these label bytes before each picture.
fn records(seed: u64, labels: &[&[u8]]) -> Vec<u8> {
    let record = |(i, labels): (usize, &&[u8])| {
        [labels, &noise(seed * 1000 + i as u64, CIFAR_BYTES)[..]].concat()
    };
    labels.iter().enumerate().flat_map(record).collect()
}

/// CIFAR-10 with `num` pictures in each file.
fn write_cifar10(folder: &Folder, name: &str, num: usize) {
    let digits: Vec<[u8; 1]> = (0..10).map(|digit| [digit]).collect();
    let labels: Vec<&[u8]> = digits
        .iter()
        .map(<[u8; 1]>::as_slice)
        .cycle()
        .take(num)
        .collect();
    for (seed, file) in (1..).zip([
        "data_batch_1.bin",
        "data_batch_2.bin",
        "data_batch_3.bin",
        "data_batch_4.bin",
        "data_batch_5.bin",
        "test_batch.bin",
    ]) {
        folder.write(&format!("{name}/{file}"), &records(seed, &labels));
    }
}

/// Runs Python with its standard library alone.
fn python(script: &str, arguments: &[&str]) -> String {
    let output = Command::new("python3")
        .args(["-c", script])
        .args(arguments)
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Packs the folder with tar, in the given order of names.
fn tar(folder: &str, names: &[&str]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for name in names {
        builder
            .append_path_with_name(Path::new(folder).join(name), name)
            .unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn cifar10_becomes_pngs_of_the_same_pixels() {
    let folder = Folder::new("cifar10");
    write_cifar10(&folder, "source", 12);
    let out = folder.path("out");
    let printed = pack(
        "cifar10",
        &folder.path("source"),
        &out,
        &["--shard-mib", "1"],
    );
    assert!(
        printed.contains("72 found = 72 packed + 0 left out"),
        "{printed}"
    );
    let index = index(&out);
    assert_eq!((index.train.len(), index.test.len()), (60, 12));
    assert_eq!(index.shape, Some([32, 32]));
    assert_eq!(index.classes[3].name, "cat");
    for (test, i, seed, in_file) in [(false, 0, 1, 0), (false, 25, 3, 1), (true, 11, 6, 11)] {
        let (png, label) = picture(&out, &index, test, i);
        let planes = noise(seed * 1000 + in_file, CIFAR_BYTES);
        let pixels: Vec<u8> = (0..1024)
            .flat_map(|p| [planes[p], planes[1024 + p], planes[2048 + p]])
            .collect();
        assert_eq!(decode(&png), pixels);
        assert_eq!(u64::from(label), in_file % 10);
    }
}

#[test]
fn a_packed_set_opens_in_pythons_tarfile() {
    let folder = Folder::new("python");
    write_cifar10(&folder, "source", 100);
    let out = folder.path("out");
    pack(
        "cifar10",
        &folder.path("source"),
        &out,
        &["--shard-mib", "1"],
    );
    let script = r#"
import hashlib, json, os, sys, tarfile
out = sys.argv[1]
index = json.load(open(os.path.join(out, "index.json")))
num = 0
for split in index["splits"].values():
    i = 0
    for shard in split["shards"]:
        path = os.path.join(out, shard["path"])
        data = open(path, "rb").read()
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
        assert len(data) == shard["bytes"]
        members = tarfile.open(path).getmembers()
        assert len(members) == 2 * len(shard["labels"])
        tar = tarfile.open(path)
        for k, (offset, length, label) in enumerate(
                zip(shard["offsets"], shard["lengths"], shard["labels"])):
            picture, cls = members[2 * k], members[2 * k + 1]
            assert picture.name == "%09d.png" % i and cls.name == "%09d.cls" % i
            assert picture.mtime == 0 and picture.isreg()
            assert picture.offset_data == offset and picture.size == length
            assert tar.extractfile(picture).read() == data[offset:offset + length]
            assert data[offset:offset + 8] == b"\x89PNG\r\n\x1a\n"
            assert tar.extractfile(cls).read() == str(label).encode()
            i += 1
            num += 1
print(num, len(index["splits"]["train"]["shards"]))
"#;
    let printed = python(script, &[&out]);
    assert_eq!(printed.trim(), "600 3");
}

#[test]
fn archives_and_folders_give_the_same_bytes_and_again() {
    let folder = Folder::new("again");
    write_cifar10(&folder, "cifar-10-batches-bin", 7);
    let names: Vec<String> = (1..=5)
        .map(|i| format!("cifar-10-batches-bin/data_batch_{i}.bin"))
        .chain(["cifar-10-batches-bin/test_batch.bin".into()])
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    folder.write("mine.tar", &tar(&folder.path(""), &names));
    let plain = fs::read(folder.path("mine.tar")).unwrap();
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packer, &plain).unwrap();
    let packed = packer.finish().unwrap();
    folder.write("mine.tar.gz", &packed);
    let sources = ["cifar-10-batches-bin", "mine.tar", "mine.tar.gz"];
    for (i, source) in sources.iter().enumerate() {
        pack(
            "cifar10",
            &folder.path(source),
            &folder.path(&format!("out{i}")),
            &[],
        );
    }
    let first = contents(&folder.path("out0"));
    assert_eq!(first.len(), 4);
    for out in ["out1", "out2"] {
        assert_eq!(contents(&folder.path(out)), first);
    }
    // Whole already: nothing is made again. A URL means the same folder.
    let url = format!("file://{}", folder.path("out0"));
    let printed = pack("cifar10", &folder.path(sources[0]), &url, &[]);
    assert!(printed.contains("2 shards were there already"), "{printed}");
    assert_eq!(contents(&folder.path("out0")), first);
    // An official name promises official bytes.
    folder.write("cifar-10-binary.tar.gz", &packed);
    let official = folder.path("cifar-10-binary.tar.gz");
    let error = refused("cifar10", &official, &folder.path("no"), &[]);
    assert!(
        error.contains("c32a1d4ab5d03f1284b67883e8d87530"),
        "{error}"
    );
    folder.write("cut.tar.gz", &packed[..packed.len() / 2]);
    let error = refused(
        "cifar10",
        &folder.path("cut.tar.gz"),
        &folder.path("no"),
        &[],
    );
    assert!(error.contains("a torn tar"), "{error}");
}

#[test]
fn another_set_is_replaced_only_when_told() {
    let folder = Folder::new("replace");
    write_cifar10(&folder, "one", 3);
    write_cifar10(&folder, "two", 4);
    let (one, two) = (folder.path("one"), folder.path("two"));
    let (out, clean) = (folder.path("out"), folder.path("clean"));
    pack("cifar10", &one, &out, &[]);
    let before = contents(&out);
    let output = run("cifar10", &two, &out, &[]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("already holds another packed data set"),
        "{error}"
    );
    assert_eq!(contents(&out), before);
    pack("cifar10", &two, &out, &["--overwrite"]);
    pack("cifar10", &two, &clean, &[]);
    assert_eq!(contents(&out), contents(&clean));
}

#[test]
fn killed_in_the_middle_and_called_again_gives_the_same_bytes() {
    let folder = Folder::new("killed");
    write_cifar10(&folder, "source", 1000);
    let (source, out, whole) = (
        folder.path("source"),
        folder.path("out"),
        folder.path("whole"),
    );
    let more = ["--shard-mib", "1"];
    pack("cifar10", &source, &whole, &more);
    let expected = contents(&whole);
    let num_journals =
        |out: &str| fs::read_dir(Path::new(out).join(".partial")).map_or(0, Iterator::count);
    let mut kills = 0;
    for kill_at in [1, 2, 4, 6, 9, 12, 15, 17] {
        let mut child = command("cifar10", &source, &out, &more)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while child.try_wait().unwrap().is_none() {
            if num_journals(&out) >= kill_at {
                // SIGKILL.
                child.kill().unwrap();
                break;
            }
            std::thread::yield_now();
        }
        if child.wait().unwrap().success() {
            break;
        }
        kills += 1;
        assert!(!Path::new(&out).join("index.json").exists());
    }
    assert!(kills >= 3, "only {kills} kills");
    // What a killed write leaves.
    fs::write(Path::new(&out).join("train-000003.tar#1"), "half").unwrap();
    let printed = pack("cifar10", &source, &out, &more);
    assert!(printed.contains("shards were there already"), "{printed}");
    assert_eq!(contents(&out), expected);
}

#[test]
fn a_shard_that_was_cut_is_made_again() {
    let folder = Folder::new("cut");
    write_cifar10(&folder, "source", 100);
    let (source, out) = (folder.path("source"), folder.path("out"));
    let more = ["--shard-mib", "1"];
    pack("cifar10", &source, &out, &more);
    let whole = contents(&out);
    fs::remove_file(Path::new(&out).join("index.json")).unwrap();
    fs::write(Path::new(&out).join("train-000001.tar"), "cut").unwrap();
    pack("cifar10", &source, &out, &more);
    assert_eq!(contents(&out), whole);
}

#[test]
fn cifar100_has_fine_and_coarse_labels() {
    let folder = Folder::new("cifar100");
    folder.write("source/train.bin", &records(1, &[&[19, 99], &[4, 0]]));
    folder.write("source/test.bin", &records(2, &[&[1, 1]]));
    let source = folder.path("source");
    let (fine, coarse) = (folder.path("fine"), folder.path("coarse"));
    pack("cifar100", &source, &fine, &[]);
    pack("cifar100-coarse", &source, &coarse, &[]);
    let (fine, coarse) = (index(&fine), index(&coarse));
    assert_eq!((fine.classes.len(), coarse.classes.len()), (100, 20));
    assert_eq!(fine.train.shards()[0].labels, [99, 0]);
    assert_eq!(coarse.train.shards()[0].labels, [19, 4]);
    assert_eq!(fine.classes[99].name, "worm");
    assert_eq!(coarse.classes[4].name, "fruit_and_vegetables");
}

#[test]
fn damaged_records_are_named() {
    let folder = Folder::new("damaged");
    write_cifar10(&folder, "source", 3);
    let (source, out) = (folder.path("source"), folder.path("out"));
    folder.write("source/data_batch_2.bin", &records(1, &[&[1], &[10]]));
    let error = refused("cifar10", &source, &out, &[]);
    assert!(
        error.contains("data_batch_2.bin: record 1: a label beyond 0 to 9"),
        "{error}"
    );
    folder.write("source/data_batch_2.bin", &[0; 3072]);
    let error = refused("cifar10", &source, &out, &[]);
    assert!(
        error.contains("3072 bytes are no positive multiple of 3073"),
        "{error}"
    );
    fs::remove_file(folder.path("source/data_batch_2.bin")).unwrap();
    let error = refused("cifar10", &source, &out, &[]);
    assert!(
        error.contains("has no data_batch_2.bin: give the folder"),
        "{error}"
    );
    let error = refused("cifar10", &folder.path("absent"), &out, &[]);
    assert!(error.contains("absent"), "{error}");
    let error = refused("cifar10", &folder.path("absent.tar.gz"), &out, &[]);
    assert!(error.contains("absent.tar.gz is not there"), "{error}");
}

fn idx(dimensions: &[u32], values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, u8::try_from(dimensions.len()).unwrap()];
    bytes.extend(dimensions.iter().flat_map(|d| d.to_be_bytes()));
    bytes.extend(values);
    bytes
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packer, bytes).unwrap();
    packer.finish().unwrap()
}

#[test]
fn fashion_mnist_is_read_packed_and_unpacked() {
    let folder = Folder::new("fashion");
    let pictures = noise(1, 3 * 28 * 28);
    let files = [
        ("train-images-idx3-ubyte", idx(&[3, 28, 28], &pictures)),
        ("train-labels-idx1-ubyte", idx(&[3], &[9, 0, 5])),
        (
            "t10k-images-idx3-ubyte",
            idx(&[1, 28, 28], &pictures[..784]),
        ),
        ("t10k-labels-idx1-ubyte", idx(&[1], &[4])),
    ];
    for (name, bytes) in &files {
        folder.write(&format!("plain/{name}"), bytes);
        folder.write(&format!("packed/{name}.gz"), &gz(bytes));
    }
    let (plain, packed) = (folder.path("out0"), folder.path("out1"));
    pack("fashion-mnist", &folder.path("plain"), &plain, &[]);
    pack("fashion-mnist", &folder.path("packed"), &packed, &[]);
    assert_eq!(contents(&plain), contents(&packed));
    let index = index(&plain);
    assert_eq!((index.channels, index.shape), (1, Some([28, 28])));
    let (png, label) = picture(&plain, &index, false, 2);
    assert_eq!((decode(&png), label), (pictures[2 * 784..].to_vec(), 5));
    folder.write("plain/t10k-labels-idx1-ubyte", &idx(&[2], &[4, 4]));
    let error = refused(
        "fashion-mnist",
        &folder.path("plain"),
        &folder.path("no"),
        &[],
    );
    assert!(error.contains("1 pictures, but 2 labels"), "{error}");
    folder.write("plain/t10k-labels-idx1-ubyte", &idx(&[1], &[10]));
    let error = refused(
        "fashion-mnist",
        &folder.path("plain"),
        &folder.path("no"),
        &[],
    );
    assert!(error.contains("record 0: label 10"), "{error}");
}

/// The head of a JPEG and some bytes that differ.
fn jpeg(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0xff, 0xd8, 0xff, 0xc0, 0, 11, 8, 0, 5, 0, 6, 1, 1, 0x11, 0];
    bytes.extend([0xff, 0xda, 0, 8, 1, 1, 0, 0, 63, 0]);
    bytes.extend(noise(seed, 700));
    bytes
}

#[test]
fn a_tree_keeps_its_pictures_bytes_and_lists_the_others() {
    let folder = Folder::new("tree");
    for (seed, name) in [
        (1, "train/cat/a b (1).jpg"),
        (2, "train/cat/deep/er.JPEG"),
        (3, "train/dog/ä#2.jpg"),
        (4, "val/dog/1.jpg"),
        (5, "extra/dog/1.jpg"),
        (6, "train/stray.jpg"),
        (7, "train/cat/.hidden.jpg"),
    ] {
        folder.write(&format!("source/{name}"), &jpeg(seed));
    }
    folder.write("source/train/dog/page.jpg", b"<html>");
    folder.write("source/train/dog/empty.jpg", b"");
    let (source, out) = (folder.path("source"), folder.path("out"));
    let printed = pack("folder", &source, &out, &[]);
    assert!(
        printed.contains("8 found = 4 packed + 4 left out"),
        "{printed}"
    );
    assert!(printed.contains("neither JPEG nor PNG"), "{printed}");
    let found = index(&out);
    assert_eq!((found.train.len(), found.test.len()), (3, 1));
    assert_eq!(found.shape, None);
    let mut pictures: Vec<(Vec<u8>, u32)> =
        (0..3).map(|i| picture(&out, &found, false, i)).collect();
    pictures.sort_by_key(|p| p.1);
    assert_eq!(pictures[0], (jpeg(1), 0));
    assert_eq!(pictures[1], (jpeg(2), 0));
    assert_eq!(pictures[2], (jpeg(3), 1));
    assert_eq!(picture(&out, &found, true, 0), (jpeg(4), 1));
    let reasons: Vec<(&str, &str)> = found
        .left_out
        .iter()
        .map(|l| (l.sample.as_str(), l.split.as_str()))
        .collect();
    for left_out in [
        ("extra/dog/1.jpg", "none"),
        ("train/stray.jpg", "train"),
        ("train/dog/page.jpg", "train"),
        ("train/dog/empty.jpg", "train"),
    ] {
        assert!(reasons.contains(&left_out), "{reasons:?}");
    }
    // Classes from a list keep its order and its names.
    folder.write("classes.txt", b"dog the dog\ncat\nfox a fox\n");
    let (classes, listed) = (folder.path("classes.txt"), folder.path("listed"));
    pack("folder", &source, &listed, &["--classes", &classes]);
    let found = index(&listed);
    assert_eq!(found.classes[0].name, "the dog");
    assert_eq!(found.classes.len(), 3);
    assert_eq!(picture(&listed, &found, true, 0).1, 0);
    folder.write("classes.txt", b"cat\n");
    let error = refused(
        "folder",
        &source,
        &folder.path("no"),
        &["--classes", &classes],
    );
    assert!(
        error.contains("\"dog\" is in no line of --classes"),
        "{error}"
    );
    folder.write("source/test/dog/1.jpg", &jpeg(1));
    let error = refused("folder", &source, &folder.path("no"), &[]);
    assert!(error.contains("it has val/ and test/"), "{error}");
    folder.write("flat/one.jpg", &jpeg(1));
    let error = refused("folder", &folder.path("flat"), &folder.path("no"), &[]);
    assert!(error.contains("no picture to train on"), "{error}");
}

/// Archives of the layout of ImageNet's: three training pictures of each class, whose bytes say
/// which, and three for validation.
fn imagenet_archives(folder: &Folder, classes: &[(&str, u64)]) {
    let mut inner = Vec::new();
    for &(wnid, first) in classes {
        let names: Vec<String> = (0..3).map(|i| format!("{wnid}_{i}.JPEG")).collect();
        for (i, name) in (0..3).zip(&names) {
            folder.write(&format!("{wnid}/{name}"), &jpeg(first + i));
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let packed = tar(&folder.path(wnid), &names);
        folder.write(&format!("inner/{wnid}.tar"), &packed);
        inner.push(format!("{wnid}.tar"));
    }
    inner.sort();
    let inner: Vec<&str> = inner.iter().map(String::as_str).collect();
    let train = tar(&folder.path("inner"), &inner);
    folder.write("source/ILSVRC2012_img_train.tar", &train);
    let names = [2, 3, 1].map(|i| format!("ILSVRC2012_val_0000000{i}.JPEG"));
    for (i, name) in [2, 3, 1].into_iter().zip(&names) {
        folder.write(&format!("val/{name}"), &jpeg(30 + i));
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let val = tar(&folder.path("val"), &names);
    folder.write("source/ILSVRC2012_img_val.tar", &val);
}

#[test]
fn imagenets_archives_are_read_nested() {
    let folder = Folder::new("imagenet");
    imagenet_archives(&folder, &[("n00000002", 10), ("n00000001", 20)]);
    let (source, out) = (folder.path("source"), folder.path("out"));
    let error = refused("imagenet", &source, &out, &[]);
    assert!(error.contains("has no LOC_val_solution.csv"), "{error}");
    assert!(error.contains("ILSVRC2012_devkit_t12.tar.gz"), "{error}");
    let csv = "ImageId,PredictionString\nILSVRC2012_val_00000002,n00000002 1 2 3 4 n00000002 1 2 \
               3 4\nILSVRC2012_val_00000001,n00000001 9 9 9 9\n";
    folder.write("source/LOC_val_solution.csv", csv.as_bytes());
    let printed = pack("imagenet", &source, &out, &["--unofficial"]);
    assert!(
        printed.contains("9 found = 8 packed + 1 left out"),
        "{printed}"
    );
    let index = index(&out);
    let keys: Vec<&str> = index.classes.iter().map(|c| c.key.as_str()).collect();
    assert_eq!(keys, ["n00000001", "n00000002"]);
    assert_eq!(picture(&out, &index, false, 1), (jpeg(21), 0));
    assert_eq!(picture(&out, &index, false, 5), (jpeg(12), 1));
    assert_eq!(picture(&out, &index, true, 0), (jpeg(31), 0));
    assert_eq!(picture(&out, &index, true, 1), (jpeg(32), 1));
    assert_eq!(index.left_out[0].sample, "ILSVRC2012_val_00000003.JPEG");
    let train = fs::read(folder.path("source/ILSVRC2012_img_train.tar")).unwrap();
    folder.write("source/ILSVRC2012_img_train.tar", &train[..train.len() / 2]);
    let error = refused("imagenet", &source, &folder.path("no"), &[]);
    assert!(error.contains("torn tar"), "{error}");
}

#[test]
fn imagenets_validation_labels_come_from_the_devkit() {
    let folder = Folder::new("devkit");
    // Leaves 3 and 12 of the table of classes in golden/devkit; their order by wnid is another.
    let wnids = ["n19997000", "n19988000"];
    imagenet_archives(&folder, &[(wnids[0], 10), (wnids[1], 20)]);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/devkit/meta.mat");
    let data = "source/ILSVRC2012_devkit_t12/data";
    folder.write(&format!("{data}/meta.mat"), &fs::read(golden).unwrap());
    let truth = format!("{data}/ILSVRC2012_validation_ground_truth.txt");
    let (source, out) = (folder.path("source"), folder.path("out"));
    for (text, expected) in [
        ("3\n0\n", "line 2 is \"0\", no ID from 1 to 12"),
        ("13\n", "line 1 is \"13\", no ID from 1 to 12"),
        ("3\nthree\n", "line 2 is \"three\""),
    ] {
        folder.write(&truth, text.as_bytes());
        let error = refused("imagenet", &source, &out, &["--unofficial"]);
        assert!(error.contains(expected), "{error}");
    }
    folder.write(&truth, b"12\n3\n");

    // Without the official digests there is no index, though all else is done.
    let error = refused("imagenet", &source, &out, &[]);
    assert!(
        error.contains("ILSVRC2012_img_train.tar has MD5"),
        "{error}"
    );
    assert!(
        error.contains("1d675b47d978889d74fa0da5fadfb00e"),
        "{error}"
    );
    assert!(error.contains("--unofficial"), "{error}");
    let printed = pack("imagenet", &source, &out, &["--unofficial"]);
    assert!(printed.contains("shards were there already"), "{printed}");
    assert!(
        printed.contains("9 found = 8 packed + 1 left out"),
        "{printed}"
    );
    let index = index(&out);
    let classes = index
        .classes
        .iter()
        .map(|c| (c.key.as_str(), c.name.as_str()));
    let want = [("n19988000", "x"), ("n19997000", "crane")];
    assert_eq!(classes.collect::<Vec<_>>(), want);
    assert_eq!(picture(&out, &index, true, 0), (jpeg(31), 0));
    assert_eq!(picture(&out, &index, true, 1), (jpeg(32), 1));
    assert_eq!(picture(&out, &index, false, 0), (jpeg(20), 0));
    assert_eq!(
        index.left_out[0].reason,
        "no label in ILSVRC2012_devkit_t12"
    );

    // The same in an archive; the official one's name asks for its digest.
    let packed = tar(
        &folder.path("source"),
        &["meta.mat", "ILSVRC2012_validation_ground_truth.txt"]
            .map(|name| format!("ILSVRC2012_devkit_t12/data/{name}"))
            .each_ref()
            .map(String::as_str),
    );
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, &packed).unwrap();
    folder.write("source/ILSVRC2012_devkit_t12.tar.gz", &gz.finish().unwrap());
    fs::remove_dir_all(folder.path("source/ILSVRC2012_devkit_t12")).unwrap();
    let again = folder.path("again");
    let error = refused("imagenet", &source, &again, &[]);
    assert!(error.contains("devkit_t12.tar.gz has MD5"), "{error}");
    pack("imagenet", &source, &again, &["--unofficial"]);
    let bytes = |out: &str| fs::read(Path::new(out).join("test-000000.tar")).unwrap();
    assert_eq!(bytes(&out), bytes(&again));
    let error = refused("folder", &source, &folder.path("no"), &["--unofficial"]);
    assert!(error.contains("--unofficial is for `imagenet`"), "{error}");
}

fn shared() -> PathBuf {
    let shared = std::env::var("SYNFIRE_SHARED").expect("set SYNFIRE_SHARED to the folder");
    Path::new(&shared).join("data")
}

/// Unpacks the `.xz` files of a folder of the shared data.
fn unpack(from: &str, folder: &Folder, to: &str) {
    for entry in fs::read_dir(shared().join(from)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "xz") {
            let output = Command::new("xz").arg("-dc").arg(&path).output().unwrap();
            assert!(output.status.success(), "xz unpacks {}", path.display());
            let name = path.file_stem().unwrap().to_str().unwrap();
            folder.write(&format!("{to}/{name}"), &output.stdout);
        }
    }
}

#[test]
#[ignore = "needs SYNFIRE_SHARED"]
fn needs_shared_all_of_cifar10_is_packed() {
    let folder = Folder::new("real10");
    unpack("cifar10", &folder, "source");
    let out = folder.path("out");
    let printed = pack("cifar10", &folder.path("source"), &out, &[]);
    assert!(
        printed.contains("60,000 found = 60,000 packed + 0 left out"),
        "{printed}"
    );
    let index = index(&out);
    assert_eq!(
        index.train.shards()[0].labels[..10],
        [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    );
    let (png, _) = picture(&out, &index, false, 0);
    assert_eq!(decode(&png)[..6], [59, 62, 63, 43, 46, 45]);
}

#[test]
#[ignore = "needs SYNFIRE_SHARED"]
fn needs_shared_cifar100_is_packed() {
    let folder = Folder::new("real100");
    unpack("cifar100", &folder, "source");
    let out = folder.path("out");
    pack("cifar100", &folder.path("source"), &out, &[]);
    let index = index(&out);
    assert_eq!((index.train.len(), index.test.len()), (3200, 1200));
    for class in 0..100 {
        let labels = index.train.shards().iter().flat_map(|shard| &shard.labels);
        assert_eq!(labels.filter(|&&label| label == class).count(), 32);
    }
}

#[test]
#[ignore = "needs SYNFIRE_SHARED"]
fn needs_shared_trees_of_photographs_are_packed() {
    let folder = Folder::new("photographs");
    let imagenet = shared().join("imagenet");
    let (ten, one) = (folder.path("ten"), folder.path("one"));
    let ten_classes = imagenet.join("ten_classes");
    pack(
        "imagenet",
        ten_classes.to_str().unwrap(),
        &ten,
        &["--shard-mib", "1"],
    );
    let found = index(&ten);
    assert_eq!((found.train.len(), found.test.len()), (400, 150));
    assert_eq!(found.classes[0].key, "n01440764");
    assert!(found.left_out.is_empty());
    let one_per_class = imagenet.join("one_per_class");
    pack("folder", one_per_class.to_str().unwrap(), &one, &[]);
    let found = index(&one);
    assert_eq!((found.train.len(), found.classes.len()), (377, 377));
}

#[test]
#[ignore = "needs SYNFIRE_SHARED"]
fn needs_shared_odd_files_are_packed_or_listed_as_expected() {
    let folder = Folder::new("odd");
    let odd = shared().join("imagenet/odd");
    let mut expected = Vec::new();
    for line in fs::read_to_string(odd.join("expected.csv"))
        .unwrap()
        .lines()
        .skip(1)
    {
        let name = line.split(',').next().unwrap();
        folder.write(
            &format!("source/odd/{name}"),
            &fs::read(odd.join(name)).unwrap(),
        );
        // What a look at the header tells; whether pixels decode shows later.
        let is_none = ["empty", "html_page", "header_only", "gif_named"];
        if is_none.contains(&name.split('.').next().unwrap()) {
            expected.push(format!("odd/{name}"));
        }
    }
    let out = folder.path("out");
    let printed = pack("folder", &folder.path("source"), &out, &[]);
    assert!(
        printed.contains("34 found = 30 packed + 4 left out"),
        "{printed}"
    );
    let index = index(&out);
    let mut left_out: Vec<String> = index.left_out.into_iter().map(|l| l.sample).collect();
    expected.sort();
    left_out.sort();
    assert_eq!(left_out, expected);
}
