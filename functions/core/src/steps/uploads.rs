//! IssueUpload, which the product's services call before a tenant uploads something, and SettleUpload, which S3's own events
//! call when something has arrived in a tenant's bucket, or has gone from it.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::environment::Environment;
use crate::error::{Problem, StepError};
use crate::moment;
use crate::postgres::Database;
use crate::registry::quotas::Decision;
use crate::registry::{self, Selector, storage};
use crate::request::quotas::UploadCall;
use crate::resource::bucket::objects::Objects;
use crate::step::{Step, log_tenant};
use crate::steps::quotas::answer;
use crate::tenant::{Tenant, TenantId};

/// How long an upload may take to begin.
const URL_WORKS: Duration = Duration::from_secs(15 * 60);
/// How long its room is kept: longer, for an upload that begins at the last moment, and for its event.
const ROOM_IS_KEPT: Duration = Duration::from_secs(20 * 60);
/// The characters of a UUID.
const ID_LENGTH: usize = 36;

/// Keeps room for an upload, and signs it.
pub struct IssueUpload {
    registry: Database,
    objects: Objects,
}

/// Asks S3 what there is of the object that an event names, and keeps the ledger.
pub struct SettleUpload {
    registry: Database,
    objects: Objects,
}

impl IssueUpload {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(IssueUpload { registry: Database::registry(env)?, objects: Objects::from_env(env)? })
    }
}

impl SettleUpload {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(SettleUpload { registry: Database::registry(env)?, objects: Objects::from_env(env)? })
    }

    /// The tenant whose bucket this is. Other stacks of the account have tenants too, and their events come here as well.
    async fn owner(&self, bucket: &str) -> Result<Option<Tenant>, StepError> {
        let id = bucket.strip_prefix("tenant-").and_then(|rest| rest.get(..ID_LENGTH));
        let Some(id) = id.and_then(|id| id.parse::<TenantId>().ok()) else { return Ok(None) };
        match registry::read(&*self.registry.client().await?, &Selector::Id(id)).await {
            Ok(record) => Ok(Some(record.tenant).filter(|tenant| tenant.bucket() == bucket)),
            Err(StepError::TenantNotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl Step for IssueUpload {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let UploadCall { tenant, key, bytes, content_type } = UploadCall::parse(input)?;
        let mut client = self.registry.client().await?;
        let tenant = registry::read(&*client, &tenant).await?.tenant;
        log_tenant(&tenant);
        // Signed first: room that is kept for a URL which nobody gets would be lost for a while.
        let until = OffsetDateTime::now_utc() + URL_WORKS;
        let upload = self.objects.presign(&tenant, &key, bytes, content_type.as_deref(), URL_WORKS).await?;
        let by_id = Selector::Id(tenant.id);
        let (tenant, decision) = storage::reserve(&mut client, &by_id, &key, bytes, ROOM_IS_KEPT).await?;
        let mut answer = answer(&tenant, &decision);
        if let Decision::Granted(_) = decision {
            let until = moment::text(until)?;
            answer["upload"] =
                json!({ "method": "PUT", "url": upload.url, "headers": upload.headers, "expires_at": until });
        }
        Ok(answer)
    }
}

#[async_trait]
impl Step for SettleUpload {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let (bucket, key) = named(input)?;
        let Some(tenant) = self.owner(bucket).await? else { return Ok(json!({ "settled": false })) };
        log_tenant(&tenant);
        let mut client = self.registry.client().await?;
        // What the event says may be over: S3 is asked, in the turn in which its answer is written.
        let turn = storage::turn(&mut client, tenant.id, key.as_bytes()).await?;
        let (stretch, versions) = self.objects.of_key(&tenant, key).await?;
        let change = storage::settle(turn, tenant.id, &stretch, &versions).await?;
        Ok(json!({
            "settled": true, "arrived": change.arrived, "gone": change.gone, "bytes": change.bytes,
            "kept_promises": change.kept_promises,
        }))
    }
}

/// The bucket and the key in the detail of S3's event. EventBridge gives keys as they are.
fn named(detail: &Value) -> Result<(&str, &str), StepError> {
    let missing =
        |field: &str| Problem { field: field.to_owned(), rule: "must be there, as in S3's events".to_owned() };
    match (detail["bucket"]["name"].as_str(), detail["object"]["key"].as_str()) {
        (Some(bucket), Some(key)) if !key.is_empty() => Ok((bucket, key)),
        (None, _) => Err(StepError::InvalidRequest(vec![missing("bucket.name")])),
        _ => Err(StepError::InvalidRequest(vec![missing("object.key")])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_names_a_bucket_and_a_key() {
        let detail = json!({"bucket": {"name": "tenant-x"}, "object": {"key": "a b", "size": 1}});
        assert_eq!(named(&detail), Ok(("tenant-x", "a b")));
        assert!(named(&json!({"bucket": {"name": "tenant-x"}})).is_err());
        assert!(named(&json!({"object": {"key": "k"}})).is_err());
    }
}
