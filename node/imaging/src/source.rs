//! An image or label as a site has it: a NIfTI file, a folder of DICOM files, a set of contours.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::cohort::LabelRule;
use crate::dicom::{self, LabelKind, Series, SeriesChoice, rtstruct, segmentation};
use crate::nifti;
use crate::volume::{Geometry, Volume};

/// Where a DICOM file says that it is one (PS3.10 section 7.1).
const DICOM_MAGIC_AT: usize = 128;

/// Why an image or label could not be read; one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A NIfTI file.
    #[error(transparent)]
    Nifti(Box<nifti::Error>),
    /// A DICOM series.
    #[error(transparent)]
    Dicom(Box<dicom::Error>),
    /// Contours.
    #[error(transparent)]
    Contours(Box<rtstruct::Error>),
    /// A DICOM segmentation.
    #[error(transparent)]
    Segmentation(Box<segmentation::Error>),
    /// The operating system said no.
    #[error("reading {}: {source}; check the path and its permissions", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A folder without files.
    #[error("the folder {} holds no file; correct the path, or export the series again", .0.display())]
    NoFiles(PathBuf),
    /// A folder where a file is due.
    #[error("the {what} {} is a folder; name one file", path.display())]
    IsFolder {
        /// `label` or `brain mask`.
        what: &'static str,
        /// The folder.
        path: PathBuf,
    },
    /// A label that belongs to a DICOM series, for an image that is none.
    #[error(
        "the label {} refers to a DICOM series, but the image is a NIfTI file; name the folder of the series as image, \
         or convert the label with `rondo image convert`", .0.display()
    )]
    NoSeries(PathBuf),
    /// A DICOM file of another kind.
    #[error("the label {} is neither an RTSTRUCT nor a DICOM SEG; name the file with the contours", .0.display())]
    NoLabel(PathBuf),
    /// Contours without a choice among them.
    #[error(
        "the label {} holds contours, but the cohort does not say which are metastases; add their names to `label_rois`",
        .0.display()
    )]
    NoRois(PathBuf),
    /// A label on another grid.
    #[error(
        "the {what} {} lies on another grid than the image ({difference}); resample it onto the image's grid",
        path.display()
    )]
    Grid {
        /// `label` or `brain mask`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What sets the grids apart.
        difference: String,
    },
    /// A label value that the cohort does not know.
    #[error(
        "the label {} holds the value {value} in {voxels} voxels, which the cohort file neither includes nor ignores; \
         add it to `label_include` or `label_ignore`, or correct the label", path.display()
    )]
    LabelValue {
        /// The file.
        path: PathBuf,
        /// The value.
        value: u16,
        /// How many voxels hold it.
        voxels: usize,
    },
}

macro_rules! boxed {
    ($($variant:ident($error:ty)),*) => {$(
        impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::$variant(Box::new(error))
            }
        }
    )*};
}
boxed!(
    Nifti(nifti::Error),
    Dicom(dicom::Error),
    Contours(rtstruct::Error),
    Segmentation(segmentation::Error)
);

/// What kind of thing lies at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A folder: of DICOM files.
    Folder,
    /// One DICOM file.
    Dicom,
    /// Any other file: a NIfTI file, or an error that says so.
    Nifti,
}

impl Kind {
    /// Looks at the first bytes.
    ///
    /// # Errors
    /// A path that cannot be opened.
    pub fn of(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.to_path_buf(), source };
        if fs::metadata(path).map_err(io)?.is_dir() {
            return Ok(Self::Folder);
        }
        let mut first = Vec::with_capacity(DICOM_MAGIC_AT + 4);
        let file = File::open(path).map_err(io)?;
        file.take(DICOM_MAGIC_AT as u64 + 4).read_to_end(&mut first).map_err(io)?;
        Ok(if first.get(DICOM_MAGIC_AT..) == Some(b"DICM") { Self::Dicom } else { Self::Nifti })
    }
}

