//! The registry itself: rows that are personal or tell what was used, in every table that says which tenant a row is of.

use async_trait::async_trait;

use super::{Finding, Kept, Store, Subject};
use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::registry::erasure;

/// The registry's tables.
pub(super) struct Rows {
    registry: Database,
}

impl Rows {
    pub(super) fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(Rows { registry: Database::registry(env)? })
    }
}

#[async_trait]
impl Store for Rows {
    fn name(&self) -> &'static str {
        "registry"
    }

    async fn look(&self, subject: &Subject) -> Result<Finding, StepError> {
        let counts = erasure::rows(&*self.registry.client().await?, subject.tenant.id).await?;
        let stays = |what: &str, why: &str| Kept { what: what.to_owned(), why: why.to_owned(), until: None };
        let tombstone =
            stays("the tenant's row", "the tombstone: its id, its times, and its name, which is not given again");
        let kept = erasure::KEPT.iter().map(|(table, why)| stays(table, why));
        Ok(Finding { counts, kept: std::iter::once(tombstone).chain(kept).collect() })
    }
}
