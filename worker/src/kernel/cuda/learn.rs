//! The loss, updates of the weights, and what the device counts until it is asked.

use super::arguments::{AdamW, LOSS_THREADS, LossOfBatch, LossOfSamples, Sgd, Update};
use super::device::{CudaError, Device, Later, Memory, Pointer};
use super::values::{Values, narrow};
use super::{CudaKernels, Purpose};
use crate::kernel::{Arena, Buffer, Loss, Report, Span, Step};

/// Time steps that are counted apart.
const STEPS: usize = 4096;
/// Layers of neurons that are counted apart.
const LAYERS: usize = 4096;
/// Bytes of `StepCounts`, `LayerCounts` and `Step` in kernels.
const STEP_BYTES: usize = 32;
const LAYER_BYTES: usize = 40;
const UPDATE_BYTES: u64 = 32;
/// The time step of no fault.
const NO_FAULT: u32 = u32::MAX;

/// What is counted on the device, and what kernels are told there.
#[derive(Debug)]
pub(super) struct Counters {
    /// A `StepCounts` per time step.
    steps: Memory,
    /// A `LayerCounts` per layer.
    layers: Memory,
    /// The kernels' `Watch`: the first time step with a number that is not finite, and the one that is computed.
    watch_words: Memory,
    /// Learning rate and all that: a `Step`.
    step: Memory,
    /// Per layer: its neurons, a byte for each that has spiked, and how many they are.
    alive: Vec<Option<(Memory, usize)>>,
    /// Labels, and how many samples have one.
    labels: Option<Memory>,
    num_labels: usize,
    /// Time steps that have been counted, at most.
    steps_seen: usize,
    layers_seen: usize,
    /// What the device was last told: the update, and the time step.
    told: Option<Step>,
    time: Option<usize>,
    pub(super) watch: Watch,
}

/// Looks for faults.
#[derive(Debug, Default)]
pub(super) struct Watch {
    found: Option<usize>,
    /// Whether it has been told.
    is_told: bool,
    /// The answer to a question of the batch before.
    answer: Option<Later>,
    /// Whether nobody may wait for the device inside a batch.
    pub(super) is_late: bool,
}

impl Watch {
    /// Whether there is a fault, as far as is known.
    pub(super) fn has_found(&self) -> bool {
        self.found.is_some()
    }
}

impl Counters {
    pub(super) fn new(device: &Device) -> Result<Self, CudaError> {
        let watch_words = device.allocate(256)?;
        device.write(watch_words.pointer(), &NO_FAULT.to_le_bytes());
        Ok(Self {
            steps: device.allocate((STEPS * STEP_BYTES) as u64)?,
            layers: device.allocate((LAYERS * LAYER_BYTES) as u64)?,
            watch_words,
            step: device.allocate(256)?,
            alive: Vec::new(),
            labels: None,
            num_labels: 0,
            steps_seen: 0,
            layers_seen: 0,
            told: None,
            time: None,
            watch: Watch::default(),
        })
    }

    /// What kernels take as their `Watch`; where only the fault is looked at, that is its first word.
    pub(super) fn watch_words(&self) -> Pointer {
        self.watch_words.pointer()
    }

    /// Where a layer of so many neurons is counted: which have spiked, and its sums.
    pub(super) fn alive(
        &mut self,
        device: &Device,
        layer: usize,
        neurons: usize,
    ) -> Result<[Pointer; 2], CudaError> {
        assert!(layer < LAYERS, "layers of neurons");
        if self.alive.len() <= layer {
            self.alive.resize_with(layer + 1, || None);
        }
        self.layers_seen = self.layers_seen.max(layer + 1);
        let room = &mut self.alive[layer];
        if room.as_ref().is_none_or(|(_, known)| *known != neurons) {
            *room = Some((device.allocate(neurons as u64)?, neurons));
        }
        let (alive, _) = room.as_ref().expect("allocated above");
        let counts = self.layers.pointer().offset((layer * LAYER_BYTES) as u64);
        Ok([alive.pointer(), counts])
    }
}

