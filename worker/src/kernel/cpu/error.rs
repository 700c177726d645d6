//! Why the CPU back end cannot start.

use super::simd::Isa;

/// Why the back end cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// The machine lacks the instructions that were asked for.
    #[error("this machine has no {0}: leave the instruction set out to use what it has")]
    Isa(Isa),
    /// Far more threads than cores would only wait for each other.
    #[error(
        "{threads} threads are more than {limit}, the most that {cores} cores have use for: ask \
         for fewer with run.threads or --threads, or for 0, one per core"
    )]
    TooManyThreads {
        /// How many were asked for.
        threads: usize,
        /// The most that there can be.
        limit: usize,
        /// The machine's cores.
        cores: usize,
    },
    /// The operating system gave no threads.
    #[error("cannot start {threads} threads: ask for fewer with run.threads")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What the system said.
        #[source]
        source: rayon::ThreadPoolBuildError,
    },
}

/// Whether the machine has use for so many threads: up to four for each core, and 16 anywhere, so
/// that tests of many threads run on small machines.
///
/// # Errors
/// [`CpuError::TooManyThreads`] if it has not.
pub fn check_threads(threads: usize) -> Result<(), CpuError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let limit = (4 * cores).max(16);
    if threads > limit {
        return Err(CpuError::TooManyThreads {
            threads,
            limit,
            cores,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_more_threads_than_cores_are_refused_by_their_numbers() {
        assert!(check_threads(0).is_ok(), "one per core");
        assert!(check_threads(16).is_ok());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        assert!(check_threads(4 * cores).is_ok());
        let error = check_threads(1 << 20).unwrap_err().to_string();
        assert!(
            error.starts_with("1048576 threads are more than "),
            "{error}"
        );
        assert!(error.contains("run.threads"), "{error}");
    }
}
