//! What was written against the table of keys: kinds, ranges, conditions, values against values.

use std::ops::{Bound, RangeBounds};

use toml::de::{DeInteger, DeValue};

use crate::device::Device;
use crate::faults::{RunErrors, listed, nearest, shortened};
use crate::keys::{Fallback, KEYS, Key, Kind, Only};
use crate::run_file::{RunFile, described};
use crate::storage;
use crate::values::{Scalar, Values};

/// The values of a configuration, or all its faults.
pub(crate) fn check(mut file: RunFile<'_>) -> Result<Values, RunErrors> {
    let mut values = Values::default();
    let mut faults = Vec::new();
    for key in KEYS {
        let Some(written) = file.written.get(key.name) else {
            continue;
        };
        match scalar(key, &written.value) {
            Ok(value) => values.insert(key.name, value),
            Err(message) => faults.push((written.place.clone(), key.name, message)),
        }
    }
    for (place, key, message) in faults {
        file.fault(place, key, message);
    }
    if file.is_whole {
        let checker = Checker {
            values: &values,
            file: &file,
        };
        let mut more = checker.conditions();
        more.extend(checker.values_against_values());
        for (key, message) in more {
            let place = match file.written.get(key.name) {
                Some(written) => written.place.clone(),
                None => file
                    .table_places
                    .get(key.table())
                    .unwrap_or(&file.file_place)
                    .clone(),
            };
            file.fault(place, key.name, message);
        }
    }
    if file.faults.is_empty() {
        Ok(values)
    } else {
        Err(RunErrors::new(file.faults))
    }
}

/// The value as its key's kind, or what is wrong with it.
fn scalar(key: &Key, value: &DeValue<'_>) -> Result<Scalar, String> {
    match (key.kind, value) {
        (Kind::Bool, DeValue::Boolean(value)) => Ok(Scalar::Bool(*value)),
        (Kind::Integer(low, high), DeValue::Integer(number)) => {
            let number = u64::from_str_radix(number.as_str(), number.radix()).ok();
            let inside = number.filter(|number| (low..=high).contains(number));
            inside.map(Scalar::Integer).ok_or_else(|| wrong(key, value))
        }
        (Kind::Real(..), DeValue::Float(number)) => real(key, number.as_str().parse().ok(), value),
        (Kind::Real(..), DeValue::Integer(number)) => real(key, whole(number), value),
        (Kind::Text, DeValue::String(text)) if !text.is_empty() => {
            Ok(Scalar::Text(text.to_string()))
        }
        (Kind::Device, DeValue::String(text)) => Device::parse(text)
            .map(|device| Scalar::Text(device.to_string()))
            .ok_or_else(|| wrong(key, value)),
        (
            Kind::Choice {
                names,
                later,
                older,
            },
            DeValue::String(text),
        ) => {
            let today = older.iter().find(|(old, _)| old == text);
            let name = today.map_or(text.as_ref(), |(_, name)| name);
            choice(key, name, names, later).map(|name| Scalar::Text(name.to_owned()))
        }
        _ => Err(wrong(key, value)),
    }
}

fn choice<'a>(
    key: &Key,
    text: &'a str,
    names: &[&'static str],
    later: &[&'static str],
) -> Result<&'a str, String> {
    if names.contains(&text) {
        return Ok(text);
    }
    let (name, all) = (key.name, listed(names));
    if later.contains(&text) {
        return Err(format!(
            "{name:?} is {text:?}, not built yet in this version: use {all}"
        ));
    }
    let text_shown = shortened(text);
    Err(match nearest(text, names.iter().copied()) {
        Some(meant) => {
            format!("{name:?} is {text_shown:?}: did you mean {meant:?}? It must be {all}")
        }
        None => format!("{name:?} must be {all}, but is {text_shown:?}"),
    })
}

fn whole(number: &DeInteger<'_>) -> Option<f64> {
    if number.radix() == 10 {
        return number.as_str().parse().ok();
    }
    u64::from_str_radix(number.as_str(), number.radix())
        .ok()
        .map(|number| number as f64)
}

