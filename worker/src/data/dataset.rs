//! A data set in memory.

use std::ops::Range;

use synfire_shared::checkpoint::Digest;

/// A set of labelled images, all of one size, in a training and a test part.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// The images to learn from.
    pub train: Split,
    /// The images to be judged on; may be empty.
    pub test: Split,
    /// K, the number of classes; every label is below it.
    pub classes: usize,
    /// The classes' names, K of them.
    pub class_names: Vec<String>,
    /// H, the rows of an image.
    pub height: usize,
    /// W, the columns of an image.
    pub width: usize,
    /// C, the channels of a pixel.
    pub channels: usize,
    /// How bytes become numbers of mean about 0 and deviation about 1.
    pub normalise: Normalise,
    /// The set's name in reports.
    pub name: String,
}

impl Dataset {
    /// H, W and C of every image.
    pub fn shape(&self) -> Shape {
        Shape {
            height: self.height,
            width: self.width,
            channels: self.channels,
        }
    }

    /// The digest of all that training sees of it: sizes, classes, normalisation, training images
    /// and their labels.
    pub fn fingerprint(&self) -> Digest {
        let Self {
            height,
            width,
            channels,
            classes,
            ..
        } = *self;
        // The number rises when the same images come in another order.
        let sizes = format!(
            "2 {height} {width} {channels} {classes} {:?}",
            self.normalise
        );
        let labels: Vec<u8> = self
            .train
            .labels
            .iter()
            .flat_map(|l| l.to_le_bytes())
            .collect();
        Digest::of_all(&[sizes.as_bytes(), &labels, &self.train.pixels])
    }

    /// # Panics
    ///
    /// When the parts do not fit each other: readers guarantee that they do.
    pub(crate) fn assert_consistent(&self) {
        assert!(
            self.shape().image_len() > 0,
            "{}: an image has pixels",
            self.name
        );
        for split in [&self.train, &self.test] {
            assert_eq!(
                split.pixels.len(),
                split.len() * self.shape().image_len(),
                "{}: pixels and labels must be of the same images",
                self.name
            );
            assert!(
                split
                    .labels
                    .iter()
                    .all(|&label| (label as usize) < self.classes),
                "{}: every label must be below {}",
                self.name,
                self.classes
            );
        }
        assert_eq!(
            self.class_names.len(),
            self.classes,
            "{}: a name for each class",
            self.name
        );
        assert_eq!(
            self.normalise.mean.len(),
            self.channels,
            "{}: a mean for each channel",
            self.name
        );
        assert_eq!(
            self.normalise.std.len(),
            self.channels,
            "{}: a deviation for each channel",
            self.name
        );
    }
}

/// Rows, columns and channels of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// H, the rows.
    pub height: usize,
    /// W, the columns.
    pub width: usize,
    /// C, the channels.
    pub channels: usize,
}

impl Shape {
    /// The number of bytes of an image, H W C.
    pub fn image_len(self) -> usize {
        self.height * self.width * self.channels
    }
}

/// One part of a data set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    /// The images one after another.
    ///
    /// # Shapes
    ///
    /// `[N, H, W, C]`
    pub pixels: Vec<u8>,
    /// The class of each image.
    ///
    /// # Shapes
    ///
    /// `[N]`
    pub labels: Vec<u32>,
}

impl Split {
    /// N, the number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The pixels of image `index`.
    ///
    /// # Shapes
    ///
    /// `[H, W, C]`
    ///
    /// # Panics
    ///
    /// When `index` is not below [`Split::len`].
    pub fn image(&self, index: usize) -> &[u8] {
        assert!(index < self.len(), "image {index} of {}", self.len());
        let image_len = self.pixels.len() / self.len();
        let place: Range<usize> = index * image_len..(index + 1) * image_len;
        &self.pixels[place]
    }
}

/// The mean and the standard deviation of each channel, of pixels scaled to 0..=1.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalise {
    /// # Shapes
    ///
    /// `[C]`
    pub mean: Vec<f32>,
    /// # Shapes
    ///
    /// `[C]`, each above 0.
    pub std: Vec<f32>,
}

impl Normalise {
    /// (byte / 255 - mean) / std of every byte, for each channel.
    ///
    /// # Shapes
    ///
    /// `[C]` tables of `[256]`.
    pub fn tables(&self) -> Vec<[f32; 256]> {
        let table = |(&mean, &std): (&f32, &f32)| {
            std::array::from_fn(|byte| (byte as f32 / 255.0 - mean) / std)
        };
        self.mean.iter().zip(&self.std).map(table).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_its_own_slice_of_the_pixels() {
        let split = Split {
            pixels: (0..12).collect(),
            labels: vec![0, 1, 0],
        };
        assert_eq!(split.image(0), [0, 1, 2, 3]);
        assert_eq!(split.image(2), [8, 9, 10, 11]);
    }

    #[test]
    fn normalising_is_scale_then_shift_then_divide_in_each_channel() {
        let normalise = Normalise {
            mean: vec![0.5, 0.0],
            std: vec![0.25, 1.0],
        };
        let tables = normalise.tables();
        // 0, 1 and 51/255 = 0.2: the first two are exact, the third within one rounding of each
        // operation.
        assert_eq!((tables[0][0], tables[0][255]), (-2.0, 2.0));
        assert!((tables[0][51] + 1.2).abs() < 1e-6);
        assert_eq!((tables[1][0], tables[1][255]), (0.0, 1.0));
    }

    #[test]
    #[should_panic(expected = "every label must be below 2")]
    fn a_label_beyond_the_classes_is_caught() {
        let split = Split {
            pixels: vec![0],
            labels: vec![2],
        };
        Dataset {
            train: split,
            test: Split::default(),
            classes: 2,
            class_names: vec!["a".into(), "b".into()],
            height: 1,
            width: 1,
            channels: 1,
            normalise: Normalise {
                mean: vec![0.0],
                std: vec![1.0],
            },
            name: "made".into(),
        }
        .assert_consistent();
    }
}
