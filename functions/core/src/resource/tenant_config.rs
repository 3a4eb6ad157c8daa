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
use crate::postgres::Database;
use crate::registry::plans::{self, Defaults};
use crate::resource::{Inspection, Resource};
use crate::step::Action;
use crate::tenant::Tenant;

/// The most items that one BatchWriteItem takes (DynamoDB's limit).
const BATCH: usize = 25;

/// The items under `tenant.{id}` in the configuration table. The key holds the tenant's id, which nobody else has: what is
/// under it is the tenant's.
///
/// Beside an item's `values` lies what of them was `seeded`. A value that is as it was seeded follows the plan; any other is
/// the tenant's own choice, and stays.
pub struct TenantConfig {
    dynamodb: Client,
    table: String,
}

/// The configuration as it follows a change of plan.
pub struct PlanConfig(pub TenantConfig);

/// What is seeded: the values by name, of each item.
fn seeds(tenant: &Tenant) -> Seeds<'_> {
    let quotas = &tenant.quotas;
    [("flags", &quotas.flags), ("limits", &quotas.rate_limits), ("settings", &quotas.settings)]
}

/// What another plan had seeded, in the same order.
fn seeds_before(before: &Defaults) -> Seeds<'_> {
    [("flags", &before.flags), ("limits", &before.rate_limits), ("settings", &before.settings)]
}

type Seeds<'a> = [(&'static str, &'a Map<String, Value>); 3];
type Attributes = HashMap<String, AttributeValue>;
/// The items that there are.
type Held = BTreeMap<String, Item>;

/// An item as it is.
#[derive(Debug, Clone, PartialEq)]
struct Item {
    values: Attributes,
    /// As seeded; `None` in an item that was written without it.
    seeded: Option<Attributes>,
}

/// What is to become of one of an item's values.
#[derive(Debug, Clone, PartialEq)]
enum Move {
    /// There is none.
    Add(AttributeValue),
    /// It is as seeded, and the plan says otherwise.
    Change { is: AttributeValue, to: AttributeValue },
    /// It is as seeded, and the plan has none.
    Drop { is: AttributeValue },
}

impl Item {
    /// What was seeded of it. Where that was not written down, what was seeded `before` is taken for it.
    fn seeded(&self, before: &Map<String, Value>) -> Result<Attributes, StepError> {
        if let Some(seeded) = &self.seeded {
            return Ok(seeded.clone());
        }
        let known = before.iter().filter(|(name, _)| self.values.contains_key(*name));
        known.map(|(name, value)| Ok((name.clone(), attribute(value)?))).collect()
    }
}

