//! The arguments that describe a model by name.

use crate::graph::models::{ModelName, ModelOptions, Stem};
use crate::shape::{Join, Shape};
use clap::ValueEnum;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StemArgument {
    Cifar,
    Imagenet,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum NormArgument {
    Batch,
    None,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum JoinArgument {
    Add,
    And,
    Iand,
}

/// Options of a model; what is left out is the model's usual.
#[derive(Debug, clap::Args)]
pub(super) struct ModelArguments {
    /// The shape of an input: channels x height x width
    #[arg(long, value_name = "CxHxW", value_parser = shape)]
    input: Option<Shape>,
    /// Classes
    #[arg(long, value_name = "K")]
    classes: Option<usize>,
    /// Multiplier of the numbers of channels
    #[arg(long, default_value_t = 1.0, value_parser = width)]
    width: f64,
    /// The stem of an MS-ResNet
    #[arg(long, value_enum)]
    stem: Option<StemArgument>,
    /// Batch norm of an MS-ResNet
    #[arg(long, value_enum)]
    norm: Option<NormArgument>,
    /// How a SEW-ResNet joins a block with its shortcut
    #[arg(long, value_enum)]
    residual: Option<JoinArgument>,
    /// Dropout of a VGG
    #[arg(long, default_value_t = 0.0)]
    dropout: f32,
}

impl ModelArguments {
    pub(super) fn options(&self, name: ModelName) -> ModelOptions {
        let mut options = ModelOptions::new(name);
        if let Some(StemArgument::Imagenet) = self.stem
            && options.stem == Stem::Cifar
        {
            // The stem's pictures and classes come with it.
            options.input = Shape::new(224, 224, 3);
            options.classes = 1000;
        }
        options.input = self.input.unwrap_or(options.input);
        options.classes = self.classes.unwrap_or(options.classes);
        options.width = self.width;
        options.dropout = self.dropout;
        if let Some(stem) = self.stem {
            options.stem = match stem {
                StemArgument::Cifar => Stem::Cifar,
                StemArgument::Imagenet => Stem::Imagenet,
            };
        }
        if let Some(norm) = self.norm {
            options.batch_norm = match norm {
                NormArgument::Batch => true,
                NormArgument::None => false,
            };
        }
        if let Some(join) = self.residual {
            options.join = match join {
                JoinArgument::Add => Join::Add,
                JoinArgument::And => Join::And,
                JoinArgument::Iand => Join::Iand,
            };
        }
        options
    }
}

/// `3x224x224` as PyTorch writes a picture; a number alone is a vector.
fn shape(text: &str) -> Result<Shape, String> {
    let sides: Result<Vec<usize>, _> = text.split('x').map(str::parse).collect();
    match sides.as_deref() {
        Ok(&[c]) if c > 0 => Ok(Shape::vector(c)),
        Ok(&[c, h, w]) if c > 0 && h > 0 && w > 0 => Ok(Shape::new(h, w, c)),
        _ => Err("write channels, height and width: 3x224x224".into()),
    }
}

/// The same range as in a configuration.
fn width(text: &str) -> Result<f64, String> {
    let width: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if width > 0.0 && width <= 4.0 {
        Ok(width)
    } else {
        Err("it must be more than 0 and at most 4".into())
    }
}

/// A model's name for clap.
pub(super) fn name(text: &str) -> Result<ModelName, String> {
    text.parse().map_err(|error| format!("{error}"))
}

/// Every name, for help.
pub(super) const NAMES: &str = "small, ms_resnet18, ms_resnet34, sew_resnet18, sew_resnet34, vgg11";
