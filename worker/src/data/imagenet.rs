//! ImageNet's transforms: a random crop and flip to learn from, perhaps AutoAugment, and the centre
//! to be judged on.
//!
//! Both resize as Pillow does, bilinear with antialiasing. What chance decides depends on (seed,
//! epoch, sample) and the picture's size alone.

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ImageView, ResizeAlg, ResizeOptions, Resizer};
use rand::Rng;
use synfire_shared::ids::Epoch;
use synfire_shared::random::{Purpose, below, keyed, uniform};

use super::augment;
use super::autoaugment::{self, operation::Size};
use super::dataset::Normalise;
use super::picture::{Picture, PictureError};
use super::raw::Out;

/// H and W of what the transforms make, unless [`Options`] say otherwise.
pub const SIDE: u32 = 224;
/// The most that a side of the result can be.
pub const LIMIT_SIDE: u32 = 1 << 12;
/// Tries of a random crop before the central one is taken.
const NUM_TRIES: usize = 10;
/// The part of the picture's area that a random crop has.
const AREA: (f64, f64) = (0.08, 1.0);
/// Its width over its height.
const RATIO: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);

/// Mean and deviation of ImageNet's channels.
pub fn normalise() -> Normalise {
    Normalise {
        mean: vec![0.485, 0.456, 0.406],
        std: vec![0.229, 0.224, 0.225],
    }
}

/// What of the transforms can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// H and W of the results, 1 to 4096. A test picture's short side becomes 256/224 of it.
    pub side: u32,
    /// Whether a training picture is flipped with probability 1/2.
    pub flip: bool,
    /// Whether a training picture goes through AutoAugment.
    pub auto_augment: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            side: SIDE,
            flip: true,
            auto_augment: false,
        }
    }
}

impl Options {
    /// The short side to which a test picture is resized before its centre is taken.
    fn short_side(self) -> u32 {
        // Rounded to the nearest, halves up.
        (self.side * 256 + 112) / 224
    }
}

/// A rectangle of pixels inside a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crop {
    /// Its first row.
    pub top: u32,
    /// Its first column.
    pub left: u32,
    /// Its rows, at least 1.
    pub height: u32,
    /// Its columns, at least 1.
    pub width: u32,
}

/// Everything that chance decides about one picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draws {
    /// The part of the picture that is seen.
    pub crop: Crop,
    /// Whether left and right are exchanged, where [`Options::flip`] is on.
    pub flip: bool,
}

impl Draws {
    /// The draws of a sample of `width` x `height` pixels, each at least 1, in one epoch: the flip,
    /// then the crop. They do not depend on [`Options`].
    pub fn new(width: u32, height: u32, seed: u64, epoch: Epoch, sample: u32) -> Self {
        let words = [u64::from(epoch.0), u64::from(sample)];
        let mut rng = keyed(seed, Purpose::Augment, &words);
        let flip = below(&mut rng, 2) == 1;
        let crop = random_crop(&mut rng, width, height);
        Self { crop, flip }
    }
}

/// The first of ten random rectangles that fits, at a random place; else the largest central one
/// whose ratio is allowed.
///
/// # Source
///
/// torchvision's `RandomResizedCrop.get_params`.
fn random_crop(rng: &mut impl Rng, width: u32, height: u32) -> Crop {
    let num_pixels = f64::from(width) * f64::from(height);
    for _ in 0..NUM_TRIES {
        let area = num_pixels * uniform(rng, AREA.0, AREA.1);
        let ratio = uniform(rng, RATIO.0.ln(), RATIO.1.ln()).exp();
        let (w, h) = (
            rounded((area * ratio).sqrt()),
            rounded((area / ratio).sqrt()),
        );
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            return Crop {
                top: below(rng, height - h + 1),
                left: below(rng, width - w + 1),
                height: h,
                width: w,
            };
        }
    }
    let ratio = f64::from(width) / f64::from(height);
    let (w, h) = if ratio < RATIO.0 {
        (width, rounded(f64::from(width) / RATIO.0).clamp(1, height))
    } else if ratio > RATIO.1 {
        (rounded(f64::from(height) * RATIO.1).clamp(1, width), height)
    } else {
        (width, height)
    };
    Crop {
        top: (height - h) / 2,
        left: (width - w) / 2,
        height: h,
        width: w,
    }
}