/// The number if it lies between the key's bounds, also once it is rounded to f32: the engine
/// computes there, where a threshold of 1e-60 is 0 and a dropout of 0.999999999 is 1.
fn real(key: &Key, number: Option<f64>, value: &DeValue<'_>) -> Result<Scalar, String> {
    let Kind::Real(low, high) = key.kind else {
        unreachable!("{} is no real", key.name)
    };
    let range: (Bound<f64>, Bound<f64>) = (low, high);
    let number = number.filter(|number| number.is_finite() && range.contains(number));
    let number = number.ok_or_else(|| wrong(key, value))?;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the rounding is what is checked"
    )]
    let rounded = f64::from(number as f32);
    if !range.contains(&rounded) {
        return Err(format!("{}, which is {rounded} in f32", wrong(key, value)));
    }
    // Adding 0 makes 0 of -0, whose sign nobody meant.
    Ok(Scalar::Real(number + 0.0))
}

fn wrong(key: &Key, value: &DeValue<'_>) -> String {
    format!(
        "{:?} must be {}, but is {}",
        key.name,
        key.kind,
        described(value)
    )
}

struct Checker<'a> {
    values: &'a Values,
    file: &'a RunFile<'a>,
}

/// Whether a key means anything beside the other values.
enum Meaning {
    Some,
    /// The condition that fails, and what its key holds.
    None(Only, String),
    /// That hangs on a value that is itself at fault.
    Unknown,
}

