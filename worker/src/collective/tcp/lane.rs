//! Segments in the order in which they travel.

/// Segments in their order: from `next` on, every `step`-th before `end`.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    pub(super) next: usize,
    pub(super) step: usize,
    pub(super) end: usize,
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            next: 0,
            step: 1,
            end: 0,
        }
    }
}

impl Iterator for Lane {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let index = self.next;
        (index < self.end).then(|| {
            self.next += self.step;
            index
        })
    }
}

impl Lane {
    pub(super) fn is_done(&self) -> bool {
        self.next >= self.end
    }

    /// Takes the segment that a frame has, which must be the next one.
    pub(super) fn arrive(&mut self, index: u64) -> Result<usize, String> {
        match self.next() {
            Some(next) if next as u64 == index => Ok(next),
            Some(next) => Err(format!("it sent segment {index} instead of {next}")),
            None => Err(format!("it sent segment {index} of which it has none")),
        }
    }
}
