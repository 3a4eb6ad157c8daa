//! DrainBucket: a bucket of any size is emptied, over as many calls as it takes; in an erasure, so are the tenant's exports.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::Removal;
use crate::aws::s3;
use crate::environment::Environment;
use crate::error::StepError;
use crate::export::{PART_TIMEOUT, folder_of};
use crate::postgres::Database;
use crate::registry::holds::{self, Hold, Kind};
use crate::registry::{Record, exports};
use crate::resource::bucket::{Bucket, Emptied, empty_for};

/// How long one call deletes exports, of which there are few files; and how long it waits for those that are being written. With a
/// whole call's work on the bucket both stay below the functions' `Timeout`.
const EXPORTS_TIME: Duration = Duration::from_secs(5);
const EXPORTS_WAIT: Duration = Duration::from_secs(10);

/// Deletes what the bucket holds, as much as one call manages; the machine calls again while there is more.
pub struct DrainBucket {
    bucket: Bucket,
    s3: aws_sdk_s3::Client,
    exports: String,
}

impl DrainBucket {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(DrainBucket { bucket: Bucket::from_env(env)?, s3: s3(&env.aws), exports: env.required("EXPORTS_BUCKET")? })
    }

    /// Deletes what was exported before somebody asked for erasure, and ends the links to it. Where that broke an export off, not all
    /// is deleted before its last function has ended.
    async fn erase_exports(&self, record: &Record, hold: &Hold, registry: &Database) -> Result<Emptied, StepError> {
        let (client, tenant) = (registry.client().await?, record.tenant.id);
        exports::revoke_links(&*client, tenant, &hold.requested_by).await?;
        let broken_off = holds::export_broken_off(&client, tenant).await?;
        drop(client);
        let since = broken_off.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let left = since.map_or(Duration::ZERO, |since| PART_TIMEOUT.saturating_sub(since));
        let wait = left.min(EXPORTS_WAIT);
        sleep(wait).await;
        let folder = folder_of(&tenant.to_string());
        let emptied = empty_for(&self.s3, &self.exports, Some(&folder), EXPORTS_TIME).await?;
        Ok(Emptied { all: emptied.all && wait == left, ..emptied })
    }
}

#[async_trait]
impl Removal for DrainBucket {
    async fn act(&self, record: &Record, hold: &Hold, registry: &Database) -> Result<Value, StepError> {
        let mut emptied = self.bucket.drain(&record.tenant).await?;
        // Any other deletion leaves them until they expire: the owner was promised the link for its days.
        if emptied.all && hold.kind == Kind::Erasure {
            let erased = self.erase_exports(record, hold, registry).await?;
            emptied = Emptied { deleted: emptied.deleted + erased.deleted, all: erased.all };
        }
        Ok(json!({ "decision": if emptied.all { "done" } else { "more" }, "deleted": emptied.deleted }))
    }
}
