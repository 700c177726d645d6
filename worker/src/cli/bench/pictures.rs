//! The pictures that are timed.

use super::Arguments;
use crate::data::{self, Augment, Loader};
use crate::graph::models::ModelOptions;
use crate::shape::Shape;
use std::sync::Arc;
use synfire_shared::random::{Purpose, below, keyed, normal};

/// The batches: fixed noise, or pictures one batch after the other.
pub(super) struct Pictures {
    pub(super) x_nhwc: Vec<f32>,
    pub(super) labels: Vec<u32>,
    loader: Option<Loader>,
}

impl Pictures {
    pub(super) fn new(arguments: &Arguments, options: &ModelOptions) -> anyhow::Result<Self> {
        let n = arguments.batch as usize;
        let mut pictures = Self {
            x_nhwc: vec![0.0; n * options.input.elements()],
            labels: vec![0; n],
            loader: None,
        };
        if let Some(path) = &arguments.images {
            let dataset = data::cifar::read(path)?;
            let shape = dataset.shape();
            let shape = Shape::new(shape.height, shape.width, shape.channels);
            anyhow::ensure!(
                shape == options.input && dataset.classes <= options.classes,
                "{} holds {shape} pictures of {} classes, {} takes {} and {}: set --input and \
                 --classes",
                path.display(),
                dataset.classes,
                options.name,
                options.input,
                options.classes,
            );
            let loader = Loader::new(Arc::new(dataset), Augment::None, arguments.seed, n);
            anyhow::ensure!(
                loader.train_batches() > 0,
                "{} holds fewer pictures than --batch",
                path.display()
            );
            pictures.loader = Some(loader);
            return Ok(pictures);
        }
        let mut draw = keyed(arguments.seed, Purpose::Augment, &[]);
        #[expect(clippy::cast_possible_truncation, reason = "noise is noise in f32 too")]
        pictures
            .x_nhwc
            .iter_mut()
            .for_each(|x| *x = normal(&mut draw) as f32);
        let classes = u32::try_from(options.classes)?;
        pictures
            .labels
            .iter_mut()
            .for_each(|label| *label = below(&mut draw, classes));
        Ok(pictures)
    }

    pub(super) fn next(&mut self, index: u64) {
        let Some(loader) = &self.loader else { return };
        let order = loader.order(synfire_shared::ids::Epoch(0));
        let batches = loader.train_batches() as u64;
        let index = usize::try_from(index % batches).expect("fewer batches than pictures");
        loader.fill_train(&order, index, &mut self.x_nhwc, &mut self.labels);
    }
}
