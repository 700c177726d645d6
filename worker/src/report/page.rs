//! The page: numbers first, then plots, then tables and the configuration.

use super::plot::{Line, Plot};
use super::{Report, escape};
use crate::train::EpochLine;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The commit that the program was built from, where who built it said so.
const COMMIT: Option<&str> = option_env!("SYNFIRE_COMMIT");

pub(super) fn html(report: &Report) -> String {
    let plots: String = plots(report).iter().map(Plot::html).collect();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>synfire: {model}</title>\n<style>\n{style}</style>\n</head>\n<body>\n\
         {header}{numbers}<section class=\"plots\">\n{plots}</section>\n\
         {epochs}{layers}<details>\n<summary>Configuration</summary>\n\
         <pre>{configuration}</pre>\n</details>\n</body>\n</html>\n",
        model = escape(&report.model),
        style = include_str!("style.css"),
        header = header(report),
        numbers = numbers(report),
        epochs = epochs_table(report),
        layers = layers_table(report),
        configuration = escape(&report.configuration),
    )
}

fn header(report: &Report) -> String {
    let (done, in_all) = report.batches;
    let state = if in_all > 0 && done == in_all {
        "finished"
    } else {
        "still training, or stopped early"
    };
    let mut html = format!("<header>\n<h1>{}", escape(&report.model));
    let mut line = format!("{} of {} epochs", report.epochs.len(), report.num_epochs);
    if in_all > 0 {
        let _ = write!(line, ", {done} of {in_all} batches: {state}");
    } else if done > 0 {
        let _ = write!(line, ", {done} batches before this process");
    }
    if let Some(began) = &report.began {
        let _ = write!(html, ", {}", escape(&began.algorithm));
        let _ = write!(
            line,
            ". {} parameters, {} training and {} test images, on {}",
            began.parameters,
            began.images.0,
            began.images.1,
            escape(&began.engine)
        );
    }
    let commit = COMMIT.map_or_else(String::new, |c| format!(", commit {}", escape(c)));
    let version = env!("CARGO_PKG_VERSION");
    let _ = write!(
        html,
        "</h1>\n<p class=\"soft\">{line}. synfire {version}{commit}.</p>\n</header>\n"
    );
    html
}

/// The accuracy after the last epoch, and other single numbers.
fn numbers(report: &Report) -> String {
    let mut html = String::from("<dl class=\"numbers\">\n");
    let mut number = |class: &str, name: &str, value: &str, note: &str| {
        let _ = writeln!(
            html,
            "<div class=\"{class}\"><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>"
        );
    };
    let tested = || report.epochs.iter().filter_map(tested);
    let last_is_tested = report
        .epochs
        .last()
        .is_some_and(|e| e.test_accuracy.is_some());
    match tested().next_back() {
        None => number("first", "Test accuracy", "–", "not yet measured"),
        Some(test) if last_is_tested => {
            let value = percent(test.accuracy);
            number("first", "Test accuracy after the last epoch", &value, "");
        }
        Some(test) => {
            let name = format!("Test accuracy after epoch {}", test.epoch);
            let note = "the newest that was measured";
            number("first", &name, &percent(test.accuracy), note);
        }
    }
    if let Some(best) = tested().reduce(better) {
        let note = format!("epoch {}, chosen on the test set", best.epoch);
        number("", "Best epoch", &percent(best.accuracy), &note);
    }
    if let Some(last) = report.epochs.last() {
        let loss = format!("{:.4}", last.loss);
        let train = format!("training accuracy {}", percent(last.train_accuracy));
        number("", "Training loss, last epoch", &loss, &train);
        let rate = format!("{:.0} images/s", last.images_per_second);
        let seconds: f64 = report.epochs.iter().map(|e| e.train_seconds).sum();
        let note = format!("{seconds:.0} s of training in all");
        number("", "Speed, last epoch", &rate, &note);
    }
    if let (Some(group), Some(last)) = (&report.group, report.epochs.last()) {
        let milliseconds = 1e3 * last.exchange_wait_seconds / last.updates.max(1) as f64;
        let note = format!("exposed communication {milliseconds:.2} ms per update, last epoch");
        number("", "Ranks", &escape(group), &note);
    }
    if let Some(began) = &report.began {
        let windows = format!("{:.1} MiB", began.window_bytes as f64 / f64::from(1 << 20));
        let peak = report.epochs.last().and_then(|e| e.peak_resident_mib);
        let peak = peak.map_or_else(String::new, |p| format!("{p:.0} MiB resident at the peak"));
        number("", "Kept over the window", &windows, &peak);
    }
    html + "</dl>\n"
}

/// What an epoch's test gave.
#[derive(Clone, Copy)]
struct Tested<'a> {
    /// From 1.
    epoch: u32,
    accuracy: f64,
    by_time_step: &'a [f64],
}

/// The earlier of two epochs unless the later is better.
fn better<'a>(a: Tested<'a>, b: Tested<'a>) -> Tested<'a> {
    if b.accuracy > a.accuracy { b } else { a }
}

fn tested(line: &EpochLine) -> Option<Tested<'_>> {
    Some(Tested {
        epoch: line.epoch + 1,
        accuracy: line.test_accuracy?,
        by_time_step: line.test_accuracy_by_time_step.as_deref().unwrap_or(&[]),
    })
}

fn percent(ratio: f64) -> String {
    format!("{:.2} %", 100.0 * ratio)
}

