//! The head before disease: a synthetic one, or a real one bent into another patient's.

use ndarray::{Array3, Axis, Zip, s};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::anatomy::{Anatomy, Depths, ellipsoid};
use super::centre::Profile;
use super::noise::{Noise, Point, ramp};
use crate::distance::distance_mm;
use crate::preprocess::percentile;
use crate::volume::{self, Geometry, Volume};

/// Semi-axes of an adult brain, right-left, front-back, top-bottom.
const ADULT_MM: [f64; 3] = [68.0, 86.0, 66.0];
/// How far and over which distance a real anatomy is bent.
const BEND_MM: (f64, f64) = (4.0, 70.0);

/// A noise-free head on its grid.
pub(super) struct Head {
    pub(super) geometry: Geometry,
    pub(super) image: Array3<f32>,
    pub(super) brain: Array3<u8>,
    /// Distance in mm to the surface of the brain, negative outside.
    pub(super) depth_mm: Array3<f32>,
    /// Intensity of white matter.
    pub(super) white: f64,
    /// Size against an adult's.
    pub(super) scale: f64,
    /// Semi-axes of a synthetic brain; a real one brings its own vessels and falx.
    pub(super) synthetic_mm: Option<[f64; 3]>,
    /// Where contrast agent collects in the ventricles (choroid plexus), 0 to 1.
    pub(super) plexus: Option<Array3<f32>>,
    /// Distance in mm to falx and tentorium, where they are near.
    pub(super) dura_mm: Option<Array3<f32>>,
}

impl Head {
    /// Position of a voxel in mm from the middle of the volume.
    pub(super) fn point(&self, (i, j, k): (usize, usize, usize)) -> Point {
        point(&self.geometry, (i, j, k))
    }

    /// Change of the depth with the way, about 1 near a smooth surface.
    pub(super) fn steepness(&self, (i, j, k): (usize, usize, usize)) -> f64 {
        let (at, mm) = ([i, j, k], self.geometry.spacing_mm());
        norm(std::array::from_fn(|axis| {
            let (mut low, mut high) = (at, at);
            low[axis] = at[axis].saturating_sub(1);
            high[axis] = (at[axis] + 1).min(self.depth_mm.len_of(Axis(axis)) - 1);
            let way = (high[axis] - low[axis]).max(1) as f64 * mm[axis];
            f64::from(self.depth_mm[high] - self.depth_mm[low]) / way
        }))
    }

    /// Slices as thick as `planes` planes: their mean, and brain where most of them are.
    pub(super) fn thicken(&mut self, planes: usize) -> Result<(), volume::Error> {
        let ([ni, nj, nk], mm) = (self.geometry.shape(), self.geometry.spacing_mm());
        let slices = nk / planes;
        self.geometry =
            Geometry::with_spacing([ni, nj, slices], [mm[0], mm[1], mm[2] * planes as f64])?;
        let mean = |of: &Array3<f32>| {
            Array3::from_shape_fn((ni, nj, slices), |(i, j, k)| {
                of.slice(s![i, j, k * planes..(k + 1) * planes]).sum() / planes as f32
            })
        };
        self.image = mean(&self.image);
        self.depth_mm = mean(&self.depth_mm);
        self.brain = mean(&self.brain.mapv(f32::from)).mapv(|share| u8::from(share >= 0.5));
        Ok(())
    }

    pub(super) fn brain_cm3(&self) -> f64 {
        self.brain.iter().filter(|b| **b > 0).count() as f64 * self.geometry.voxel_mm3() / 1000.0
    }
}

pub(super) fn point(geometry: &Geometry, (i, j, k): (usize, usize, usize)) -> Point {
    let (shape, spacing) = (geometry.shape(), geometry.spacing_mm());
    let index = [i, j, k];
    [0, 1, 2].map(|n| (index[n] as f64 - (shape[n] as f64 - 1.0) / 2.0) * spacing[n])
}

