//! A run tells its metrics to who asks, and leaves a report that a browser can show.
#![allow(
    clippy::unwrap_used,
    reason = "what is only called by tests is a test, too"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// For anything that is waited for.
const DEADLINE: Duration = Duration::from_mins(1);
/// Between two looks at something that is waited for.
const PAUSE: Duration = Duration::from_millis(100);

/// Every metric with its type.
const METRICS: [(&str, &str); 18] = [
    ("synfire_accuracy_ratio", "gauge"),
    ("synfire_bad_samples_total", "counter"),
    ("synfire_batch_seconds", "histogram"),
    ("synfire_checkpoint_bytes", "gauge"),
    ("synfire_checkpoint_failures_total", "counter"),
    ("synfire_checkpoint_stall_seconds", "histogram"),
    ("synfire_checkpoint_write_seconds", "histogram"),
    ("synfire_checkpoints_total", "counter"),
    ("synfire_data_wait_seconds", "histogram"),
    ("synfire_dead_neurons_ratio", "gauge"),
    ("synfire_exchange_wait_per_update_seconds", "gauge"),
    ("synfire_exchange_wait_seconds", "histogram"),
    ("synfire_firing_rate_ratio", "gauge"),
    ("synfire_images_total", "counter"),
    ("synfire_learning_rate", "gauge"),
    ("synfire_loss", "gauge"),
    ("synfire_memory_bytes", "gauge"),
    ("synfire_updates_total", "counter"),
];

/// A process that ends when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder that is gone when this is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("synfire-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `synfire train` on the built-in data, made smaller.
fn synfire() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_synfire"));
    command.args([
        "train",
        "--set",
        "data.batch=16",
        "--set",
        "model.width=0.25",
    ]);
    command.stdout(Stdio::piped());
    command
}

/// A run that is longer than the test, and where it tells its metrics.
fn long_run(more: &[&str]) -> (Running, SocketAddr) {
    let mut command = synfire();
    command.args([
        "--set",
        "run.epochs=100000",
        "--metrics-addr",
        "127.0.0.1:0",
    ]);
    command.args(more);
    let mut running = Running(command.spawn().unwrap());
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    let address = loop {
        let line = lines.next().expect("the address comes first").unwrap();
        if let Some(address) = line.strip_prefix("metrics at http://") {
            break address.strip_suffix("/metrics").unwrap().parse().unwrap();
        }
    };
    // The pipe is read to its end, so that the run never waits for room in it.
    thread::spawn(move || lines.for_each(drop));
    (running, address)
}

/// The body of an answer with status 200.
fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let fine = head.split(' ').nth(1) == Some("200");
    fine.then(|| body.to_owned())
}

/// Asks until there is something.
fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(begin.elapsed() < DEADLINE, "waited too long for {what}");
        thread::sleep(PAUSE);
    }
}

