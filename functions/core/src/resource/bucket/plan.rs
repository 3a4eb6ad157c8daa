//! What of a bucket follows its tenant's plan: the lifecycle rules, and nothing else. Whoever changes a plan needs no right to
//! the rest.

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::types::LifecycleRule;
use serde_json::{Value, json};

use super::lifecycle::same_rules;
use super::{Whose, foreign, set, wanted_rules, whose, write_rules};
use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::step::Action;
use crate::tenant::Tenant;

/// The lifecycle rules of a bucket that is there.
pub struct BucketLifecycle {
    s3: Client,
    account: String,
}

impl BucketLifecycle {
    /// Reads ACCOUNT_ID. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when it is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(BucketLifecycle { s3: crate::aws::s3(&env.aws), account: env.required("ACCOUNT_ID")? })
    }

    /// The rules as they are and as they are to be.
    async fn rules(&self, tenant: &Tenant) -> Result<(Vec<LifecycleRule>, Vec<LifecycleRule>), StepError> {
        let name = tenant.bucket();
        let tags = self.s3.get_bucket_tagging().bucket(&name).expected_bucket_owner(&self.account).send().await;
        match whose(tenant, tags)? {
            Whose::Tenants => {}
            Whose::Anothers(found) => return Err(foreign(name, found)),
            Whose::Nobodys => {
                return Err(StepError::Unexpected(format!(
                    "bucket {name} is missing: run create-bucket by hand for tenant {}, which makes it again, and then \
                     change the plan again",
                    tenant.slug
                )));
            }
        }
        let kept = self.s3.get_bucket_lifecycle_configuration().bucket(&name).send().await;
        let kept = set(&name, kept, "NoSuchLifecycleConfiguration")?.and_then(|output| output.rules);
        let kept = kept.unwrap_or_default();
        let wanted = wanted_rules(tenant, &kept)?;
        Ok((kept, wanted))
    }
}

#[async_trait]
impl Action for BucketLifecycle {
    async fn act(&self, tenant: &Tenant, _database: &Database) -> Result<Value, StepError> {
        let name = tenant.bucket();
        let (kept, wanted) = self.rules(tenant).await?;
        if !same_rules(&kept, &wanted) {
            write_rules(&self.s3, &name, wanted).await?;
        }
        Ok(json!({ "bucket": name }))
    }

    async fn holds(&self, tenant: &Tenant) -> Result<bool, StepError> {
        let (kept, wanted) = self.rules(tenant).await?;
        Ok(same_rules(&kept, &wanted))
    }
}
