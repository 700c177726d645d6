//! What makes a GPU fast, and can be left out to measure what it gives.

/// What a back end does without. It changes no number but those of a window's gradients, which are then summed
/// (with bf16 operands: rounded) in another order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Without {
    /// Time steps are not replayed as graphs: every kernel is launched.
    pub graphs: bool,
    /// A convolution's gradients of a window of k are taken time step by time step, not over k N samples at once.
    pub windows: bool,
    /// Every layer is updated by itself, not joined with its neighbours until that is worth a launch.
    pub updates: bool,
}

impl Without {
    /// The names of what is left out.
    pub fn names(self) -> Vec<&'static str> {
        let all = [
            (self.graphs, "graphs"),
            (self.windows, "windows"),
            (self.updates, "updates"),
        ];
        let named = all.into_iter().filter(|(is_left_out, _)| *is_left_out);
        named.map(|(_, name)| name).collect()
    }
}