impl TenantConfig {
    /// Reads CONFIG_TABLE. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when it is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(TenantConfig { dynamodb: Client::new(&env.aws), table: env.required("CONFIG_TABLE")? })
    }

    /// Adds what is missing and moves what is as seeded to what the tenant's plan says. `before` is what the plan that the
    /// tenant comes from had seeded, for items that do not tell.
    async fn follow(&self, tenant: &Tenant, before: Seeds<'_>) -> Result<Value, StepError> {
        let held = self.held(tenant).await?;
        for ((name, seeds), (_, before)) in seeds(tenant).into_iter().zip(before) {
            let Some(item) = held.get(name) else {
                self.create(tenant, name, seeds).await?;
                continue;
            };
            let moves = moves(item, seeds, before)?;
            if !moves.is_empty() || item.seeded.is_none() {
                self.update(tenant, name, item.seeded(before)?, moves).await?;
            }
        }
        Ok(json!({ "table": self.table, "key": tenant.config_key() }))
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
            let map = |key: &str| item.get(key).and_then(|map| map.as_m().ok()).cloned();
            held.insert(name.clone(), Item { values: map("values").unwrap_or_default(), seeded: map("seeded") });
        }
        Ok(held)
    }

    /// Writes an item that is not there.
    async fn create(&self, tenant: &Tenant, item: &str, seeds: &Map<String, Value>) -> Result<(), StepError> {
        let values: Attributes = seeds
            .iter()
            .map(|(name, value)| Ok((name.clone(), attribute(value)?)))
            .collect::<Result<_, StepError>>()?;
        let put = self.dynamodb.put_item().table_name(&self.table).set_item(Some(key(tenant, item)));
        let put = put.item("values", AttributeValue::M(values.clone())).item("seeded", AttributeValue::M(values));
        let put = put.condition_expression("attribute_not_exists(tenant)").send().await;
        put.map(drop).map_err(|error| unwritten(&format!("seeding {item} of tenant {}", tenant.id), &error))
    }

    /// Makes the moves of an item, and writes in the same call what is seeded then. Each only while the value is as it was
    /// looked at: what the tenant sets meanwhile stays.
    async fn update(
        &self,
        tenant: &Tenant,
        item: &str,
        mut seeded: Attributes,
        moves: BTreeMap<String, Move>,
    ) -> Result<(), StepError> {
        let mut update = self.dynamodb.update_item().table_name(&self.table).set_key(Some(key(tenant, item)));
        // Not where the item was removed meanwhile: an update would make half of one.
        let mut conditions = vec!["attribute_exists(#values)".to_owned()];
        let (mut sets, mut removes) = (vec!["#seeded = :seeded".to_owned()], Vec::new());
        for (index, (name, change)) in moves.into_iter().enumerate() {
            let value = format!("#values.#n{index}");
            let (is, to) = match change {
                Move::Add(to) => (None, Some(to)),
                Move::Change { is, to } => (Some(is), Some(to)),
                Move::Drop { is } => (Some(is), None),
            };
            match is {
                Some(is) => {
                    conditions.push(format!("{value} = :is{index}"));
                    update = update.expression_attribute_values(format!(":is{index}"), is);
                }
                None => conditions.push(format!("attribute_not_exists({value})")),
            }
            match to {
                Some(to) => {
                    sets.push(format!("{value} = :to{index}"));
                    update = update.expression_attribute_values(format!(":to{index}"), to.clone());
                    seeded.insert(name.clone(), to);
                }
                None => {
                    removes.push(value);
                    seeded.remove(&name);
                }
            }
            update = update.expression_attribute_names(format!("#n{index}"), name);
        }
        let mut expression = format!("SET {}", sets.join(", "));
        if !removes.is_empty() {
            expression = format!("{expression} REMOVE {}", removes.join(", "));
        }
        let update = update
            .condition_expression(conditions.join(" AND "))
            .update_expression(expression)
            .expression_attribute_names("#values", "values")
            .expression_attribute_names("#seeded", "seeded")
            .expression_attribute_values(":seeded", AttributeValue::M(seeded));
        let doing = format!("writing {item} of tenant {}", tenant.id);
        update.send().await.map(drop).map_err(|error| unwritten(&doing, &error))
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
        self.follow(tenant, seeds(tenant)).await
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
            match held.get(item) {
                Some(found) => {
                    let moves = moves(found, seeds, seeds)?;
                    drift.extend(moves.iter().map(|(name, change)| format!("{item}: {}", words(name, change))));
                }
                None => drift.push(format!("{item}: missing")),
            }
        }
        Ok(if drift.is_empty() { Inspection::Present } else { Inspection::Drifted(drift) })
    }
}

#[async_trait]
impl Action for PlanConfig {
    async fn act(&self, tenant: &Tenant, database: &Database) -> Result<Value, StepError> {
        let before = plans::seeded_before(&*database.client().await?, tenant.id).await?;
        self.0.follow(tenant, before.as_ref().map_or_else(|| seeds(tenant), seeds_before)).await
    }

    async fn holds(&self, tenant: &Tenant) -> Result<bool, StepError> {
        self.0.holds(tenant).await
    }
}

