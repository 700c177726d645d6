//! The operations of AutoAugment on RGB pixels of 8 bits, equal to Pillow's to the bit.

use super::{Kind, NUM_MAGNITUDES};

/// H and W of a picture, each 1 to 4096.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// H, the rows.
    pub height: usize,
    /// W, the columns.
    pub width: usize,
}

/// An operation with its magnitude.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operation {
    /// Row y moves left by y times this.
    ShearX(f64),
    /// Column x moves up by x times this.
    ShearY(f64),
    /// All moves right by so many pixels.
    TranslateX(i32),
    /// All moves down by so many pixels.
    TranslateY(i32),
    /// Turns around the centre by so many degrees, anticlockwise.
    Rotate(f64),
    /// Black at 0, the picture at 1, brighter above.
    Brightness(f32),
    /// Grey at 0, the picture at 1, more colour above.
    Color(f32),
    /// The mean luma everywhere at 0, the picture at 1, more contrast above.
    Contrast(f32),
    /// Smoothed at 0, the picture at 1, sharper above.
    Sharpness(f32),
    /// So many of the highest bits stay, 1 to 8.
    Posterize(u32),
    /// Values of at least this are inverted.
    Solarize(f32),
    /// Each channel is stretched to 0..=255.
    AutoContrast,
    /// Each channel's histogram becomes flat.
    Equalize,
    /// Every value v becomes 255 - v.
    Invert,
}

impl Operation {
    /// An operation with one of its magnitudes, the smallest effect first.
    ///
    /// # Source
    ///
    /// The ranges are the paper's table 6 as torchvision has them, evenly divided; shifts are parts
    /// of 331 pixels.
    ///
    /// # Panics
    ///
    /// When `magnitude` is not below [`NUM_MAGNITUDES`].
    pub fn new(kind: Kind, magnitude: usize, negative: bool, size: Size) -> Self {
        let sign = if negative { -1.0 } else { 1.0 };
        let of = |end: f32| sign * spaced(0.0, end, magnitude);
        // The factor is made in 64 bits and used in 32.
        let factor = || narrow(1.0 + f64::from(of(0.9)));
        let shift = |side: usize| whole(of(narrow(150.0 / 331.0 * side as f64)));
        match kind {
            Kind::ShearX => Self::ShearX(f64::from(of(0.3))),
            Kind::ShearY => Self::ShearY(f64::from(of(0.3))),
            Kind::TranslateX => Self::TranslateX(shift(size.width)),
            Kind::TranslateY => Self::TranslateY(shift(size.height)),
            Kind::Rotate => Self::Rotate(f64::from(of(30.0))),
            Kind::Brightness => Self::Brightness(factor()),
            Kind::Color => Self::Color(factor()),
            Kind::Contrast => Self::Contrast(factor()),
            Kind::Sharpness => Self::Sharpness(factor()),
            Kind::Posterize => Self::Posterize([8, 8, 7, 7, 6, 6, 5, 5, 4, 4][magnitude]),
            Kind::Solarize => Self::Solarize(spaced(255.0, 0.0, magnitude)),
            Kind::AutoContrast => Self::AutoContrast,
            Kind::Equalize => Self::Equalize,
            Kind::Invert => Self::Invert,
        }
    }

