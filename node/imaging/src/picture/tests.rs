#![allow(clippy::unwrap_used, clippy::expect_used)]

use image::RgbImage;
use nalgebra::{Matrix4, Rotation3, Vector4};
use ndarray::Array3;

use super::draw::{BLUE, Case, RED, YELLOW};
use super::finding::Findings;
use super::plane::View;
use super::*;
use crate::volume::Geometry;

/// Oblique, anisotropic, axes permuted and one of them mirrored: i runs mostly to I, j mostly to A
/// and k mostly to R, 3 mm apart.
fn oblique() -> Geometry {
    let mut axes = Matrix4::zeros();
    for (n, (axis, mm)) in [(2, -0.9), (1, 0.8), (0, 3.0)].into_iter().enumerate() {
        axes[(axis, n)] = mm;
    }
    axes[(3, 3)] = 1.0;
    let mut affine = Rotation3::from_euler_angles(0.15, -0.2, 0.25).to_homogeneous() * axes;
    let middle = affine * Vector4::new(60.0, 70.0, 20.0, 0.0);
    for n in 0..3 {
        affine[(n, 3)] = [12.0, -7.0, 31.0][n] - middle[n];
    }
    Geometry::new([120, 140, 40], affine).unwrap()
}

/// Voxels whose centre lies in a box of RAS space.
fn painted(geometry: &Geometry, boxes: &[[[f64; 2]; 3]]) -> Array3<u8> {
    let [i, j, k] = geometry.shape();
    Array3::from_shape_fn((i, j, k), |(i, j, k)| {
        let p = finding::ras(geometry, [i, j, k].map(|n| n as f64));
        u8::from(boxes.iter().any(|b| (0..3).all(|n| b[n][0] <= p[n] && p[n] <= b[n][1])))
    })
}

fn head(geometry: &Geometry) -> Volume<f32> {
    let [i, j, k] = geometry.shape();
    let data = Array3::from_shape_fn((i, j, k), |(i, j, k)| {
        let p = finding::ras(geometry, [i, j, k].map(|n| n as f64));
        let r2: f64 = (0..3).map(|n| ((p[n] - [12.0, -7.0, 31.0][n]) / 45.0).powi(2)).sum();
        if r2 < 1.0 { 500.0 + (p[2] as f32) } else { 3.0 }
    });
    Volume::new(geometry.clone(), data).unwrap()
}

/// An L on every plane: a bar along R, one along A at its left end, one along S at its left end.
const LESION: [[[f64; 2]; 3]; 3] = [
    [[-10.0, 20.0], [0.0, 6.0], [20.0, 26.0]],
    [[-10.0, -4.0], [0.0, 24.0], [20.0, 26.0]],
    [[-10.0, -4.0], [0.0, 6.0], [20.0, 40.0]],
];

fn matches_colour(found: [u8; 3], kind: Kind) -> bool {
    let [r, g, b] = found.map(i16::from);
    match kind {
        Kind::Found => g > r + 30 && g > b + 30,
        Kind::FalsePositive => r > g + 30 && r > b + 30,
        Kind::Missed => found == YELLOW,
    }
}

fn bounds(picture: &RgbImage, kind: Kind) -> [f64; 4] {
    let mut out = [f64::MAX, f64::MIN, f64::MAX, f64::MIN];
    for (x, y, pixel) in picture.enumerate_pixels() {
        if matches_colour(pixel.0, kind) {
            let (x, y) = (f64::from(x), f64::from(y));
            out = [out[0].min(x), out[1].max(x), out[2].min(y), out[3].max(y)];
        }
    }
    out
}

