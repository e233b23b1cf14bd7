//! Every checkpoint on every site's test split: predicted by the trainer, judged lesion by lesion.

use super::board::Board;
use super::federation::Made;
use crate::exit::{Exit, Failure};
use crate::programs::train_or_predict;
use crate::render::short;
use rondo_imaging::cohort::{Case, Cohort, Split};
use rondo_imaging::metrics::{self, CaseResult, EvaluationCase, Options, Pooled, pool};
use rondo_imaging::nifti;
use rondo_imaging::source::{self, Kind};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A site's cohort as the lab knows it.
#[derive(Debug, Clone)]
pub(crate) struct Centre {
    pub(crate) site: String,
    pub(crate) file: PathBuf,
    pub(crate) cohort: Cohort,
}

/// A test case without a prediction.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Aside {
    pub(crate) site: String,
    pub(crate) case: String,
}

/// How one checkpoint does on one test set.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct TestSet {
    /// The site, or `all`.
    pub(crate) site: String,
    pub(crate) pooled: Pooled,
    /// With predictions outside the brain removed; none for all together if sites code labels differently.
    pub(crate) pooled_in_brain: Option<Pooled>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) cases: Vec<CaseResult>,
}

/// How one checkpoint does.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Judgement {
    /// Each site in the order of the plan, then all together.
    pub(crate) sets: Vec<TestSet>,
    pub(crate) set_aside: Vec<Aside>,
    pub(crate) notices: Vec<String>,
    pub(crate) trainer_peak_bytes: u64,
}

impl Judgement {
    /// All test sets together.
    pub(crate) fn all(&self) -> Option<&TestSet> {
        self.sets.last()
    }
}

/// Judges every distinct checkpoint; by the digest of its weights.
pub(crate) async fn judge(
    made: &[Made],
    centres: &[Centre],
    predictions: &Path,
    device: &str,
    board: &Board,
) -> Result<BTreeMap<String, Judgement>, Failure> {
    let mut distinct: Vec<&Made> = Vec::new();
    for model in made {
        if !distinct.iter().any(|m| m.weights == model.weights) {
            distinct.push(model);
        }
    }
    let mut judgements = BTreeMap::new();
    for (n, model) in distinct.iter().enumerate() {
        let name = format!("checkpoint {} of {} (visit {})", n + 1, distinct.len(), model.visit);
        let folder = predictions.join(short(&model.weights));
        let judgement = judge_one(&model.file, centres, &folder, device, &name, board).await?;
        if let Some(all) = judgement.all() {
            let p = &all.pooled;
            board.say(&format!(
                "{name}: found {} of {} lesions, {} false positives, on all test sets",
                p.detected, p.reference_lesions, p.false_positives
            ));
        }
        judgements.insert(model.weights.clone(), judgement);
    }
    Ok(judgements)
}

async fn judge_one(
    model: &Path,
    centres: &[Centre],
    folder: &Path,
    device: &str,
    name: &str,
    board: &Board,
) -> Result<Judgement, Failure> {
    let mut judgement = Judgement::default();
    let mut all = Vec::new();
    for centre in centres {
        board.now(&format!("{name}: predicting the test cases of {}", centre.site));
        let out = folder.join(&centre.site);
        let outcome = train_or_predict(&arguments(model, centre, &out, device), |event| {
            if let Some(case) = event.get("id").and_then(Value::as_str) {
                board.now(&format!("{name}: predicted {case}"));
            }
        })
        .await?;
        judgement.notices.extend(outcome.notices);
        judgement.trainer_peak_bytes = judgement.trainer_peak_bytes.max(outcome.peak_bytes);
        let (cases, missing) = predicted(&centre.cohort, &out)?;
        let site = centre.site.clone();
        judgement
            .set_aside
            .extend(missing.into_iter().map(|case| Aside { site: site.clone(), case }));
        judgement.sets.push(test_set(site, cases.clone(), &centre.cohort.label.include).await?);
        all.extend(cases);
    }
    let pooled = pool(judgement.sets.iter().flat_map(|set| &set.cases));
    let labels = |c: &Centre| c.cohort.label.include.clone();
    let same = centres.windows(2).all(|pair| matches!(pair, [a, b] if labels(a) == labels(b)));
    let pooled_in_brain = match centres.first().filter(|_| same) {
        Some(centre) => test_set("all".to_owned(), all, &labels(centre)).await?.pooled_in_brain,
        None => None,
    };
    let together = TestSet { site: "all".to_owned(), pooled, pooled_in_brain, cases: Vec::new() };
    judgement.sets.push(together);
    Ok(judgement)
}

