//! The numbers behind PyTorch's tensors: what a storage holds, and which of it a tensor is.

use crate::trace::file::{MAX_RANK, TensorData};

/// What a storage holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    /// Numbers that no weight is: their name and the bytes of each.
    Other(&'static str, usize),
}

impl Kind {
    /// The names of all kinds of storages.
    pub(super) const GLOBALS: [&str; 10] = [
        "torch\nFloatStorage\n",
        "torch\nDoubleStorage\n",
        "torch\nHalfStorage\n",
        "torch\nBFloat16Storage\n",
        "torch\nLongStorage\n",
        "torch\nIntStorage\n",
        "torch\nShortStorage\n",
        "torch\nCharStorage\n",
        "torch\nByteStorage\n",
        "torch\nBoolStorage\n",
    ];

    /// The kind of a name.
    pub(super) fn of(global: &str) -> Option<Self> {
        let kind = Self::GLOBALS.iter().position(|known| *known == global)?;
        Some(match kind {
            0 => Self::F32,
            1 => Self::F64,
            2 => Self::F16,
            3 => Self::Bf16,
            4 => Self::I64,
            5 => Self::Other("int32", 4),
            6 => Self::Other("int16", 2),
            7 => Self::Other("int8", 1),
            8 => Self::Other("uint8", 1),
            _ => Self::Other("bool", 1),
        })
    }

    /// The bytes of a number.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Other(_, bytes) => bytes,
        }
    }

    /// The numbers of a tensor, row-major; `layout` was checked against the storage's length.
    pub(super) fn read(self, data: &[u8], layout: &Layout) -> Result<TensorData, String> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the engine has 32-bit floats"
        )]
        Ok(match self {
            Self::F64 => {
                let read = |bytes: [u8; 8]| f64::from_le_bytes(bytes) as f32;
                TensorData::F32(layout.gather(data, read))
            }
            Self::F32 => TensorData::F32(layout.gather(data, f32::from_le_bytes)),
            Self::F16 => {
                let read = |bytes: [u8; 2]| f16_to_f32(u16::from_le_bytes(bytes));
                TensorData::F32(layout.gather(data, read))
            }
            Self::Bf16 => {
                let bits = |bytes: [u8; 2]| u32::from(u16::from_le_bytes(bytes)) << 16;
                TensorData::F32(layout.gather(data, |bytes| f32::from_bits(bits(bytes))))
            }
            Self::I64 => TensorData::I64(layout.gather(data, i64::from_le_bytes)),
            Self::Other(name, _) => {
                return Err(format!("its numbers are {name}, weights are floats"));
            }
        })
    }
}

/// IEEE 754 binary16 to binary32, which has all its values.
fn f16_to_f32(bits: u16) -> f32 {
    let (sign, bits) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff));
    let magnitude = if bits < 0x0400 {
        // A subnormal: so many times 2^-24.
        (bits as f32 * f32::from_bits(0x3380_0000)).to_bits()
    } else if bits < 0x7c00 {
        // The exponent's bias is 127 instead of 15.
        (bits << 13) + (112 << 23)
    } else {
        0x7f80_0000 | (bits << 13)
    };
    f32::from_bits(sign | magnitude)
}

/// Which numbers of a storage a tensor is.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// The first.
    pub(super) offset: usize,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    /// Numbers from one index to the next, by dimension.
    pub(super) strides: Vec<usize>,
}

impl Layout {
    /// The number of numbers, if all of them lie in a storage of so many and none is used twice.
    pub(super) fn check(&self, stored: usize) -> Result<usize, String> {
        let shape = &self.shape;
        if shape.len() > MAX_RANK || self.strides.len() != shape.len() {
            let rank = shape.len();
            return Err(format!(
                "it has {rank} dimensions and {} strides, at most {MAX_RANK} are read",
                self.strides.len()
            ));
        }
        let outside = || {
            let (offset, strides) = (self.offset, &self.strides);
            format!(
                "shape {shape:?} with strides {strides:?} from {offset} on is not within its \
                 storage of {stored}"
            )
        };
        let numbers = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
        let numbers = numbers.filter(|&n| n <= stored).ok_or_else(outside)?;
        let mut last = shape.iter().zip(&self.strides);
        let last = last.try_fold(self.offset, |last, (&d, &stride)| {
            last.checked_add(d.saturating_sub(1).checked_mul(stride)?)
        });
        if numbers > 0 && last.is_none_or(|last| last >= stored) {
            return Err(outside());
        }
        Ok(numbers)
    }

