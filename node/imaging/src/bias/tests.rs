use super::*;
use crate::volume::Geometry;

/// Blocks of four tissues under noise and a field that a coil could have: image, mask, log field.
fn phantom(shape: [usize; 3], spacing_mm: [f64; 3]) -> (Volume<f32>, Array3<u8>, Array3<f32>) {
    let geometry = Geometry::with_spacing(shape, spacing_mm).unwrap();
    let at = |index: usize, axis: usize| (index as f64 + 0.5) / shape[axis] as f64 * 2.0 - 1.0;
    let field = Array3::from_shape_fn(shape, |(i, j, k)| {
        let (x, y, z) = (at(i, 0), at(j, 1), at(k, 2));
        (0.3 * x + 0.25 * (1.5 * y).sin() - 0.2 * z * z + 0.15 * x * y) as f32
    });
    let mut state = 1u64;
    let mut noise = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let mut mask = Array3::zeros(shape);
    let image = Array3::from_shape_fn(shape, |(i, j, k)| {
        let r = at(i, 0).powi(2) + at(j, 1).powi(2) + at(k, 2).powi(2);
        mask[[i, j, k]] = u8::from(r < 0.9);
        let ripple = (9.0 * at(i, 0)).sin() + (8.0 * at(j, 1)).cos() + (7.0 * at(k, 2)).sin();
        let tissue = match ripple {
            v if v < -0.8 => 60.0,
            v if v < 0.2 => 100.0,
            v if v < 1.2 => 140.0,
            _ => 220.0,
        };
        tissue * field[[i, j, k]].exp() * (1.0 + 0.06 * noise())
    });
    (Volume::new(geometry, image).unwrap(), mask, field)
}

fn correlation(a: &Array3<f32>, b: &Array3<f32>, mask: &Array3<u8>) -> f64 {
    let pairs: Vec<(f64, f64)> = (a.iter().zip(b).zip(mask))
        .filter(|(_, m)| **m > 0)
        .map(|((x, y), _)| (f64::from(*x), f64::from(*y)))
        .collect();
    let n = pairs.len() as f64;
    let (ma, mb) =
        (pairs.iter().map(|p| p.0).sum::<f64>() / n, pairs.iter().map(|p| p.1).sum::<f64>() / n);
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in pairs {
        ab += (x - ma) * (y - mb);
        aa += (x - ma).powi(2);
        bb += (y - mb).powi(2);
    }
    ab / (aa * bb).sqrt()
}

#[test]
fn a_known_field_is_found() {
    for (shape, spacing, shrink, least) in [
        ([48, 56, 40], [4.0; 3], 1, 0.97),
        ([64, 72, 60], [3.0; 3], 2, 0.97),
        ([96, 96, 20], [1.5, 1.5, 7.0], 2, 0.97),
        ([20, 64, 97], [6.0, 2.0, 2.0], 3, 0.97),
    ] {
        let (image, mask, truth) = phantom(shape, spacing);
        let found = n4(&image, &mask, &Settings { shrink, ..Settings::default() }).unwrap();
        let r = correlation(&found.log_field, &truth, &mask);
        assert!(r > least, "{shape:?} thinned by {shrink}: correlation {r}");
        assert_eq!(found.iterations.len(), 4);
        let spread = |values: &Array3<f32>| {
            let inside: Vec<f64> = values
                .iter()
                .zip(&mask)
                .filter(|(_, m)| **m > 0)
                .map(|(v, _)| f64::from(*v))
                .collect();
            let mean = inside.iter().sum::<f64>() / inside.len() as f64;
            (inside.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / inside.len() as f64).sqrt()
                / mean
        };
        let mut corrected = image.data().clone();
        found.apply(&mut corrected);
        assert!(spread(&corrected) < 0.95 * spread(image.data()));
    }
}

#[test]
fn the_number_of_threads_and_the_affine_change_no_bit() {
    let (image, mask, _) = phantom([40, 33, 37], [3.0; 3]);
    let settings = Settings { iterations: vec![5; 3], ..Settings::default() };
    let run = |threads: usize, image: &Volume<f32>| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| n4(image, &mask, &settings).unwrap().log_field)
    };
    let one = run(1, &image);
    assert_eq!(one, run(3, &image));
    let turned = nalgebra::Rotation3::from_euler_angles(0.4, -0.3, 1.0).to_homogeneous()
        * image.geometry().affine();
    let oblique = Geometry::new([40, 33, 37], turned).unwrap();
    assert_eq!(one, run(2, &Volume::new(oblique, image.data().clone()).unwrap()));
}

