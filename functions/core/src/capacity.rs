//! Whether this cell can take one tenant more: the quotas of AWS and of the cluster, looked at before anything is made.

use aws_sdk_iam::types::SummaryKeyType;
use tokio_postgres::Client;

use crate::aws::classify;
use crate::environment::Environment;
use crate::error::StepError;
use crate::tenant::Isolation;

/// From this part of a quota on, every new tenant is a warning in the log.
const WARN_PERCENT: i64 = 80;
/// DNS records of one tenant: its host name and the one that says whose it is.
const RECORDS_A_TENANT: i64 = 2;

/// The quotas.
pub struct Capacity {
    iam: aws_sdk_iam::Client,
    rds: aws_sdk_rds::Client,
    buckets: i64,
    namespaces: i64,
    records: i64,
    instances: i64,
}

/// How much of a quota is used.
struct Use {
    what: &'static str,
    used: i64,
    quota: i64,
}

impl Capacity {
    /// Reads BUCKET_QUOTA, NAMESPACE_QUOTA, RECORD_QUOTA and INSTANCE_QUOTA. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when one is missing or no number.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(Capacity {
            iam: aws_sdk_iam::Client::new(&env.aws),
            rds: aws_sdk_rds::Client::new(&env.aws),
            buckets: env.number("BUCKET_QUOTA")?,
            namespaces: env.number("NAMESPACE_QUOTA")?,
            records: env.number("RECORD_QUOTA")?,
            instances: env.number("INSTANCE_QUOTA")?,
        })
    }

    /// Refuses a tenant of this isolation that a quota has no room for.
    ///
    /// # Errors
    /// `NeedsOperator`, naming every quota that is used up.
    pub async fn refuse_full(&self, registry: &Client, isolation: Isolation) -> Result<(), StepError> {
        let (tenants, roles, instances) =
            futures::try_join!(tenants(registry), self.roles(), self.instances_used(isolation))?;
        let mut uses = vec![
            roles,
            Use { what: "S3 buckets", used: tenants, quota: self.buckets },
            Use { what: "Kubernetes namespaces", used: tenants, quota: self.namespaces },
            Use { what: "DNS records", used: (tenants + 1) * RECORDS_A_TENANT - 1, quota: self.records },
        ];
        uses.extend(instances);
        judge(&uses)
    }

    /// IAM itself knows its quota.
    async fn roles(&self) -> Result<Use, StepError> {
        let summary = self.iam.get_account_summary().send().await;
        let summary = summary.map_err(|error| classify("asking IAM for its quota of roles", &error))?;
        let figure = |key: SummaryKeyType| summary.summary_map().and_then(|map| map.get(&key)).copied().map(i64::from);
        // A figure that IAM does not give refuses nobody.
        Ok(Use {
            what: "IAM roles",
            used: figure(SummaryKeyType::from("Roles")).unwrap_or_default(),
            quota: figure(SummaryKeyType::from("RolesQuota")).unwrap_or(i64::MAX / 100),
        })
    }

    async fn instances_used(&self, isolation: Isolation) -> Result<Option<Use>, StepError> {
        if isolation != Isolation::Database {
            return Ok(None);
        }
        let mut used = 0;
        let mut instances = self.rds.describe_db_instances().into_paginator().items().send();
        while let Some(instance) = instances.next().await {
            instance.map_err(|error| classify("counting RDS instances", &error))?;
            used += 1;
        }
        Ok(Some(Use { what: "RDS instances", used, quota: self.instances }))
    }
}

/// Tenants that hold a bucket and a namespace each, or are about to.
async fn tenants(registry: &Client) -> Result<i64, StepError> {
    let sql = "SELECT count(*) FROM tenants WHERE status IN ('provisioning', 'active', 'suspended')";
    Ok(registry.query_one(sql, &[]).await?.try_get(0)?)
}

fn judge(uses: &[Use]) -> Result<(), StepError> {
    for Use { what, used, quota } in uses.iter().filter(|one| one.used * 100 >= one.quota * WARN_PERCENT) {
        tracing::warn!(what, used, quota, "this cell is getting full");
    }
    let full: Vec<String> = uses
        .iter()
        .filter(|one| one.used >= one.quota)
        .map(|one| format!("{} {} of {}", one.what, one.used, one.quota))
        .collect();
    if full.is_empty() {
        return Ok(());
    }
    Err(StepError::NeedsOperator(format!(
        "this cell is full ({}), and nothing was made: have the quota raised, and the stack's parameter with it, or take the \
         tenant into another cell; then send the request again",
        full.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_quota_that_is_used_up_is_named() {
        let of = |what, used, quota| Use { what, used, quota };
        assert!(judge(&[of("S3 buckets", 9, 10), of("IAM roles", 0, 1)]).is_ok());
        let error =
            judge(&[of("S3 buckets", 10, 10), of("IAM roles", 1, 2), of("RDS instances", 41, 40)]).expect_err("full");
        assert!(error.to_string().starts_with("this cell is full (S3 buckets 10 of 10, RDS instances 41 of 40)"));
    }
}