fn arguments(model: &Path, centre: &Centre, out: &Path, device: &str) -> Vec<OsString> {
    let options: [(&str, &std::ffi::OsStr); 5] = [
        ("--model", model.as_os_str()),
        ("--cohort", centre.file.as_os_str()),
        ("--split", Split::Test.name().as_ref()),
        ("--out", out.as_os_str()),
        ("--device", device.as_ref()),
    ];
    let mut args = vec![OsString::from("predict")];
    args.extend(options.into_iter().flat_map(|(name, value)| [name.into(), value.to_owned()]));
    args
}

/// Test cases with a prediction, and the ids of those without.
fn predicted(
    cohort: &Cohort,
    folder: &Path,
) -> Result<(Vec<EvaluationCase>, Vec<String>), Failure> {
    let (mut cases, mut missing) = (Vec::new(), Vec::new());
    for case in cohort.split(Split::Test) {
        let prediction = folder.join(format!("{}.nii.gz", case.id));
        if prediction.exists() {
            cases.push(EvaluationCase {
                id: case.id.clone(),
                reference: reference(cohort, case, folder)?,
                prediction,
                brain_mask: case.brain_mask.clone(),
            });
        } else {
            missing.push(case.id.clone());
        }
    }
    Ok((cases, missing))
}

/// The label of a case as NIfTI: its file, or contours and DICOM segmentations as voxels.
fn reference(cohort: &Cohort, case: &Case, folder: &Path) -> Result<PathBuf, Failure> {
    let bad = |e: source::Error| Failure::new(Exit::BadInput, e);
    if Kind::of(&case.label).map_err(bad)? == Kind::Nifti {
        return Ok(case.label.clone());
    }
    let headers = source::read_geometry(&case.image, case.series.as_deref()).map_err(bad)?;
    let series = headers.series.as_ref();
    let label = source::read_label(&case.label, &headers.geometry, series, &cohort.label);
    let value = cohort.label.include.first().copied().unwrap_or(1);
    let label = label.map_err(bad)?.volume.map(|v| u16::from(*v) * value);
    let folder = folder.join("reference");
    let path = folder.join(format!("{}.nii.gz", case.id));
    std::fs::create_dir_all(&folder)
        .map_err(|e| Failure::new(Exit::Storage, format!("creating {}: {e}", folder.display())))?;
    nifti::write(&path, &label).map_err(|e| Failure::new(Exit::Storage, e))?;
    Ok(path)
}

async fn test_set(
    site: String,
    cases: Vec<EvaluationCase>,
    labels: &[u16],
) -> Result<TestSet, Failure> {
    let options = Options { labels: labels.to_vec(), ..Options::default() };
    let evaluated =
        tokio::task::spawn_blocking(move || metrics::evaluate(&cases, &options, &|_| {}))
            .await
            .map_err(|e| Failure::new(Exit::Internal, format!("judging predictions: {e}")))?
            .map_err(|e| {
                Failure::new(Exit::BadInput, format!("judging the test cases of {site}: {e}"))
            })?;
    Ok(TestSet {
        site,
        pooled: evaluated.pooled,
        pooled_in_brain: evaluated.pooled_in_brain,
        cases: evaluated.cases,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const COHORT: &str = r#"
name = "uker"
[[case]]
id = "a"
patient = "p"
image = "a.nii"
label = "a-label.nii"
brain_mask = "a-brain.nii"
split = "test"
[[case]]
id = "b"
patient = "q"
image = "b.nii"
label = "b-label.nii"
brain_mask = "b-brain.nii"
split = "train"
"#;

    #[test]
    fn a_test_case_without_prediction_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let cohort = Cohort::parse(COHORT, folder.path()).unwrap();
        let (cases, missing) = predicted(&cohort, folder.path()).unwrap();
        assert!(cases.is_empty());
        assert_eq!(missing, ["a"]);
        for file in ["a.nii.gz", "a-label.nii"] {
            std::fs::File::create(folder.path().join(file)).unwrap();
        }
        assert_eq!(predicted(&cohort, folder.path()).unwrap().0[0].id, "a");
    }
}
