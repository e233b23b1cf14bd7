//! Files store i fastest, memory k: values of one order put into the other.

use bytemuck::Zeroable;

/// Rows and columns of a block that is turned at once: 16 lines of the cache as 32-bit values.
pub(crate) const EDGE: usize = 16;

/// Where the lines of a matrix lie in a slice.
#[derive(Clone, Copy)]
pub(crate) struct Lines {
    /// From the beginning of a line to that of the next.
    pub(crate) apart: usize,
    /// Beginning of the first.
    pub(crate) first: usize,
}

/// Puts a matrix of `[rows, columns]` values into place as one of `[columns, rows]`.
///
/// A block goes through memory of its own that fits the first cache: lines that lie a power of two
/// apart would drive each other out of it.
pub(crate) fn turn<T: Copy, S: Copy + Zeroable>(
    from: &[T],
    lines: Lines,
    to: &mut [S],
    place: Lines,
    [rows, columns]: [usize; 2],
    value: impl Fn(T) -> S,
) {
    for row in (0..rows).step_by(EDGE) {
        for column in (0..columns).step_by(EDGE) {
            let from = &from[lines.first + row * lines.apart + column..];
            let to = &mut to[place.first + column * place.apart + row..];
            let shape = [EDGE.min(rows - row), EDGE.min(columns - column)];
            // The same with a shape that the compiler knows.
            if shape == [EDGE; 2] {
                block(from, lines.apart, to, place.apart, [EDGE; 2], &value);
            } else {
                block(from, lines.apart, to, place.apart, shape, &value);
            }
        }
    }
}

#[inline(always)]
fn block<T: Copy, S: Copy + Zeroable>(
    from: &[T],
    from_apart: usize,
    to: &mut [S],
    to_apart: usize,
    [rows, columns]: [usize; 2],
    value: impl Fn(T) -> S,
) {
    let mut block = [[S::zeroed(); EDGE]; EDGE];
    for (line, from) in block[..rows].iter_mut().zip(from.chunks(from_apart)) {
        line[..columns].iter_mut().zip(&from[..columns]).for_each(|(to, from)| *to = value(*from));
    }
    for (column, to) in to.chunks_mut(to_apart).take(columns).enumerate() {
        to[..rows].iter_mut().zip(&block).for_each(|(to, line)| *to = line[column]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_and_cut_blocks_are_turned() {
        for [rows, columns] in [[1, 1], [16, 16], [17, 40], [35, 3]] {
            let from: Vec<usize> = (0..3 + rows * (columns + 2)).collect();
            let mut to = vec![0u16; 5 + columns * (rows + 1)];
            let lines = Lines { apart: columns + 2, first: 3 };
            let place = Lines { apart: rows + 1, first: 5 };
            turn(&from, lines, &mut to, place, [rows, columns], |v| v as u16);
            let mut expected = vec![0u16; to.len()];
            for row in 0..rows {
                for column in 0..columns {
                    expected[5 + column * (rows + 1) + row] =
                        from[3 + row * (columns + 2) + column] as u16;
                }
            }
            assert_eq!(to, expected);
        }
    }
}
