//! A shaped link between two network namespaces of this machine, where that is permitted.

use anyhow::{Context as _, bail};
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

/// Bytes that may leave at once; a timer of the kernel lets through no less at a gigabit.
const BURST: &str = "256kb";
/// How long a packet may wait at the link before it is dropped, as in the switch of a hospital.
const QUEUE: &str = "50ms";
/// Send and receive buffers of TCP: 1 Gbit/s with 64 ms has 8 MB on its way, and as much bookkeeping,
/// and many systems give a sender 4 MiB. `deploy/RUNBOOK.md` says so.
const TCP_BUFFERS: &str = "4096 131072 33554432";

/// Two namespaces and the link; gone when dropped.
pub(super) struct Link {
    names: [String; 2],
}

/// Where a daemon of the bench runs.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// A network namespace; none for that of the bench.
    pub(super) namespace: Option<String>,
    /// Its address there.
    pub(super) address: IpAddr,
}

impl Default for Place {
    fn default() -> Self {
        Self { namespace: None, address: Ipv4Addr::LOCALHOST.into() }
    }
}

impl Place {
    /// `program`, to be started there.
    pub(super) fn command(&self, program: &std::path::Path) -> Command {
        match &self.namespace {
            None => Command::new(program),
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(program);
                command
            }
        }
    }
}

impl Link {
    /// A link of `mbit_s` whose packets take `rtt_ms` there and back.
    ///
    /// # Errors
    /// What this machine does not permit or know.
    pub(super) fn make(mbit_s: u32, rtt_ms: u32) -> anyhow::Result<Self> {
        let names = ["a", "b"].map(|end| format!("rondo-{}-{end}", std::process::id()));
        // From here on dropping tidies up.
        let this = Self { names };
        let [a, b] = &this.names;
        for name in [a, b] {
            run("ip", &["netns", "add", name])?;
        }
        run("ip", &["-n", a, "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", b])?;
        for (name, address) in [a, b].into_iter().zip(ADDRESSES) {
            let inside = format!("{address}/24");
            run("ip", &["-n", name, "address", "add", &inside, "dev", "eth0"])?;
            run("ip", &["-n", name, "link", "set", "lo", "up"])?;
            run("ip", &["-n", name, "link", "set", "eth0", "up"])?;
            for buffers in ["tcp_rmem", "tcp_wmem"] {
                let set = format!("net.ipv4.{buffers}={TCP_BUFFERS}");
                run("ip", &["netns", "exec", name, "sysctl", "--quiet", "--write", &set])?;
            }
            let rate = format!("{mbit_s}mbit");
            let tc = |args: &[&str]| {
                run("tc", &[&["-n", name, "qdisc", "add", "dev", "eth0"], args].concat())
            };
            if rtt_ms == 0 {
                tc(&["root", "tbf", "rate", &rate, "burst", BURST, "latency", QUEUE])?;
            } else {
                let (delay, packets) = (format!("{}us", rtt_ms * 500), PACKETS.to_string());
                tc(&["root", "netem", "delay", &delay, "rate", &rate, "limit", &packets])?;
            }
        }
        Ok(this)
    }

    /// Its two ends.
    pub(super) fn places(&self) -> [Place; 2] {
        let [a, b] = &self.names;
        let [at, bt] = ADDRESSES;
        let place = |name: &String, address: Ipv4Addr| Place {
            namespace: Some(name.clone()),
            address: address.into(),
        };
        [place(a, at), place(b, bt)]
    }
}

/// Packets that are on their way or wait: some 30 MB.
const PACKETS: u32 = 20_000;
/// For documentation (RFC 5737), and seen by nobody outside the two namespaces.
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];

impl Drop for Link {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = run("ip", &["netns", "delete", name]);
        }
    }
}

fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let said =
        Command::new(program).args(args).output().with_context(|| format!("running {program}"))?;
    if !said.status.success() {
        let text = String::from_utf8_lossy(&said.stderr);
        let text = text.lines().next().unwrap_or("it failed");
        bail!("{program} {}: {text}", args.join(" "));
    }
    Ok(())
}
