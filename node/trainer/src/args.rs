//! The command line.

use clap::{Args as Group, Parser, Subcommand, ValueEnum};
use rondo_imaging::cohort::Split;
use rondo_learn::device::Choice;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Reads images and trains; it has no network.
#[derive(Debug, Parser)]
#[command(name = "rondo-trainer", version, about)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model on a cohort: one visit of this site.
    Train(Train),
    /// Segment images with a model.
    Predict(Predict),
    /// Bring a model from elsewhere into Rondo's own layout.
    Import(Import),
    /// Print a recipe with every value resolved, as a recipe file.
    ShowRecipe(Recipe),
    /// Train for the daemon of this site, visit after visit.
    Serve(Serve),
    /// Measure how fast this machine trains or segments.
    Bench(Bench),
    /// Check this build on this device against golden numbers; one JSON line a check.
    Parity(Parity),
    /// Show that this process cannot do what it must not, and computes what it must.
    SelfTest(SelfTest),
}

/// Where the hyper-parameters come from.
#[derive(Debug, Group)]
pub struct Recipe {
    /// Recipe file: a preset and what departs from it.
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "preset",
        conflicts_with = "preset"
    )]
    pub recipe: Option<PathBuf>,
    /// Everything as the paper says, or as its released code does.
    #[arg(long, value_name = "paper|published")]
    pub preset: Option<rondo::recipe::Preset>,
}

/// Arguments of `train`.
#[derive(Debug, Group)]
pub struct Train {
    /// Cohort file, or the folder it lies in; several times to pool cohorts (method mixed).
    #[arg(long, value_name = "FILE", required = true)]
    pub cohort: Vec<PathBuf>,
    /// Hyper-parameters.
    #[command(flatten)]
    pub recipe: Recipe,
    /// Folder for model.safetensors, report.json, recipe.toml, and the figures in metrics.jsonl and
    /// tensorboard/. The state of an unfinished visit lies there too.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Model to go on from, of any kind that `import` reads; without one, a fresh model is made.
    #[arg(long, value_name = "FILE")]
    pub init: Option<PathBuf>,
    /// Seed of every random draw.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Folder for prepared cases, which visits may share; without it they lie in the folder of --out.
    #[arg(long, value_name = "DIR")]
    pub work: Option<PathBuf>,
    /// Begin anew: ignore the state of an interrupted visit, and overwrite a result.
    #[arg(long)]
    pub fresh: bool,
    /// Seconds between two states on disk, with which an interrupted visit goes on.
    #[arg(long, value_name = "SECONDS", default_value_t = crate::unfinished::SAVE_EVERY_S)]
    pub save_every: u32,
    /// auto, cpu, cuda:N or flex.
    #[arg(long, default_value_t = Choice::Auto)]
    pub device: Choice,
    /// Progress and result as JSON lines.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `predict`.
#[derive(Debug, Group)]
pub struct Predict {
    /// Model file, of any kind that `import` reads.
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// Cohort file, or the folder it lies in.
    #[arg(long, value_name = "FILE", required_unless_present = "image", conflicts_with = "image")]
    pub cohort: Option<PathBuf>,
    /// Cases of the cohort to segment.
    #[arg(long, default_value = "test")]
    pub split: SplitName,
    /// One image instead of a cohort: a NIfTI file, or the folder of a DICOM series.
    #[arg(long, value_name = "PATH")]
    pub image: Option<PathBuf>,
    /// Series Instance UID, where that folder holds several series.
    #[arg(long, value_name = "UID", requires = "image")]
    pub series: Option<String>,
    /// Brain mask of that image [default: by the cohort's command, else a rough estimate].
    #[arg(long, value_name = "FILE", requires = "image")]
    pub brain_mask: Option<PathBuf>,
    /// Prepare that image as the cases of this cohort are [default: the paper's way].
    #[arg(long, value_name = "COHORT", requires = "image")]
    pub like: Option<PathBuf>,
    /// Folder for the masks: one NIfTI file per case, on the grid of its image.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Write probability maps too, into the folder `probability` below.
    #[arg(long)]
    pub probability: bool,
    /// Write DICOM objects too, which refer to the source series, beside the masks:
    /// FILE.seg.dcm, FILE.rtstruct.dcm.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub dicom: Vec<DicomKind>,
    /// auto, cpu, cuda:N or flex.
    #[arg(long, default_value_t = Choice::Auto)]
    pub device: Choice,
    /// Progress and result as JSON lines.
    #[arg(long)]
    pub json: bool,
}

/// A DICOM object that holds a prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DicomKind {
    /// Segmentation.
    Seg,
    /// RT Structure Set.
    Rtstruct,
}

