//! x
use crate::world::Case;
pub const CASES: &[(&str, Case)] = &[];
