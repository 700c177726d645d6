//! `mpirun` for the tests that start it: `SYNFIRE_MPIRUN` names another one than `mpirun`.

use std::env;
use std::process::{Command, Stdio};

/// An `mpirun` without its ranks, and whether it is Open MPI's.
pub(crate) fn mpirun() -> (Command, bool) {
    with_name(&env::var("SYNFIRE_MPIRUN").unwrap_or_else(|_| "mpirun".into()))
}

/// The `mpirun` of this name.
pub(crate) fn with_name(name: &str) -> (Command, bool) {
    let version = Command::new(name).arg("--version").output();
    let version = version.unwrap_or_else(|error| panic!("{name}: {error}: set SYNFIRE_MPIRUN"));
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let is_open_mpi = version.contains("Open MPI") || version.contains("OpenRTE");
    let mut command = Command::new(name);
    if is_open_mpi {
        // Also as root, and on fewer cores than ranks.
        command.args([
            "--oversubscribe",
            "--allow-run-as-root",
            "--bind-to",
            "none",
        ]);
    }
    command.stdin(Stdio::null());
    (command, is_open_mpi)
}
