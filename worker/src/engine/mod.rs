//! One time step, forward and backward: the network walks its stages over a window of the newest k
//! time steps. No autodiff.
//!
//! # Layout
//!
//! - [`plan`]: from a graph to stages and buffers.
//! - `fuse`: which nodes become one stage.
//! - [`arena`]: where parameters lie.
//! - [`profile`]: seconds by stage and phase.
//! - `norms`: batch norms whose statistics are those of several ranks.
//! - this file: [`Network`]: `forward(t)`, `backward(window)`.
//!
//! The engine knows no ranks and no data; it calls [`Kernels`] and nothing else.

pub mod arena;
mod fuse;
mod norms;
pub mod plan;
pub mod profile;

use crate::graph::{Graph, ValueId};
use crate::kernel::{
    Arena, ArenaSizes, Buffer, Dropout, Errors, ErrorsOut, Kernels, Loss, NormLifErrors, Norms,
    Phase, Pictures, Span, Step, Window,
};
use crate::shape::Shape;
pub use norms::{Pool, Shared};
use plan::{Plan, PlannedBuffer, Role, Settings, Stage};
use profile::{Profile, Work};

/// Why a network cannot take what it is given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No such parameter or running statistic.
    #[error("the network has no tensor {0:?}")]
    UnknownTensor(String),
    /// A tensor of another size.
    #[error("tensor {name:?} has {got} numbers, the network's has {want}")]
    TensorSize {
        /// The tensor.
        name: String,
        /// Numbers given.
        got: usize,
        /// Numbers needed.
        want: usize,
    },
}

/// A network on a back end. It holds handles; the numbers are the back end's.
#[derive(Debug)]
pub struct Network {
    plan: Plan,
    handles: Vec<Buffer>,
    /// Seconds by stage.
    pub profile: Profile,
    /// Per value: the time steps for which an error has arrived in this backward.
    arrived: Vec<Option<Window>>,
    dropouts: Vec<(String, Dropout)>,
    arenas: ArenaSizes,
}

impl Network {
    /// Plans the graph and allocates everything that training or evaluation will ever need.
    ///
    /// `optimiser_states` is 1 for SGD, 2 for `AdamW`.
    pub fn new(
        graph: &Graph,
        settings: &Settings,
        optimiser_states: usize,
        kernels: &mut dyn Kernels,
    ) -> Self {
        let mut plan = Plan::new(graph, settings);
        let handles: Vec<Buffer> = plan
            .buffers
            .iter()
            .map(|b| kernels.allocate(&b.spec))
            .collect();
        let arenas = ArenaSizes {
            parameters: plan.layout.len(),
            statistics: plan.layout.statistics_len(),
            moments: match settings.norms {
                Norms::Own => 0,
                Norms::Pooled | Norms::Synchronised => plan.layout.statistics_len(),
            },
            states: optimiser_states,
        };
        kernels.allocate_arenas(arenas);
        rename(&mut plan, &handles);
        // Running variances start at 1, means at 0.
        for (name, span) in plan.layout.statistics() {
            if name.ends_with(".running_var") {
                kernels.write_arena(Arena::Statistics, span.offset, &vec![1.0; span.len]);
            }
        }
        let names = |nodes: &Vec<usize>| graph.nodes()[nodes[0]].name.clone();
        let dropouts = plan.stages.iter().zip(&plan.stage_nodes);
        let dropouts = dropouts.filter_map(|(stage, nodes)| match stage {
            Stage::Dropout { dropout, .. } => Some((names(nodes), *dropout)),
            Stage::Conv { .. }
            | Stage::NormLif { .. }
            | Stage::Pool { .. }
            | Stage::Flatten { .. }
            | Stage::Residual { .. } => None,
        });
        Self {
            dropouts: dropouts.collect(),
            arrived: vec![None; graph.values().len()],
            profile: Profile::default(),
            handles,
            plan,
            arenas,
        }
    }

