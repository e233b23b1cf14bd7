//! Uniform B-splines on a lattice of control points, one axis at a time.

/// Values of the B-splines of one axis at given points.
///
/// With n control points and order d the axis has n − d spans; on span s only the splines
/// s ..= s + d differ from zero.
pub(super) struct Basis {
    order: usize,
    control_points: usize,
    /// Span of every point; never falls.
    span: Vec<usize>,
    /// First point beyond each span.
    ends: Vec<usize>,
    /// `values[a][x]`: spline `span[x] + a` at point x.
    values: Vec<Vec<f32>>,
    /// `squared[a][x]` = values².
    squared: Vec<Vec<f32>>,
    /// `spread[a][x]` = values³ / Σₐ values²: the share of a residual that falls on a control
    /// point (Lee et al. 1997, equations 3 to 5), which is a product over the axes.
    spread: Vec<Vec<f32>>,
}

impl Basis {
    /// `points` rise within [0, 1], the extent of the lattice.
    pub(super) fn new(
        order: usize,
        control_points: usize,
        points: impl ExactSizeIterator<Item = f64>,
    ) -> Self {
        let spans = control_points - order;
        let count = points.len();
        let mut basis = Self {
            order,
            control_points,
            span: Vec::with_capacity(count),
            ends: vec![0; spans],
            values: vec![Vec::with_capacity(count); order + 1],
            squared: vec![Vec::with_capacity(count); order + 1],
            spread: vec![Vec::with_capacity(count); order + 1],
        };
        for point in points {
            let at = point * spans as f64;
            let span = (at.floor() as usize).min(spans - 1);
            basis.span.push(span);
            basis.ends[span] = basis.span.len();
            let weights = splines(order, at - span as f64);
            let sum: f64 = weights.iter().map(|w| w * w).sum();
            for (a, w) in weights.into_iter().enumerate() {
                basis.values[a].push(w as f32);
                basis.squared[a].push((w * w) as f32);
                basis.spread[a].push((w * w * w / sum) as f32);
            }
        }
        basis
    }

    /// Number of points.
    pub(super) fn len(&self) -> usize {
        self.span.len()
    }

    pub(super) fn control_points(&self) -> usize {
        self.control_points
    }

    /// Cuts `count` points, the first of them `from`, where the span changes: (from, to, span).
    pub(super) fn spans(
        &self,
        from: usize,
        count: usize,
    ) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        let points = &self.span[..from + count];
        let mut begin = from;
        std::iter::from_fn(move || {
            let span = *points.get(begin)?;
            let end = points.len().min(self.ends[span]);
            let piece = (begin, end, span);
            begin = end;
            Some(piece)
        })
    }

    /// Values of the spline with these coefficients at the points that begin at `from`, all on
    /// span `span`.
    pub(super) fn interpolate(
        &self,
        coefficients: &[f64],
        span: usize,
        from: usize,
        out: &mut [f32],
    ) {
        let n = out.len();
        if self.order == 3 {
            let c = [0, 1, 2, 3].map(|a| coefficients[span + a] as f32);
            let w = [0, 1, 2, 3].map(|a| &self.values[a][from..from + n]);
            for (x, v) in out.iter_mut().enumerate() {
                *v = c[0] * w[0][x] + c[1] * w[1][x] + (c[2] * w[2][x] + c[3] * w[3][x]);
            }
            return;
        }
        out.fill(0.0);
        for (a, values) in self.values.iter().enumerate() {
            let c = coefficients[span + a] as f32;
            for (v, w) in out.iter_mut().zip(&values[from..from + n]) {
                *v += c * w;
            }
        }
    }

    /// Adds what the values at the points that begin at `from`, all on span `span`, give to the
    /// control points.
    pub(super) fn project(
        &self,
        values: &[f32],
        span: usize,
        from: usize,
        weights: Weights,
        coefficients: &mut [f64],
    ) {
        for (a, table) in self.table(weights).iter().enumerate() {
            coefficients[span + a] += dot(values, &table[from..from + values.len()]);
        }
    }

    /// Weights of the splines at one point: (first spline, weights).
    pub(super) fn at(
        &self,
        point: usize,
        weights: Weights,
    ) -> impl Iterator<Item = (usize, f64)> + '_ {
        let span = self.span[point];
        self.table(weights)
            .iter()
            .enumerate()
            .map(move |(a, table)| (span + a, f64::from(table[point])))
    }

    fn table(&self, weights: Weights) -> &[Vec<f32>] {
        match weights {
            Weights::Values => &self.values,
            Weights::Squared => &self.squared,
            Weights::Spread => &self.spread,
        }
    }
}