/// An image in its own storage order.
#[derive(Debug, Clone)]
pub struct Image {
    /// Scaled values, all finite.
    pub volume: Volume<f32>,
    /// The series, where it is one: what a prediction for a planning system refers to.
    pub series: Option<Series>,
    /// Peculiarities of the files.
    pub notices: Vec<String>,
}

fn choice(series: Option<&str>) -> SeriesChoice {
    series.map_or(SeriesChoice::Only, |uid| SeriesChoice::Uid(uid.to_owned()))
}

/// Whether an image is DICOM: a folder of a series, or one file of several frames.
fn is_dicom(path: &Path) -> Result<bool, Error> {
    Ok(Kind::of(path)? != Kind::Nifti)
}

/// Reads an image: a NIfTI file, or a DICOM series chosen by its Series Instance UID or as the only
/// T1-weighted one with contrast agent.
///
/// # Errors
/// Files that are no sound image; the sentence says what to do.
pub fn read_image(path: &Path, series: Option<&str>) -> Result<Image, Error> {
    if is_dicom(path)? {
        let (series, volume) = dicom::read_series(path, &choice(series))?;
        let notices = series.notices.clone();
        return Ok(Image { volume, series: Some(series), notices });
    }
    let image = nifti::read_image(path)?;
    Ok(Image { volume: image.volume, series: None, notices: image.header.notices })
}

