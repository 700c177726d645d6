//! The loop over epochs and batches.

use super::evaluate::{EvaluateError, Tested, evaluate};
use super::event::{EpochRecord, Event, Progress, Timing};
use super::pictures::{self, Changes};
use super::pulse::{Beat, Phase, Pulse};
use super::saving::{Counted, Kept, Saving};
use super::{Tally, TrainError, group};
use crate::data::{BadSample, Next, Place, Prefetch, Source};
use crate::kernel::Report;
use crate::learn::exchange::Exchange;
use crate::learn::{Batch, Fault, LearnError, Masks, Unobserved};
use crate::node::Node;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use synfire_shared::checkpoint::Position;
use synfire_shared::ids::Epoch;
use synfire_shared::run::Run;

/// Batches between two readings of the device's sums.
const REPORT_EVERY: usize = 8;

/// A run under way.
pub(super) struct Training<'a> {
    run: &'a Run,
    source: Source,
    prefetch: Prefetch,
    changes: Changes,
    saving: Saving,
    pulse: Arc<Pulse>,
    batches_done: u64,
    batches_in_all: u64,
    /// Whether a signal ended an epoch before its end.
    is_cut: bool,
    /// A signal that any rank was given during a test.
    stopped_in_test: Option<usize>,
    /// Samples that could not be used, not yet told to rank 0.
    bad: Vec<BadSample>,
    /// Seconds of the slowest time step of any rank so far, without waits for others.
    slowest_step: f64,
}

impl<'a> Training<'a> {
    pub(super) fn new(run: &'a Run, source: Source, saving: Saving, pulse: Arc<Pulse>) -> Self {
        let position = saving.position;
        let batch_index =
            usize::try_from(position.batch).expect("it was checked to be in an epoch");
        let epoch = Epoch(position.epoch);
        let first = Place { epoch, batch_index };
        let whole = u64::from(run.epochs) * source.train_batches() as u64;
        Self {
            run,
            prefetch: source.train(first, Epoch(run.epochs)),
            changes: Changes::default(),
            source,
            saving,
            pulse,
            batches_done: position.batches_done,
            batches_in_all: run.max_batches.map_or(whole, |most| most.min(whole)),
            is_cut: false,
            stopped_in_test: None,
            bad: Vec::new(),
            slowest_step: 0.0,
        }
    }

    /// The signal that ended the run before its time.
    pub(super) fn stopped(&self, node: &Node) -> Option<usize> {
        let is_over = self.batches_done >= self.batches_in_all && !self.is_cut;
        self.signal(node).filter(|_| !is_over)
    }

    /// The signal that ends the run, if one came: one on which all ranks agree, where there are
    /// several.
    fn signal(&self, node: &Node) -> Option<usize> {
        match &node.learner.exchange {
            None => self.saving.stopped(),
            Some(exchange) => exchange.stopped().or(self.stopped_in_test),
        }
    }

    /// What was summed since this was last asked.
    fn report(node: &mut Node) -> Report {
        match &mut node.learner.exchange {
            None => node.kernels.take_report(),
            Some(exchange) => exchange.take_report(),
        }
    }

    /// Whether the batches so far may count: a device tells late of numbers that are not finite, and of
    /// its own end.
    fn vouch(node: &mut Node, (epoch, batch): (u32, usize)) -> Result<(), TrainError> {
        if let Some(what) = node.failure() {
            return Err(TrainError::Device { epoch, batch, what });
        }
        let mut fault = node.learner.check(&mut *node.kernels).err();
        // An update is looked at by the next time step, of which there is none: what all ranks have made of
        // it must be fit for a checkpoint.
        let is_shared = node.learner.exchange.is_some() && node.kernels.device_arenas().is_some();
        if fault.is_none() && is_shared && !node.learner.network.is_finite(&mut *node.kernels) {
            fault = Some(Fault {
                time_step: 0,
                place: "the weights or running statistics after an update of all ranks".into(),
            });
        }
        fault.map_or(Ok(()), |fault| {
            Err(TrainError::Fault {
                epoch,
                batch,
                fault,
            })
        })
    }

    /// Whether an epoch was learnt from, but not yet judged by the test set, when the run was saved.
    fn is_untested(&self) -> bool {
        self.saving.position.batch == self.source.train_batches() as u64
    }