/// Which function of the splines' values weighs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Weights {
    Values,
    Squared,
    Spread,
}

/// Lanes give the compiler vectors and keep the order of the sum fixed.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += x[lane] * y[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sums.iter().map(|s| f64::from(*s)).sum::<f64>() + f64::from(rest)
}

/// The order + 1 uniform B-splines that live on a span, at `t` in [0, 1] of it (Cox, de Boor).
fn splines(order: usize, t: f64) -> Vec<f64> {
    let mut values = vec![1.0];
    for degree in 1..=order {
        let d = degree as f64;
        let mut next = vec![0.0; degree + 1];
        for (a, value) in values.iter().enumerate() {
            let left = (t + d - 1.0 - a as f64) / d;
            next[a] += (1.0 - left) * value;
            next[a + 1] += left * value;
        }
        values = next;
    }
    values
}

/// Control points `[i, j, k]`, k fastest.
#[derive(Debug, Clone)]
pub(super) struct Lattice {
    shape: [usize; 3],
    values: Vec<f64>,
}

/// Control points of one plane across the first axis `[j, k]`.
pub(super) struct Sheet {
    columns: usize,
    values: Vec<f64>,
}

impl Lattice {
    pub(super) fn zeros(shape: [usize; 3]) -> Self {
        Self { shape, values: vec![0.0; shape.iter().product()] }
    }

    pub(super) fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// No value of the spline is farther from zero than its farthest control point.
    pub(super) fn largest(&self) -> f64 {
        self.values.iter().fold(0.0, |most, v| v.abs().max(most))
    }

    /// Undoes an order of axes: axis `order[n]` of the result is axis n of this.
    pub(super) fn in_order_of_the_grid(&self, order: [usize; 3]) -> Self {
        let mut shape = [0; 3];
        for (n, axis) in order.into_iter().enumerate() {
            shape[axis] = self.shape[n];
        }
        let mut lattice = Self::zeros(shape);
        let [_, lines, points] = self.shape;
        for (n, value) in self.values.iter().enumerate() {
            let mut index = [0; 3];
            let at = [n / (lines * points), n / points % lines, n % points];
            for (axis, at) in order.into_iter().zip(at) {
                index[axis] = at;
            }
            lattice.values[(index[0] * shape[1] + index[1]) * shape[2] + index[2]] = *value;
        }
        lattice
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (v, o) in self.values.iter_mut().zip(&other.values) {
            *v += o;
        }
    }

    /// Divides by the support of each control point; one that no voxel reaches is zero.
    pub(super) fn over(mut self, support: &Self) -> Self {
        for (v, s) in self.values.iter_mut().zip(&support.values) {
            *v = if *s > f64::from(f32::EPSILON) * 0.1 { *v / s } else { 0.0 };
        }
        self
    }

    /// The control points that matter on plane `i` of the first axis, contracted over that axis.
    pub(super) fn sheet(&self, basis: &Basis, i: usize) -> Sheet {
        let size = self.shape[1] * self.shape[2];
        let mut values = vec![0.0; size];
        for (c, w) in basis.at(i, Weights::Values) {
            for (v, p) in values.iter_mut().zip(&self.values[c * size..]) {
                *v += w * p;
            }
        }
        Sheet { columns: self.shape[2], values }
    }

