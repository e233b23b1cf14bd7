//! The voxels of the fit: log intensities inside the mask, laid out line by line.

use ndarray::{Array3, Axis};
use rayon::prelude::*;

use super::lattice::{Basis, Lattice, Sheet, Weights};
use super::sharpen::Mapping;

/// Voxels of one line that lie together, so that the splines' values are read in order too.
struct Run {
    line: u32,
    from: u32,
    count: u32,
}

/// Everything on one index of the first axis.
struct Plane {
    runs: Vec<Run>,
    /// Log intensities less the field so far, run after run.
    logs: Vec<f32>,
}

/// Planes along the grid's axis `order[0]`, lines along `order[1]`, voxels along `order[2]`: the
/// longer the lines, the cheaper.
pub(super) struct Voxels {
    planes: Vec<Plane>,
    order: [usize; 3],
    count: usize,
}

/// What adding to the field did.
pub(super) struct Change {
    /// Least and greatest log intensity now.
    pub(super) range: (f64, f64),
    /// Coefficient of variation of old field over new field.
    pub(super) variation: f64,
}

impl Voxels {
    /// The samples of `image` inside `mask` that are above zero, as logarithms; the others as they
    /// are if `raw` says so.
    pub(super) fn gather(
        image: &Array3<f32>,
        mask: &Array3<u8>,
        samples: &[Vec<usize>; 3],
        raw: bool,
    ) -> Self {
        // Lines along k, which lies together in memory, unless another axis is far longer.
        let [i, j, k] = [0, 1, 2].map(|axis| samples[axis].len());
        let order = if i.max(j) <= 2 * k {
            [0, 1, 2]
        } else if j >= i {
            [0, 2, 1]
        } else {
            [2, 1, 0]
        };
        let (image, mask) = (image.as_standard_layout(), mask.as_standard_layout());
        // An array in standard layout is a slice.
        let (values, marks) =
            (image.as_slice().unwrap_or_default(), mask.as_slice().unwrap_or_default());
        let strides = [image.len_of(Axis(1)) * image.len_of(Axis(2)), image.len_of(Axis(2)), 1];
        let planes: Vec<Plane> = samples[order[0]]
            .par_iter()
            .map(|p| {
                let mut plane = Plane { runs: Vec::new(), logs: Vec::new() };
                for (line, q) in samples[order[1]].iter().enumerate() {
                    let mut open = false;
                    let start = p * strides[order[0]] + q * strides[order[1]];
                    for (at, r) in samples[order[2]].iter().enumerate() {
                        let here = start + r * strides[order[2]];
                        let value = values[here];
                        let inside = marks[here] > 0 && (raw || value > 0.0);
                        if inside {
                            plane.logs.push(if value > 0.0 { value.ln() } else { value });
                            match plane.runs.last_mut().filter(|_| open) {
                                Some(run) => run.count += 1,
                                None => plane.runs.push(Run {
                                    line: line as u32,
                                    from: at as u32,
                                    count: 1,
                                }),
                            }
                        }
                        open = inside;
                    }
                }
                plane.runs.shrink_to_fit();
                plane.logs.shrink_to_fit();
                plane
            })
            .collect();
        let count = planes.iter().map(|p| p.logs.len()).sum();
        Self { planes, order, count }
    }

