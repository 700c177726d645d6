//! The strings beside the tensors, as checked values.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, Visitor};

use super::TraceError;
use super::error::{one_line, shown};
use super::file::{TensorData, TraceFile, TraceTensor};
use crate::kernel::{Neuron, Reset};

/// The version of the format; a file that names none is of this one.
pub(super) const VERSION: &str = "1";

/// A map in which every key occurs once: JSON itself lets the last one win.
pub(super) struct Unique<V>(pub(super) BTreeMap<String, V>);

impl<V> Default for Unique<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<V>, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map.next_value::<V>()?;
                    if entries.contains_key(&key) {
                        let twice = format!("the key {} occurs twice", shown(&key));
                        return Err(A::Error::custom(twice));
                    }
                    entries.insert(key, value);
                }
                Ok(Unique(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// What reading one file needs: its content, and errors that name it.
#[derive(Clone, Copy)]
pub(super) struct Source<'a>(pub(super) &'a TraceFile);

impl<'a> Source<'a> {
    pub(super) fn name(self) -> String {
        self.0.name.clone()
    }

    /// Refuses other versions.
    pub(super) fn check_version(self) -> Result<(), TraceError> {
        match self.0.metadata.get("version") {
            Some(other) if other != VERSION => Err(TraceError::Version {
                file: self.name(),
                got: shown(other),
                want: VERSION,
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// A string that has to be there.
    pub(super) fn text(self, key: &'static str) -> Result<&'a str, TraceError> {
        let text = self.0.metadata.get(key).map(String::as_str);
        text.ok_or_else(|| TraceError::MissingKey {
            file: self.name(),
            key,
        })
    }

    /// JSON that may be missing.
    pub(super) fn json<T: DeserializeOwned>(
        self,
        key: &'static str,
    ) -> Result<Option<T>, TraceError> {
        let text = self.0.metadata.get(key);
        text.map(|t| serde_json::from_str(t))
            .transpose()
            .map_err(|e| self.wrong_key(key, e))
    }

    /// JSON that has to be there.
    pub(super) fn required<T: DeserializeOwned>(self, key: &'static str) -> Result<T, TraceError> {
        self.json(key)?.ok_or_else(|| TraceError::MissingKey {
            file: self.name(),
            key,
        })
    }

    pub(super) fn wrong_key(self, key: &'static str, reason: impl fmt::Display) -> TraceError {
        TraceError::Key {
            file: self.name(),
            key,
            reason: one_line(reason),
        }
    }

    pub(super) fn tensor(self, tensor: &str) -> Result<&'a TraceTensor, TraceError> {
        let found = self.0.tensors.get(tensor);
        found.ok_or_else(|| TraceError::MissingTensor {
            file: self.name(),
            tensor: shown(tensor),
        })
    }

    pub(super) fn wrong_shape(self, tensor: &str, want: impl fmt::Display) -> TraceError {
        let got = self.0.tensors.get(tensor).map(|t| t.shape.clone());
        TraceError::Shape {
            file: self.name(),
            tensor: shown(tensor),
            got: got.unwrap_or_default(),
            want: want.to_string(),
        }
    }

    /// The floats of a tensor, all finite.
    pub(super) fn floats(self, tensor: &str) -> Result<&'a [f32], TraceError> {
        let TensorData::F32(values) = &self.tensor(tensor)?.data else {
            return Err(self.wrong_type(tensor, "floats"));
        };
        match values.iter().position(|v| !v.is_finite()) {
            Some(index) => Err(self.wrong_value(tensor, index, values[index], "a finite number")),
            None => Ok(values),
        }
    }

    /// The floats of a tensor of this shape, all finite.
    pub(super) fn floats_of(self, tensor: &str, shape: &[usize]) -> Result<&'a [f32], TraceError> {
        if self.tensor(tensor)?.shape != shape {
            return Err(self.wrong_shape(tensor, format!("{shape:?}")));
        }
        self.floats(tensor)
    }

    /// The whole numbers of a tensor of this shape.
    pub(super) fn whole_of(self, tensor: &str, shape: &[usize]) -> Result<&'a [i64], TraceError> {
        let found = self.tensor(tensor)?;
        if found.shape != shape {
            return Err(self.wrong_shape(tensor, format!("{shape:?}")));
        }
        match &found.data {
            TensorData::I64(values) => Ok(values),
            TensorData::F32(_) => Err(self.wrong_type(tensor, "whole numbers (I64)")),
        }
    }

    pub(super) fn wrong_value(
        self,
        tensor: &str,
        index: usize,
        value: f32,
        want: &'static str,
    ) -> TraceError {
        TraceError::Value {
            file: self.name(),
            tensor: shown(tensor),
            index,
            value: f64::from(value),
            want,
        }
    }

    fn wrong_type(self, tensor: &str, want: &str) -> TraceError {
        TraceError::Tensor {
            file: self.name(),
            tensor: shown(tensor),
            reason: format!("it must hold {want}"),
        }
    }

    /// Refuses tensors that `known` does not know.
    pub(super) fn no_others(self, known: impl Fn(&str) -> bool) -> Result<(), TraceError> {
        match self.0.tensors.keys().find(|tensor| !known(tensor)) {
            Some(tensor) => Err(TraceError::UnexpectedTensor {
                file: self.name(),
                tensor: shown(tensor),
            }),
            None => Ok(()),
        }
    }

    /// The neuron, where the file has one.
    pub(super) fn neuron(self) -> Result<Option<Neuron>, TraceError> {
        const KEY: &str = "neuron";
        let Some(text) = self.json::<NeuronText>(KEY)? else {
            return Ok(None);
        };
        let sane = |x: f32| x.is_finite() && x > 0.0;
        if !(sane(text.tau) && sane(text.v_th) && sane(text.alpha)) {
            return Err(self.wrong_key(KEY, "tau, v_th and alpha must be finite and positive"));
        }
        if text.spike.is_some_and(|s| s != "heaviside") {
            return Err(self.wrong_key(KEY, "the only spike is \"heaviside\""));
        }
        let reset = match text.reset.as_str() {
            "hard" => Reset::Hard,
            "soft" => Reset::Soft,
            "none" => Reset::None,
            other => {
                let reset = shown(other);
                let reason = format!("reset {reset} is unknown: hard, soft or none");
                return Err(self.wrong_key(KEY, reason));
            }
        };
        Ok(Some(Neuron {
            tau_m: text.tau,
            v_th: text.v_th,
            alpha: text.alpha,
            reset,
            detach_reset: text.detach_reset,
        }))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NeuronText {
    tau: f32,
    v_th: f32,
    alpha: f32,
    reset: String,
    #[serde(default)]
    detach_reset: bool,
    spike: Option<String>,
}
