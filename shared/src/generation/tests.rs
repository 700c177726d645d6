use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::checkpoint::{ManifestName, manifest_name_of};
use crate::storage::Store;

fn generation(number: u64, nonce: u64, start: Option<u64>) -> Generation {
    let settings = BTreeMap::from([("run.seed".to_owned(), "1".to_owned())]);
    let identity = Identity {
        configuration: Digest::of_settings(&settings),
        settings,
        data: Digest::of(b"data"),
        plan: Digest::of(b"plan"),
        lanes: 4,
        batch: 8,
        folder: None,
    };
    let member = |rank: u32| Member {
        rank,
        process: format!("{rank:032x}"),
        host: "node".into(),
        pid: 7,
        collective: None,
        metrics: None,
    };
    let start = start.map(|batches_done| Start {
        manifest: manifest_name_of(batches_done, None),
        batches_done,
    });
    let name = GenerationName { number, nonce };
    Generation::new(name, vec![member(0), member(1)], identity, start)
}

fn manifest(batches_done: u64, generation: u64) -> ManifestName {
    ManifestName {
        batches_done,
        generation,
    }
}

#[test]
fn a_generation_reads_back_equal() {
    for start in [None, Some(60)] {
        let written = generation(3, 0xabc, start);
        assert_eq!(Generation::parse(&written.to_bytes()).unwrap(), written);
    }
}

#[test]
fn each_contradiction_is_refused_with_its_reason() {
    let refusal = |changed: fn(&mut Generation)| {
        let mut generation = generation(3, 1, Some(60));
        changed(&mut generation);
        let bytes = generation.sealed().to_bytes();
        Generation::parse(&bytes).unwrap_err().to_string()
    };
    for (reason, changed) in [
        (
            "form 2, this version reads 1",
            (|g| g.version = 2) as fn(&mut Generation),
        ),
        ("its format", |g| g.format = "x".into()),
        ("count from 1", |g| g.generation = 0),
        ("members are none", |g| g.members.clear()),
        ("batch is 0", |g| g.identity.batch = 0),
        ("is of another number", |g| {
            g.start.as_mut().unwrap().batches_done = 1;
        }),
        ("no name of a manifest", |g| {
            g.start.as_mut().unwrap().manifest = "../../x".into();
        }),
    ] {
        let refused = refusal(changed);
        assert!(refused.contains(reason), "{reason}: {refused}");
    }
    let mut unsealed = generation(3, 1, None);
    unsealed.nonce = 2;
    let refused = Generation::parse(&unsealed.to_bytes()).unwrap_err();
    assert!(refused.to_string().contains("the digest that it names"));
}

#[test]
fn names_sort_by_number_and_read_back() {
    let name = |number, nonce| GenerationName { number, nonce };
    assert_eq!(name(3, 0xabc).to_string(), "000003-0000000000000abc.json");
    assert_eq!(name(3, 1).key(), "generations/000003-0000000000000001.json");
    assert!(name(9, 7).to_string() < name(10, 1).to_string());
    for name in [name(1, 0), name(u64::MAX, u64::MAX)] {
        assert_eq!(GenerationName::parse(&name.to_string()), Some(name));
    }
    for other in [
        "3-0000000000000abc.json",
        "000003-abc.json",
        "000003-0000000000000ABC.json",
        "000000-0000000000000abc.json",
        "+00003-0000000000000abc.json",
        "000003-0000000000000abc.jso",
        ".json",
    ] {
        assert_eq!(GenerationName::parse(other), None, "{other}");
    }
}

#[test]
fn a_checkpoint_counts_if_every_later_generation_started_from_it_or_behind_it() {
    let link = |number, nonce, start| Link {
        name: GenerationName { number, nonce },
        start,
    };
    let none = Lineage::of([]);
    assert!(none.counts(manifest(60, 0)) && none.counts(manifest(60, 7)));

    // 1 trained to 50; 2 went on from there; 3 found 50 damaged and went on from 30.
    let line = Lineage::of([link(1, 0, None), link(2, 0, Some(50)), link(3, 0, Some(30))]);
    assert!(!line.counts(manifest(10, 0)), "1 started from nothing");
    assert!(line.counts(manifest(30, 1)) && !line.counts(manifest(40, 1)));
    assert!(!line.counts(manifest(60, 2)), "2 woke up too late");
    assert!(line.counts(manifest(1000, 3)) && line.counts(manifest(1, 4)));
    let all = [(30, 1), (40, 1), (60, 2), (35, 3)].map(|(b, g)| manifest(b, g));
    assert_eq!(line.newest(all), Some(manifest(35, 3)));
    assert_eq!(line.newest(all.into_iter().take(3)), Some(manifest(30, 1)));
    assert_eq!(line.newest([]), None);

    // Of rivals the earlier start counts, in whichever order they are seen.
    for starts in [[Some(50), Some(40)], [Some(40), Some(50)]] {
        let line = Lineage::of([link(2, 0, starts[0]), link(2, 1, starts[1])]);
        assert!(line.counts(manifest(40, 1)) && !line.counts(manifest(50, 1)));
    }
    // What an alone process wrote counts as that of a generation 0.
    let line = Lineage::of([link(1, 0, Some(20))]);
    assert!(line.counts(manifest(20, 0)) && !line.counts(manifest(21, 0)));
}

