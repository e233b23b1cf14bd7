//! What the fuzz targets share: a place in memory for the files the readers open.

pub mod dicom_files;

use std::path::{Path, PathBuf};

use rondo_imaging::dicom::{self, Series, SeriesChoice};
use rondo_imaging::volume::Volume;

/// A folder of this process in memory, emptied before every input.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes the folder in `/dev/shm`, or among temporary files where there is none; those of
    /// processes that are gone are removed.
    pub fn new(target: &str) -> Self {
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        // A fuzzer that is stopped or fails leaves its folder behind.
        for entry in std::fs::read_dir(&base).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let process = (name.to_str())
                .and_then(|name| name.strip_prefix("rondo-fuzz-"))
                .and_then(|name| name.rsplit('-').next())
                .and_then(|id| id.parse::<u32>().ok());
            let gone = |id: u32| !Path::new("/proc").join(id.to_string()).exists();
            if Path::new("/proc/self").exists() && process.is_some_and(gone) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        let folder = base.join(format!("rondo-fuzz-{target}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder in memory can be made");
        Self(folder)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Writes one file and gives its path.
    pub fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).expect("a file in memory can be written");
        path
    }

    /// Removes the folder.
    pub fn remove(self) {
        let _ = std::fs::remove_dir_all(self.0);
    }

    /// Removes every file.
    pub fn clear(&self) {
        for entry in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Cuts an input into files: each begins with its length, two bytes, little endian; the last may be
/// shorter than it says. Mutations then move borders as well as bytes.
pub fn files(mut input: &[u8], most: usize) -> Vec<&[u8]> {
    let mut files = Vec::new();
    while let ([a, b, rest @ ..], true) = (input, files.len() < most) {
        let length = usize::from(u16::from_le_bytes([*a, *b])).min(rest.len());
        let (file, after) = rest.split_at(length);
        files.push(file);
        input = after;
    }
    files
}

/// The reverse of [`files`]; a file must be shorter than 64 KiB.
pub fn joined(files: &[Vec<u8>]) -> Vec<u8> {
    let mut input = Vec::new();
    for file in files {
        let length = u16::try_from(file.len()).expect("a seed is shorter than 64 KiB");
        input.extend_from_slice(&length.to_le_bytes());
        input.extend_from_slice(file);
    }
    input
}

/// Name of the region in seeds and in what the targets ask for.
pub const REGION: &str = "Metastasis";

/// A series of four small slices, written into the scratch folder and read from there.
pub fn series(scratch: &Scratch) -> (Series, Volume<f32>) {
    let folder = scratch.folder().join("series");
    std::fs::create_dir_all(&folder).expect("a folder in memory can be made");
    for n in 0..4 {
        let bytes = dicom_files::slice(n, dicom_files::EXPLICIT);
        std::fs::write(folder.join(format!("{n}.dcm")), bytes)
            .expect("a file in memory can be written");
    }
    dicom::read_series(&folder, &SeriesChoice::Only).expect("the series is sound")
}
