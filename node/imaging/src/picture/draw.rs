//! One slice: image, overlay, outlines, letters and scale bar.

use image::{Rgb, RgbImage};

use super::Error;
use super::finding::{FALSE_POSITIVE, FOUND, Finding, Findings, Kind, MISSED, TRUE_POSITIVE};
use super::glyph;
use super::plane::{Plane, View};
use super::window::Window;
use crate::volume::Volume;

/// Pixels of a whole slice, unless its longer edge would have more than `MAX_EDGE_PIXELS`.
const WHOLE_MM_PER_PIXEL: f64 = 0.5;
const MAX_EDGE_PIXELS: f64 = 640.0;
/// Shorter edges than this have no room for letters and a scale bar.
const MIN_EDGE_PIXELS: u32 = 96;
/// Space around the head.
const MARGIN_MM: f64 = 8.0;
/// Share of a predicted voxel's pixel that is colour; the rest is image.
const TINT: f32 = 0.45;
/// Space between a finding and the corners that mark it.
const MARK_MM: f64 = 6.0;

pub(super) const GREEN: [u8; 3] = [30, 220, 80];
pub(super) const RED: [u8; 3] = [255, 45, 45];
pub(super) const YELLOW: [u8; 3] = [255, 225, 0];
pub(super) const BLUE: [u8; 3] = [90, 190, 255];
const WHITE: [u8; 3] = [255; 3];

/// The colour of a kind of finding.
pub(super) const fn colour(kind: Kind) -> [u8; 3] {
    match kind {
        Kind::Missed => YELLOW,
        Kind::FalsePositive => RED,
        Kind::Found => GREEN,
    }
}

/// A case that can be looked at from anywhere.
pub(super) struct Case<'a> {
    image: &'a Volume<f32>,
    found: &'a Findings,
    window: Window,
}

impl<'a> Case<'a> {
    pub(super) fn new(image: &'a Volume<f32>, found: &'a Findings) -> Result<Self, Error> {
        Ok(Self { image, found, window: Window::of(image)? })
    }

    /// The whole head on one plane through a finding, which white corners mark.
    pub(super) fn whole(&self, plane: Plane, finding: &Finding) -> RgbImage {
        let view = self.view_of_head(plane, finding, |edge_mm| {
            WHOLE_MM_PER_PIXEL.max(edge_mm / MAX_EDGE_PIXELS)
        });
        let mut picture = self.slice(view);
        let half_mm = finding.extent_mm / 2.0 + MARK_MM;
        mark(&mut picture, view, finding.at_mm, half_mm, Some(4));
        picture
    }

    /// The whole head fitted into a square of `edge` pixels, with the square of `half_mm` around
    /// the finding.
    pub(super) fn locator(&self, finding: &Finding, edge: u32, half_mm: f64) -> RgbImage {
        let mut view =
            self.view_of_head(Plane::Axial, finding, |edge_mm| edge_mm / f64::from(edge));
        view.pixels = [edge; 2];
        let mut picture = self.slice(view);
        mark(&mut picture, view, finding.at_mm, half_mm, None);
        picture
    }

    /// A square around a finding.
    pub(super) fn close(
        &self,
        plane: Plane,
        finding: &Finding,
        edge: u32,
        half_mm: f64,
    ) -> RgbImage {
        let mm_per_pixel = 2.0 * half_mm / f64::from(edge);
        self.slice(View { plane, centre_mm: finding.at_mm, pixels: [edge; 2], mm_per_pixel })
    }

    fn view_of_head(
        &self,
        plane: Plane,
        finding: &Finding,
        mm_per_pixel: impl Fn(f64) -> f64,
    ) -> View {
        // The head, and the finding too where it lies outside what was taken for the head.
        let reach = finding.extent_mm / 2.0;
        let ends = [0, 1, 2].map(|n| {
            let [low, high] = self.window.head_mm[n];
            let at = finding.at_mm[n];
            [low.min(at - reach) - MARGIN_MM, high.max(at + reach) + MARGIN_MM]
        });
        let directions = plane.directions();
        let size = directions.map(|d| (0..3).map(|n| d[n].abs() * (ends[n][1] - ends[n][0])).sum());
        let through = directions[0].cross(&directions[1]);
        let centre_mm = [0, 1, 2].map(|n| {
            if through[n] == 0.0 { f64::midpoint(ends[n][0], ends[n][1]) } else { finding.at_mm[n] }
        });
        let mm_per_pixel = mm_per_pixel(f64::max(size[0], size[1]));
        let pixels = size.map(|mm| ((mm / mm_per_pixel).round() as u32).max(MIN_EDGE_PIXELS));
        View { plane, centre_mm, pixels, mm_per_pixel }
    }

