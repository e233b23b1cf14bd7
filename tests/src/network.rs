//! The lines between all sites of a scenario: any site can be cut off, in both directions, or be far
//! away. A line knows who calls, because the caller's socket is one of its process's files.

use crate::site::free_address;
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How often a line that is held looks whether it is free again.
const LOOK: Duration = Duration::from_millis(10);

/// How a site is connected with all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Link {
    /// Everything passes.
    #[default]
    Up,
    /// Everything passes after so long.
    Far(Duration),
    /// Nothing passes until it is up again; then what waited passes, as TCP does it.
    Held,
    /// Connections break, and new ones break at once.
    Broken,
    /// What is said vanishes for good on the connections that are there and those that come.
    Lost,
}

#[derive(Debug, Default)]
struct Site {
    link: Link,
    pid: Option<u32>,
}

/// The lines. They last as long as the test.
#[derive(Debug, Clone, Default)]
pub struct Network(Arc<Mutex<BTreeMap<String, Site>>>);

impl Network {
    /// A line to the site that listens at `inner`; the address that its card should name.
    pub async fn before(&self, name: &str, inner: SocketAddr) -> SocketAddr {
        let address = free_address();
        let listener = TcpListener::bind(address).await.expect("a free port");
        let (this, called) = (self.clone(), name.to_owned());
        tokio::spawn(async move {
            while let Ok((near, from)) = listener.accept().await {
                let ends = [this.caller(from.port()).unwrap_or_default(), called.clone()];
                let this = this.clone();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(inner).await else { return };
                    let ((near_in, near_out), (far_in, far_out)) =
                        (near.into_split(), far.into_split());
                    // Whichever direction ends first, the connection is over.
                    tokio::select! {
                        _ = this.pump(near_in, far_out, &ends) => {}
                        _ = this.pump(far_in, near_out, &ends) => {}
                    }
                });
            }
        });
        address
    }

    /// The daemon of `name` is this process now.
    pub fn runs(&self, name: &str, pid: Option<u32>) {
        self.0.lock().unwrap().entry(name.to_owned()).or_default().pid = pid;
    }

    /// Connects `name` so from now on.
    pub fn set(&self, name: &str, link: Link) {
        self.0.lock().unwrap().entry(name.to_owned()).or_default().link = link;
    }

    /// Whose socket the one at a local port is.
    fn caller(&self, port: u16) -> Option<String> {
        let table = fs::read_to_string("/proc/net/tcp").ok()?;
        let inode = table.lines().skip(1).find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let local = words.get(1)?.rsplit(':').next()?;
            (u16::from_str_radix(local, 16) == Ok(port)).then(|| words.get(9).copied())?
        })?;
        let wanted = format!("socket:[{inode}]");
        let has = |pid: u32| {
            let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            files.filter_map(|f| fs::read_link(f.path()).ok()).any(|l| l.as_os_str() == &*wanted)
        };
        let sites = self.0.lock().unwrap();
        sites.iter().find(|(_, s)| s.pid.is_some_and(has)).map(|(name, _)| name.clone())
    }

    fn links(&self, ends: &[String; 2]) -> [Link; 2] {
        let sites = self.0.lock().unwrap();
        ends.each_ref().map(|name| sites.get(name).map(|s| s.link).unwrap_or_default())
    }

    async fn pump(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        ends: &[String; 2],
    ) -> std::io::Result<()> {
        let mut bytes = vec![0; 16 * 1024];
        loop {
            let n = tokio::select! {
                n = from.read(&mut bytes) => n?,
                () = self.broken(ends) => return Ok(()),
            };
            loop {
                match self.links(ends) {
                    links if links.contains(&Link::Broken) => return Ok(()),
                    links if links.contains(&Link::Lost) => return std::future::pending().await,
                    links if links.contains(&Link::Held) => tokio::time::sleep(LOOK).await,
                    links => {
                        for link in links {
                            if let Link::Far(delay) = link {
                                tokio::time::sleep(delay).await;
                            }
                        }
                        break;
                    }
                }
            }
            if n == 0 {
                return to.shutdown().await;
            }
            to.write_all(&bytes[..n]).await?;
        }
    }

    async fn broken(&self, ends: &[String; 2]) {
        while !self.links(ends).contains(&Link::Broken) {
            tokio::time::sleep(LOOK).await;
        }
    }
}
