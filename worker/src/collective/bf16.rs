//! Numbers of 16 bits: the upper half of an f32, rounded.

/// The nearest bf16, ties to even. What is above the largest becomes infinite; NaN stays NaN.
#[inline]
pub fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    // The tie goes up only where the last bit kept is odd.
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // Rounding could carry a NaN's payload into infinity: it gets a bit that stays.
    let bits = if value.is_nan() {
        bits | 0x0040_0000
    } else {
        rounded
    };
    (bits >> 16) as u16
}

/// The same number; nothing is lost.
#[inline]
pub fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest number that a bf16 can hold.
#[inline]
pub fn round(value: f32) -> f32 {
    from_bf16(to_bf16(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(value: f32, expected: f32) {
        assert_eq!(round(value).to_bits(), expected.to_bits(), "{value}");
    }

    #[test]
    fn ties_go_to_even_and_the_rest_to_the_nearest() {
        // 1 + 2^-7 is the next after 1; half of that lies between them.
        let (next, half) = (1.0 + 0.007_812_5, 0.003_906_25);
        same(1.0 + half, 1.0);
        same(1.0 + half + f32::EPSILON, next);
        same(next + half, 1.0 + 4.0 * half);
        same(-1.0 - half, -1.0);
    }

    #[test]
    fn every_bf16_comes_back_with_its_bits() {
        for bits in 0..=u16::MAX {
            let value = from_bf16(bits);
            if value.is_nan() {
                assert!(from_bf16(to_bf16(value)).is_nan());
            } else {
                assert_eq!(to_bf16(value), bits);
            }
        }
    }

    #[test]
    fn no_nan_becomes_infinite_and_overflow_does() {
        for bits in [0x7f80_0001, 0x7fff_ffff, 0xffff_ffff, 0xff80_0001_u32] {
            assert!(round(f32::from_bits(bits)).is_nan(), "{bits:x}");
        }
        same(f32::MAX, f32::INFINITY);
        same(f32::INFINITY, f32::INFINITY);
        same(-0.0, -0.0);
    }
}
