//! Sets that are packed and opened again: from memory, files and a server that fails now and then.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use synfire_shared::Run;
use synfire_shared::ids::{Epoch, Rank, World};

use super::*;
use crate::data::batches::NO_LABEL;
use crate::data::pack::{self, Cifar, Set};
use crate::data::prefetch::{BadSample, Place, Prefetch};

/// A folder of its own for each test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let name = format!("synfire-packed-{}-{test}", std::process::id());
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
        self.0.join(name).display().to_string()
    }

    fn pack(&self, set: &Set, shard_bytes: u64) -> String {
        let out = self.path("packed");
        let options = pack::Options {
            shard_bytes,
            overwrite: false,
        };
        let store = Store::create(&out).unwrap();
        pack::pack(set, &store, options, &|_| ()).unwrap();
        out
    }

    /// Pictures of many sizes: each is of one colour, that of its number.
    fn pictures(&self, num_train: u8, num_test: u8) -> String {
        for (split, num) in [("train", num_train), ("test", num_test)] {
            for i in 0..num {
                let name = format!("tree/{split}/class{}/{i:03}.png", i % 3);
                let (width, height) = (20 + u32::from(i), 30 + u32::from(i % 7));
                self.write(&name, &png(width, height, i));
            }
        }
        let set = pack::tree::find(&self.path("tree"), "made", None).unwrap();
        self.pack(&set, 8 << 10)
    }

    /// CIFAR-10 of 5 x 4 training and 4 test images.
    fn cifar(&self) -> String {
        let names = (1..=5).map(|i| format!("data_batch_{i}.bin"));
        for (file, name) in names.chain(["test_batch.bin".into()]).enumerate() {
            let mut bytes = Vec::new();
            for i in 0..4_u8 {
                let number = 4 * u8::try_from(file).unwrap() + i;
                bytes.push(number % 10);
                let first = number.wrapping_mul(31);
                bytes.extend((0..=250).cycle().skip(first.into()).take(3072));
            }
            self.write(&format!("cifar/{name}"), &bytes);
        }
        let set = pack::cifar::find(Cifar::Ten, &self.path("cifar")).unwrap();
        self.pack(&set, 16 << 10)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn png(width: u32, height: u32, value: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(::png::ColorType::Rgb);
    // So that shards have some length.
    encoder.set_compression(::png::Compression::NoCompression);
    let pixels = vec![value; (width * height * 3) as usize];
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&pixels).unwrap();
    writer.finish().unwrap();
    bytes
}

/// The configuration of a packed set.
fn config(url: &str, more: &[&str]) -> run::Data {
    let mut set = vec![
        "data.source=packed".to_owned(),
        format!("data.path={url}"),
        "data.batch=4".into(),
        "data.side=8".into(),
        "data.augment=standard".into(),
    ];
    set.extend(more.iter().map(ToString::to_string));
    let run = Run::from_toml(synfire_shared::run::QUICKSTART, "a.toml", &set);
    run.unwrap().data
}

fn open(data: &run::Data, resident_bytes: u64) -> Result<PackedLoader, DataError> {
    let run::Source::Packed(packed) = &data.source else {
        panic!("{:?}", data.source)
    };
    let set = Packed::open_within(packed, data.augment, resident_bytes)?;
    PackedLoader::new(set, packed, 5, data.batch)
}

const FIRST: Place = Place {
    epoch: Epoch(0),
    batch_index: 0,
};

/// What a batch holds, with the bits of its values.
type Content = (Place, Vec<u32>, Vec<u32>, Vec<BadSample>);

fn all(mut prefetch: Prefetch) -> Result<Vec<Content>, DataError> {
    let mut batches = Vec::new();
    while let Some(batch) = prefetch.next_batch()? {
        let bits = batch.x_nhwc.iter().map(|x| x.to_bits()).collect();
        batches.push((batch.place, bits, batch.labels.clone(), batch.bad.clone()));
    }
    Ok(batches)
}

/// Two epochs of training, then the test set.
fn everything(loader: &PackedLoader) -> Result<Vec<Content>, DataError> {
    let mut batches = all(loader.train(FIRST, Epoch(2)))?;
    batches.extend(all(loader.test())?);
    Ok(batches)
}

