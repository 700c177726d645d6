//! Convolutions by cuDNN's graph API: an operation, the engines that its heuristics name for it, and of these
//! the first that is good, as a plan.
//!
//! What is good is what the legacy calls may take: the same bits every time, f32 products where f32 is asked for. A plan
//! needs at most [`MOST_WORKSPACE`], whatever is free: the choice decides bits, and a run that is resumed has to
//! choose the same.
#![allow(unsafe_code, reason = "cuDNN is C")]

use super::algorithm::{MOST_WORKSPACE, unless_refused};
use super::context::Context;
use super::convolution::{ConvolutionShape, Operands};
use super::cudnn::{Handle, check, check_workspace};
use super::descriptor::{Address, Descriptor, Draft, Note};
use super::operation::{NAMES, Pass, operation};
use super::{CudaError, Pointer};
use cudarc::cudnn::sys;
use cudarc::cudnn::sys::cudnnBackendAttributeName_t as Name;
use cudarc::cudnn::sys::cudnnBackendDescriptorType_t as Kind;
use cudarc::cudnn::sys::cudnnBackendHeurMode_t as Heuristics;
use cudarc::cudnn::sys::cudnnBackendNumericalNote_t as Known;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Engines that are looked at, of each of the heuristics.
const MOST_ENGINES: usize = 64;

/// Notes that an engine may have.
const MOST_NOTES: usize = 32;

/// The plans of a convolution, each made when it is first wanted.
#[derive(Debug)]
pub(super) struct Plans {
    made: Vec<(Pass, Plan)>,
    /// Passes that have none, and why: nobody is asked twice, and a capture can be told.
    none: Vec<(Pass, CudaError)>,
    context: Arc<Context>,
}

impl Plans {
    pub(super) fn new(context: &Arc<Context>) -> Self {
        Self {
            made: Vec::new(),
            none: Vec::new(),
            context: Arc::clone(context),
        }
    }

    pub(super) fn has(&self, pass: Pass) -> bool {
        self.made.iter().any(|(of, _)| *of == pass)
    }

