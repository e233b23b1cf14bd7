//! The command line.

use crate::exit::Exit;
use clap::{ArgAction, Args, Parser, Subcommand};
use rondo::ids::SiteId;
use rondo_imaging::cohort::Split;
use rondo_imaging::comparison::Method;
use rondo_imaging::lesion::Connectivity;
use rondo_imaging::phantom::{Centre, Format, Slices};
use rondo_imaging::picture::MAX_FINDINGS;
use std::path::PathBuf;

/// Shortest prefix of a digest that names something.
pub(crate) const DIGEST_PREFIX_MIN: usize = 6;

/// Rondo passes a model around hospitals; images stay where they are.
#[derive(Debug, Parser)]
#[command(name = "rondo", version, about, after_help = "Exit codes: `rondo help exit-codes`")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Folder of this site [default: rondo in the user's data folder].
    #[arg(long, global = true, env = "RONDO_HOME", value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Control socket of the daemon [default: as the site's node.toml says].
    #[arg(long, global = true, env = "RONDO_SOCKET", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Give the result as one JSON document.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// This site: make it, show its card, see how it is.
    #[command(subcommand)]
    Site(Site),
    /// Sites that this one trusts.
    #[command(subcommand)]
    Peer(Peer),
    /// Rounds: propose, approve, start, pause, abort, follow.
    #[command(subcommand)]
    Round(Round),
    /// Checkpoints in this site's store, or in files.
    #[command(subcommand)]
    Model(Model),
    /// What an auditor asks: who did what here, and what left this site.
    #[command(subcommand)]
    Audit(Audit),
    /// Cohorts: make a synthetic one, measure, check or prepare one.
    #[command(subcommand)]
    Cohort(Cohort),
    /// Images of any format: what they are, and as NIfTI.
    #[command(subcommand)]
    Image(Image),
    /// Train on this machine without any peer (options of `rondo-trainer train`).
    #[command(disable_help_flag = true)]
    Train(Passed),
    /// Segment cases with a model (options of `rondo-trainer predict`).
    #[command(disable_help_flag = true)]
    Predict(Passed),
    /// Judge predicted masks against reference masks, lesion by lesion.
    Evaluate(Evaluate),
    /// Compare methods over repeats: mean ± sd of evaluation files, and t-tests.
    Compare(Compare),
    /// Many sites on this machine.
    #[command(subcommand)]
    Lab(Lab),
    /// Print completions for a shell.
    Completions {
        /// bash, zsh, fish, elvish or powershell.
        shell: clap_complete::Shell,
    },
    /// Show what each exit code means.
    #[command(long_about = Exit::table())]
    ExitCodes,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Site {
    /// Make keys, card and configuration of this site.
    Init(SiteInit),
    /// Print this site's signed card, to be given to other sites.
    Card {
        /// Write it to a file instead.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Write this site's public signing key as PEM, for programs other than Rondo.
    Key {
        /// File for it [default: print it].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// How the daemon and its trainer are.
    Status,
    /// Prepare next keys and announce them in a new card; change over to them; or renew the card alone.
    Renew(SiteRenew),
}

#[derive(Debug, Args)]
pub(crate) struct SiteRenew {
    /// Change over to the keys that were announced.
    #[arg(long, conflicts_with = "card_only")]
    pub(crate) activate: bool,
    /// Change over although some peers do not know the next keys; they must add the new card by hand.
    #[arg(long, requires = "activate")]
    pub(crate) force: bool,
    /// A new card for the same keys; also while the daemon does not run.
    #[arg(long)]
    pub(crate) card_only: bool,
    /// Days for which the new card is valid [default: 730].
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) valid_days: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct SiteInit {
    /// Short name of the site: a-z, 0-9 and `-`.
    #[arg(long, value_name = "ID")]
    pub(crate) site: SiteId,
    /// Name for people.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: String,
    /// Address the daemon listens on for peers.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<std::net::SocketAddr>,
    /// Where peers reach it, as host:port; none if it only dials out.
    #[arg(long = "endpoint", value_name = "HOST:PORT")]
    pub(crate) endpoints: Vec<String>,
    /// Configuration of a trainer that the daemon starts itself.
    #[arg(long, value_name = "FILE")]
    pub(crate) trainer_config: Option<PathBuf>,
    /// Folder for the sockets, if the one in the home folder is too long a path.
    #[arg(long, value_name = "DIR")]
    pub(crate) runtime_dir: Option<PathBuf>,
    /// Days for which the card is valid.
    #[arg(long, value_name = "DAYS")]
    pub(crate) valid_days: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Peer {
    /// Trust the site whose card this is, after comparing its fingerprint by phone.
    Add {
        /// Card file of the other site.
        card: PathBuf,
        /// The fingerprint that the other site read out; asked for otherwise.
        #[arg(long, value_name = "FINGERPRINT")]
        fingerprint: Option<String>,
    },
    /// Sites in the roster.
    List,
    /// Trust a site no more: its connections end, and nothing of it is accepted.
    Revoke {
        /// The site's id.
        site: SiteId,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Connect to a site and greet it: is it there, how is the connection protected?
    Ping {
        /// The site's id.
        site: SiteId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Round {
    /// Propose a plan to the sites it names.
    Propose {
        /// Plan file.
        plan: PathBuf,
    },
    /// Approve a plan on behalf of this site.
    Approve(RoundName),
    /// Start a round that every site has approved.
    Start(RoundName),
    /// Begin and hand over nothing more until this site resumes the round; what trains goes on.
    Pause(RoundName),
    /// Take this site's pause back.
    Resume(RoundName),
    /// End a round at all sites, for good, and stop what trains.
    Abort {
        /// Digest of the plan, or its first digits (6 at least).
        #[arg(value_parser = digest_prefix)]
        round: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Go on from this site's checkpoint without the site that the round waits for, if it is lost for good.
    Recover {
        /// Digest of the plan, or its first digits (6 at least).
        #[arg(value_parser = digest_prefix)]
        round: String,
        /// The site that is lost: all its further visits are passed over.
        #[arg(long, value_name = "SITE")]
        without: Option<SiteId>,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Follow a round until it is over.
    Watch(RoundName),
    /// Show a round as it is now.
    Show(RoundName),
    /// Rounds that this site knows.
    List,
    /// Let the result of a visit go that this site's policy holds back.
    Release {
        /// Digest of the plan, or its first digits (6 at least).
        #[arg(value_parser = digest_prefix)]
        round: String,
        /// Number of the visit.
        visit: u32,
    },
    /// Write every receipt of a round to a file, for a site that no network reaches.
    Export {
        /// Digest of the plan, or its first digits (6 at least).
        #[arg(value_parser = digest_prefix)]
        round: String,
        /// FILE.json.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Adopt the receipts of other sites from a file of `rondo round export`.
    Import {
        /// FILE.json.
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RoundName {
    /// Digest of the plan, or its first digits (6 at least).
    #[arg(value_parser = digest_prefix)]
    pub(crate) round: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Model {
    /// Checkpoints in this site's store.
    List,
    /// Check a checkpoint and its passport: a file offline, or one in this site's store.
    Verify {
        /// FILE.rondo, FILE.safetensors with FILE.passport.json beside it, or a digest.
        #[arg(value_name = "FILE|DIGEST")]
        model: String,
        /// Folder of the cards (*.json) to check the passport with [default: the daemon's roster].
        #[arg(long, value_name = "DIR")]
        cards: Option<PathBuf>,
    },
    /// Copy a checkpoint out of the store, with its passport.
    Export {
        /// Digest of the weights, or its first digits (6 at least).
        #[arg(value_parser = digest_prefix)]
        digest: String,
        /// FILE.rondo for one file (a tar) that another site can import and `model-signing` can check;
        /// FILE.safetensors for the weights alone, with FILE.passport.json beside them.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Read every checkpoint in this site's store; name what is damaged, unreferenced, or needed and gone.
    Check {
        /// Move damaged checkpoints aside, so that they can come again; nothing is deleted.
        #[arg(long)]
        repair: bool,
    },
    /// Take in a model that came as a file: the same checks, journal and receipts as over the network.
    Import {
        /// FILE.rondo of `rondo model export` at another site.
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Check the audit log: every line, and every signature over it.
    Verify {
        /// A signature that was kept elsewhere: an earlier audit-mark.json of this site.
        #[arg(long, value_name = "FILE")]
        mark: Option<PathBuf>,
    },
    /// Print the audit log, a JSON object a line.
    Export {
        /// Write it to a file instead.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// What left this site to others, in bytes, by peer, round and kind of message.
    Egress {
        /// Only what was about this round: its digest, or its first digits (6 at least).
        #[arg(long, value_parser = digest_prefix)]
        round: Option<String>,
        /// Only what went to this site.
        #[arg(long, value_name = "SITE")]
        peer: Option<SiteId>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cohort {
    /// Make a cohort of synthetic heads with metastases.
    Synth(Synth),
    /// Measure a cohort: the figures of the paper's Table 1.
    Stats(CohortFile),
    /// Read every file of a cohort and name what cannot be used.
    Check(CohortFile),
    /// Prepare every case as training sees it, once; what is there already is not done again.
    Preprocess(Preprocess),
}

#[derive(Debug, Args)]
pub(crate) struct Preprocess {
    /// cohort.toml, or its folder.
    pub(crate) cohort: PathBuf,
    /// Cases to prepare (repeatable); training reads those of train and validation.
    #[arg(long, value_name = "SPLIT", default_values = ["train", "validation"], value_parser = split)]
    pub(crate) split: Vec<Split>,
    /// Work folder of the training that will use them.
    #[arg(long, value_name = "DIR")]
    pub(crate) work: PathBuf,
    /// Write image, label and brain as NIfTI on the working grid too, to look at.
    #[arg(long, value_name = "DIR")]
    pub(crate) export: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Show grid, orientation and values of an image, or the series of a DICOM folder.
    Info(ImageInfo),
    /// Write a DICOM series as NIfTI; or a label as NIfTI, DICOM SEG or RTSTRUCT.
    Convert(ImageConvert),
}

#[derive(Debug, Args)]
pub(crate) struct ImageInfo {
    /// A NIfTI file, a DICOM file, or a folder of DICOM files.
    #[arg(value_name = "FILE|FOLDER")]
    pub(crate) path: PathBuf,
    /// Series Instance UID, where a folder holds several series.
    #[arg(long, value_name = "UID")]
    pub(crate) series: Option<String>,
    /// Read headers only.
    #[arg(long)]
    pub(crate) headers: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImageConvert {
    /// The image; with --on, a label: NIfTI, RTSTRUCT or DICOM SEG.
    #[arg(value_name = "FILE|FOLDER")]
    pub(crate) input: PathBuf,
    /// NAME.nii.gz or NAME.nii; with --as, a DICOM file.
    #[arg(value_name = "OUT")]
    pub(crate) out: PathBuf,
    /// Series Instance UID, where the folder of the image holds several series.
    #[arg(long, value_name = "UID")]
    pub(crate) series: Option<String>,
    /// The input is a label of this image.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) on: Option<PathBuf>,
    /// Contours to take, where the label is an RTSTRUCT.
    #[arg(long = "roi", value_name = "NAME", requires = "on")]
    pub(crate) rois: Vec<String>,
    /// Label values to take, where the label is a NIfTI file [default: all above 0].
    #[arg(long = "label", value_name = "VALUE", requires = "on")]
    pub(crate) labels: Vec<u16>,
    /// Write a DICOM object that refers to the series of --on.
    #[arg(long = "as", value_name = "KIND", requires = "on")]
    pub(crate) kind: Option<DicomKind>,
}

/// A DICOM object that holds a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DicomKind {
    /// Segmentation.
    Seg,
    /// RT Structure Set.
    Rtstruct,
}

#[derive(Debug, Args)]
pub(crate) struct CohortFile {
    /// cohort.toml, or its folder.
    pub(crate) cohort: PathBuf,
}

fn split(text: &str) -> Result<Split, String> {
    let known = Split::ALL.into_iter().find(|s| s.name() == text);
    known.ok_or_else(|| "a split is train, validation or test".to_owned())
}

/// [`Slices`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SlicesName {
    /// All volumes on the grid that is asked for.
    Grid,
    /// As thick as the centre's scanner makes them.
    Scanner,
}

impl From<SlicesName> for Slices {
    fn from(name: SlicesName) -> Self {
        match name {
            SlicesName::Grid => Self::Grid,
            SlicesName::Scanner => Self::Scanner,
        }
    }
}

/// [`Format`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FormatName {
    /// Compressed NIfTI files.
    Nifti,
    /// Images as DICOM series, labels as RTSTRUCT.
    Dicom,
}

impl From<FormatName> for Format {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Nifti => Self::Nifti,
            FormatName::Dicom => Self::Dicom,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Synth {
    /// Centre to imitate: uker, usz, stanford, ucsf, nyu or brats.
    #[arg(long)]
    pub(crate) centre: Centre,
    /// Folder for the cohort.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Training cases.
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub(crate) train: usize,
    /// Validation cases.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(crate) validation: usize,
    /// Test cases.
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub(crate) test: usize,
    /// Voxels along each axis (168x200x168 at 1 mm hold an adult's head).
    #[arg(long, default_value = "64x72x56", value_name = "IxJxK", value_parser = triple::<usize>, conflicts_with = "anatomy")]
    pub(crate) shape: [usize; 3],
    /// Millimetres between voxels along each axis.
    #[arg(long, default_value = "1x1x1", value_name = "AxBxC", value_parser = triple::<f64>, conflicts_with = "anatomy")]
    pub(crate) spacing: [f64; 3],
    /// Slices of that grid, or as thick as the centre's scanner makes them.
    #[arg(long, default_value = "grid", conflicts_with = "anatomy")]
    pub(crate) slices: SlicesName,
    /// How the files are kept: nifti, or dicom (series and RTSTRUCT).
    #[arg(long, default_value = "nifti")]
    pub(crate) format: FormatName,
    /// The same seed makes the same cohort.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Paint on this T1 volume instead of synthetic heads.
    #[arg(long, value_name = "FILE")]
    pub(crate) anatomy: Option<PathBuf>,
    /// Brain mask of that volume; without it the volume must be skull-stripped.
    #[arg(long, value_name = "FILE", requires = "anatomy")]
    pub(crate) anatomy_mask: Option<PathBuf>,
    /// Leave out skull and scalp.
    #[arg(long)]
    pub(crate) no_skull: bool,
}

/// Arguments for another program.
#[derive(Debug, Args)]
pub(crate) struct Passed {
    /// Options of the trainer; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, action = ArgAction::Append)]
    pub(crate) rest: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Evaluate {
    /// Folder of reference masks, one NIfTI file per case.
    #[arg(long, value_name = "DIR")]
    pub(crate) reference: PathBuf,
    /// Folder of predicted masks with the same names.
    #[arg(long, value_name = "DIR")]
    pub(crate) prediction: PathBuf,
    /// Folder of brain masks; predictions outside them are judged too and removed for a second set of figures.
    #[arg(long, value_name = "DIR")]
    pub(crate) brain_mask: Option<PathBuf>,
    /// Voxels that touch by face (6), edge (18) or corner (26) are one lesion.
    #[arg(long, default_value = "26", value_parser = connectivity)]
    pub(crate) connectivity: Connectivity,
    /// Tolerance of the surface Dice.
    #[arg(long, default_value_t = 1.0, value_name = "MM")]
    pub(crate) tolerance_mm: f64,
    /// Label value that is lesion; repeatable. Without it every value above 0 is.
    #[arg(long = "label", value_name = "N")]
    pub(crate) labels: Vec<u16>,
    /// Folder of images with the same names, to be pictured.
    #[arg(long, value_name = "DIR")]
    pub(crate) image: Option<PathBuf>,
    /// Write one page with figures, and with pictures if there are images.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write pooled.csv, cases.csv and lesions.csv into this folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) csv: Option<PathBuf>,
    /// Write slices and contact sheets (PNG) into this new folder, a sub-folder a case.
    #[arg(long, value_name = "DIR", requires = "image")]
    pub(crate) pictures: Option<PathBuf>,
    /// Lesions and false positives pictured of a case, at most 100: in turns missed, false, found,
    /// the largest first. Without it 100 with --pictures, and 12 with --html alone.
    #[arg(long, value_name = "N", value_parser = findings)]
    pub(crate) pictures_per_case: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// Name of a method, and what `rondo evaluate --json` printed for each of its seeds; repeatable.
    #[arg(long = "method", value_name = "NAME=FILE,FILE,…", required = true, value_parser = method)]
    pub(crate) methods: Vec<Method>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Lab {
    /// Run a round among cohorts on this machine: a real node and trainer for each.
    Run(LabRun),
    /// Make three synthetic centres and run a round among them.
    Demo(LabDemo),
}

#[derive(Debug, Args)]
pub(crate) struct LabRun {
    /// Folder whose sub-folders are cohorts; their names are the sites of the plan.
    #[arg(long, value_name = "DIR")]
    pub(crate) cohorts: PathBuf,
    /// Plan of the round.
    #[arg(long, value_name = "FILE")]
    pub(crate) plan: PathBuf,
    #[command(flatten)]
    pub(crate) place: LabPlace,
}

#[derive(Debug, Args)]
pub(crate) struct LabDemo {
    /// Seed of the synthetic cohorts and of the round.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) place: LabPlace,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct LabPlace {
    /// Folder for everything the lab makes.
    #[arg(long, value_name = "DIR")]
    pub(crate) workdir: PathBuf,
    /// Device of every trainer: auto, cpu, cuda:N or flex.
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,
    /// Keep the predicted masks after they were judged.
    #[arg(long)]
    pub(crate) keep: bool,
}

fn digest_prefix(text: &str) -> Result<String, String> {
    let digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    if (DIGEST_PREFIX_MIN..=64).contains(&text.len()) && text.chars().all(digit) {
        Ok(text.to_owned())
    } else {
        Err(format!("give {DIGEST_PREFIX_MIN} to 64 of the digits 0-9 and a-f"))
    }
}

fn triple<T: std::str::FromStr + Copy>(text: &str) -> Result<[T; 3], String> {
    let parts: Option<Vec<T>> = text.split('x').map(|part| part.parse().ok()).collect();
    parts
        .and_then(|list| <[T; 3]>::try_from(list).ok())
        .ok_or_else(|| "give three numbers with `x` between them, as 64x72x56".to_owned())
}

fn findings(text: &str) -> Result<usize, String> {
    let n = text.parse().map_err(|e: std::num::ParseIntError| e.to_string())?;
    if (1..=MAX_FINDINGS).contains(&n) {
        Ok(n)
    } else {
        Err(format!("give a number from 1 to {MAX_FINDINGS}"))
    }
}

fn method(text: &str) -> Result<Method, String> {
    let (name, files) = text.split_once('=').ok_or("give NAME=FILE,FILE,…")?;
    let files: Vec<PathBuf> = files.split(',').map(PathBuf::from).collect();
    if name.trim().is_empty() || files.iter().any(|f| f.as_os_str().is_empty()) {
        return Err("give a name and the files of its repeats, as swt=a.json,b.json".to_owned());
    }
    Ok(Method { name: name.trim().to_owned(), files })
}

fn connectivity(text: &str) -> Result<Connectivity, String> {
    text.parse::<u8>().map_err(|e| e.to_string()).and_then(Connectivity::try_from)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_values_are_usage_errors() {
        for line in [
            "rondo round show abc",
            "rondo round show ABCDEF",
            "rondo model export 12345g --out m",
            "rondo site init --site UKER --name x",
            "rondo evaluate --reference a --prediction b --connectivity 8",
            "rondo evaluate --reference a --prediction b --pictures p",
            "rondo evaluate --reference a --prediction b --pictures-per-case 101",
            "rondo compare",
            "rondo compare --method swt",
            "rondo compare --method swt=a.json,,b.json",
            "rondo cohort synth --centre mars --out d",
            "rondo cohort synth --centre uker --out d --shape 1x2",
            "rondo cohort synth --centre uker --out d --anatomy-mask m",
            "rondo lab run --plan p --workdir w",
        ] {
            let error = parse(line).unwrap_err();
            assert!(
                matches!(
                    error.kind(),
                    ErrorKind::ValueValidation | ErrorKind::MissingRequiredArgument
                ),
                "{line}: {error}"
            );
        }
    }

    #[test]
    fn global_options_stand_anywhere() {
        for line in
            ["rondo --json round list", "rondo round --json list", "rondo round list --json"]
        {
            assert!(parse(line).unwrap().global.json, "{line}");
        }
    }

    #[test]
    fn the_trainers_options_pass_through() {
        let cli = parse("rondo predict --model m.safetensors --split test --json --help").unwrap();
        let Command::Predict(passed) = cli.command else { panic!("not predict") };
        assert_eq!(
            passed.rest,
            ["--model", "m.safetensors", "--split", "test", "--json", "--help"]
        );
    }

    #[test]
    fn help_shows_the_exit_codes() {
        let help = parse("rondo help exit-codes").unwrap_err().to_string();
        assert!(help.contains("verification-failed"), "{help}");
    }
}
