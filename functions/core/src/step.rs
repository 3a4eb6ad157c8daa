//! The step runner.