    /// Does it to a picture; `scratch` is memory to use again.
    ///
    /// # Shapes
    ///
    /// `pixels_hwc`: `[H, W, 3]`
    ///
    /// # Panics
    ///
    /// When `pixels_hwc` has not its shape.
    pub fn apply(self, pixels_hwc: &mut [u8], size: Size, scratch: &mut Vec<u8>) {
        let Size { height, width } = size;
        assert_eq!(pixels_hwc.len(), height * width * 3, "bytes of a picture");
        // Maps of x and y, each in the units of a pixel: where the result's pixel comes from.
        let (x, y) = ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]);
        match self {
            Self::ShearX(shear) => sample(pixels_hwc, size, [1.0, shear, 0.0], y, scratch),
            Self::ShearY(shear) => sample(pixels_hwc, size, x, [shear, 1.0, 0.0], scratch),
            Self::TranslateX(by) => {
                sample(pixels_hwc, size, [1.0, 0.0, -f64::from(by)], y, scratch);
            }
            Self::TranslateY(by) => {
                sample(pixels_hwc, size, x, [0.0, 1.0, -f64::from(by)], scratch);
            }
            Self::Rotate(degrees) => {
                let (sin, cos) = degrees.to_radians().sin_cos();
                let (cx, cy) = (width as f64 / 2.0, height as f64 / 2.0);
                let x = [cos, -sin, cx - (cos * cx - sin * cy)];
                let y = [sin, cos, cy - (sin * cx + cos * cy)];
                sample(pixels_hwc, size, x, y, scratch);
            }
            Self::Brightness(factor) => {
                let table = std::array::from_fn(|value| blend(0, as_byte(value), factor));
                look_up(pixels_hwc, &[table; 3]);
            }
            Self::Color(factor) => {
                for pixel in pixels_hwc.chunks_exact_mut(3) {
                    let grey = luma(pixel);
                    for value in pixel {
                        *value = blend(grey, *value, factor);
                    }
                }
            }
            Self::Contrast(factor) => {
                let mean = mean_luma(pixels_hwc);
                let table = std::array::from_fn(|value| blend(mean, as_byte(value), factor));
                look_up(pixels_hwc, &[table; 3]);
            }
            Self::Sharpness(factor) => sharpen(pixels_hwc, size, factor, scratch),
            Self::Posterize(bits) => {
                let mask = u8::MAX << (8 - bits);
                for value in pixels_hwc {
                    *value &= mask;
                }
            }
            Self::Solarize(threshold) => {
                for value in pixels_hwc {
                    if f32::from(*value) >= threshold {
                        *value = 255 - *value;
                    }
                }
            }
            Self::AutoContrast => {
                let tables = histograms(pixels_hwc).map(|histogram| stretched(&histogram));
                look_up(pixels_hwc, &tables);
            }
            Self::Equalize => {
                let tables = histograms(pixels_hwc).map(|histogram| flattened(&histogram));
                look_up(pixels_hwc, &tables);
            }
            Self::Invert => pixels_hwc
                .iter_mut()
                .for_each(|value| *value = 255 - *value),
        }
    }
}

/// The `index`-th of ten numbers evenly from `start` to `end`, in the arithmetic of `torch.linspace`:
/// 32 bits, each half from its own end.
fn spaced(start: f32, end: f32, index: usize) -> f32 {
    assert!(index < NUM_MAGNITUDES, "magnitude {index}");
    let step = (end - start) / (NUM_MAGNITUDES - 1) as f32;
    if index < NUM_MAGNITUDES / 2 {
        step.mul_add(index as f32, start)
    } else {
        (-step).mul_add((NUM_MAGNITUDES - 1 - index) as f32, end)
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "magnitudes, whose last bits do not matter to f32's range"
)]
fn narrow(value: f64) -> f32 {
    value as f32
}

/// Towards 0.
#[allow(
    clippy::cast_possible_truncation,
    reason = "a part of a side; a cast from float saturates"
)]
fn whole(value: f32) -> i32 {
    value as i32
}

fn as_byte(value: usize) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

/// `from` at factor 0, `to` at 1, a line through both elsewhere; rounded towards 0.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast from float saturates, which is the clipping wanted"
)]
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    let (from, to) = (f32::from(from), f32::from(to));
    (from + factor * (to - from)) as u8
}

/// ITU-R BT.601, in 16 bits and rounded.
fn luma(pixel: &[u8]) -> u8 {
    let [red, green, blue] = [0, 1, 2].map(|c| u32::from(pixel[c]));
    let luma = (19_595 * red + 38_470 * green + 7_471 * blue + 0x8000) >> 16;
    // The weights sum to 2^16, so the luma is at most 255.
    u8::try_from(luma).unwrap_or(u8::MAX)
}

/// The mean luma, rounded, halves up.
fn mean_luma(pixels: &[u8]) -> u8 {
    let sum: u64 = pixels
        .chunks_exact(3)
        .map(|pixel| u64::from(luma(pixel)))
        .sum();
    let num_pixels = (pixels.len() / 3) as u64;
    u8::try_from((2 * sum + num_pixels) / (2 * num_pixels)).unwrap_or(u8::MAX)
}

fn look_up(pixels: &mut [u8], tables: &[[u8; 256]; 3]) {
    for pixel in pixels.chunks_exact_mut(3) {
        for (value, table) in pixel.iter_mut().zip(tables) {
            *value = table[usize::from(*value)];
        }
    }
}

