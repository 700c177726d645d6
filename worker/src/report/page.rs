//! The page: numbers first, then plots, then tables and the configuration.

use super::plot::{Line, Plot};
use super::{Epoch, Report, escape};
use crate::train::Tally;
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
    let mut line = format!(
        "{} of {} epochs, {done} of {in_all} batches: {state}",
        report.epochs.len(),
        report.num_epochs
    );
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
    let last_is_tested = report.epochs.last().is_some_and(|e| tested_of(e).is_some());
    match tested().next_back() {
        None => number("first", "Test accuracy", "–", "not yet measured"),
        Some((_, tally)) if last_is_tested => {
            let value = percent(tally.accuracy());
            number("first", "Test accuracy after the last epoch", &value, "");
        }
        Some((epoch, tally)) => {
            let name = format!("Test accuracy after epoch {epoch}");
            let note = "the newest that was measured";
            number("first", &name, &percent(tally.accuracy()), note);
        }
    }
    if let Some((epoch, tally)) = tested().reduce(better) {
        let note = format!("epoch {epoch}, chosen on the test set");
        number("", "Best epoch", &percent(tally.accuracy()), &note);
    }
    if let Some(last) = report.epochs.last() {
        let record = &last.record;
        let loss = format!("{:.4}", record.train.mean_loss());
        let train = format!("training accuracy {}", percent(record.train.accuracy()));
        number("", "Training loss, last epoch", &loss, &train);
        let rate = format!("{:.0} images/s", record.images_per_second);
        let seconds: f64 = report.epochs.iter().map(|e| e.record.train_seconds).sum();
        let note = format!("{seconds:.0} s of training in all");
        number("", "Speed, last epoch", &rate, &note);
    }
    if let Some(began) = &report.began {
        let windows = format!("{:.1} MiB", began.window_bytes as f64 / f64::from(1 << 20));
        let peak = report.epochs.last().and_then(|e| e.peak_mib);
        let peak = peak.map_or_else(String::new, |p| format!("{p:.0} MiB resident at the peak"));
        number("", "Kept over the window", &windows, &peak);
    }
    html + "</dl>\n"
}

/// The earlier of two epochs unless the later is better.
fn better<'a>(a: (u32, &'a Tally), b: (u32, &'a Tally)) -> (u32, &'a Tally) {
    if b.1.accuracy() > a.1.accuracy() {
        b
    } else {
        a
    }
}

fn tested_of(epoch: &Epoch) -> Option<&Tally> {
    epoch.record.tested()
}

/// The number of an epoch, from 1, with its test.
fn tested(epoch: &Epoch) -> Option<(u32, &Tally)> {
    Some((epoch.record.epoch + 1, tested_of(epoch)?))
}

fn percent(ratio: f64) -> String {
    format!("{:.2} %", 100.0 * ratio)
}

fn plots(report: &Report) -> Vec<Plot<'_>> {
    let train = |what: fn(&Tally) -> f64| over(report, "training", |e| Some(what(&e.record.train)));
    let test = |what: fn(&Tally) -> f64| over(report, "test", |e| tested_of(e).map(what));
    let accuracy = |tally: &Tally| 100.0 * tally.accuracy();
    let plot = |title, unit, from_zero, lines| Plot {
        title,
        note: "",
        x_name: "epoch",
        unit,
        from_zero,
        sequence: false,
        lines,
    };
    let mut firing = plot(
        "Firing rate by layer",
        "",
        true,
        by_layer(report, Tally::firing_rates),
    );
    firing.note = "Spikes per neuron and time step in training, first layer to last.";
    firing.sequence = true;
    let dead = |tally: &Tally| tally.dead_shares().iter().map(|d| 100.0 * d).collect();
    let mut dead = plot("Dead neurons by layer", " %", true, by_layer(report, dead));
    dead.note = "Neurons without a spike in any sample of a training batch at any time step; mean over \
                 batches, first layer to last.";
    dead.sequence = true;
    let speed = over(report, "training", |e| Some(e.record.images_per_second));
    let window = report
        .began
        .as_ref()
        .map(|b| b.window_bytes as f64 / f64::from(1 << 20));
    let memory = vec![
        over(report, "resident", |e| e.resident_mib),
        over(report, "resident, peak so far", |e| e.peak_mib),
        over(report, "kept over the window", |_| window),
    ];
    let mut loss = plot(
        "Loss",
        "",
        false,
        vec![test(Tally::mean_loss), train(Tally::mean_loss)],
    );
    loss.note = "Mean over time steps and batches.";
    vec![
        plot(
            "Accuracy",
            " %",
            false,
            vec![test(accuracy), train(accuracy)],
        ),
        loss,
        by_time_step(report),
        plot("Images per second", "", true, vec![speed]),
        plot("Memory in MiB", "", true, memory),
        firing,
        dead,
    ]
}

/// A line over epochs, counted from 1.
fn over(report: &Report, name: &str, value: impl Fn(&Epoch) -> Option<f64>) -> Line {
    let point = |e: &Epoch| Some((f64::from(e.record.epoch + 1), value(e)?));
    Line {
        name: name.into(),
        points: report.epochs.iter().filter_map(point).collect(),
    }
}

/// A line for each layer of what it has of `values`.
fn by_layer(report: &Report, values: impl Fn(&Tally) -> Vec<f64>) -> Vec<Line> {
    let layers = report.began.as_ref().map_or(&[][..], |b| &b.layers);
    let line = |(index, name): (usize, &String)| {
        over(report, name, |e| {
            values(&e.record.train).get(index).copied()
        })
    };
    layers.iter().enumerate().map(line).collect()
}

fn by_time_step(report: &Report) -> Plot<'_> {
    let line = |name: String, tally: &Tally| {
        let steps = tally.accuracies().into_iter().enumerate();
        let points = steps.map(|(t, ratio)| (t as f64, 100.0 * ratio)).collect();
        Line { name, points }
    };
    let mut lines = Vec::new();
    let tests = || report.epochs.iter().filter_map(tested);
    if let Some((epoch, tally)) = tests().next_back() {
        lines.push(line(format!("test, epoch {epoch}"), tally));
        let best = tests().reduce(better).filter(|(best, _)| *best != epoch);
        if let Some((best, tally)) = best {
            lines.push(line(format!("test, best epoch {best}"), tally));
        }
    }
    if let Some(last) = report.epochs.last() {
        let name = format!("training, epoch {}", last.record.epoch + 1);
        lines.push(line(name, &last.record.train));
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
        let record = &epoch.record;
        let test = tested_of(epoch).map_or_else(|| "–".into(), |t| percent(t.accuracy()));
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{:.5}</td><td>{:.4}</td><td>{}</td><td>{test}</td><td>{:.4}</td>\
             <td>{:.0}</td><td>{:.1}</td><td>{:.2}</td></tr>",
            record.epoch + 1,
            record.lr,
            record.train.mean_loss(),
            percent(record.train.accuracy()),
            record.train.firing_rate(),
            record.images_per_second,
            record.train_seconds,
            record.data_wait_seconds,
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
    let train = &last.record.train;
    let values = train.firing_rates().into_iter().zip(train.dead_shares());
    for (name, (rate, dead)) in began.layers.iter().zip(values) {
        let (name, dead) = (escape(name), percent(dead));
        let _ = writeln!(
            html,
            "<tr><td>{name}</td><td>{rate:.4}</td><td>{dead}</td></tr>"
        );
    }
    html + "</table></div>\n</details>\n"
}
