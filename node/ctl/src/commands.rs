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

/// Seconds of Unix time.
pub(crate) fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0)
}