#[test]
fn batches_are_the_same_from_memory_and_files_with_any_threads() {
    let folder = Folder::new("same");
    let url = folder.pictures(23, 10);
    let want = everything(&open(&config(&url, &[]), u64::MAX).unwrap()).unwrap();
    assert_eq!(want.len(), 2 * 5 + 3);
    for workers in ["data.workers=1", "data.workers=3"] {
        let loader = open(&config(&url, &[workers]), 0).unwrap();
        assert!(everything(&loader).unwrap() == want, "{workers}");
    }
    // Colours and seeds of their own: no two batches are alike.
    for (i, (_, bits, ..)) in want.iter().enumerate() {
        assert!(want[..i].iter().all(|(_, other, ..)| other != bits), "{i}");
    }
}

#[test]
fn a_run_goes_on_at_any_batch() {
    let folder = Folder::new("resume");
    let loader = open(&config(&folder.pictures(23, 0), &[]), 0).unwrap();
    let want = all(loader.train(FIRST, Epoch(2))).unwrap();
    for (i, &(place, ..)) in want.iter().enumerate() {
        assert!(
            all(loader.train(place, Epoch(2))).unwrap() == want[i..],
            "{place:?}"
        );
    }
    let end = Place {
        epoch: Epoch(0),
        batch_index: 5,
    };
    assert!(all(loader.train(end, Epoch(2))).unwrap() == want[5..]);
}

#[test]
fn the_batches_of_all_ranks_together_are_those_of_one() {
    let folder = Folder::new("ranks");
    let loader = open(&config(&folder.pictures(23, 10), &[]), 0).unwrap();
    let whole = all(loader.train(FIRST, Epoch(2))).unwrap();
    let labels = |loader: &PackedLoader| -> Vec<u32> {
        let batches = all(loader.test()).unwrap();
        let labels = batches.into_iter().flat_map(|(_, _, labels, _)| labels);
        labels.filter(|&label| label != NO_LABEL).collect()
    };
    let tested = labels(&loader);
    for world in 1..=4 {
        let of_rank = |rank| loader.clone().of_rank(Rank(rank), World(world)).unwrap();
        let ranks: Vec<PackedLoader> = (0..world).map(of_rank).collect();
        let mut parts: Vec<_> = ranks
            .iter()
            .map(|rank| all(rank.train(FIRST, Epoch(2))).unwrap().into_iter())
            .collect();
        for (place, bits, labels, _) in &whole {
            let (mut joined_bits, mut joined_labels) = (Vec::new(), Vec::new());
            for part in &mut parts {
                let (part_place, bits, labels, _) = part.next().unwrap();
                assert_eq!(part_place, *place);
                joined_bits.extend(bits);
                joined_labels.extend(labels);
            }
            assert!(
                joined_bits == *bits && joined_labels == *labels,
                "{place:?}"
            );
        }
        assert!(parts.iter_mut().all(|part| part.next().is_none()));
        let parts: Vec<u32> = ranks.iter().flat_map(labels).collect();
        assert_eq!(parts, tested, "{world} ranks");
    }
    assert!(loader.of_rank(Rank(0), World(5)).is_err());
}

#[test]
fn every_training_sample_comes_at_most_once_and_every_test_sample_exactly_once() {
    let folder = Folder::new("once");
    let data = config(&folder.pictures(23, 10), &["data.augment=none"]);
    for shuffle in [run::Shuffle::Full, run::Shuffle::Blocks] {
        let mut data = data.clone();
        if let run::Source::Packed(packed) = &mut data.source {
            packed.shuffle = shuffle;
        }
        let loader = open(&data, 0).unwrap();
        let mut seen = BTreeMap::new();
        for (_, bits, labels, _) in all(loader.train(FIRST, Epoch(1))).unwrap() {
            for (image, label) in bits.chunks_exact(8 * 8 * 3).zip(labels) {
                // One colour, whatever its size was; the class is the number's.
                assert_eq!(seen.insert(image[0], label), None);
                assert!(image.iter().step_by(3).all(|&bits| bits == image[0]));
            }
        }
        assert_eq!(seen.len(), 20);
        let test = all(loader.test()).unwrap();
        let labels: Vec<u32> = test
            .iter()
            .flat_map(|(_, _, labels, _)| labels.clone())
            .collect();
        // In the order of the tree: by class, then by name.
        let none = NO_LABEL;
        assert_eq!(labels, [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, none, none]);
        let images = test
            .iter()
            .flat_map(|(_, bits, ..)| bits.chunks_exact(8 * 8 * 3));
        let firsts: std::collections::BTreeSet<u32> = images.map(|image| image[0]).collect();
        assert_eq!(firsts.len(), 11, "ten colours and the empty place");
    }
}

