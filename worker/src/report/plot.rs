//! A line plot as SVG, with its legend as HTML.

use super::escape;
use std::fmt::Write as _;

/// Units of the picture; its text is 13 units high, so that a phone's width leaves it readable.
const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 388.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 200.0;
/// Above this many points of a line, single points are not marked.
const MOST_MARKS: usize = 40;
/// Patterns of lines, so that colour is not the only difference.
const DASHES: [&str; 4] = ["none", "7 4", "2 3", "10 3 2 3"];

/// A line: its name and its points, of which those that are not finite are left out.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// A plot of some lines over whole numbers.
#[derive(Debug)]
pub(super) struct Plot<'a> {
    pub(super) title: &'a str,
    pub(super) note: &'a str,
    pub(super) x_name: &'a str,
    /// Follows each number on the vertical axis.
    pub(super) unit: &'a str,
    /// Whether the vertical axis begins at 0.
    pub(super) from_zero: bool,
    /// Whether the lines are a sequence, as layers are, with colours from one end to the other.
    pub(super) sequence: bool,
    pub(super) lines: Vec<Line>,
}

impl Plot<'_> {
    /// A `<figure>`; a sentence in place of the picture where there are no points.
    pub(super) fn html(&self) -> String {
        let title = escape(self.title);
        let mut html = format!("<figure><figcaption><h2>{title}</h2>");
        if !self.note.is_empty() {
            let _ = write!(html, "<p>{}</p>", escape(self.note));
        }
        html += "</figcaption>";
        let points = || self.lines.iter().flat_map(finite);
        if points().next().is_none() {
            return html + "<p class=\"none\">Nothing to show yet.</p></figure>\n";
        }
        let x = Axis::whole(points().map(|(x, _)| x));
        let y = Axis::nice(points().map(|(_, y)| y), self.from_zero);
        let _ = write!(
            html,
            "<svg class=\"plot\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-label=\"{title}\">"
        );
        html += &self.axes(&x, &y);
        for (index, line) in self.lines.iter().enumerate() {
            html += &self.line(index, line, &x, &y);
        }
        html + "</svg>" + &self.legend() + "</figure>\n"
    }

    fn axes(&self, x: &Axis, y: &Axis) -> String {
        let mut svg = String::from("<g class=\"axes\">");
        for tick in y.ticks() {
            let at = y.place(tick, BOTTOM, TOP);
            let label = format!("{tick:.*}", y.decimals);
            let _ = write!(
                svg,
                "<path d=\"M{LEFT} {at:.1}H{RIGHT}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}{}</text>",
                LEFT - 6.0,
                at + 4.5,
                escape(self.unit),
            );
        }
        for tick in x.ticks() {
            let at = x.place(tick, LEFT, RIGHT);
            let below = BOTTOM + 17.0;
            let _ = write!(
                svg,
                "<text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{tick:.0}</text>"
            );
        }
        let middle = f64::midpoint(LEFT, RIGHT);
        let below = BOTTOM + 34.0;
        let name = escape(self.x_name);
        let _ = write!(
            svg,
            "<text x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">{name}</text></g>"
        );
        svg
    }

    fn line(&self, index: usize, line: &Line, x: &Axis, y: &Axis) -> String {
        let place =
            |(at, value): (f64, f64)| (x.place(at, LEFT, RIGHT), y.place(value, BOTTOM, TOP));
        let points: Vec<(f64, f64)> = finite(line).collect();
        let mut svg = format!("<g {}><polyline points=\"", self.paint(index));
        for &point in &points {
            let (px, py) = place(point);
            let _ = write!(svg, "{px:.1},{py:.1} ");
        }
        svg += "\"/>";
        if points.len() <= MOST_MARKS {
            for &point in &points {
                let (px, py) = place(point);
                let _ = write!(
                    svg,
                    "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3\"><title>{}, {} {}: {:.*}{}\
                     </title></circle>",
                    escape(&line.name),
                    escape(self.x_name),
                    point.0,
                    y.decimals + 2,
                    point.1,
                    escape(self.unit),
                );
            }
        }
        svg + "</g>"
    }

    /// Class, dashes and colour of a line.
    fn paint(&self, index: usize) -> String {
        let dash = DASHES[index % DASHES.len()];
        if self.sequence {
            let last = self.lines.len().saturating_sub(1).max(1);
            let share = 100.0 * index as f64 / last as f64;
            format!("class=\"line ramp\" style=\"--mix:{share:.0}%;--dash:{dash}\"")
        } else {
            format!("class=\"line c{}\" style=\"--dash:{dash}\"", index % 4)
        }
    }

    fn legend(&self) -> String {
        if self.lines.len() < 2 {
            return String::new();
        }
        let mut html = String::from("<ul class=\"legend\">");
        for (index, line) in self.lines.iter().enumerate() {
            if finite(line).next().is_none() {
                continue;
            }
            let _ = write!(
                html,
                "<li><svg viewBox=\"0 0 28 10\" aria-hidden=\"true\"><g {}>\
                 <path d=\"M1 5H27\"/><circle cx=\"14\" cy=\"5\" r=\"3\"/></g></svg>{}</li>",
                self.paint(index),
                escape(&line.name),
            );
        }
        html + "</ul>"
    }
}

