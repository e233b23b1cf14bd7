//! Which files the daemon can open at all: its home, and what looking up a name reads. Nothing else of
//! the machine, images least of all, and no program. The kernel holds the daemon to it (Landlock), so
//! whoever should take the daemon over is held to it too.
//!
//! What the daemon starts after [`enter`] is restricted as it is; see [`crate::starter`].

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, LandlockStatus, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, Scope, make_bitflags,
    path_beneath_rules,
};
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// What a name service may read at any time. Folders, because files such as `resolv.conf` are
/// replaced while the daemon runs, and a rule about a file would end with that file.
const READ: [&str; 10] = [
    "/etc",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/share/zoneinfo",
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/run/nscd",
];
/// Devices that hold nothing.
const DEVICES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/urandom"];

/// Below this, a file could not be moved from one folder of the store to another.
const ABI_MIN: ABI = ABI::V2;
/// What is restricted where the kernel knows it.
const ABI_WANTED: ABI = ABI::V6;

/// What the daemon does in its home: everything that has to do with files, folders and sockets.
const HOME: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    ReadFile | ReadDir | WriteFile | Truncate | RemoveFile | RemoveDir | MakeReg | MakeDir | MakeSock
    | MakeSym | Refer
});

/// Why the daemon could not be restricted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has Landlock and refused.
    #[error("restricting the daemon to {}: {source}", home.display())]
    Refused {
        /// The site's home.
        home: PathBuf,
        /// Why.
        source: RulesetError,
    },
    /// A folder of the home leads out of it.
    #[error(
        "{} cannot be opened within the daemon's own restrictions: {source}. Everything the daemon keeps must lie in its home {}; mount another disk there instead of linking to it",
        path.display(), home.display()
    )]
    Outside {
        /// The folder.
        path: PathBuf,
        /// The site's home.
        home: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What the kernel holds the daemon to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileAccess {
    /// Restricted, by this version of Landlock.
    Landlock(i32),
    /// This kernel has no Landlock, or too old a one.
    NotRestricted,
}

impl fmt::Display for FileAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Landlock(abi) => write!(f, "landlock-abi-{abi}"),
            Self::NotRestricted => f.write_str("not-restricted"),
        }
    }
}

/// Restricts the calling thread, and every thread and process it starts from now on, for good.
///
/// # Errors
/// If the kernel could, but did not.
pub fn enter(home: &Path) -> Result<FileAccess, Error> {
    let begun = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI_MIN));
    let Ok(ruleset) = begun else { return Ok(FileAccess::NotRestricted) };
    restrict(ruleset, home).map_err(|source| Error::Refused { home: home.to_owned(), source })
}

fn restrict(ruleset: Ruleset, home: &Path) -> Result<FileAccess, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let device = AccessFs::ReadFile | AccessFs::WriteFile;
    let status = ruleset
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI_WANTED))?
        .scope(Scope::from_all(ABI_WANTED))?
        .create()?
        .add_rules(path_beneath_rules(READ, read))?
        .add_rules(path_beneath_rules(DEVICES, device))?
        .add_rules(path_beneath_rules([home], HOME))?
        .restrict_self()?;
    Ok(match status.landlock {
        LandlockStatus::Available { effective_abi, kernel_abi } => {
            FileAccess::Landlock(kernel_abi.unwrap_or(effective_abi as i32))
        }
        _ => FileAccess::NotRestricted,
    })
}

/// Refuses a home whose folders lead out of it; for right after [`enter`].
///
/// # Errors
/// Which one, and what to do.
pub fn check_home(home: &Path, folders: &[&str]) -> Result<(), Error> {
    for folder in folders {
        let path = home.join(folder);
        match File::open(&path) {
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                return Err(Error::Outside { path, home: home.to_owned(), source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// What came of asking whether the daemon could open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// The daemon's restrictions refuse it, though this user may open it.
    Refused,
    /// This user may not open it anyway.
    NotThisUser,
    /// The daemon could open it.
    Opened,
    /// The kernel restricts nothing here.
    NotRestricted,
}

/// Restricts this process as the daemon is, and tries to open `file`.
///
/// # Errors
/// If the restriction fails, or the file cannot be looked for.
pub fn try_open(home: &Path, file: &Path) -> anyhow::Result<Tried> {
    use anyhow::Context as _;
    let open = || match File::open(file) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(e) => Err(e).with_context(|| format!("opening {}", file.display())),
    };
    if !open()? {
        return Ok(Tried::NotThisUser);
    }
    if enter(home)? == FileAccess::NotRestricted {
        return Ok(Tried::NotRestricted);
    }
    Ok(if open()? { Tried::Opened } else { Tried::Refused })
}
