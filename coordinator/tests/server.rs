//! The server lets in who may come in, and serves a run to processes that come, go and fall silent.
#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "what is only called by tests is a test, too"
)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::*;
use synfire_coordinator::Server;
use synfire_coordinator::serve::Tls;
use synfire_shared::protocol::MAX_REQUEST_BYTES;
use synfire_shared::storage::Store;

#[test]
fn only_who_shows_the_token_is_let_in() {
    let server = server(1, &Store::in_memory());
    let address = server.address();
    let wrong = [
        String::new(),
        "Authorization: Bearer \r\n".into(),
        format!("Authorization: {TOKEN}\r\n"),
        format!("Authorization: Basic {TOKEN}\r\n"),
        format!("Authorization: Bearer {}\r\n", &TOKEN[1..]),
        format!("Authorization: Bearer {TOKEN}0\r\n"),
        format!("Authorization: Bearer {}\r\n", "f".repeat(TOKEN.len())),
        // Two tokens may be read as one or the other.
        format!("{}Authorization: Bearer wrong\r\n", bearer()),
    ];
    let join = serde_json::to_string(&Fake::new(1, None).request).unwrap();
    for (times, headers) in (1..).zip(&wrong) {
        let answer = ask(address, "POST /v1/join", headers, &join);
        assert_eq!(answer.status, 401, "{headers}");
        assert_eq!(answer.json()["code"], "token");
        assert!(
            answer.head.contains("www-authenticate: bearer"),
            "{answer:?}"
        );
        assert_eq!(refused(address, "token"), times);
    }
    for route in [
        "POST /v1/heartbeat",
        "POST /v1/checkpoint",
        "POST /v1/leave",
        "POST /v1/directive",
        "GET /v1/status",
    ] {
        assert_eq!(ask(address, route, "", "{}").status, 401, "{route}");
    }
    assert!(server.view().waiting.is_empty(), "{:?}", server.view());
    for open in ["/", "/metrics", "/v1/targets"] {
        let answer = get(address, open);
        assert_eq!(answer.status, 200, "{open}");
        assert!(!answer.body.contains(TOKEN), "{open}");
    }
    let lower = bearer().to_lowercase();
    assert_eq!(ask(address, "GET /v1/status", &lower, "").status, 200);
    assert_eq!(Fake::new(1, None).join(address).status, 200);
}

