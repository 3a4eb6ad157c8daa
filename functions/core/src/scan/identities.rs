//! IAM roles that are named for the tenant, and EKS Pod Identity associations of its namespace.

use async_trait::async_trait;

use super::{Finding, Store, Subject, count};
use crate::aws::{classify, code};
use crate::environment::Environment;
use crate::error::StepError;
use crate::tenant::Tenant;

/// Roles that one page of a listing holds (the most that IAM gives).
const PAGE: i32 = 1000;

/// The account's roles, and the cluster's associations.
pub(super) struct Identities {
    iam: aws_sdk_iam::Client,
    eks: aws_sdk_eks::Client,
    cluster: String,
    /// Whether the cluster may be unknown to EKS: then it has no associations.
    elsewhere: bool,
}

impl Identities {
    pub(super) fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(Identities {
            iam: aws_sdk_iam::Client::new(&env.aws),
            eks: aws_sdk_eks::Client::new(&env.aws),
            cluster: env.required("EKS_CLUSTER")?,
            elsewhere: env.optional("KUBECONFIG").is_some(),
        })
    }

    async fn roles(&self, tenant: &Tenant) -> Result<usize, StepError> {
        let mut pages = self.iam.list_roles().max_items(PAGE).into_paginator().items().send();
        let mut found = 0;
        while let Some(role) = pages.next().await {
            let role = role.map_err(|error| classify("listing IAM roles", &error))?;
            found += usize::from(role.role_name().starts_with(&tenant.role()));
        }
        Ok(found)
    }

    async fn associations(&self, tenant: &Tenant) -> Result<usize, StepError> {
        let list = self.eks.list_pod_identity_associations().cluster_name(&self.cluster);
        let mut pages = list.namespace(tenant.namespace()).into_paginator().items().send();
        let mut found = 0;
        while let Some(association) = pages.next().await {
            match association {
                Err(error) if self.elsewhere && code(&error) == Some("ResourceNotFoundException") => return Ok(0),
                association => {
                    drop(association.map_err(|error| classify("listing Pod Identity associations", &error))?);
                }
            }
            found += 1;
        }
        Ok(found)
    }
}

#[async_trait]
impl Store for Identities {
    fn name(&self) -> &'static str {
        "identities"
    }

    async fn look(&self, subject: &Subject) -> Result<Finding, StepError> {
        let (roles, associations) =
            futures::try_join!(self.roles(&subject.tenant), self.associations(&subject.tenant))?;
        Ok(Finding::of([("roles", count(roles)), ("pod identity associations", count(associations))]))
    }
}
