//! Numbers that are the same in every run.

use synfire::shape::Content;

/// Numbers at each time step of a value, from time step 0.
pub type Series = Vec<Vec<f32>>;

/// A generator of test data: splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in [0, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / 16_777_216.0
    }

    /// A whole number below `n`.
    ///
    /// # Panics
    /// Never: it is below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        let wide = u128::from(self.bits()) * n as u128;
        usize::try_from(wide >> 64).expect("it is below n")
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// True half of the time.
    pub fn coin(&mut self) -> bool {
        self.below(2) == 1
    }

    /// Nearly normal numbers: mean 0, deviation 1, never beyond 6.
    pub fn normal(&mut self, n: usize) -> Vec<f32> {
        let mut draw = || (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0;
        (0..n).map(|_| draw()).collect()
    }

    /// Numbers as such a value has them: one in four spikes; counts of 0 to 3; normal.
    pub fn values(&mut self, content: Content, n: usize) -> Vec<f32> {
        match content {
            Content::Spikes => (0..n).map(|_| f32::from(self.uniform() < 0.25)).collect(),
            Content::Counts => (0..n).map(|_| self.below(4) as f32).collect(),
            Content::Real => self.normal(n),
        }
    }

    /// [`Random::values`] for a number of time steps.
    pub fn series(&mut self, content: Content, num_steps: usize, n: usize) -> Series {
        let step = |_| self.values(content, n);
        (0..num_steps).map(step).collect()
    }

    /// Normal numbers for a number of time steps.
    pub fn normal_series(&mut self, num_steps: usize, n: usize) -> Series {
        self.series(Content::Real, num_steps, n)
    }
}
