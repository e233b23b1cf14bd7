//! What a network sees: the brain on one grid, without bias field, clipped and z-scored, with its label.
//!
//! The paper's steps: canonical order of the axes; brain mask (file, program or estimate); N4 bias
//! field correction inside the brain; 1 mm isotropic voxels, 240×240×155 around the brain (image
//! trilinear, label and mask nearest); clipping and z-score ([`normalise`]). Every step is undone for
//! a prediction by [`PreparedImage::restore`].

mod grid;
mod mask;
mod normalise;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use ndarray::Array3;
use serde::{Deserialize, Serialize};

pub use grid::{Grid, SHAPE, SPACING_MM, restore_mask, restore_probability};
pub use mask::{Error as MaskError, INPUT, MASK, MaskCommand, MaskSource};
pub use normalise::{
    Background, CLIP_PERCENTILES, Normalisation, Unnormalised, normalise, percentile,
};

use crate::cohort::LabelRule;
use crate::dicom::Series;
use crate::orientation::{AxisOrder, canonical};
use crate::volume::{self, Geometry, Volume};
use crate::{bias, resample, source};

/// Why a case cannot be prepared; one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read, or does not fit the image.
    #[error(transparent)]
    Read(#[from] source::Error),
    /// No brain mask.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// The bias field could not be estimated.
    #[error("correcting the bias field of {}: {source}", path.display())]
    Bias {
        /// The image.
        path: PathBuf,
        /// Why.
        source: bias::Error,
    },
    /// No working grid.
    #[error(transparent)]
    Grid(#[from] volume::Error),
    /// The program for brain masks is not there.
    #[error(
        "the program {0} of `brain_mask_command` is not found; install it, or correct the command"
    )]
    NoProgram(String),
    /// No voxel of the site's brain mask is set.
    #[error("the brain mask {} is empty; make a new one", .0.display())]
    EmptyMask(PathBuf),
    /// No voxel of the brain mask that was made is set.
    #[error("the brain mask made for {} is empty; give a `brain_mask` for this case", .0.display())]
    NoBrain(PathBuf),
    /// All brain voxels hold one value.
    #[error(
        "all brain voxels of {} hold the same value; this is no scan, export the image again",
        .0.display()
    )]
    Constant(PathBuf),
    /// All voxels hold one value.
    #[error(
        "all voxels of {} hold the same value; this is no scan, export the image again", .0.display()
    )]
    Uniform(PathBuf),
}

impl Unnormalised {
    /// The sentence for an image.
    pub(crate) fn of(self, sources: &Sources<'_>) -> Error {
        match (self, sources.brain_mask) {
            (Self::EmptyBrain, Some(mask)) => Error::EmptyMask(mask.to_path_buf()),
            (Self::EmptyBrain, None) => Error::NoBrain(sources.image.to_path_buf()),
            (Self::Constant, _) => Error::Constant(sources.image.to_path_buf()),
        }
    }
}

/// Whether the bias field is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BiasCorrection {
    /// By N4 inside the brain.
    #[default]
    N4,
    /// Left as it is, for images that were corrected before.
    None,
}

/// How images are prepared; the default is the paper's way.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Settings {
    /// The voxels a network sees.
    pub grid: Grid,
    /// Whether the bias field is removed.
    pub bias_correction: BiasCorrection,
    /// What lies outside the brain after normalisation.
    pub background: Background,
    /// Makes the brain mask of a case that names none.
    pub brain_mask_command: Option<MaskCommand>,
}

impl Settings {
    /// For images that are on one grid and corrected already, for example phantoms.
    #[must_use]
    pub fn native() -> Self {
        Self { grid: Grid::Native, bias_correction: BiasCorrection::None, ..Self::default() }
    }
}

/// Where an image and its brain mask lie.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// A NIfTI file, or the folder of a DICOM series.
    pub image: &'a Path,
    /// Series Instance UID, where a folder holds several series.
    pub series: Option<&'a str>,
    /// Brain mask on the image's grid.
    pub brain_mask: Option<&'a Path>,
}

/// What was done to an image besides bringing it onto another grid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Steps {
    /// Where the brain mask came from.
    pub brain_mask: MaskSource,
    /// Iterations of N4 at each of its levels, where the bias field was removed.
    pub n4_iterations: Option<Vec<usize>>,
    /// What was measured in the brain and applied to it.
    pub normalisation: Normalisation,
    /// Peculiarities of the source files.
    pub notices: Vec<String>,
}