fn histograms(pixels: &[u8]) -> [[u32; 256]; 3] {
    let mut histograms = [[0; 256]; 3];
    for pixel in pixels.chunks_exact(3) {
        for (value, histogram) in pixel.iter().zip(&mut histograms) {
            histogram[usize::from(*value)] += 1;
        }
    }
    histograms
}

/// The map that takes the lowest value to 0 and the highest to 255.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast from float saturates, which is the clipping wanted"
)]
fn stretched(histogram: &[u32; 256]) -> [u8; 256] {
    let occurs = |&count: &u32| count > 0;
    let low = histogram.iter().position(occurs).unwrap_or(0);
    let high = histogram.iter().rposition(occurs).unwrap_or(0);
    if high <= low {
        return std::array::from_fn(as_byte);
    }
    let scale = 255.0 / (high - low) as f64;
    let offset = -(low as f64) * scale;
    std::array::from_fn(|value| (value as f64 * scale + offset) as u8)
}

/// The map after which every value is about equally frequent.
fn flattened(histogram: &[u32; 256]) -> [u8; 256] {
    let num_values: u32 = histogram.iter().sum();
    let last = histogram.iter().rev().find(|&&count| count > 0);
    let step = (num_values - last.copied().unwrap_or(0)) / 255;
    if step == 0 {
        return std::array::from_fn(as_byte);
    }
    let mut before = step / 2;
    histogram.map(|count| {
        let value = u8::try_from(before / step).unwrap_or(u8::MAX);
        before += count;
        value
    })
}

/// Blends with the mean of 3 x 3 pixels in which the middle counts five times; the border stays.
fn sharpen(pixels: &mut [u8], size: Size, factor: f32, scratch: &mut Vec<u8>) {
    let Size { height, width } = size;
    if height < 3 || width < 3 {
        return;
    }
    scratch.clear();
    scratch.extend_from_slice(pixels);
    let row = 3 * width;
    for y in 1..height - 1 {
        let [above, here, below] = [y - 1, y, y + 1].map(|y| &scratch[y * row..(y + 1) * row]);
        let out = &mut pixels[y * row..(y + 1) * row];
        for at in 3..row - 3 {
            let three = |row: &[u8]| -> u32 {
                [at - 3, at, at + 3]
                    .map(|at| u32::from(row[at]))
                    .iter()
                    .sum()
            };
            let sum = three(above) + three(here) + three(below) + 4 * u32::from(here[at]);
            // A mean is never half way between two bytes: 13 is odd.
            let smooth = u8::try_from((sum + 6) / 13).unwrap_or(u8::MAX);
            out[at] = blend(smooth, here[at], factor);
        }
    }
}

/// The nearest pixel at (`x` . (column, row, 1), `y` . (column, row, 1)) of pixel centres, black
/// where that is outside.
///
/// As Pillow does it, in fixed point of 16 bits, so that the same pixel is the nearest.
fn sample(pixels: &mut [u8], size: Size, x: [f64; 3], y: [f64; 3], scratch: &mut Vec<u8>) {
    let Size { height, width } = size;
    scratch.clear();
    scratch.extend_from_slice(pixels);
    let start = |map: [f64; 3]| fixed(map[2] + map[0] * 0.5 + map[1] * 0.5);
    let (mut row_x, mut row_y) = (start(x), start(y));
    let [x_by_column, x_by_row] = [fixed(x[0]), fixed(x[1])];
    let [y_by_column, y_by_row] = [fixed(y[0]), fixed(y[1])];
    let inside = |at: i64, side: usize| usize::try_from(at >> 16).ok().filter(|at| *at < side);
    for row in pixels.chunks_exact_mut(3 * width) {
        let (mut at_x, mut at_y) = (row_x, row_y);
        for pixel in row.chunks_exact_mut(3) {
            match (inside(at_x, width), inside(at_y, height)) {
                (Some(x), Some(y)) => {
                    let from = 3 * (y * width + x);
                    pixel.copy_from_slice(&scratch[from..from + 3]);
                }
                _ => pixel.fill(0),
            }
            at_x += x_by_column;
            at_y += y_by_column;
        }
        row_x += x_by_row;
        row_y += y_by_row;
    }
}

/// In parts of 2^16, halves up.
#[allow(
    clippy::cast_possible_truncation,
    reason = "positions in a picture of at most 2^12 pixels a side"
)]
fn fixed(value: f64) -> i64 {
    (value * 65_536.0 + 0.5).floor() as i64
}
