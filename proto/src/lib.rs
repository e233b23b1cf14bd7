//! The wire of Rondo, and the only place where generated types meet domain types.
//!
//! Three services: [`peer`] between sites, [`control`] between an operator and the site's daemon,
//! [`trainer`] between the daemon and its trainer. [`convert`] checks what comes in and writes what
//! goes out; [`unix`] reaches a service on a unix socket.

pub mod convert;
pub mod unix;

pub use prost::bytes::Bytes;

macro_rules! generated {
    ($(#[$doc:meta])* $name:ident, $file:literal) => {
        $(#[$doc])*
        #[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, rustdoc::all)]
        pub mod $name {
            include!(concat!("generated/", $file));
        }
    };
}

generated!(
    /// Between the daemons of two sites.
    peer,
    "rondo.peer.v1.rs"
);
generated!(
    /// Between an operator and the daemon of the site.
    control,
    "rondo.control.v1.rs"
);
generated!(
    /// Between the daemon and the trainer of a site.
    trainer,
    "rondo.trainer.v1.rs"
);

/// Largest message of any service: a passport of a long round fits, an endless stream does not.
pub const MESSAGE_MAX_BYTES: usize = 20 * 1024 * 1024;