#[test]
fn a_run_folder_is_surveyed() {
    let store = Store::in_memory();
    let mut generations = Generations::new(store.clone(), "checkpoints");
    assert_eq!(generations.survey().unwrap(), Survey::default());
    assert_eq!(newest_number(&store).unwrap(), 0);
    let (first, second, rival) = (
        generation(1, 5, None),
        generation(2, 6, Some(60)),
        generation(2, 7, Some(60)),
    );
    for generation in [&first, &second] {
        generations.put(generation).unwrap();
    }
    store
        .put("checkpoints/000000000060-g000001.json", "x")
        .unwrap();
    store
        .put("checkpoints/000000000090-g000001.json", "x")
        .unwrap();
    store
        .put("checkpoints/000000000060-0123456789abcdef.state", "x")
        .unwrap();
    store.put("generations/readme.txt", "x").unwrap();
    let survey = generations.survey().unwrap();
    assert_eq!(survey.links, [first.link(), second.link()]);
    assert_eq!(survey.newest, std::slice::from_ref(&second));
    assert_eq!(survey.manifests, [manifest(60, 1), manifest(90, 1)]);
    assert_eq!((survey.number(), newest_number(&store).unwrap()), (2, 2));
    assert!(!survey.has_rival(second.name()) && survey.has_rival(first.name()));
    let newest = |but, damaged| survey.newest_counting(but, &|m| Some(m.batches_done) == damaged);
    assert_eq!(newest(None, None), Some(manifest(60, 1)));
    assert_eq!(newest(Some(second.name()), None), Some(manifest(90, 1)));
    assert_eq!(newest(None, Some(60)), None);

    // A rival that appears is seen, also by who has read the others; and that it is gone.
    generations.put(&rival).unwrap();
    let survey = generations.survey().unwrap();
    assert_eq!(survey.newest, [second.clone(), rival.clone()]);
    assert!(survey.has_rival(second.name()) && survey.has_rival(rival.name()));
    generations.withdraw(rival.name()).unwrap();
    assert_eq!(
        generations.survey().unwrap().newest,
        std::slice::from_ref(&second)
    );
    // The newest may become an older one, and the other way round.
    let third = generation(3, 8, Some(60));
    generations.put(&third).unwrap();
    assert_eq!(
        generations.survey().unwrap().newest,
        std::slice::from_ref(&third)
    );
    generations.withdraw(third.name()).unwrap();
    assert_eq!(generations.survey().unwrap().newest, [second]);
}

#[test]
fn a_damaged_object_is_named_with_what_to_do() {
    let store = Store::in_memory();
    let name = GenerationName {
        number: 4,
        nonce: 1,
    };
    let copied = generation(3, 1, None).to_bytes();
    for bytes in [b"{}".to_vec(), copied] {
        store.put(&name.key(), bytes).unwrap();
        let survey = Generations::new(store.clone(), "checkpoints").survey();
        let error = survey.unwrap_err().to_string();
        assert!(error.contains(&name.to_string()), "{error}");
        assert!(error.contains("restore it from a copy"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_no_generation(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Generation::parse(&bytes).is_err());
    }

    #[test]
    fn changed_or_cut_generations_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        end in any::<prop::sample::Index>(),
    ) {
        let written = generation(3, 1, Some(60));
        let mut bytes = written.to_bytes();
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if let Ok(read) = Generation::parse(&bytes) {
            prop_assert_eq!(read, written);
        }
        prop_assert!(Generation::parse(&bytes[..end.index(bytes.len() - 1)]).is_err());
    }

    #[test]
    fn what_counts_never_grows_by_a_later_generation(
        starts in proptest::collection::vec(proptest::option::of(0_u64..9), 0..6),
        later in proptest::option::of(0_u64..9),
        generation in 0_u64..6,
        batches_done in 0_u64..9,
    ) {
        let link = |(at, start)| Link {
            name: GenerationName { number: at as u64 + 1, nonce: 0 },
            start,
        };
        let manifest = manifest(batches_done, generation.min(starts.len() as u64));
        let mut links: Vec<Link> = starts.iter().copied().enumerate().map(link).collect();
        let before = Lineage::of(links.iter().copied()).counts(manifest);
        // By the words of the rule, one by one.
        let by_words = links[usize::try_from(manifest.generation).unwrap()..]
            .iter()
            .all(|l| l.start.is_some_and(|start| batches_done <= start));
        prop_assert_eq!(before, by_words);
        links.push(link((starts.len(), later)));
        let after = Lineage::of(links).counts(manifest);
        prop_assert!(before || !after);
    }
}
