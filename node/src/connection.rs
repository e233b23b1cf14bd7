//! A connection lives as long as the trust that it was opened with, and each peer has a few at most.

use crate::daemon::unix_now;
use crate::identity::public_key_digest;
use crate::tls::States;
use rondo::ids::{Digest, SiteId};
use rustls::pki_types::CertificateDer;
use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Connections of one peer at the same time.
pub const PER_PEER_MAX: usize = 32;
/// Connections of all peers at the same time.
pub const CONNECTIONS_MAX: usize = 512;
/// How often a live connection is held against the clock; a change of the roster acts at once.
const CLOCK_LOOK: Duration = Duration::from_secs(2);

/// How many connections each peer has.
#[derive(Debug, Clone, Default)]
pub struct Places(Arc<Mutex<BTreeMap<SiteId, usize>>>);

impl Places {
    /// A place for one more connection of `site`, until dropped; none if it has too many.
    #[must_use]
    pub fn take(&self, site: &SiteId) -> Option<Place> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.entry(site.clone()).or_default();
        if *own >= PER_PEER_MAX || all >= CONNECTIONS_MAX {
            return None;
        }
        *own += 1;
        Some(Place { all: self.clone(), site: site.clone() })
    }
}

/// The place of one connection.
#[derive(Debug)]
pub struct Place {
    all: Places,
    site: SiteId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.site) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                taken.remove(&self.site);
            }
        }
    }
}

/// A stream that breaks when the other side's key is trusted no more.
pub struct Trusted<S> {
    stream: S,
    lost: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl<S> Trusted<S> {
    /// Watches `stream` to `site`, which showed `certificate`.
    ///
    /// # Errors
    /// If there is no readable certificate.
    pub fn new(
        stream: S,
        site: SiteId,
        certificate: Option<&CertificateDer<'_>>,
        states: States,
    ) -> io::Result<Self> {
        let key = certificate
            .and_then(public_key_digest)
            .ok_or_else(|| io::Error::other("the other side showed no readable certificate"))?;
        Ok(Self { stream, lost: Box::pin(trust_lost(states, site, key)) })
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.lost.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => {
                // A future that is done must not be polled again.
                self.lost = Box::pin(std::future::ready(()));
                let text = "the other site is no longer trusted";
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, text))
            }
        }
    }
}

/// Ends when the roster no longer holds `key` as one of `site`, or its card is no longer valid.
async fn trust_lost(mut states: States, site: SiteId, key: Digest) {
    loop {
        let why = {
            let state = states.borrow_and_update();
            match state.roster().by_tls_key(&key).filter(|card| card.site == site) {
                None => Some("its key is not in the roster any more".to_owned()),
                Some(card) => card.valid_at(unix_now()).err().map(|e| e.to_string()),
            }
        };
        if let Some(why) = why {
            tracing::info!(peer = %site, "connection closed: {why}");
            return;
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(CLOCK_LOOK) => {}
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Trusted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Trusted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_so_many_places_and_takes_none_from_others() {
        let places = Places::default();
        let (greedy, other) = ("uker".parse().unwrap(), "usz".parse().unwrap());
        let mut held: Vec<Place> =
            (0..PER_PEER_MAX).map(|_| places.take(&greedy).unwrap()).collect();
        assert!(places.take(&greedy).is_none());
        assert!(places.take(&other).is_some());
        held.pop();
        assert!(places.take(&greedy).is_some());
        held.clear();
        assert!(places.0.lock().unwrap().is_empty());
    }
}
