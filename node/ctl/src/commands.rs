//! What each noun does. A handler asks, checks what comes back, and gives it to `render`.

pub(crate) mod audit;
pub(crate) mod cohort;
pub(crate) mod compare;
pub(crate) mod evaluate;
pub(crate) mod image;
pub(crate) mod local;
pub(crate) mod model;
pub(crate) mod peer;
pub(crate) mod round;
pub(crate) mod site;

use crate::exit::{Exit, Failure};
use std::io::IsTerminal as _;

/// Asks whether to do what cannot be undone; no is the default.
pub(crate) fn confirm(attempted: &str, prompt: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        let text = format!("{attempted}: nobody can be asked here; say --yes");
        return Err(Failure::new(Exit::Usage, text));
    }
    let agreed = dialoguer::Confirm::new()
        .with_prompt(prompt)
        .default(false)
        .interact()
        .map_err(|e| Failure::new(Exit::Internal, format!("{attempted}: {e}")))?;
    if agreed {
        Ok(())
    } else {
        Err(Failure::new(Exit::Refused, format!("{attempted}: nothing was done")))
    }
}

/// Seconds of Unix time.
pub(crate) fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0)
}