#[test]
fn an_asymmetrical_lesion_stands_where_it_is_on_every_plane() {
    let geometry = oblique();
    let image = head(&geometry);
    let prediction = painted(&geometry, &LESION);
    let none = Array3::zeros(prediction.dim());
    for (reference, predicted, kind) in
        [(&prediction, &none, Kind::Missed), (&none, &prediction, Kind::FalsePositive)]
    {
        let found = Findings::of(&geometry, reference, predicted, Connectivity::TwentySix);
        assert_eq!((found.list.len(), found.list[0].kind), (1, kind));
        let case = Case::new(&image, &found).unwrap();
        for plane in Plane::ALL {
            // Through the corner of the L, so that two of its bars are seen.
            let centre_mm = [-7.0, 3.0, 23.0];
            let view = View { plane, centre_mm, pixels: [300, 240], mm_per_pixel: 0.4 };
            let picture = case.slice(view);
            // Extents of the L as the voxel grid shows it, to half a voxel's projection and the
            // width of the outline.
            let [r, a, s] = [[-10.0, 20.0], [0.0, 24.0], [20.0, 40.0]];
            let (across, up) = match plane {
                // The picture's right is L, P or I: the signs of these axes turn.
                Plane::Axial => (r, a),
                Plane::Coronal => (r, s),
                Plane::Sagittal => (a, s),
            };
            let centre = match plane {
                Plane::Axial => [-7.0, 3.0],
                Plane::Coronal => [-7.0, 23.0],
                Plane::Sagittal => [3.0, 23.0],
            };
            let x_of = |mm: f64| 149.5 - (mm - centre[0]) / 0.4;
            let y_of = |mm: f64| 119.5 - (mm - centre[1]) / 0.4;
            let expected = [x_of(across[1]), x_of(across[0]), y_of(up[1]), y_of(up[0])];
            let seen = bounds(&picture, kind);
            for n in 0..4 {
                let tolerance = 2.0 / 0.4 + 2.0;
                assert!(
                    (seen[n] - expected[n]).abs() < tolerance,
                    "{plane:?} {kind:?}: {seen:?} against {expected:?}"
                );
            }
            // The corner of the L is filled, the corner opposite to it is not.
            let at = |x: f64, y: f64| picture.get_pixel(x as u32, y as u32).0;
            let far = at(x_of(across[1] - 3.0), y_of(up[1] - 3.0));
            assert!(!matches_colour(far, kind), "{plane:?}: {far:?}");
            if kind == Kind::FalsePositive {
                assert!(matches_colour(at(149.5, 119.5), kind), "{plane:?}");
            }
        }
    }
}

#[test]
fn every_kind_has_its_colour() {
    let geometry = Geometry::with_spacing([80; 3], [1.0; 3]).unwrap();
    let mut image = Array3::from_elem((80, 80, 80), 0f32);
    image.slice_mut(ndarray::s![5..75, 5..75, 5..75]).fill(100.0);
    image[[40, 40, 40]] = 200.0;
    let image = Volume::new(geometry.clone(), image).unwrap();
    let cube = |at: f64| [[at, at + 6.0], [0.0, 6.0], [0.0, 6.0]];
    let reference = painted(&geometry, &[cube(-25.0), cube(0.0)]);
    let prediction = painted(&geometry, &[cube(3.0), cube(20.0)]);
    let found = Findings::of(&geometry, &reference, &prediction, Connectivity::TwentySix);
    let kinds: Vec<_> = found.list.iter().map(|f| (f.kind, f.number)).collect();
    assert_eq!(kinds, [(Kind::Missed, 1), (Kind::Found, 2), (Kind::FalsePositive, 2)]);
    assert_eq!(found.list[0].at_mm, [-22.5, 2.5, 2.5]);
    assert_eq!(found.list[1].at_mm, [3.5, 2.5, 2.5], "a voxel that is predicted");
    assert_eq!((found.list[1].volume_mm3, found.list[1].extent_mm), (216.0, 6.0));
    let case = Case::new(&image, &found).unwrap();
    let view = View {
        plane: Plane::Axial,
        centre_mm: [0.5, 0.5, 3.5],
        pixels: [320; 2],
        mm_per_pixel: 0.25,
    };
    let picture = case.slice(view);
    let at = |r: f64, a: f64| {
        let [x, y] = view.pixel_of([r, a, 3.5]);
        picture.get_pixel(x.round() as u32, y.round() as u32).0
    };
    // Patient's left (negative R) is on the right.
    assert!(view.pixel_of([-25.0, 0.0, 3.5])[0] > 200.0);
    // A missed lesion shows the image inside its outline.
    let inside = at(-22.0, 3.0);
    assert!(inside[0] == inside[1] && inside[1] == inside[2], "{inside:?}");
    assert_eq!(at(-25.1, 3.0), YELLOW);
    assert!(matches_colour(at(5.0, 3.0), Kind::Found));
    assert!(matches_colour(at(8.5, 3.0), Kind::Found), "beyond the reference");
    assert!(matches_colour(at(23.0, 3.0), Kind::FalsePositive), "{RED:?}");
    // The found lesion's contour, also where nothing is predicted.
    assert_eq!(at(-0.1, 3.0), BLUE);
    let grey = at(1.5, 3.0);
    assert!(grey[0] == grey[1] && grey[1] == grey[2], "{grey:?}");
}