    /// What runs, and where everything lies.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Classes: the length of the logits.
    pub fn num_classes(&self) -> usize {
        self.spec(self.plan.output).spec.shape.channels
    }

    /// Numbers in one batch of inputs.
    pub fn input_elements(&self) -> usize {
        self.spec(ValueId(0)).spec.elements()
    }

    fn spec(&self, value: ValueId) -> &PlannedBuffer {
        let buffer = self.plan.buffer(value);
        let index = self.handles.iter().position(|&h| h == buffer);
        &self.plan.buffers[index.expect("every handle is in the list")]
    }

    /// Starts to measure seconds by stage and phase.
    pub fn start_profile(&mut self) {
        self.profile.start(self.plan.stages.len());
    }

    /// Copies a parameter (OIHW; `[out, in]`; `[channels]`) or a running statistic to the device.
    ///
    /// # Errors
    /// If there is no such tensor, or it has another size.
    pub fn set(
        &self,
        kernels: &mut dyn Kernels,
        name: &str,
        values: &[f32],
    ) -> Result<(), EngineError> {
        let layout = &self.plan.layout;
        let parameter = layout.parameter(name).map(|s| (Arena::Weights, s));
        let statistic = || layout.statistic(name).map(|s| (Arena::Statistics, s));
        let (arena, span) = parameter
            .or_else(statistic)
            .ok_or_else(|| EngineError::UnknownTensor(name.into()))?;
        if span.len != values.len() {
            return Err(EngineError::TensorSize {
                name: name.into(),
                got: values.len(),
                want: span.len,
            });
        }
        kernels.write_arena(arena, span.offset, values);
        Ok(())
    }

    /// A parameter's part of an arena, or a running statistic, on the host.
    ///
    /// # Errors
    /// If there is no such tensor.
    pub fn get(
        &self,
        kernels: &mut dyn Kernels,
        arena: Arena,
        name: &str,
    ) -> Result<Vec<f32>, EngineError> {
        let layout = &self.plan.layout;
        let span = match arena {
            Arena::Statistics | Arena::Moments => layout.statistic(name),
            Arena::Weights | Arena::Gradients | Arena::State | Arena::SecondState => {
                layout.parameter(name)
            }
        };
        let span = span.ok_or_else(|| EngineError::UnknownTensor(name.into()))?;
        let mut values = vec![0.0; span.len];
        kernels.read_arena(arena, span.offset, &mut values);
        Ok(values)
    }

    /// Copies the input of time step t: `[N, H, W, C]`.
    pub fn write_input(&self, kernels: &mut dyn Kernels, t: usize, x_nhwc: &[f32]) {
        kernels.write(self.plan.buffer(ValueId(0)), t, x_nhwc);
    }

    /// The same of pictures that come as bytes.
    pub fn write_pictures(&self, kernels: &mut dyn Kernels, t: usize, pictures: &Pictures<'_>) {
        kernels.write_pictures(self.plan.buffer(ValueId(0)), t, pictures);
    }

    /// Whether the ring of inputs already holds a picture that is the input of every time step.
    pub fn input_is_resident(&self, t: usize) -> bool {
        let spec = self.spec(ValueId(0)).spec;
        // A ring with both forms is written as one, so the longer one decides.
        t >= spec.operand_slots.max(spec.plain_slots)
    }

    /// Copies the dropout masks of time step t (factors, `[N, features]`) instead of drawing them;
    /// a layer for which none is given is drawn with key 0.
    pub fn give_masks(
        &self,
        kernels: &mut dyn Kernels,
        t: usize,
        given: &dyn Fn(&str, usize) -> Option<Vec<f32>>,
    ) {
        for (node, dropout) in &self.dropouts {
            match given(node, t) {
                Some(mask) => kernels.write(dropout.mask, t, &mask),
                None => kernels.dropout_mask(dropout, t, 0),
            }
        }
    }