/// The nearest whole number, halves to even, as Python rounds.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sides of a picture, far below 2^32; a cast from float saturates"
)]
fn rounded(value: f64) -> u32 {
    value.round_ties_even() as u32
}

/// Decodes and transforms pictures one after another; keeps its memory between them.
#[derive(Debug)]
pub struct Transform {
    picture: Picture,
    resizer: Resizer,
    tables: [[f32; 256]; 3],
    options: Options,
    /// The result's pixels, `[side, side, 3]`.
    out: Vec<u8>,
    /// Memory of AutoAugment.
    scratch: Vec<u8>,
}

impl Transform {
    /// A transform of pictures with three channels that are normalised like this.
    ///
    /// # Panics
    ///
    /// When `normalise` has not three channels, or the side is not 1 to 4096.
    pub fn new(normalise: &Normalise, options: Options) -> Self {
        let tables = normalise.tables();
        let tables = tables.try_into().expect("a picture has three channels");
        assert!((1..=LIMIT_SIDE).contains(&options.side), "{options:?}");
        Self {
            picture: Picture::default(),
            resizer: Resizer::new(),
            tables,
            options,
            out: vec![0; options.side as usize * options.side as usize * 3],
            scratch: Vec::new(),
        }
    }

    /// Writes a sample to learn from: its random crop, resized, perhaps flipped, perhaps
    /// through AutoAugment, and normalised; or its bytes before that.
    ///
    /// # Shapes
    ///
    /// `out`: `[side, side, 3]`
    ///
    /// # Errors
    ///
    /// A [`PictureError`] when `bytes` are no whole picture.
    ///
    /// # Panics
    ///
    /// When `out` has not its shape.
    pub fn train<'a>(
        &mut self,
        bytes: &[u8],
        (seed, epoch, sample): (u64, Epoch, u32),
        out: impl Into<Out<'a>>,
    ) -> Result<(), PictureError> {
        let mut draws = None;
        // Rows below the crop are not needed.
        self.picture.decode_top(bytes, |width, height| {
            let crop = draws
                .insert(Draws::new(width, height, seed, epoch, sample))
                .crop;
            crop.top + crop.height
        })?;
        let draws = draws.expect("the size of a decoded picture was asked for");
        self.resize_crop(draws.crop);
        let flip = draws.flip && self.options.flip;
        if self.options.auto_augment {
            self.auto_augment(flip, &autoaugment::Draws::new(seed, epoch, sample));
            self.write(false, out);
        } else {
            self.write(flip, out);
        }
        Ok(())
    }

    /// Writes a sample to be judged on: the centre of the picture resized to a short side of
    /// 256/224 of the result's.
    ///
    /// # Shapes
    ///
    /// `out`: `[side, side, 3]`
    ///
    /// # Errors
    ///
    /// A [`PictureError`] when `bytes` are no whole picture.
    ///
    /// # Panics
    ///
    /// When `out` has not its shape.
    pub fn test<'a>(&mut self, bytes: &[u8], out: impl Into<Out<'a>>) -> Result<(), PictureError> {
        let mut centre = None;
        self.picture.decode_top(bytes, |width, height| {
            centre
                .insert(Centre::new(width, height, self.options))
                .num_rows(height, self.options)
        })?;
        let centre = centre.expect("the size of a decoded picture was asked for");
        self.resize_centre(centre);
        self.write(false, out);
        Ok(())
    }

    /// Only pixels inside the crop are used, as if it had been cut out first.
    fn resize_crop(&mut self, crop: Crop) {
        let picture = view(&self.picture);
        let cropped =
            TypedCroppedImage::from_ref(&picture, crop.left, crop.top, crop.width, crop.height);
        let cropped = cropped.expect("a crop lies inside its picture");
        resize(
            &mut self.resizer,
            &cropped,
            (&mut self.out, self.options.side),
            ResizeOptions::new(),
        );
    }

    /// The centre alone is computed: a picture of 1 x 16384 pixels would resize to 4 million rows.
    fn resize_centre(&mut self, centre: Centre) {
        let picture = view(&self.picture);
        let Centre {
            top,
            left,
            height,
            width,
        } = centre;
        let options = ResizeOptions::new().crop(left, top, width, height);
        let out = (&mut self.out[..], self.options.side);
        resize(&mut self.resizer, &picture, out, options);
    }

    /// The flip comes first: AutoAugment may turn and shear to either side.
    fn auto_augment(&mut self, flip: bool, draws: &autoaugment::Draws) {
        if flip {
            self.flip();
        }
        let side = self.options.side as usize;
        let size = Size {
            height: side,
            width: side,
        };
        draws.apply(&mut self.out, size, &mut self.scratch);
    }

    fn flip(&mut self) {
        for row in self.out.chunks_exact_mut(3 * self.options.side as usize) {
            let (pixels, _) = row.as_chunks_mut::<3>();
            pixels.reverse();
        }
    }

    /// Writes the result as values, or as bytes to which nothing is left to do.
    fn write<'a>(&mut self, flip: bool, out: impl Into<Out<'a>>) {
        match out.into() {
            Out::Values(out_hwc) => self.write_values(flip, out_hwc),
            Out::Bytes { bytes_hwc, draws } => {
                if flip {
                    self.flip();
                }
                bytes_hwc.copy_from_slice(&self.out);
                *draws = Some(augment::Draws::default());
            }
        }
    }

    fn write_values(&self, flip: bool, out_hwc: &mut [f32]) {
        let side = self.options.side as usize;
        assert_eq!(out_hwc.len(), side * side * 3, "values of a picture");
        let [red, green, blue] = &self.tables;
        let value = |&[r, g, b]: &[u8; 3]| {
            [
                red[usize::from(r)],
                green[usize::from(g)],
                blue[usize::from(b)],
            ]
        };
        let (pixels, _) = self.out.as_chunks::<3>();
        let (out, _) = out_hwc.as_chunks_mut::<3>();
        for (row, out) in pixels.chunks_exact(side).zip(out.chunks_exact_mut(side)) {
            if flip {
                for (out, pixel) in out.iter_mut().zip(row.iter().rev()) {
                    *out = value(pixel);
                }
            } else {
                for (out, pixel) in out.iter_mut().zip(row) {
                    *out = value(pixel);
                }
            }
        }
    }
}