fn finite(line: &Line) -> impl Iterator<Item = (f64, f64)> {
    let points = line.points.iter().copied();
    points.filter(|(x, y)| x.is_finite() && y.is_finite())
}

/// A range of numbers with marks at multiples of `tick`.
#[derive(Debug)]
struct Axis {
    low: f64,
    high: f64,
    tick: f64,
    decimals: usize,
}

impl Axis {
    /// For whole numbers: from the first to the last.
    fn whole(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = ends(values);
        let margin = if low < high { 0.0 } else { 0.5 };
        Self {
            low: low - margin,
            high: high + margin,
            tick: round_up((high - low) / 6.0).max(1.0),
            decimals: 0,
        }
    }

    /// From one multiple of the tick to another.
    fn nice(values: impl Iterator<Item = f64>, from_zero: bool) -> Self {
        let (mut low, mut high) = ends(values);
        if from_zero {
            (low, high) = (low.min(0.0), high.max(0.0));
        }
        // A flat line lies in the middle of something that is not empty.
        let least = (high.abs().max(low.abs()) * 1e-3).max(1e-9);
        if high - low < least {
            (low, high) = if from_zero {
                (low, low + least)
            } else {
                (low - least, high + least)
            };
        }
        let tick = round_up((high - low) / 5.0);
        let decimals = (0..12)
            .find(|&d| tick * 10f64.powi(d) > 0.999)
            .unwrap_or(12);
        Self {
            low: (low / tick + 1e-9).floor() * tick,
            high: (high / tick - 1e-9).ceil() * tick,
            tick,
            decimals: usize::try_from(decimals).expect("it is at most 12"),
        }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let first = (self.low / self.tick - 1e-6).ceil();
        let ticks = (0..20).map(move |i| (first + f64::from(i)) * self.tick + 0.0);
        ticks.take_while(|tick| *tick <= self.high + self.tick * 1e-6)
    }

    fn place(&self, value: f64, from: f64, to: f64) -> f64 {
        from + (value - self.low) / (self.high - self.low) * (to - from)
    }
}

fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let ends = (f64::INFINITY, f64::NEG_INFINITY);
    values.fold(ends, |(low, high), v| (low.min(v), high.max(v)))
}

/// The next of 1, 2, 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.max(1e-12).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    let fits = steps.into_iter().find(|step| *step >= value * 0.999_999);
    fits.unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(axis: &Axis) -> Vec<String> {
        axis.ticks()
            .map(|t| format!("{t:.*}", axis.decimals))
            .collect()
    }

    #[test]
    fn axes_have_a_handful_of_round_marks_that_contain_the_values() {
        let axis = Axis::nice([0.123, 0.456].into_iter(), false);
        assert_eq!(marks(&axis), ["0.1", "0.2", "0.3", "0.4", "0.5"]);
        let axis = Axis::nice([81.2, 84.9].into_iter(), false);
        assert_eq!(marks(&axis), ["81", "82", "83", "84", "85"]);
        let axis = Axis::nice([900.0].into_iter(), true);
        assert_eq!(marks(&axis), ["0", "200", "400", "600", "800", "1000"]);
        for values in [[0.0, 0.0], [5.0, 5.0], [-1e9, 1e9], [1e-7, 2e-7]] {
            for from_zero in [false, true] {
                let axis = Axis::nice(values.into_iter(), from_zero);
                let marks = marks(&axis);
                assert!((2..=8).contains(&marks.len()), "{values:?}: {marks:?}");
                assert!(axis.low <= values[0] && values[1] <= axis.high, "{axis:?}");
            }
        }
        assert_eq!(marks(&Axis::whole([1.0].into_iter())), ["1"]);
        assert_eq!(
            marks(&Axis::whole([1.0, 4.0].into_iter())),
            ["1", "2", "3", "4"]
        );
        assert!(marks(&Axis::whole([1.0, 300.0].into_iter())).len() <= 8);
    }

    #[test]
    fn points_that_are_not_finite_are_left_out() {
        let mut plot = Plot {
            title: "a < b",
            note: "",
            x_name: "epoch",
            unit: "",
            from_zero: false,
            sequence: false,
            lines: vec![Line {
                name: "<b>".into(),
                points: vec![(1.0, f64::NAN), (2.0, 0.5), (3.0, f64::INFINITY)],
            }],
        };
        let html = plot.html();
        assert_eq!(html.matches("<circle").count(), 1);
        assert!(!html.contains("NaN") && !html.contains("inf") && !html.contains("<b>"));
        assert!(html.contains("a &lt; b"));
        plot.lines[0].points.truncate(1);
        assert!(plot.html().contains("Nothing to show yet"));
    }
}
