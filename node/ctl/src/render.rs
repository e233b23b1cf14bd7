//! What people read: tables, figures and dates.

pub(crate) mod figures;
pub(crate) mod follow;
pub(crate) mod model;
pub(crate) mod round;
pub(crate) mod site;

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};

/// One line below the head, none between rows.
const STYLE: TableStyle =
    TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// A table with a head; the columns named in `right` are aligned to the right.
pub(crate) fn table(head: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(STYLE).set_header(head);
    table.add_rows(rows);
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A figure with `digits` decimals; a dash where it is undefined.
pub(crate) fn figure(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |v| format!("{v:.digits$}"))
}

/// The first digits of a digest, for people; a dash for none.
pub(crate) fn short(digest: &str) -> &str {
    if digest.is_empty() { "–" } else { digest.get(..12).unwrap_or(digest) }
}

/// A moment of Unix time in UTC; a dash for 0.
pub(crate) fn moment(unix: u64) -> String {
    let at = i64::try_from(unix).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    match at {
        Some(at) if unix > 0 => at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        _ => "–".to_owned(),
    }
}

/// A day of Unix time.
pub(crate) fn day(unix: u64) -> String {
    moment(unix).chars().take(10).collect()
}

/// A span of seconds, as people say it.
pub(crate) fn span(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "–".to_owned();
    }
    let whole = seconds.round();
    let (hours, minutes, rest) = (whole / 3600.0, whole / 60.0 % 60.0, whole % 60.0);
    if whole >= 3600.0 {
        format!("{:.0} h {:02.0} min", hours.floor(), minutes.floor())
    } else if whole >= 60.0 {
        format!("{:.0} min {rest:02.0} s", minutes.floor())
    } else {
        format!("{rest:.0} s")
    }
}

/// An amount of bytes, in binary units.
pub(crate) fn bytes(n: u64) -> String {
    #[allow(clippy::cast_precision_loss)]
    let n = n as f64;
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    units
        .iter()
        .map(|(unit, power)| (unit, n / 2f64.powi(*power)))
        .find(|(_, amount)| *amount >= 1.0)
        .map_or_else(|| format!("{n:.0} B"), |(unit, amount)| format!("{amount:.1} {unit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_dates_and_amounts() {
        assert_eq!(figure(None, 2), "–");
        assert_eq!(figure(Some(0.256), 2), "0.26");
        assert_eq!(moment(0), "–");
        assert_eq!(moment(1_700_000_000), "2023-11-14 22:13:20 UTC");
        assert_eq!(day(1_700_000_000), "2023-11-14");
        let spans = [(59.4, "59 s"), (59.6, "1 min 00 s"), (3725.0, "1 h 02 min"), (f64::NAN, "–")];
        for (seconds, text) in spans {
            assert_eq!(span(seconds), text);
        }
        assert_eq!(
            (bytes(10), bytes(1536), bytes(3 << 30)),
            ("10 B".into(), "1.5 KiB".into(), "3.0 GiB".into())
        );
    }

    #[test]
    fn tables_have_a_head_and_no_trailing_blanks() {
        let text = table(&["a", "b"], &[1], vec![vec!["x".into(), "1".into()]]);
        assert!(text.contains('a') && text.contains('1'), "{text}");
        assert!(text.lines().all(|line| !line.ends_with(' ')), "{text:?}");
    }
}