/// The centre of a test picture, in the picture's own pixels; sums may exceed a side by a rounding.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Centre {
    top: f64,
    left: f64,
    height: f64,
    width: f64,
}

impl Centre {
    fn new(width: u32, height: u32, options: Options) -> Self {
        let (resized_width, left) = centre(width, height, options);
        let (resized_height, top) = centre(height, width, options);
        let scale_x = f64::from(width) / resized_width;
        let scale_y = f64::from(height) / resized_height;
        let side = f64::from(options.side);
        Self {
            top: top * scale_y,
            left: left * scale_x,
            height: side * scale_y,
            width: side * scale_x,
        }
    }

    /// The rows that the resize reads, the picture having `height`.
    fn num_rows(&self, height: u32, options: Options) -> u32 {
        // The filter reaches as far as a row of the result is high, at least one row.
        let reach = (self.height / f64::from(options.side)).max(1.0) + 1.0;
        rounded((self.top + self.height + reach).ceil()).min(height)
    }
}

/// A side after its picture's short side became 256 (of 224), and where the centre begins in it.
///
/// # Source
///
/// torchvision: the long side is floor(256 long/short), the offset is rounded, halves to even.
fn centre(side: u32, other: u32, options: Options) -> (f64, f64) {
    let short_side = options.short_side();
    let resized = if side <= other {
        short_side
    } else {
        // A side has at most 2^14 pixels, the short side at most 2^13.
        short_side * side / other
    };
    let offset = rounded(f64::from(resized - options.side) / 2.0);
    (f64::from(resized), f64::from(offset))
}

fn view(picture: &Picture) -> TypedImageRef<'_, U8x3> {
    TypedImageRef::from_buffer(picture.width, picture.height, &picture.pixels)
        .expect("a decoded picture has the bytes of its size")
}

fn resize(
    resizer: &mut Resizer,
    from: &impl ImageView<Pixel = U8x3>,
    (to, side): (&mut [u8], u32),
    options: ResizeOptions,
) {
    let to = TypedImage::from_buffer(side, side, to);
    let mut to = to.expect("the result has the bytes of its size");
    let options = options.resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    let done = resizer.resize_typed(from, &mut to, &options);
    done.expect("both pictures have pixels, and a crop lies inside its picture");
}

#[cfg(test)]
mod tests;