    /// The epochs that are left, until the last or a signal.
    pub(super) fn epochs(
        &mut self,
        node: &mut Node,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Vec<EpochRecord>, TrainError> {
        let mut epochs = Vec::new();
        let Position { epoch, batch, .. } = self.saving.position;
        let mut batch = usize::try_from(batch).expect("it was checked to be in an epoch");
        let first = epoch;
        for epoch in epoch..self.run.epochs {
            let is_left = epoch == first && self.is_untested();
            if self.batches_done >= self.batches_in_all && !is_left {
                break;
            }
            if self.signal(node).is_some() {
                let place = (epoch, batch, self.batches_done);
                let counted = self.saving.take_counted();
                self.saving.stop(node, place, counted);
                self.is_cut = true;
                break;
            }
            let Some(record) = self.epoch(epoch, batch, node, tell)? else {
                self.is_cut = true;
                break;
            };
            tell(Event::Epoch(Box::new(record.clone())));
            batch = 0;
            epochs.push(record);
        }
        Ok(epochs)
    }

    /// One epoch from this batch on; nothing where a signal ended it.
    fn epoch(
        &mut self,
        epoch: u32,
        mut batch: usize,
        node: &mut Node,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Option<EpochRecord>, TrainError> {
        let lr = self.set_lr(node, epoch);
        let batches = self.source.train_batches();
        let (begin, waited) = (Instant::now(), self.prefetch.waited());
        let mut counted = self.saving.take_counted();
        let (seconds, data_wait_seconds) = (counted.seconds, counted.data_wait_seconds);
        let mut images_per_second = self.rate(batch, &counted);
        let mut timings = Vec::with_capacity(REPORT_EVERY);
        while batch < batches && self.batches_done < self.batches_in_all {
            match self.learn(node, epoch, batch, tell) {
                Ok(Some(timing)) => {
                    counted.exchange_wait_seconds += timing.exchange_wait_seconds;
                    counted.updates += timing.updates;
                    timings.push(timing);
                }
                other => {
                    counted.tally.add(&Self::report(node));
                    counted.seconds = seconds + begin.elapsed().as_secs_f64();
                    return self.give_up(node, (epoch, batch), counted, other.err());
                }
            }
            batch += 1;
            let last = batch == batches || self.batches_done == self.batches_in_all;
            let stops = !last && self.signal(node).is_some();
            let saves = !last && (stops || self.saving.is_due(self.batches_done));
            if batch.is_multiple_of(REPORT_EVERY) || last || saves {
                counted.tally.add(&Self::report(node));
                counted.seconds = seconds + begin.elapsed().as_secs_f64();
                let waited = self.prefetch.waited().saturating_sub(waited);
                counted.data_wait_seconds = data_wait_seconds + waited.as_secs_f64();
                images_per_second = self.rate(batch, &counted);
                if let Err(error) = Self::vouch(node, (epoch, batch - 1)) {
                    return self.give_up(node, (epoch, batch), counted, Some(error));
                }
                let loss = counted.tally.mean_loss();
                self.pulse.beat(|beat| beat.loss = loss);
                tell(Event::Progress(Progress {
                    epoch,
                    batch,
                    batches,
                    batches_done: self.batches_done,
                    batches_in_all: self.batches_in_all,
                    tally: counted.tally.clone(),
                    images_per_second,
                    lr,
                    timings: std::mem::take(&mut timings),
                }));
            }
            self.saving.attend(tell)?;
            let place = (epoch, batch, self.batches_done);
            if stops {
                // All ranks stop here.
                self.join_bad_samples(node, tell)?;
                self.saving.stop(node, place, counted);
                return Ok(None);
            }
            if saves {
                self.saving.save(node, place, counted.clone(), None);
            }
        }
        self.judge((epoch, batch, lr), (counted, images_per_second), node, tell)
    }

    /// Ends an epoch: with the test set, where it is due, and its record; nothing where a signal ended
    /// it.
    fn judge(
        &mut self,
        (epoch, batch, lr): (u32, usize, f64),
        (counted, images_per_second): (Counted, f64),
        node: &mut Node,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Option<EpochRecord>, TrainError> {
        self.join_bad_samples(node, tell)?;
        let ends = epoch + 1 == self.run.epochs || self.batches_done == self.batches_in_all;
        let evaluates = ends || (epoch + 1).is_multiple_of(self.run.evaluate_every);
        let mut test = None;
        if evaluates {
            match self.test(node, epoch, tell) {
                Ok(Some(tally)) => test = Some(tally),
                // Weights are as they were before the test: it comes again.
                other => return self.give_up(node, (epoch, batch), counted, other.err()),
            }
        }
        let record = EpochRecord {
            epoch,
            lr,
            train: counted.tally,
            test,
            train_seconds: counted.seconds,
            images_per_second,
            data_wait_seconds: counted.data_wait_seconds,
            exchange_wait_seconds: counted.exchange_wait_seconds,
            updates: counted.updates,
        };
        let next = self.next_place(epoch, batch);
        self.saving.end_of_epoch(node, &record, next, ends);
        // What could not be read of it any more was not saved either.
        match node.failure() {
            Some(what) => Err(TrainError::Device { epoch, batch, what }),
            None => Ok(Some(record)),
        }
    }

    /// Sets the learning rate of an epoch, and returns it.
    fn set_lr(&self, node: &mut Node, epoch: u32) -> f64 {
        let optimiser = &mut node.learner.optimiser;
        let base = optimiser.base_lr();
        let lr = self.run.schedule.lr(base, Epoch(epoch), self.run.epochs);
        optimiser.set_lr(lr);
        lr
    }

    /// Training images per second of so many batches of an epoch.
    fn rate(&self, batches: usize, counted: &Counted) -> f64 {
        let images = (batches * self.run.data.batch) as f64;
        if counted.seconds > 0.0 {
            images / counted.seconds
        } else {
            0.0
        }
    }

    /// Saves what was learnt before a signal, without an error, or before data gave out: the network
    /// is sound.
    fn give_up(
        &mut self,
        node: &mut Node,
        (epoch, batch): (u32, usize),
        counted: Counted,
        error: Option<TrainError>,
    ) -> Result<Option<EpochRecord>, TrainError> {
        if matches!(error, None | Some(TrainError::Data(_))) {
            Self::vouch(node, (epoch, batch.saturating_sub(1)))?;
            let place = (epoch, batch, self.batches_done);
            self.saving.stop(node, place, counted);
        }
        error.map_or(Ok(None), Err)
    }

    /// Waits for what is being written, whose failures are told, and gives why the run ends.
    pub(super) fn end(self, error: TrainError, tell: &mut dyn FnMut(Event)) -> TrainError {
        if let Err(more) = self.saving.finish(tell) {
            let more = more.to_string();
            // That another process has the folder may be why the run ends.
            if more != error.to_string() {
                tell(Event::Warning(more));
            }
        }
        error
    }

    /// Waits until all is written.
    pub(super) fn finish(self, tell: &mut dyn FnMut(Event)) -> Result<Option<Kept>, TrainError> {
        self.pulse.beat(|beat| beat.phase = Phase::Ending);
        self.saving.finish(tell)
    }

    /// Lists on rank 0 what other ranks could not use.
    fn join_bad_samples(
        &mut self,
        node: &mut Node,
        tell: &mut dyn FnMut(Event),
    ) -> Result<(), TrainError> {
        let Some(exchange) = &mut node.learner.exchange else {
            return Ok(());
        };
        let mine = std::mem::take(&mut self.bad);
        self.pulse
            .beat(|beat| (beat.phase, beat.waits) = (Phase::Ending, true));
        exchange.collective().set_deadline(group::STARTUP);
        let all = group::join_bad(exchange.collective(), &mine)?;
        let deadline = group::deadline(self.run, self.slowest_step);
        exchange.collective().set_deadline(deadline);
        self.pulse.beat(|beat| beat.waits = false);
        self.told_bad_samples(&all, mine.len(), tell);
        Ok(())
    }

    /// Lists all bad samples, and tells of those of other ranks on rank 0.
    fn told_bad_samples(&mut self, all: &[BadSample], mine: usize, tell: &mut dyn FnMut(Event)) {
        self.saving.list_bad_samples(all);
        // Rank 0's own come first, and were told of when they were met.
        if self.saving.is_recording() && all.len() > mine {
            tell(Event::BadSamples(all[mine..].to_vec()));
        }
    }

    /// The test set; nothing where a signal came.
    fn test(
        &mut self,
        node: &mut Node,
        epoch: u32,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Option<Tally>, TrainError> {
        let stop = self.saving.stop_flag();
        let stops = || stop.load(Ordering::Relaxed) != 0;
        let (saving, pulse) = (&mut self.saving, &self.pulse);
        let is_alone = node.learner.exchange.is_none();
        let mut bad_samples = Vec::new();
        let tested = evaluate(
            node,
            &self.source,
            self.run.time_steps,
            &stops,
            &mut |event| match event {
                Tested::Batch => pulse.beat(|beat| beat.phase = Phase::Testing),
                Tested::Bad(bad) => {
                    if is_alone {
                        saving.list_bad_samples(&bad);
                    } else {
                        bad_samples.extend(bad.iter().cloned());
                    }
                    tell(Event::BadSamples(bad));
                }
            },
        );
        let tested = tested.map_err(|error| match error {
            EvaluateError::Data(error) => error.into(),
            EvaluateError::Fault(fault) => TrainError::Evaluation { epoch, fault },
            EvaluateError::Device(what) => TrainError::Device {
                epoch,
                batch: self.source.train_batches().saturating_sub(1),
                what,
            },
        })?;
        let Some(exchange) = &mut node.learner.exchange else {
            return Ok(tested);
        };
        let (mine, signal) = (bad_samples.len(), stop.load(Ordering::Relaxed));
        self.pulse
            .beat(|beat| (beat.phase, beat.waits) = (Phase::Ending, true));
        let collective = exchange.collective();
        // Parts of the test set take their time.
        collective.set_deadline(group::STARTUP);
        let all = group::join_tests(collective, tested, signal, bad_samples)?;
        collective.set_deadline(group::deadline(self.run, self.slowest_step));
        self.pulse.beat(|beat| beat.waits = false);
        if all.tally.is_none() {
            self.stopped_in_test = all.stopped;
        }
        self.told_bad_samples(&all.bad, mine, tell);
        Ok(all.tally)
    }

    /// Where training goes on after this batch: a checkpoint never lies behind an epoch's last.
    fn next_place(&self, epoch: u32, batch: usize) -> (u32, usize, u64) {
        if batch == self.source.train_batches() {
            (epoch + 1, 0, self.batches_done)
        } else {
            (epoch, batch, self.batches_done)
        }
    }

    /// Learns from a batch; nothing where a signal came before its data did.
    fn learn(
        &mut self,
        node: &mut Node,
        epoch: u32,
        batch: usize,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Option<Timing>, TrainError> {
        let (asked, updates) = (Instant::now(), node.learner.optimiser.updates());
        // One of several ranks does not stop alone: the others would wait for it.
        let (saving, is_alone) = (&self.saving, node.learner.exchange.is_none());
        let stops = || is_alone && saving.stopped().is_some();
        let data = match self.prefetch.next_unless(&stops)? {
            Next::Batch(data) => data,
            Next::Stopped => return Ok(None),
            Next::End => unreachable!("the loop asks for as many batches as there are"),
        };
        let begin = Instant::now();
        if !data.bad.is_empty() {
            if is_alone {
                self.saving.list_bad_samples(&data.bad);
            } else {
                self.bad.extend(data.bad.iter().cloned());
            }
            tell(Event::BadSamples(data.bad.clone()));
        }
        let pictures = self.changes.of(data, self.source.info().shape);
        let learnt = Batch {
            index: self.batches_done,
            input: pictures::input(pictures.as_ref(), data),
            labels: &data.labels,
            num_time_steps: self.run.time_steps,
            masks: Masks::Keyed,
        };
        let (learner, algorithm) = (&mut node.learner, &mut node.algorithm);
        let mut result = Ok(());
        node.kernels.run(&mut |kernels| {
            result = algorithm.learn(learner, kernels, &learnt, &mut Unobserved);
        });
        self.batches_done += 1;
        let exchange = node.learner.exchange.as_mut();
        let waited = exchange.map_or(Duration::ZERO, Exchange::take_waited);
        let timing = Timing {
            batch_seconds: begin.elapsed().as_secs_f64(),
            data_wait_seconds: (begin - asked).as_secs_f64(),
            updates: node.learner.optimiser.updates() - updates,
            exchange_wait_seconds: waited.as_secs_f64(),
        };
        self.beat(node, (epoch, batch), timing);
        match result {
            Ok(()) => match node.failure() {
                // Of what it would still do nothing is done.
                Some(what) => Err(TrainError::Device { epoch, batch, what }),
                None => Ok(Some(timing)),
            },
            Err(LearnError::Ranks(error)) => match node.failure() {
                // What a device that has failed cannot average either.
                Some(what) => Err(TrainError::Device { epoch, batch, what }),
                None => Err(error.into()),
            },
            Err(LearnError::Fault(fault)) => match node.failure() {
                // What a device that has failed gives is no number of the network.
                Some(what) => Err(TrainError::Device { epoch, batch, what }),
                None => Err(TrainError::Fault {
                    epoch,
                    batch,
                    fault,
                }),
            },
        }
    }

    /// Shows that training goes on, and bounds the waits for other ranks by how slow it is.
    fn beat(&mut self, node: &mut Node, (epoch, batch): (u32, usize), timing: Timing) {
        let own = timing.batch_seconds - timing.exchange_wait_seconds;
        let step = own / self.run.time_steps as f64;
        let exchange = node.learner.exchange.as_mut();
        let slowest = exchange.map_or(step, |exchange| exchange.slowest_step(step));
        if slowest > self.slowest_step {
            self.slowest_step = slowest;
            if let Some(exchange) = &mut node.learner.exchange {
                let deadline = group::deadline(self.run, slowest);
                exchange.collective().set_deadline(deadline);
            }
        }
        let rate = self.run.data.batch as f64 / timing.batch_seconds.max(1e-9);
        self.pulse.beat(|beat| {
            *beat = Beat {
                phase: Phase::Training,
                epoch,
                batch: batch as u64 + 1,
                batches_done: self.batches_done,
                batches_in_all: self.batches_in_all,
                update: node.learner.optimiser.updates(),
                images_per_second: rate,
                slowest_step_seconds: self.slowest_step,
                waits: false,
                loss: beat.loss,
            }
        });
    }
}
