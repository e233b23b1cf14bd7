//! Where tensors live. The one place that names a backend, so that a successor of libtorch's backend
//! changes nothing else.

use crate::libtorch;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a device's name.
    #[error("`{0}` is not a device; use auto, cpu, cuda:N or flex")]
    Name(String),
    /// Another libtorch is loaded than this program was built with.
    #[error(
        "this program was built with libtorch {built}, but {} is {found}; run `make libtorch`, or \
         put libtorch {built} where `LIBTORCH` said when it was built", path.display()
    )]
    Version {
        /// Version it was built with.
        built: &'static str,
        /// Version that was loaded.
        found: String,
        /// The library that was loaded.
        path: PathBuf,
    },
    /// libtorch sees no such GPU.
    #[error(
        "device cuda:{wanted} was asked for, but libtorch sees {found} CUDA devices; \
         use `--device cpu`, or install a CUDA build of libtorch and a driver"
    )]
    NoCuda {
        /// Number asked for.
        wanted: usize,
        /// Devices there are.
        found: usize,
    },
}

/// What an operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The first CUDA device of libtorch, else libtorch on the CPU.
    Auto,
    /// libtorch on the CPU.
    Cpu,
    /// CUDA device of this number, through libtorch.
    Cuda(usize),
    /// Burn's backend in pure Rust, on the CPU.
    Flex,
}

impl FromStr for Choice {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "flex" => Ok(Self::Flex),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| Error::Name(text.chars().take(40).collect())),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
            Self::Flex => f.write_str("flex"),
        }
    }
}

/// An opened device.
#[derive(Debug, Clone)]
pub struct Device {
    burn: burn::tensor::Device,
    choice: Choice,
}

/// libtorch that this program was built with; by default the one that torch-sys 0.22 is made for.
const BUILT_WITH: &str = match option_env!("RONDO_LIBTORCH_VERSION") {
    Some(version) => version,
    None => "2.9.0",
};

/// The libtorch that the system loaded into this process, with its version if files beside it or one
/// folder above tell it.
fn loaded() -> Option<(PathBuf, String)> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut paths = maps.lines().filter_map(|line| line.find('/').and_then(|at| line.get(at..)));
    let path = PathBuf::from(paths.find(|path| path.contains("/libtorch_cpu.so"))?);
    let version = path.ancestors().skip(1).take(2).find_map(libtorch::version)?;
    Some((path, version))
}

/// Refuses a libtorch of another version: its numbers were never compared, and it may crash.
fn check_version(loaded: Option<(PathBuf, String)>) -> Result<(), Error> {
    match loaded {
        Some((path, found)) if found != BUILT_WITH => {
            Err(Error::Version { built: BUILT_WITH, found, path })
        }
        _ => Ok(()),
    }
}

/// Makes the first call of MKL's vector functions from one thread. MKL chooses their kernels then, and
/// where two threads made that call at once, one in a hundred processes computed half of a first
/// gradient with another kernel, 4e-5 apart: a visit would not repeat to the bit.
fn settle_vector_functions() {
    let one = tch::Tensor::ones([1], (tch::Kind::Float, tch::Device::Cpu));
    let _ = (one.exp(), one.log());
}

impl Device {
    /// Opens the device of `choice`.
    ///
    /// # Errors
    /// A CUDA device that libtorch does not see.
    #[allow(deprecated)] // Burn 0.22 marks libtorch's backend for removal; this is its only use.
    pub fn open(choice: Choice) -> Result<Self, Error> {
        if choice != Choice::Flex {
            check_version(loaded())?;
            settle_vector_functions();
        }
        let cuda = || usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
        let choice = match choice {
            Choice::Auto if cuda() > 0 => Choice::Cuda(0),
            Choice::Auto => Choice::Cpu,
            named => named,
        };
        let burn = match choice {
            Choice::Cuda(wanted) => {
                let found = cuda();
                if wanted >= found {
                    return Err(Error::NoCuda { wanted, found });
                }
                burn::tensor::Device::libtorch_cuda(wanted)
            }
            Choice::Flex => burn::tensor::Device::flex(),
            Choice::Auto | Choice::Cpu => burn::tensor::Device::libtorch(),
        };
        Ok(Self { burn, choice })
    }

    /// What was opened: never `auto`.
    #[must_use]
    pub fn choice(&self) -> Choice {
        self.choice
    }

    /// Device and libraries in one line, for people and reports.
    #[must_use]
    pub fn describe(&self) -> String {
        let libtorch = || loaded().map_or_else(|| "of unknown version".to_owned(), |(_, v)| v);
        match self.choice {
            Choice::Flex => "flex (Burn 0.22.1, pure Rust)".to_owned(),
            Choice::Cuda(n) => format!("cuda:{n} (libtorch {}, Burn 0.22.1)", libtorch()),
            Choice::Auto | Choice::Cpu => {
                let threads = tch::get_num_threads();
                format!("cpu (libtorch {}, Burn 0.22.1, {threads} threads)", libtorch())
            }
        }
    }

    /// Threads that one operation may use on the host.
    #[must_use]
    pub fn threads(&self) -> usize {
        match self.choice {
            Choice::Flex => std::thread::available_parallelism().map_or(1, usize::from),
            _ => usize::try_from(tch::get_num_threads()).unwrap_or(1),
        }
    }

    /// Waits until everything asked of the device is done.
    ///
    /// # Errors
    /// Something asked of it failed; the text is the library's.
    pub fn wait(&self) -> Result<(), String> {
        self.burn.sync().map_err(|e| e.to_string())
    }

    pub(crate) fn is_libtorch(&self) -> bool {
        self.choice != Choice::Flex
    }

    pub(crate) fn burn(&self) -> &burn::tensor::Device {
        &self.burn
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_refused_before_they_are_accepted() {
        for bad in ["", "gpu", "cuda:", "cuda:-1", "cuda:x"] {
            assert!(bad.parse::<Choice>().is_err(), "{bad}");
        }
        for good in [Choice::Auto, Choice::Cpu, Choice::Cuda(3), Choice::Flex] {
            assert_eq!(good.to_string().parse(), Ok(good));
        }
        let missing = Device::open(Choice::Cuda(4096)).unwrap_err();
        assert!(missing.to_string().contains("cuda:4096"), "{missing}");
        let (path, version) = loaded().unwrap();
        assert!(path.is_file() && check_version(Some((path.clone(), version))).is_ok());
        let other = check_version(Some((path, "1.13.1".to_owned()))).unwrap_err().to_string();
        assert!(other.contains("1.13.1") && other.contains("make libtorch"), "{other}");
        assert_ne!(Device::open(Choice::Auto).unwrap().choice(), Choice::Auto);
    }
}