/// The value of a line that begins with `name` and a space.
fn value(text: &str, name: &str) -> f64 {
    let line = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
    text.lines()
        .find_map(line)
        .unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// The metrics of a run, as scraped, with more than `images` images. A scrape may fall between two
/// numbers of the same batches; then the next is taken.
fn scraped(address: SocketAddr, images: f64) -> String {
    wait_for("metrics that fit each other", || {
        let text = get(address, "/metrics")?;
        let batches = value(&text, "synfire_batch_seconds_count");
        // The built-in run has T = 4 time steps, and STOL an update in each.
        let fit = same(value(&text, "synfire_images_total"), 16.0 * batches)
            && same(value(&text, "synfire_updates_total"), 4.0 * batches)
            && same(value(&text, "synfire_data_wait_seconds_count"), batches)
            && text.matches("\nsynfire_firing_rate_ratio{layer=").count() >= 2
            && text.matches("\nsynfire_dead_neurons_ratio{layer=").count() >= 2;
        (fit && 16.0 * batches > images).then_some(text)
    })
}

/// Whether two whole numbers are the same.
fn same(a: f64, b: f64) -> bool {
    (a - b).abs() < 0.5
}

#[test]
fn a_run_tells_every_metric_with_its_type_and_counters_only_grow() {
    let (_run, address) = long_run(&[]);
    let first = scraped(address, 0.0);
    let types: Vec<String> = first
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(str::to_owned)
        .collect();
    assert_eq!(types, METRICS.map(|(name, kind)| format!("{name} {kind}")));
    let images = value(&first, "synfire_images_total");
    assert!(value(&first, "synfire_batch_seconds_sum") > 0.0);
    assert!(value(&first, "synfire_loss") > 0.0);
    assert!(value(&first, "synfire_learning_rate") > 0.0);
    let windows = value(&first, "synfire_memory_bytes{kind=\"windows\"}");
    let device = value(&first, "synfire_memory_bytes{kind=\"device\"}");
    assert!(0.0 < windows && windows < device, "{windows} {device}");
    for line in first.lines() {
        if let Some((_, share)) = line
            .strip_prefix("synfire_dead_neurons_ratio{")
            .and_then(|line| line.split_once("} "))
        {
            let share: f64 = share.parse().unwrap();
            assert!((0.0..1.0).contains(&share), "{line}");
        }
    }
    let train = value(&first, "synfire_accuracy_ratio{split=\"train\"}");
    assert!((0.0..=1.0).contains(&train));
    let second = scraped(address, images);
    for name in [
        "synfire_updates_total",
        "synfire_batch_seconds_count",
        "synfire_batch_seconds_sum",
        "synfire_data_wait_seconds_sum",
    ] {
        assert!(value(&second, name) > value(&first, name), "{name}");
    }
    assert!(get(address, "/").is_none() && get(address, "/metrics/x").is_none());
}

#[test]
fn checkpoints_are_told_and_those_that_fail_counted() {
    let folder = Folder::new("checkpoint-metrics");
    let run = folder.0.join("run");
    let set = format!("run.folder={}", run.display());
    let every = "checkpoint.every_batches=2";
    let (_run, address) = long_run(&["--set", &set, "--set", every]);
    let ask = |holds: &dyn Fn(&str) -> bool| {
        wait_for("checkpoints", || {
            get(address, "/metrics").filter(|text| holds(text))
        })
    };
    // A stall is told at the end of its batches, what became of the copy later; a scrape looks at one after the
    // other.
    let text = ask(&|text| {
        let written = value(text, "synfire_checkpoint_write_seconds_count");
        let stalls = value(text, "synfire_checkpoint_stall_seconds_count");
        value(text, "synfire_checkpoints_total") > 1.5 && stalls >= written
    });
    assert!(value(&text, "synfire_checkpoint_write_seconds_sum") > 0.0);
    assert!(value(&text, "synfire_checkpoint_stall_seconds_sum") > 0.0);
    assert!(value(&text, "synfire_checkpoint_bytes") > 1000.0);
    assert!(same(value(&text, "synfire_checkpoint_failures_total"), 0.0));
    // The run makes the folder anew wherever it is gone.
    let is_in_the_way = (0..100).any(|number| {
        fs::rename(run.join("checkpoints"), run.join(format!("gone-{number}"))).unwrap();
        fs::write(run.join("checkpoints"), "in the way").is_ok()
    });
    assert!(is_in_the_way);
    ask(&|text| value(text, "synfire_checkpoint_failures_total") > 0.5);
}

#[test]
fn metrics_stop_with_the_run_and_an_address_in_use_is_refused() {
    let (run, address) = long_run(&[]);
    let mut second = synfire();
    second.args(["--metrics-addr", &address.to_string()]);
    let second = second.stderr(Stdio::piped()).output().unwrap();
    assert!(!second.status.success());
    let error = String::from_utf8(second.stderr).unwrap();
    assert!(
        error.contains(&format!("cannot listen on {address}")),
        "{error}"
    );
    drop(run);
    assert!(TcpStream::connect(address).is_err());
}

/// A report of one short epoch.
fn report(folder: &Folder) -> PathBuf {
    let path = folder.0.join("report.html");
    let mut command = synfire();
    command.args([
        "--set",
        "run.epochs=1",
        "--set",
        "run.max_batches=16",
        "--report",
    ]);
    let output = command.arg(&path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("report written to"), "{told}");
    path
}

#[test]
fn a_run_leaves_a_report_with_its_accuracy_and_configuration() {
    let folder = Folder::new("report");
    let html = fs::read_to_string(report(&folder)).unwrap();
    assert!(
        html.contains("Test accuracy after the last epoch"),
        "{html}"
    );
    assert!(html.contains(": finished"), "{html}");
    assert!(html.contains("max_batches = 16"), "{html}");
    assert_eq!(html.matches("<svg class=\"plot\"").count(), 7);
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
}

#[test]
#[ignore = "needs prometheus"]
fn needs_prometheus_promtool_finds_nothing_to_say() {
    let folder = Folder::new("promtool");
    let run = format!("run.folder={}", folder.0.join("run").display());
    let (_run, address) = long_run(&["--set", &run, "--set", "checkpoint.every_batches=2"]);
    let text = scraped(address, 0.0);
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped());
    promtool.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().expect("promtool is installed");
    let mut input = promtool.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
#[ignore = "needs prometheus"]
fn needs_prometheus_a_real_one_scrapes_a_real_run() {
    let (_run, address) = long_run(&[]);
    let folder = Folder::new("prometheus");
    let configuration = folder.0.join("prometheus.yml");
    let text = format!(
        "global:\n  scrape_interval: 500ms\nscrape_configs:\n  - job_name: synfire\n    \
         static_configs:\n      - targets: [\"{address}\"]\n"
    );
    fs::write(&configuration, text).unwrap();
    // Prometheus does not say which port it took, so a free one is looked for.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap();
    drop(listener);
    let mut prometheus = Command::new("prometheus");
    prometheus.arg(format!("--config.file={}", configuration.display()));
    prometheus.arg(format!(
        "--storage.tsdb.path={}",
        folder.0.join("data").display()
    ));
    prometheus.arg(format!("--web.listen-address={own}"));
    prometheus.stdout(Stdio::null()).stderr(Stdio::null());
    let _prometheus = Running(prometheus.spawn().expect("prometheus is installed"));
    let images = wait_for("a scrape", || {
        let answer = get(own, "/api/v1/query?query=synfire_images_total")?;
        let answer: serde_json::Value = serde_json::from_str(&answer).ok()?;
        let result = &answer["data"]["result"][0];
        let images: f64 = result["value"][1].as_str()?.parse().ok()?;
        (images > 0.0).then_some(images)
    });
    assert!(same(images % 16.0, 0.0), "{images}");
}

#[test]
#[ignore = "needs chromium"]
fn needs_chromium_the_report_renders_without_a_complaint() {
    let folder = Folder::new("chromium");
    let page = report(&folder);
    let mut chromium = Command::new("chromium");
    chromium.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
    ]);
    chromium.args(["--no-first-run", "--disable-background-networking"]);
    chromium.args([
        "--disable-component-update",
        "--disable-sync",
        "--disable-extensions",
    ]);
    chromium.args(["--enable-logging=stderr", "--dump-dom"]);
    chromium.arg(format!(
        "--user-data-dir={}",
        folder.0.join("profile").display()
    ));
    chromium.arg(format!("file://{}", page.display()));
    let output = chromium.output().expect("chromium is installed");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaints}");
    // What a page does wrong, also against its own policy, comes to the console.
    assert!(!complaints.contains("CONSOLE"), "{complaints}");
    let dom = String::from_utf8_lossy(&output.stdout);
    assert_eq!(dom.matches("<svg class=\"plot\"").count(), 7, "{dom}");
    assert!(dom.matches("<polyline points=\"").count() >= 10, "{dom}");
    assert!(!dom.contains("<script"), "{dom}");
    assert!(dom.contains("Test accuracy after the last epoch"), "{dom}");
}