impl CudaKernels {
    /// Labels go to the device, with their number; and whether a batch before had a fault is asked.
    pub(super) fn begin_batch(&mut self, labels: &[u32]) {
        let bytes = 4 * (labels.len() + 1) as u64;
        let counters = &mut self.counters;
        counters.num_labels = labels.len();
        if counters
            .labels
            .as_ref()
            .is_none_or(|room| room.bytes() < bytes)
        {
            match self.device.allocate(bytes) {
                // Graphs have the address of the one before.
                Ok(memory) => self
                    .scratch
                    .outgrown
                    .extend(counters.labels.replace(memory)),
                Err(error) => {
                    self.fail(error);
                    self.lacks(bytes);
                    return;
                }
            }
        }
        let known = labels.iter().filter(|label| **label != u32::MAX).count();
        let words = labels.iter().copied().chain([narrow(known)]);
        let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        if let Some(room) = &counters.labels {
            self.device.write(room.pointer(), &bytes);
        }
        if self.counters.watch.is_late {
            // What is asked here covers the batch before; it is read when the next one begins, so the
            // host is never more than one batch ahead.
            let answer = self.counters.watch.answer.take();
            self.note_fault(answer);
            let question = self.device.read_later(self.counters.watch_words(), 4);
            self.counters.watch.answer = Some(question);
        }
    }

    fn note_fault(&mut self, answer: Option<Later>) {
        let Some(answer) = answer else { return };
        let bytes = answer.wait();
        self.note_fault_word(&bytes);
    }

    fn note_fault_word(&mut self, bytes: &[u8]) {
        // A device that has failed gives zeros.
        if self.has_failed() {
            return;
        }
        let Ok(bytes) = <[u8; 4]>::try_from(bytes) else {
            return;
        };
        let word = u32::from_le_bytes(bytes);
        if word != NO_FAULT {
            self.counters.watch.found.get_or_insert(word as usize);
        }
    }

    /// The first time step with a number that is not finite: of now, or of the batches before where
    /// time steps are replayed.
    pub(super) fn look_for_fault(&mut self) -> Option<usize> {
        if !self.counters.watch.is_late && self.failure.is_none() {
            let mut word = [0xff; 4];
            self.device.read(self.counters.watch_words(), &mut word);
            self.note_fault_word(&word);
        }
        let watch = &mut self.counters.watch;
        watch.is_told |= watch.found.is_some();
        watch.found
    }

    /// The loss of a time step, and its error at the logits.
    pub(super) fn loss_of_step(
        &mut self,
        loss: &Loss,
        t: usize,
        logits: Buffer,
        error: Option<Buffer>,
    ) {
        if self.is_in_vain() {
            return;
        }
        self.tell_time(t);
        let elements = loss.samples * loss.classes;
        assert_eq!(
            self.counters.num_labels, loss.samples,
            "labels of the batch"
        );
        let samples = loss.samples as u64;
        // One after the other: logits so far, which live as long as the batch; losses; hits.
        let numbers = 4 * (elements as u64 + 3 * samples);
        let so_far = self.scratch(Purpose::Loss, numbers);
        let losses = so_far.offset(4 * elements as u64);
        let hits = losses.offset(8 * samples);
        let Some(labels) = self.counters.labels.as_ref().map(Memory::pointer) else {
            return;
        };
        let error = match error {
            Some(buffer) => {
                self.rooms.becomes_f32(buffer);
                self.rooms.slot(buffer, elements, t)
            }
            None => Values::NONE,
        };
        let of_samples = LossOfSamples {
            logits: self.rooms.slot(logits, elements, t),
            error,
            so_far,
            labels,
            losses,
            hits,
            watch: self.counters.watch_words(),
            samples: narrow(loss.samples),
            classes: narrow(loss.classes),
            ce: loss.ce,
            mse: loss.mse,
        };
        self.launch_grid([of_samples.samples, 1, 1], LOSS_THREADS, &of_samples);
        let of_batch = LossOfBatch {
            losses,
            hits,
            labels,
            steps: self.counters.steps.pointer(),
            watch: self.counters.watch_words(),
            samples: of_samples.samples,
            classes: of_samples.classes,
            ce: loss.ce,
            mse: loss.mse,
        };
        self.launch_grid([1, 1, 1], LOSS_THREADS, &of_batch);
    }

    /// Tells the device which time step is computed, if it does not know: no kernel has t as an argument.
    pub(super) fn tell_time(&mut self, t: usize) {
        assert!(t < STEPS, "time steps of a batch");
        self.counters.steps_seen = self.counters.steps_seen.max(t + 1);
        if self.counters.time.replace(t) != Some(t) {
            let is_made = self.graphs.are_calls_made();
            assert!(is_made, "time step {t} is repeated as another one");
            // The second word of `Watch`.
            self.device
                .set_word(self.counters.watch_words().offset(4), narrow(t));
        }
    }