#[test]
fn cifar_is_the_same_packed_and_from_its_files() {
    let folder = Folder::new("cifar");
    let packed = open(&config(&folder.cifar(), &["data.batch=5"]), u64::MAX).unwrap();
    let dataset = crate::data::cifar::read(&PathBuf::from(folder.path("cifar"))).unwrap();
    // Another fingerprint, another order: sample by sample.
    let shape = dataset.shape();
    let tables = dataset.normalise.tables();
    let mut num = 0;
    for (place, bits, labels, _) in all(packed.train(FIRST, Epoch(1))).unwrap() {
        let plan = packed_order(&packed, place);
        for ((image, label), sample) in bits.chunks_exact(3072).zip(labels).zip(plan) {
            let draws = Augment::Cifar.draw(shape, 5, Epoch(0), u32::try_from(sample).unwrap());
            let mut want = vec![0.0; 3072];
            let value = |channel: usize, byte: u8| tables[channel][usize::from(byte)];
            draws.apply(shape, dataset.train.image(sample), &mut want, value);
            let want: Vec<u32> = want.iter().map(|x| x.to_bits()).collect();
            assert!(image == want, "sample {sample}");
            assert_eq!(label, dataset.train.labels[sample]);
            num += 1;
        }
    }
    assert_eq!(num, 20);
}

fn packed_order(loader: &PackedLoader, place: Place) -> Vec<usize> {
    let mut jobs = stream::train_jobs(loader.plan(), place, Epoch(1));
    jobs.next().unwrap().1
}

/// Two epochs of training, then the test set: once as values, once as bytes with their draws.
fn assert_bytes_are_the_values(loader: &PackedLoader, shape: Shape) {
    let want = everything(loader).unwrap();
    let loader = loader.clone().raw(true);
    let mut batches = Vec::new();
    for mut prefetch in [loader.train(FIRST, Epoch(2)), loader.test()] {
        while let Some(batch) = prefetch.next_batch().unwrap() {
            assert!(batch.x_nhwc.is_empty());
            let raw = batch.raw.as_ref().unwrap();
            let bits = raw.values(shape).iter().map(|x| x.to_bits()).collect();
            batches.push((batch.place, bits, batch.labels.clone(), batch.bad.clone()));
            // A place has a picture where it has a label.
            let has_picture = raw.draws.iter().map(Option::is_some);
            assert!(has_picture.eq(batch.labels.iter().map(|&label| label != NO_LABEL)));
        }
    }
    assert_eq!(batches.len(), want.len());
    for (batch, want) in batches.iter().zip(&want) {
        assert!(batch == want, "{:?}", want.0);
    }
}

/// Damages a picture of the test set.
fn damage_test(url: &str, sample: u64) {
    let index = fs::read(PathBuf::from(url).join(INDEX_NAME)).unwrap();
    let index = Index::parse(&index, "index").unwrap();
    let place = index.test.sample(sample).unwrap();
    let path = PathBuf::from(url).join(&index.test.shards()[place.shard_index].path);
    let mut bytes = fs::read(&path).unwrap();
    let begin = usize::try_from(place.offset).unwrap();
    bytes[begin..begin + 4].fill(b'x');
    fs::write(&path, bytes).unwrap();
}

