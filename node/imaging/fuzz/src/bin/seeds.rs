//! Writes small valid files into `corpus/TARGET`, from which a fuzzer starts.

use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use rondo_imaging::dicom::composite::{Description, Grouping};
use rondo_imaging::dicom::{rtstruct, segmentation};
use rondo_imaging::lesion::Connectivity;
use rondo_imaging_fuzz::dicom_files::{
    EXPLICIT, IMPLICIT, JPEG, JPEG_2000, JPEG_LOSSLESS, JPEG_LS, JPEG_XL, RLE, compressed,
    enhanced, slice,
};
use rondo_imaging_fuzz::{REGION, Scratch, joined, series};

type Made = Result<(), Box<dyn std::error::Error>>;

fn main() -> Made {
    let corpus = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "corpus".into()));
    nifti(&folder(&corpus, "nifti")?)?;
    cohort(&folder(&corpus, "cohort_toml")?)?;
    dicom(&folder(&corpus, "dicom")?)?;
    results(&folder(&corpus, "rtstruct")?, &folder(&corpus, "segmentation")?)
}

fn folder(corpus: &Path, target: &str) -> std::io::Result<PathBuf> {
    let folder = corpus.join(target);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Both versions in both byte orders with every voxel type, as they are and packed.
fn nifti(folder: &Path) -> Made {
    for (version, big) in [(1, false), (1, true), (2, false), (2, true)] {
        for (code, size) in [
            (2i16, 1usize),
            (4, 2),
            (8, 4),
            (16, 4),
            (64, 8),
            (256, 1),
            (512, 2),
            (768, 4),
            (1024, 8),
            (1280, 8),
        ] {
            let bytes = volume(version, big, code, size);
            let mut gz = GzEncoder::new(vec![0], Compression::best());
            gz.write_all(&bytes)?;
            let name = format!("v{version}-{}-{code}", if big { "big" } else { "little" });
            std::fs::write(
                folder.join(format!("{name}-plain")),
                [&[0], bytes.as_slice()].concat(),
            )?;
            if code == 16 {
                std::fs::write(
                    folder.join(format!("{name}-whole")),
                    [&[1], bytes.as_slice()].concat(),
                )?;
                std::fs::write(
                    folder.join(format!("{name}-members")),
                    [&[2], bytes.as_slice()].concat(),
                )?;
                std::fs::write(folder.join(format!("{name}-gz")), gz.finish()?)?;
            }
        }
    }
    Ok(())
}

/// Field offsets: nifti1.h and nifti2.h. sform and qform say the same.
fn volume(version: u8, big: bool, code: i16, size: usize) -> Vec<u8> {
    let mut out = vec![0u8; if version == 1 { 352 } else { 544 }];
    let mut put = |at: usize, little: &[u8]| {
        let field = &mut out[at..at + little.len()];
        field.copy_from_slice(little);
        if big {
            field.reverse();
        }
    };
    let dim = [3i64, 3, 4, 2, 1, 1, 1, 1];
    let pixdim = [1.0, 1.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0];
    let rows = [1.0, 0.0, 0.0, -1.0, 0.0, 1.0, 0.0, -2.0, 0.0, 0.0, 2.0, 3.0];
    let offset = [-1.0, -2.0, 3.0];
    if version == 1 {
        put(0, &348i32.to_le_bytes());
        dim.iter().enumerate().for_each(|(n, d)| put(40 + 2 * n, &(*d as i16).to_le_bytes()));
        put(70, &code.to_le_bytes());
        put(72, &(8 * size as i16).to_le_bytes());
        pixdim.iter().enumerate().for_each(|(n, v)| put(76 + 4 * n, &(*v as f32).to_le_bytes()));
        put(108, &352f32.to_le_bytes());
        put(112, &1f32.to_le_bytes());
        put(123, &[2]);
        put(252, &1i16.to_le_bytes());
        put(254, &1i16.to_le_bytes());
        offset.iter().enumerate().for_each(|(n, v)| put(268 + 4 * n, &(*v as f32).to_le_bytes()));
        rows.iter().enumerate().for_each(|(n, v)| put(280 + 4 * n, &(*v as f32).to_le_bytes()));
        out[344..348].copy_from_slice(b"n+1\0");
    } else {
        put(0, &540i32.to_le_bytes());
        put(12, &code.to_le_bytes());
        put(14, &(8 * size as i16).to_le_bytes());
        dim.iter().enumerate().for_each(|(n, d)| put(16 + 8 * n, &d.to_le_bytes()));
        pixdim.iter().enumerate().for_each(|(n, v)| put(104 + 8 * n, &f64::to_le_bytes(*v)));
        put(168, &544i64.to_le_bytes());
        put(176, &1f64.to_le_bytes());
        put(344, &1i32.to_le_bytes());
        put(348, &1i32.to_le_bytes());
        offset.iter().enumerate().for_each(|(n, v)| put(376 + 8 * n, &f64::to_le_bytes(*v)));
        rows.iter().enumerate().for_each(|(n, v)| put(400 + 8 * n, &f64::to_le_bytes(*v)));
        put(500, &2i32.to_le_bytes());
        out[4..12].copy_from_slice(b"n+2\0\r\n\x1a\n");
    }
    out.extend((0..24 * size).map(|n| (n / size) as u8 % 3));
    out
}

fn cohort(folder: &Path) -> Made {
    let head =
        "name = \"uker\"\nlabel_include = [1, 0x3]\nlabel_ignore = [2]\nbackground = \"zero\"\n";
    let case = |n: u8, split: &str| {
        format!(
            "[[case]]\nid = \"u-{n}\"\npatient = \"p{n}\"\nimage = \"i/{n}.nii.gz\"\nlabel = 'l/{n}.nii.gz'\nbrain_mask = \"b/{n}.nii.gz\"\nsplit = \"{split}\"\n"
        )
    };
    let all = [case(1, "train"), case(2, "validation"), case(3, "test")].concat();
    std::fs::write(folder.join("three"), format!("{head}{all}"))?;
    std::fs::write(
        folder.join("inline"),
        "name = \"a\"\ncase = [{ id = \"a\", patient = \"b\", image = \"i\", label = \"l\", brain_mask = \"m\", split = \"train\" }]\n",
    )?;
    std::fs::write(
        folder.join("wrong"),
        "name = 3\nnaem = \"x\"\n[[case]]\nid = \"\"\nsplit = \"tarin\"\n",
    )?;
    Ok(())
}

/// Series of single files in six transfer syntaxes, one with a slice missing, and an enhanced object.
fn dicom(folder: &Path) -> Made {
    for (name, syntax) in [("explicit", EXPLICIT), ("implicit", IMPLICIT), ("rle", RLE)] {
        let slices: Vec<_> = [2, 0, 1].map(|n| slice(n, syntax)).to_vec();
        std::fs::write(folder.join(name), joined(&slices))?;
    }
    for (name, syntax, bits, frame) in [
        ("jpeg", JPEG, 8, &include_bytes!("../../../tests/data/dicom/ramp8.jpg")[..]),
        (
            "jpeg-lossless",
            JPEG_LOSSLESS,
            12,
            include_bytes!("../../../tests/data/dicom/ramp12-lossless.jpg"),
        ),
        ("jpeg-ls", JPEG_LS, 12, include_bytes!("../../../tests/data/dicom/ramp12.jls")),
        ("jpeg-xl", JPEG_XL, 12, include_bytes!("../../../tests/data/dicom/ramp12.jxl")),
        ("jpeg-2000", JPEG_2000, 12, include_bytes!("../../../tests/data/dicom/ramp12.j2k")),
    ] {
        let slices: Vec<_> = [0, 1].map(|n| compressed(n, syntax, bits, frame)).to_vec();
        std::fs::write(folder.join(name), joined(&slices))?;
    }
    std::fs::write(folder.join("single"), joined(&[slice(0, EXPLICIT)]))?;
    std::fs::write(folder.join("gap"), joined(&[0, 1, 3].map(|n| slice(n, EXPLICIT))))?;
    std::fs::write(folder.join("enhanced"), joined(&[enhanced(3)]))?;
    Ok(())
}

/// What this project writes of a prediction with a hole and two parts.
fn results(contours: &Path, masks: &Path) -> Made {
    let scratch = Scratch::new("seeds");
    let (series, image) = series(&scratch);
    let mut n = 0;
    let prediction = image.map(|_| {
        n += 1;
        u8::from(n % 3 != 0 && n % 7 != 0)
    });
    for (name, grouping) in
        [("one", Grouping::Whole), ("each", Grouping::PerLesion(Connectivity::TwentySix))]
    {
        let description = Description {
            name: REGION.into(),
            grouping,
            algorithm: "seed".into(),
            algorithm_version: "1".into(),
            date: "20200101".into(),
            time: "120000".into(),
        };
        rtstruct::write(&contours.join(name), &series, &prediction, &description)?;
        segmentation::write(&masks.join(name), &series, &prediction, &description)?;
    }
    scratch.remove();
    Ok(())
}
