//! The state of the run, for people: one page without scripts that is loaded anew every two seconds.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderValue};

use synfire_shared::protocol::Status;

use super::show::images_per_second;
use super::{Shared, routes};
use crate::view::{RankView, View};

/// A rank that was not heard of for longer is shown as late: two heartbeats are missing.
const LATE_SECONDS: f64 = 2.5;

/// What the page needs beside the state of the run.
struct Frame<'a> {
    version: &'a str,
    folder: Option<&'a str>,
    refusals: Vec<(String, u64)>,
}

/// `GET /`.
pub(super) async fn page(State(shared): State<Arc<Shared>>) -> Response {
    let view = Arc::clone(&shared.view.borrow());
    let frame = Frame {
        version: &shared.policy.version,
        folder: shared.policy.folder.as_deref(),
        refusals: shared.metrics.refusals().into_iter().collect(),
    };
    let html = html(&view, &frame);
    let mut answer = routes::answer(200, "text/html; charset=utf-8", html);
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
    let policy = HeaderValue::from_static(policy);
    answer.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    answer
}

fn html(view: &View, frame: &Frame<'_>) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"refresh\" content=\"2\">\n\
         <title>synfire: {stage}</title>\n<style>\n{style}</style>\n</head>\n<body>\n\
         {header}{numbers}{missing}{ranks}{waiting}{ended}{refusals}</body>\n</html>\n",
        stage = view.stage,
        style = include_str!("page.css"),
        header = header(frame),
        numbers = numbers(view),
        missing = missing(view),
        ranks = ranks(view),
        waiting = waiting(view),
        ended = ended(view),
        refusals = refusals(&frame.refusals),
    )
}

fn header(frame: &Frame<'_>) -> String {
    let folder = frame
        .folder
        .map_or_else(String::new, |f| format!("Run folder {}; ", escape(f)));
    let version = escape(frame.version);
    format!(
        "<header>\n<h1>synfire coordinator</h1>\n\
         <p class=\"soft\">{folder}synfire {version}. This page shows the state of now, anew every \
         two seconds.</p>\n</header>\n"
    )
}

fn numbers(view: &View) -> String {
    let mut html = String::from("<dl class=\"numbers\">\n");
    let mut number = |class: &str, name: &str, value: &str, note: &str| {
        let _ = writeln!(
            html,
            "<div class=\"{class}\"><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>"
        );
    };
    let (class, stage) = match view.stage {
        "training" => ("first good", "training"),
        "over" => ("first", "over"),
        other => ("first warn", other),
    };
    let reason = view.reason.as_deref().map_or_else(String::new, escape);
    number(class, "Run", stage, &reason);
    let generation = view.generation.map_or("–".into(), |g| g.to_string());
    let begun = match view.generations {
        0 => "none has begun here".into(),
        1 => "1 has begun here".to_owned(),
        n => format!("{n} have begun here"),
    };
    number("", "Generation", &generation, &begun);
    let there = view.members.iter().filter(|rank| !rank.has_left).count();
    let least = if view.min_ranks < view.ranks {
        format!("at least {}", view.min_ranks)
    } else {
        String::new()
    };
    number("", "Ranks", &format!("{there} of {}", view.ranks), &least);
    let rank_0 = view.members.iter().find_map(|rank| rank.status);
    if let Some(status) = rank_0 {
        let (done, in_all) = (status.batches_done, status.batches_in_all);
        let bar = format!(
            "<progress max=\"{}\" value=\"{done}\"></progress>",
            in_all.max(1)
        );
        let epoch = format!(
            "epoch {}, {done} of {in_all} batches {bar}",
            status.epoch + 1
        );
        let share = 100.0 * done as f64 / in_all.max(1) as f64;
        number("", "Done", &format!("{share:.1} %"), &epoch);
        let speed = format!("{:.0} images/s", images_per_second(view));
        let loss = real(status.loss, 4);
        number("", "Speed, all ranks", &speed, &format!("loss {loss}"));
    }
    match &view.checkpoint {
        Some(newest) => {
            let note = format!("epoch {}, {}", newest.epoch + 1, escape(&newest.manifest));
            let batches = format!("{} batches", newest.batches_done);
            number("", "Newest checkpoint", &batches, &note);
        }
        None => number("", "Newest checkpoint", "–", "none was reported here"),
    }
    html + "</dl>\n"
}

/// Who is waited for.
fn missing(view: &View) -> String {
    let is_waited = view.stage != "training" || !view.waiting.is_empty();
    if view.missing.is_empty() || view.reason.is_some() || !is_waited {
        return String::new();
    }
    let mut lines = String::new();
    for line in &view.missing {
        let _ = writeln!(lines, "<li>{}</li>", escape(line));
    }
    let left = view.seconds_left.map_or_else(String::new, |seconds| {
        format!("<p class=\"soft\">In {seconds:.0} s the run goes on with who is there.</p>\n")
    });
    format!("<section>\n<h2>Waited for</h2>\n<ul>\n{lines}</ul>\n{left}</section>\n")
}

