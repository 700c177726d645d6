//! What was written against the table of keys: kinds, ranges, conditions, and values against values.

use std::ops::{Bound, RangeBounds};

use toml::de::{DeInteger, DeValue};

use crate::faults::{RunErrors, listed, nearest, shortened};
use crate::keys::{Fallback, KEYS, Key, Kind, Only};
use crate::run_file::{RunFile, described};
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
    let wrong = || {
        format!(
            "{:?} must be {}, but is {}",
            key.name,
            key.kind,
            described(value)
        )
    };
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
        (Kind::Choice { names, later }, DeValue::String(text)) => {
            choice(key, text, names, later).map(|name| Scalar::Text(name.to_owned()))
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

impl Checker<'_> {
    /// Keys that are set though they mean nothing, and keys that are required and not set.
    fn conditions(&self) -> Vec<(&'static Key, String)> {
        let mut faults = Vec::new();
        for key in KEYS {
            let is_set = self.file.written.contains_key(key.name);
            let is_meant = self.file.meant.contains(key.name);
            match key.only.map(|only| (only, self.known(only.key))) {
                Some((only, Some(Scalar::Text(control))))
                    if !only.values.contains(&control.as_str()) =>
                {
                    if is_set {
                        faults.push((key, out_of_place(key, only, &control)));
                    }
                }
                // Whether the key means anything hangs on a value that is itself at fault.
                Some((_, None)) => {}
                Some(_) | None => {
                    if matches!(key.fallback, Fallback::Required) && !is_set && !is_meant {
                        faults.push((key, missing(key)));
                    }
                }
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
            if !self.values.is_written(key.name) {
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
        faults
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
