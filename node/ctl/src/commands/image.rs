//! `rondo image`.

use crate::args::{DicomKind, Image, ImageConvert, ImageInfo};
use crate::exit::{Exit, Failure};
use crate::output::Output;
use rondo_imaging::cohort::LabelRule;
use rondo_imaging::dicom::composite::{self, Description, Grouping};
use rondo_imaging::dicom::{self, Series, rtstruct, segmentation};
use rondo_imaging::lesion::Connectivity;
use rondo_imaging::nifti;
use rondo_imaging::orientation::{AxisOrder, oblique_degrees};
use rondo_imaging::source::{self, ConvertError, Kind};
use rondo_imaging::volume::{Geometry, Volume};
use serde::Serialize;
use std::path::{Path, PathBuf};

pub(crate) fn run(command: Image, output: Output) -> Result<(), Failure> {
    match command {
        Image::Info(args) => info(&args, output),
        Image::Convert(args) => convert(&args, output),
    }
}

fn bad(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::BadInput, error)
}

/// A grid in numbers that do not name a patient.
#[derive(Debug, Serialize)]
struct GridInfo {
    shape: [usize; 3],
    spacing_mm: [f64; 3],
    /// Where the stored axes lead, for example `LPS`.
    orientation: String,
    oblique_degrees: f64,
    /// Voxel indices to RAS mm, row by row.
    affine: [[f64; 4]; 3],
}

impl GridInfo {
    fn of(grid: &Geometry) -> Self {
        // Adding zero makes -0 plain.
        let row = |r: usize| [0, 1, 2, 3].map(|c| grid.affine()[(r, c)] + 0.0);
        Self {
            shape: grid.shape(),
            spacing_mm: grid.spacing_mm(),
            orientation: AxisOrder::canonical(grid).letters(),
            oblique_degrees: oblique_degrees(grid),
            affine: [row(0), row(1), row(2)],
        }
    }

    fn text(&self) -> String {
        let [i, j, k] = self.shape;
        let [a, b, c] = self.spacing_mm;
        let rows = self
            .affine
            .map(|r| format!("  {:>10.4} {:>10.4} {:>10.4} {:>10.4}", r[0], r[1], r[2], r[3]));
        format!(
            "{i} × {j} × {k} voxels of {a:.4} × {b:.4} × {c:.4} mm, axes to {}, oblique by {:.1}°\n\
             voxel indices to RAS mm:\n{}",
            self.orientation,
            self.oblique_degrees,
            rows.join("\n")
        )
    }
}

#[derive(Debug, Serialize)]
struct Values {
    min: f64,
    max: f64,
    mean: f64,
    sd: f64,
}

impl Values {
    fn of(volume: &Volume<f32>) -> Self {
        let values = volume.data().iter().map(|v| f64::from(*v));
        let n = volume.data().len() as f64;
        let mean = values.clone().sum::<f64>() / n;
        let variance = values.clone().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let (min, max) = values
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        Self { min, max, mean, sd: variance.sqrt() }
    }
}

#[derive(Debug, Serialize)]
struct SeriesInfo {
    uid: String,
    description: String,
    modality: String,
    images: usize,
    t1_contrast: bool,
}

#[derive(Debug, Serialize)]
struct Info {
    path: PathBuf,
    format: &'static str,
    grid: GridInfo,
    values: Option<Values>,
    notices: Vec<String>,
}

fn info(args: &ImageInfo, output: Output) -> Result<(), Failure> {
    let kind = Kind::of(&args.path).map_err(bad)?;
    if kind == Kind::Folder && args.series.is_none() {
        let list = dicom::list_series(&args.path).map_err(bad)?;
        if list.iter().filter(|s| s.readable).count() != 1 && list.len() > 1 {
            return series(&args.path, list, output);
        }
    }
    let format = match (kind, kind == Kind::Nifti) {
        (_, true) => match nifti::read_header(&args.path).map_err(bad)?.version {
            nifti::Version::One => "NIfTI-1",
            nifti::Version::Two => "NIfTI-2",
        },
        _ => "DICOM",
    };
    let uid = args.series.as_deref();
    let (grid, values, notices) = if args.headers {
        let headers = source::read_geometry(&args.path, uid).map_err(bad)?;
        (headers.geometry, None, headers.notices)
    } else {
        let image = source::read_image(&args.path, uid).map_err(bad)?;
        (image.volume.geometry().clone(), Some(Values::of(&image.volume)), image.notices)
    };
    let info = Info { path: args.path.clone(), format, grid: GridInfo::of(&grid), values, notices };
    output.give("rondo.image-info/1", &info, || {
        let mut text = format!("{}: {}\n{}", info.path.display(), info.format, info.grid.text());
        if let Some(v) = &info.values {
            text.push_str(&format!(
                "\nvalues from {} to {}, mean {:.3}, standard deviation {:.3}",
                v.min, v.max, v.mean, v.sd
            ));
        }
        for notice in &info.notices {
            text.push_str(&format!("\nnote: {notice}"));
        }
        text
    })
}

