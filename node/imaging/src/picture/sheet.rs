//! Contact sheets: a row a finding, close by on three planes, and the whole axial slice.

use image::{RgbImage, imageops};

use super::draw::{Case, colour};
use super::finding::{Finding, Kind};
use super::glyph;
use super::plane::Plane;

/// Findings on one sheet: as wide as a page of A4 it is as high as one.
pub(super) const ROWS: usize = 6;
const TILE: u32 = 200;
const GAP: u32 = 4;
/// Room for the words above the tiles.
const HEAD: u32 = 14;
/// Half the edge of a close tile, unless the finding needs more.
const HALF_MM: f64 = 40.0;
/// Half the edge against the extent of the finding.
const ROOM: f64 = 0.65;
const BACKGROUND: [u8; 3] = [24; 3];
const WORDS: [u8; 3] = [255; 3];

/// The findings in rows, [`ROWS`] on a sheet; rows are numbered throughout.
pub(super) fn sheets(case: &Case<'_>, findings: &[Finding]) -> Vec<RgbImage> {
    let row = |(n, finding): (usize, &Finding)| row(case, n + 1, finding);
    let rows: Vec<RgbImage> = findings.iter().enumerate().map(row).collect();
    rows.chunks(ROWS).map(stack).collect()
}

fn stack(rows: &[RgbImage]) -> RgbImage {
    let width = rows.iter().map(RgbImage::width).max().unwrap_or(0);
    let height = rows.iter().map(RgbImage::height).sum();
    let mut sheet = RgbImage::new(width, height);
    let mut y = 0;
    for row in rows {
        imageops::replace(&mut sheet, row, 0, y);
        y += i64::from(row.height());
    }
    sheet
}

fn row(case: &Case<'_>, n: usize, finding: &Finding) -> RgbImage {
    let half_mm = HALF_MM.max(finding.extent_mm * ROOM);
    let mut tiles: Vec<_> = (Plane::ALL.into_iter())
        .map(|plane| (words(plane), case.close(plane, finding, TILE, half_mm)))
        .collect();
    tiles.push(("WHOLE AXIAL SLICE", case.locator(finding, TILE, half_mm)));

    let width = GAP + tiles.len() as u32 * (TILE + GAP);
    let mut row = RgbImage::from_pixel(width, HEAD + TILE + GAP, image::Rgb(BACKGROUND));
    let edge = colour(finding.kind);
    // A stripe of the kind's colour on the left; the words beside it say the same.
    for y in 2..HEAD + TILE {
        (0..GAP - 1).for_each(|x| row.put_pixel(x, y, image::Rgb(edge)));
    }
    for ((plane, tile), at) in tiles.iter().zip(0u32..) {
        let x = i64::from(GAP + at * (TILE + GAP));
        imageops::replace(&mut row, tile, x, i64::from(HEAD));
        let mut next = x + 4;
        if at == 0 {
            next = glyph::number(&mut row, next, 4, n, edge) + 4;
            next = glyph::text(&mut row, next, 4, kind(finding.kind), edge) + 8;
        }
        glyph::text(&mut row, next, 4, plane, WORDS);
    }
    row
}

const fn words(plane: Plane) -> &'static str {
    match plane {
        Plane::Axial => "AXIAL",
        Plane::Coronal => "CORONAL",
        Plane::Sagittal => "SAGITTAL",
    }
}

const fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Missed => "MISSED",
        Kind::FalsePositive => "FALSE POSITIVE",
        Kind::Found => "FOUND",
    }
}
