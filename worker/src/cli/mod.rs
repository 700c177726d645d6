//! The verbs of the command line, one short file each.
//!
//! # Layout
//!
//! - this file: the arguments, and which verb they mean.
//! - `pack`, `train`, `evaluate`, `verify`, `trace`, `inspect`, `bench`, `doctor`: the verbs.
//! - `launch`: ranks on this machine.
//! - `ranks`: with whom `train` trains.
//! - `watch`: what `train` shows to others: metrics and the report.
//! - `model`: the arguments that describe a model by name.
//! - `engine`: the arguments that say what computes, and on what.
//! - `table`: columns and numbers for people.
//! - `temporary`: which errors another try may mend, and the exit status that says so.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is what the command prints"
)]

mod bench;
mod doctor;
mod engine;
mod evaluate;
mod inspect;
mod launch;
mod model;
mod pack;
mod ranks;
mod table;
mod temporary;
mod trace;
mod train;
mod verify;
mod watch;

use clap::{CommandFactory, Parser, Subcommand};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Trains spiking neural networks online: a forward, a backward and an update at every time step
/// (STOL; Xue, Liu, Wang, Qu, "Reasonable Gradients for Online Training Algorithms in Spiking
/// Neural Networks").
#[derive(Debug, Parser)]
#[command(
    name = "synfire",
    version,
    arg_required_else_help = true,
    max_term_width = 100
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Pack a data set into shards with an index, for training from a folder or an object store
    Pack(pack::Arguments),
    /// Train a network; without a configuration, a small one on built-in pictures
    Train(train::Arguments),
    /// Train with several ranks on this machine, started and looked after by this process
    Launch(launch::Arguments),
    /// Test the weights of a checkpoint, by time step
    Evaluate(evaluate::Arguments),
    /// Replay recorded reference traces and compare every number
    Verify(verify::Arguments),
    /// Record a trace of a run of your own, for `verify` on other machines
    Trace(trace::Arguments),
    /// Print what a network consists of and what it needs
    #[command(subcommand)]
    Inspect(inspect::Arguments),
    /// Time training by layer and phase
    Bench(bench::Arguments),
    /// Print what this machine has for training, what it lacks, and what to do about it
    Doctor(doctor::Arguments),
}

/// The exit status of a command line that is not understood (`EX_USAGE` of sysexits.h).
const WRONG_USAGE: u8 = 64;

/// A number of threads for the cpu engine.
fn threads(text: &str) -> Result<u16, String> {
    let threads: u16 = text.parse().map_err(|error| format!("{error}"))?;
    let checked = crate::kernel::cpu::check_threads(usize::from(threads));
    checked.map(|()| threads).map_err(|error| error.to_string())
}

/// Prints a line. Where nobody reads any more (`synfire inspect ... | head`), the program ends.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::cli::print(&format!($($text)*))
    };
}
use say;

/// Writes a line to standard output, and ends the program quietly if that is closed.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Runs the command line; the exit status says how it ended.
pub fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("SYNFIRE_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_writer(std::io::stderr)
        .init();
    if std::env::args_os().len() < 2 {
        say!("{}", Arguments::command().render_help());
        return ExitCode::SUCCESS;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            // Help and version are no errors; 1 and 2 mean something else for `verify`.
            return ExitCode::from(if error.use_stderr() { WRONG_USAGE } else { 0 });
        }
    };
    let may_pass = matches!(&arguments.verb, Verb::Train(_) | Verb::Launch(_));
    let result = match arguments.verb {
        Verb::Pack(arguments) => pack::run(&arguments),
        Verb::Train(arguments) => train::run(&arguments),
        Verb::Launch(arguments) => launch::run(&arguments),
        Verb::Evaluate(arguments) => evaluate::run(&arguments),
        Verb::Verify(arguments) => verify::run(&arguments),
        Verb::Trace(arguments) => trace::run(&arguments),
        Verb::Inspect(arguments) => inspect::run(&arguments),
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Doctor(arguments) => doctor::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        if may_pass {
            temporary::code(&error)
        } else {
            ExitCode::FAILURE
        }
    })
}