    /// Axes of the grid in the order in which the fit runs over them.
    pub(super) fn order(&self) -> [usize; 3] {
        self.order
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Least and greatest log intensity; infinite the wrong way round when there is no voxel.
    pub(super) fn range(&self) -> (f64, f64) {
        self.planes
            .iter()
            .flat_map(|p| &p.logs)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, greatest), v| {
                (least.min(f64::from(*v)), greatest.max(f64::from(*v)))
            })
    }

    /// Histogram of the log intensities; a voxel is shared by the two bins whose middles it lies
    /// between.
    pub(super) fn histogram(&self, (least, greatest): (f64, f64), bins: usize) -> Vec<f64> {
        let per_unit = ((bins - 1) as f64 / (greatest - least)) as f32;
        let least = least as f32;
        let parts: Vec<Vec<[f64; 2]>> = self
            .planes
            .par_iter()
            .map(|plane| {
                // Voxels of the bin, and how far beyond its middle they lie altogether.
                let mut sums = vec![[0.0; 2]; bins];
                for v in &plane.logs {
                    let (bin, offset) = Mapping::bin(*v, least, per_unit, bins);
                    let sum = &mut sums[bin];
                    *sum = [sum[0] + 1.0, sum[1] + f64::from(offset)];
                }
                sums
            })
            .collect();
        let mut histogram = vec![0.0; bins];
        for part in parts {
            for (bin, [count, beyond]) in part.into_iter().enumerate() {
                histogram[bin] += count - beyond;
                if let Some(next) = histogram.get_mut(bin + 1) {
                    *next += beyond;
                }
            }
        }
        histogram
    }

    /// The numerator of the lattice's approximation of what the mapping leaves over.
    pub(super) fn residual(&self, mapping: &Mapping, bases: &[Basis; 3]) -> Lattice {
        self.project(bases, Weights::Spread, |v| mapping.residual(v))
    }

    /// The denominator: how much of the mask every control point reaches.
    pub(super) fn support(&self, bases: &[Basis; 3]) -> Lattice {
        self.project(bases, Weights::Squared, |_| 1.0)
    }

    fn project(
        &self,
        [planes, lines, points]: &[Basis; 3],
        weights: Weights,
        value: impl Fn(f32) -> f32 + Sync,
    ) -> Lattice {
        let sheets: Vec<Sheet> = self
            .planes
            .par_iter()
            .map(|plane| {
                let mut sheet = Sheet::zeros(lines.control_points(), points.control_points());
                let mut sums = vec![0.0; points.control_points()];
                let mut values = Vec::with_capacity(points.len());
                let mut logs = &plane.logs[..];
                for runs in plane.runs.chunk_by(|a, b| a.line == b.line) {
                    sums.fill(0.0);
                    for run in runs {
                        let (of_run, rest) = logs.split_at(run.count as usize);
                        logs = rest;
                        values.clear();
                        values.extend(of_run.iter().map(|v| value(*v)));
                        let mut left = &values[..];
                        for (from, to, span) in points.spans(run.from as usize, of_run.len()) {
                            let (piece, rest) = left.split_at(to - from);
                            left = rest;
                            points.project(piece, span, from, weights, &mut sums);
                        }
                    }
                    sheet.accumulate(lines, runs[0].line as usize, weights, &sums);
                }
                sheet
            })
            .collect();
        let mut lattice =
            Lattice::zeros([planes, lines, points].map(|basis| basis.control_points()));
        for (p, sheet) in sheets.iter().enumerate() {
            lattice.accumulate(planes, p, weights, sheet);
        }
        lattice
    }

    /// Takes a further part of the field off the log intensities.
    pub(super) fn subtract(&mut self, step: &Lattice, bases: &[Basis; 3]) -> Change {
        let [planes, lines, points] = bases;
        // exp(x) = exp(x / 2ⁿ) squared n times, so that a short series serves every x.
        let halvings = (step.largest() / SERIES_REACH).log2().ceil().max(0.0) as i32;
        let shorten = 0.5f32.powi(halvings);
        let parts: Vec<Sums> = self
            .planes
            .par_iter_mut()
            .enumerate()
            .map(|(p, plane)| {
                let sheet = step.sheet(planes, p);
                let mut sums = Sums::default();
                let mut field = vec![0.0; points.len()];
                let mut logs = &mut plane.logs[..];
                for runs in plane.runs.chunk_by(|a, b| a.line == b.line) {
                    let coefficients = sheet.line(lines, runs[0].line as usize);
                    for run in runs {
                        for (from, to, span) in points.spans(run.from as usize, run.count as usize)
                        {
                            let (piece, rest) = std::mem::take(&mut logs).split_at_mut(to - from);
                            logs = rest;
                            let field = &mut field[..piece.len()];
                            points.interpolate(&coefficients, span, from, field);
                            sums.subtract(piece, field, shorten, halvings);
                        }
                    }
                }
                sums
            })
            .collect();
        let all = parts.into_iter().fold(Sums::default(), Sums::with);
        let n = self.count as f64;
        let variance = (all.squares - all.sum * all.sum / n).max(0.0) / (n - 1.0);
        Change {
            range: (f64::from(all.least), f64::from(all.greatest)),
            variation: variance.sqrt() / (1.0 + all.sum / n),
        }
    }
}

/// Up to here the series for exp in [`Sums::subtract`] is exact to single precision.
const SERIES_REACH: f64 = 0.25;
/// Sums kept side by side give the compiler vectors and a fixed order.
const LANES: usize = 8;

/// Over voxels: range of the log intensities, and sums of x and x², x = old field / new field − 1.
struct Sums {
    least: f32,
    greatest: f32,
    sum: f64,
    squares: f64,
}

impl Default for Sums {
    fn default() -> Self {
        Self { least: f32::INFINITY, greatest: f32::NEG_INFINITY, sum: 0.0, squares: 0.0 }
    }
}

impl Sums {
    fn with(self, other: Self) -> Self {
        Self {
            least: self.least.min(other.least),
            greatest: self.greatest.max(other.greatest),
            sum: self.sum + other.sum,
            squares: self.squares + other.squares,
        }
    }

    fn subtract(&mut self, logs: &mut [f32], field: &[f32], shorten: f32, halvings: i32) {
        let mut lanes =
            [[f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES], [0.0; LANES], [0.0; LANES]];
        let mut each = |lane: usize, v: &mut f32, f: f32| {
            *v -= f;
            let y = -f * shorten;
            let mut x =
                y * (1.0 + y * (0.5 + y * (1.0 / 6.0 + y * (1.0 / 24.0 + y * (1.0 / 120.0)))));
            for _ in 0..halvings {
                x *= x + 2.0;
            }
            let [least, greatest, sum, squares] = &mut lanes;
            least[lane] = if *v < least[lane] { *v } else { least[lane] };
            greatest[lane] = if *v > greatest[lane] { *v } else { greatest[lane] };
            sum[lane] += x;
            squares[lane] += x * x;
        };
        let (chunks, rest) = logs.as_chunks_mut::<LANES>();
        let (field_chunks, field_rest) = field.as_chunks::<LANES>();
        for (v, f) in chunks.iter_mut().zip(field_chunks) {
            for lane in 0..LANES {
                each(lane, &mut v[lane], f[lane]);
            }
        }
        for (lane, (v, f)) in rest.iter_mut().zip(field_rest).enumerate() {
            each(lane, v, *f);
        }
        let [least, greatest, sum, squares] = lanes;
        self.least = least.into_iter().fold(self.least, f32::min);
        self.greatest = greatest.into_iter().fold(self.greatest, f32::max);
        self.sum += sum.into_iter().map(f64::from).sum::<f64>();
        self.squares += squares.into_iter().map(f64::from).sum::<f64>();
    }
}