#[test]
fn what_is_no_message_is_refused() {
    let server = server(1, &Store::in_memory());
    let address = server.address();
    for body in [
        "",
        "x",
        "[]",
        "{}",
        "{\"protocol\": 1}",
        "\u{1f980}",
        "null",
    ] {
        let answer = post(address, "/v1/join", body);
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        assert_eq!(answer.json()["code"], "malformed");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(post(address, "/v1/leave", &deep).status, 400);
    let mut fake = Fake::new(1, None);
    fake.request.process = "no id".into();
    assert_eq!(fake.join(address).status, 400);
    let order = post(
        address,
        "/v1/directive",
        r#"{"order": "stop", "signal": 9}"#,
    );
    assert_eq!(order.status, 400, "{order:?}");
    assert_eq!(refused(address, "malformed"), 10);
    assert_eq!(post(address, "/v1/nothing", "{}").status, 404);
    assert_eq!(get(address, "/v1/join").status, 405);
    assert_eq!(post(address, "/metrics", "").status, 405);
    let large = vec![0xff; 40_000];
    for nonsense in [&b"\0\0\0\0\r\n\r\n"[..], b"GET / HTTP/9\r\n\r\n", &large] {
        let mut stream = connect(address);
        let _ = stream.write_all(nonsense);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{nonsense:?}");
    }
    assert_eq!(get(address, "/").status, 200);
}

#[test]
fn a_body_that_is_too_long_is_refused_and_that_of_a_stranger_not_read() {
    let server = server(1, &Store::in_memory());
    let address = server.address();
    let long = "x".repeat(MAX_REQUEST_BYTES + 1);
    let answer = post(address, "/v1/heartbeat", &long);
    assert_eq!(answer.status, 413, "{answer:?}");
    assert_eq!(refused(address, "body"), 1);
    // The body never comes, the answer does.
    let head = "POST /v1/heartbeat HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n";
    assert_eq!(raw(address, head.as_bytes()).status, 401);
    // Chunks without an end.
    let mut head = format!("POST /v1/heartbeat HTTP/1.1\r\n{}", bearer());
    head += "Host: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000)).repeat(20);
    assert_eq!(raw(address, (head + &chunk).as_bytes()).status, 413);
}

#[test]
fn silent_strangers_keep_no_rank_out() {
    let server = server(1, &Store::in_memory());
    let address = server.address();
    let mut rank = connect(address);
    let status = |stream: &mut TcpStream| {
        let head = format!("GET /v1/status HTTP/1.1\r\nHost: x\r\n{}\r\n", bearer());
        stream.write_all(head.as_bytes()).unwrap();
        read(stream).unwrap().status
    };
    assert_eq!(status(&mut rank), 200);
    let mut strangers: Vec<TcpStream> = (0..100).map(|_| connect(address)).collect();
    for stranger in &mut strangers {
        // Those beyond the limit are closed already.
        let _ = stranger.write_all(b"GET / HTTP/1.1\r\nHost: ");
    }
    // The connection of who has shown the token is not one of theirs.
    assert_eq!(status(&mut rank), 200);
    for mut stranger in strangers {
        let mut answer = Vec::new();
        let _ = stranger.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
    // They are gone: there is room again, which a stranger has for one request.
    let answer = get(address, "/");
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("connection: close"), "{answer:?}");
    assert!(refused(address, "connections") >= 30);
}

#[test]
fn another_protocol_or_version_is_refused_and_told_so() {
    let server = server(1, &Store::in_memory());
    let address = server.address();
    // A later version may have another form.
    let answer = post(address, "/v1/join", r#"{"protocol": 7, "who": "a worker"}"#);
    assert_eq!(answer.status, 409, "{answer:?}");
    assert_eq!(answer.json()["code"], "protocol");
    let reason = answer.json()["reason"].to_string();
    assert!(
        reason.contains("version 7 of the protocol, the coordinator 1"),
        "{reason}"
    );
    assert_eq!(refused(address, "protocol"), 1);
    let mut old = Fake::new(1, None);
    old.request.version = "0.0.9".into();
    let answer = old.join(address);
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (409, &json!("version"))
    );
    assert_eq!(refused(address, "version"), 1);
}

#[test]
fn a_second_process_for_a_live_rank_is_refused() {
    let server = server(2, &Store::in_memory());
    let address = server.address();
    let (a, b) = (Fake::new(1, Some(0)), Fake::new(2, Some(1)));
    let generation = form(address, &[&a, &b]);
    let thief = Fake::new(3, Some(1));
    let answer = wait_for("a refusal", || {
        a.heartbeat(address, generation, 1);
        b.heartbeat(address, generation, 1);
        let answer = thief.join(address);
        (answer.status != 200).then_some(answer)
    });
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (409, &json!("rank_taken"))
    );
    let reason = answer.json()["reason"].to_string();
    assert!(reason.contains("node-2"), "{reason}");
    assert!(refused(address, "rank_taken") >= 1);
    assert_eq!(a.heartbeat(address, generation, 2)["directive"], "continue");
}