    /// Hands out the dropout masks of time step t: layer, shape, factors `[N, H, W, C]`. Waits.
    pub fn read_masks(
        &self,
        kernels: &mut dyn Kernels,
        t: usize,
        take: &mut dyn FnMut(&str, Shape, &[f32]),
    ) {
        for (node, dropout) in &self.dropouts {
            let mut mask = vec![0.0; dropout.samples * dropout.shape.elements()];
            kernels.read(dropout.mask, t, &mut mask);
            take(node, dropout.shape, &mask);
        }
    }

    /// How close a membrane potential of time step t is to the threshold: below the rounding of
    /// f32, another machine may see another spike. Waits.
    pub fn threshold_margin(&self, kernels: &mut dyn Kernels, t: usize) -> f32 {
        let mut margin = f32::INFINITY;
        for stage in &self.plan.stages {
            let Stage::NormLif { layer, .. } = stage else {
                continue;
            };
            let Some(lif) = layer.lif else { continue };
            let mut u = vec![0.0; layer.samples * layer.shape.elements()];
            kernels.read(lif.u, t, &mut u);
            let distances = u.iter().map(|u| (u - lif.neuron.v_th).abs());
            margin = distances.fold(margin, f32::min);
        }
        margin
    }

    /// Draws the dropout masks of time step t of a batch, each by its own key.
    pub fn draw_masks(&self, kernels: &mut dyn Kernels, batch: u64, t: usize) {
        for (layer, (_, dropout)) in self.dropouts.iter().enumerate() {
            let words = [self.plan.settings.seed, batch, t as u64, layer as u64];
            let mix = synfire_shared::random::mix;
            let key = words.iter().fold(0, |key, &word| mix(key ^ mix(word)));
            kernels.dropout_mask(dropout, t, key);
        }
    }

    /// Algorithm 1, lines 1 to 9: every layer at time step t. At t = 0 states are u = s = 0
    /// (section 3.3).
    ///
    /// Norms take their statistics over what this rank has; see [`Network::forward_across`].
    pub fn forward(&mut self, kernels: &mut dyn Kernels, t: usize, phase: Phase) {
        self.forward_across(kernels, t, phase, &mut |_, _| {});
    }

    /// [`Network::forward`] of one of several ranks.
    ///
    /// `pool` puts in the place of numbers their mean over ranks, each weighted by its share of the
    /// samples. It is called in training for each synchronised norm, in the same order and with as
    /// many numbers on every rank; never for others. Whoever passes it keeps its errors.
    pub fn forward_across(
        &mut self,
        kernels: &mut dyn Kernels,
        t: usize,
        phase: Phase,
        pool: Pool<'_>,
    ) {
        for (index, stage) in self.plan.stages.iter().enumerate() {
            let work = match stage {
                Stage::NormLif { .. } | Stage::Residual { .. } => Work::NormAndNeuron,
                Stage::Conv { .. }
                | Stage::Pool { .. }
                | Stage::Flatten { .. }
                | Stage::Dropout { .. } => Work::Forward,
            };
            let buffer = |value: &ValueId| self.plan.buffer(*value);
            if let (Some(layer), Phase::Train) = (norms::synchronised(stage), phase) {
                self.profile.timed(kernels, index, work, |kernels| {
                    kernels.norm_moments(layer, t);
                });
                pool(kernels, norms::moments(layer));
            }
            self.profile
                .timed(kernels, index, work, |kernels| match stage {
                    Stage::Conv { conv, x, y } => {
                        kernels.conv_forward(conv, t, buffer(x), buffer(y));
                    }
                    Stage::NormLif { layer, .. } => kernels.norm_lif_forward(layer, t, phase),
                    Stage::Pool { pool, x, y } => {
                        kernels.pool_forward(pool, t, buffer(x), buffer(y));
                    }
                    Stage::Flatten { input, x, y } => {
                        let samples = self.plan.settings.samples;
                        kernels.flatten_forward(samples, *input, t, buffer(x), buffer(y));
                    }
                    Stage::Dropout { dropout, x, y } => {
                        kernels.dropout_forward(dropout, t, phase, buffer(x), buffer(y));
                    }
                    Stage::Residual { residual, .. } => kernels.residual_forward(residual, t),
                });
        }
    }