/// An image that could not be written as NIfTI.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// It is no sound image.
    #[error(transparent)]
    Read(#[from] Error),
    /// The file that was to be written.
    #[error(transparent)]
    Write(#[from] nifti::Error),
}

/// Writes an image as NIfTI, as [`nifti::write_narrow`] does; returns what its headers say.
///
/// # Errors
/// As [`read_image`], and what prevents writing.
pub fn convert(path: &Path, series: Option<&str>, out: &Path) -> Result<Headers, ConvertError> {
    if is_dicom(path)? {
        // Neither file has memory's order of voxels, so they are not brought into it.
        let (series, planes) = dicom::read_planes(path, &choice(series)).map_err(Error::from)?;
        nifti::write_planes(out, &series.geometry, &planes)?;
        return Ok(series.into());
    }
    let image = nifti::read_image(path).map_err(Error::from)?;
    nifti::write_narrow(out, &image.volume)?;
    Ok(image.header.into())
}

/// Reads the headers of an image only.
///
/// # Errors
/// As [`read_image`], as far as headers tell.
pub fn read_geometry(path: &Path, series: Option<&str>) -> Result<Headers, Error> {
    if is_dicom(path)? {
        return Ok(dicom::read_series_geometry(path, &choice(series))?.into());
    }
    Ok(nifti::read_header(path)?.into())
}

/// What the headers of an image say.
#[derive(Debug, Clone)]
pub struct Headers {
    /// The grid in its own storage order.
    pub geometry: Geometry,
    /// The series, where it is one.
    pub series: Option<Series>,
    /// Peculiarities of the files.
    pub notices: Vec<String>,
}

impl From<Series> for Headers {
    fn from(series: Series) -> Self {
        let (geometry, notices) = (series.geometry.clone(), series.notices.clone());
        Self { geometry, series: Some(series), notices }
    }
}

impl From<nifti::Header> for Headers {
    fn from(header: nifti::Header) -> Self {
        Self { geometry: header.geometry, series: None, notices: header.notices }
    }
}

/// A label on the grid of its image.
#[derive(Debug, Clone)]
pub struct Label {
    /// 1 for metastasis.
    pub volume: Volume<u8>,
    /// Peculiarities of the file.
    pub notices: Vec<String>,
}

/// Reads a label on the grid of its image: 1 for metastasis by the cohort's rule. A NIfTI label may be
/// stored in another axis order than the image.
///
/// # Errors
/// Another grid, values or contours that the rule does not know, an unreadable file.
pub fn read_label(
    path: &Path,
    image: &Geometry,
    series: Option<&Series>,
    rule: &LabelRule,
) -> Result<Label, Error> {
    let kind = Kind::of(path)?;
    if kind == Kind::Folder {
        return Err(Error::IsFolder { what: "label", path: path.to_path_buf() });
    }
    if kind == Kind::Nifti {
        let label = on_grid_of("label", path, image, nifti::read_labels(path)?)?;
        if let Some(&value) = label.data().iter().find(|v| !rule.knows(**v)) {
            let voxels = label.data().iter().filter(|v| **v == value).count();
            return Err(Error::LabelValue { path: path.to_path_buf(), value, voxels });
        }
        let volume = label.map(|v| u8::from(rule.is_lesion(*v)));
        return Ok(Label { volume, notices: Vec::new() });
    }
    let series = series.ok_or_else(|| Error::NoSeries(path.to_path_buf()))?;
    match dicom::label_kind(path)? {
        LabelKind::Segmentation => {
            let read = segmentation::read_chosen(path, series, &rule.rois)?;
            Ok(Label { volume: read.label, notices: read.notices })
        }
        LabelKind::StructureSet if rule.rois.is_empty() => Err(Error::NoRois(path.to_path_buf())),
        LabelKind::StructureSet => {
            let read = rtstruct::read(path, series, &rule.rois)?;
            Ok(Label { volume: read.label, notices: read.notices })
        }
        LabelKind::Other => Err(Error::NoLabel(path.to_path_buf())),
    }
}

/// Reads a mask on the grid of its image: 1 where above 0. `what` names it in errors.
///
/// # Errors
/// Another grid, or an unreadable file.
pub fn read_mask(what: &'static str, path: &Path, image: &Geometry) -> Result<Volume<u8>, Error> {
    if Kind::of(path)? == Kind::Folder {
        return Err(Error::IsFolder { what, path: path.to_path_buf() });
    }
    on_grid_of(what, path, image, nifti::read_mask(path)?)
}

/// Brings a volume into the storage order of `image`, if it holds the same voxels.
fn on_grid_of<T: Clone>(
    what: &'static str,
    path: &Path,
    image: &Geometry,
    volume: Volume<T>,
) -> Result<Volume<T>, Error> {
    volume.stored_as(image).map_err(|difference| Error::Grid {
        what,
        path: path.to_path_buf(),
        difference,
    })
}

/// The files an image, label or mask consists of, in an order that does not depend on the disk: the very
/// files that are read, so links are followed where the reader follows them.
///
/// # Errors
/// A folder that cannot be listed, that is empty, or that holds far too many files.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let files = dicom::walk::files(path)?;
    if files.is_empty() {
        return Err(Error::NoFiles(path.to_path_buf()));
    }
    Ok(files)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ndarray::Array3;

    use super::*;

    #[test]
    fn a_converted_series_is_the_file_of_the_series_that_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let grid = Geometry::with_spacing([19, 17, 35], [1.0, 0.5, 2.0]).unwrap();
        let data = Array3::from_shape_fn((19, 17, 35), |(i, j, k)| (i + 20 * j + 400 * k) as f32);
        let scan = Volume::new(grid, data).unwrap();
        dicom::scan::write_series(&path("series"), "p1", &scan).unwrap();
        let image = read_image(&path("series"), None).unwrap();
        nifti::write_narrow(&path("read.nii"), &image.volume).unwrap();
        for (from, to) in [("series", "converted.nii"), ("read.nii", "again.nii")] {
            let headers = convert(&path(from), None, &path(to)).unwrap();
            assert_eq!(headers.series.is_some(), from == "series");
            assert!(fs::read(path(to)).unwrap() == fs::read(path("read.nii")).unwrap());
        }
        let absent = convert(&path("absent"), None, &path("a.nii"));
        assert!(matches!(absent, Err(ConvertError::Read(_))));
        let unnamed = convert(&path("series"), None, &path("a.img"));
        assert!(matches!(unnamed, Err(ConvertError::Write(_))));
    }
}
