use nalgebra::Rotation3;

use super::*;
use crate::volume::Geometry;

/// A head of ellipsoids: brain, liquor and bone, scalp; and the brain alone.
fn phantom(geometry: &Geometry) -> (Volume<f32>, Array3<u8>) {
    let affine = *geometry.affine();
    let mut brain = Array3::zeros(geometry.shape());
    let image = Array3::from_shape_fn(geometry.shape(), |(i, j, k)| {
        let p = affine.transform_point(&Point3::new(i as f64, j as f64, k as f64));
        let reach = |margin: f64| {
            (p.x / (65.0 + margin)).powi(2)
                + (p.y / (80.0 + margin)).powi(2)
                + (p.z / (58.0 + margin)).powi(2)
        };
        let grain = ((i * 7 + j * 13 + k * 29) % 11) as f32;
        if reach(0.0) < 1.0 {
            brain[[i, j, k]] = 1;
            // White matter inside, grey outside.
            return if reach(-12.0) < 1.0 { 115.0 + grain } else { 85.0 + grain };
        }
        match (reach(8.0) < 1.0, reach(15.0) < 1.0) {
            (true, _) => 15.0 + grain,
            (_, true) => 150.0 + grain,
            _ => grain / 3.0,
        }
    });
    (Volume::new(geometry.clone(), image).unwrap(), brain)
}

fn dice(a: &Array3<u8>, b: &Array3<u8>) -> f64 {
    let both = a.iter().zip(b).filter(|(x, y)| **x > 0 && **y > 0).count() as f64;
    let each = a.iter().chain(b.iter()).filter(|x| **x > 0).count() as f64;
    2.0 * both / each
}

fn turned(shape: [usize; 3], spacing: [f64; 3], angles: [f64; 3]) -> Geometry {
    let straight = Geometry::with_spacing(shape, spacing).unwrap();
    let turn = Rotation3::from_euler_angles(angles[0], angles[1], angles[2]).to_homogeneous();
    Geometry::new(shape, turn * straight.affine()).unwrap()
}

#[test]
fn a_brain_is_found_on_any_grid() {
    for (shape, spacing, angles) in [
        ([100, 110, 92], [2.0; 3], [0.0; 3]),
        ([180, 200, 28], [1.0, 1.0, 6.5], [0.0; 3]),
        ([120, 60, 110], [1.9, 3.6, 1.8], [0.35, -0.25, 0.5]),
        // Sagittal slices: i from front to back.
        ([120, 100, 90], [1.8, 1.9, 2.2], [1.571, 0.0, 1.571]),
    ] {
        let (image, brain) = phantom(&turned(shape, spacing, angles));
        let found = estimate(&image).unwrap();
        let d = dice(&found, &brain);
        assert!(d > 0.95, "{shape:?} {angles:?}: Dice {d}");
    }
}

#[test]
fn a_stripped_image_is_its_own_mask() {
    let (image, brain) = phantom(&turned([95, 105, 80], [2.0; 3], [0.1, 0.0, -0.2]));
    let (grid, mut data) = image.into_parts();
    data.zip_mut_with(&brain, |v, b| *v *= f32::from(*b));
    let stripped = data.map(|v| u8::from(*v != 0.0));
    assert_eq!(estimate(&Volume::new(grid, data).unwrap()).unwrap(), stripped);
}

#[test]
fn what_is_no_head_is_refused() {
    let volume = |spacing: f64, f: fn((usize, usize, usize)) -> f32| {
        let grid = Geometry::with_spacing([30; 3], [spacing; 3]).unwrap();
        estimate(&Volume::new(grid, Array3::from_shape_fn([30; 3], f)).unwrap()).unwrap_err()
    };
    assert_eq!(volume(5.0, |_| 3.0), Error::Constant);
    assert_eq!(
        volume(5.0, |(i, ..)| if i == 3 { f32::INFINITY } else { 0.0 }),
        Error::NotFinite(900)
    );
    assert_eq!(volume(50.0, |(i, ..)| i as f32), Error::Extent(1500.0));
    assert!(matches!(volume(1.0, |(i, j, k)| (i * j * k) as f32), Error::Size(_)));
}