/// A brain with folded cortex, ventricles, basal ganglia, cerebellum and stem, in skull, scalp, face
/// and neck if wanted.
pub(super) fn synthetic(
    geometry: &Geometry,
    profile: &Profile,
    skull: bool,
    rng: &mut ChaCha8Rng,
) -> Head {
    let (shape, spacing) = (geometry.shape(), geometry.spacing_mm());
    let room = if skull { 0.41 } else { 0.46 };
    let half: [f64; 3] = std::array::from_fn(|n| {
        (room * shape[n] as f64 * spacing[n]).min(ADULT_MM[n]) * rng.random_range(0.93..1.0)
    });
    let scale = (half.iter().product::<f64>() / ADULT_MM.iter().product::<f64>()).cbrt();
    // Folds and layers of a small brain are shrunk less than the brain: a voxel must hold them.
    let fine = scale.max(0.45);
    let white = rng.random_range(300.0..700.0);
    let (grey, csf) = (profile.grey * rng.random_range(0.97..1.03), rng.random_range(0.28..0.38));
    let mut field = |wavelength_mm: f64| Noise::new(rng.random(), wavelength_mm);
    let (outline, fold, wrinkle) = (field(45.0 * scale), field(14.0 * fine), field(7.0 * fine));
    let (warp, plexus_noise, marrow) = (field(30.0 * scale), field(9.0 * fine), field(10.0 * fine));
    let (folia, fat) = (field(12.0 * fine), field(14.0 * fine));
    let ventricle_size = rng.random_range(0.8..1.25);
    let cortex_mm = (3.0 * scale).max(1.6 * spacing[0]);
    let anatomy = Anatomy::new(half, scale, outline, rng.random_range(-0.04..0.04));

    let dim = (shape[0], shape[1], shape[2]);
    let mut head = Head {
        geometry: geometry.clone(),
        image: Array3::zeros(dim),
        brain: Array3::zeros(dim),
        depth_mm: Array3::zeros(dim),
        white,
        scale,
        synthetic_mm: Some(half),
        plexus: None,
        dura_mm: None,
    };
    let (mut plexus, mut dura) = (Array3::zeros(dim), Array3::from_elem(dim, f32::MAX));
    let tissue = |p: Point, at: &Depths| -> (f64, f64, f64) {
        let u: Point = [0, 1, 2].map(|n| p[n] / half[n]);
        let d = at.brain;
        // Where hemispheres and cerebellum face each other runs the tentorium.
        let tent = if at.cerebellum.min(at.cerebrum) > 0.0 {
            0.6 * (at.cerebellum - at.cerebrum).abs() + (at.stem + 1.0).max(0.0)
        } else {
            f64::MAX
        };
        let shallow = (d - 0.62 * half[2]).max(0.0);
        let falx = if at.cerebrum > at.cerebellum {
            let below = (-0.15 * half[2] - p[2]).max(0.0);
            (p[0] + 3.0 * scale * warp.at(p)).abs() + shallow + below
        } else {
            f64::MAX
        };
        let dura = falx.min(tent);
        if at.cerebellum > at.cerebrum && at.cerebellum > at.stem {
            // Folia lie in leaves around the core; the white matter branches between them.
            let leaf = p[2] + 0.45 * (p[1] + 0.5 * half[1]).abs() + 2.2 * fine * folia.at(p);
            let crease = (leaf * std::f64::consts::PI / (5.5 * fine)).sin().abs();
            let folded = (d - 3.5 * fine * (1.0 - crease / 0.35).max(0.0)).min(tent - 0.8);
            let branches = at.cerebellum - (4.0 + 7.0 * crease) * fine;
            let leaf = csf + (grey * 0.97 - csf) * ramp(folded, -0.5, 0.8);
            return (leaf + (0.97 - grey) * ramp(branches, -0.7, 0.9), dura, 0.0);
        }
        if at.stem > at.cerebrum {
            let fluid = csf + (0.95 - csf) * ramp(at.stem, -0.5, 0.6);
            let fourth = ellipsoid(u, [0.0, -0.30, -0.48], [0.07, 0.06, 0.12]);
            return (fluid + (csf - fluid) * ramp(fourth, -0.01, 0.02), dura, 0.0);
        }
        // Sulci run where the noise changes sign, down to a depth; the cortex lines them. Value over
        // slope is about the distance to that place in mm.
        let sulcus = if d < 30.0 * fine {
            let (a, b) = (fold.gradient(p), wrinkle.gradient(p));
            let slope = norm(std::array::from_fn(|n| a[n] + 0.4 * b[n])).max(0.02 / fine);
            (fold.at(p) + 0.4 * wrinkle.at(p)).abs() / slope + (d - 21.0 * fine).max(0.0)
        } else {
            f64::MAX
        };
        // Wide at the surface, closed further down.
        let width = (0.8 - 0.06 * d / fine).max(0.25) * fine;
        let folded = d.min(sulcus - width).min(falx - 0.7).min(tent - 0.8);
        let mut tissue = csf + (grey - csf) * ramp(folded, -0.5, 0.6);
        let below_cortex = folded - cortex_mm;
        tissue += (1.0 - grey) * ramp(below_cortex, -0.7, 0.7) * ramp(folded, -0.5, 0.6);
        // Bundles differ a little in myelin.
        tissue *= 1.0 + 0.03 * warp.at(p.map(|x| 2.3 * x)) * ramp(below_cortex, 0.0, 3.0);
        let side = [u[0].abs(), u[1], u[2]];
        let w = 0.04 * warp.at(p);
        let ganglia = ellipsoid(side, [0.29, 0.10, 0.02], [0.11, 0.24, 0.15]).max(ellipsoid(
            side,
            [0.13, -0.10, 0.00],
            [0.10, 0.17, 0.12],
        )) + w;
        tissue += (grey * 1.03 - tissue) * ramp(ganglia, -0.02, 0.04);
        let horn = ellipsoid(
            side,
            [0.13 + 0.10 * (u[1] + 0.1).powi(2), -0.05, 0.18],
            [0.075, 0.40, 0.10].map(|x| x * ventricle_size),
        );
        let third =
            ellipsoid(u, [0.0, -0.02, -0.02], [0.03, 0.15, 0.11].map(|x| x * ventricle_size));
        let ventricle = ramp(horn.max(third) + w, -0.015, 0.03);
        let plexus = ventricle * ramp(plexus_noise.at(p), 0.42, 0.58);
        (tissue + (csf - tissue) * ventricle, dura, plexus)
    };
    Zip::indexed(&mut head.image)
        .and(&mut head.brain)
        .and(&mut head.depth_mm)
        .and(&mut plexus)
        .and(&mut dura)
        .for_each(|at, value, brain, depth, plexus, dura| {
            let p = point(geometry, at);
            let depths = anatomy.depths(p);
            *depth = depths.brain as f32;
            if depths.brain > 0.0 {
                let (tissue, sheet, contrast) = tissue(p, &depths);
                (*value, *dura, *plexus) = ((tissue * white) as f32, sheet as f32, contrast as f32);
            } else if skull {
                let mm = -depths.brain / fine;
                *value = (outside(&anatomy, p, mm, csf, fine, &marrow, &fat) * white) as f32;
            }
            // Extraction tools leave a rim of meninges in the mask.
            *brain = u8::from(depths.brain > -0.5);
        });
    head.plexus = Some(plexus);
    head.dura_mm = Some(dura);
    head
}

