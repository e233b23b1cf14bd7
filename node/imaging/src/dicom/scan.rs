//! A synthetic volume as the MR series of a scanner: phantoms for those who keep their images as DICOM.

use std::path::{Path, PathBuf};

use dicom_core::{DataElement, PrimitiveValue, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;
use dicom_object::meta::FileMetaTableBuilder;
use nalgebra::Vector3;
use ndarray::Axis;
use sha2::{Digest, Sha256};

use super::composite::{derived_uid, number, text};
use crate::durable;
use crate::volume::Volume;

/// Greatest stored value: 15 bits, which every viewer shows.
const GREATEST: f32 = 32767.0;

/// A series that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("writing the DICOM series {}: {why}", path.display())]
pub struct Error {
    path: PathBuf,
    why: String,
}

/// Writes a volume into a new folder, a file for each slice `k` with `i` along its rows, as
/// uncompressed 16-bit MR images; values are rounded and cut at 0 and 32767. `patient` is the Patient ID
/// and Name. Identifiers follow from the content, so the same volume gives the same bytes.
///
/// # Errors
/// A folder that cannot be written, or a grid whose slices are no planes of a scanner: more than 65,535
/// voxels along an edge, or axes that are not perpendicular within a slice.
pub fn write_series(folder: &Path, patient: &str, volume: &Volume<f32>) -> Result<(), Error> {
    let failed = |why: String| Error { path: folder.to_path_buf(), why };
    std::fs::create_dir_all(folder).map_err(|e| failed(e.to_string()))?;
    let (grid, spacing) = (volume.geometry(), volume.geometry().spacing_mm());
    let [columns, rows, slices] = grid.shape();
    let size = |n: usize| u16::try_from(n).map_err(|_| failed(format!("{n} voxels on an edge")));
    let (columns, rows) = (size(columns)?, size(rows)?);
    // RAS to LPS.
    let column = |c: usize| -> Vector3<f64> {
        let v = grid.affine().fixed_view::<3, 1>(0, c);
        Vector3::new(-v[0], -v[1], v[2])
    };
    let (along_row, along_column) = (column(0) / spacing[0], column(1) / spacing[1]);
    if along_row.dot(&along_column).abs() > 1e-4 {
        return Err(failed("rows and columns of its slices are not perpendicular".into()));
    }
    let list =
        |values: &[f64]| values.iter().map(|v| format!("{v:.9}")).collect::<Vec<_>>().join("\\");
    let mut digest = Sha256::new_with_prefix(patient);
    digest.update(format!("{:?}", grid));
    volume.data().iter().for_each(|v| digest.update(v.to_le_bytes()));
    let digest = digest.finalize();
    for k in 0..slices {
        let position = column(3) + column(2) * k as f64;
        let plane = volume.data().index_axis(Axis(2), k);
        let pixels: Vec<u16> =
            plane.t().iter().map(|v| v.round().clamp(0.0, GREATEST) as u16).collect();
        let instance = derived_uid(&digest, &format!("instance {k}"));
        let object = InMemDicomObject::from_element_iter([
            text(tags::IMAGE_TYPE, "ORIGINAL\\PRIMARY\\OTHER"),
            text(tags::SOP_CLASS_UID, uids::MR_IMAGE_STORAGE),
            text(tags::SOP_INSTANCE_UID, instance.clone()),
            text(tags::STUDY_DATE, ""),
            text(tags::STUDY_TIME, ""),
            text(tags::ACCESSION_NUMBER, ""),
            text(tags::MODALITY, "MR"),
            text(tags::MANUFACTURER, "Rondo"),
            text(tags::REFERRING_PHYSICIAN_NAME, ""),
            text(tags::SERIES_DESCRIPTION, "T1 post contrast, synthetic"),
            text(tags::PATIENT_NAME, patient),
            text(tags::PATIENT_ID, patient),
            text(tags::PATIENT_BIRTH_DATE, ""),
            text(tags::PATIENT_SEX, ""),
            text(tags::SCANNING_SEQUENCE, "GR"),
            text(tags::SEQUENCE_VARIANT, "NONE"),
            text(tags::SCAN_OPTIONS, ""),
            text(tags::MR_ACQUISITION_TYPE, "3D"),
            text(tags::SLICE_THICKNESS, list(&[spacing[2]])),
            text(tags::STUDY_INSTANCE_UID, derived_uid(&digest, "study")),
            text(tags::SERIES_INSTANCE_UID, derived_uid(&digest, "series")),
            text(tags::STUDY_ID, "1"),
            text(tags::SERIES_NUMBER, "1"),
            text(tags::INSTANCE_NUMBER, (k + 1).to_string()),
            text(tags::IMAGE_POSITION_PATIENT, list(position.as_slice())),
            text(
                tags::IMAGE_ORIENTATION_PATIENT,
                list(&[along_row.as_slice(), along_column.as_slice()].concat()),
            ),
            text(tags::FRAME_OF_REFERENCE_UID, derived_uid(&digest, "frame of reference")),
            text(tags::POSITION_REFERENCE_INDICATOR, ""),
            number(tags::SAMPLES_PER_PIXEL, 1),
            text(tags::PHOTOMETRIC_INTERPRETATION, "MONOCHROME2"),
            number(tags::ROWS, rows),
            number(tags::COLUMNS, columns),
            text(tags::PIXEL_SPACING, list(&[spacing[1], spacing[0]])),
            number(tags::BITS_ALLOCATED, 16),
            number(tags::BITS_STORED, 16),
            number(tags::HIGH_BIT, 15),
            number(tags::PIXEL_REPRESENTATION, 0),
            DataElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(pixels.into())),
        ]);
        let meta = FileMetaTableBuilder::new().transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN);
        let mut bytes = Vec::new();
        let file = object.with_meta(meta).map_err(|e| failed(e.to_string()))?;
        file.write_all(&mut bytes).map_err(|e| failed(e.to_string()))?;
        let path = folder.join(format!("{:04}.dcm", k + 1));
        durable::write(&path, &bytes).map_err(|e| failed(format!("{}: {e}", path.display())))?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::dicom::{SeriesChoice, read_series};
    use crate::volume::Geometry;
    use nalgebra::{Matrix4, Rotation3};
    use ndarray::Array3;

    #[test]
    fn a_written_series_is_read_where_it_was() {
        let mut affine: Matrix4<f64> =
            Rotation3::from_euler_angles(0.3, -0.2, 0.7).to_homogeneous();
        for (axis, s) in [0.7, 0.9, 2.5].into_iter().enumerate() {
            affine.column_mut(axis).scale_mut(s);
        }
        affine[(0, 3)] = -40.5;
        let grid = Geometry::new([9, 7, 5], affine).unwrap();
        let data = Array3::from_shape_fn((9, 7, 5), |(i, j, k)| (i * 100 + j * 10 + k) as f32);
        let volume = Volume::new(grid.clone(), data).unwrap();
        let folder = tempfile::tempdir().unwrap();
        write_series(folder.path(), "p1", &volume).unwrap();
        let (series, read) = read_series(folder.path(), &SeriesChoice::Only).unwrap();
        // The reader's k runs along the slice normal.
        let read = read.stored_as(&grid).unwrap();
        assert_eq!(read.data(), volume.data());
        assert_eq!(series.slices.len(), 5);
        let again = tempfile::tempdir().unwrap();
        write_series(again.path(), "p1", &volume).unwrap();
        let bytes = |folder: &Path| std::fs::read(folder.join("0003.dcm")).unwrap();
        assert!(bytes(folder.path()) == bytes(again.path()));
    }
}
