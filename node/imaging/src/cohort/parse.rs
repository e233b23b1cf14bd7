//! `cohort.toml` to [`Cohort`], with every problem found on the way.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Case, Cohort, LabelRule, MAX_CASES, Problem, Split, is_safe_id};
use crate::preprocess::{
    Background, BiasCorrection, Grid, MaskCommand, SHAPE, SPACING_MM, Settings,
};

type Span = Range<usize>;

/// Longest edge of a working grid: half a metre at 1 mm.
const GRID_MAX_EDGE: usize = 512;
const ID_FIX: &str =
    "use 1 to 64 letters, digits, `.`, `_` or `-`, beginning with a letter or digit";

struct Report {
    /// Where each line but the first begins: counting anew for every problem would take minutes.
    breaks: Vec<usize>,
    problems: Vec<Problem>,
}

impl Report {
    fn new(text: &str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at);
        Self { breaks: breaks.collect(), problems: Vec::new() }
    }

    fn line(&self, at: usize) -> usize {
        1 + self.breaks.partition_point(|line| *line < at)
    }

    fn add(&mut self, at: &Span, message: impl Into<String>, fix: impl Into<String>) {
        let line = self.line(at.start);
        self.problems.push(Problem { line, message: message.into(), fix: fix.into() });
    }
}

/// A table whose keys are taken one by one; what is left over is unknown.
struct Keys<'v> {
    at: Span,
    left: BTreeMap<&'v str, (Span, &'v Spanned<DeValue<'v>>)>,
}

impl<'v> Keys<'v> {
    fn new(at: Span, table: &'v DeTable<'v>) -> Self {
        let left = table.iter().map(|(k, v)| (k.get_ref().as_ref(), (k.span(), v))).collect();
        Self { at, left }
    }

    fn take(&mut self, key: &str) -> Option<(Span, &'v DeValue<'v>)> {
        self.left.remove(key).map(|(at, v)| (at, v.get_ref()))
    }

    fn text(&mut self, key: &str, report: &mut Report) -> Option<(Span, &'v str)> {
        match self.take(key) {
            None => {
                report.add(
                    &self.at,
                    format!("`{key}` is missing"),
                    format!("add a line {key} = \"…\""),
                );
                None
            }
            Some((at, value)) => match value.as_str() {
                Some(text) if !text.trim().is_empty() => Some((at, text)),
                Some(_) => {
                    report.add(&at, format!("`{key}` is empty"), "give it a value");
                    None
                }
                None => {
                    report.add(
                        &at,
                        format!("`{key}` is {}, not text", value.type_str()),
                        "put it in quotes",
                    );
                    None
                }
            },
        }
    }

    fn id(&mut self, key: &str, report: &mut Report) -> Option<(Span, String)> {
        let (at, text) = self.text(key, report)?;
        if is_safe_id(text) {
            return Some((at, text.to_owned()));
        }
        report.add(&at, format!("`{key}` {text:?} is not safe as a file name"), ID_FIX);
        None
    }

    /// A text that may be left out.
    fn optional(&mut self, key: &str, report: &mut Report) -> Option<(Span, &'v str)> {
        if self.left.contains_key(key) { self.text(key, report) } else { None }
    }

    /// One of some words, that may be left out.
    fn one_of<T: Copy>(
        &mut self,
        key: &str,
        words: &[(&str, T)],
        report: &mut Report,
    ) -> Option<(Span, T)> {
        let (at, value) = self.take(key)?;
        let found = value.as_str().and_then(|v| words.iter().find(|(word, _)| *word == v));
        if found.is_none() {
            let list: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            report.add(
                &at,
                format!("`{key}` has an unknown value"),
                format!("write {}", list.join(" or ")),
            );
        }
        found.map(|(_, value)| (at, *value))
    }

    /// A list of texts, that may be left out.
    fn texts(&mut self, key: &str, report: &mut Report) -> Option<(Span, Vec<String>)> {
        let (at, value) = self.take(key)?;
        let one = |v: &Spanned<DeValue>| {
            v.get_ref().as_str().filter(|text| !text.trim().is_empty()).map(str::to_owned)
        };
        let texts = value.as_array().and_then(|a| a.iter().map(one).collect::<Option<Vec<_>>>());
        if texts.is_none() {
            report.add(
                &at,
                format!("`{key}` is not a list of texts"),
                format!("write it as {key} = [\"…\"]"),
            );
        }
        texts.map(|v| (at, v))
    }

