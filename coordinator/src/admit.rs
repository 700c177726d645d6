//! Who may join.

use synfire_shared::checkpoint::Digest;
use synfire_shared::ids::World;
use synfire_shared::protocol::{Identity, JoinRequest, PROTOCOL, Refusal, Refused};
use synfire_shared::shard_plan::batches_that_fit;

use crate::policy::Policy;

/// As many settings that differ are named.
const NAMED: usize = 3;

/// What speaks against this process; `run` is what the others train.
pub(crate) fn refusal(
    policy: &Policy,
    run: Option<&Identity>,
    request: &JoinRequest,
) -> Option<Refused> {
    let refused = |code, reason| Some(Refused { code, reason });
    if request.protocol != PROTOCOL {
        let reason = format!(
            "the worker speaks version {} of the protocol, the coordinator {PROTOCOL}: use the same \
             version of synfire for both",
            request.protocol
        );
        return refused(Refusal::Protocol, reason);
    }
    if let Err(malformed) = request.check() {
        return refused(Refusal::Malformed, malformed.to_string());
    }
    if request.version != policy.version {
        let reason = format!(
            "the worker is version {}, the coordinator {}: use the same for both",
            request.version, policy.version
        );
        return refused(Refusal::Version, reason);
    }
    if let Some(reason) = other_folder(policy, &request.identity) {
        return refused(Refusal::Folder, reason);
    }
    if let Some(reason) = too_large(policy.ranks, &request.identity) {
        return refused(Refusal::WorldTooLarge, reason);
    }
    if let Some(reason) = other_world(policy.ranks, request) {
        return refused(Refusal::World, reason);
    }
    run.and_then(|run| other_run(run, &request.identity))
}

fn other_folder(policy: &Policy, identity: &Identity) -> Option<String> {
    let wanted = policy.folder.as_deref()?;
    let has = identity.folder.as_deref();
    let plain = |folder: &str| folder.trim_end_matches('/').to_owned();
    (has.map(plain) != Some(plain(wanted))).then(|| {
        let has = has.map_or("none".into(), |has| format!("{has:?}"));
        format!("the worker's run.folder is {has}, the coordinator's {wanted:?}")
    })
}

fn other_world(ranks: u32, request: &JoinRequest) -> Option<String> {
    match (request.world, request.rank) {
        (Some(world), _) if world != ranks => Some(format!(
            "the worker was started as one of {world} ranks, the coordinator waits for {ranks}: \
             give both the same number"
        )),
        (_, Some(rank)) if rank >= ranks => Some(format!(
            "the worker was started as rank {rank}, the coordinator waits for {ranks} ranks, \
             counted from 0"
        )),
        _ => None,
    }
}

/// More ranks than lanes, with batches that fit.
fn too_large(ranks: u32, identity: &Identity) -> Option<String> {
    let (lanes, batch) = (identity.lanes, identity.batch);
    (ranks > lanes).then(|| {
        let batches: Vec<String> = batches_that_fit(World(ranks), batch)
            .into_iter()
            .map(|batch| batch.to_string())
            .collect();
        format!(
            "{ranks} ranks cannot share {lanes} lanes of a global batch of {batch}: use at most \
             {lanes} ranks, or a data.batch of {}",
            batches.join(" or ")
        )
    })
}

fn other_run(run: &Identity, other: &Identity) -> Option<Refused> {
    let short = |digest: Digest| digest.to_string()[..16].to_owned();
    let differ = |what: &str, here, there| {
        let (here, there) = (short(here), short(there));
        format!("the worker's {what} has the digest {there}, that of the other ranks {here}")
    };
    let (code, reason) = if run.configuration != other.configuration {
        (Refusal::Configuration, other_settings(run, other))
    } else if run.data != other.data {
        let reason = differ("training set", run.data, other.data);
        (Refusal::Data, reason + ": give all ranks the same data")
    } else if (run.plan, run.lanes, run.batch) != (other.plan, other.lanes, other.batch) {
        (
            Refusal::Plan,
            differ("order of samples", run.plan, other.plan),
        )
    } else if run.folder != other.folder {
        let shown = |folder: &Option<String>| format!("{:?}", folder.as_deref().unwrap_or("none"));
        let (here, there) = (shown(&run.folder), shown(&other.folder));
        let reason = format!("the worker's run.folder is {there}, that of the other ranks {here}");
        (Refusal::Folder, reason)
    } else {
        return None;
    };
    Some(Refused { code, reason })
}

fn other_settings(run: &Identity, other: &Identity) -> String {
    let (here, there) = (&run.settings, &other.settings);
    let shown = |value: Option<&String>| {
        let value = value.map_or("not set", |value| value.as_str());
        value.chars().take(80).collect::<String>()
    };
    let new = there.keys().filter(|key| !here.contains_key(*key));
    let mut differences: Vec<String> = here
        .keys()
        .chain(new)
        .filter(|key| here.get(*key) != there.get(*key))
        .map(|key| {
            let (here, there) = (shown(here.get(key)), shown(there.get(key)));
            format!("{key} is {there} here, {here} on the other ranks")
        })
        .collect();
    if differences.len() > NAMED {
        let more = differences.len() - NAMED;
        differences.truncate(NAMED);
        differences.push(format!("{more} more"));
    }
    format!(
        "the worker has another configuration: {}",
        differences.join("; ")
    )
}