    /// Algorithm 1, line 11: the loss of time step t and, in training, its error at the logits.
    pub fn loss(&mut self, kernels: &mut dyn Kernels, loss: &Loss, t: usize, phase: Phase) {
        let logits = self.plan.buffer(self.plan.output);
        let error = match phase {
            Phase::Train => self.plan.errors[self.plan.output.0],
            Phase::Evaluate => None,
        };
        let row = self.plan.stages.len();
        self.profile.timed(kernels, row, Work::Loss, |kernels| {
            kernels.loss(loss, t, logits, error);
        });
    }

    /// Copies the logits of the newest time step: `[N, K]`.
    pub fn read_logits(&self, kernels: &mut dyn Kernels, t: usize, logits: &mut [f32]) {
        kernels.read(self.plan.buffer(self.plan.output), t, logits);
    }

    /// Algorithm 1, lines 12 to 20: sends the errors at the logits of `seeded` down through all
    /// layers and the whole window, and writes the gradients, summed over the window.
    ///
    /// `ready` is told of each range of [`Arena::Gradients`] as soon as it is final, in the order of
    /// the arena; nothing below reads those weights any more, so they may be updated at once.
    pub fn backward(
        &mut self,
        kernels: &mut dyn Kernels,
        window: Window,
        seeded: Window,
        ready: &mut dyn FnMut(&mut dyn Kernels, &mut Profile, Span),
    ) {
        self.backward_across(kernels, window, seeded, &mut |_, _| {}, ready);
    }

    /// [`Network::backward`] of one of several ranks; `pool` as in [`Network::forward_across`]. The
    /// gradients are of this rank's share, those of synchronised norms too.
    pub fn backward_across(
        &mut self,
        kernels: &mut dyn Kernels,
        window: Window,
        seeded: Window,
        pool: Pool<'_>,
        ready: &mut dyn FnMut(&mut dyn Kernels, &mut Profile, Span),
    ) {
        self.arrived.fill(None);
        self.arrived[self.plan.output.0] = Some(seeded);
        for index in (0..self.plan.stages.len()).rev() {
            self.stage_backward(kernels, index, window, pool);
            if let Some(span) = self.trained(index) {
                ready(kernels, &mut self.profile, span);
            }
        }
    }

    /// The range of the arenas that a stage trains.
    fn trained(&self, stage: usize) -> Option<Span> {
        match &self.plan.stages[stage] {
            Stage::Conv { conv, .. } => Some(conv.weight.up_to(conv.bias.unwrap_or(conv.weight))),
            Stage::NormLif { layer, .. } => layer.norm.map(|n| n.gamma.up_to(n.beta)),
            Stage::Pool { .. }
            | Stage::Flatten { .. }
            | Stage::Dropout { .. }
            | Stage::Residual { .. } => None,
        }
    }

