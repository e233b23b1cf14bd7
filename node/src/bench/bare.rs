//! What a transfer is compared with: the same bytes between two processes over the same TLS, plainly
//! written and read and thrown away.

use super::link::Place;
use crate::cli::BenchBare;
use crate::daemon::unix_now;
use crate::identity::{CARD, Identity, Own};
use crate::tls;
use anyhow::{Context as _, bail};
use rondo::envelope::Envelope;
use rondo::ids::SiteId;
use rondo::round::{Event, SiteState, step};
use rondo::trust::SiteCard;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

/// Bytes of one write and of one read.
const BLOCK_BYTES: usize = 64 * 1024;

/// Seconds from the first byte to the other end's word that it has the last one.
pub(super) fn pump(
    sender: &Path,
    receiver: &Path,
    bytes: u64,
    places: &[Place; 2],
) -> anyhow::Result<f64> {
    let end = |place: &Place, home: &Path, peer: &Path| {
        let mut command = place.command(&std::env::current_exe()?);
        command.args(["bench", "bare", "--home"]).arg(home).arg("--peer").arg(peer);
        command.args(["--listen", &place.address.to_string()]);
        command.args(["--bytes", &bytes.to_string()]).stdout(Stdio::piped());
        anyhow::Ok(command)
    };
    let [from, to] = places;
    let mut listening = end(to, receiver, sender)?.spawn().context("starting the bare receiver")?;
    let mut address = String::new();
    let said = listening.stdout.take().context("hearing the bare receiver")?;
    BufReader::new(said).read_line(&mut address)?;
    let sent = end(from, sender, receiver)?.args(["--connect", address.trim()]).output()?;
    let received = listening.wait()?;
    if !sent.status.success() || !received.success() {
        bail!("the bare connection broke");
    }
    String::from_utf8(sent.stdout)?.trim().parse().context("reading the bare sender's seconds")
}

/// Runs one end.
pub(crate) fn bare(end: &BenchBare) -> anyhow::Result<()> {
    let (identity, site, state) = acquaint(&end.home.home, &end.peer)?;
    let (_keep, states) = watch::channel(Arc::new(state));
    let said = match end.connect {
        Some(address) => {
            let config = Arc::new(tls::client(&identity, states, site)?);
            let name = ServerName::try_from("rondo.invalid")?;
            send(ClientConnection::new(config, name)?, address, end.bytes)?.to_string()
        }
        None => {
            let config = Arc::new(tls::server(&Own::new(identity), states, tls::Shown::default())?);
            let listener = TcpListener::bind(SocketAddr::new(end.listen, 0))?;
            say(&listener.local_addr()?.to_string());
            discard(ServerConnection::new(config)?, listener.accept()?.0, end.bytes)?;
            return Ok(());
        }
    };
    say(&said);
    Ok(())
}

#[allow(clippy::print_stdout, reason = "how the two ends and the bench talk")]
fn say(text: &str) {
    println!("{text}");
}

/// This end's keys, and a roster with the site at the other end.
fn acquaint(home: &Path, peer: &Path) -> anyhow::Result<(Identity, SiteId, SiteState)> {
    let identity = Identity::load(home)?;
    let path = peer.join(CARD);
    let card = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let card = Envelope::from_json(&card)?;
    let opened = SiteCard::open(&card)?;
    opened.valid_at(unix_now())?;
    let own = Event::SiteOpened { card: identity.card.clone() };
    let state = step(&SiteState::default(), &own)?;
    let state = step(&state, &Event::PeerAdded { card })?;
    Ok((identity, opened.site, state))
}

fn send(connection: ClientConnection, address: SocketAddr, bytes: u64) -> anyhow::Result<f64> {
    let mut tcp = TcpStream::connect(address)?;
    tcp.set_nodelay(true)?;
    let mut connection = connection;
    while connection.is_handshaking() {
        connection.complete_io(&mut tcp)?;
    }
    let mut stream = StreamOwned::new(connection, tcp);
    let block = vec![0x5a_u8; BLOCK_BYTES];
    let begun = Instant::now();
    let mut rest = bytes;
    while rest > 0 {
        let length = usize::try_from(rest).unwrap_or(usize::MAX).min(block.len());
        stream.write_all(block.get(..length).unwrap_or(&block))?;
        rest -= length as u64;
    }
    stream.flush()?;
    stream.read_exact(&mut [0])?;
    Ok(begun.elapsed().as_secs_f64())
}

fn discard(connection: ServerConnection, tcp: TcpStream, bytes: u64) -> anyhow::Result<()> {
    tcp.set_nodelay(true)?;
    let mut stream = StreamOwned::new(connection, tcp);
    let mut block = vec![0; BLOCK_BYTES];
    let mut rest = bytes;
    while rest > 0 {
        match stream.read(&mut block)? {
            0 => bail!("the sender ended early"),
            n => rest = rest.saturating_sub(n as u64),
        }
    }
    stream.write_all(&[1])?;
    stream.flush()?;
    // The other end closes first, so that its last word is not lost.
    let _ = stream.read(&mut block);
    Ok(())
}
