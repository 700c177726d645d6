//! Decides who trains as which rank, from which checkpoint; never sees a tensor.
//!
//! # Layout
//!
//! - [`event`]: what happens to a run, and what is to be done about it.
//! - [`policy`]: how many ranks are wanted, and how long is waited for them.
//! - [`run`]: the run as a state machine: event in, actions out; no clock, no socket, no chance.
//! - `admit`: who may join; `pool`: who waits, and who becomes which rank.
//! - `live`: the generation that trains: who is silent, who hangs; `ended`: why one is over.
//! - `clock`: time that stands still while this process does.
//! - [`view`]: the state of a run, to be shown.
//! - [`serve`]: all of this as a server.

mod admit;
mod clock;
mod ended;
pub mod event;
mod live;
pub mod policy;
mod pool;
pub mod run;
pub mod serve;
pub mod view;

pub use event::{Action, Counter, Event, Level, Loss, Reply, ReplyId, Stored};
pub use policy::{MAX_FAILURES, Policy, PolicyError};
pub use run::Run;
pub use serve::{Options, ServeError, Server};
pub use view::View;
