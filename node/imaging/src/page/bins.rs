//! Detection and contours by size.

use super::{figure, mm3};
use crate::metrics::LesionResult;

/// Lesions of a range of sizes, as a row of the table.
pub(super) struct Bin {
    pub(super) name: String,
    /// From, to (exclusive), mm³.
    pub(super) range_mm3: [f64; 2],
    pub(super) lesions: usize,
    pub(super) found: usize,
    pub(super) sensitivity: String,
    /// Medians of Dice, surface Dice, HD95 over found lesions.
    pub(super) medians: [String; 3],
}

/// 1, 3, 10, 30, … mm³; 100 mm³ is the paper's limit of 0.1 cm³ for small metastases.
pub(super) fn edge(n: i32) -> f64 {
    10f64.powi(n.div_euclid(2)) * if n.rem_euclid(2) == 1 { 3.0 } else { 1.0 }
}

/// The number of the last edge that is not above a volume.
pub(super) fn below(volume_mm3: f64) -> i32 {
    // Within a half decade; then the exact edge.
    let guess = (2.0 * volume_mm3.log10()).floor() as i32;
    (guess - 1..=guess + 1).rev().find(|n| edge(*n) <= volume_mm3).unwrap_or(guess - 1)
}

/// Whether a volume has a place on a logarithmic axis.
pub(super) fn measurable(volume_mm3: f64) -> bool {
    volume_mm3.is_finite() && volume_mm3 >= 1e-9
}

/// All ranges from the smallest to the largest lesion, empty ones too.
pub(super) fn bins(lesions: &[&LesionResult]) -> Vec<Bin> {
    let placed =
        || lesions.iter().filter(|l| measurable(l.volume_mm3)).map(|l| below(l.volume_mm3));
    let (Some(first), Some(last)) = (placed().min(), placed().max()) else {
        return Vec::new();
    };
    (first..=last)
        .map(|n| {
            let [from, to] = [edge(n), edge(n + 1)];
            let within: Vec<&LesionResult> = (lesions.iter().copied())
                .filter(|l| measurable(l.volume_mm3) && below(l.volume_mm3) == n)
                .collect();
            let name = format!("{} – {}", label(n), label(n + 1));
            bin(name, [from, to], &within)
        })
        .collect()
}

/// One row over all lesions; none without any.
pub(super) fn all(lesions: &[&LesionResult]) -> Option<Bin> {
    (!lesions.is_empty()).then(|| bin("all".to_owned(), [0.0, f64::INFINITY], lesions))
}

fn bin(name: String, range_mm3: [f64; 2], lesions: &[&LesionResult]) -> Bin {
    let found = lesions.iter().filter(|l| l.detected).count();
    let share = (!lesions.is_empty()).then(|| found as f64 / lesions.len() as f64);
    let median = |of: fn(&LesionResult) -> Option<f64>, digits| {
        let mut values: Vec<f64> = lesions.iter().filter_map(|l| of(l)).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            _ if values.is_empty() => None,
            1 => Some(values[middle]),
            _ => Some(f64::midpoint(values[middle - 1], values[middle])),
        };
        figure(median, digits)
    };
    Bin {
        name,
        range_mm3,
        lesions: lesions.len(),
        found,
        sensitivity: figure(share, 2),
        medians: [median(|l| l.dice, 3), median(|l| l.surface_dice, 3), median(|l| l.hd95_mm, 2)],
    }
}

/// The edge of a number in figures, with narrow spaces between thousands.
pub(super) fn label(n: i32) -> String {
    // As many decimals as reach its one digit: 3·10⁻¹ is not 0.3 in binary.
    let decimals = usize::try_from(-n.div_euclid(2)).unwrap_or(0);
    if decimals > 0 {
        return format!("{:.decimals$}", edge(n));
    }
    let digits = format!("{:.0}", edge(n));
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

impl Bin {
    /// Bounds in words, for those who hear the table.
    pub(super) fn title(&self) -> String {
        let [from, to] = self.range_mm3;
        if to.is_finite() {
            format!("at least {} and below {} mm³", mm3(from), mm3(to))
        } else {
            "lesions of all sizes".to_owned()
        }
    }
}
