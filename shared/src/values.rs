//! The checked values of a configuration by key, defaults behind what was written.

use std::collections::BTreeMap;

use crate::keys::{self, Fallback};

/// One value of a configuration.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Scalar {
    Bool(bool),
    Integer(u64),
    Real(f64),
    Text(String),
}

/// Every value that was written and is of its key's kind and range.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Values {
    written: BTreeMap<&'static str, Scalar>,
}

/// Reading panics where a key is not in the table, or not of the kind asked for, or required and
/// not written: `check` lets no such values through.
impl Values {
    pub(crate) fn insert(&mut self, name: &'static str, value: Scalar) {
        self.written.insert(name, value);
    }

    pub(crate) fn is_written(&self, name: &str) -> bool {
        self.written.contains_key(name)
    }

    /// The value, or the default; absent where neither is.
    pub(crate) fn get(&self, name: &str) -> Option<Scalar> {
        self.written.get(name).cloned().or_else(|| {
            let key = keys::find(name).expect("only keys of the table are read");
            match key.fallback {
                Fallback::Required | Fallback::Absent => None,
                Fallback::Bool(value) => Some(Scalar::Bool(value)),
                Fallback::Integer(value) => Some(Scalar::Integer(value)),
                Fallback::Real(value) => Some(Scalar::Real(value)),
                Fallback::Text(value) => Some(Scalar::Text(value.to_owned())),
            }
        })
    }

    pub(crate) fn bool(&self, name: &str) -> bool {
        match self.get(name) {
            Some(Scalar::Bool(value)) => value,
            other => unreachable!("{name} is not true or false: {other:?}"),
        }
    }

    pub(crate) fn real(&self, name: &str) -> f64 {
        match self.get(name) {
            Some(Scalar::Real(value)) => value,
            other => unreachable!("{name} is not a number: {other:?}"),
        }
    }

    pub(crate) fn optional_real(&self, name: &str) -> Option<f64> {
        self.is_written(name).then(|| self.real(name))
    }

    pub(crate) fn text(&self, name: &str) -> String {
        match self.get(name) {
            Some(Scalar::Text(value)) => value,
            other => unreachable!("{name} is not a text: {other:?}"),
        }
    }

    pub(crate) fn optional_text(&self, name: &str) -> Option<String> {
        self.is_written(name).then(|| self.text(name))
    }

    pub(crate) fn optional_integer(&self, name: &str) -> Option<u64> {
        match self.get(name) {
            Some(Scalar::Integer(value)) => Some(value),
            None => None,
            other => unreachable!("{name} is not a whole number: {other:?}"),
        }
    }

    pub(crate) fn integer(&self, name: &str) -> u64 {
        self.optional_integer(name)
            .expect("written or with a default")
    }

    pub(crate) fn optional_small(&self, name: &str) -> Option<u32> {
        self.optional_integer(name)
            .map(|value| u32::try_from(value).expect("its range in the key table ends before 2^32"))
    }

    pub(crate) fn small(&self, name: &str) -> u32 {
        self.optional_small(name)
            .expect("written or with a default")
    }

    pub(crate) fn count(&self, name: &str) -> usize {
        self.small(name) as usize
    }
}