/// What is to become of an item's values, by name, so that it says what the plan and the tenant say.
fn moves(
    item: &Item,
    plan: &Map<String, Value>,
    before: &Map<String, Value>,
) -> Result<BTreeMap<String, Move>, StepError> {
    let seeded = item.seeded(before)?;
    let mut moves = BTreeMap::new();
    for (name, value) in plan {
        let to = attribute(value)?;
        match item.values.get(name) {
            None => _ = moves.insert(name.clone(), Move::Add(to)),
            Some(is) if seeded.get(name) == Some(is) && *is != to => {
                moves.insert(name.clone(), Move::Change { is: is.clone(), to });
            }
            Some(_) => {}
        }
    }
    for (name, was) in seeded {
        if !plan.contains_key(&name) && item.values.get(&name) == Some(&was) {
            moves.insert(name, Move::Drop { is: was });
        }
    }
    Ok(moves)
}

/// A move in words. What is named was seeded, and so is nothing personal.
fn words(name: &str, change: &Move) -> String {
    let text = |value: &AttributeValue| {
        let value: Result<Value, _> = serde_dynamo::from_attribute_value(value.clone());
        value.map_or_else(|_| "?".to_owned(), |value| value.to_string())
    };
    match change {
        Move::Add(_) => format!("no {name}"),
        Move::Change { is, to } => format!("{name} is {}, and the plan says {}", text(is), text(to)),
        Move::Drop { .. } => format!("{name} is not of this plan"),
    }
}

fn key(tenant: &Tenant, item: &str) -> Attributes {
    let parts = [("tenant", tenant.config_key()), ("item", item.to_owned())];
    parts.map(|(name, value)| (name.to_owned(), AttributeValue::S(value))).into()
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

    fn map(value: &Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    fn attributes(value: &Value) -> Attributes {
        map(value).iter().map(|(name, value)| (name.clone(), attribute(value).expect("an attribute"))).collect()
    }

    fn moved(values: &Value, seeded: Option<&Value>, plan: &Value, before: &Value) -> Vec<String> {
        let item = Item { values: attributes(values), seeded: seeded.map(attributes) };
        let moves = moves(&item, &map(plan), &map(before)).expect("moves");
        moves.iter().map(|(name, change)| words(name, change)).collect()
    }

    #[test]
    fn what_is_as_seeded_follows_the_plan_and_what_is_not_stays() {
        let (starter, growth) = (json!({"sso": false, "burst": 20, "old": 1}), json!({"sso": true, "burst": 200}));
        let own = json!({"sso": false, "burst": 50, "old": 1, "theme": "dark"});
        let moves = moved(&own, Some(&starter), &growth, &growth);
        assert_eq!(moves, ["old is not of this plan", "sso is false, and the plan says true"]);
    }

    #[test]
    fn a_choice_that_happens_to_be_another_plans_default_stays_a_choice() {
        let (starter, growth) = (json!({"sso": false}), json!({"sso": true}));
        // Chosen on growth, then down to starter and up again.
        for plan in [&starter, &growth] {
            assert!(moved(&json!({"sso": false}), Some(&growth), plan, plan).is_empty());
        }
    }

    #[test]
    fn an_item_that_does_not_tell_is_compared_with_the_plan_before() {
        let (starter, growth) = (json!({"sso": false, "burst": 20}), json!({"sso": true, "burst": 200}));
        let values = json!({"sso": false, "burst": 50});
        assert_eq!(moved(&values, None, &growth, &starter), ["sso is false, and the plan says true"]);
        assert!(moved(&values, None, &starter, &starter).is_empty());
    }

    #[test]
    fn only_absent_names_are_added() {
        let tenant = samples::tenant();
        let item = Item { values: attributes(&json!({"sso": true, "own": 1})), seeded: None };
        let (_, flags) = seeds(&tenant)[0];
        let moves = moves(&item, flags, flags).expect("moves");
        assert_eq!(moves.into_keys().collect::<Vec<_>>(), ["api_access"]);
    }
}
