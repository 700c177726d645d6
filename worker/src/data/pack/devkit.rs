//! ImageNet's devkit: which class each validation picture has, and what the classes are called.

use std::collections::{BTreeMap, BTreeSet};

use super::error::PackError;
use super::files::Files;
use super::matlab;

/// The official archive.
pub(super) const ARCHIVE: &str = "ILSVRC2012_devkit_t12.tar.gz";
/// The same unpacked.
pub(super) const FOLDER: &str = "ILSVRC2012_devkit_t12";
const TRUTH: &str = "ILSVRC2012_validation_ground_truth.txt";
const META: &str = "meta.mat";

/// What the devkit says.
#[derive(Debug)]
pub(super) struct Devkit {
    /// The wnid of each validation picture, in the order of their numbers from 1.
    pub(super) wnids: Vec<String>,
    /// What each wnid is called.
    pub(super) words: BTreeMap<String, String>,
}

/// Reads the devkit in `source`, its archive or a folder.
///
/// Line i of the ground truth is the ID of picture i; the leaves among the synsets have the IDs from
/// 1 on. An ID is no label: labels go by the sorted wnids.
///
/// # Errors
///
/// A [`PackError`] that names the file; [`PackError::Digest`] for an archive that is not the
/// official one, unless any is taken.
pub(super) fn read(source: &str, takes_any: bool) -> Result<Devkit, PackError> {
    let mut files = Files::read_any(source, &[TRUTH, META], takes_any)?;
    let remedy = "give the whole devkit of task 1 and 2, as an archive or unpacked";
    let meta = files.take(META, remedy)?;
    let truth = files.take(TRUTH, remedy)?;
    let damaged = |file: &str, reason: String| PackError::damaged(files.name(file), reason);
    let mut synsets = matlab::synsets(&meta).map_err(|reason| damaged(META, reason))?;
    synsets.retain(|synset| synset.num_children == 0);
    synsets.sort_by_key(|synset| synset.id);
    let wnids: BTreeSet<&str> = synsets.iter().map(|synset| synset.wnid.as_str()).collect();
    let are_in_turn = synsets.iter().zip(1..).all(|(synset, id)| synset.id == id);
    if !are_in_turn || wnids.len() != synsets.len() {
        let reason = "the synsets without children do not have the IDs from 1 on, each once";
        return Err(damaged(META, reason.into()));
    }
    let truth = String::from_utf8_lossy(&truth);
    let mut pictures = Vec::new();
    for (line, text) in truth.lines().enumerate() {
        let id = text.trim().parse::<usize>().ok();
        let synset = id.and_then(|id| synsets.get(id.checked_sub(1)?));
        let synset = synset.ok_or_else(|| {
            let (line, classes) = (line + 1, synsets.len());
            let shown: String = text.chars().take(20).collect();
            damaged(
                TRUTH,
                format!("line {line} is {shown:?}, no ID from 1 to {classes}"),
            )
        })?;
        pictures.push(synset.wnid.clone());
    }
    Ok(Devkit {
        wnids: pictures,
        words: synsets
            .into_iter()
            .map(|synset| (synset.wnid, synset.words))
            .collect(),
    })
}