/// An image as a network sees it.
#[derive(Debug, Clone)]
pub struct PreparedImage {
    /// Normalised intensities `[i, j, k]` on the working grid.
    pub image: Array3<f32>,
    /// 1 inside the brain.
    pub brain: Array3<u8>,
    /// The working grid.
    pub geometry: Geometry,
    /// The grid of the source, in its own storage order.
    pub source: Geometry,
    /// The DICOM series it was read from, if it was.
    pub series: Option<Series>,
    /// What was done.
    pub steps: Steps,
}

impl PreparedImage {
    /// A mask on the working grid, on the grid of the source.
    ///
    /// # Errors
    /// A mask of another shape than the working grid.
    pub fn restore(&self, mask: Array3<u8>) -> Result<Volume<u8>, volume::Error> {
        restore_mask(&Volume::new(self.geometry.clone(), mask)?, &self.source)
    }

    /// Probabilities on the working grid, on the grid of the source.
    ///
    /// # Errors
    /// A map of another shape than the working grid.
    pub fn restore_probability(&self, map: Array3<f32>) -> Result<Volume<f32>, volume::Error> {
        restore_probability(&Volume::new(self.geometry.clone(), map)?, &self.source)
    }

    /// The label of this image on the working grid, read from its file.
    ///
    /// # Errors
    /// An unreadable label, another grid, a value that the rule does not know.
    pub fn read_label(&mut self, path: &Path, rule: &LabelRule) -> Result<Array3<u8>, Error> {
        let label = source::read_label(path, &self.source, self.series.as_ref(), rule)?;
        self.steps.notices.extend(label.notices);
        let label = canonical(label.volume)?;
        if self.geometry == *label.geometry() {
            return Ok(label.into_parts().1);
        }
        self.steps.notices.extend(cropped("lesion", &label, &self.geometry));
        Ok(resample::nearest(&label, &self.geometry, 0))
    }
}

/// A notice where a part of a mask lies outside the working grid.
fn cropped(what: &str, mask: &Volume<u8>, grid: &Geometry) -> Option<String> {
    let lost = grid::share_outside(mask, grid);
    (lost > 0.0).then(|| {
        format!(
            "{:.1} % of the {what} lie outside the working grid; look at the brain mask",
            100.0 * lost
        )
    })
}

/// Reads and prepares an image without its label.
///
/// # Errors
/// A file that cannot be read or used; one sentence that says what to do.
pub fn prepare_image(sources: &Sources<'_>, settings: &Settings) -> Result<PreparedImage, Error> {
    let source::Image { volume, series, mut notices } =
        source::read_image(sources.image, sources.series)?;
    let source = volume.geometry().clone();
    // The mask of the site is compared with the image as it lies in its file.
    let (brain, brain_mask) =
        mask::brain_mask(&volume, sources, settings.brain_mask_command.as_ref())?;
    if brain_mask == MaskSource::Estimate {
        notices.push(
            "the brain mask is a rough estimate, since the site gave neither a mask nor a program for it; look at it".into(),
        );
    }
    let order = AxisOrder::canonical(&source);
    let brain = order.apply(Volume::new(source.clone(), brain)?)?;
    let mut volume = order.apply(volume)?;
    if !brain.data().iter().any(|b| *b > 0) {
        return Err(Unnormalised::EmptyBrain.of(sources));
    }
    let n4_iterations = match settings.bias_correction {
        BiasCorrection::None => None,
        BiasCorrection::N4 => {
            let correction = bias::n4(&volume, brain.data(), &bias::Settings::for_heads())
                .map_err(|source| Error::Bias { path: sources.image.to_path_buf(), source })?;
            let (grid, mut values) = volume.into_parts();
            correction.apply(&mut values);
            volume = Volume::new(grid, values)?;
            Some(correction.iterations)
        }
    };
    let geometry = settings.grid.around(volume.geometry(), brain.data())?;
    let (mut image, inside) = if geometry == *volume.geometry() {
        (volume.into_parts().1, brain.into_parts().1)
    } else {
        let image = resample::linear(&volume, &geometry, 0.0);
        let inside = resample::nearest(&brain, &geometry, 0);
        notices.extend(cropped("brain", &brain, &geometry));
        (image, inside)
    };
    let normalisation =
        normalise(&mut image, &inside, settings.background).map_err(|e| e.of(sources))?;
    let steps = Steps { brain_mask, n4_iterations, normalisation, notices };
    Ok(PreparedImage { image, brain: inside, geometry, source, series, steps })
}
