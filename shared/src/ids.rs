//! Positions in a run, as types: an epoch passed for a time step does not compile.

use std::fmt;

use serde::Serialize;

macro_rules! position {
    ($(#[$meta:meta])* $name:ident($number:ty), $word:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize)]
        pub struct $name(pub $number);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, concat!($word, " {}"), self.0)
            }
        }
    };
}

position! {
    /// One pass over the training set, counted from 0.
    Epoch(u32), "epoch"
}
position! {
    /// The time step t in 0..T inside a sample.
    TimeStep(usize), "time step"
}
position! {
    /// One process that computes a share of each batch, counted from 0.
    Rank(u32), "rank"
}
position! {
    /// W, the number of ranks.
    World(u32), "world"
}
position! {
    /// One change of the weights, counted from 0 over the whole run.
    Update(u64), "update"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_print_with_their_word() {
        assert_eq!(Epoch(3).to_string(), "epoch 3");
        assert_eq!(TimeStep(0).to_string(), "time step 0");
        assert_eq!(Rank(1).to_string(), "rank 1");
        assert_eq!(World(4).to_string(), "world 4");
        assert_eq!(Update(7).to_string(), "update 7");
    }
}
