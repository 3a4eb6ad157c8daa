//! Secrets Manager: what is named for the tenant, what is scheduled for deletion included.

use async_trait::async_trait;
use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::types::{Filter, FilterNameStringType};

use super::{Finding, Store, Subject, count};
use crate::aws::classify;
use crate::environment::Environment;
use crate::error::StepError;

/// The account's secrets in this region.
pub(super) struct Secrets {
    client: Client,
}

impl Secrets {
    pub(super) fn from_env(env: &Environment) -> Self {
        Secrets { client: Client::new(&env.aws) }
    }
}

#[async_trait]
impl Store for Secrets {
    fn name(&self) -> &'static str {
        "secrets"
    }

    async fn look(&self, subject: &Subject) -> Result<Finding, StepError> {
        let prefix = format!("tenant/{}/", subject.tenant.id);
        let named = Filter::builder().key(FilterNameStringType::Name).values(&prefix).build();
        let list = self.client.list_secrets().include_planned_deletion(true).filters(named);
        let mut pages = list.into_paginator().send();
        let (mut secrets, mut deleting) = (0, 0);
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| classify("listing secrets", &error))?;
            // The filter takes prefixes of words as well.
            let named = |name: Option<&str>| name.is_some_and(|name| name.starts_with(&prefix));
            for secret in page.secret_list().iter().filter(|secret| named(secret.name())) {
                let counted = if secret.deleted_date().is_some() { &mut deleting } else { &mut secrets };
                *counted += 1;
            }
        }
        Ok(Finding::of([("secrets", count(secrets)), ("secrets scheduled for deletion", count(deleting))]))
    }
}