fn ranks(view: &View) -> String {
    if view.members.is_empty() {
        return String::new();
    }
    let rows: String = view.members.iter().map(rank).collect();
    format!(
        "<section>\n<h2>Ranks</h2>\n<table>\n<tr><th class=\"text\">rank</th>\
         <th class=\"text\">host</th><th class=\"text\">phase</th><th>epoch</th><th>batch</th>\
         <th>update</th><th>images/s</th><th>loss</th><th>last heard</th></tr>\n{rows}</table>\n\
         </section>\n"
    )
}

fn rank(rank: &RankView) -> String {
    let member = &rank.member;
    let place = format!("{} (pid {})", escape(&member.host), member.pid);
    let phase = match rank.status {
        _ if rank.has_left => "left",
        Some(status) => status.phase.name(),
        None => "not heard of",
    };
    let numbers = |status: Status| {
        format!(
            "<td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>",
            status.epoch + 1,
            status.batch,
            status.update,
            real(status.images_per_second, 0),
            real(status.loss, 4),
        )
    };
    let numbers = rank.status.map_or_else(|| "<td>–</td>".repeat(5), numbers);
    let is_late = !rank.has_left && rank.silent_seconds > LATE_SECONDS;
    let late = if is_late { " class=\"late\"" } else { "" };
    format!(
        "<tr><td class=\"text\">{}</td><td class=\"text\">{place}</td>\
         <td class=\"text\">{phase}</td>{numbers}\
         <td{late}>{:.1} s ago</td></tr>\n",
        member.rank, rank.silent_seconds
    )
}

fn waiting(view: &View) -> String {
    if view.waiting.is_empty() {
        return String::new();
    }
    let row = |waiting: &crate::view::WaitingView| {
        let rank = waiting.rank.map_or("any".into(), |rank| rank.to_string());
        format!(
            "<tr><td class=\"text\">{} (pid {})</td><td>{rank}</td><td>{:.0} s</td></tr>\n",
            escape(&waiting.host),
            waiting.pid,
            waiting.waiting_seconds
        )
    };
    let mut waiting: Vec<_> = view.waiting.iter().collect();
    waiting.sort_by_key(|waiting| (waiting.rank.is_none(), waiting.rank));
    let rows: String = waiting.into_iter().map(row).collect();
    format!(
        "<section>\n<h2>Waiting</h2>\n<table class=\"short\">\n<tr><th class=\"text\">host</th><th>wants rank</th>\
         <th>for</th></tr>\n{rows}</table>\n</section>\n"
    )
}

fn ended(view: &View) -> String {
    if view.ended.is_empty() {
        return String::new();
    }
    let row = |ended: &crate::view::EndedView| {
        format!(
            "<tr><td class=\"text\">{}</td><td class=\"text\">{}</td>\
             <td class=\"text long\">{}</td></tr>\n",
            ended.generation,
            escape(&ended.loss.replace('_', " ")),
            escape(&ended.reason)
        )
    };
    let rows: String = view.ended.iter().map(row).collect();
    format!(
        "<section>\n<h2>Generations that are over</h2>\n<table>\n<tr>\
         <th class=\"text\">generation</th><th class=\"text\">kind</th><th class=\"text\">reason</th>\
         </tr>\n{rows}</table>\n</section>\n"
    )
}

fn refusals(counts: &[(String, u64)]) -> String {
    if counts.is_empty() {
        return String::new();
    }
    let row = |(reason, count): &(String, u64)| {
        let reason = escape(&reason.replace('_', " "));
        format!("<tr><td class=\"text\">{reason}</td><td>{count}</td></tr>\n")
    };
    let rows: String = counts.iter().map(row).collect();
    format!(
        "<section>\n<h2>Refused</h2>\n<table class=\"short\">\n<tr><th class=\"text\">reason</th><th>times</th></tr>\n\
         {rows}</table>\n</section>\n"
    )
}

/// A number with so many digits, or that it is none.
fn real(value: f64, digits: usize) -> String {
    if value.is_finite() {
        format!("{value:.digits$}")
    } else {
        "not finite".into()
    }
}

/// A text that others sent, as text in HTML.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if c.is_control() => escaped.extend(c.escape_debug()),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_send_is_text() {
        assert_eq!(
            escape("<script>\"'&\n"),
            "&lt;script&gt;&quot;&#39;&amp;\\n"
        );
        let view = crate::Run::new(crate::Policy::new(2, "0.1.0").unwrap()).view();
        let frame = Frame {
            version: "<b>",
            folder: Some("<i>"),
            refusals: vec![("<u>".into(), 1)],
        };
        let html = html(&view, &frame);
        for tag in ["<b>", "<i>", "<u>"] {
            assert!(!html.contains(tag), "{html}");
        }
    }
}