/// A folder of several series: each of them, for a choice with `--series`.
fn series(path: &Path, list: Vec<dicom::SeriesSummary>, output: Output) -> Result<(), Failure> {
    let series: Vec<_> = list
        .into_iter()
        .map(|s| SeriesInfo {
            uid: s.uid,
            description: s.description,
            modality: s.modality,
            images: s.images,
            t1_contrast: s.t1_contrast,
        })
        .collect();
    output.give("rondo.image-series/1", serde_json::json!({"path": path, "series": series}), || {
        let line = |s: &SeriesInfo| {
            let contrast = if s.t1_contrast { ", T1 with contrast agent" } else { "" };
            format!(
                "\n  {}  {} {:?}, {} images{contrast}",
                s.uid, s.modality, s.description, s.images
            )
        };
        let lines: String = series.iter().map(line).collect();
        format!(
            "{} holds {} series; choose one with --series UID:{lines}",
            path.display(),
            series.len()
        )
    })
}

fn convert(args: &ImageConvert, output: Output) -> Result<(), Failure> {
    let mut notices = Vec::new();
    let written = match &args.on {
        None => {
            let converted = source::convert(&args.input, args.series.as_deref(), &args.out);
            let headers = converted.map_err(|e| match e {
                ConvertError::Read(e) => bad(e),
                ConvertError::Write(e) => unwritten(e),
            })?;
            notices.extend(headers.notices);
            GridInfo::of(&headers.geometry)
        }
        Some(on) => {
            let headers = source::read_geometry(on, args.series.as_deref()).map_err(bad)?;
            let series = headers.series;
            let (label, of_label) = label(args, &headers.geometry, series.as_ref())?;
            notices.extend(of_label);
            match (args.kind, &series) {
                (None, _) => nifti::write(&args.out, &label).map_err(unwritten)?,
                (Some(_), None) => {
                    let text = format!(
                        "{} is no DICOM series, so no DICOM object can refer to it; name the folder of the series with --on",
                        on.display()
                    );
                    return Err(bad(text));
                }
                (Some(kind), Some(series)) => write_dicom(&args.out, kind, series, &label)?,
            }
            GridInfo::of(label.geometry())
        }
    };
    let body = serde_json::json!({"path": args.out, "grid": written, "notices": notices});
    output.give("rondo.image-convert/1", body, || {
        let notices: String = notices.iter().map(|n| format!("\nnote: {n}")).collect();
        format!("{}\n{}{notices}", args.out.display(), written.text())
    })
}

fn label(
    args: &ImageConvert,
    grid: &Geometry,
    series: Option<&Series>,
) -> Result<(Volume<u8>, Vec<String>), Failure> {
    let nifti = Kind::of(&args.input).map_err(bad)? == Kind::Nifti;
    if nifti && args.labels.is_empty() {
        let mask = source::read_mask("label", &args.input, grid).map_err(bad)?;
        return Ok((mask, Vec::new()));
    }
    let rule = LabelRule {
        include: args.labels.clone(),
        // Values that were not asked for are no error here.
        ignore: if nifti { (0..=u16::MAX).collect() } else { Vec::new() },
        rois: args.rois.clone(),
    };
    let label = source::read_label(&args.input, grid, series, &rule).map_err(bad)?;
    Ok((label.volume, label.notices))
}

fn unwritten(error: nifti::Error) -> Failure {
    let exit = match error.cause {
        nifti::Cause::Name => Exit::Usage,
        _ => Exit::Storage,
    };
    Failure::new(exit, error)
}

fn write_dicom(
    path: &Path,
    kind: DicomKind,
    series: &Series,
    label: &Volume<u8>,
) -> Result<(), Failure> {
    let now = jiff::Zoned::now();
    let description = Description {
        name: "Metastasis".to_owned(),
        grouping: Grouping::PerLesion(Connectivity::default()),
        algorithm: "Rondo".to_owned(),
        algorithm_version: env!("CARGO_PKG_VERSION").to_owned(),
        date: now.strftime("%Y%m%d").to_string(),
        time: now.strftime("%H%M%S").to_string(),
    };
    match kind {
        DicomKind::Seg => segmentation::write(path, series, label, &description).map_err(|e| {
            let full = matches!(e, segmentation::Error::Write(composite::Error::Io { .. }));
            Failure::new(if full { Exit::Storage } else { Exit::BadInput }, e)
        }),
        DicomKind::Rtstruct => rtstruct::write(path, series, label, &description).map_err(|e| {
            let full = matches!(e, rtstruct::Error::Write(composite::Error::Io { .. }));
            Failure::new(if full { Exit::Storage } else { Exit::BadInput }, e)
        }),
    }
}