    /// Adds a sheet to the control points that reach plane `i` of the first axis.
    pub(super) fn accumulate(&mut self, basis: &Basis, i: usize, weights: Weights, sheet: &Sheet) {
        for (c, w) in basis.at(i, weights) {
            for (v, s) in self.values[c * sheet.values.len()..].iter_mut().zip(&sheet.values) {
                *v += w * s;
            }
        }
    }

    /// The same spline with spans of half the length: d(m) = 2⁻ⁿ Σₖ C(n + 1, m − 2k + n) c(k).
    pub(super) fn refined(&self, order: usize) -> Self {
        let mut lattice = self.clone();
        for axis in 0..3 {
            lattice = lattice.refined_along(axis, order);
        }
        lattice
    }

    fn refined_along(&self, axis: usize, order: usize) -> Self {
        let mut shape = self.shape;
        shape[axis] = 2 * shape[axis] - order;
        let scale = 0.5f64.powi(order as i32);
        let mut binomials = vec![1.0];
        for n in 0..=order {
            binomials.push(binomials[n] * (order + 1 - n) as f64 / (n + 1) as f64);
        }
        let mut refined = Self::zeros(shape);
        let stride: usize = self.shape[axis + 1..].iter().product();
        let (old, new) = (self.shape[axis], shape[axis]);
        for outer in 0..self.shape[..axis].iter().product() {
            for k in 0..old {
                for (n, binomial) in binomials.iter().enumerate() {
                    let Some(m) = (2 * k + n).checked_sub(order).filter(|m| *m < new) else {
                        continue;
                    };
                    for inner in 0..stride {
                        refined.values[(outer * new + m) * stride + inner] +=
                            scale * binomial * self.values[(outer * old + k) * stride + inner];
                    }
                }
            }
        }
        refined
    }
}

impl Sheet {
    pub(super) fn zeros(rows: usize, columns: usize) -> Self {
        Self { columns, values: vec![0.0; rows * columns] }
    }

    /// The control points that matter on line `j`, contracted over the second axis.
    pub(super) fn line(&self, basis: &Basis, j: usize) -> Vec<f64> {
        let mut values = vec![0.0; self.columns];
        for (c, w) in basis.at(j, Weights::Values) {
            for (v, p) in values.iter_mut().zip(&self.values[c * self.columns..]) {
                *v += w * p;
            }
        }
        values
    }

    /// Adds a line's sums to the control points that reach line `j`.
    pub(super) fn accumulate(&mut self, basis: &Basis, j: usize, weights: Weights, line: &[f64]) {
        for (c, w) in basis.at(j, weights) {
            for (v, s) in self.values[c * self.columns..].iter_mut().zip(line) {
                *v += w * s;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn splines_sum_to_one_and_cubic_ones_are_known() {
        for order in 1..=5 {
            for t in [0.0, 0.25, 0.9, 1.0] {
                assert!((splines(order, t).iter().sum::<f64>() - 1.0).abs() < 1e-12);
            }
        }
        let known = [1.0 / 48.0, 23.0 / 48.0, 23.0 / 48.0, 1.0 / 48.0];
        for (a, b) in splines(3, 0.5).iter().zip(known) {
            assert!((a - b).abs() < 1e-12);
        }
        assert!((splines(3, 0.0)[0] - 1.0 / 6.0).abs() < 1e-12);
    }

    #[test]
    fn refining_changes_nothing() {
        for order in 1..=5 {
            let shape = [order + 1, order + 2, order + 4];
            let mut lattice = Lattice::zeros(shape);
            for (n, v) in lattice.values.iter_mut().enumerate() {
                *v = ((n * 7919) % 101) as f64 / 50.0 - 1.0;
            }
            let fine = lattice.refined(order);
            let a = crate::bias::evaluate(&lattice, order, [7, 9, 21]);
            let b = crate::bias::evaluate(&fine, order, [7, 9, 21]);
            assert!(a.iter().any(|v| v.abs() > 0.1));
            for (x, y) in a.iter().zip(&b) {
                assert!((x - y).abs() < 1e-5, "order {order}: {x} against {y}");
            }
        }
    }
}