impl Checker<'_> {
    /// Keys that are set though they mean nothing, and keys that are required and not set.
    fn conditions(&self) -> Vec<(&'static Key, String)> {
        let mut faults = Vec::new();
        for key in KEYS {
            let is_set = self.file.written.contains_key(key.name);
            let is_meant = self.file.meant.contains(key.name);
            match self.meaning(key) {
                Meaning::Some => {
                    if matches!(key.fallback, Fallback::Required) && !is_set && !is_meant {
                        faults.push((key, missing(key)));
                    }
                }
                Meaning::None(only, control) => {
                    if is_set {
                        faults.push((key, out_of_place(key, only, &control)));
                    }
                }
                Meaning::Unknown => {}
            }
        }
        faults
    }

    /// Values that exclude each other.
    fn values_against_values(&self) -> Vec<(&'static Key, String)> {
        let mut faults = Vec::new();
        for key in KEYS {
            let (limit_key, holds): (_, fn(u64, u64) -> bool) = match key.name {
                "algorithm.window" => ("algorithm.time_steps", |window, limit| window <= limit),
                "schedule.warmup_epochs" => ("run.epochs", |warmup, limit| warmup < limit),
                _ => continue,
            };
            if !self.values.is_written(key.name) || !matches!(self.meaning(key), Meaning::Some) {
                continue;
            }
            let pair = (self.known(key.name), self.known(limit_key));
            if let (Some(Scalar::Integer(value)), Some(Scalar::Integer(limit))) = pair
                && !holds(value, limit)
            {
                let name = key.name;
                let relation = if holds(limit, limit) {
                    "at most"
                } else {
                    "less than"
                };
                let message =
                    format!("{name:?} is {value}, but must be {relation} {limit_key:?}, {limit}");
                faults.push((key, message));
            }
        }
        faults.extend(self.readout_without_weights());
        faults.extend(self.roundings());
        faults.extend(self.locations());
        faults
    }

    /// Places that are none, or that carry credentials: what is checked is printed and kept, also
    /// where a run never opens it.
    fn locations(&self) -> Vec<(&'static Key, String)> {
        let is_packed = self.known("data.source") == Some(Scalar::Text("packed".into()));
        let mut faults = Vec::new();
        for key in KEYS {
            let is_location = match key.name {
                "run.folder" | "init.from" => true,
                "data.path" => is_packed,
                _ => false,
            };
            if let Some(Scalar::Text(text)) = self.known(key.name).filter(|_| is_location)
                && let Err(error) = storage::folder_of(&text)
            {
                faults.push((key, format!("{:?} is {error}", key.name)));
            }
        }
        faults
    }

    /// Ways to round and to compute that what computes does not know.
    fn roundings(&self) -> Vec<(&'static Key, String)> {
        let text = |name: &str| match self.known(name) {
            Some(Scalar::Text(text)) => Some(text),
            Some(Scalar::Bool(_) | Scalar::Integer(_) | Scalar::Real(_)) | None => None,
        };
        let is_cpu = text("run.device").is_some_and(|device| device == "cpu");
        let is_burn = text("run.engine").is_some_and(|engine| engine == "burn");
        let why = match (is_cpu, is_burn) {
            (true, _) => "goes with a GPU alone: set \"run.device\" to \"cuda\", or",
            (false, true) => "does not go with \"run.engine\" \"burn\": use \"fast\", or",
            (false, false) => return Vec::new(),
        };
        let is_bf16 = text("run.precision").is_some_and(|precision| precision == "bf16");
        let is_tf32 = self.known("run.tf32") == Some(Scalar::Bool(true));
        let is_graph = text("run.convolutions").is_some_and(|calls| calls == "graph");
        let all = [
            ("run.precision", is_bf16, "\"bf16\"", "\"f32\""),
            ("run.tf32", is_tf32, "true", "false"),
            ("run.convolutions", is_graph, "\"graph\"", "\"legacy\""),
        ];
        let faulty = all.into_iter().filter(|(_, is_set, ..)| *is_set);
        faulty
            .filter_map(|(name, _, value, plain)| {
                let key = KEYS.iter().find(|key| key.name == name)?;
                let message = format!("{name:?} is {value}, which {why} leave it {plain}");
                Some((key, message))
            })
            .collect()
    }

    /// `init.skip_readout` where there is nothing to skip it in.
    fn readout_without_weights(&self) -> Option<(&'static Key, String)> {
        let key = KEYS.iter().find(|key| key.name == "init.skip_readout")?;
        let skips = matches!(self.known(key.name), Some(Scalar::Bool(true)));
        let is_drawn = !self.file.written.contains_key("init.from");
        let is_meant = self.file.meant.contains("init.from");
        let message =
            "\"init.skip_readout\" has no meaning without \"init.from\": all weights are drawn";
        (skips && is_drawn && !is_meant).then(|| (key, message.to_owned()))
    }

    fn meaning(&self, key: &Key) -> Meaning {
        let Some(only) = key.only else {
            return Meaning::Some;
        };
        match self.known(only.key) {
            Some(Scalar::Text(control)) if only.values.contains(&control.as_str()) => Meaning::Some,
            Some(Scalar::Text(control)) => Meaning::None(only, control),
            Some(Scalar::Bool(_) | Scalar::Integer(_) | Scalar::Real(_)) | None => Meaning::Unknown,
        }
    }

    /// The value or default of a key, unless it is at fault or perhaps meant by an unknown key.
    fn known(&self, name: &str) -> Option<Scalar> {
        let is_faulty = self.file.written.contains_key(name) && !self.values.is_written(name);
        if is_faulty || (self.file.meant.contains(name) && !self.values.is_written(name)) {
            return None;
        }
        self.values.get(name)
    }
}

fn out_of_place(key: &Key, only: Only, control: &str) -> String {
    format!(
        "{:?} has no meaning where {:?} is {control:?}: it goes with {}",
        key.name,
        only.key,
        listed(only.values)
    )
}

fn missing(key: &Key) -> String {
    match key.only {
        Some(only) => format!(
            "{:?} is missing: where {:?} is {}, it must be {}",
            key.name,
            only.key,
            listed(only.values),
            key.kind
        ),
        None => format!("{:?} is missing: it must be {}", key.name, key.kind),
    }
}

#[cfg(test)]
mod tests {
    use crate::Run;
    use crate::keys::KEYS;

    /// A valid run, to be made invalid one line at a time.
    const VALID: &str = "\
[data]
source = \"fashion-mnist-subset\"
batch = 64
[model]
name = \"small\"
[algorithm]
name = \"stol\"
time_steps = 4
[optimiser]
lr = 0.02
";

