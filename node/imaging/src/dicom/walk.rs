//! One bounded walk over a folder, in an order that does not depend on the file system.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Error, MAX_DEPTH, MAX_FILES};

/// Every regular file below `root`, sorted; `root` itself where it is a file.
///
/// Links to files are followed, links to folders are not, so that no loop is possible.
pub(crate) fn files(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Folder { path, source }
    };
    if fs::metadata(root).map_err(failed(root))?.is_file() {
        return Ok(vec![root.to_path_buf()]);
    }
    let mut found = Vec::new();
    let mut open = vec![(root.to_path_buf(), 0)];
    while let Some((folder, depth)) = open.pop() {
        for entry in fs::read_dir(&folder).map_err(failed(&folder))? {
            let entry = entry.map_err(failed(&folder))?;
            let path = entry.path();
            let kind = entry.file_type().map_err(failed(&path))?;
            if kind.is_dir() {
                if depth == MAX_DEPTH {
                    return Err(Error::TooDeep { path });
                }
                open.push((path, depth + 1));
            } else if kind.is_file()
                || kind.is_symlink() && fs::metadata(&path).is_ok_and(|m| m.is_file())
            {
                found.push(path);
            }
            if found.len() + open.len() > MAX_FILES {
                return Err(Error::TooManyFiles { path: root.to_path_buf() });
            }
        }
    }
    found.sort();
    Ok(found)
}