#[test]
fn bytes_with_their_draws_are_the_same_batches() {
    let shape = |side| Shape {
        height: side,
        width: side,
        channels: 3,
    };
    let folder = Folder::new("raw-any-size");
    let url = folder.pictures(23, 10);
    for augment in ["none", "standard", "autoaugment"] {
        let augment = format!("data.augment={augment}");
        // The fourth test batch has one sample, in a buffer that was full before.
        let loader = open(&config(&url, &[&augment, "data.batch=3"]), 0).unwrap();
        assert_bytes_are_the_values(&loader, shape(8));
    }
    let folder = Folder::new("raw-one-size");
    let url = folder.cifar();
    let whole = open(&config(&url, &["data.batch=5"]), 0).unwrap();
    assert_bytes_are_the_values(&whole, shape(32));
    damage(&url, 7);
    // Its batch, too, is in a buffer that had a picture.
    damage_test(&url, 3);
    let replace = ["data.batch=1", "data.on_bad_sample=replace"];
    let damaged = open(&config(&url, &replace), 0).unwrap();
    assert_bytes_are_the_values(&damaged, shape(32));
    let bad = everything(&damaged).unwrap();
    let bad: Vec<_> = bad.iter().flat_map(|(_, _, _, bad)| bad).collect();
    assert!(bad.iter().any(|bad| bad.replaced_by == Some(8)), "{bad:?}");
    assert!(bad.iter().any(|bad| bad.replaced_by.is_none()), "{bad:?}");
}

#[test]
fn what_is_missing_or_cut_off_is_named_before_the_first_batch() {
    let folder = Folder::new("faults");
    let url = folder.pictures(23, 10);
    let data = config(&url, &[]);
    let refused = |data: &run::Data| open(data, u64::MAX).unwrap_err().to_string();

    let elsewhere = config(&folder.path("tree"), &[]);
    let error = refused(&elsewhere);
    assert!(
        error.contains("no index.json in") && error.contains("synfire pack"),
        "{error}"
    );

    let shard = PathBuf::from(&url).join("train-000000.tar");
    let whole = fs::read(&shard).unwrap();
    fs::write(&shard, &whole[..whole.len() - 1]).unwrap();
    let error = refused(&data);
    assert!(
        error.contains("train-000000.tar: it has ") && error.contains("pack the"),
        "{error}"
    );
    fs::remove_file(&shard).unwrap();
    assert!(refused(&data).contains("train-000000.tar: the index names it"));
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&shard, &flipped).unwrap();
    assert!(refused(&data).contains("train-000000.tar: it does not have the SHA-256"));
    fs::write(&shard, &whole).unwrap();
    open(&data, u64::MAX).unwrap();

    let index = PathBuf::from(&url).join("index.json");
    let bytes = fs::read(&index).unwrap();
    // An index of other shards: read by range, a picture has another class than it says.
    let mut other: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    other["splits"]["train"]["shards"][0]["labels"][0] = 2.into();
    fs::write(&index, other.to_string()).unwrap();
    for resident_bytes in [0, u64::MAX] {
        let loader = open(&data, resident_bytes).unwrap();
        let error = all(loader.train(FIRST, Epoch(1))).unwrap_err().to_string();
        assert!(
            error.contains("it is of class 0, the index says 2"),
            "{error}"
        );
    }
    fs::write(&index, &bytes[..bytes.len() / 2]).unwrap();
    assert!(refused(&data).contains("index.json"));
    fs::write(&index, &bytes).unwrap();

    let folder = Folder::new("faults-one-size");
    let error = refused(&config(&folder.cifar(), &["data.augment=autoaugment"]));
    assert!(error.contains("pictures of any size"), "{error}");
}

/// Damages the picture of a training sample in its shard; returns the sample's name.
fn damage(url: &str, sample: u64) -> String {
    let index = fs::read(PathBuf::from(url).join(INDEX_NAME)).unwrap();
    let index = Index::parse(&index, "index").unwrap();
    let place = index.train.sample(sample).unwrap();
    let shard = &index.train.shards()[place.shard_index].path;
    let path = PathBuf::from(url).join(shard);
    let mut bytes = fs::read(&path).unwrap();
    let begin = usize::try_from(place.offset).unwrap();
    bytes[begin..begin + 4].fill(b'x');
    fs::write(&path, bytes).unwrap();
    format!(
        "{}: sample {}, at byte {}",
        path.display(),
        place.in_shard,
        place.offset
    )
}

