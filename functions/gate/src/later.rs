//! Calls that were admitted while Redis was down, until they are counted.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Calls by tenant and by the second they came in, so that each is counted in its own billing cycle.
#[derive(Default)]
pub(crate) struct Later {
    calls: Mutex<HashMap<(String, i64), u64>>,
}

impl Later {
    /// Remembers calls that came in at a moment (milliseconds since 1970).
    pub(crate) fn add(&self, slug: &str, at: i64, calls: u64) {
        let mut all = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        *all.entry((slug.to_owned(), at / 1000)).or_default() += calls;
    }

    /// Takes all, each as tenant, moment and calls. What cannot be counted yet is added again.
    pub(crate) fn take(&self) -> Vec<(String, i64, u64)> {
        let mut all = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        all.drain().map(|((slug, second), calls)| (slug, second * 1000, calls)).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}
