//! The head that is corrected, written as DICOM and preprocessed: a phantom, or a file of the user's.

use std::path::Path;

use rondo_imaging::nifti;
use rondo_imaging::phantom::{Centre, SynthOptions, phantom};
use rondo_imaging::volume::Volume;

use crate::pair::SHAPE;

/// Centre of a smooth field that brightens one side, as a coil does; share of the intensity.
const FIELD: f32 = 0.4;

/// An image and where its head is.
pub(crate) struct Head {
    pub(crate) image: Volume<f32>,
    pub(crate) mask: Volume<u8>,
}

/// A phantom of the paper's grid under a bias field, with its brain mask.
pub(crate) fn made() -> Result<Head, String> {
    let options = SynthOptions { shape: SHAPE, ..SynthOptions::small(Centre::Uker) };
    let made = phantom(&options, "bench").map_err(|e| e.to_string())?;
    let (geometry, mut image) = made.image.into_parts();
    for ((i, j, k), v) in image.indexed_iter_mut() {
        let [x, y, z] = [(i, 0), (j, 1), (k, 2)].map(|(at, a)| at as f32 / SHAPE[a] as f32 - 0.5);
        // As a scanner stores it: whole numbers, and a magnitude of noise where nothing else is.
        *v = (*v * (FIELD * (x + 2.0 * y * z - x * x)).exp()).round().clamp(1.0, 32767.0);
    }
    let image = Volume::new(geometry, image).map_err(|e| e.to_string())?;
    Ok(Head { image, mask: made.brain })
}

/// A head of the user's; what is brighter than its mean counts as head.
pub(crate) fn given(path: &Path) -> Result<Head, String> {
    let image = nifti::read_image(path).map_err(|e| e.to_string())?.volume;
    let mean = image.data().iter().map(|v| f64::from(*v)).sum::<f64>() / image.data().len() as f64;
    let mask = image.map(|v| u8::from(f64::from(*v) > mean));
    Ok(Head { image, mask })
}