/// Arguments of `import`.
#[derive(Debug, Group)]
pub struct Import {
    /// Model to read: a published checkpoint of torch.save (.tar), or safetensors.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Model to write (safetensors).
    #[arg(long, value_name = "MODEL.safetensors")]
    pub out: PathBuf,
    /// Keep Adam's state, for recipes that carry it.
    #[arg(long)]
    pub with_optimizer: bool,
    /// Notes and result as JSON lines.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `serve`.
#[derive(Debug, Group)]
pub struct Serve {
    /// The daemon's socket for its trainer.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Configuration of the trainer.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Arguments of `bench`.
#[derive(Debug, Group)]
pub struct Bench {
    /// What to measure.
    pub what: BenchOf,
    /// Segments per update.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub batch: u32,
    /// Arithmetic of our convolutions: fp32 or bf16.
    #[arg(long, default_value_t = rondo::recipe::Precision::Fp32)]
    pub precision: rondo::recipe::Precision,
    /// Method of the updates: tl, or lwf with a teacher.
    #[arg(long, default_value_t = rondo::recipe::Method::Tl)]
    pub method: rondo::recipe::Method,
    /// Widths of the network.
    #[arg(long, value_name = "N1,N2,N3,M", default_value = "30,40,50,150")]
    pub widths: Numbers<4>,
    /// Shape of the volume to cut segments from, or to segment.
    #[arg(long, value_name = "X,Y,Z", default_value = "240,240,155")]
    pub shape: Numbers<3>,
    /// Updates (30) or volumes (2) to measure at least.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub repeats: Option<u32>,
    /// A Python that has PyTorch: does the same work in turns with us, and the ratio is told.
    #[arg(long, value_name = "PYTHON")]
    pub peer: Option<PathBuf>,
    /// Python file with the peer's network instead of the built-in one.
    #[arg(long, value_name = "FILE", requires = "peer")]
    pub network: Option<PathBuf>,
    /// auto, cpu, cuda:N or flex.
    #[arg(long, default_value_t = Choice::Auto)]
    pub device: Choice,
    /// One JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What `bench` can measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchOf {
    /// One update: sampling, forward, backward, Adam.
    Step,
    /// One whole volume.
    Infer,
    /// Cutting segments, against what the device consumes.
    Sample,
}

/// Positive numbers separated by commas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers<const N: usize>(pub [u32; N]);

impl<const N: usize> FromStr for Numbers<N> {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{N} whole numbers from 1 to 512 are needed, separated by commas");
        let list: Option<Vec<u32>> = text
            .split(',')
            .map(|part| part.trim().parse().ok().filter(|n| (1..=512).contains(n)))
            .collect();
        list.and_then(|list| list.try_into().ok()).map(Self).ok_or_else(wrong)
    }
}

/// A split of a cohort, on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SplitName {
    /// Cases trained on.
    Train,
    /// Cases validated on.
    Validation,
    /// Cases never seen.
    Test,
    /// All three.
    All,
}

impl SplitName {
    /// The splits meant.
    #[must_use]
    pub fn splits(self) -> &'static [Split] {
        match self {
            Self::Train => &[Split::Train],
            Self::Validation => &[Split::Validation],
            Self::Test => &[Split::Test],
            Self::All => &Split::ALL,
        }
    }
}

/// Arguments of `parity`.
#[derive(Debug, Group)]
pub struct Parity {
    /// Folder of golden numbers: learning.json and the files it speaks of.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// auto, cpu, cuda:N or flex.
    #[arg(long, default_value_t = Choice::Auto)]
    pub device: Choice,
}

/// Arguments of `self-test`.
#[derive(Debug, Group)]
pub struct SelfTest {
    /// What to test.
    #[command(subcommand)]
    pub what: SelfTestOf,
}

/// What `self-test` can show.
#[derive(Debug, Subcommand)]
pub enum SelfTestOf {
    /// Try to reach an address in several ways; succeeds if the kernel refuses every one.
    Network {
        /// Address of a listener that is really there.
        #[arg(long, default_value = "127.0.0.1:80")]
        connect: SocketAddr,
    },
    /// Compute what is known and compare: `parity` with the small golden numbers inside this program.
    Numbers {
        /// auto, cpu, cuda:N or flex.
        #[arg(long, default_value_t = Choice::Auto)]
        device: Choice,
    },
}