    /// The numbers, row-major.
    fn gather<const N: usize, T>(&self, data: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
        let stored = data.as_chunks::<N>().0;
        let numbers: usize = self.shape.iter().product();
        let mut index = [0_usize; MAX_RANK];
        let mut gathered = Vec::with_capacity(numbers);
        let mut at = self.offset;
        for _ in 0..numbers {
            gathered.push(read(stored[at]));
            // The next index: the innermost dimension first, with a carry.
            for dimension in (0..self.shape.len()).rev() {
                index[dimension] += 1;
                at += self.strides[dimension];
                if index[dimension] < self.shape[dimension] {
                    break;
                }
                at -= index[dimension] * self.strides[dimension];
                index[dimension] = 0;
            }
        }
        gathered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(offset: usize, shape: &[usize], strides: &[usize]) -> Layout {
        let (shape, strides) = (shape.to_vec(), strides.to_vec());
        Layout {
            offset,
            shape,
            strides,
        }
    }

    #[test]
    fn halves_are_what_ieee_754_says() {
        for (bits, want) in [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0400, f32::from_bits(0x3880_0000)),
            (0x03ff, 1023.0 / 16_777_216.0),
            (0x8001, -1.0 / 16_777_216.0),
            (0x7c00, f32::INFINITY),
        ] {
            assert_eq!(
                f16_to_f32(bits).to_bits(),
                f32::to_bits(want),
                "{bits:#06x}"
            );
        }
        assert!(f16_to_f32(0x7e00).is_nan() && f16_to_f32(0xfc01).is_nan());
        // Every finite one is halfway between its neighbours at most: the order is kept.
        let all: Vec<f32> = (0..0x7c00).map(f16_to_f32).collect();
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn strides_are_followed() {
        let data: Vec<u8> = (0..12_u8)
            .flat_map(|n| f32::from(n).to_le_bytes())
            .collect();
        let read = |layout: &Layout| match Kind::F32.read(&data, layout).unwrap() {
            TensorData::F32(values) => values,
            TensorData::I64(_) => panic!("whole numbers"),
        };
        let rows = layout(0, &[2, 3], &[3, 1]);
        assert_eq!(read(&rows), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let columns = layout(1, &[3, 2], &[1, 3]);
        assert_eq!(read(&columns), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        let slice = layout(5, &[2, 1, 2], &[4, 9, 2]);
        assert_eq!(read(&slice), [5.0, 7.0, 9.0, 11.0]);
        assert_eq!(read(&layout(3, &[], &[])), [3.0]);
        assert!(read(&layout(99, &[0], &[1])).is_empty());
    }

    #[test]
    fn what_lies_outside_is_refused() {
        let numbers = |layout: &Layout| layout.check(12).map_err(|e| e.contains("not within"));
        assert_eq!(numbers(&layout(0, &[3, 4], &[4, 1])), Ok(12));
        assert_eq!(numbers(&layout(1, &[3, 4], &[4, 1])), Err(true));
        assert_eq!(numbers(&layout(11, &[1], &[100])), Ok(1));
        assert_eq!(numbers(&layout(12, &[1], &[1])), Err(true));
        assert_eq!(numbers(&layout(12, &[], &[])), Err(true));
        assert_eq!(numbers(&layout(0, &[13], &[0])), Err(true));
        assert_eq!(numbers(&layout(0, &[usize::MAX, 2], &[0, 0])), Err(true));
        assert_eq!(numbers(&layout(0, &[2], &[usize::MAX])), Err(true));
        assert_eq!(numbers(&layout(0, &[1; 9], &[1; 9])), Err(false));
        assert_eq!(numbers(&layout(0, &[2], &[])), Err(false));
    }
}
