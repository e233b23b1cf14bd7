//! The nearest of many grid points, exactly, without a field over the grid.
//!
//! Points are halved along their longest extent until few are left, and every half keeps its box
//! (Friedman, Bentley and Finkel 1977, with boxes instead of planes). Surfaces are thin: this costs
//! what the surface costs, where a distance transform costs what the volume does.

/// Points that are compared one by one.
const LEAF: usize = 8;

/// Grid points `[i, j, k]` to search among.
pub(crate) struct Nearest {
    points: Vec<[i32; 3]>,
    boxes: Vec<Part>,
    spacing_mm: [f64; 3],
}

/// A half of a half of the points. Its first half follows it; a leaf has no second.
struct Part {
    min: [i32; 3],
    max: [i32; 3],
    points: std::ops::Range<usize>,
    second: Option<usize>,
}

impl Nearest {
    /// Takes the points in; none is allowed.
    pub(crate) fn new(points: Vec<[i32; 3]>, spacing_mm: [f64; 3]) -> Self {
        let mut tree = Self { boxes: Vec::new(), points, spacing_mm };
        let all = 0..tree.points.len();
        if !all.is_empty() {
            tree.halve(all);
        }
        tree
    }

    fn halve(&mut self, range: std::ops::Range<usize>) {
        let points = &mut self.points[range.clone()];
        let (mut min, mut max) = ([i32::MAX; 3], [i32::MIN; 3]);
        for p in points.iter() {
            for a in 0..3 {
                (min[a], max[a]) = (min[a].min(p[a]), max[a].max(p[a]));
            }
        }
        let extent = |a: &usize| f64::from(max[*a] - min[*a]) * self.spacing_mm[*a];
        let axis = (0..3).max_by(|a, b| extent(a).total_cmp(&extent(b))).unwrap_or(0);
        let at = self.boxes.len();
        self.boxes.push(Part { min, max, points: range.clone(), second: None });
        if points.len() > LEAF {
            let half = points.len() / 2;
            points.select_nth_unstable_by_key(half, |p| p[axis]);
            self.halve(range.start..range.start + half);
            self.boxes[at].second = Some(self.boxes.len());
            self.halve(range.start + half..range.end);
        }
    }

    /// Squared distance in mm² from every point of `from` to its nearest; infinite without points.
    /// Quick when successive points are neighbours.
    pub(crate) fn squares_mm2(&self, from: &[[i32; 3]]) -> Vec<f64> {
        let (mut open, mut guess) = (Vec::new(), 0);
        from.iter().map(|p| self.square_mm2(*p, &mut open, &mut guess)).collect()
    }

    /// `open` is room to work in, `guess` a point that is probably near; the nearest one afterwards.
    fn square_mm2(&self, p: [i32; 3], open: &mut Vec<(usize, f64)>, guess: &mut usize) -> f64 {
        let Some(first) = self.points.get(*guess) else {
            return f64::INFINITY;
        };
        let mut best = self.apart_mm2(p, *first, *first);
        open.clear();
        open.push((0, 0.0));
        while let Some((n, least)) = open.pop() {
            if least >= best {
                continue;
            }
            let part = &self.boxes[n];
            if let Some(second) = part.second {
                let halves = [n + 1, second].map(|n| {
                    let half = &self.boxes[n];
                    (n, self.apart_mm2(p, half.min, half.max))
                });
                // The nearer half comes off first.
                let [far, near] =
                    if halves[0].1 < halves[1].1 { [halves[1], halves[0]] } else { halves };
                open.extend([far, near]);
                continue;
            }
            for (n, site) in self.points[part.points.clone()].iter().enumerate() {
                let square = self.apart_mm2(p, *site, *site);
                if square < best {
                    (best, *guess) = (square, part.points.start + n);
                }
            }
        }
        best
    }

    /// From a point to a box. Rounding is monotonic, so no point of a box is nearer than the box.
    fn apart_mm2(&self, p: [i32; 3], min: [i32; 3], max: [i32; 3]) -> f64 {
        let square = |a: usize| {
            let d = f64::from((min[a] - p[a]).max(p[a] - max[a]).max(0)) * self.spacing_mm[a];
            d * d
        };
        square(0) + square(1) + square(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_brute_force(
            sites in prop::collection::vec(prop::array::uniform3(0i32..40), 0..200),
            from in prop::collection::vec(prop::array::uniform3(-9i32..50), 1..50),
            s in prop::array::uniform3(0.2f64..4.0),
        ) {
            let tree = Nearest::new(sites.clone(), s);
            for (p, square) in from.iter().zip(tree.squares_mm2(&from)) {
                let slow = (sites.iter())
                    .map(|q| {
                        let d = [0, 1, 2].map(|a| (f64::from((p[a] - q[a]).abs()) * s[a]).powi(2));
                        d[0] + d[1] + d[2]
                    })
                    .fold(f64::INFINITY, f64::min);
                prop_assert_eq!(square, slow);
            }
        }
    }
}