    /// Overrides on the valid run, and the fault of the last one.
    #[rustfmt::skip]
    const FAULTS: &[(&[&str], &str)] = &[
        (&["run.seed=-1"],
            "\"run.seed\" must be a whole number from 0 to 18446744073709551615, but is -1"),
        (&["run.seed=18446744073709551616"],
            "\"run.seed\" must be a whole number from 0 to 18446744073709551615, but is \
             18446744073709551616"),
        (&["run.epochs=0"],
            "\"run.epochs\" must be a whole number from 1 to 1000000, but is 0"),
        (&["run.epochs=1000001"],
            "\"run.epochs\" must be a whole number from 1 to 1000000, but is 1000001"),
        (&["run.epochs=6.0"],
            "\"run.epochs\" must be a whole number from 1 to 1000000, but is 6.0"),
        (&["run.max_batches=0"],
            "\"run.max_batches\" must be a whole number from 1 to 18446744073709551615, but is 0"),
        (&["run.threads=1025"],
            "\"run.threads\" must be a whole number from 0 to 1024, but is 1025"),
        (&["run.engine=cuda"],
            "\"run.engine\" must be \"fast\" or \"burn\", but is \"cuda\""),
        (&["run.engine=3"],
            "\"run.engine\" must be \"fast\" or \"burn\", but is \"3\""),
        (&["run.device=gpu"],
            "\"run.device\" must be \"cpu\", \"cuda\" or \"cuda:N\", but is the text \"gpu\""),
        (&["run.device=cuda:1024"],
            "\"run.device\" must be \"cpu\", \"cuda\" or \"cuda:N\", but is the text \"cuda:1024\""),
        (&["run.device=0"],
            "\"run.device\" must be \"cpu\", \"cuda\" or \"cuda:N\", but is the text \"0\""),
        (&["run.precision=f16"],
            "\"run.precision\" is \"f16\": did you mean \"bf16\"? It must be \"f32\" or \"bf16\""),
        (&["run.precision=bf16"],
            "\"run.precision\" is \"bf16\", which goes with a GPU alone: set \"run.device\" to \
             \"cuda\", or leave it \"f32\""),
        (&["run.device=cuda", "run.engine=burn", "run.precision=bf16"],
            "\"run.precision\" is \"bf16\", which does not go with \"run.engine\" \"burn\": use \
             \"fast\", or leave it \"f32\""),
        (&["run.tf32=true"],
            "\"run.tf32\" is true, which goes with a GPU alone: set \"run.device\" to \"cuda\", or \
             leave it false"),
        (&["run.tf32=1"],
            "\"run.tf32\" must be true or false, but is 1"),
        (&["run.convolutions=graph"],
            "\"run.convolutions\" is \"graph\", which goes with a GPU alone: set \"run.device\" to \
             \"cuda\", or leave it \"legacy\""),
        (&["run.device=cuda", "run.engine=burn", "run.convolutions=graph"],
            "\"run.convolutions\" is \"graph\", which does not go with \"run.engine\" \"burn\": use \
             \"fast\", or leave it \"legacy\""),
        (&["run.convolutions=graphs"],
            "\"run.convolutions\" is \"graphs\": did you mean \"graph\"? It must be \"legacy\" or \
             \"graph\""),
        (&["run.evaluate_every=true"],
            "\"run.evaluate_every\" must be a whole number from 1 to 1000000, but is true"),
        (&["run.folder=\"\""],
            "\"run.folder\" must be a text in quotes, but is the text \"\""),
        (&["checkpoint.every_minutes=0"],
            "\"checkpoint.every_minutes\" must be a number, more than 0 and at most 1000000, but \
             is 0"),
        (&["checkpoint.every_batches=0"],
            "\"checkpoint.every_batches\" must be a whole number from 1 to 18446744073709551615, \
             but is 0"),
        (&["checkpoint.keep_last=0"],
            "\"checkpoint.keep_last\" must be a whole number from 1 to 1000000, but is 0"),
        (&["checkpoint.keep_best=1"],
            "\"checkpoint.keep_best\" must be true or false, but is 1"),
        (&["ranks.wire=f16"],
            "\"ranks.wire\" is \"f16\": did you mean \"bf16\"? It must be \"f32\" or \"bf16\""),
        (&["ranks.transport=ncll"],
            "\"ranks.transport\" is \"ncll\": did you mean \"nccl\"? It must be \"auto\", \"nccl\" or \"host\""),
        (&["ranks.bucket_mib=-1"],
            "\"ranks.bucket_mib\" must be a number, at least 0 and at most 1024, but is -1"),
        (&["ranks.overlap=1"],
            "\"ranks.overlap\" must be true or false, but is 1"),
        (&["ranks.deadline_seconds=0"],
            "\"ranks.deadline_seconds\" must be a number, more than 0 and at most 1000000, but is 0"),
        (&["data.source=cifar10", "data.path=\"\""],
            "\"data.path\" must be a text in quotes, but is the text \"\""),
        (&["data.path=x"],
            "\"data.path\" has no meaning where \"data.source\" is \"fashion-mnist-subset\": it \
             goes with \"packed\" or \"cifar10\""),
        (&["data.side=64"],
            "\"data.side\" has no meaning where \"data.source\" is \"fashion-mnist-subset\": it \
             goes with \"packed\""),
        (&["data.source=packed", "data.path=x", "data.on_bad_sample=skip"],
            "\"data.on_bad_sample\" must be \"stop\" or \"replace\", but is \"skip\""),
        (&["data.source=packed", "data.path=x", "data.flip=1"],
            "\"data.flip\" must be true or false, but is 1"),
        (&["data.source=packed", "data.path=x", "data.shuffle=none"],
            "\"data.shuffle\" must be \"auto\", \"full\" or \"blocks\", but is \"none\""),
        (&["data.source=packed", "data.path=x", "data.workers=1025"],
            "\"data.workers\" must be a whole number from 0 to 1024, but is 1025"),
        (&["data.source=packed", "data.path=x", "data.cache=\"\""],
            "\"data.cache\" must be a text in quotes, but is the text \"\""),
        (&["data.source=packed", "data.path=x", "data.cache_gib=-1"],
            "\"data.cache_gib\" must be a number, at least 0 and at most 1000000, but is -1"),
        (&["data.source=packed", "data.path=x", "data.side=7"],
            "\"data.side\" must be a whole number from 8 to 1024, but is 7"),
        (&["data.batch=0"],
            "\"data.batch\" must be a whole number from 1 to 1000000, but is 0"),
        (&["run.evaluate_every=[1]"],
            "\"run.evaluate_every\" must be a whole number from 1 to 1000000, but is a list"),
        (&["data.augment=standart"],
            "\"data.augment\" is \"standart\": did you mean \"standard\"? It must be \
             \"none\", \"standard\" or \"autoaugment\""),
        (&["model.name=ms_resnet"],
            "\"model.name\" is \"ms_resnet\": did you mean \"ms_resnet18\"? It must be \"small\", \
             \"ms_resnet18\", \"ms_resnet34\", \"sew_resnet18\", \"sew_resnet34\" or \"vgg11\""),
        (&["model.width=0"],
            "\"model.width\" must be a number, more than 0 and at most 4, but is 0"),
        (&["model.width=4.1"],
            "\"model.width\" must be a number, more than 0 and at most 4, but is 4.1"),
        (&["model.stem=cifar"],
            "\"model.stem\" has no meaning where \"model.name\" is \"small\": it goes with \
             \"ms_resnet18\" or \"ms_resnet34\""),
        (&["model.norm=none"],
            "\"model.norm\" has no meaning where \"model.name\" is \"small\": it goes with \
             \"ms_resnet18\" or \"ms_resnet34\""),
        (&["model.residual=add"],
            "\"model.residual\" has no meaning where \"model.name\" is \"small\": it goes with \
             \"sew_resnet18\" or \"sew_resnet34\""),
        (&["model.zero_init_residual=true"],
            "\"model.zero_init_residual\" has no meaning where \"model.name\" is \"small\": it \
             goes with \"sew_resnet18\" or \"sew_resnet34\""),
        (&["model.dropout=0.5"],
            "\"model.dropout\" has no meaning where \"model.name\" is \"small\": it goes with \
             \"vgg11\""),
        (&["model.name=vgg11", "model.dropout=1"],
            "\"model.dropout\" must be a number, at least 0 and less than 1, but is 1"),
        (&["model.name=vgg11", "model.dropout=0.9999999999"],
            "\"model.dropout\" must be a number, at least 0 and less than 1, but is 0.9999999999, \
             which is 1 in f32"),
        (&["init.from=\"\""],
            "\"init.from\" must be a text in quotes, but is the text \"\""),
        (&["init.skip_readout=1"],
            "\"init.skip_readout\" must be true or false, but is 1"),
        (&["init.skip_readout=true"],
            "\"init.skip_readout\" has no meaning without \"init.from\": all weights are drawn"),
        (&["neuron.tau_m=0.5"],
            "\"neuron.tau_m\" must be a number, at least 1 and at most 1000000, but is 0.5"),
        (&["neuron.tau_m=nan"],
            "\"neuron.tau_m\" must be a number, at least 1 and at most 1000000, but is nan"),
        (&["neuron.v_th=0x0"],
            "\"neuron.v_th\" must be a number, more than 0 and at most 1000000, but is 0x0"),
        (&["neuron.v_th=1e-60"],
            "\"neuron.v_th\" must be a number, more than 0 and at most 1000000, but is 1e-60, \
             which is 0 in f32"),
        (&["neuron.alpha=inf"],
            "\"neuron.alpha\" must be a number, more than 0 and at most 1000000, but is inf"),
        (&["neuron.reset=Hard"],
            "\"neuron.reset\" is \"Hard\": did you mean \"hard\"? It must be \"hard\", \"soft\" \
             or \"none\""),
        (&["neuron.reset=none", "neuron.detach_reset=true"],
            "\"neuron.detach_reset\" has no meaning where \"neuron.reset\" is \"none\": it goes \
             with \"hard\" or \"soft\""),
        (&["neuron.detach_reset=1"],
            "\"neuron.detach_reset\" must be true or false, but is 1"),
        (&["batch_norm.sync=on"],
            "\"batch_norm.sync\" must be true or false, but is the text \"on\""),
        (&["algorithm.name=sltt"],
            "\"algorithm.name\" is \"sltt\", not built yet in this version: use \"stol\" or \
             \"bptt\""),
        (&["algorithm.name=bptt", "algorithm.window=2"],
            "\"algorithm.window\" has no meaning where \"algorithm.name\" is \"bptt\": it goes \
             with \"stol\""),
        (&["algorithm.window=0"],
            "\"algorithm.window\" must be a whole number from 1 to 1024, but is 0"),
        (&["algorithm.window=5"],
            "\"algorithm.window\" is 5, but must be at most \"algorithm.time_steps\", 4"),
        (&["algorithm.time_steps=1025"],
            "\"algorithm.time_steps\" must be a whole number from 1 to 1024, but is 1025"),
        (&["algorithm.history=recomputed"],
            "\"algorithm.history\" is \"recomputed\", not built yet in this version: use \
             \"saved\""),
        (&["loss.lambda=1.5"],
            "\"loss.lambda\" must be a number, at least 0 and at most 1, but is 1.5"),
        (&["loss.kind=ce", "loss.lambda=0.05"],
            "\"loss.lambda\" has no meaning where \"loss.kind\" is \"ce\": it goes with \"paper\" \
             or \"ce+mse\""),
        (&["optimiser.lr=-0.1"],
            "\"optimiser.lr\" must be a number, at least 0 and at most 1000000, but is -0.1"),
        (&["optimiser.lr=1e999"],
            "\"optimiser.lr\" must be a number, at least 0 and at most 1000000, but is 1e999"),
        (&["optimiser.lr=2026-01-02"],
            "\"optimiser.lr\" must be a number, at least 0 and at most 1000000, but is the date \
             2026-01-02"),
        (&["optimiser.lr={a = 1}"],
            "\"optimiser.lr\" must be a number, at least 0 and at most 1000000, but is a table"),
        (&["optimiser.lr=1 2"],
            "\"optimiser.lr\" must be a number, at least 0 and at most 1000000, but is the text \
             \"1 2\""),
        (&["optimiser.momentum=1"],
            "\"optimiser.momentum\" must be a number, at least 0 and less than 1, but is 1"),
        (&["optimiser.beta1=0.9"],
            "\"optimiser.beta1\" has no meaning where \"optimiser.name\" is \"sgd\": it goes with \
             \"adamw\""),
        (&["optimiser.name=adamw", "optimiser.momentum=0.9"],
            "\"optimiser.momentum\" has no meaning where \"optimiser.name\" is \"adamw\": it goes \
             with \"sgd\""),
        (&["optimiser.weight_decay=-1"],
            "\"optimiser.weight_decay\" must be a number, at least 0 and at most 1000000, but is \
             -1"),
        (&["optimiser.name=adamw", "optimiser.beta2=1.0"],
            "\"optimiser.beta2\" must be a number, at least 0 and less than 1, but is 1.0"),
        (&["optimiser.name=adamw", "optimiser.epsilon=0"],
            "\"optimiser.epsilon\" must be a number, more than 0 and at most 1, but is 0"),
        (&["schedule.kind=cos"],
            "\"schedule.kind\" must be \"constant\" or \"cosine\", but is \"cos\""),
        (&["schedule.warmup_epochs=6"],
            "\"schedule.warmup_epochs\" is 6, but must be less than \"run.epochs\", 6"),
        (&["schedule.t_max=0"],
            "\"schedule.t_max\" must be a whole number from 1 to 1000000, but is 0"),
        (&["schedule.kind=constant", "schedule.t_max=5"],
            "\"schedule.t_max\" has no meaning where \"schedule.kind\" is \"constant\": it goes \
             with \"cosine\""),
        (&["data.source=cifar100"],
            "\"data.source\" is \"cifar100\": did you mean \"cifar10\"? It must be \
             \"fashion-mnist-subset\", \"cifar10\" or \"packed\""),
        (&["loss.kind=mse"],
            "\"loss.kind\" must be \"paper\", \"ce\" or \"ce+mse\", but is \"mse\""),
        (&["optimiser.name=adam"],
            "\"optimiser.name\" is \"adam\": did you mean \"adamw\"? It must be \"sgd\" or \
             \"adamw\""),
    ];

