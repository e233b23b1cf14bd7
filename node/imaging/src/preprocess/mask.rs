//! The brain mask of an image: the site's own file, else the site's own tool, else a rough estimate.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ndarray::Array3;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

use super::Sources;
use crate::volume::Volume;
use crate::{brain, nifti, source};

/// Stands for the image in a command.
pub const INPUT: &str = "{input}";
/// Stands for the mask in a command.
pub const MASK: &str = "{mask}";
/// Longest time a program may take for one image.
const TIME_LIMIT: Duration = Duration::from_secs(30 * 60);
const POLL: Duration = Duration::from_millis(50);
/// Most bytes of a program's last words that are repeated.
const WORDS_MAX_BYTES: u64 = 2048;

/// Such programs want the whole graphics card, or all of the memory.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A program that the site trusts to make brain masks, with its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct MaskCommand(Vec<String>);

impl TryFrom<Vec<String>> for MaskCommand {
    type Error = String;

    fn try_from(words: Vec<String>) -> Result<Self, String> {
        let names = |what: &str| words.iter().skip(1).any(|w| w.contains(what));
        match words.first() {
            Some(program) if program.contains('/') && !program.starts_with('/') => Err(format!(
                "{program:?} is a relative path; write an absolute one, or the name of a program in PATH"
            )),
            Some(program) if !program.is_empty() && names(INPUT) && names(MASK) => Ok(Self(words)),
            _ => Err(format!(
                "the command needs a program and arguments with {INPUT} and {MASK}, for example [\"synthstrip\", \"-i\", \"{INPUT}\", \"-m\", \"{MASK}\"]"
            )),
        }
    }
}

impl From<MaskCommand> for Vec<String> {
    fn from(command: MaskCommand) -> Self {
        command.0
    }
}

impl MaskCommand {
    /// The program, if it is not to be found.
    pub(crate) fn missing(&self) -> Option<&str> {
        let program = self.0.first()?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
        (!found).then_some(program)
    }
}

/// Where a brain mask came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MaskSource {
    /// A file of the site.
    File,
    /// A program of the site.
    Command,
    /// The built-in estimate.
    Estimate,
}

/// Why there is no brain mask.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The site's file, or the program's.
    #[error(transparent)]
    Read(#[from] source::Error),
    /// The image could not be handed to the program.
    #[error(transparent)]
    Hand(#[from] nifti::Error),
    /// No room for the files of the program.
    #[error("making a temporary folder for the brain mask: {0}; make room there, or set TMPDIR")]
    Folder(std::io::Error),
    /// The program could not be started.
    #[error(
        "starting {program} for the brain mask: {source}; correct `brain_mask_command` in the cohort file"
    )]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// The program did not do it.
    #[error("{program} made no brain mask: {how}{words}; run it by hand on this image")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        how: String,
        /// Its last words.
        words: String,
    },
    /// The estimate found no brain.
    #[error(
        "the image {}: {source}; give a `brain_mask` for this case, or a `brain_mask_command` for the cohort",
        path.display()
    )]
    Estimate {
        /// The image.
        path: PathBuf,
        /// Why.
        source: brain::Error,
    },
}

/// The mask of an image, from the first of file, program and estimate that there is.
///
/// # Errors
/// What the chosen one says; the next one is not tried, since a mask that a site meant to use and that
/// is missing is an error.
pub(super) fn brain_mask(
    image: &Volume<f32>,
    sources: &Sources<'_>,
    command: Option<&MaskCommand>,
) -> Result<(Array3<u8>, MaskSource), Error> {
    if let Some(file) = sources.brain_mask {
        let mask = source::read_mask("brain mask", file, image.geometry())?;
        return Ok((mask.into_parts().1, MaskSource::File));
    }
    if let Some(command) = command {
        return Ok((run(command, image)?, MaskSource::Command));
    }
    let path = || sources.image.to_path_buf();
    let mask = brain::estimate(image).map_err(|source| Error::Estimate { path: path(), source })?;
    Ok((mask, MaskSource::Estimate))
}

