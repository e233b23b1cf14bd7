//! `self-test`: the process tries what it must not be able to do and says what came of it, or computes
//! what is known.

use crate::args::{SelfTest, SelfTestOf};
use crate::{DONE, FAILED, output, parity};
use anyhow::Result;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Long enough for any listener on this machine.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn run(args: &SelfTest) -> Result<u8> {
    match args.what {
        SelfTestOf::Network { connect } => network(connect),
        SelfTestOf::Numbers { device } => parity::self_test(device),
    }
}

fn network(connect: SocketAddr) -> Result<u8> {
    let any = (Ipv4Addr::UNSPECIFIED, 0);
    let attempts: [(&str, io::Result<()>); 5] = [
        ("tcp connect", TcpStream::connect_timeout(&connect, PATIENCE).map(drop)),
        ("tcp listen", TcpListener::bind(any).map(drop)),
        ("udp socket", UdpSocket::bind(any).map(drop)),
        ("udp socket over IPv6", UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).map(drop)),
        ("tcp connect in a new thread", in_thread(connect)),
    ];
    let mut code = DONE;
    for (what, result) in attempts {
        match result {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                output::line(&format!("{what} {connect}: refused, {e}"))?;
            }
            Err(e) => {
                code = FAILED;
                output::line(&format!(
                    "{what} {connect}: NOT refused by this process, failed with {e}"
                ))?;
            }
            Ok(()) => {
                code = FAILED;
                output::line(&format!("{what} {connect}: NOT refused"))?;
            }
        }
    }
    match UnixStream::pair() {
        Ok(_) => output::line("local socket: allowed")?,
        Err(e) => {
            code = FAILED;
            output::line(&format!("local socket: refused, {e}; the daemon could not be reached"))?;
        }
    }
    Ok(code)
}

fn in_thread(connect: SocketAddr) -> io::Result<()> {
    let attempt =
        std::thread::spawn(move || TcpStream::connect_timeout(&connect, PATIENCE).map(drop));
    attempt.join().unwrap_or_else(|_| Err(io::Error::other("the thread died")))
}
