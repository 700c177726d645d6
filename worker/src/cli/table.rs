//! Columns and numbers for people.

use std::fmt::Write as _;

/// Lines of cells, the first column to the left, the others to the right.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(head: &[&str]) -> Self {
        let head = head.iter().map(|&cell| cell.to_owned()).collect();
        Self { rows: vec![head] }
    }

    pub(super) fn push(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table with two spaces between columns and no space at the ends of lines.
    pub(super) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |c: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(c));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (c, cell) in row.iter().enumerate() {
                let width = widths[c];
                let _ = if c == 0 {
                    write!(line, "{cell:<width$}")
                } else {
                    write!(line, "  {cell:>width$}")
                };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// 11173962 as `11,173,962`.
pub(super) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes as MiB with enough digits.
pub(super) fn mib(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib >= 10_240.0 {
        format!("{:.0} GiB", mib / 1024.0)
    } else if mib >= 100.0 {
        format!("{mib:.0} MiB")
    } else if mib >= 1.0 {
        format!("{mib:.1} MiB")
    } else {
        format!("{:.1} KiB", bytes as f64 / 1024.0)
    }
}

/// A share as per cent.
pub(super) fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// Seconds as `1 h 02 min`, `3 min 05 s` or `4.2 s`.
pub(super) fn duration(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a run of 136 years is long enough"
    )]
    #[expect(clippy::cast_sign_loss, reason = "time goes forward")]
    let whole = seconds.round().min(f64::from(u32::MAX)) as u32;
    if whole < 3600 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        format!("{} h {:02} min", whole / 3600, whole % 3600 / 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_times_are_short() {
        assert_eq!(thousands(11_173_962), "11,173,962");
        assert_eq!(thousands(999), "999");
        assert_eq!(mib(3 << 19), "1.5 MiB");
        assert_eq!(mib(512), "0.5 KiB");
        assert_eq!(mib(20 << 30), "20 GiB");
        assert_eq!(duration(59.94), "59.9 s");
        assert_eq!(duration(61.0), "1 min 01 s");
        assert_eq!(duration(3725.0), "1 h 02 min");
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["a", "b"]);
        table.push(vec!["long".into(), "1".into()]);
        assert_eq!(table.text(), "a     b\nlong  1\n");
    }
}
