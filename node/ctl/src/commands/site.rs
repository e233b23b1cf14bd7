//! `rondo site`.

use crate::args::{Global, Site, SiteInit, SiteRenew};
use crate::daemon::card_file;
use crate::exit::{Exit, Failure};
use crate::output::{Output, note};
use crate::programs;
use crate::render::day;
use crate::render::site::{renewal_json, site_json, site_text};
use rondo_proto::control::{GetSiteRequest, RenewSiteRequest, RenewalStep, RenewalView};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::Path;

pub(crate) async fn run(command: Site, global: &Global, output: Output) -> Result<(), Failure> {
    match command {
        Site::Init(init) => self::init(&init, global, output).await,
        Site::Card { out } => card(out.as_deref(), global, output),
        Site::Key { out } => key(out.as_deref(), global, output),
        Site::Status => status(global, output).await,
        Site::Renew(renew) => self::renew(&renew, global, output).await,
    }
}

/// Arguments of `rondo-node init`.
pub(crate) fn init_arguments(init: &SiteInit, home: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["init".into()];
    let mut option = |name: &str, value: OsString| args.extend([name.into(), value]);
    option("--home", home.into());
    option("--site", init.site.to_string().into());
    option("--name", init.name.clone().into());
    if let Some(listen) = init.listen {
        option("--listen", listen.to_string().into());
    }
    for endpoint in &init.endpoints {
        option("--endpoint", endpoint.into());
    }
    if let Some(file) = &init.trainer_config {
        option("--trainer-config", file.into());
    }
    if let Some(folder) = &init.runtime_dir {
        option("--runtime-dir", folder.into());
    }
    if let Some(days) = init.valid_days {
        option("--valid-days", days.to_string().into());
    }
    args
}

async fn init(init: &SiteInit, global: &Global, output: Output) -> Result<(), Failure> {
    let home = global.home()?;
    let program = programs::find(programs::NODE)?;
    programs::printed(&program, &init_arguments(init, &home)).await?;
    let path = home.join("card.json");
    let (_, card) = card_file(&path)?;
    let body = json!({
        "home": home,
        "site": card.site,
        "name": card.name,
        "fingerprint": card.fingerprint(),
        "valid_until": card.valid_until,
        "card": path,
    });
    output.give("rondo.site-init/1", body, || {
        format!(
            "Made site {} ({}) in {}\nfingerprint  {}\nGive {} to the other sites, and read them the fingerprint by phone.\nStart the daemon with: rondo-node run --home {}",
            card.site,
            card.name,
            home.display(),
            card.fingerprint(),
            path.display(),
            home.display(),
        )
    })
}

fn card(out: Option<&Path>, global: &Global, output: Output) -> Result<(), Failure> {
    let path = global.home()?.join("card.json");
    let (bytes, card) = card_file(&path)?;
    if let Some(out) = out {
        rondo_imaging::durable::write(out, &bytes)
            .map_err(|e| Failure::storage(format!("writing the card to {}", out.display()), &e))?;
    }
    let signed: Value = serde_json::from_slice(&bytes)
        .map_err(|e| Failure::new(Exit::BadInput, format!("reading {}: {e}", path.display())))?;
    let body = json!({"site": card.site, "fingerprint": card.fingerprint(), "card": signed});
    output.give("rondo.site-card/1", body, || match out {
        Some(out) => format!("Card of {} written to {}", card.site, out.display()),
        None => String::from_utf8_lossy(&bytes).trim_end().to_owned(),
    })?;
    if !output.json {
        note(&format!("fingerprint of {}: {}", card.site, card.fingerprint()));
    }
    Ok(())
}

fn key(out: Option<&Path>, global: &Global, output: Output) -> Result<(), Failure> {
    let (_, card) = card_file(&global.home()?.join("card.json"))?;
    let pem = card.signing_key.to_pem();
    if let Some(out) = out {
        rondo_imaging::durable::write(out, pem.as_bytes())
            .map_err(|e| Failure::storage(format!("writing the key to {}", out.display()), &e))?;
    }
    let body = json!({"site": card.site, "key": pem});
    output.give("rondo.site-key/1", body, || match out {
        Some(out) => format!("Public signing key of {} written to {}", card.site, out.display()),
        None => pem.trim_end().to_owned(),
    })
}

