//! DrainBucket: a bucket of any size is emptied, over as many calls as it takes; in an erasure, so are the tenant's exports.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::Removal;
use crate::aws::s3;
use crate::environment::Environment;
use crate::error::StepError;
use crate::export::folder_of;
use crate::postgres::Database;
use crate::registry::holds::{Hold, Kind};
use crate::registry::{Record, exports};
use crate::resource::bucket::{Bucket, Emptied, empty_for};

/// How long one call deletes exports, of which there are few files. With a whole call's work on the bucket this stays below the
/// functions' `Timeout`.
const EXPORTS_TIME: Duration = Duration::from_secs(10);

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

    /// Deletes what was exported before somebody asked for erasure, and ends the links to it.
    async fn erase_exports(&self, record: &Record, hold: &Hold, registry: &Database) -> Result<Emptied, StepError> {
        let tenant = record.tenant.id;
        exports::revoke_links(&*registry.client().await?, tenant, &hold.requested_by).await?;
        empty_for(&self.s3, &self.exports, Some(&folder_of(&tenant.to_string())), EXPORTS_TIME).await
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