    fn stage_backward(
        &mut self,
        kernels: &mut dyn Kernels,
        index: usize,
        window: Window,
        pool: Pool<'_>,
    ) {
        // The stage is copied out (it is a few words) so that bookkeeping may borrow `self`.
        let stage = self.plan.stages[index];
        match &stage {
            Stage::Conv { conv, x, y } => {
                let Some(dy) = self.errors(*y) else { return };
                let saved = self.plan.buffer(*x);
                let work = Work::WeightGradient;
                self.profile.timed(kernels, index, work, |kernels| {
                    kernels.conv_weight_gradient(conv, saved, dy);
                });
                if let Some(dx) = self.target(kernels, *x, dy.steps) {
                    let work = Work::DataGradient;
                    self.profile.timed(kernels, index, work, |kernels| {
                        kernels.conv_data_gradient(conv, dy, dx);
                    });
                }
            }
            Stage::NormLif { layer, chain } => {
                let (out, y) = (
                    chain.out.and_then(|v| self.errors(v)),
                    chain.y.and_then(|v| self.errors(v)),
                );
                // Line 17: through u the error reaches the whole window.
                let steps = match (out, y) {
                    (Some(_), _) => window,
                    (None, Some(y)) => y.steps,
                    (None, None) => return,
                };
                let mut to = |value: Option<ValueId>, steps: Window| {
                    value.and_then(|v| self.target(kernels, v, steps))
                };
                let errors = NormLifErrors {
                    out,
                    y,
                    after: out.and_then(|out| to(chain.after, out.steps)),
                    before: to(chain.before, steps),
                    z: to(Some(chain.z), steps),
                };
                let work = Work::NormAndNeuronBackward;
                self.profile.timed(kernels, index, work, |kernels| {
                    kernels.norm_lif_backward(layer, window, &errors);
                });
                if let (Some(layer), Some(dz)) = (norms::synchronised(&stage), errors.z) {
                    self.finish_norm(kernels, index, (layer, steps, dz), pool);
                }
            }
            Stage::Residual { residual, a, b, y } => {
                let Some(dy) = self.errors(*y) else { return };
                let da = self.target(kernels, *a, dy.steps);
                let db = self.target(kernels, *b, dy.steps);
                let work = Work::NormAndNeuronBackward;
                self.profile.timed(kernels, index, work, |kernels| {
                    kernels.residual_backward(residual, dy, da, db);
                });
            }
            Stage::Pool { x, y, .. }
            | Stage::Flatten { x, y, .. }
            | Stage::Dropout { x, y, .. } => {
                self.hand_down(kernels, index, (*x, *y));
            }
        }
    }

    /// The backward of a stage without anything to train: from the errors of y to those of x.
    fn hand_down(&mut self, kernels: &mut dyn Kernels, index: usize, (x, y): (ValueId, ValueId)) {
        let Some(dy) = self.errors(y) else { return };
        let Some(dx) = self.target(kernels, x, dy.steps) else {
            return;
        };
        let samples = self.plan.settings.samples;
        let stage = self.plan.stages[index];
        self.profile
            .timed(kernels, index, Work::DataGradient, |kernels| match &stage {
                Stage::Pool { pool, .. } => kernels.pool_backward(pool, dy, dx),
                Stage::Flatten { input, .. } => {
                    kernels.flatten_backward(samples, *input, dy, dx);
                }
                Stage::Dropout { dropout, .. } => kernels.dropout_backward(dropout, dy, dx),
                Stage::Conv { .. } | Stage::NormLif { .. } | Stage::Residual { .. } => {}
            });
    }

    /// What has arrived at a value.
    fn errors(&self, value: ValueId) -> Option<Errors> {
        let (buffer, steps) = (self.plan.errors[value.0]?, self.arrived[value.0]?);
        Some(Errors { buffer, steps })
    }

    /// Where a reader of `value` puts its error for `steps`, if anybody below needs it.
    fn target(
        &mut self,
        kernels: &mut dyn Kernels,
        value: ValueId,
        steps: Window,
    ) -> Option<ErrorsOut> {
        let buffer = self.plan.errors[value.0]?;
        let before = self.arrived[value.0];
        let Some(before) = before else {
            self.arrived[value.0] = Some(steps);
            return Some(ErrorsOut {
                buffer,
                accumulate: false,
            });
        };
        // An earlier reader handed down fewer steps than this one does: the others start at 0.
        for t in steps.newest_first().skip(before.len) {
            let shape = self.shape(value);
            kernels.zero(buffer, self.plan.settings.samples, shape, t);
        }
        if steps.len > before.len {
            self.arrived[value.0] = Some(steps);
        }
        Some(ErrorsOut {
            buffer,
            accumulate: true,
        })
    }

    fn shape(&self, value: ValueId) -> Shape {
        self.plan.shapes[value.0]
    }

