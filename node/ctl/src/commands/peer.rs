//! `rondo peer`.

use crate::args::{Global, Peer};
use crate::commands::confirm;
use crate::daemon::{card_file, open_card};
use crate::exit::{Exit, Failure};
use crate::output::{Output, note};
use crate::render::day;
use crate::render::site::{peer_json, peers_text, ping_json, ping_text};
use rondo::ids::SiteId;
use rondo::trust::SiteCard;
use rondo_proto::control::{AddPeerRequest, ListPeersRequest, PeerRequest};
use serde_json::json;
use std::io::IsTerminal as _;
use std::path::Path;

pub(crate) async fn run(command: Peer, global: &Global, output: Output) -> Result<(), Failure> {
    match command {
        Peer::Add { card, fingerprint } => add(&card, fingerprint, global, output).await,
        Peer::List => list(global, output).await,
        Peer::Revoke { site, yes } => revoke(&site, yes, global, output).await,
        Peer::Ping { site } => ping(&site, global, output).await,
    }
}

async fn add(
    path: &Path,
    fingerprint: Option<String>,
    global: &Global,
    output: Output,
) -> Result<(), Failure> {
    let (bytes, card) = card_file(path)?;
    let fingerprint = match fingerprint {
        Some(given) => compare(&given, &card)?,
        None if renews_known(&card, global).await? => {
            note(&format!(
                "{} is known: the card is signed by a key that is trusted already",
                card.site
            ));
            card.fingerprint()
        }
        None => ask(&card)?,
    };
    let request = AddPeerRequest { card: bytes, fingerprint };
    let attempted = format!("adding {} to the roster", card.site);
    let peer = global
        .daemon()
        .await?
        .add_peer(request)
        .await
        .map_err(|status| Failure::refused(&attempted, &status))?
        .into_inner();
    output.give("rondo.peer/1", peer_json(&peer), || {
        format!("{} ({}) is trusted now; fingerprint {}", peer.site, peer.name, peer.fingerprint)
    })
}

/// Whether the roster has this site with the card's keys, or with a card that announced them: then
/// there is nothing to compare by phone again.
async fn renews_known(card: &SiteCard, global: &Global) -> Result<bool, Failure> {
    let peers = global
        .daemon()
        .await?
        .list_peers(ListPeersRequest {})
        .await
        .map_err(|status| Failure::refused("listing peers", &status))?
        .into_inner()
        .peers;
    let known = peers.iter().find(|p| p.site == card.site.as_str() && !p.revoked);
    let Some(known) = known else { return Ok(false) };
    let (_, known) = open_card("of the roster", &known.card)?;
    Ok(card.keys() == known.keys() || card.renews(&known))
}

/// The card's fingerprint, if it is the one that was given; blanks and case do not count.
fn compare(given: &str, card: &SiteCard) -> Result<String, Failure> {
    let plain = |text: &str| -> String {
        text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
    };
    let own = card.fingerprint();
    if plain(given) == plain(&own) {
        return Ok(own);
    }
    let text = format!(
        "adding {} to the roster: its card has fingerprint {own}, not the one given. Ask {} for its card again, and compare by phone",
        card.site, card.name
    );
    Err(Failure::new(Exit::Refused, text))
}

fn ask(card: &SiteCard) -> Result<String, Failure> {
    note(&format!(
        "site         {} ({})\nendpoints    {}\nvalid until  {}\nfingerprint  {}",
        card.site,
        card.name,
        card.endpoints.join(", "),
        day(card.valid_until),
        card.fingerprint(),
    ));
    if !std::io::stdin().is_terminal() {
        let text = format!(
            "adding {} to the roster: nobody can be asked here. Compare the fingerprint by phone and give it with --fingerprint",
            card.site
        );
        return Err(Failure::new(Exit::Usage, text));
    }
    let agreed = dialoguer::Confirm::new()
        .with_prompt("Is this the fingerprint that the other site read out?")
        .default(false)
        .interact()
        .map_err(|e| Failure::new(Exit::Internal, format!("asking for the fingerprint: {e}")))?;
    if agreed {
        return Ok(card.fingerprint());
    }
    let text = format!("{} was not added: the fingerprint was not confirmed", card.site);
    Err(Failure::new(Exit::Refused, text))
}

async fn list(global: &Global, output: Output) -> Result<(), Failure> {
    let peers = global
        .daemon()
        .await?
        .list_peers(ListPeersRequest {})
        .await
        .map_err(|status| Failure::refused("listing peers", &status))?
        .into_inner()
        .peers;
    let body = json!({"peers": peers.iter().map(peer_json).collect::<Vec<_>>()});
    output.give("rondo.peers/1", body, || peers_text(&peers))
}

async fn revoke(site: &SiteId, yes: bool, global: &Global, output: Output) -> Result<(), Failure> {
    if !yes {
        let prompt = format!("Trust {site} no more? Rounds that it takes part in will stand still");
        confirm(&format!("revoking {site}"), &prompt)?;
    }
    let peer = global
        .daemon()
        .await?
        .revoke_peer(PeerRequest { site: site.to_string() })
        .await
        .map_err(|status| Failure::refused(&format!("revoking {site}"), &status))?
        .into_inner();
    output.give("rondo.peer/1", peer_json(&peer), || {
        format!("{} ({}) is revoked; its connections are closed", peer.site, peer.name)
    })
}

async fn ping(site: &SiteId, global: &Global, output: Output) -> Result<(), Failure> {
    let ping = global
        .daemon()
        .await?
        .ping_peer(PeerRequest { site: site.to_string() })
        .await
        .map_err(|status| Failure::refused(&format!("calling {site}"), &status))?
        .into_inner();
    output.give("rondo.peer-ping/1", ping_json(&ping), || ping_text(&ping))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::models::tests::parcel;

    #[test]
    fn another_fingerprint_is_refused_and_the_way_it_is_written_does_not_matter() {
        let (_, _, card, _) = parcel();
        assert_eq!(compare("0000-0000", &card).unwrap_err().exit, Exit::Refused);
        assert_eq!(compare("", &card).unwrap_err().exit, Exit::Refused);
        let read_out = card.fingerprint().to_uppercase().replace('-', " ");
        assert_eq!(compare(&read_out, &card).unwrap(), card.fingerprint());
    }
}
