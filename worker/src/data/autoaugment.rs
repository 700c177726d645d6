//! AutoAugment with the policy that was found for ImageNet (Cubuk, Zoph, Mané, Vasudevan and Le,
//! 2019, <https://arxiv.org/abs/1805.09501>).
//!
//! One of 25 sub-policies is drawn; each of its two steps then happens with its own probability.
//! Policy, magnitudes and pixels are torchvision's on pictures of Pillow: nearest pixels, black
//! where there is none.
//!
//! # Layout
//!
//! - [`operation`]: the fourteen operations, on pixels.

pub mod operation;

use synfire_shared::ids::Epoch;
use synfire_shared::random::{Purpose, below, keyed, unit};

pub use operation::Operation;
use operation::Size;

/// Number of magnitudes that a policy chooses from.
pub const NUM_MAGNITUDES: usize = 10;

/// The kind of an operation, before it has a magnitude.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the paper's names, explained at Operation")]
pub enum Kind {
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
    Invert,
}

/// Half of a sub-policy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// What is done.
    pub kind: Kind,
    /// How often it is done.
    pub probability: f64,
    /// Which of the [`NUM_MAGNITUDES`] magnitudes it has; 0 where there is none to choose.
    pub magnitude: usize,
}

const fn step(kind: Kind, probability: f64, magnitude: usize) -> Step {
    Step {
        kind,
        probability,
        magnitude,
    }
}

/// The sub-policies for ImageNet, each equally likely; some occur twice.
///
/// # Source
///
/// The paper's table 9, in the order and with the magnitudes of torchvision's
/// `AutoAugmentPolicy.IMAGENET`.
pub const POLICY: [[Step; 2]; 25] = {
    use Kind::{
        AutoContrast, Color, Contrast, Equalize, Invert, Posterize, Rotate, Sharpness, ShearX,
        Solarize,
    };
    [
        [step(Posterize, 0.4, 8), step(Rotate, 0.6, 9)],
        [step(Solarize, 0.6, 5), step(AutoContrast, 0.6, 0)],
        [step(Equalize, 0.8, 0), step(Equalize, 0.6, 0)],
        [step(Posterize, 0.6, 7), step(Posterize, 0.6, 6)],
        [step(Equalize, 0.4, 0), step(Solarize, 0.2, 4)],
        [step(Equalize, 0.4, 0), step(Rotate, 0.8, 8)],
        [step(Solarize, 0.6, 3), step(Equalize, 0.6, 0)],
        [step(Posterize, 0.8, 5), step(Equalize, 1.0, 0)],
        [step(Rotate, 0.2, 3), step(Solarize, 0.6, 8)],
        [step(Equalize, 0.6, 0), step(Posterize, 0.4, 6)],
        [step(Rotate, 0.8, 8), step(Color, 0.4, 0)],
        [step(Rotate, 0.4, 9), step(Equalize, 0.6, 0)],
        [step(Equalize, 0.0, 0), step(Equalize, 0.8, 0)],
        [step(Invert, 0.6, 0), step(Equalize, 1.0, 0)],
        [step(Color, 0.6, 4), step(Contrast, 1.0, 8)],
        [step(Rotate, 0.8, 8), step(Color, 1.0, 2)],
        [step(Color, 0.8, 8), step(Solarize, 0.8, 7)],
        [step(Sharpness, 0.4, 7), step(Invert, 0.6, 0)],
        [step(ShearX, 0.6, 5), step(Equalize, 1.0, 0)],
        [step(Color, 0.4, 0), step(Equalize, 0.6, 0)],
        [step(Equalize, 0.4, 0), step(Solarize, 0.2, 4)],
        [step(Solarize, 0.6, 5), step(AutoContrast, 0.6, 0)],
        [step(Invert, 0.6, 0), step(Equalize, 1.0, 0)],
        [step(Color, 0.6, 4), step(Contrast, 1.0, 8)],
        [step(Equalize, 0.8, 0), step(Equalize, 0.6, 0)],
    ]
};

/// Everything that chance decides about one picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draws {
    /// The sub-policy, an index into [`POLICY`].
    pub sub_policy: usize,
    /// Whether each of its steps happens.
    pub happens: [bool; 2],
    /// Whether the magnitude of each is negative, where it has a sign.
    pub negative: [bool; 2],
}

impl Draws {
    /// The draws of one sample in one epoch, from a stream of their own.
    ///
    /// Their order: the sub-policy; whether its first step happens, and its sign; the same of the
    /// second. All five are drawn, whether or not they are used.
    pub fn new(seed: u64, epoch: Epoch, sample: u32) -> Self {
        let words = [u64::from(epoch.0), u64::from(sample)];
        let mut rng = keyed(seed, Purpose::AutoAugment, &words);
        let sub_policy = below(&mut rng, 25) as usize;
        let (mut happens, mut negative) = ([false; 2], [false; 2]);
        for (index, step) in POLICY[sub_policy].iter().enumerate() {
            happens[index] = unit(&mut rng) < step.probability;
            negative[index] = below(&mut rng, 2) == 1;
        }
        Self {
            sub_policy,
            happens,
            negative,
        }
    }

    /// Does what was drawn to a picture; `scratch` is memory to use again.
    ///
    /// # Shapes
    ///
    /// `pixels_hwc`: `[H, W, 3]`
    ///
    /// # Panics
    ///
    /// When `pixels_hwc` has not its shape.
    pub fn apply(&self, pixels_hwc: &mut [u8], size: Size, scratch: &mut Vec<u8>) {
        for (index, step) in POLICY[self.sub_policy].iter().enumerate() {
            if self.happens[index] {
                let operation =
                    Operation::new(step.kind, step.magnitude, self.negative[index], size);
                operation.apply(pixels_hwc, size, scratch);
            }
        }
    }
}

#[cfg(test)]
mod tests;
