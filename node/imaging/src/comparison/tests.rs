#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

use serde_json::{Value, json};

use super::*;
use crate::metrics::{LesionResult, WholeMask, pool};

/// Ten lesions of which `found` were found, with this Dice.
fn document(found: usize, dice: f64) -> Value {
    let lesion = |n: usize| LesionResult {
        volume_mm3: 10.0 + n as f64,
        detected: n < found,
        dice: (n < found).then_some(dice),
        surface_dice: (n < found).then_some(0.9),
        hd95_mm: (n < found).then_some(1.0),
        hd_mm: None,
    };
    let cases = vec![CaseResult {
        id: "a".into(),
        reference_lesions: 10,
        predicted_components: 12,
        detected: found,
        missed: 10 - found,
        false_positives: 2,
        whole_mask: WholeMask {
            dice: 0.5,
            surface_dice: None,
            hd95_mm: None,
            hd_mm: None,
            both_empty: false,
        },
        lesions: (0..10).map(lesion).collect(),
    }];
    let pooled = pool(&cases);
    let evaluation =
        Evaluation { settings: Settings::default(), cases, pooled, pooled_in_brain: None };
    let mut value = serde_json::to_value(evaluation).unwrap();
    value["schema"] = json!("rondo.evaluate/1");
    value
}

fn put(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn method(dir: &Path, name: &str, found: &[usize]) -> Method {
    let file = |(n, found): (usize, &usize)| {
        let dice = 0.7 + 0.01 * n as f64;
        put(dir, &format!("{name}-{n}.json"), &document(*found, dice).to_string())
    };
    Method { name: name.into(), files: found.iter().enumerate().map(file).collect() }
}

#[test]
fn mean_spread_and_both_tests() {
    let dir = tempfile::tempdir().unwrap();
    let methods =
        [method(dir.path(), "swt", &[5, 6, 7]), method(dir.path(), "cwt", &[8, 9, 9, 10])];
    let made = compare(&methods).unwrap();
    assert_eq!((made.cases, made.reference_lesions, made.notices.len()), (1, 10, 0));
    let sensitivity = &made.figures[0];
    assert_eq!(sensitivity.figure, "sensitivity");
    let swt = &sensitivity.methods[0];
    assert!((swt.summary.mean.unwrap() - 0.6).abs() < 1e-12);
    assert!((swt.summary.sd.unwrap() - 0.1).abs() < 1e-12);
    // scipy.stats.ttest_ind([.5, .6, .7], [.8, .9, .9, 1.]), equal_var True and False.
    let test = &sensitivity.tests[0];
    let (student, welch) = (test.student.unwrap(), test.welch.unwrap());
    for (ours, theirs) in [
        (student.t, -4.391550328268401),
        (student.p, 0.007077597925498265),
        (welch.t, -4.2426406871192865),
        (welch.p, 0.014298715910935077),
    ] {
        assert!((ours - theirs).abs() < 1e-9, "{ours} against {theirs}");
    }
    let json = serde_json::to_value(&made).unwrap();
    assert_eq!(json["figures"][0]["methods"][1]["n"], 4);
    assert_eq!(json["figures"][0]["methods"][1]["values"][3], 1.0);
    assert!(json.get("figures_in_brain").is_none());
}

#[test]
fn undefined_figures_are_left_out_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let made =
        compare(&[method(dir.path(), "a", &[0, 5, 6]), method(dir.path(), "b", &[5])]).unwrap();
    let dice = made.figures.iter().find(|f| f.figure == "dice").unwrap();
    assert_eq!((dice.methods[0].summary.n, dice.methods[0].values[0]), (2, None));
    assert_eq!((dice.tests[0].student, dice.methods[1].summary.sd), (None, None));
    assert!(made.notices[0].contains("one repeat"), "{:?}", made.notices);
}

#[test]
fn files_are_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let good = put(path, "good.json", &document(5, 0.7).to_string());
    let refused = |text: &str, why: &str| {
        let bad = put(path, "bad.json", text);
        let methods = [Method { name: "m".into(), files: vec![good.clone(), bad] }];
        let error = compare(&methods).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("bad.json"), "{why}: {error}");
    };
    let changed = |change: fn(&mut Value)| {
        let mut value = document(5, 0.7);
        change(&mut value);
        value.to_string()
    };
    refused("", "EOF");
    refused("{\"schema\":\"rondo.evaluate/1\"}", "missing field");
    refused(&format!("{{\"x\":{}", "[".repeat(100_000)), "EOF while parsing");
    refused(&changed(|v| v["schema"] = json!("rondo.evaluate/2")), "its schema");
    refused(&changed(|v| v["pooled"]["sensitivity"] = json!(0.99)), "pooled sensitivity");
    refused(&changed(|v| v["pooled"]["detected"] = json!(10)), "pooled count");
    refused(&changed(|v| v["cases"][0]["detected"] = json!(u64::MAX)), "the counts of case");
    refused(&changed(|v| v["cases"][0]["lesions"][0]["volume_mm3"] = json!(-1.0)), "cannot be");
    refused(&changed(|v| v["cases"][0]["lesions"][9]["dice"] = json!(1.0)), "cannot be");
    refused(&changed(|v| v["cases"][0]["id"] = json!("b")), "different cases");
    refused(
        &changed(|v| v["cases"][0]["lesions"][0]["volume_mm3"] = json!(1e300)),
        "reference lesions",
    );
    refused(&changed(|v| v["settings"]["connectivity"] = json!(6)), "different settings");
    refused(&changed(|v| v["settings"]["connectivity"] = json!(7)), "6, 18 or 26");
    let huge = document(5, 0.7).to_string().replacen("0.7", "1e999", 1);
    refused(&huge, "number out of range");
    let odd = document(5, 7.0).to_string();
    refused(&odd, "dice is out of its range");
    refused(
        &changed(|v| {
            v["cases"][0]["predicted_components"] = json!(u64::MAX);
            v["cases"][0]["false_positives"] = json!(u64::MAX);
        }),
        "the counts of case",
    );
}