    fn faults(text: &str, overrides: &[&str]) -> Vec<String> {
        let overrides: Vec<_> = overrides.iter().map(ToString::to_string).collect();
        match Run::from_toml(text, "a.toml", &overrides) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.to_string().lines().map(str::to_owned).collect(),
        }
    }

    #[test]
    fn each_fault_is_found_and_names_its_key() {
        for (overrides, message) in FAULTS {
            let last = overrides.last().unwrap();
            assert_eq!(
                faults(VALID, overrides),
                [format!("--set {last}: {message}")]
            );
        }
        for key in KEYS {
            let start = format!("{}=", key.name);
            let is_tried = FAULTS
                .iter()
                .any(|(all, _)| all.last().unwrap().starts_with(&start));
            assert!(is_tried, "no fault of {} is provoked", key.name);
        }
    }

    #[test]
    fn credentials_in_any_url_are_refused_and_not_repeated() {
        let packed = VALID.replace("fashion-mnist-subset", "packed");
        let packed = packed.replace("batch = 64", "batch = 64\npath = \"packed\"");
        assert_eq!(faults(&packed, &["init.from=s3://bucket/run"]), [""; 0]);
        for key in ["run.folder", "data.path", "init.from"] {
            for url in [
                "s3://key:sesame@bucket/run",
                "s3://key:open/sesame@bucket/run",
                "http://host/run?signature=sesame",
                "s3://bucket/run#sesame",
            ] {
                let set = format!("{key}={url}");
                let (table, leaf) = key.split_once('.').unwrap();
                // The same in the file, whose table may be there already.
                let line = format!("[{table}]\n{leaf} = {url:?}\n");
                let mut file = packed.replace("path = \"packed\"\n", "");
                if table == "data" {
                    file = file.replace("[data]\n", &line);
                } else {
                    file = packed.clone() + &line;
                }
                for told in [faults(&packed, &[&set]), faults(&file, &[])] {
                    assert_eq!(told.len(), 1, "{told:?}");
                    assert!(told[0].contains(&format!("{key:?} is ")), "{told:?}");
                    assert!(!told[0].contains("sesame"), "{told:?}");
                }
            }
        }
        // Nor where it is written in the wrong place.
        for wrong in ["data.source", "run.foldr", "run.seed"] {
            let set = format!("{wrong}=s3://key:sesame@bucket/run");
            let told = faults(VALID, &[&set]).join("\n");
            assert!(!told.is_empty() && !told.contains("sesame"), "{told}");
        }
        // A plain path may look as it likes.
        let cifar = ["data.source=cifar10", "data.path=a://b?c"];
        assert_eq!(faults(VALID, &cifar), [""; 0]);
    }

    #[test]
    fn each_required_key_is_missed_at_its_table() {
        for (line, place, key) in [
            (
                "source = \"fashion-mnist-subset\"\n",
                "a.toml:1",
                "data.source",
            ),
            ("batch = 64\n", "a.toml:1", "data.batch"),
            ("name = \"small\"\n", "a.toml:4", "model.name"),
            ("name = \"stol\"\n", "a.toml:6", "algorithm.name"),
            ("time_steps = 4\n", "a.toml:6", "algorithm.time_steps"),
            ("lr = 0.02\n", "a.toml:9", "optimiser.lr"),
            ("[optimiser]\nlr = 0.02\n", "a.toml", "optimiser.lr"),
        ] {
            let faults = faults(&VALID.replace(line, ""), &[]);
            let start = format!("{place}: \"{key}\" is missing: it must be ");
            assert!(
                faults.len() == 1 && faults[0].starts_with(&start),
                "{faults:?}"
            );
        }
        assert_eq!(
            faults(VALID, &["data.source=cifar10"]),
            [
                "a.toml:1: \"data.path\" is missing: where \"data.source\" is \"packed\" or \
                 \"cifar10\", it must be \
              a text in quotes"
            ]
        );
    }

    #[test]
    fn faults_of_several_kinds_are_reported_together_by_line() {
        let text = "\
[run]
epochs = 0
[optimizer]
lr = 0.1
[data]
source = \"cifar-10\"
batch = \"64\"
path = \"x\"
[algorithm]
name = \"fptt\"
window = 3
[loss]
kind = \"ce\"
lambda = 0.5
";
        let faults = faults(text, &["neuron.tau_m=x", "run.sed=3"]);
        let places: Vec<_> = faults
            .iter()
            .map(|fault| fault.split_once(": ").unwrap().0)
            .collect();
        assert_eq!(
            places,
            [
                "a.toml",    // model.name
                "a.toml:2",  // run.epochs
                "a.toml:4",  // optimizer.lr
                "a.toml:6",  // data.source
                "a.toml:7",  // data.batch
                "a.toml:9",  // algorithm.time_steps
                "a.toml:10", // algorithm.name
                "a.toml:14", // loss.lambda
                "--set run.sed=3",
                "--set neuron.tau_m=x",
            ],
            "{faults:#?}"
        );
    }

    #[test]
    fn a_faulty_or_misspelt_name_makes_no_key_meaningless() {
        for control in ["name = \"bpt\"", "nam = \"bptt\"", "name = 3"] {
            let text = VALID.replace("name = \"stol\"", &format!("{control}\nwindow = 9"));
            let faults = faults(&text, &[]);
            assert!(
                faults.len() == 1 && faults[0].starts_with("a.toml:7: "),
                "{faults:?}"
            );
        }
    }

    #[test]
    fn a_default_that_depends_gives_way_instead_of_contradicting() {
        for overrides in [
            &["algorithm.time_steps=1"][..],
            &["algorithm.name=bptt"],
            &["loss.kind=ce"],
            &["optimiser.name=adamw"],
            &["schedule.kind=constant"],
            &["neuron.reset=none"],
            &["run.epochs=1"],
            &["run.engine=cpu"],
            &["run.device=cuda:1", "run.precision=bf16", "run.tf32=true"],
            &["run.device=cuda", "run.convolutions=graph"],
            &["run.device=cuda", "run.engine=burn"],
            &["optimiser.lr=0"],
            &["optimiser.lr=1_0"],
            &["optimiser.lr=-0.0"],
        ] {
            assert_eq!(faults(VALID, overrides), [""; 0]);
        }
    }
}