/// From the brain outwards: fluid, bone with marrow, fatty scalp, air; below, muscle and fat of face
/// and neck with eyes and airways. `mm` is the distance from the brain in units of an adult's.
fn outside(
    anatomy: &Anatomy,
    p: Point,
    mm: f64,
    csf: f64,
    fine: f64,
    marrow: &Noise,
    fat: &Noise,
) -> f64 {
    const FAT: f64 = 1.25;
    const AIR: f64 = 0.02;
    let bone = 0.10 + 0.35 * ramp(2.0 - (mm - 4.6).abs(), 0.4, 1.2) * ramp(marrow.at(p), -0.6, 0.4);
    let skin = (10.8 - mm).max(anatomy.soft(p) / fine);
    let muscle = 0.48 + (0.95 - 0.48) * ramp(fat.at(p).abs(), 0.22, 0.02);
    let soft = muscle + (FAT - muscle) * ramp(4.0 - skin, -0.5, 0.5);
    let soft = soft + (FAT - soft) * ramp(anatomy.eye(p) / fine, -5.0, -3.5);
    let soft = soft + (csf * 0.85 - soft) * ramp(anatomy.eye(p) / fine, -0.5, 0.5);
    let soft = soft + (AIR - soft) * ramp(anatomy.airway(p) / fine, -0.5, 0.5);
    let layers = [(2.0, bone), (7.2, soft)];
    let inner = layers
        .iter()
        .fold(csf, |value, (from, next)| value + (next - value) * ramp(mm - from, -0.5, 0.5));
    inner + (AIR - inner) * ramp(-skin, -0.5, 0.5)
}

