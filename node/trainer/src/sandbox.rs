//! The trainer denies itself the network: a seccomp filter lets `socket(2)` and `socketpair(2)` make
//! local (unix) sockets only, and denies `io_uring`, which could make sockets without either.
//!
//! The filter cannot be taken off again, holds for every later thread and child, and sets
//! `no_new_privs`. A unit adds `PrivateNetwork=yes`; this works without any unit.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// Why the network could not be denied. The program then does nothing at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No filter for this processor.
    #[error("denying network access is not possible on this processor: {0}")]
    Architecture(String),
    /// The kernel refused.
    #[error(
        "denying network access failed: {0}; the kernel must support seccomp filters, \
         and a container must allow them"
    )]
    Seccomp(#[from] seccompiler::Error),
}

/// On x86-64, the same calls under another number (x32), for which the filter must hold as well.
const X32_BIT: i64 = 0x4000_0000;

/// Denies every socket that is not local, for the whole process and for ever.
///
/// # Errors
/// A kernel or container without seccomp filters.
pub fn deny_network() -> Result<(), Error> {
    let arch: TargetArch = std::env::consts::ARCH
        .try_into()
        .map_err(|_| Error::Architecture(std::env::consts::ARCH.to_owned()))?;
    seccompiler::apply_filter_all_threads(&filter(arch)?)?;
    Ok(())
}

fn filter(arch: TargetArch) -> Result<BpfProgram, seccompiler::Error> {
    let local = u64::from(libc::AF_UNIX.unsigned_abs());
    let not_local = || {
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, local)
            .and_then(|condition| SeccompRule::new(vec![condition]))
    };
    let mut rules = BTreeMap::new();
    for number in [libc::SYS_socket, libc::SYS_socketpair] {
        rules.insert(number, vec![not_local()?]);
        rules.insert(number | X32_BIT, vec![not_local()?]);
    }
    for number in [libc::SYS_io_uring_setup, libc::SYS_io_uring_setup | X32_BIT] {
        rules.insert(number, Vec::new());
    }
    let denied = SeccompAction::Errno(libc::EACCES.unsigned_abs());
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, denied, arch)?.try_into()?)
}