fn run(MaskCommand(words): &MaskCommand, image: &Volume<f32>) -> Result<Array3<u8>, Error> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // A head has a face: nobody else may look.
    let folder = tempfile::Builder::new()
        .prefix("rondo-mask-")
        .permissions(std::fs::Permissions::from_mode(0o700))
        .tempdir()
        .map_err(Error::Folder)?;
    let input = folder.path().join("input.nii.gz");
    let mask = folder.path().join("mask.nii.gz");
    nifti::write(&input, image)?;
    let paths = |word: &String| {
        word.replace(INPUT, &input.to_string_lossy()).replace(MASK, &mask.to_string_lossy())
    };
    let words: Vec<String> = words.iter().map(paths).collect();
    let (program, arguments) = words.split_first().map_or(("", &[][..]), |(p, a)| (p, a));
    let mut said = tempfile::tempfile_in(folder.path()).map_err(Error::Folder)?;
    let start = |source| Error::Start { program: program.to_owned(), source };
    let status = Command::new(program)
        .args(arguments)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        // A group of its own, so that what it starts can be stopped with it.
        .process_group(0)
        .stdout(said.try_clone().map_err(Error::Folder)?)
        .stderr(said.try_clone().map_err(Error::Folder)?)
        .spawn()
        .and_then(waited)
        .map_err(start)?;
    let failed = |how: String, said: &mut File| Error::Failed {
        program: program.to_owned(),
        how,
        words: last_words(said),
    };
    match status {
        None => {
            let minutes = TIME_LIMIT.as_secs() / 60;
            Err(failed(format!("it took longer than {minutes} minutes"), &mut said))
        }
        Some(status) if !status.success() => {
            Err(failed(format!("it ended with {status}"), &mut said))
        }
        Some(_) if !mask.is_file() => Err(failed(format!("it left nothing at {MASK}"), &mut said)),
        Some(_) => Ok(source::read_mask("brain mask", &mask, image.geometry())?.into_parts().1),
    }
}

/// How a program ended; `None` if it was stopped for taking too long.
fn waited(mut child: std::process::Child) -> std::io::Result<Option<ExitStatus>> {
    let end = Instant::now() + TIME_LIMIT;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > end {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                kill_process_group(group, Signal::KILL)?;
            }
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

fn last_words(said: &mut File) -> String {
    let mut text = Vec::new();
    let length = said.seek(SeekFrom::End(0)).unwrap_or(0);
    let _ = said.seek(SeekFrom::Start(length.saturating_sub(WORDS_MAX_BYTES)));
    let _ = said.take(WORDS_MAX_BYTES).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    match text.lines().map(str::trim).rfind(|line| !line.is_empty()) {
        Some(line) => format!(", saying {line:?}"),
        None => String::new(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::path::Path;

    use crate::volume::Geometry;

    fn image() -> Volume<f32> {
        let geometry = Geometry::with_spacing([6, 5, 4], [1.0, 1.0, 2.0]).unwrap();
        Volume::new(geometry, Array3::from_shape_fn((6, 5, 4), |(i, j, k)| (i + j + k) as f32))
            .unwrap()
    }

    fn command(script: &str) -> MaskCommand {
        let words = ["sh", "-c", script, INPUT, MASK].map(str::to_owned);
        MaskCommand::try_from(words.to_vec()).unwrap()
    }

    fn sources() -> Sources<'static> {
        Sources { image: Path::new("image.nii"), series: None, brain_mask: None }
    }

    fn said(script: &str) -> String {
        brain_mask(&image(), &sources(), Some(&command(script))).unwrap_err().to_string()
    }

    #[test]
    fn a_program_of_the_site_makes_the_mask() {
        // $0 is the image, $1 the mask.
        let (mask, from) =
            brain_mask(&image(), &sources(), Some(&command("cp \"$0\" \"$1\""))).unwrap();
        assert_eq!(from, MaskSource::Command);
        assert_eq!(mask, image().data().map(|v| u8::from(*v > 0.0)));
    }

    #[test]
    fn a_program_that_fails_is_repeated_with_its_last_words() {
        assert!(
            said("echo no licence >&2; exit 3").contains("exit status: 3, saying \"no licence\"")
        );
        assert!(said("true").contains("left nothing at {mask}"));
        assert!(said("echo nonsense > \"$1\"").contains("no NIfTI"));
        let missing = MaskCommand::try_from(["/no/such", INPUT, MASK].map(str::to_owned).to_vec());
        let missing = missing.unwrap();
        assert_eq!((missing.missing(), command("true").missing()), (Some("/no/such"), None));
        let e = brain_mask(&image(), &sources(), Some(&missing)).unwrap_err().to_string();
        assert!(e.contains("starting /no/such") && e.contains("brain_mask_command"), "{e}");
    }

    #[test]
    fn a_command_names_image_and_mask() {
        let relative = ["tools/bet", INPUT, MASK].map(str::to_owned).to_vec();
        assert!(MaskCommand::try_from(relative).unwrap_err().contains("relative"));
        for words in [&[][..], &["hd-bet"], &["hd-bet", INPUT], &["", INPUT, MASK]] {
            let words = words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
            assert!(MaskCommand::try_from(words).unwrap_err().contains(MASK));
        }
    }
}