#[test]
fn a_bad_sample_is_named_or_replaced_by_its_neighbour() {
    let folder = Folder::new("bad");
    let url = folder.pictures(20, 5);
    let good = all(open(&config(&url, &["data.augment=none"]), 0)
        .unwrap()
        .train(FIRST, Epoch(1)));
    let names = [damage(&url, 7), damage(&url, 8)];

    let loader = open(&config(&url, &[]), 0).unwrap();
    let error = all(loader.train(FIRST, Epoch(1))).unwrap_err();
    let text = error.to_string();
    assert!(names.iter().any(|name| text.starts_with(name)), "{text}");
    assert!(text.contains("data.on_bad_sample"), "{text}");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("neither JPEG nor PNG"), "{source}");

    let replace = config(&url, &["data.on_bad_sample=replace", "data.augment=none"]);
    let loader = open(&replace, 0).unwrap();
    let replaced = all(loader.train(FIRST, Epoch(1))).unwrap();
    let bad: Vec<&BadSample> = replaced.iter().flat_map(|(_, _, _, bad)| bad).collect();
    assert_eq!(bad.len(), 2);
    for bad in bad {
        assert!(names.contains(&bad.name), "{bad:?}");
        assert_eq!(bad.replaced_by, Some(9));
    }
    // All else is as before: two of twenty samples differ.
    let images = |batches: &[Content]| -> Vec<Vec<u32>> {
        let bits = batches
            .iter()
            .flat_map(|(_, bits, ..)| bits.chunks_exact(8 * 8 * 3));
        bits.map(<[u32]>::to_vec).collect()
    };
    let (good, replaced) = (images(&good.unwrap()), images(&replaced));
    let differ = good.iter().zip(&replaced).filter(|(a, b)| a != b).count();
    assert_eq!((good.len(), differ), (20, 2));
}

#[test]
fn a_bad_test_sample_is_left_out_and_a_set_of_bad_ones_is_refused() {
    let folder = Folder::new("bad-test");
    for i in 0..6 {
        folder.write(&format!("tree/train/a/{i}.png"), &png(20, 20, i));
    }
    folder.write("tree/test/a/0.png", &png(20, 20, 1));
    let set = pack::tree::find(&folder.path("tree"), "made", None).unwrap();
    let url = folder.pack(&set, 1 << 20);
    let test = PathBuf::from(&url).join("test-000000.tar");
    let mut bytes = fs::read(&test).unwrap();
    bytes[512..600].fill(0);
    fs::write(&test, bytes).unwrap();
    let loader = open(&config(&url, &["data.on_bad_sample=replace"]), 0).unwrap();
    let batches = all(loader.test()).unwrap();
    assert_eq!(batches.len(), 1);
    let (_, bits, labels, bad) = &batches[0];
    assert_eq!(labels, &[NO_LABEL; 4]);
    assert!(bits.iter().all(|&bits| bits == 0));
    assert_eq!((bad.len(), bad[0].replaced_by), (1, None));

    (0..6).for_each(|sample| {
        damage(&url, sample);
    });
    let error = all(loader.train(FIRST, Epoch(1))).unwrap_err().to_string();
    assert!(error.contains("the 100 samples after it"), "{error}");
}

/// Serves a folder over HTTP: every third answer is an error, every fourth breaks off.
struct Server {
    port: u16,
    answers: Arc<AtomicU64>,
}

impl Server {
    fn start(folder: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answers = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&answers);
        // Ends with the process: nothing connects to it any more.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (folder, count) = (folder.clone(), Arc::clone(&count));
                thread::spawn(move || serve(&stream.unwrap(), &folder, &count));
            }
        });
        Self { port, answers }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// One request for each connection.