#[test]
fn a_rank_that_falls_silent_is_named_and_a_new_generation_forms() {
    let folder = Folder::new();
    let store = Store::create(folder.0.to_str().unwrap()).unwrap();
    let server = server(2, &store);
    let address = server.address();
    let (a, b) = (Fake::new(1, Some(0)), Fake::new(2, Some(1)));
    let generation = form(address, &[&a, &b]);
    assert_eq!(a.heartbeat(address, generation, 7)["directive"], "continue");
    let before = Instant::now();
    assert_eq!(b.heartbeat(address, generation, 7)["directive"], "continue");
    let told = wait_for("the loss", || {
        let directive = a.heartbeat(address, generation, 7);
        (directive["directive"] != "continue").then_some(directive)
    });
    let seconds = before.elapsed().as_secs_f64();
    assert_eq!(told["directive"], "abandon");
    let reason = told["reason"].to_string();
    for part in ["rank 1", "node-2", "update 7"] {
        assert!(reason.contains(part), "{reason}");
    }
    // 4 s of silence and a look, and more on a busy machine; `run.rs` has the limit of 5 s in virtual time.
    assert!((4.0..20.0).contains(&seconds), "{seconds}");
    let name = "synfire_coordinator_lost_generations_total{reason=\"silent\"}";
    assert_eq!(metric(address, name), "1");
    // Who wakes up is told, too.
    assert_eq!(b.heartbeat(address, generation, 8)["directive"], "abandon");
    let next = form(address, &[&a, &b]);
    assert!(next > generation);
    assert_eq!(
        metric(address, "synfire_coordinator_generations_total"),
        "2"
    );
}

