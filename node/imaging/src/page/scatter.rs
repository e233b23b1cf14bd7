//! Size of every lesion against whether it was found, and sensitivity by size, as SVG coordinates.

use super::bins::{self, below, measurable};
use super::{mm3, visible};
use crate::metrics::{CaseResult, LesionResult};

pub(super) const WIDTH: f64 = 720.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 680.0;
/// Middle of the bands.
const FOUND_Y: f64 = 44.0;
const MISSED_Y: f64 = 118.0;
const JITTER: f64 = 26.0;
/// Bars of sensitivity stand on this line, as high as `BAR` at 1.
const FLOOR: f64 = 246.0;
const BAR: f64 = 70.0;

/// Everything the drawing needs, in its coordinates.
pub(super) struct Scatter {
    pub(super) points: Vec<Point>,
    pub(super) ticks: Vec<Tick>,
    pub(super) bars: Vec<Bar>,
    /// Lesions that are not drawn, so that the page stays small.
    pub(super) beyond: usize,
    /// For those who cannot see it.
    pub(super) description: String,
}

pub(super) struct Point {
    pub(super) x: String,
    pub(super) y: String,
    pub(super) found: bool,
    pub(super) title: String,
}

pub(super) struct Tick {
    pub(super) x: String,
    pub(super) label: String,
}

pub(super) struct Bar {
    pub(super) x: String,
    pub(super) y: String,
    pub(super) width: String,
    pub(super) height: String,
    pub(super) middle: String,
    pub(super) label: String,
    /// Where the label stands.
    pub(super) label_y: String,
}

fn at(v: f64) -> String {
    format!("{v:.1}")
}

impl Scatter {
    /// `None` without lesions. Of more than `most` lesions every n-th of each case order is drawn.
    pub(super) fn of(cases: &[CaseResult], most: usize) -> Option<Self> {
        let all: Vec<(&CaseResult, usize, &LesionResult)> = (cases.iter())
            .flat_map(|case| case.lesions.iter().zip(1..).map(move |(l, n)| (case, n, l)))
            .filter(|(_, _, l)| measurable(l.volume_mm3))
            .collect();
        let numbers = || all.iter().map(|(_, _, l)| below(l.volume_mm3));
        // Whole decades around the data.
        let first = numbers().min()?.div_euclid(2);
        let last = (numbers().max()? + 2).div_euclid(2).max(first + 1);
        let x_of = |volume: f64| {
            LEFT + (RIGHT - LEFT) * (volume.log10() - f64::from(first)) / f64::from(last - first)
        };
        let step = all.len().div_ceil(most.max(1)).max(1);
        let points: Vec<Point> = (all.iter().enumerate().step_by(step))
            .map(|(n, (case, number, lesion))| {
                // The golden ratio spreads neighbours, the same way each time.
                let spread = (n as f64 * 0.618_033_988_749_895).fract() * 2.0 - 1.0;
                let band = if lesion.detected { FOUND_Y } else { MISSED_Y };
                Point {
                    x: at(x_of(lesion.volume_mm3)),
                    y: at(band + spread * JITTER),
                    found: lesion.detected,
                    title: format!(
                        "{}, lesion {number}: {} mm³, {}",
                        visible(&case.id),
                        mm3(lesion.volume_mm3),
                        if lesion.detected { "found" } else { "missed" },
                    ),
                }
            })
            .collect();
        let ticks = (first..=last)
            .map(|decade| Tick { x: at(x_of(10f64.powi(decade))), label: bins::label(2 * decade) });
        let lesions: Vec<&LesionResult> = all.iter().map(|(_, _, l)| *l).collect();
        let bins = bins::bins(&lesions);
        let bars = bins.iter().filter(|bin| bin.lesions > 0).map(|bin| {
            let [from, to] = bin.range_mm3.map(x_of);
            let share = bin.found as f64 / bin.lesions as f64;
            Bar {
                x: at(from + 1.0),
                y: at(FLOOR - BAR * share),
                width: at(to - from - 2.0),
                height: at(BAR * share),
                middle: at(f64::midpoint(from, to)),
                label: format!("{}/{}", bin.found, bin.lesions),
                label_y: at(FLOOR - BAR * share - 4.0),
            }
        });
        let words = bins
            .iter()
            .filter(|bin| bin.lesions > 0)
            .map(|bin| format!("{} of {} {}", bin.found, bin.lesions, bin.title()));
        let description = format!("Lesions found: {}.", words.collect::<Vec<_>>().join("; "));
        let beyond = all.len() - points.len();
        Some(Self { ticks: ticks.collect(), bars: bars.collect(), points, beyond, description })
    }
}
