//! Cohorts of synthetic heads, because no patient data may be shipped.
//!
//! Every patient has an own anatomy, own vessels and own metastases, drawn from a seed. Number and
//! sizes of metastases follow the paper's Table 1 for the imitated [`Centre`]; a brain smaller than
//! an adult's caps them ([`LARGEST_SHARE_OF_BRAIN`], [`ALL_SHARE_OF_BRAIN`]), which the report counts.
//! Volumes lie on the scanner's own grid ([`Slices::Scanner`]), or all on one grid; slices thicker than
//! that are then imitated by blurring along k, as after resampling.

mod anatomy;
mod begun;
mod centre;
mod enhance;
mod head;
mod metastasis;
mod noise;

#[cfg(test)]
mod character_tests;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{Array3, Axis, Zip};
use ndarray_ndimage::{BorderMode, gaussian_filter1d};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};

use begun::Begun;
pub use centre::{
    ALL_SHARE_OF_BRAIN, Centre, LARGEST_SHARE_OF_BRAIN, Profile, SMALLEST_CM3, Sizes, draw_count,
};
use metastasis::Painted;
use noise::Noise;

use crate::cohort::{self, Case, Cohort, LabelRule, MAX_CASES, Split};
use crate::dicom::{self, Description, Grouping, SeriesChoice};
use crate::preprocess::{self, Settings};
use crate::volume::{self, Geometry, Volume};
use crate::{OnProgress, Progress, nifti};

/// Shortest axis of a phantom: the window of a segment (25 voxels) must find room to move.
pub const MIN_EDGE: usize = 32;
/// Longest axis of a phantom.
pub const MAX_EDGE: usize = 512;
/// Memory that cases made at the same time may take together.
const MEMORY_BYTES: usize = 4 << 30;
/// Peak memory of one case.
const BYTES_PER_VOXEL: usize = 64;

/// Why a cohort could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder cannot be used.
    #[error("making a cohort in {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is a cohort already.
    #[error("making a cohort in {}: it already holds a cohort.toml; choose another folder", .0.display())]
    Exists(PathBuf),
    /// There is half a cohort of other options.
    #[error(
        "making a cohort in {}: it holds an unfinished cohort that was begun with other options; \
         use the same options to finish it, or choose another folder",
        .0.display()
    )]
    Unfinished(PathBuf),
    /// A shape that cannot hold a head.
    #[error("a phantom of {0:?} voxels; every axis needs 32 to 512")]
    Shape([usize; 3]),
    /// A spacing that cannot be.
    #[error(transparent)]
    Geometry(#[from] volume::Error),
    /// No case asked for, or too many.
    #[error("a cohort of {0} cases; choose 1 to 50000")]
    Cases(usize),
    /// The anatomy or a case could not be read or written.
    #[error(transparent)]
    File(#[from] nifti::Error),
    /// Anatomy and mask do not fit.
    #[error("the mask lies on another grid than the anatomy ({0}); give a mask of that very image")]
    MaskGrid(String),
    /// The mask holds no brain.
    #[error(
        "the brain mask of the anatomy covers {0} voxels, too few for a brain; give a mask with --anatomy-mask"
    )]
    MaskSize(usize),
    /// The cohort file could not be written.
    #[error(transparent)]
    Cohort(#[from] cohort::Error),
    /// A DICOM series could not be written.
    #[error(transparent)]
    Scan(#[from] dicom::scan::Error),
    /// A DICOM series that was written cannot be read.
    #[error(transparent)]
    Dicom(#[from] dicom::Error),
    /// Contours could not be written.
    #[error(transparent)]
    Contours(#[from] dicom::rtstruct::Error),
    /// A DICOM series that was written lies elsewhere.
    #[error("writing the DICOM series {}: it lies on another grid ({difference})", path.display())]
    Series {
        /// Its folder.
        path: PathBuf,
        /// What sets the grids apart.
        difference: String,
    },
}

/// A real head to paint on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anatomy {
    /// A T1 volume.
    pub image: PathBuf,
    /// Brain where above 0; without it the image must be skull-stripped (0 outside the brain).
    pub mask: Option<PathBuf>,
}

/// Which slices the volumes of a cohort have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Slices {
    /// Those of the grid asked for, whatever the scanner's thickness.
    #[default]
    Grid,
    /// As thick as the centre's scanner makes them, another thickness for every patient where the
    /// centre's vary; within the slice at most as wide as thick. The grid asked for gives the field
    /// of view.
    Scanner,
}

/// Name of the contours in labels that are RTSTRUCTs.
const ROI: &str = "Metastasis";
/// The same seed makes the same bytes, so nothing says when.
const DATE: &str = "20000101";

/// How the files of a cohort are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Compressed NIfTI files.
    #[default]
    Nifti,
    /// Images as DICOM series, labels as RTSTRUCT; brain masks as NIfTI all the same.
    Dicom,
}