    /// Tells the device what the next updates are, if it does not know.
    pub(super) fn tell(&mut self, step: Step) {
        if self.counters.told == Some(step) {
            return;
        }
        self.counters.told = Some(step);
        let bytes: Vec<u8> = words(step)
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        debug_assert_eq!(bytes.len() as u64, UPDATE_BYTES);
        self.device.write(self.counters.step.pointer(), &bytes);
    }

    /// Updates a range of the weights.
    pub(super) fn update_range(&mut self, span: Span, step: Step) {
        let Some(arenas) = &self.arenas else { return };
        let at = |arena| arenas.pointer(arena, span.offset);
        let update = Update {
            weights: at(Arena::Weights),
            gradients: at(Arena::Gradients),
            state: at(Arena::State),
            second_state: at(Arena::SecondState),
            operands: arenas.operand_to_write(span.offset),
            step: self.counters.step.pointer(),
            fault: self.counters.watch_words(),
            elements: span.len as u64,
        };
        self.tell(step);
        match step {
            Step::Sgd { .. } => self.launch(update.elements, &Sgd(update)),
            Step::AdamW { .. } => self.launch(update.elements, &AdamW(update)),
        }
    }

    /// The sums since the last report; they start again from zero. Waits.
    pub(super) fn report_so_far(&mut self) -> Report {
        for layer in 0..self.counters.alive.len() {
            let Some((_, neurons)) = self.counters.alive[layer] else {
                continue;
            };
            if let Ok(places) = self.counters.alive(&self.device, layer, neurons) {
                self.count_silent(places, neurons);
            }
        }
        let mut report = Report::default();
        let steps = self.take_words(self.counters.steps.pointer(), self.counters.steps_seen, 4);
        for word in steps.chunks_exact(4) {
            report.loss.push(f64::from_bits(word[0]));
            report.correct.push(word[1]);
            report.samples.push(word[2]);
            report.batches.push(word[3]);
        }
        let layers = self.take_words(self.counters.layers.pointer(), self.counters.layers_seen, 5);
        for word in layers.chunks_exact(5) {
            report.spikes.push(word[0]);
            report.neurons.push(word[1]);
            report.silent.push(word[2]);
            report.observed.push(word[3]);
        }
        // Of nothing there is a report without time steps, not one with zeros.
        if report.batches.iter().all(|batches| *batches == 0) {
            let of_layers = report.clone();
            report = Report {
                spikes: of_layers.spikes,
                neurons: of_layers.neurons,
                silent: of_layers.silent,
                observed: of_layers.observed,
                ..Report::default()
            };
        }
        self.end_watch();
        report
    }

    /// A new report starts without a fault, unless there is one that nobody was told of yet.
    fn end_watch(&mut self) {
        self.counters.watch.answer = None;
        // What does not repeat time steps looks at once.
        self.counters.watch.is_late = false;
        if std::mem::take(&mut self.counters.watch.is_told) {
            self.counters.watch.found = None;
        } else if self.failure.is_none() {
            let mut word = [0xff; 4];
            self.device.read(self.counters.watch_words(), &mut word);
            self.note_fault_word(&word);
        }
        self.device
            .write(self.counters.watch_words(), &NO_FAULT.to_le_bytes());
    }

    /// Words of counts, which start again from zero.
    fn take_words(&self, from: Pointer, counts: usize, words: usize) -> Vec<u64> {
        let mut bytes = vec![0; counts * words * 8];
        if bytes.is_empty() || self.failure.is_some() {
            return Vec::new();
        }
        self.device.read(from, &mut bytes);
        self.device.zero(from, bytes.len() as u64);
        let words = bytes.as_chunks::<8>().0.iter();
        words.map(|word| u64::from_le_bytes(*word)).collect()
    }
}

/// A `Step` as kernels read it.
#[expect(clippy::cast_possible_truncation, reason = "a number in [0, 1]")]
fn words(step: Step) -> [f32; 8] {
    match step {
        Step::Sgd {
            lr,
            momentum,
            weight_decay,
        } => [lr, momentum, weight_decay, 0.0, 0.0, 0.0, 1.0, 1.0],
        Step::AdamW {
            lr,
            beta1,
            beta2,
            epsilon,
            weight_decay,
            update,
        } => {
            // The sum of the weights that a moment gives to the gradients so far.
            let of_past = |beta: f32| (1.0 - f64::from(beta).powf(update as f64)) as f32;
            let (first, second) = (of_past(beta1), of_past(beta2));
            [lr, 0.0, weight_decay, beta1, beta2, epsilon, first, second]
        }
    }
}