pub(super) fn norm(p: Point) -> f64 {
    (p[0] * p[0] + p[1] * p[1] + p[2] * p[2]).sqrt()
}

/// A real head, mirrored or not and smoothly bent, so that no two patients share their anatomy.
pub(super) fn real(anatomy: &Volume<f32>, mask: &Array3<u8>, rng: &mut ChaCha8Rng) -> Head {
    let geometry = anatomy.geometry().clone();
    let spacing = geometry.spacing_mm();
    let shape = geometry.shape();
    let mirror = rng.random_bool(0.5);
    let bends: [Noise; 3] = std::array::from_fn(|_| Noise::new(rng.random(), BEND_MM.1));
    let sample = |at: (usize, usize, usize)| -> [f64; 3] {
        let p = point(&geometry, at);
        let index = [at.0, at.1, at.2];
        std::array::from_fn(|n| {
            let moved = index[n] as f64 + BEND_MM.0 * bends[n].at(p) / spacing[n];
            if n == 0 && mirror { shape[0] as f64 - 1.0 - moved } else { moved }
        })
    };
    let dim = (shape[0], shape[1], shape[2]);
    let mut image = Array3::zeros(dim);
    let mut brain = Array3::zeros(dim);
    Zip::indexed(&mut image).and(&mut brain).for_each(|at, value, brain| {
        let x = sample(at);
        *value = trilinear(anatomy.data(), x, |v| f64::from(*v)) as f32;
        *brain = u8::from(trilinear(mask, x, |v| f64::from(*v)) > 0.5);
    });
    let outside = brain.map(|b| 1 - b);
    let mut depth_mm = distance_mm(&outside, spacing).mapv(|d| d as f32);
    Zip::from(&mut depth_mm)
        .and(&distance_mm(&brain, spacing))
        .for_each(|d, out| *d -= *out as f32);
    // White matter is the brightest tissue of the brain in T1.
    let mut inside: Vec<f32> =
        image.iter().zip(&brain).filter(|(_, b)| **b > 0).map(|(v, _)| *v).collect();
    let stored_white =
        if inside.is_empty() { 1.0 } else { percentile(&mut inside, 80.0).max(1e-6) };
    let white = rng.random_range(300.0..700.0);
    image.mapv_inplace(|v| (f64::from(v) * white / stored_white) as f32);
    let volume_mm3 = inside.len() as f64 * geometry.voxel_mm3();
    let adult_mm3 = 4.0 / 3.0 * std::f64::consts::PI * ADULT_MM.iter().product::<f64>();
    Head {
        geometry,
        image,
        brain,
        depth_mm,
        white,
        scale: (volume_mm3 / adult_mm3).cbrt(),
        synthetic_mm: None,
        plexus: None,
        dura_mm: None,
    }
}

fn trilinear<T>(data: &Array3<T>, at: [f64; 3], value: impl Fn(&T) -> f64) -> f64 {
    let shape = data.shape();
    let low: [usize; 3] =
        std::array::from_fn(|n| at[n].clamp(0.0, shape[n] as f64 - 1.0).floor() as usize);
    let part: [f64; 3] =
        std::array::from_fn(|n| (at[n].clamp(0.0, shape[n] as f64 - 1.0)) - low[n] as f64);
    let mut sum = 0.0;
    for corner in 0..8usize {
        let mut weight = 1.0;
        let index: [usize; 3] = std::array::from_fn(|n| {
            let up = corner >> n & 1;
            weight *= if up == 1 { part[n] } else { 1.0 - part[n] };
            (low[n] + up).min(shape[n] - 1)
        });
        if weight > 0.0 {
            sum += weight * value(&data[index]);
        }
    }
    sum
}
