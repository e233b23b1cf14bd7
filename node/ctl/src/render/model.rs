//! Checkpoints and their passports.

use super::{bytes, figure, moment, short, table};
use rondo::manifest::Manifest;
use rondo_proto::control::{HopView, ModelView, StoreReport};
use rondo_proto::convert::hop_view;
use serde_json::{Value, json};

pub(crate) fn hops(manifests: &[Manifest]) -> Vec<HopView> {
    manifests.iter().map(hop_view).collect()
}

pub(crate) fn hop_json(h: &HopView) -> Value {
    json!({
        "visit": h.visit,
        "cycle": h.cycle,
        "site": h.site,
        "weights": h.weights,
        "training_cases": h.training_cases,
        "epochs": h.epochs,
        "updates": h.updates,
        "received_dice": h.received_dice,
        "trained_dice": h.trained_dice,
        "signed_at": h.signed_at,
        "filters": h.filters,
    })
}

/// Who trained, on how much, with what result.
pub(crate) fn hops_text(hops: &[HopView]) -> String {
    let head = [
        "hop",
        "cycle",
        "site",
        "cases",
        "epochs",
        "updates",
        "Dice before",
        "after",
        "checkpoint",
        "signed",
    ];
    let row = |h: &HopView| {
        vec![
            h.visit.to_string(),
            h.cycle.to_string(),
            h.site.clone(),
            h.training_cases.to_string(),
            h.epochs.to_string(),
            h.updates.to_string(),
            figure(h.received_dice, 3),
            figure(h.trained_dice, 3),
            short(&h.weights).to_owned(),
            moment(h.signed_at),
        ]
    };
    let mut text = table(&head, &[0, 1, 3, 4, 5, 6, 7], hops.iter().map(row).collect());
    for h in hops.iter().filter(|h| !h.filters.is_empty()) {
        text.push_str(&format!("\nhop {}, filters: {}", h.visit, h.filters.join(", ")));
    }
    text
}

pub(crate) fn model_json(m: &ModelView) -> Value {
    json!({
        "weights": m.weights,
        "bytes": m.bytes,
        "round": m.round,
        "visit": m.visit,
        "site": m.site,
        "hops": m.hops.iter().map(hop_json).collect::<Vec<_>>(),
    })
}

pub(crate) fn models_text(models: &[ModelView]) -> String {
    if models.is_empty() {
        return "No checkpoints in this site's store yet.".to_owned();
    }
    let head = ["checkpoint", "size", "round", "visit", "trained by"];
    let row = |m: &ModelView| {
        vec![
            short(&m.weights).to_owned(),
            bytes(m.bytes),
            short(&m.round).to_owned(),
            m.visit.to_string(),
            m.site.clone(),
        ]
    };
    table(&head, &[1, 3], models.iter().map(row).collect())
}

/// What a check of the store found.
pub(crate) fn store_text(report: &StoreReport) -> String {
    let mut text = format!(
        "{} intact checkpoint(s), {}; {} on the way in",
        report.checkpoints,
        bytes(report.bytes),
        report.incoming
    );
    for (what, names) in [
        ("damaged", &report.damaged),
        ("missing, but needed by an open round", &report.missing),
        ("of no round that this site knows", &report.unreferenced),
        ("set aside in the folder `quarantine`", &report.quarantined),
    ] {
        for name in names {
            text.push_str(&format!("\n{what}: {name}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_without_validation_shows_a_dash_and_null() {
        let hop = HopView {
            visit: 1,
            site: "uker".into(),
            trained_dice: Some(0.5),
            filters: vec!["clip l2 1".into()],
            ..Default::default()
        };
        assert_eq!(hop_json(&hop)["received_dice"], Value::Null);
        let text = hops_text(&[hop]);
        assert!(text.contains("0.500") && text.contains('–'), "{text}");
        assert!(text.contains("hop 1, filters: clip l2 1"), "{text}");
    }
}
