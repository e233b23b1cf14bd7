//! The daemon of this site, as its operator reaches it.

use crate::args::Global;
use crate::exit::{Exit, Failure};
use rondo::envelope::{ENVELOPE_MAX_BYTES, Envelope};
use rondo::ids::SiteId;
use rondo::trust::{Roster, SiteCard};
use rondo_proto::control::control_client::ControlClient;
use rondo_proto::control::{GetSiteRequest, ListPeersRequest};
use rondo_proto::unix;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use tonic::transport::Channel;

/// A connection to a daemon's control socket.
pub(crate) type Client = ControlClient<Channel>;

impl Global {
    /// Folder of this site.
    pub(crate) fn home(&self) -> Result<PathBuf, Failure> {
        if let Some(home) = &self.home {
            return Ok(home.clone());
        }
        let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        variable("XDG_DATA_HOME")
            .or_else(|| Some(variable("HOME")?.join(".local/share")))
            .map(|data| data.join("rondo"))
            .ok_or_else(|| {
                let text =
                    "finding the folder of this site: HOME is not set; name the folder with --home";
                Failure::new(Exit::Usage, text)
            })
    }

    /// Control socket of this site's daemon.
    pub(crate) fn socket(&self) -> Result<PathBuf, Failure> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        let home = self.home()?;
        // The daemon judges its own configuration; here only the place of the socket matters.
        let named = std::fs::read_to_string(home.join("node.toml"))
            .ok()
            .and_then(|text| text.parse::<toml::Table>().ok())
            .and_then(|table| Some(table.get("control")?.get("socket")?.as_str()?.to_owned()));
        Ok(home.join(named.as_deref().unwrap_or("run/control.sock")))
    }

    /// Connects to this site's daemon.
    pub(crate) async fn daemon(&self) -> Result<Client, Failure> {
        Ok(unix::control(&self.socket()?).await?)
    }
}

/// Reads a file that must not be larger than `max` bytes.
pub(crate) fn read_file(what: &str, path: &Path, max: usize) -> Result<Vec<u8>, Failure> {
    let shown = path.display();
    let attempted = format!("reading {what} {shown}");
    let mut bytes = Vec::new();
    let limit = max as u64;
    File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .map_err(|e| Failure::new(Exit::BadInput, format!("{attempted}: {e}")))?;
    if bytes.len() > max {
        let text = format!("{attempted}: it is larger than {max} bytes; is it the right file?");
        return Err(Failure::new(Exit::BadInput, text));
    }
    Ok(bytes)
}

/// Opens a card and says whose it is; `from` names where the bytes came from.
pub(crate) fn open_card(from: &str, bytes: &[u8]) -> Result<(Envelope, SiteCard), Failure> {
    Envelope::from_json(bytes)
        .map_err(rondo::trust::Error::from)
        .and_then(|envelope| SiteCard::open(&envelope).map(|card| (envelope, card)))
        .map_err(|e| {
            let text = format!("opening the card {from}: {e}. Ask that site for its card again");
            Failure::new(Exit::BadInput, text)
        })
}

/// A card file.
pub(crate) fn card_file(path: &Path) -> Result<(Vec<u8>, SiteCard), Failure> {
    let bytes = read_file("the card", path, ENVELOPE_MAX_BYTES)?;
    let (_, card) = open_card(&path.display().to_string(), &bytes)?;
    Ok((bytes, card))
}

/// The roster in a folder of card files.
pub(crate) fn roster_of_folder(folder: &Path) -> Result<Roster, Failure> {
    let fail = |e| Failure::storage(format!("listing the cards in {}", folder.display()), &e);
    let mut cards = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|end| end == "json") {
            let (bytes, card) = card_file(&path)?;
            cards.push((card.valid_from, path, bytes));
        }
    }
    // A site that changed its keys may have several cards there.
    cards.sort();
    let mut roster = Roster::default();
    for (_, path, bytes) in cards {
        add(&mut roster, &path.display().to_string(), &bytes)?;
    }
    Ok(roster)
}

/// The roster of a daemon: its peers, revoked ones marked so, and itself.
pub(crate) async fn roster_of_daemon(client: &mut Client) -> Result<Roster, Failure> {
    let attempted = "reading the roster of this site";
    let refused = |status| Failure::refused(attempted, &status);
    let site = client.get_site(GetSiteRequest {}).await.map_err(refused)?.into_inner();
    let peers = client.list_peers(ListPeersRequest {}).await.map_err(refused)?.into_inner().peers;
    let mut roster = Roster::default();
    add(&mut roster, &site.site, &site.card)?;
    for peer in peers {
        let id = add(&mut roster, &peer.site, &peer.card)?;
        if peer.revoked {
            roster.revoke(&id).map_err(|e| Failure::new(Exit::Internal, e))?;
        }
    }
    Ok(roster)
}

fn add(roster: &mut Roster, from: &str, bytes: &[u8]) -> Result<SiteId, Failure> {
    let (signed, card) = open_card(from, bytes)?;
    roster
        .add(signed)
        .map_err(|e| Failure::new(Exit::BadInput, format!("putting the roster together: {e}")))?;
    Ok(card.site)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_where_the_configuration_says() {
        let home = tempfile::tempdir().unwrap();
        let global = |socket: Option<&str>| Global {
            home: Some(home.path().to_owned()),
            socket: socket.map(PathBuf::from),
            json: false,
        };
        assert_eq!(global(Some("/s")).socket().unwrap(), Path::new("/s"));
        assert_eq!(global(None).socket().unwrap(), home.path().join("run/control.sock"));
        let configuration = home.path().join("node.toml");
        std::fs::write(&configuration, "[control]\nsocket = \"/run/x.sock\"\n").unwrap();
        assert_eq!(global(None).socket().unwrap(), Path::new("/run/x.sock"));
        std::fs::write(&configuration, "[control]\nsocket = \"c.sock\"\n").unwrap();
        assert_eq!(global(None).socket().unwrap(), home.path().join("c.sock"));
    }

    #[test]
    fn what_is_no_card_is_bad_input() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let failure = card_file(file.path()).unwrap_err();
        assert_eq!(failure.exit, Exit::BadInput);
        assert!(failure.text.contains("Ask that site"), "{failure}");
        assert_eq!(read_file("it", Path::new("/dev/zero"), 10).unwrap_err().exit, Exit::BadInput);
    }
}
