//! DrainBucket: a bucket of any size is emptied, over as many calls as it takes.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::Removal;
use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::registry::Record;
use crate::registry::holds::Hold;
use crate::resource::bucket::Bucket;

/// Deletes what the bucket holds, as much as one call manages; the machine calls again while there is more.
pub struct DrainBucket {
    bucket: Bucket,
}

impl DrainBucket {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(DrainBucket { bucket: Bucket::from_env(env)? })
    }
}

#[async_trait]
impl Removal for DrainBucket {
    async fn act(&self, record: &Record, _hold: &Hold, _registry: &Database) -> Result<Value, StepError> {
        let emptied = self.bucket.drain(&record.tenant).await?;
        Ok(json!({ "decision": if emptied.all { "done" } else { "more" }, "deleted": emptied.deleted }))
    }
}