async fn status(global: &Global, output: Output) -> Result<(), Failure> {
    let mut daemon = global.daemon().await?;
    let site = daemon
        .get_site(GetSiteRequest {})
        .await
        .map_err(|status| Failure::refused("asking the daemon how it is", &status))?
        .into_inner();
    output.give("rondo.site-status/1", site_json(&site), || site_text(&site))
}

async fn renew(renew: &SiteRenew, global: &Global, output: Output) -> Result<(), Failure> {
    let step = match renew {
        SiteRenew { activate: true, .. } => RenewalStep::Activate,
        SiteRenew { card_only: true, .. } => RenewalStep::CardOnly,
        _ => RenewalStep::Prepare,
    };
    let mut daemon = match global.daemon().await {
        // A daemon does not run with an expired card, so its card can be renewed without it.
        Err(e) if renew.card_only && e.exit == Exit::Unreachable => {
            return renew_offline(renew, global, output).await;
        }
        daemon => daemon?,
    };
    let request = RenewSiteRequest {
        step: step.into(),
        valid_days: renew.valid_days.unwrap_or_default(),
        force: renew.force,
    };
    let attempted = match step {
        RenewalStep::Activate => "changing over to the next keys",
        RenewalStep::CardOnly => "renewing the card",
        _ => "preparing next keys",
    };
    let renewed = daemon
        .renew_site(request)
        .await
        .map_err(|status| Failure::refused(attempted, &status))?
        .into_inner();
    output.give("rondo.site-renewal/1", renewal_json(&renewed), || renewal_text(step, &renewed))
}

fn renewal_text(step: RenewalStep, renewed: &RenewalView) -> String {
    let site = &renewed.site;
    let mut lines = match step {
        RenewalStep::Activate => {
            vec![format!("{site} uses its new keys; fingerprint {}", renewed.fingerprint)]
        }
        RenewalStep::CardOnly => vec![format!("{site} has a new card for the same keys")],
        _ => vec![
            format!("{site} has next keys; fingerprint {}", renewed.next_fingerprint),
            "Change over with `rondo site renew --activate` when every peer has the new card."
                .to_owned(),
        ],
    };
    lines.push(format!("card valid until  {}", day(renewed.valid_until)));
    lines.push(match renewed.waiting_for.as_slice() {
        [] => "Every peer has the new card.".to_owned(),
        sites => format!(
            "Not yet known to have it: {}. Their daemons fetch it; or give it to them for `rondo peer add`.",
            sites.join(", ")
        ),
    });
    lines.join("\n")
}

async fn renew_offline(renew: &SiteRenew, global: &Global, output: Output) -> Result<(), Failure> {
    let home = global.home()?;
    let program = programs::find(programs::NODE)?;
    let mut args: Vec<OsString> = vec!["renew-card".into(), "--home".into(), home.clone().into()];
    if let Some(days) = renew.valid_days {
        args.extend(["--valid-days".into(), days.to_string().into()]);
    }
    programs::printed(&program, &args).await?;
    let (bytes, card) = card_file(&home.join("card.json"))?;
    let renewed = RenewalView {
        site: card.site.to_string(),
        fingerprint: card.fingerprint(),
        next_fingerprint: card.next_fingerprint().unwrap_or_default(),
        valid_until: card.valid_until,
        waiting_for: Vec::new(),
        card: bytes,
    };
    output.give("rondo.site-renewal/1", renewal_json(&renewed), || {
        format!(
            "{} has a new card for the same keys, valid until {}\nIts daemon does not run; peers get the card from it once it does.",
            card.site,
            day(card.valid_until)
        )
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_option_reaches_the_daemons_init() {
        let init = SiteInit {
            site: "uker".parse().unwrap(),
            name: "UKER".into(),
            listen: Some("127.0.0.1:7443".parse().unwrap()),
            endpoints: vec!["a:1".into(), "b:2".into()],
            trainer_config: Some("t.toml".into()),
            runtime_dir: Some("/run/x".into()),
            valid_days: Some(9),
        };
        let line = init_arguments(&init, Path::new("/h")).join(" ".as_ref());
        assert_eq!(
            line,
            "init --home /h --site uker --name UKER --listen 127.0.0.1:7443 --endpoint a:1 --endpoint b:2 \
             --trainer-config t.toml --runtime-dir /run/x --valid-days 9"
        );
    }
}
