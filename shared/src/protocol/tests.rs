use super::*;

fn identity() -> Identity {
    let settings = BTreeMap::from([("run.seed".to_owned(), "1".to_owned())]);
    Identity {
        configuration: Digest::of_settings(&settings),
        settings,
        data: Digest::of(b"data"),
        plan: Digest::of(b"plan"),
        lanes: 4,
        batch: 8,
        folder: Some("s3://bucket/run".into()),
    }
}

fn request() -> JoinRequest {
    JoinRequest {
        protocol: PROTOCOL,
        version: "0.1.0".into(),
        process: "0123456789abcdef0123456789abcdef".into(),
        host: "node-1".into(),
        pid: 77,
        rank: Some(1),
        world: Some(2),
        identity: identity(),
        collective: Some("127.0.0.1:4000".parse().unwrap()),
        metrics: None,
        left: 0,
    }
}

fn assignment() -> Assignment {
    let member = |rank: u32| Member {
        rank,
        process: format!("{rank:032x}"),
        host: "node-1".into(),
        pid: 77 + rank,
        collective: None,
        metrics: None,
    };
    Assignment {
        generation: 3,
        rank: 1,
        world: 2,
        members: vec![member(0), member(1)],
        start: Some(Start {
            manifest: "000000000060-g000002.json".into(),
            batches_done: 60,
        }),
        secret: "hidden".into(),
    }
}

