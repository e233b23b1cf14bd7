//! Memory of a device in use, as an operator watches it.

use crate::device::{Choice, Device};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use std::ffi::OsStr;
use std::sync::OnceLock;

/// The driver's own name of its library; without a development package there is no other.
const NVML: &str = "libnvidia-ml.so.1";
const MIB: u64 = 1024 * 1024;

/// Memory in use, in MiB: on a GPU everything allocated there, by whichever program; else what this
/// process has resident. None where neither can be told.
#[must_use]
pub fn memory_mib(device: &Device) -> Option<u32> {
    match device.choice() {
        Choice::Cuda(number) => {
            static DRIVER: OnceLock<Option<Nvml>> = OnceLock::new();
            let open = || Nvml::builder().lib_path(OsStr::new(NVML)).init().ok();
            gpu_mib(DRIVER.get_or_init(open).as_ref()?, number).ok()
        }
        Choice::Auto | Choice::Cpu | Choice::Flex => {
            resident_mib(&std::fs::read_to_string("/proc/self/status").ok()?)
        }
    }
}

/// The driver counts all GPUs, CUDA only those in `CUDA_VISIBLE_DEVICES`, in its order.
fn gpu_mib(driver: &Nvml, number: usize) -> Result<u32, NvmlError> {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let gpu = match visible_gpu(visible.as_deref(), number) {
        // With one GPU there is nothing to mistake, whatever a container calls it.
        _ if driver.device_count()? == 1 => driver.device_by_index(0),
        Gpu::Index(index) => driver.device_by_index(index),
        Gpu::Uuid(uuid) => driver.device_by_uuid(uuid),
    }?;
    Ok(u32::try_from(gpu.memory_info()?.used / MIB).unwrap_or(u32::MAX))
}

#[derive(Debug, PartialEq, Eq)]
enum Gpu<'a> {
    Index(u32),
    Uuid(&'a str),
}

/// The driver's name of CUDA device `number`. Indices agree where all GPUs are of one kind, or with
/// `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
fn visible_gpu(visible: Option<&str>, number: usize) -> Gpu<'_> {
    let own = u32::try_from(number).unwrap_or(u32::MAX);
    let listed = visible.and_then(|list| list.split(',').nth(number)).map(str::trim);
    match listed {
        Some(name) if name.starts_with("GPU-") || name.starts_with("MIG-") => Gpu::Uuid(name),
        Some(index) => Gpu::Index(index.parse().unwrap_or(own)),
        None => Gpu::Index(own),
    }
}

/// `VmRSS` of a `/proc/PID/status`, which is in KiB.
fn resident_mib(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    u32::try_from(kib / 1024).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_set_is_read_and_holds_what_is_touched() {
        assert_eq!(resident_mib("Name:\tx\nVmRSS:\t  204800 kB\nVmData: 1 kB\n"), Some(200));
        for bad in ["", "VmRSS:\t many kB\n", "VmRSS:\t 12\n"] {
            assert_eq!(resident_mib(bad), None, "{bad}");
        }
        let block = vec![1_u8; 256 << 20];
        let mib = memory_mib(&Device::open(Choice::Flex).unwrap()).unwrap();
        assert!(block.iter().all(|b| *b == 1) && mib >= 256, "{mib} MiB");
    }

    #[test]
    fn a_visible_gpu_is_found_by_number_or_name() {
        assert_eq!(visible_gpu(None, 2), Gpu::Index(2));
        assert_eq!(visible_gpu(Some("5, 3"), 1), Gpu::Index(3));
        assert_eq!(visible_gpu(Some("GPU-ab,MIG-cd"), 1), Gpu::Uuid("MIG-cd"));
        assert_eq!(visible_gpu(Some("5"), 1), Gpu::Index(1));
        assert_eq!(visible_gpu(Some(""), 0), Gpu::Index(0));
    }
}
