//! The tenant's configuration: feature flags, rate limits and settings, seeded from its plan and then the tenant's own.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::types::{AttributeValue, DeleteRequest, WriteRequest};
use serde_json::{Map, Value, json};

use crate::aws::{classify, code};
use crate::environment::Environment;
use crate::error::StepError;
use crate::resource::{Inspection, Resource};
use crate::tenant::Tenant;

/// The most items that one BatchWriteItem takes (DynamoDB's limit).
const BATCH: usize = 25;

/// The items under `tenant.{id}` in the configuration table. The key holds the tenant's id, which nobody else has: what is
/// under it is the tenant's.
pub struct TenantConfig {
    dynamodb: Client,
    table: String,
}

/// What is seeded: the values by name, of each item.
fn seeds(tenant: &Tenant) -> [(&'static str, &Map<String, Value>); 3] {
    let quotas = &tenant.quotas;
    [("flags", &quotas.flags), ("limits", &quotas.rate_limits), ("settings", &quotas.settings)]
}

/// The names each item holds already.
type Held = BTreeMap<String, Vec<String>>;

impl TenantConfig {
    /// Reads CONFIG_TABLE. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when it is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(TenantConfig { dynamodb: Client::new(&env.aws), table: env.required("CONFIG_TABLE")? })
    }

    /// All there is under the tenant's key, as JSON: the items as they are.
    ///
    /// # Errors
    /// When DynamoDB cannot be asked.
    pub async fn items(&self, tenant: &Tenant) -> Result<Vec<Value>, StepError> {
        let items = self.stored(tenant).await?;
        let unreadable = |error| StepError::Unexpected(format!("the configuration of tenant {}: {error}", tenant.id));
        items.into_iter().map(|item| serde_dynamo::from_item(item).map_err(unreadable)).collect()
    }

    async fn stored(&self, tenant: &Tenant) -> Result<Vec<HashMap<String, AttributeValue>>, StepError> {
        let doing = format!("reading the configuration of tenant {}", tenant.id);
        let pages = self
            .dynamodb
            .query()
            .table_name(&self.table)
            .consistent_read(true)
            .key_condition_expression("tenant = :tenant")
            .expression_attribute_values(":tenant", AttributeValue::S(tenant.config_key()))
            .into_paginator()
            .items()
            .send();
        pages.collect::<Result<_, _>>().await.map_err(|error| classify(&doing, &error))
    }

    async fn held(&self, tenant: &Tenant) -> Result<Held, StepError> {
        let mut held = Held::new();
        for item in self.stored(tenant).await? {
            let Some(Ok(name)) = item.get("item").map(AttributeValue::as_s) else { continue };
            let names = item.get("values").and_then(|values| values.as_m().ok()).into_iter().flat_map(HashMap::keys);
            held.insert(name.clone(), names.cloned().collect());
        }
        Ok(held)
    }

    /// Writes what is missing of an item, each value only where there is none: what the tenant sets meanwhile stays.
    async fn seed(
        &self,
        tenant: &Tenant,
        item: &str,
        missing: &BTreeMap<&str, &Value>,
        exists: bool,
    ) -> Result<(), StepError> {
        let doing = format!("seeding {item} of tenant {}", tenant.id);
        let key = [("tenant", tenant.config_key()), ("item", item.to_owned())];
        let key = key.map(|(name, value)| (name.to_owned(), AttributeValue::S(value)));
        if exists {
            let mut update = self.dynamodb.update_item().table_name(&self.table).set_key(Some(key.into()));
            let mut sets = Vec::new();
            for (index, (name, value)) in missing.iter().enumerate() {
                sets.push(format!("#values.#n{index} = if_not_exists(#values.#n{index}, :v{index})"));
                update = update
                    .expression_attribute_names(format!("#n{index}"), *name)
                    .expression_attribute_values(format!(":v{index}"), attribute(value)?);
            }
            // Not where the item was removed meanwhile: an update would make half of one.
            let update = update.condition_expression("attribute_exists(#values)");
            let update = update.expression_attribute_names("#values", "values");
            let update = update.update_expression(format!("SET {}", sets.join(", ")));
            update.send().await.map(drop).map_err(|error| unwritten(&doing, &error))
        } else {
            let values = missing.iter().map(|(name, value)| Ok(((*name).to_owned(), attribute(value)?)));
            let values = values.collect::<Result<_, StepError>>()?;
            let put = self.dynamodb.put_item().table_name(&self.table).set_item(Some(key.into()));
            let put =
                put.item("values", AttributeValue::M(values)).condition_expression("attribute_not_exists(tenant)");
            put.send().await.map(drop).map_err(|error| unwritten(&doing, &error))
        }
    }

    /// Deletes the items of these names.
    async fn delete(&self, tenant: &Tenant, items: &[String]) -> Result<(), StepError> {
        let doing = &format!("deleting the configuration of tenant {}", tenant.id);
        for names in items.chunks(BATCH) {
            let mut requests = Vec::new();
            for name in names {
                let delete = DeleteRequest::builder()
                    .key("tenant", AttributeValue::S(tenant.config_key()))
                    .key("item", AttributeValue::S(name.clone()))
                    .build()
                    .map_err(|error| StepError::Unexpected(format!("{doing}: {error}")))?;
                requests.push(WriteRequest::builder().delete_request(delete).build());
            }
            let write = self.dynamodb.batch_write_item().request_items(&self.table, requests).send().await;
            let left = write.map_err(|error| classify(doing, &error))?.unprocessed_items.unwrap_or_default();
            let left: usize = left.values().map(Vec::len).sum();
            if left > 0 {
                return Err(StepError::Transient(format!("{doing}: DynamoDB put off {left} items")));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Resource for TenantConfig {
    fn kind(&self) -> &'static str {
        "configuration"
    }

    async fn ensure(&self, tenant: &Tenant) -> Result<Value, StepError> {
        let held = self.held(tenant).await?;
        for (item, seeds) in seeds(tenant) {
            let missing = missing(&held, item, seeds);
            if !missing.is_empty() || !held.contains_key(item) {
                self.seed(tenant, item, &missing, held.contains_key(item)).await?;
            }
        }
        Ok(json!({ "table": self.table, "key": tenant.config_key() }))
    }

    async fn remove(&self, tenant: &Tenant) -> Result<(), StepError> {
        let items: Vec<String> = self.held(tenant).await?.into_keys().collect();
        self.delete(tenant, &items).await
    }

    async fn inspect(&self, tenant: &Tenant) -> Result<Inspection, StepError> {
        let held = self.held(tenant).await?;
        if held.is_empty() {
            return Ok(Inspection::Absent);
        }
        let mut drift = Vec::new();
        for (item, seeds) in seeds(tenant) {
            if held.contains_key(item) {
                drift.extend(missing(&held, item, seeds).keys().map(|name| format!("{item}: no {name}")));
            } else {
                drift.push(format!("{item}: missing"));
            }
        }
        Ok(if drift.is_empty() { Inspection::Present } else { Inspection::Drifted(drift) })
    }
}

/// The seeds of an item whose names it does not hold.
fn missing<'a>(held: &Held, item: &str, seeds: &'a Map<String, Value>) -> BTreeMap<&'a str, &'a Value> {
    let known = held.get(item).map_or(&[][..], Vec::as_slice);
    let absent = seeds.iter().filter(|(name, _)| !known.contains(name));
    absent.map(|(name, value)| (name.as_str(), value)).collect()
}

/// A condition that does not hold is another's write in between: the next look sees it.
fn unwritten<E>(doing: &str, error: &SdkError<E>) -> StepError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match code(error) {
        Some("ConditionalCheckFailedException") => {
            StepError::Transient(format!("{doing}: it was written by another meanwhile"))
        }
        _ => classify(doing, error),
    }
}

fn attribute(value: &Value) -> Result<AttributeValue, StepError> {
    serde_dynamo::to_attribute_value(value)
        .map_err(|error| StepError::Unexpected(format!("a plan's default does not fit DynamoDB: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::samples;

    #[test]
    fn only_absent_names_are_seeded() {
        let tenant = samples::tenant();
        let held = Held::from([("flags".to_owned(), vec!["sso".to_owned(), "own".to_owned()])]);
        let (item, flags) = seeds(&tenant)[0];
        assert_eq!(missing(&held, item, flags).into_keys().collect::<Vec<_>>(), ["api_access"]);
        let (item, settings) = seeds(&tenant)[2];
        assert_eq!(missing(&held, item, settings).len(), settings.len());
    }
}