#[test]
fn messages_look_like_this_and_read_back() {
    let pairs = [
        (
            serde_json::to_string(&Directive::Stop { signal: 15 }).unwrap(),
            r#"{"directive":"stop","signal":15}"#,
        ),
        (
            serde_json::to_string(&Order::Save).unwrap(),
            r#"{"order":"save"}"#,
        ),
        (
            serde_json::to_string(&Reason::Failed {
                message: "x".into(),
                lost: Some(2),
            })
            .unwrap(),
            r#"{"kind":"failed","message":"x","lost":2}"#,
        ),
        (
            serde_json::to_string(&JoinResponse::Over {
                reason: "x".into(),
                status: 0,
            })
            .unwrap(),
            r#"{"answer":"over","reason":"x","status":0}"#,
        ),
        (serde_json::to_string(&Done {}).unwrap(), "{}"),
    ];
    for (written, wanted) in pairs {
        assert_eq!(written, wanted);
    }
    let start = JoinResponse::Start(assignment());
    let text = serde_json::to_string(&start).unwrap();
    assert!(
        text.starts_with(r#"{"answer":"start","generation":3,"#),
        "{text}"
    );
    assert_eq!(serde_json::from_str::<JoinResponse>(&text).unwrap(), start);
    let text = serde_json::to_string(&request()).unwrap();
    assert_eq!(
        serde_json::from_str::<JoinRequest>(&text).unwrap(),
        request()
    );
    for code in Refusal::ALL {
        let text = serde_json::to_string(&code).unwrap();
        assert_eq!(text, format!("{:?}", code.name()));
    }
}

#[test]
fn what_a_later_version_adds_is_ignored() {
    let more = r#"{"code":"too_early","reason":"x","retry":3}"#;
    let refused: Refused = serde_json::from_str(more).unwrap();
    assert_eq!(refused.code, Refusal::Other);
    let mut text = serde_json::to_value(request()).unwrap();
    text["gpus"] = 8.into();
    text.as_object_mut().unwrap().remove("left");
    assert_eq!(
        serde_json::from_value::<JoinRequest>(text).unwrap(),
        request()
    );
}

#[test]
fn a_loss_that_diverged_travels() {
    let status = Status {
        loss: f64::NAN,
        images_per_second: f64::INFINITY,
        ..Status::default()
    };
    let text = serde_json::to_string(&status).unwrap();
    let read: Status = serde_json::from_str(&text).unwrap();
    assert!(
        read.loss.is_nan() && read.images_per_second.is_nan(),
        "{text}"
    );
}

#[test]
fn the_secret_is_not_shown() {
    let shown = format!("{:?}", JoinResponse::Start(assignment()));
    assert!(
        shown.contains("node-1") && !shown.contains("hidden"),
        "{shown}"
    );
}

#[test]
fn what_is_too_long_or_contradicts_itself_is_refused() {
    request().check().unwrap();
    let refusal = |changed: fn(&mut JoinRequest)| {
        let mut request = request();
        changed(&mut request);
        request.check().unwrap_err().to_string()
    };
    for (reason, changed) in [
        (
            "version has 256",
            (|r| r.version = "x".repeat(256)) as fn(&mut JoinRequest),
        ),
        ("host is empty", |r| r.host.clear()),
        ("host is empty or has control", |r| r.host = "a\nb".into()),
        ("process is not 32", |r| r.process = "x".repeat(32)),
        ("process is not 32", |r| r.process.push('0')),
        ("world is 0", |r| (r.rank, r.world) = (None, Some(0))),
        ("rank is not below", |r| r.rank = Some(2)),
        ("lanes", |r| r.identity.lanes = 65),
        ("lanes", |r| r.identity.lanes = 0),
        ("batch is 0", |r| r.identity.batch = 0),
        ("folder has 5000", |r| {
            r.identity.folder = Some("x".repeat(5000));
        }),
        ("configuration", |r| r.identity.settings.clear()),
        ("settings are 1025", |r| {
            let keys = (0..1025).map(|key| (key.to_string(), String::new()));
            r.identity.settings = keys.collect();
        }),
        ("value has 4097", |r| {
            let value = "x".repeat(4097);
            r.identity.settings.insert("run.seed".into(), value);
        }),
    ] {
        let refused = refusal(changed);
        assert!(refused.contains(reason), "{reason}: {refused}");
    }
}

#[test]
fn an_assignment_is_whole() {
    assignment().check().unwrap();
    let refusal = |changed: fn(&mut Assignment)| {
        let mut assignment = assignment();
        changed(&mut assignment);
        JoinResponse::Start(assignment)
            .check()
            .unwrap_err()
            .to_string()
    };
    for (reason, changed) in [
        ("rank is not below", (|a| a.rank = 2) as fn(&mut Assignment)),
        ("world is not", |a| a.world = 3),
        ("members are none", |a| a.members.clear()),
        ("members are not in the order", |a| a.members.reverse()),
        ("members have a process twice", |a| {
            a.members[1].process = a.members[0].process.clone();
        }),
        ("generation is 0", |a| a.generation = 0),
        ("manifest is no name", |a| {
            a.start.as_mut().unwrap().manifest = "../x.json".into();
        }),
        ("manifest is of another", |a| {
            a.start.as_mut().unwrap().batches_done = 61;
        }),
        ("secret has", |a| a.secret = "x".repeat(4097)),
    ] {
        let refused = refusal(changed);
        assert!(refused.contains(reason), "{reason}: {refused}");
    }
}

#[test]
fn the_other_messages_are_checked_too() {
    let process = request().process;
    let mut checkpoint = Checkpoint {
        process: process.clone(),
        generation: 1,
        manifest: "000000000060-g000001.json".into(),
        batches_done: 60,
        epoch: 1,
    };
    checkpoint.check().unwrap();
    checkpoint.batches_done = 61;
    assert!(checkpoint.check().is_err());
    let leave = |reason| Leave {
        process: process.clone(),
        generation: 1,
        reason,
    };
    let failed = |message: String| Reason::Failed {
        message,
        lost: None,
    };
    leave(failed(shortened(&"ä".repeat(5000)))).check().unwrap();
    for reason in [
        failed("x".repeat(5000)),
        Reason::Stopped { signal: 0 },
        Reason::DamagedStart {
            manifest: "x".into(),
            message: String::new(),
        },
    ] {
        assert!(leave(reason).check().is_err());
    }
    assert!(Order::Stop { signal: 9 }.check().is_err());
    assert!(Directive::Stop { signal: 99 }.check().is_err());
    let lines = vec![String::new(); 257];
    let wait = JoinResponse::Wait {
        missing: lines,
        seconds_left: None,
        trains: false,
    };
    assert!(wait.check().is_err());
    // An older coordinator does not tell whether a generation trains.
    let wait = r#"{"answer": "wait", "missing": [], "seconds_left": null}"#;
    let wait: JoinResponse = serde_json::from_str(wait).unwrap();
    assert!(matches!(wait, JoinResponse::Wait { trains: false, .. }));
}
