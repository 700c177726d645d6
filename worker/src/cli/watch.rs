//! What `synfire train` shows to others while it goes: metrics and the report.

use super::say;
use crate::checkpoint::Page;
use crate::observe::{Exporter, Measure};
use crate::report::Report;
use crate::train::Event;
use anyhow::Context;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use synfire_shared::Run;
use synfire_shared::metrics::Metrics;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Serve Prometheus metrics at /metrics of this address, with port 0 of any free port. A port
    /// alone means 127.0.0.1; who can reach the address can read the metrics
    #[arg(long, value_name = "IP:PORT", value_parser = address)]
    metrics_addr: Option<SocketAddr>,
    /// Write a report with plots to this HTML file, anew after every epoch; a run folder has one in
    /// any case
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

impl Arguments {
    /// Whether metrics are asked for.
    pub(super) fn is_serving(&self) -> bool {
        self.metrics_addr.is_some()
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    let wanted = "want a port, or an IP address with a port, as in 127.0.0.1:9464 or [::1]:9464";
    text.parse().map_err(|_| wanted.into())
}

/// The metrics of this process, served as long as it runs.
pub(super) struct Served {
    metrics: Arc<Metrics>,
    exporter: Exporter,
}

impl Served {
    /// Serves metrics, if that is asked for; `rank` is added to the port, unless it is 0, so that
    /// ranks on one machine do not meet.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub(super) fn start(arguments: &Arguments, rank: u32) -> anyhow::Result<Option<Self>> {
        let Some(mut address) = arguments.metrics_addr else {
            return Ok(None);
        };
        if address.port() != 0 {
            let port = u16::try_from(u32::from(address.port()) + rank);
            let port = port.with_context(|| {
                format!(
                    "--metrics-addr: rank {rank} has no port above {}",
                    address.port()
                )
            })?;
            address.set_port(port);
        }
        let metrics = Arc::new(Metrics::new());
        let exporter = Exporter::start(address, Arc::clone(&metrics))?;
        say!("metrics at http://{}/metrics", exporter.address());
        Ok(Some(Self { metrics, exporter }))
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.exporter.address()
    }
}

/// Metrics and report of a run, each if asked for; a run folder has a report in any case.
pub(super) struct Watch {
    metrics: Option<Measure>,
    report: Report,
    path: Option<PathBuf>,
    /// The report in the run folder.
    page: Option<Page>,
    /// Why the report was not written when it was last tried.
    failed: Option<std::io::Error>,
}

impl Watch {
    /// Of several ranks one writes the report.
    ///
    /// # Errors
    /// If the report's folder is not there.
    pub(super) fn start(
        arguments: &Arguments,
        run: &Run,
        served: Option<&Served>,
        reports: bool,
    ) -> anyhow::Result<Self> {
        let path = arguments.report.clone().filter(|_| reports);
        if let Some(path) = &path {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
            if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
                let folder = folder.display();
                anyhow::bail!("--report: {folder} is no folder: make it first");
            }
        }
        Ok(Self {
            metrics: served.map(|served| Measure::new(run, Arc::clone(&served.metrics))),
            report: Report::new(run),
            path,
            page: None,
            failed: None,
        })
    }

    pub(super) fn see(&mut self, event: &Event) {
        if let Some(measure) = &mut self.metrics {
            measure.see(event);
        }
        self.report.see(event);
        match event {
            Event::Recording { page, earlier } => {
                self.page = Some(page.clone());
                // An earlier process may have been killed before it wrote its last.
                if !earlier.is_empty() {
                    page.put(self.report.html());
                }
            }
            Event::Epoch(_) => self.write(),
            Event::Began { .. }
            | Event::Grouped { .. }
            | Event::Initialised { .. }
            | Event::Resumed { .. }
            | Event::BadSamples(_)
            | Event::CheckpointCopied { .. }
            | Event::CheckpointEnded { .. }
            | Event::Warning(_)
            | Event::Progress(_) => {}
        }
    }

    fn write(&mut self) {
        if let Some(page) = &self.page {
            page.put(self.report.html());
        }
        if let Some(path) = &self.path {
            self.failed = self.report.write(path).err();
            if let Some(error) = &self.failed {
                tracing::warn!(path = %path.display(), %error, "no report is written");
            }
        }
    }

    /// # Errors
    /// If the last report was not written.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        let Some(path) = self.path else {
            return Ok(());
        };
        let shown = path.display();
        if let Some(error) = self.failed {
            return Err(error).with_context(|| format!("cannot write the report {shown}"));
        }
        say!("report written to {shown}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_loopback_unless_an_ip_says_otherwise() {
        for (text, address_meant) in [
            ("9464", "127.0.0.1:9464"),
            ("0", "127.0.0.1:0"),
            ("127.0.0.1:9464", "127.0.0.1:9464"),
            ("0.0.0.0:1", "0.0.0.0:1"),
            ("[::1]:7", "[::1]:7"),
        ] {
            assert_eq!(address(text).unwrap(), address_meant.parse().unwrap());
        }
        for text in [
            "",
            ":9464",
            "localhost:9464",
            "127.0.0.1",
            "1.2.3.4:99999",
            "*:1",
        ] {
            assert!(address(text).is_err(), "{text}");
        }
    }
}