    /// Image and overlay, letters and scale bar.
    pub(super) fn slice(&self, view: View) -> RgbImage {
        let geometry = self.image.geometry();
        let values = view.linear(geometry, self.image.data());
        let classes = view.nearest(geometry, &self.found.classes);
        let missed = outline(&classes, MISSED, view, 2);
        let found = outline(&classes, FOUND, view, 1);
        let mut picture = RgbImage::new(view.pixels[0], view.pixels[1]);
        for (x, y, pixel) in picture.enumerate_pixels_mut() {
            let at = (y * view.pixels[0] + x) as usize;
            let grey = values[at].map_or(0, |value| self.window.grey(value));
            let tint = match classes[at] & (TRUE_POSITIVE | FALSE_POSITIVE) {
                0 => None,
                FALSE_POSITIVE => Some(RED),
                _ => Some(GREEN),
            };
            pixel.0 = match tint {
                // A false positive beside a missed lesion stays visible.
                _ if missed[at] && tint != Some(RED) => YELLOW,
                _ if found[at] => BLUE,
                Some(colour) => colour
                    .map(|c| (f32::from(grey) * (1.0 - TINT) + f32::from(c) * TINT).round() as u8),
                None => [grey; 3],
            };
        }
        letters(&mut picture, view.plane);
        scale_bar(&mut picture, view.mm_per_pixel);
        picture
    }
}

/// Pixels without a bit that are at most `reach` pixels from one with it, along rows and columns:
/// an outline just outside, which hides nothing of what is in it.
fn outline(classes: &[u8], bit: u8, view: View, reach: i64) -> Vec<bool> {
    let [width, height] = view.pixels.map(i64::from);
    let mut out = vec![false; classes.len()];
    for at in classes.iter().enumerate().filter(|(_, c)| *c & bit != 0).map(|(at, _)| at as i64) {
        let (x, y) = (at % width, at / width);
        for dy in -reach..=reach {
            let rest = reach - dy.abs();
            for x in (x - rest).max(0)..=(x + rest).min(width - 1) {
                if (0..height).contains(&(y + dy)) {
                    let near = ((y + dy) * width + x) as usize;
                    out[near] |= classes[near] & bit == 0;
                }
            }
        }
    }
    out
}

/// White lines around a point: the corners of a square, or all of it.
fn mark(
    picture: &mut RgbImage,
    view: View,
    at_mm: [f64; 3],
    half_mm: f64,
    corner_pixels: Option<i64>,
) {
    let [x, y] = view.pixel_of(at_mm);
    let half = half_mm / view.mm_per_pixel;
    let [left, right, top, bottom] =
        [x - half, x + half, y - half, y + half].map(|v| v.round() as i64);
    let drawn =
        |at: i64, low: i64, high: i64| corner_pixels.is_none_or(|n| at - low < n || high - at < n);
    for x in (left..=right).filter(|x| drawn(*x, left, right)) {
        put(picture, x, top, WHITE);
        put(picture, x, bottom, WHITE);
    }
    for y in (top..=bottom).filter(|y| drawn(*y, top, bottom)) {
        put(picture, left, y, WHITE);
        put(picture, right, y, WHITE);
    }
}

pub(super) fn put(picture: &mut RgbImage, x: i64, y: i64, colour: [u8; 3]) {
    let at = (u32::try_from(x), u32::try_from(y));
    if let (Ok(x), Ok(y)) = at
        && let Some(pixel) = picture.get_pixel_mut_checked(x, y)
    {
        *pixel = Rgb(colour);
    }
}

fn letters(picture: &mut RgbImage, plane: Plane) {
    let [width, height] = [picture.width(), picture.height()].map(i64::from);
    let [left, right, top, bottom] = plane.letters();
    let (middle_x, middle_y) = ((width - glyph::WIDTH) / 2, (height - glyph::HEIGHT) / 2);
    let margin = 3;
    for (letter, x, y) in [
        (left, margin, middle_y),
        (right, width - glyph::WIDTH - margin, middle_y),
        (top, middle_x, margin),
        (bottom, middle_x, height - glyph::HEIGHT - margin),
    ] {
        glyph::text(picture, x, y, letter, WHITE);
    }
}

/// 10 mm with a tick a millimetre, or 50 mm where ten would have less than 20 pixels.
fn scale_bar(picture: &mut RgbImage, mm_per_pixel: f64) {
    let per_mm = 1.0 / mm_per_pixel;
    let (length_mm, words) = if per_mm >= 2.0 { (10, "10 MM") } else { (50, "50 MM") };
    let (left, bottom) = (7, i64::from(picture.height()) - 8);
    let at = |mm: i32| left + (f64::from(mm) * per_mm).round() as i64;
    let mut bar: Vec<(i64, i64)> = (left..=at(length_mm)).map(|x| (x, bottom)).collect();
    for mm in 0..=length_mm {
        let up = match mm {
            _ if mm == 0 || mm == length_mm => 5,
            _ if length_mm > 10 => 0,
            5 => 4,
            _ => 2,
        };
        bar.extend((1..=up).map(|dy| (at(mm), bottom - dy)));
    }
    for (x, y) in &bar {
        for (dx, dy) in [(-1, 0), (1, 0), (0, -1), (0, 1)] {
            put(picture, x + dx, y + dy, [0; 3]);
        }
    }
    for (x, y) in bar {
        put(picture, x, y, WHITE);
    }
    glyph::text(picture, left, bottom - 6 - glyph::HEIGHT, words, WHITE);
}