#[test]
fn a_coordinator_that_is_started_again_takes_its_ranks_back() {
    let folder = Folder::new();
    let store = Store::create(folder.0.to_str().unwrap()).unwrap();
    let server = server(2, &store);
    let address = server.address();
    let (a, b) = (Fake::new(1, Some(0)), Fake::new(2, Some(1)));
    let generation = form(address, &[&a, &b]);
    a.heartbeat(address, generation, 1);
    b.heartbeat(address, generation, 1);
    server.stop();
    assert!(TcpStream::connect(address).is_err());
    let mut again = options(2);
    again.listen = address;
    let server = Server::start(again, store, "checkpoints").unwrap();
    let begin = Instant::now();
    // Longer than a rank may be silent.
    while begin.elapsed() < Duration::from_secs(5) {
        for fake in [&a, &b] {
            let told = fake.heartbeat(address, generation, 2);
            assert_eq!(told["directive"], "continue");
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    let view = server.view();
    assert_eq!(
        (view.stage, view.generation),
        ("training", Some(generation))
    );
    assert_eq!(view.generations, 0, "none began here");
    assert!(
        view.members.iter().all(|rank| rank.status.is_some()),
        "{view:?}"
    );
}

#[test]
fn a_checkpoint_orders_and_the_end_are_passed_on() {
    let server = server(1, &Store::in_memory());
    let address = server.address();
    let fake = Fake::new(1, None);
    let generation = form(address, &[&fake]);
    let order = |body: &str| assert_eq!(post(address, "/v1/directive", body).status, 200);
    order(r#"{"order": "save"}"#);
    assert_eq!(fake.heartbeat(address, generation, 1)["directive"], "save");
    let manifest = format!("000000000011-g{generation:06}.json");
    let checkpoint = json!({
        "process": fake.process(), "generation": generation, "manifest": manifest,
        "batches_done": 11, "epoch": 0,
    });
    let answer = post(address, "/v1/checkpoint", &checkpoint.to_string());
    assert_eq!((answer.status, &*answer.body), (200, "{}"));
    assert_eq!(
        fake.heartbeat(address, generation, 1)["directive"],
        "continue"
    );
    assert_eq!(
        metric(address, "synfire_coordinator_checkpoint_batches"),
        "11"
    );
    order(r#"{"order": "stop", "signal": 15}"#);
    let told = fake.heartbeat(address, generation, 1);
    assert_eq!(told, json!({"directive": "stop", "signal": 15}));
    let mut late = checkpoint;
    late["generation"] = json!(0);
    let answer = post(address, "/v1/checkpoint", &late.to_string());
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (409, &json!("generation"))
    );
    let leave = json!({
        "process": fake.process(), "generation": generation, "reason": {"kind": "finished"},
    });
    assert_eq!(post(address, "/v1/leave", &leave.to_string()).status, 200);
    let answer = Fake::new(2, None).join(address);
    assert_eq!(answer.json()["answer"], "over");
    assert!(server.view().reason.is_some());
}

#[test]
fn ranks_are_targets_for_prometheus_and_shown_on_the_page() {
    let server = server(2, &Store::in_memory());
    let address = server.address();
    assert_eq!(get(address, "/v1/targets").body, "[]");
    let mut silent = Fake::new(2, Some(1));
    silent.request.metrics = None;
    silent.request.host = "<script>alert(1)</script>".into();
    let fake = Fake::new(1, Some(0));
    let generation = form(address, &[&fake, &silent]);
    fake.heartbeat(address, generation, 42);
    let answer = get(address, "/v1/targets");
    assert!(
        answer.head.contains("content-type: application/json"),
        "{answer:?}"
    );
    // Who listens on all addresses is reached where it came from.
    let wanted = json!([{
        "targets": ["127.0.0.1:9101"],
        "labels": {"rank": "0", "generation": generation.to_string(), "host": "node-1"},
    }]);
    assert_eq!(answer.json(), wanted);
    let page = get(address, "/");
    assert!(
        page.head
            .contains("content-security-policy: default-src 'none'")
    );
    assert!(page.body.contains("node-1 (pid 101)") && page.body.contains("<td>42</td>"));
    assert!(!page.body.contains("<script"), "{}", page.body);
    let status = ask(address, "GET /v1/status", &bearer(), "").json();
    assert_eq!(status["stage"], "training");
    assert_eq!(status["members"][0]["status"]["update"], 42);
    assert_eq!(status["members"][1]["status"], Value::Null);
    assert_eq!(metric(address, "synfire_coordinator_ranks"), "2");
    assert_eq!(
        metric(address, "synfire_coordinator_images_per_second"),
        "120.5"
    );
}

#[test]
fn with_a_certificate_it_speaks_https_alone() {
    let folder = Folder::new();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let (certificate, key) = (folder.0.join("cert.pem"), folder.0.join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    for (certificate, key) in [(&key, &key), (&certificate, &certificate)] {
        let error = Tls::read(certificate, key).unwrap_err().to_string();
        assert!(error.contains(".pem has no"), "{error}");
    }
    let long = folder.0.join("long.pem");
    std::fs::copy(&certificate, &long).unwrap();
    let file = std::fs::File::options().write(true).open(&long).unwrap();
    file.set_len((1 << 20) + 1).unwrap();
    let error = Tls::read(&long, &key).unwrap_err().to_string();
    assert!(
        error.contains("long.pem has more than 1048576 bytes"),
        "{error}"
    );
    let mut secure = options(1);
    secure.tls = Some(Tls::read(&certificate, &key).unwrap());
    let server = Server::start(secure, Store::in_memory(), "checkpoints").unwrap();
    assert!(server.url().starts_with("https://127.0.0.1:"));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = Arc::new(client);
    let secure = |request: &str| {
        let name = "localhost".try_into().unwrap();
        let connection = rustls::ClientConnection::new(Arc::clone(&client), name).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, connect(server.address()));
        stream.write_all(request.as_bytes()).unwrap();
        read(&mut stream).unwrap()
    };
    let request = format!("GET /v1/status HTTP/1.1\r\nHost: x\r\n{}\r\n", bearer());
    assert_eq!(secure(&request).status, 200);
    let mut plain = connect(server.address());
    plain.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    let text = secure("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").body;
    assert!(text.contains("refusals_total{reason=\"tls\"} 1"), "{text}");
}

#[test]
#[ignore = "needs promtool"]
fn needs_prometheus_promtool_finds_nothing_wrong_with_the_metrics() {
    let server = server(1, &Store::in_memory());
    let address = server.address();
    let fake = Fake::new(1, None);
    let generation = form(address, &[&fake]);
    fake.heartbeat(address, generation, 1);
    assert_eq!(ask(address, "GET /v1/status", "", "").status, 401);
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped());
    let mut checking = promtool
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = get(address, "/metrics").body;
    checking
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let checked = checking.wait_with_output().unwrap();
    let said = [checked.stdout, checked.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(checked.status.success() && said.is_empty(), "{said}");
}
