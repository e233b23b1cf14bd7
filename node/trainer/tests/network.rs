//! The trainer cannot reach a network, shown with a listener that anyone else reaches.
#![allow(clippy::unwrap_used)]

use std::net::{TcpListener, TcpStream};
use std::process::Command;

#[test]
fn the_trainer_cannot_connect_where_others_can() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    TcpStream::connect(address).unwrap();
    listener.accept().unwrap();

    let done = Command::new(env!("CARGO_BIN_EXE_rondo-trainer"))
        .args(["self-test", "network", "--connect", &address.to_string()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{text}{}", String::from_utf8_lossy(&done.stderr));
    assert!(text.contains("Permission denied") && !text.contains("NOT"), "{text}");
    assert!(text.contains("local socket: allowed"), "{text}");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "nobody else has connected");
}
