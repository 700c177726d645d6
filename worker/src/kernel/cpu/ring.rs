//! One buffer of the CPU back end: a ring of slots, plainly and as bits.

use crate::kernel::{BufferSpec, Window};
use crate::shape::Content;
use std::ops::Range;

/// A ring. Spikes that convolutions read are bits: u64 words per pixel, bit c % 64 of word c / 64.
#[derive(Debug, Default)]
pub(super) struct Ring {
    elements: usize,
    channels: usize,
    plain_slots: usize,
    bit_slots: usize,
    plain: Vec<f32>,
    bits: Vec<u64>,
}

/// Slots of the plain form and of the bits. Real numbers and counts have one form for all readers.
fn slots(spec: &BufferSpec) -> (usize, usize) {
    match spec.content {
        Content::Spikes => (spec.plain_slots, spec.operand_slots),
        Content::Counts | Content::Real => (spec.plain_slots.max(spec.operand_slots), 0),
    }
}

/// Words of bits in one slot.
fn words(spec: &BufferSpec) -> usize {
    spec.samples * spec.shape.pixels() * spec.shape.channels.div_ceil(64)
}

/// Bytes that a ring takes.
pub(super) fn bytes(spec: &BufferSpec) -> u64 {
    let (plain, bits) = slots(spec);
    4 * (plain * spec.elements()) as u64 + 8 * (bits * words(spec)) as u64
}

impl Ring {
    pub(super) fn new(spec: &BufferSpec) -> Self {
        let (plain_slots, bit_slots) = slots(spec);
        Self {
            elements: spec.elements(),
            channels: spec.shape.channels,
            plain_slots,
            bit_slots,
            plain: vec![0.0; plain_slots * spec.elements()],
            bits: vec![0; bit_slots * words(spec)],
        }
    }

    pub(super) fn has_plain(&self) -> bool {
        self.plain_slots > 0
    }

    pub(super) fn has_bits(&self) -> bool {
        self.bit_slots > 0
    }

    pub(super) fn num_plain_slots(&self) -> usize {
        self.plain_slots
    }

    fn slot(&self, t: usize, len: usize) -> Range<usize> {
        assert!(self.plain_slots > 0, "the buffer has no plain form");
        let slot = t % self.plain_slots;
        slot * len..(slot + 1) * len
    }

    /// One slot of `len` numbers (an error buffer may serve values smaller than itself).
    pub(super) fn plain(&self, t: usize, len: usize) -> &[f32] {
        &self.plain[self.slot(t, len)]
    }

    /// One slot of `len` numbers.
    pub(super) fn plain_mut(&mut self, t: usize, len: usize) -> &mut [f32] {
        let slot = self.slot(t, len);
        &mut self.plain[slot]
    }

    /// The slots of a window as one batch; its steps lie side by side.
    pub(super) fn window(&self, window: Window, len: usize) -> &[f32] {
        &self.plain[joined(window, self.plain_slots, len)]
    }

    /// The slots of a window as one batch.
    pub(super) fn window_mut(&mut self, window: Window, len: usize) -> &mut [f32] {
        let range = joined(window, self.plain_slots, len);
        &mut self.plain[range]
    }

    /// All slots.
    pub(super) fn all_mut(&mut self) -> &mut [f32] {
        &mut self.plain
    }

    fn words_per_slot(&self) -> usize {
        self.bits.len() / self.bit_slots
    }

    /// The bits of one slot.
    pub(super) fn bits(&self, t: usize) -> &[u64] {
        let words = self.words_per_slot();
        let slot = t % self.bit_slots;
        &self.bits[slot * words..(slot + 1) * words]
    }

    /// The bits of a window as one batch.
    pub(super) fn bits_window(&self, window: Window) -> &[u64] {
        &self.bits[joined(window, self.bit_slots, self.words_per_slot())]
    }

    /// One slot in both forms, an absent form being empty.
    pub(super) fn both_mut(&mut self, t: usize) -> (&mut [f32], &mut [u64]) {
        let plain = if self.plain_slots > 0 {
            let slot = self.slot(t, self.elements);
            &mut self.plain[slot]
        } else {
            &mut []
        };
        let bits = match self.bits.len().checked_div(self.bit_slots) {
            Some(words) => {
                let slot = t % self.bit_slots;
                &mut self.bits[slot * words..(slot + 1) * words]
            }
            None => &mut [],
        };
        (plain, bits)
    }

    /// Packs the plain values of a slot, or those given, into its bits.
    pub(super) fn pack(&mut self, t: usize, values: &[f32]) {
        if self.has_bits() {
            let words = self.words_per_slot();
            let slot = t % self.bit_slots;
            let bits = &mut self.bits[slot * words..(slot + 1) * words];
            pack(self.channels, values, bits);
        }
    }

    /// Packs a slot's own plain values into its bits.
    pub(super) fn pack_own(&mut self, t: usize) {
        if self.has_bits() {
            let words = self.words_per_slot();
            let slot = t % self.bit_slots;
            let plain = self.slot(t, self.elements);
            let bits = &mut self.bits[slot * words..(slot + 1) * words];
            pack(self.channels, &self.plain[plain], bits);
        }
    }

    /// Whether one slot is finite; bits always are.
    pub(super) fn is_finite(&self, t: usize) -> bool {
        let finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
        !self.has_plain() || finite(self.plain(t, self.elements))
    }

    /// Copies one slot out, from whichever form is there.
    pub(super) fn read(&self, t: usize, values: &mut [f32]) {
        if self.has_plain() {
            values.copy_from_slice(self.plain(t, values.len()));
            return;
        }
        let words = self.channels.div_ceil(64);
        let bits = self.bits(t).chunks(words);
        for (pixel, bits) in values.chunks_mut(self.channels).zip(bits) {
            for (c, value) in pixel.iter_mut().enumerate() {
                *value = f32::from(u8::from(bits[c / 64] >> (c % 64) & 1 == 1));
            }
        }
    }
}

/// Bits of spikes, pixel by pixel.
fn pack(channels: usize, values: &[f32], bits: &mut [u64]) {
    let words = channels.div_ceil(64);
    for (pixel, bits) in values.chunks(channels).zip(bits.chunks_mut(words)) {
        for (part, word) in pixel.chunks(64).zip(bits) {
            *word = super::simd::rows::spikes(part, 0.5);
        }
    }
}

/// The numbers of a window's slots, which must not wrap around the ring unless they fill it.
fn joined(window: Window, slots: usize, len: usize) -> Range<usize> {
    assert!(window.len <= slots, "the window is longer than the ring");
    if window.len == slots {
        return 0..slots * len;
    }
    let last = window.newest % slots;
    assert!(last + 1 >= window.len, "the window wraps around the ring");
    (last + 1 - window.len) * len..(last + 1) * len
}
