//! DynamoDB: every item under the tenant's key. The key is the table's partition key, so a query for it is a listing.

use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{AttributeValue, Select};

use super::{Finding, Store, Subject};
use crate::aws::classify;
use crate::environment::Environment;
use crate::error::StepError;

/// The configuration table.
pub(super) struct Items {
    dynamodb: Client,
    table: String,
}

impl Items {
    pub(super) fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(Items { dynamodb: Client::new(&env.aws), table: env.required("CONFIG_TABLE")? })
    }
}

#[async_trait]
impl Store for Items {
    fn name(&self) -> &'static str {
        "configuration"
    }

    async fn look(&self, subject: &Subject) -> Result<Finding, StepError> {
        let mut pages = self
            .dynamodb
            .query()
            .table_name(&self.table)
            .consistent_read(true)
            .select(Select::Count)
            .key_condition_expression("tenant = :tenant")
            .expression_attribute_values(":tenant", AttributeValue::S(subject.tenant.config_key()))
            .into_paginator()
            .send();
        let mut items = 0;
        while let Some(page) = pages.next().await {
            items += page.map_err(|error| classify("counting configuration items", &error))?.count;
        }
        Ok(Finding::of([("items", i64::from(items))]))
    }
}
