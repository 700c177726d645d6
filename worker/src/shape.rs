//! What the graph and the kernels call a value: its shape and what its numbers are.

use std::fmt;

/// The shape of one sample of a value, channels last. A vector of C features is `1x1xC`.
///
/// It prints as PyTorch users write it: channels, height, width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels, or the features of a vector.
    pub channels: usize,
}

impl Shape {
    /// A picture or a feature map.
    pub fn new(height: usize, width: usize, channels: usize) -> Self {
        Self {
            height,
            width,
            channels,
        }
    }

    /// A vector of `channels` features.
    pub fn vector(channels: usize) -> Self {
        Self::new(1, 1, channels)
    }

    /// Numbers in one sample.
    pub fn elements(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Pixels in one sample.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// Whether it is a vector.
    pub fn is_vector(&self) -> bool {
        self.height == 1 && self.width == 1
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.channels, self.height, self.width)
    }
}

/// What the numbers of a value are. How each is stored is the back end's affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// 0 or 1.
    Spikes,
    /// Small whole numbers: sums of spikes, as SEW-ResNet's ADD makes them.
    Counts,
    /// Any number.
    Real,
}

/// How a branch a and its shortcut b are joined (Fang et al., SEW-ResNet, NeurIPS 2021, table 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Join {
    /// a + b.
    Add,
    /// a b.
    And,
    /// (1 - a) b.
    Iand,
}