    /// Makes that of a pass.
    pub(super) fn make(
        &mut self,
        handle: &Handle,
        shape: &ConvolutionShape,
        pass: Pass,
    ) -> Result<(), CudaError> {
        match Plan::new(handle, shape, pass) {
            Ok(plan) => self.made.push((pass, plan)),
            Err(error) => {
                if matches!(error, CudaError::NoPlan { .. }) {
                    self.none.push((pass, error.clone()));
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Why a pass has none, where that is known.
    pub(super) fn refusal(&self, pass: Pass) -> Option<&CudaError> {
        let found = self.none.iter().find(|(of, _)| *of == pass);
        found.map(|(_, error)| error)
    }

    /// Bytes of workspace that a pass needs.
    pub(super) fn workspace(&self, pass: Pass) -> u64 {
        self.of(pass).workspace
    }

    /// Bytes of workspace that each of them can do with.
    pub(super) fn most_workspace(&self) -> u64 {
        let all = self.made.iter().map(|(_, plan)| plan.workspace);
        all.max().unwrap_or(0)
    }

    /// Their engines, in words.
    pub(super) fn words(&self) -> String {
        let words = |(pass, plan): &(Pass, Plan)| {
            let (words, bytes) = (&plan.words, plan.workspace);
            format!("{}: {words} ({bytes} bytes)", pass.direction())
        };
        self.made.iter().map(words).collect::<Vec<_>>().join(", ")
    }

    /// Does a pass with x, w and y, or their gradients.
    pub(super) fn execute(
        &self,
        handle: &Handle,
        shape: &ConvolutionShape,
        pass: Pass,
        operands: [Pointer; 3],
        (workspace, bytes): (Pointer, u64),
    ) -> Result<(), CudaError> {
        let plan = self.of(pass);
        check_workspace("cudnnBackendExecute", shape, bytes, plan.workspace)?;
        plan.execute(handle, shape, operands, workspace)
    }

    fn of(&self, pass: Pass) -> &Plan {
        let found = self.made.iter().find(|(of, _)| *of == pass);
        let (_, plan) = found.expect("a pass is prepared before it is done");
        plan
    }
}

impl Drop for Plans {
    /// A plan may own kernels that still run.
    fn drop(&mut self) {
        let _ = self.context.primary.bind();
        if !self.made.is_empty() && !self.context.capturing.load(Ordering::Acquire) {
            let _ = self.context.compute.synchronize();
        }
    }
}

/// A pass of a convolution, ready to be done.
#[derive(Debug)]
struct Plan {
    descriptor: Descriptor,
    workspace: u64,
    /// Its engine, in words.
    words: String,
    // Last: what the plan is made of goes after it.
    parts: Vec<Descriptor>,
}

impl Plan {
    /// Asks cuDNN's heuristics for engines and takes the first that is good; nothing is timed.
    ///
    /// # Errors
    ///
    /// [`CudaError::NoPlan`]; what cuDNN refuses.
    fn new(handle: &Handle, shape: &ConvolutionShape, pass: Pass) -> Result<Self, CudaError> {
        let mut parts = operation(shape, pass)?;
        let operation = parts.last().expect("the operation comes last").part();
        let graph = Draft::new(shape, Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?
            .set(Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, &[handle.raw()])?
            .set(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, &[operation])?
            .finish()?;
        let mut offers = Offers::default();
        let chosen = choose(handle, shape, &graph, &mut offers);
        parts.push(graph);
        // Those that are made of others go first.
        parts.reverse();
        let Some(mut made) = chosen? else {
            return Err(CudaError::NoPlan {
                direction: pass.direction(),
                shape: shape.to_string(),
                offers: offers.to_string(),
            });
        };
        made.parts.extend(parts);
        tracing::debug!(pass = pass.direction(), %shape, plan = made.words, "convolution");
        Ok(made)
    }

    /// Does it with x, w and y.
    fn execute(
        &self,
        handle: &Handle,
        shape: &ConvolutionShape,
        operands: [Pointer; 3],
        workspace: Pointer,
    ) -> Result<(), CudaError> {
        let pack = Draft::new(shape, Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?
            .set(Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &NAMES)?
            .set(
                Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
                &operands.map(address),
            )?
            .set(
                Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE,
                &[address(workspace)],
            )?
            .finish()?;
        // SAFETY: all descriptors live; the memory is as long as they say by the caller's arithmetic, and
        // lives because its drop waits for the stream.
        let status =
            unsafe { sys::cudnnBackendExecute(handle.raw(), self.descriptor.raw(), pack.raw()) };
        check("cudnnBackendExecute", shape, status)
    }
}

/// The first good engine as a plan, if there is one: of those of mode A, then of those that cuDNN falls back to.
fn choose(
    handle: &Handle,
    shape: &ConvolutionShape,
    graph: &Descriptor,
    offers: &mut Offers,
) -> Result<Option<Plan>, CudaError> {
    for mode in [
        Heuristics::CUDNN_HEUR_MODE_A,
        Heuristics::CUDNN_HEUR_MODE_FALLBACK,
    ] {
        // A mode that cannot answer leaves it to the next.
        for config in unless_refused(engines(shape, graph, mode))?.unwrap_or_default() {
            offers.all += 1;
            let Some((engine, notes)) = unless_refused(engine_of(shape, &config))?.flatten() else {
                offers.refused += 1;
                continue;
            };
            if notes.contains(&note(Known::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC)) {
                offers.nondeterministic += 1;
            } else if shape.operands == Operands::F32 && rounds(&notes) {
                offers.rounding += 1;
            } else if let Some(plan) =
                unless_refused(plan_of(handle, shape, config, words(engine, &notes)))?
            {
                if plan.workspace <= MOST_WORKSPACE as u64 {
                    return Ok(Some(plan));
                }
                offers.large += 1;
            } else {
                offers.refused += 1;
            }
        }
    }
    Ok(None)
}

/// Configurations of engines, the best first.
fn engines(
    shape: &ConvolutionShape,
    graph: &Descriptor,
    mode: Heuristics,
) -> Result<Vec<Descriptor>, CudaError> {
    let heuristics = Draft::new(shape, Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?
        .set(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &[graph.part()])?
        .set(Name::CUDNN_ATTR_ENGINEHEUR_MODE, &[mode])?
        .finish()?;
    let results = Name::CUDNN_ATTR_ENGINEHEUR_RESULTS;
    let count = heuristics.num_parts(shape, results)?.min(MOST_ENGINES);
    let kind = Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR;
    heuristics.parts(shape, (results, kind), count)
}

/// The number of a configuration's engine, for people, and what it does to numbers.
fn engine_of(
    shape: &ConvolutionShape,
    config: &Descriptor,
) -> Result<Option<(i64, Vec<Note>)>, CudaError> {
    let attribute = Name::CUDNN_ATTR_ENGINECFG_ENGINE;
    let kind = Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR;
    let engines = config.parts(shape, (attribute, kind), 1)?;
    let Some(engine) = engines.first() else {
        return Ok(None);
    };
    let notes = engine.values::<Note, MOST_NOTES>(shape, Name::CUDNN_ATTR_ENGINE_NUMERICAL_NOTE)?;
    let index = engine.values::<i64, 1>(shape, Name::CUDNN_ATTR_ENGINE_GLOBAL_INDEX);
    let index = index.ok().and_then(|index| index.first().copied());
    Ok(Some((index.unwrap_or(-1), notes)))
}

fn plan_of(
    handle: &Handle,
    shape: &ConvolutionShape,
    config: Descriptor,
    words: String,
) -> Result<Plan, CudaError> {
    let plan = Draft::new(shape, Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?
        .set(Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, &[handle.raw()])?
        .set(
            Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
            &[config.part()],
        )?
        .finish()?;
    let bytes = plan.values::<i64, 1>(shape, Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)?;
    let bytes = bytes.first().and_then(|&bytes| u64::try_from(bytes).ok());
    Ok(Plan {
        descriptor: plan,
        workspace: bytes.unwrap_or(u64::MAX),
        words,
        parts: vec![config],
    })
}

fn note(known: Known) -> Note {
    Note(known as u32)
}

/// Whether products or sums of f32 numbers have fewer bits than f32.
fn rounds(notes: &[Note]) -> bool {
    let less = [
        Known::CUDNN_NUMERICAL_NOTE_TENSOR_CORE,
        Known::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS,
        Known::CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION,
    ];
    notes.iter().any(|found| less.map(note).contains(found))
}

/// An engine in words.
fn words(engine: i64, notes: &[Note]) -> String {
    let known = [
        Known::CUDNN_NUMERICAL_NOTE_TENSOR_CORE,
        Known::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS,
        Known::CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION,
        Known::CUDNN_NUMERICAL_NOTE_FFT,
        Known::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC,
        Known::CUDNN_NUMERICAL_NOTE_WINOGRAD,
    ];
    let mut words = format!("engine {engine}");
    for found in notes {
        let name = known.into_iter().find(|&known| note(known) == *found);
        words += &name.map_or(format!(" {found:?}"), |name| format!(" {name:?}"));
    }
    words
}

/// What became of the engines that were looked at.
#[derive(Debug, Default)]
struct Offers {
    all: usize,
    nondeterministic: usize,
    rounding: usize,
    large: usize,
    refused: usize,
}

impl fmt::Display for Offers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "of {} engines {} are not deterministic, {} round f32, {} need more than {} MiB of workspace, \
             {} are refused",
            self.all,
            self.nondeterministic,
            self.rounding,
            self.large,
            MOST_WORKSPACE >> 20,
            self.refused
        )
    }
}

/// An address as cuDNN takes it.
fn address(pointer: Pointer) -> Address {
    Address(std::ptr::without_provenance_mut(
        usize::try_from(pointer.0).unwrap_or(0),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_that_round_f32_are_told_by_their_notes() {
        assert!(!rounds(&[]));
        let exact = [
            Known::CUDNN_NUMERICAL_NOTE_WINOGRAD,
            Known::CUDNN_NUMERICAL_NOTE_FFT,
        ];
        assert!(!rounds(&exact.map(note)));
        // One of a newer cuDNN.
        assert!(!rounds(&[Note(31)]));
        for less in [
            Known::CUDNN_NUMERICAL_NOTE_TENSOR_CORE,
            Known::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS,
            Known::CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION,
        ] {
            assert!(rounds(&[note(exact[0]), note(less)]), "{less:?}");
        }
    }
}