#[test]
fn a_scale_bar_of_ten_millimetres() {
    let geometry = Geometry::with_spacing([50; 3], [2.0; 3]).unwrap();
    let mut image = Array3::from_elem((50, 50, 50), 0f32);
    image[[20, 20, 20]] = 1.0;
    let image = Volume::new(geometry.clone(), image).unwrap();
    let none = Array3::zeros((50, 50, 50));
    let found = Findings::of(&geometry, &none, &none, Connectivity::TwentySix);
    let case = Case::new(&image, &found).unwrap();
    for (mm_per_pixel, pixels) in [(0.4, 25), (0.25, 40), (2.0, 25)] {
        let view = View {
            plane: Plane::Sagittal,
            centre_mm: [49.0, 0.0, 0.0],
            pixels: [120, 120],
            mm_per_pixel,
        };
        let picture = case.slice(view);
        let white = |x: &u32| picture.get_pixel(*x, 112).0 == [255; 3];
        let line = (7..120).take_while(white).count();
        assert_eq!(line, pixels + 1, "{mm_per_pixel}");
    }
}

/// A letter as a reader sees it, drawn here and not taken from the table of glyphs.
fn drawn(letter: &str) -> [&'static str; 7] {
    match letter {
        "R" => ["####.", "#...#", "#...#", "####.", "#.#..", "#..#.", "#...#"],
        "L" => ["#....", "#....", "#....", "#....", "#....", "#....", "#####"],
        "A" => [".###.", "#...#", "#...#", "#####", "#...#", "#...#", "#...#"],
        "P" => ["####.", "#...#", "#...#", "####.", "#....", "#....", "#...."],
        "S" => [".####", "#....", "#....", ".###.", "....#", "....#", "####."],
        "I" => [".###.", "..#..", "..#..", "..#..", "..#..", "..#..", ".###."],
        _ => panic!("{letter} names no side of a patient"),
    }
}

#[test]
fn letters_at_the_edges_name_the_sides_of_the_patient() {
    let geometry = Geometry::with_spacing([50; 3], [2.0; 3]).unwrap();
    let mut image = Array3::from_elem((50, 50, 50), 0f32);
    image[[20, 20, 20]] = 1.0;
    let image = Volume::new(geometry.clone(), image).unwrap();
    let none = Array3::zeros((50, 50, 50));
    let found = Findings::of(&geometry, &none, &none, Connectivity::TwentySix);
    let case = Case::new(&image, &found).unwrap();
    for (plane, convention) in [
        (Plane::Axial, ["R", "L", "A", "P"]),
        (Plane::Coronal, ["R", "L", "S", "I"]),
        (Plane::Sagittal, ["A", "P", "S", "I"]),
    ] {
        assert_eq!(plane.letters(), convention, "{plane:?}");
        let [right, down] = plane.directions();
        let name = |towards: nalgebra::Vector3<f64>| {
            let axis = towards.iamax();
            [["R", "L"], ["A", "P"], ["S", "I"]][axis][usize::from(towards[axis] < 0.0)]
        };
        assert_eq!(plane.letters(), [-right, right, -down, down].map(name), "{plane:?}");

        let (width, height) = (141, 121);
        let centre_mm = [49.0, 0.0, 0.0];
        let view = View { plane, centre_mm, pixels: [width, height], mm_per_pixel: 0.4 };
        let picture = case.slice(view);
        let middle = [(width - 5) / 2, (height - 7) / 2];
        let corners =
            [[3, middle[1]], [width - 8, middle[1]], [middle[0], 3], [middle[0], height - 10]];
        for ([x, y], letter) in corners.into_iter().zip(convention) {
            let seen: Vec<String> = (y..y + 7)
                .map(|y| {
                    let white = |x| picture.get_pixel(x, y).0 == [255; 3];
                    (x..x + 5).map(|x| if white(x) { '#' } else { '.' }).collect()
                })
                .collect();
            assert_eq!(seen, drawn(letter), "{letter} of {plane:?}");
        }
    }
}

