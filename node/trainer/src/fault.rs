//! What libtorch throws within Burn arrives as a panic; here it becomes a sentence and an exit code.

use anyhow::{Result, anyhow};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Longest part of libtorch's own words that is repeated.
const WORDS: usize = 300;

/// Runs `work`; a panic in it is an error that tells its first line. Nothing that `work` changed may
/// be used afterwards.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
        let first = words.lines().next().unwrap_or_default();
        let first: String = first.chars().take(WORDS).collect();
        if words.contains("out of memory") || words.contains("allocate memory") {
            return anyhow!(
                "the device has not enough memory ({first}); lower `mini_batch`, or free the device \
                 of other work"
            );
        }
        anyhow!("libtorch or Burn failed: {first}; `rondo-trainer self-test numbers` checks this installation")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::panic)]
    fn panics_become_sentences() {
        let said = |text: String| match caught(|| panic!("{text}")) {
            Err(e) => e.to_string(),
            Ok(()) => String::new(),
        };
        assert!(said("expected 5D\nC++ frames".to_owned()).contains("failed: expected 5D;"));
        assert!(said("CUDA out of memory. Tried to".to_owned()).contains("lower `mini_batch`"));
        assert_eq!(caught(|| 3).ok(), Some(3));
    }
}
