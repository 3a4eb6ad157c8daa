//! ReconcileStorage, on a schedule: each bucket's ledger is compared with the bucket, once a day, page by page.
//!
//! Events can be lost, and a bucket has more pages than a function has time: every page is a transaction of its own, which
//! remembers how far the bucket is done, and the next run goes on from there.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::registry::storage::{self, Change};
use crate::resource::bucket::objects::Objects;
use crate::step::Step;

/// How long a run begins further pages: a page and its transaction fit between this and the function's `Timeout`.
const BUDGET: Duration = Duration::from_secs(25);

/// Compares and replaces.
pub struct ReconcileStorage {
    registry: Database,
    objects: Objects,
}

/// What a run did. Counts alone: keys are the tenants' words.
#[derive(Default)]
struct Run {
    pages: u64,
    buckets: u64,
    versions: usize,
    drift: Change,
    failed: u64,
}

impl ReconcileStorage {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ReconcileStorage { registry: Database::registry(env)?, objects: Objects::from_env(env)? })
    }

    /// Compares the next page of the bucket that is due first. Returns whether there was one.
    async fn page(&self, run: &mut Run, deadline: Instant) -> Result<bool, StepError> {
        let mut client = self.registry.client().await?;
        let Some(due) = storage::due(&mut client).await? else { return Ok(false) };
        let tenant = due.tenant.clone();
        let (stretch, versions) = match self.objects.after(&tenant, due.reached.as_deref(), deadline).await {
            Ok(listed) => listed,
            Err(error) => {
                // One bucket that cannot be read keeps no other from its turn.
                tracing::warn!(tenant = %tenant.id, error = error.name(), %error, "a bucket could not be compared");
                run.failed += 1;
                due.put_off().await?;
                return Ok(true);
            }
        };
        let change = due.settle(&stretch, &versions).await?;
        run.pages += 1;
        run.versions += versions.len();
        run.buckets += u64::from(stretch.to.is_none());
        if change != Change::default() {
            let Change { arrived, gone, bytes, kept_promises } = change;
            tracing::warn!(
                tenant = %tenant.id, arrived, gone, bytes, kept_promises, "the ledger differed from the bucket"
            );
            run.drift.arrived += arrived;
            run.drift.gone += gone;
            run.drift.bytes += bytes;
            run.drift.kept_promises += kept_promises;
        }
        if !stretch.whole {
            tracing::warn!(tenant = %tenant.id, "a key has more versions than a run can list: some that are gone may be counted");
        }
        Ok(true)
    }
}

#[async_trait]
impl Step for ReconcileStorage {
    async fn run(&self, _name: &'static str, _input: &Value) -> Result<Value, StepError> {
        let deadline = Instant::now() + BUDGET;
        let expired = {
            let client = self.registry.client().await?;
            storage::list_new(&client).await?;
            storage::remove_expired(&client).await?
        };
        let mut run = Run::default();
        let mut done = false;
        while !done && Instant::now() < deadline {
            done = !self.page(&mut run, deadline).await?;
        }
        let Run { pages, buckets, versions, drift, failed } = run;
        Ok(json!({
            "pages": pages, "buckets": buckets, "versions": versions, "failed": failed, "done": done,
            "expired_promises": expired,
            "drift": {
                "arrived": drift.arrived, "gone": drift.gone, "bytes": drift.bytes, "kept_promises": drift.kept_promises,
            },
        }))
    }
}
