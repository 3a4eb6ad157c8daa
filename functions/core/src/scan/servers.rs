//! RDS: instances of tenants' own, and their snapshots, those included that somebody made by hand.

use async_trait::async_trait;
use aws_sdk_rds::Client;
use aws_sdk_rds::types::Tag;

use super::{Finding, Store, Subject, count};
use crate::aws::classify;
use crate::environment::Environment;
use crate::error::StepError;
use crate::tenant::{OWNER_TAG, Tenant};

/// The account's instances in this region.
pub(super) struct Servers {
    rds: Client,
}

impl Servers {
    pub(super) fn from_env(env: &Environment) -> Self {
        Servers { rds: Client::new(&env.aws) }
    }

    /// The tenant's instances, by name or tag, each with its status.
    async fn instances(&self, tenant: &Tenant) -> Result<Vec<String>, StepError> {
        let mut pages = self.rds.describe_db_instances().into_paginator().items().send();
        let mut found = Vec::new();
        while let Some(instance) = pages.next().await {
            let instance = instance.map_err(|error| classify("listing RDS instances", &error))?;
            let named = instance.db_instance_identifier() == Some(&tenant.database_instance());
            if named || marked(instance.tag_list(), tenant) {
                found.push(instance.db_instance_status().unwrap_or_default().to_owned());
            }
        }
        Ok(found)
    }

    /// Whether the tenant has an instance that can be asked.
    pub(super) async fn answers(&self, tenant: &Tenant) -> Result<bool, StepError> {
        Ok(self.instances(tenant).await?.iter().any(|status| status == "available"))
    }

    async fn snapshots(&self, tenant: &Tenant) -> Result<usize, StepError> {
        let mut pages = self.rds.describe_db_snapshots().into_paginator().items().send();
        let mut found = 0;
        while let Some(snapshot) = pages.next().await {
            let snapshot = snapshot.map_err(|error| classify("listing RDS snapshots", &error))?;
            let of_it = snapshot.db_instance_identifier() == Some(&tenant.database_instance());
            found += usize::from(of_it || marked(snapshot.tag_list(), tenant));
        }
        Ok(found)
    }
}

#[async_trait]
impl Store for Servers {
    fn name(&self) -> &'static str {
        "database servers"
    }

    async fn look(&self, subject: &Subject) -> Result<Finding, StepError> {
        let (instances, snapshots) =
            futures::try_join!(self.instances(&subject.tenant), self.snapshots(&subject.tenant))?;
        Ok(Finding::of([("instances", count(instances.len())), ("snapshots", count(snapshots))]))
    }
}

fn marked(tags: &[Tag], tenant: &Tenant) -> bool {
    let id = tenant.id.to_string();
    tags.iter().any(|tag| tag.key() == Some(OWNER_TAG) && tag.value() == Some(&id))
}
