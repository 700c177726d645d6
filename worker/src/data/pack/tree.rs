//! A tree of folders, each named for its class, with `train`, `val` or `test` above or not.

use std::collections::{BTreeMap, BTreeSet};

use synfire_shared::dataset::{Class, LeftOut};
use synfire_shared::storage::{Entry, Store};

use super::error::PackError;
use super::set::{Item, Origin, Set, classes, imagenet_normalise};

const SPLIT_FOLDERS: [(&str, usize); 3] = [("train", 0), ("val", 1), ("test", 1)];

/// The set in the folder `source`; `listed` are its classes, or `None` for all that are found,
/// sorted.
///
/// # Errors
///
/// [`PackError::Classes`] when the folders are not as they must be, [`PackError::Empty`].
pub fn find(source: &str, name: &str, listed: Option<Vec<Class>>) -> Result<Set, PackError> {
    let store = Store::open(source)?;
    let place = store.url().to_owned();
    let entries = store.list("")?;
    let (places, left_out) = sort(&place, entries)?;
    let found: BTreeSet<&str> = places.iter().map(|p| p.class.as_str()).collect();
    let classes = match listed {
        Some(listed) => listed,
        None => classes(&found.iter().collect::<Vec<_>>()),
    };
    let labels: BTreeMap<&str, u32> = classes.iter().map(|c| c.key.as_str()).zip(0..).collect();
    if let Some(class) = found.iter().find(|class| !labels.contains_key(*class)) {
        return Err(PackError::Classes {
            place,
            reason: format!("the folder {class:?} is in no line of --classes: add it there"),
        });
    }
    let mut splits = [Vec::new(), Vec::new()];
    for place in &places {
        splits[place.split].push(Item {
            name: place.entry.key.clone(),
            label: labels[place.class.as_str()],
            bytes: place.entry.bytes,
            start: 0,
            archive: 0,
        });
    }
    if splits[0].is_empty() {
        let remedy = "give a folder with one folder of pictures for each class, or with train/ \
                      and val/ or test/ of such folders";
        return Err(PackError::Empty { place, remedy });
    }
    Ok(Set {
        name: name.into(),
        classes,
        splits,
        left_out,
        normalise: imagenet_normalise(),
        channels: 3,
        shape: None,
        origin: Origin::Objects(store),
    })
}

/// The classes in a file of lines `key` or `key name`, in the order of their labels.
///
/// # Errors
///
/// [`PackError::Classes`] when a key is there twice, or none.
pub fn read_classes(text: &str, place: &str) -> Result<Vec<Class>, PackError> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let class = |line: &str| {
        let (key, name) = line.split_once([' ', '\t', ',']).unwrap_or((line, line));
        Class {
            key: key.into(),
            name: name.trim().into(),
        }
    };
    let classes: Vec<Class> = lines.map(class).collect();
    let mut keys = BTreeSet::new();
    let twice = classes.iter().find(|class| !keys.insert(&class.key));
    let reason = match twice {
        Some(class) => format!("{:?} is there twice: keys must differ", class.key),
        None if classes.is_empty() => "no class: give a line for each, key and name".into(),
        None => return Ok(classes),
    };
    Err(PackError::Classes {
        place: place.into(),
        reason,
    })
}

/// A file, its split and its class.
struct Placed {
    entry: Entry,
    split: usize,
    class: String,
}

/// Every file into a split and a class, or among those left out; hidden ones are not samples.
fn sort(place: &str, entries: Vec<Entry>) -> Result<(Vec<Placed>, Vec<LeftOut>), PackError> {
    let tops: BTreeSet<&str> = entries
        .iter()
        .filter_map(|entry| Some(entry.key.split_once('/')?.0))
        .filter(|top| !top.starts_with('.'))
        .collect();
    let has = |name: &str| tops.contains(name);
    let has_splits = has("train");
    if has_splits && has("val") && has("test") {
        return Err(PackError::Classes {
            place: place.into(),
            reason: "it has val/ and test/, but a packed set has one part to be judged on: move \
                     one of them away"
                .into(),
        });
    }
    let mut placed = Vec::new();
    let mut left_out = Vec::new();
    for entry in entries {
        if entry.key.split('/').any(|part| part.starts_with('.')) {
            continue;
        }
        let (split, rest) = match split_of(&entry.key).filter(|_| has_splits) {
            Some((split, rest)) => (Some(split), rest),
            None if has_splits => (None, entry.key.as_str()),
            None => (Some(0), entry.key.as_str()),
        };
        match (split, rest.split_once('/')) {
            (Some(split), Some((class, _))) => placed.push(Placed {
                split,
                class: class.into(),
                entry,
            }),
            (split, _) => left_out.push(LeftOut {
                sample: entry.key,
                split: split
                    .map_or("none", |split| super::set::SPLITS[split])
                    .into(),
                reason: "in no folder of a class".into(),
            }),
        }
    }
    Ok((placed, left_out))
}

fn split_of(key: &str) -> Option<(usize, &str)> {
    let (top, rest) = key.split_once('/')?;
    let split = SPLIT_FOLDERS.iter().find(|(name, _)| *name == top)?.1;
    Some((split, rest))
}
