//! CountTenant and ScanTenant: what there is of a tenant before its deletion, and whether anything is left after it.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::Removal;
use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::registry::holds::{Hold, Kind};
use crate::registry::{Record, deletions};
use crate::scan::{Report, Scan, Subject};

/// How often everything is removed once more when the scan finds something: what was written while it was being removed goes then.
/// What is left after that needs somebody to look.
const MOST_ROUNDS: i32 = 1;

/// Counts, by every store's own listing, before anything is deleted.
pub struct CountTenant {
    scan: Scan,
}

/// Looks again, after all is deleted.
pub struct ScanTenant {
    scan: Scan,
}

impl CountTenant {
    /// Wires the step, with every store.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(CountTenant { scan: Scan::from_env(env)? })
    }
}

impl ScanTenant {
    /// Wires the step, with every store.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ScanTenant { scan: Scan::from_env(env)? })
    }
}

async fn subject(record: &Record, hold: &Hold, registry: &Database) -> Result<Subject, StepError> {
    let deletion = deletions::read(&*registry.client().await?, record.tenant.id).await?;
    Ok(Subject { tenant: record.tenant.clone(), billed: deletion.billed, is_erased: hold.kind == Kind::Erasure })
}

fn document(report: &Report) -> Result<Value, StepError> {
    serde_json::to_value(report).map_err(|error| StepError::Unexpected(format!("writing down what was found: {error}")))
}

#[async_trait]
impl Removal for CountTenant {
    async fn act(&self, record: &Record, hold: &Hold, registry: &Database) -> Result<Value, StepError> {
        let report = self.scan.look(&subject(record, hold, registry).await?).await?;
        let counts = document(&report)?;
        deletions::keep_counts(&*registry.client().await?, record.tenant.id, &counts).await?;
        Ok(json!({ "found": report.words() }))
    }
}

#[async_trait]
impl Removal for ScanTenant {
    async fn act(&self, record: &Record, hold: &Hold, registry: &Database) -> Result<Value, StepError> {
        let tenant = record.tenant.id;
        let report = self.scan.look(&subject(record, hold, registry).await?).await?;
        let client = registry.client().await?;
        deletions::keep_scan(&client, tenant, &document(&report)?, report.is_clean()).await?;
        if report.is_clean() {
            return Ok(json!({ "decision": "clean" }));
        }
        let words = report.words();
        if deletions::another_round(&client, tenant, MOST_ROUNDS).await? {
            tracing::warn!(left = words, "something is left: everything is removed once more");
            return Ok(json!({ "decision": "again", "left": words }));
        }
        Err(StepError::Transient(format!(
            "tenant {tenant} is not gone: {words}. Remove it by the store's own means, then start delete-tenant again with \
             {{\"tenant_id\": \"{tenant}\"}}"
        )))
    }
}