    fn labels(&mut self, key: &str, report: &mut Report) -> Option<(Span, Vec<u16>)> {
        let (at, value) = self.take(key)?;
        let values = value.as_array().and_then(|array| {
            let one = |v: &Spanned<DeValue>| {
                let n = v.get_ref().as_integer()?;
                u16::from_str_radix(n.as_str(), n.radix()).ok().filter(|n| *n > 0)
            };
            array.iter().map(one).collect::<Option<Vec<_>>>()
        });
        if values.is_none() {
            report.add(
                &at,
                format!("`{key}` is not a list of label values"),
                format!("write whole numbers from 1 to 65535, for example {key} = [1, 3]"),
            );
        }
        values.map(|v| (at, v))
    }

    fn finish(self, known: &str, report: &mut Report) {
        for (key, (at, _)) in self.left {
            report.add(
                &at,
                format!("unknown key `{key}`"),
                format!("remove it; known here are {known}"),
            );
        }
    }
}

pub(super) fn parse(text: &str, folder: &Path) -> Result<Cohort, Vec<Problem>> {
    let mut report = Report::new(text);
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let message = error.message().trim().replace('\n', ", ");
        report.add(&error.span().unwrap_or(0..0), message, "correct the TOML syntax");
    }
    if !report.problems.is_empty() {
        return Err(report.problems);
    }
    let mut keys = Keys::new(0..0, root.get_ref());
    let name = keys.id("name", &mut report).map(|(_, n)| n);
    let label = label_rule(&mut keys, &mut report);
    let preprocess = preprocess(&mut keys, &mut report);
    let cases = cases(&mut keys, folder, &mut report);
    keys.finish(
        "name, label_include, label_ignore, label_rois, bias_correction, grid, grid_spacing_mm, grid_shape, \
         background, brain_mask_command and [[case]]",
        &mut report,
    );
    across_cases(&cases, &mut report);
    report.problems.sort_by_key(|p| p.line);
    match name {
        Some(name) if report.problems.is_empty() => Ok(Cohort {
            name,
            label,
            preprocess,
            cases: cases.into_iter().map(|(_, c)| c).collect(),
        }),
        _ => Err(report.problems),
    }
}

fn label_rule(keys: &mut Keys, report: &mut Report) -> LabelRule {
    let mut rule = LabelRule::default();
    if let Some((at, include)) = keys.labels("label_include", report) {
        if include.is_empty() {
            report.add(
                &at,
                "`label_include` is empty",
                "name the label values that are metastasis",
            );
        }
        rule.include = include;
    }
    if let Some((at, ignore)) = keys.labels("label_ignore", report) {
        if let Some(both) = ignore.iter().find(|v| rule.include.contains(v)) {
            report.add(
                &at,
                format!("label value {both} is both included and ignored"),
                "keep it in one list",
            );
        }
        rule.ignore = ignore;
    }
    rule.rois = keys.texts("label_rois", report).map(|(_, names)| names).unwrap_or_default();
    rule
}

fn preprocess(keys: &mut Keys, report: &mut Report) -> Settings {
    let mut settings = Settings::default();
    let background = [("zscore", Background::Zscore), ("zero", Background::Zero)];
    if let Some((_, value)) = keys.one_of("background", &background, report) {
        settings.background = value;
    }
    let bias = [("n4", BiasCorrection::N4), ("none", BiasCorrection::None)];
    if let Some((_, value)) = keys.one_of("bias_correction", &bias, report) {
        settings.bias_correction = value;
    }
    let native = keys
        .one_of("grid", &[("isotropic", false), ("native", true)], report)
        .is_some_and(|(_, native)| native);
    let spacing = keys.take("grid_spacing_mm").map(|(at, value)| (at, spacing_mm(value)));
    if let Some((at, None)) = &spacing {
        report.add(at, "`grid_spacing_mm` is no distance", "write millimetres from 0.1 to 10");
    }
    let shape = keys.take("grid_shape").map(|(at, value)| (at, grid_shape(value)));
    if let Some((at, None)) = &shape {
        report.add(
            at,
            "`grid_shape` is no shape",
            format!(
                "write three numbers of voxels from 1 to {GRID_MAX_EDGE}, for example {SHAPE:?}"
            ),
        );
    }
    if native && let Some(at) = spacing.as_ref().map(|s| &s.0).or(shape.as_ref().map(|s| &s.0)) {
        report.add(
            at,
            "a native grid has the spacing and shape of the image",
            "remove this line, or write grid = \"isotropic\"",
        );
    }
    settings.grid = if native {
        Grid::Native
    } else {
        Grid::Isotropic {
            spacing_mm: spacing.and_then(|s| s.1).unwrap_or(SPACING_MM),
            shape: shape.and_then(|s| s.1).unwrap_or(SHAPE),
        }
    };
    if let Some((at, words)) = keys.texts("brain_mask_command", report) {
        match MaskCommand::try_from(words) {
            Ok(command) => settings.brain_mask_command = Some(command),
            Err(why) => report.add(&at, "`brain_mask_command` is incomplete", why),
        }
    }
    settings
}