#[test]
fn the_same_bytes_again_and_a_limit_in_turns() {
    let geometry = Geometry::with_spacing([100, 60, 40], [1.0, 1.0, 2.0]).unwrap();
    let image = head(&geometry);
    let cube = |at: f64, b: f64| [[at, at + 2.0], [b, b + 2.0], [0.0, 2.0]];
    let row = |b: f64| (0..9).map(move |n| cube(-45.0 + 10.0 * f64::from(n), b));
    let reference = painted(&geometry, &row(-20.0).chain(row(0.0)).collect::<Vec<_>>());
    let prediction = painted(&geometry, &row(0.0).chain(row(20.0)).collect::<Vec<_>>());
    let options = Options { findings: 7, slices: true };
    let run = || draw(&image, &reference, &prediction, Connectivity::Six, &options).unwrap();
    let made = run();
    let kinds: Vec<_> = made.pictured.iter().map(|p| p.finding.kind).collect();
    use Kind::{FalsePositive as P, Found as F, Missed as M};
    assert_eq!(kinds, [M, M, M, P, P, F, F]);
    assert_eq!((made.left_out, made.sheets.len()), (20, 2));
    let again = run();
    assert_eq!(made.sheets, again.sheets);
    for (a, b) in made.pictured.iter().zip(&again.pictured) {
        assert_eq!((a.slices.len(), &a.slices), (3, &b.slices));
    }
    let sheet = image::load_from_memory(&made.sheets[0]).unwrap();
    assert_eq!((sheet.width(), sheet.height()), (820, 6 * 218));
}

#[test]
fn shades_grow_with_values_and_bright_lesions_keep_theirs() {
    let geometry = Geometry::with_spacing([40; 3], [1.0; 3]).unwrap();
    let data = Array3::from_shape_fn((40, 40, 40), |(i, j, k)| {
        let at = [i, j, k];
        if at.iter().all(|n| (18..21).contains(n)) {
            // A lesion of ascending brightness, far above the brain.
            600.0 + 50.0 * (i - 18) as f32
        } else if at.iter().all(|n| (5..35).contains(n)) {
            280.0 + ((i * 7 + j * 11 + k * 13) % 41) as f32
        } else {
            0.0
        }
    });
    let window = window::Window::of(&Volume::new(geometry, data).unwrap()).unwrap();
    let shades: Vec<u8> = (0..800).map(|v| window.grey(v as f32)).collect();
    assert!(shades.is_sorted());
    assert_eq!((shades[0], shades[799]), (0, 255));
    assert!((80..130).contains(&shades[300]), "{}", shades[300]);
    for head in window.head_mm {
        assert!((head[0] + 14.5).abs() <= 1.0 && (head[1] - 14.5).abs() <= 1.0, "{head:?}");
    }
}

#[test]
fn what_cannot_be_pictured() {
    let geometry = Geometry::with_spacing([10; 3], [1.0; 3]).unwrap();
    let mask = Array3::<u8>::zeros((10, 10, 10));
    let flat = Volume::new(geometry.clone(), Array3::from_elem((10, 10, 10), 7f32)).unwrap();
    let options = Options::default();
    let six = Connectivity::Six;
    let text = |e: Error| e.to_string();
    assert!(text(draw(&flat, &mask, &mask, six, &options).unwrap_err()).contains("same value"));
    let small = Array3::zeros((9, 10, 10));
    let error = text(draw(&flat, &mask, &small, six, &options).unwrap_err());
    assert!(error.contains("the prediction has [9, 10, 10]"), "{error}");

    // Values at the ends of f32, NaN, and a single bright voxel are drawn without a panic.
    for odd in [f32::MAX, f32::NAN, f32::MIN, 1e-40] {
        let mut data = Array3::from_elem((10, 10, 10), 0f32);
        data[[3, 3, 3]] = odd;
        data[[4, 3, 3]] = 1e-30;
        let image = Volume::new(geometry.clone(), data).unwrap();
        let mut lesion = mask.clone();
        lesion[[9, 9, 9]] = 1;
        let made = draw(&image, &lesion, &mask, six, &options).unwrap();
        assert_eq!((made.pictured.len(), made.sheets.len()), (1, 1));
    }
    let image = Volume::new(geometry, Array3::from_shape_fn((10, 10, 10), |(i, _, _)| i as f32));
    let none = draw(&image.unwrap(), &mask, &mask, six, &options).unwrap();
    assert!(none.sheets.is_empty() && none.pictured.is_empty());
}