    /// Updates one range of the weights (Algorithm 1, line 21).
    pub fn update(kernels: &mut dyn Kernels, profile: &mut Profile, span: Span, step: Step) {
        let row = profile.rows().len().saturating_sub(1);
        profile.timed(kernels, row, Work::Update, |kernels| {
            kernels.update(span, step);
        });
    }

    /// Bytes of the buffers with this role.
    pub fn bytes(&self, kernels: &dyn Kernels, role: Role) -> u64 {
        let buffers = self.plan.buffers.iter().filter(|b| b.role == role);
        buffers.map(|b| kernels.bytes(&b.spec)).sum()
    }

    /// Bytes of all buffers and arenas: what the device holds, but for scratch of its kernels.
    pub fn device_bytes(&self, kernels: &dyn Kernels) -> u64 {
        let buffers = self.plan.buffers.iter().map(|b| kernels.bytes(&b.spec));
        self.arenas.bytes() + buffers.sum::<u64>()
    }

    /// Whether all weights and running statistics are finite. Waits.
    pub fn is_finite(&self, kernels: &mut dyn Kernels) -> bool {
        let layout = &self.plan.layout;
        let all = |len| Span { offset: 0, len };
        kernels.arena_is_finite(Arena::Weights, all(layout.len()))
            && kernels.arena_is_finite(Arena::Statistics, all(layout.statistics_len()))
    }

    /// Where something that is not finite first appears at time step t, going forward: the name of
    /// a stage and what of it.
    pub fn first_non_finite(&self, kernels: &mut dyn Kernels, t: usize) -> Option<String> {
        if !kernels.is_finite(self.plan.buffer(ValueId(0)), t) {
            return Some("the input".into());
        }
        for (index, stage) in self.plan.stages.iter().enumerate() {
            let name = &self.plan.stage_names[index];
            if let Some(span) = self.trained(index)
                && !kernels.arena_is_finite(Arena::Weights, span)
            {
                return Some(format!("the weights of {name}"));
            }
            let potentials = match stage {
                Stage::NormLif { layer, .. } => layer.lif.map(|l| l.u),
                Stage::Conv { .. }
                | Stage::Pool { .. }
                | Stage::Flatten { .. }
                | Stage::Dropout { .. }
                | Stage::Residual { .. } => None,
            };
            let outputs = stage.outputs().filter_map(|v| self.plan.values[v.0]);
            for buffer in outputs.chain(potentials) {
                if !kernels.is_finite(buffer, t) {
                    return Some(format!("the output of {name}"));
                }
            }
        }
        None
    }
}

/// Turns the plan's handles, which count from 0, into those that the back end gave.
fn rename(plan: &mut Plan, handles: &[Buffer]) {
    let of = |buffer: &mut Buffer| *buffer = handles[buffer.0 as usize];
    for buffer in plan.values.iter_mut().chain(&mut plan.errors).flatten() {
        of(buffer);
    }
    for stage in &mut plan.stages {
        match stage {
            Stage::Conv { .. } | Stage::Flatten { .. } => {}
            Stage::NormLif { layer, .. } => {
                of(&mut layer.z);
                let optional = [
                    &mut layer.before,
                    &mut layer.y,
                    &mut layer.after,
                    &mut layer.out,
                ];
                optional.into_iter().flatten().for_each(of);
                if let Some(norm) = &mut layer.norm {
                    of(&mut norm.moments);
                    norm.sums.iter_mut().for_each(of);
                }
                layer.lif.iter_mut().for_each(|l| of(&mut l.u));
            }
            Stage::Pool { pool, .. } => {
                if let crate::kernel::PoolKind::Max { argmax, .. } = &mut pool.kind {
                    of(argmax);
                }
            }
            Stage::Dropout { dropout, .. } => of(&mut dropout.mask),
            Stage::Residual { residual, .. } => {
                for buffer in [&mut residual.a, &mut residual.b, &mut residual.y] {
                    of(buffer);
                }
            }
        }
    }
}
