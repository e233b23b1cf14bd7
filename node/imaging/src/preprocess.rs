//! What a network sees: clipped to the brain's percentiles, z-scored, with label and brain mask.