#[test]
fn turning_the_axes_turns_the_field() {
    let (image, mask, _) = phantom([40, 33, 37], [3.0; 3]);
    let settings = Settings { iterations: vec![5; 2], ..Settings::default() };
    let straight = n4(&image, &mask, &settings).unwrap().log_field;
    for order in [[1, 0, 2], [2, 1, 0], [1, 2, 0]] {
        let turn =
            |a: &Array3<f32>| a.clone().permuted_axes(order).as_standard_layout().into_owned();
        let data = turn(image.data());
        let (i, j, k) = data.dim();
        let grid = Geometry::with_spacing([i, j, k], [3.0; 3]).unwrap();
        let turned_mask = mask.clone().permuted_axes(order).as_standard_layout().into_owned();
        let field =
            n4(&Volume::new(grid, data).unwrap(), &turned_mask, &settings).unwrap().log_field;
        for (a, b) in field.iter().zip(&turn(&straight)) {
            assert!((a - b).abs() < 2e-3, "{order:?}: {a} against {b}");
        }
    }
}

#[test]
fn voxels_without_a_logarithm_take_part_as_the_setting_says() {
    let (image, mask, _) = phantom([32; 3], [4.0; 3]);
    let settings = Settings {
        iterations: vec![4; 2],
        nonpositive: NonPositive::Exclude,
        ..Settings::default()
    };
    let (grid, mut data) = image.into_parts();
    let mut without = mask.clone();
    for (n, (v, m)) in data.iter_mut().zip(&mut without).enumerate() {
        if n % 7 == 0 {
            *v = if n % 2 == 0 { 0.0 } else { -50.0 };
            *m = 0;
        }
    }
    let image = Volume::new(grid, data).unwrap();
    let (a, b) = (n4(&image, &mask, &settings).unwrap(), n4(&image, &without, &settings).unwrap());
    assert_eq!((&a.log_field, a.voxels), (&b.log_field, b.voxels));
    let raw = Settings { nonpositive: NonPositive::Raw, ..settings };
    let c = n4(&image, &mask, &raw).unwrap();
    assert!(c.voxels > a.voxels && c.log_field != a.log_field);
}

#[test]
fn a_single_slice_and_other_orders_work() {
    for (shape, spline_order) in [([64, 72, 1], 3), ([48, 1, 56], 2), ([48; 3], 1), ([48; 3], 5)] {
        let (image, mask, truth) = phantom(shape, [2.0; 3]);
        let control_points = [spline_order + 1; 3];
        let settings = Settings { spline_order, control_points, ..Settings::default() };
        let found = n4(&image, &mask, &settings).unwrap();
        let r = correlation(&found.log_field, &truth, &mask);
        assert!(r > 0.9, "{shape:?}, order {spline_order}: correlation {r}");
    }
}

#[test]
fn what_has_no_field_is_refused() {
    let shape = [8; 3];
    let grid = Geometry::with_spacing(shape, [1.0; 3]).unwrap();
    let volume = |f: fn((usize, usize, usize)) -> f32| {
        Volume::new(grid.clone(), Array3::from_shape_fn(shape, f)).unwrap()
    };
    let good = volume(|(i, ..)| 1.0 + i as f32);
    let all = Array3::ones(shape);
    let default = Settings::default();
    let refused = |image: &Volume<f32>, mask: &Array3<u8>, settings: &Settings| {
        n4(image, mask, settings).unwrap_err()
    };
    assert_eq!(
        refused(&good, &Array3::ones([8, 8, 7]), &default),
        Error::Shape { mask: [8, 8, 7], image: shape }
    );
    assert_eq!(refused(&good, &Array3::zeros(shape), &default), Error::Empty);
    assert_eq!(refused(&volume(|_| 0.0), &all, &default), Error::Empty);
    assert_eq!(refused(&volume(|_| 5.0), &all, &default), Error::Constant);
    assert_eq!(
        refused(&volume(|(i, ..)| if i == 2 { f32::NAN } else { 1.0 }), &all, &default),
        Error::NotFinite(64)
    );
    for settings in [
        Settings { spline_order: 0, ..default.clone() },
        Settings { spline_order: 6, ..default.clone() },
        Settings { control_points: [4, 3, 4], ..default.clone() },
        Settings { iterations: vec![], ..default.clone() },
        Settings { iterations: vec![1; 40], ..default.clone() },
        Settings { histogram_bins: 1, ..default.clone() },
        Settings { fwhm: 0.0, ..default.clone() },
        Settings { wiener_noise: f64::NAN, ..default.clone() },
        Settings { convergence: f64::NAN, ..default.clone() },
        Settings { shrink: 0, ..default.clone() },
    ] {
        assert!(matches!(refused(&good, &all, &settings), Error::Settings(_)), "{settings:?}");
    }
}