#[test]
fn figures_inside_the_brain_are_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let good = put(path, "good.json", &document(5, 0.7).to_string());
    let with = |name: &str, value: Value| {
        let mut document = document(5, 0.7);
        document["pooled_in_brain"] = document["pooled"].clone();
        document["pooled_in_brain"][name] = value;
        put(path, "inside.json", &document.to_string())
    };
    let methods = |file| [Method { name: "m".into(), files: vec![good.clone(), file] }];
    let refused = |name: &str, value: Value, why: &str| {
        let error = compare(&methods(with(name, value))).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("inside.json"), "{name}: {error}");
    };
    // As they are, they are taken: 5 of 10 found, 2 false positives, 1 case.
    assert!(compare(&methods(with("detected", json!(5)))).is_ok());
    refused("detected", json!(6), "more lesions were found inside the brain");
    refused("detected", json!(4), "its sensitivity inside the brain does not follow");
    refused("false_positives", json!(1), "its precision inside the brain does not follow");
    refused("false_positives", json!(u64::MAX), "too many");
    refused("cases", json!(2), "about other cases");
    for (name, value) in
        [("sensitivity", 0.6), ("precision", 0.72), ("fp_per_case", 1.0), ("f1", 0.6), ("f2", 0.6)]
    {
        let why = format!("its {name} inside the brain does not follow from its counts");
        refused(name, json!(value), &why);
        refused(name, Value::Null, &why);
    }
    refused("dice", Value::Null, "its dice inside the brain does not fit the 5 lesions");
    refused("dice", json!(1.5), "dice is out of its range");
}

#[test]
fn a_file_without_figures_inside_the_brain_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut inside = document(5, 0.7);
    // Outside the brain lay one of the two false positives.
    inside["pooled_in_brain"] = inside["pooled"].clone();
    for (name, value) in
        [("false_positives", 1.0), ("precision", 5.0 / 6.0), ("fp_per_case", 1.0), ("f1", 0.625)]
    {
        inside["pooled_in_brain"][name] = json!(value);
    }
    inside["pooled_in_brain"]["false_positives"] = json!(1);
    inside["pooled_in_brain"]["f2"] = json!(5.0 * 5.0 / (5.0 * 5.0 + 4.0 * 5.0 + 1.0));
    let file = |name: &str, value: &Value| put(dir.path(), name, &value.to_string());
    let run = |files: Vec<PathBuf>| compare(&[Method { name: "m".into(), files }]).unwrap();
    let with = [file("a.json", &inside), file("b.json", &inside)];
    let without = file("without.json", &document(5, 0.7));
    let said = |made: &Comparison| made.notices.iter().any(|n| n.contains("inside the brain"));

    let made = run(with.to_vec());
    let precision = &made.figures_in_brain.as_ref().unwrap()[1].methods[0];
    assert_eq!((precision.summary.mean, said(&made)), (Some(5.0 / 6.0), false));
    let made = run(vec![with[0].clone(), without.clone(), with[1].clone()]);
    assert!(made.figures_in_brain.is_none());
    let notice = made.notices.iter().find(|n| n.contains("inside the brain")).unwrap();
    assert!(notice.contains("1 of 3 files") && notice.contains("without.json"), "{notice}");
    let made = run(vec![without]);
    assert!(made.figures_in_brain.is_none() && !said(&made), "nothing was asked for");
}

#[test]
fn what_is_asked_must_make_sense() {
    let dir = tempfile::tempdir().unwrap();
    let a = method(dir.path(), "a", &[5, 6]);
    let text = |methods: &[Method]| compare(methods).unwrap_err().to_string();
    assert!(text(&[]).contains("1 to 16"));
    assert!(text(&[a.clone(), a.clone()]).contains("two methods are named"));
    let twice = Method { name: "b".into(), files: vec![a.files[0].clone()] };
    assert!(text(&[a.clone(), twice]).contains("given twice"));
    assert!(text(&[Method { name: "c".into(), files: vec![] }]).contains("no evaluation file"));
    let missing = Method { name: "d".into(), files: vec![dir.path().join("none.json")] };
    assert!(text(&[missing]).contains("none.json"));
    let link = dir.path().join("link.json");
    std::os::unix::fs::symlink(&a.files[0], &link).unwrap();
    assert!(
        text(&[a.clone(), Method { name: "e".into(), files: vec![link] }]).contains("given twice")
    );
}