fn plots(report: &Report) -> Vec<Plot<'_>> {
    let losses = vec![
        over(report, "test", |e| e.test_loss),
        over(report, "training", |e| Some(e.loss)),
    ];
    let accuracies = vec![
        over(report, "test", |e| e.test_accuracy.map(|a| 100.0 * a)),
        over(report, "training", |e| Some(100.0 * e.train_accuracy)),
    ];
    let plot = |title, unit, from_zero, lines| Plot {
        title,
        note: "",
        x_name: "epoch",
        unit,
        from_zero,
        sequence: false,
        lines,
    };
    let rates = by_layer(report, |e| &e.firing_rate_by_layer, 1.0);
    let mut firing = plot("Firing rate by layer", "", true, rates);
    firing.note = "Spikes per neuron and time step in training, first layer to last.";
    firing.sequence = true;
    let dead = by_layer(report, |e| &e.dead_by_layer, 100.0);
    let mut dead = plot("Dead neurons by layer", " %", true, dead);
    dead.note = "Neurons without a spike in any sample of a training batch at any time step; mean over \
                 batches, first layer to last.";
    dead.sequence = true;
    let speed = over(report, "training", |e| Some(e.images_per_second));
    let window = report
        .began
        .as_ref()
        .map(|b| b.window_bytes as f64 / f64::from(1 << 20));
    let memory = vec![
        over(report, "resident", |e| e.resident_mib),
        over(report, "resident, peak so far", |e| e.peak_resident_mib),
        over(report, "kept over the window", |_| window),
    ];
    let mut loss = plot("Loss", "", false, losses);
    loss.note = "Mean over time steps and batches; of the test set over its samples.";
    vec![
        plot("Accuracy", " %", false, accuracies),
        loss,
        by_time_step(report),
        plot("Images per second", "", true, vec![speed]),
        plot("Memory in MiB", "", true, memory),
        firing,
        dead,
    ]
}

/// A line over epochs, counted from 1.
fn over(report: &Report, name: &str, value: impl Fn(&EpochLine) -> Option<f64>) -> Line {
    let point = |e: &EpochLine| Some((f64::from(e.epoch + 1), value(e)?));
    Line {
        name: name.into(),
        points: report.epochs.iter().filter_map(point).collect(),
    }
}

/// A line for each layer of what it has of `values`, times a factor.
fn by_layer(
    report: &Report,
    values: impl Fn(&EpochLine) -> &BTreeMap<String, f64>,
    factor: f64,
) -> Vec<Line> {
    let layers = report.began.as_ref().map_or(&[][..], |b| &b.layers);
    let line = |name: &String| {
        let value = |e: &EpochLine| values(e).get(name).map(|value| factor * value);
        over(report, name, value)
    };
    layers.iter().map(line).collect()
}

fn by_time_step(report: &Report) -> Plot<'_> {
    let line = |name: String, ratios: &[f64]| {
        let steps = ratios.iter().enumerate();
        let points = steps.map(|(t, ratio)| (t as f64, 100.0 * ratio)).collect();
        Line { name, points }
    };
    let mut lines = Vec::new();
    let tests = || report.epochs.iter().filter_map(tested);
    if let Some(newest) = tests().next_back() {
        let name = format!("test, epoch {}", newest.epoch);
        lines.push(line(name, newest.by_time_step));
        let best = tests().reduce(better);
        if let Some(best) = best.filter(|best| best.epoch != newest.epoch) {
            let name = format!("test, best epoch {}", best.epoch);
            lines.push(line(name, best.by_time_step));
        }
    }
    if let Some(last) = report.epochs.last() {
        let name = format!("training, epoch {}", last.epoch + 1);
        lines.push(line(name, &last.train_accuracy_by_time_step));
    }
    Plot {
        title: "Accuracy by time step",
        note: "By the logits summed up to time step t.",
        x_name: "time step t",
        unit: " %",
        from_zero: false,
        sequence: false,
        lines,
    }
}

fn epochs_table(report: &Report) -> String {
    let mut html = String::from(
        "<details>\n<summary>Epochs</summary>\n<div class=\"wide\"><table>\n<tr><th>epoch</th>\
         <th>learning rate</th><th>loss</th><th>training</th><th>test</th><th>firing rate</th>\
         <th>images/s</th><th>seconds</th><th>waited for data</th></tr>\n",
    );
    for epoch in &report.epochs {
        let test = epoch.test_accuracy.map_or_else(|| "–".into(), percent);
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{:.5}</td><td>{:.4}</td><td>{}</td><td>{test}</td><td>{:.4}</td>\
             <td>{:.0}</td><td>{:.1}</td><td>{:.2}</td></tr>",
            epoch.epoch + 1,
            epoch.lr,
            epoch.loss,
            percent(epoch.train_accuracy),
            epoch.firing_rate,
            epoch.images_per_second,
            epoch.train_seconds,
            epoch.data_wait_seconds,
        );
    }
    html + "</table></div>\n</details>\n"
}

fn layers_table(report: &Report) -> String {
    let (Some(began), Some(last)) = (&report.began, report.epochs.last()) else {
        return String::new();
    };
    let mut html = String::from(
        "<details>\n<summary>Firing rates, last epoch</summary>\n<div class=\"wide\"><table>\n\
         <tr><th>layer</th><th>spikes per neuron and time step</th><th>dead neurons</th></tr>\n",
    );
    for name in &began.layers {
        let Some(rate) = last.firing_rate_by_layer.get(name) else {
            continue;
        };
        let dead = last.dead_by_layer.get(name).copied().unwrap_or(0.0);
        let (name, dead) = (escape(name), percent(dead));
        let _ = writeln!(
            html,
            "<tr><td>{name}</td><td>{rate:.4}</td><td>{dead}</td></tr>"
        );
    }
    html + "</table></div>\n</details>\n"
}
