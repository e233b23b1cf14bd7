//! A small directory of golden numbers inside the program (`node/learn/golden`).

use std::io;

/// Name and bytes of every file.
const FILES: [(&str, &[u8]); 7] = [
    (
        "deepmedic_full_forward.safetensors",
        include_bytes!("../../golden/deepmedic_full_forward.safetensors"),
    ),
    (
        "deepmedic_full_weights.safetensors",
        include_bytes!("../../golden/deepmedic_full_weights.safetensors"),
    ),
    ("learning.json", include_bytes!("../../golden/learning.json")),
    ("losses.safetensors", include_bytes!("../../golden/losses.safetensors")),
    ("lwf_five_updates.safetensors", include_bytes!("../../golden/lwf_five_updates.safetensors")),
    ("published_layout_narrow.tar", include_bytes!("../../golden/published_layout_narrow.tar")),
    ("tiled_inference.safetensors", include_bytes!("../../golden/tiled_inference.safetensors")),
];

/// Reads a file of the built-in directory.
///
/// # Errors
/// A name that is not there.
pub fn built_in(name: &str) -> io::Result<Vec<u8>> {
    let found = FILES.iter().find(|(known, _)| *known == name);
    found.map(|(_, bytes)| bytes.to_vec()).ok_or_else(|| io::ErrorKind::NotFound.into())
}