/// What to make.
#[derive(Debug, Clone, PartialEq)]
pub struct SynthOptions {
    /// The centre to imitate.
    pub centre: Centre,
    /// Cases of the train split.
    pub train: usize,
    /// Cases of the validation split.
    pub validation: usize,
    /// Cases of the test split.
    pub test: usize,
    /// Voxels along i, j, k; with an anatomy its own grid is used.
    pub shape: [usize; 3],
    /// Distance between voxels.
    pub spacing_mm: [f64; 3],
    /// Slices of that grid or of the centre's scanner; a real anatomy keeps its own.
    pub slices: Slices,
    /// How the files are kept.
    pub format: Format,
    /// The same seed makes the same cohort.
    pub seed: u64,
    /// Paint on this head instead of a synthetic one.
    pub anatomy: Option<Anatomy>,
    /// Whether synthetic heads have skull and scalp.
    pub skull: bool,
}

impl SynthOptions {
    /// Ten, three and five small heads, for demonstrations.
    pub fn small(centre: Centre) -> Self {
        Self {
            centre,
            train: 10,
            validation: 3,
            test: 5,
            shape: [64, 72, 56],
            spacing_mm: [1.0; 3],
            slices: Slices::Grid,
            format: Format::Nifti,
            seed: 1,
            anatomy: None,
            skull: true,
        }
    }
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Synthesised {
    /// The cohort file.
    pub cohort: PathBuf,
    /// Volumes written.
    pub cases: usize,
    /// Metastases in all labels.
    pub metastases: usize,
    /// Of these, smaller than drawn because the brain is small.
    pub limited: usize,
    /// Drawn, but left out because the brain had no room.
    pub left_out: usize,
}

enum Source {
    Synthetic(Geometry),
    Real(Volume<f32>, Array3<u8>),
}

/// One synthetic patient.
#[derive(Debug, Clone)]
pub struct Phantom {
    /// Intensities.
    pub image: Volume<f32>,
    /// 1 in metastases.
    pub label: Volume<u8>,
    /// 1 in the brain.
    pub brain: Volume<u8>,
    painted: Painted,
}

/// Makes a cohort in `folder`: `image/`, `label/`, `brain/` and, last of all, `cohort.toml`. Where a
/// synthesis with the same options was interrupted, it goes on.
pub fn synthesise(
    folder: &Path,
    options: &SynthOptions,
    progress: OnProgress<'_>,
) -> Result<Synthesised, Error> {
    let total = options.train.saturating_add(options.validation).saturating_add(options.test);
    if total == 0 || total > MAX_CASES {
        return Err(Error::Cases(total));
    }
    let source = source(options)?;
    if folder.join("cohort.toml").exists() {
        return Err(Error::Exists(folder.to_path_buf()));
    }
    for part in ["image", "label", "brain"] {
        let path = folder.join(part);
        std::fs::create_dir_all(&path).map_err(|source| Error::Folder { path, source })?;
    }
    let splits = [
        (Split::Train, options.train),
        (Split::Validation, options.validation),
        (Split::Test, options.test),
    ];
    let cases: Vec<Case> =
        (splits.into_iter().flat_map(|(split, n)| std::iter::repeat_n(split, n)).zip(1..))
            .map(|(split, n)| {
                let id = format!("{}-{n:04}", options.centre.name());
                let file = |part: &str| folder.join(part).join(format!("{id}.nii.gz"));
                let (image, label) = match options.format {
                    Format::Nifti => (file("image"), file("label")),
                    Format::Dicom => (
                        folder.join("image").join(&id),
                        folder.join("label").join(format!("{id}.dcm")),
                    ),
                };
                Case {
                    patient: format!("{}-p{n:04}", options.centre.name()),
                    image,
                    series: None,
                    label,
                    brain_mask: Some(file("brain")),
                    split,
                    id,
                }
            })
            .collect();
    let begun = Begun::new(folder, options, &source)?;
    let done = AtomicUsize::new(0);
    let mut painted = Vec::with_capacity(total);
    let voxels = match &source {
        Source::Synthetic(geometry) => geometry.voxels(),
        Source::Real(image, _) => image.geometry().voxels(),
    };
    let at_once =
        (MEMORY_BYTES / (voxels * BYTES_PER_VOXEL)).clamp(1, rayon::current_num_threads());
    let write = |case: &Case| {
        let whole = case.paths().all(|(_, path)| path.exists());
        let painted = match begun.painted(&case.id) {
            Some(painted) if whole => painted,
            _ => {
                let phantom = make(options, &source, &case.id)?;
                store(case, &phantom, options.format)?;
                begun.note(&case.id, phantom.painted)?;
                phantom.painted
            }
        };
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        progress(Progress { done, total, item: &case.id });
        Ok::<_, Error>(painted)
    };
    for batch in cases.chunks(at_once) {
        painted.extend(batch.par_iter().map(write).collect::<Result<Vec<_>, _>>()?);
    }
    let cohort = Cohort {
        name: options.centre.name().to_owned(),
        label: match options.format {
            Format::Nifti => LabelRule::default(),
            Format::Dicom => LabelRule { rois: vec![ROI.to_owned()], ..LabelRule::default() },
        },
        preprocess: preparation(options),
        cases,
    };
    let sum = |count: fn(&Painted) -> usize| painted.iter().map(count).sum();
    let file = cohort.save(folder)?;
    begun.finished();
    Ok(Synthesised {
        cohort: file,
        cases: total,
        metastases: sum(|p| p.lesions),
        limited: sum(|p| p.limited),
        left_out: sum(|p| p.left_out),
    })
}

/// Writes the files of one case.
fn store(case: &Case, phantom: &Phantom, format: Format) -> Result<(), Error> {
    match format {
        Format::Nifti => {
            let image = phantom.image.map(|v| v.round().clamp(0.0, 32767.0) as i16);
            nifti::write(&case.image, &image)?;
            nifti::write(&case.label, &phantom.label)?;
        }
        Format::Dicom => {
            dicom::scan::write_series(&case.image, &case.patient, &phantom.image)?;
            let series = dicom::read_series_geometry(&case.image, &SeriesChoice::Only)?;
            let label = phantom.label.clone().stored_as(&series.geometry);
            let path = || case.image.clone();
            let label = label.map_err(|difference| Error::Series { path: path(), difference })?;
            let description = Description {
                name: ROI.to_owned(),
                grouping: Grouping::Whole,
                algorithm: "Rondo phantom".to_owned(),
                algorithm_version: env!("CARGO_PKG_VERSION").to_owned(),
                date: DATE.to_owned(),
                time: "000000".to_owned(),
            };
            dicom::rtstruct::write(&case.label, &series, &label, &description)?;
        }
    }
    if let Some(mask) = &case.brain_mask {
        nifti::write(mask, &phantom.brain)?;
    }
    Ok(())
}

/// Volumes on one grid are trained on as they are; those of a scanner are prepared as a site's own.
fn preparation(options: &SynthOptions) -> Settings {
    let [spacing_mm, ..] = options.spacing_mm;
    match options.slices {
        Slices::Grid => Settings::native(),
        Slices::Scanner if options.anatomy.is_some() => Settings::default(),
        Slices::Scanner => Settings {
            grid: preprocess::Grid::Isotropic { spacing_mm, shape: options.shape },
            ..Settings::default()
        },
    }
}

/// Makes one patient in memory; the same options and id give the same patient.
pub fn phantom(options: &SynthOptions, id: &str) -> Result<Phantom, Error> {
    Ok(make(options, &source(options)?, id)?)
}

fn source(options: &SynthOptions) -> Result<Source, Error> {
    let check_shape = |shape: [usize; 3]| {
        let fits = shape.iter().all(|n| (MIN_EDGE..=MAX_EDGE).contains(n));
        if fits { Ok(()) } else { Err(Error::Shape(shape)) }
    };
    let Some(anatomy) = &options.anatomy else {
        check_shape(options.shape)?;
        return Ok(Source::Synthetic(Geometry::with_spacing(options.shape, options.spacing_mm)?));
    };
    let image = nifti::read_image(&anatomy.image)?.volume;
    check_shape(image.geometry().shape())?;
    let mask = match &anatomy.mask {
        Some(path) => {
            let mask = nifti::read_mask(path)?;
            if let Some(difference) = image.geometry().difference(mask.geometry()) {
                return Err(Error::MaskGrid(difference));
            }
            mask.into_parts().1
        }
        None => image.data().map(|v| u8::from(*v > 0.0)),
    };
    let covered = mask.iter().filter(|v| **v > 0).count();
    if covered < MIN_EDGE.pow(3) / 8 {
        return Err(Error::MaskSize(covered));
    }
    Ok(Source::Real(image, mask))
}

/// How the slices of one patient are made: as thick as that many planes of the head.
struct Slicing {
    /// The grid on which the head is made.
    fine: Geometry,
    /// Planes that become one slice.
    planes: usize,
}

/// The scanner's grid over the field of view of `grid`; its slices stand on finer planes.
fn slicing(grid: &Geometry, thickness_mm: f64) -> Result<Slicing, volume::Error> {
    let (shape, asked) = (grid.shape(), grid.spacing_mm());
    let planes = (thickness_mm / asked[2]).ceil().max(1.0) as usize;
    let within = [asked[0].min(thickness_mm), asked[1].min(thickness_mm)];
    let voxels = |axis: usize, mm: f64| {
        ((shape[axis] as f64 * asked[axis] / mm).round() as usize).clamp(1, MAX_EDGE)
    };
    let slices = voxels(2, thickness_mm);
    let fine = Geometry::with_spacing(
        [voxels(0, within[0]), voxels(1, within[1]), slices * planes],
        [within[0], within[1], thickness_mm / planes as f64],
    )?;
    Ok(Slicing { fine, planes })
}

fn make(options: &SynthOptions, source: &Source, id: &str) -> Result<Phantom, volume::Error> {
    let mut hash = Sha256::new();
    hash.update(options.seed.to_le_bytes());
    hash.update(id.as_bytes());
    let mut rng = ChaCha8Rng::from_seed(hash.finalize().into());
    let profile = options.centre.profile();
    let [thin, thick] = profile.through_plane_mm;
    let thickness_mm =
        if thick > thin { (rng.random_range(thin..=thick) * 10.0).round() / 10.0 } else { thin };
    let (mut head, planes) = match (source, options.slices) {
        (Source::Synthetic(grid), Slices::Grid) => {
            (head::synthetic(grid, &profile, options.skull, &mut rng), 1)
        }
        (Source::Synthetic(grid), Slices::Scanner) => {
            let slicing = slicing(grid, thickness_mm)?;
            let head = head::synthetic(&slicing.fine, &profile, options.skull, &mut rng);
            (head, slicing.planes)
        }
        (Source::Real(image, mask), _) => (head::real(image, mask, &mut rng), 1),
    };
    enhance::healthy(&mut head, &profile, &mut rng);
    if planes > 1 {
        head.thicken(planes)?;
    }
    let mut label = Array3::zeros(head.image.dim());
    let painted = metastasis::paint(&mut head, &mut label, &profile, &mut rng);
    scan(&mut head, &profile, thickness_mm, &mut rng);
    if !options.skull && head.synthetic_mm.is_some() {
        Zip::from(&mut head.image).and(&head.brain).for_each(|v, b| *v *= f32::from(*b));
    }
    let on = |data| Volume::on_grid_of(&head.geometry, data);
    Ok(Phantom {
        label: on(label),
        brain: on(head.brain),
        image: Volume::on_grid_of(&head.geometry, head.image),
        painted,
    })
}

/// What the scanner adds: thick slices, a bias field, noise (Rician, as magnitudes have it).
fn scan(head: &mut head::Head, profile: &Profile, thickness_mm: f64, rng: &mut ChaCha8Rng) {
    let spacing = head.geometry.spacing_mm()[2];
    if thickness_mm > 1.2 * spacing {
        // A slice profile as a Gaussian with the thickness as its full width at half maximum.
        let sigma = (thickness_mm / spacing / 2.355) as f32;
        head.image = gaussian_filter1d(&head.image, sigma, Axis(2), 0, BorderMode::Nearest, 3);
    }
    let bias = Noise::new(rng.random(), 90.0 * head.scale.max(0.4));
    // A real image brings noise of its own.
    let share = if head.synthetic_mm.is_some() { profile.noise } else { profile.noise / 3.0 };
    let sd = share * head.white;
    let geometry = &head.geometry;
    Zip::indexed(&mut head.image).for_each(|at, v| {
        let field = (profile.bias * bias.at(head::point(geometry, at))).exp();
        let (real, imaginary) =
            (f64::from(*v) * field + sd * centre::normal(rng), sd * centre::normal(rng));
        *v = real.hypot(imaginary) as f32;
    });
}