fn serve(mut stream: &TcpStream, folder: &std::path::Path, count: &AtomicU64) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next()?.ok()?;
    let path = request
        .split(' ')
        .nth(1)?
        .trim_start_matches('/')
        .to_owned();
    let mut range = None;
    for line in lines {
        let line = line.ok()?.to_ascii_lowercase();
        if let Some(bytes) = line.strip_prefix("range: bytes=") {
            let (start, end) = bytes.split_once('-')?;
            range = Some((start.parse::<usize>().ok()?, end.parse::<usize>().ok()?));
        }
        if line.is_empty() {
            break;
        }
    }
    let close = "Connection: close\r\nLast-Modified: Tue, 01 Jan 2030 00:00:00 GMT\r\n";
    let number = count.fetch_add(1, Ordering::Relaxed) + 1;
    let Ok(bytes) = fs::read(folder.join(path)) else {
        let answer = format!("HTTP/1.1 404 No\r\n{close}Content-Length: 0\r\n\r\n");
        return stream.write_all(answer.as_bytes()).ok();
    };
    if request.starts_with("HEAD ") {
        let answer = format!(
            "HTTP/1.1 200 OK\r\n{close}Content-Length: {}\r\n\r\n",
            bytes.len()
        );
        return stream.write_all(answer.as_bytes()).ok();
    }
    if number.is_multiple_of(3) {
        let answer = format!("HTTP/1.1 503 Busy\r\n{close}Content-Length: 0\r\n\r\n");
        return stream.write_all(answer.as_bytes()).ok();
    }
    let (status, part, total) = match range {
        Some((start, end)) => {
            let end = end.min(bytes.len() - 1);
            let total = format!("Content-Range: bytes {start}-{end}/{}\r\n", bytes.len());
            ("206 Partial Content", &bytes[start..=end], total)
        }
        None => ("200 OK", &bytes[..], String::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\n{close}{total}Content-Length: {}\r\n\r\n",
        part.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    let sent = if number.is_multiple_of(4) {
        part.len() / 2
    } else {
        part.len()
    };
    stream.write_all(&part[..sent]).ok()
}

#[test]
fn a_server_that_fails_now_and_then_gives_the_same_batches_through_a_cache() {
    let folder = Folder::new("http");
    let url = folder.pictures(23, 10);
    let want = everything(&open(&config(&url, &[]), 0).unwrap()).unwrap();
    let server = Server::start(PathBuf::from(&url));
    let cache = format!("data.cache={}", folder.path("cache"));

    let plain = config(&server.url(), &["data.cache_gib=0"]);
    assert!(everything(&open(&plain, 0).unwrap()).unwrap() == want);
    let without = server.answers.swap(0, Ordering::Relaxed);

    let cached = config(&server.url(), &[&cache]);
    assert!(everything(&open(&cached, 0).unwrap()).unwrap() == want);
    let with = server.answers.swap(0, Ordering::Relaxed);
    assert!(
        with < without,
        "{with} answers with the cache, {without} without"
    );

    // A second run, or another process, asks for the index and the shards' lengths alone.
    let again = open(&cached, 0).unwrap();
    let opened = server.answers.load(Ordering::Relaxed);
    assert!(everything(&again).unwrap() == want);
    assert_eq!(server.answers.load(Ordering::Relaxed), opened);
    assert!(everything(&open(&cached, u64::MAX).unwrap()).unwrap() == want);

    let error = open(&config(&format!("{}/none", server.url()), &[]), 0).unwrap_err();
    assert!(matches!(error, DataError::NoIndex { .. }), "{error}");
}

#[test]
fn what_came_damaged_is_not_kept_in_the_cache() {
    let folder = Folder::new("poison");
    let url = folder.pictures(23, 10);
    let want = everything(&open(&config(&url, &[]), 0).unwrap()).unwrap();
    let server = Server::start(PathBuf::from(&url));
    let cache = format!("data.cache={}", folder.path("cache"));
    let cached = config(&server.url(), &[&cache]);
    let index = fs::read(PathBuf::from(&url).join(INDEX_NAME)).unwrap();
    let index = Index::parse(&index, "index").unwrap();
    let place = index.train.sample(3).unwrap();
    let shard = PathBuf::from(&url).join(&index.train.shards()[place.shard_index].path);
    let whole = fs::read(&shard).unwrap();
    damage(&url, 3);

    // A small set, of which shards have digests.
    let error = open(&cached, u64::MAX).unwrap_err().to_string();
    assert!(error.contains("does not have the SHA-256"), "{error}");
    fs::write(&shard, &whole).unwrap();
    assert!(everything(&open(&cached, u64::MAX).unwrap()).unwrap() == want);

    // A large one, of which the decoder alone can tell.
    fs::remove_dir_all(folder.0.join("cache")).unwrap();
    damage(&url, 3);
    let loader = open(&cached, 0).unwrap();
    let error = all(loader.train(FIRST, Epoch(1))).unwrap_err();
    assert!(matches!(error, DataError::Sample { .. }), "{error}");
    fs::write(&shard, &whole).unwrap();
    assert!(everything(&open(&cached, 0).unwrap()).unwrap() == want);
}