fn spacing_mm(value: &DeValue<'_>) -> Option<f64> {
    let mm = match value {
        DeValue::Float(v) => v.as_str().parse::<f64>().ok()?,
        DeValue::Integer(v) => f64::from(u8::from_str_radix(v.as_str(), v.radix()).ok()?),
        _ => return None,
    };
    (0.1..=10.0).contains(&mm).then_some(mm)
}

fn grid_shape(value: &DeValue<'_>) -> Option<[usize; 3]> {
    let edge = |v: &Spanned<DeValue>| {
        let n = v.get_ref().as_integer()?;
        let n = usize::from_str_radix(n.as_str(), n.radix()).ok()?;
        (1..=GRID_MAX_EDGE).contains(&n).then_some(n)
    };
    let edges: Option<Vec<usize>> = value.as_array()?.iter().map(edge).collect();
    edges?.try_into().ok()
}

fn cases(keys: &mut Keys, folder: &Path, report: &mut Report) -> Vec<(Span, Case)> {
    let fix = "add a [[case]] with id, patient, image, label and split";
    let Some((at, value)) = keys.take("case") else {
        report.add(&(0..0), "the cohort has no cases", fix);
        return Vec::new();
    };
    let Some(array) = value.as_array() else {
        report.add(
            &at,
            "`case` is not a list of tables",
            "head every case with [[case]], in double brackets",
        );
        return Vec::new();
    };
    if array.is_empty() {
        report.add(&at, "the cohort has no cases", fix);
    }
    if array.len() > MAX_CASES {
        report.add(
            &at,
            format!("{} cases are too many", array.len()),
            format!("split it; at most {MAX_CASES}"),
        );
        return Vec::new();
    }
    let one = |value: &Spanned<DeValue>| {
        let Some(table) = value.get_ref().as_table() else {
            report.add(&value.span(), "a case is not a table", "head every case with [[case]]");
            return None;
        };
        let mut keys = Keys::new(value.span(), table);
        let id = keys.id("id", report);
        let patient = keys.id("patient", report);
        let [image, label] =
            ["image", "label"].map(|key| keys.text(key, report).map(|(_, path)| folder.join(path)));
        let brain_mask = keys.optional("brain_mask", report).map(|(_, path)| folder.join(path));
        let series = keys.optional("series", report).map(|(_, uid)| uid.to_owned());
        let split = keys.text("split", report).and_then(|(at, name)| {
            let split = Split::ALL.into_iter().find(|s| s.name() == name);
            if split.is_none() {
                report.add(
                    &at,
                    format!("unknown split {name:?}"),
                    "write \"train\", \"validation\" or \"test\"",
                );
            }
            split
        });
        keys.finish("id, patient, image, series, label, brain_mask and split", report);
        let (at, id) = id?;
        let (_, patient) = patient?;
        Some((
            at,
            Case { id, patient, image: image?, series, label: label?, brain_mask, split: split? },
        ))
    };
    array.iter().filter_map(one).collect()
}

/// Ids are unique, also on file systems that ignore case; no patient is in two splits.
fn across_cases(cases: &[(Span, Case)], report: &mut Report) {
    let mut ids: HashMap<String, usize> = HashMap::new();
    let mut splits: HashMap<&str, (Split, usize)> = HashMap::new();
    for (at, case) in cases {
        let line = report.line(at.start);
        let first = ids.insert(case.id.to_ascii_lowercase(), line);
        if let Some(first) = first {
            report.add(
                at,
                format!("id {:?} is already used in line {first}", case.id),
                "give every case its own id",
            );
        }
        let (split, first) = *splits.entry(&case.patient).or_insert((case.split, line));
        if split != case.split {
            report.add(
                at,
                format!(
                    "patient {:?} is in {} here and in {} in line {first}",
                    case.patient,
                    case.split.name(),
                    split.name()
                ),
                "keep all volumes of a patient in one split",
            );
        }
    }
}
