//! PublishEvents: what waits in the outbox goes to the bus. A machine publishes its tenant's events; a schedule sweeps up
//! what a crash left.

use async_trait::async_trait;
use aws_sdk_eventbridge::types::PutEventsRequestEntry;
use serde_json::{Value, json};

use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::registry::{self, outbox};
use crate::request::StepCall;
use crate::step::{Step, log_tenant};
use crate::tenant::TenantId;

/// Entries that one PutEvents call takes (EventBridge quota).
const BATCH: i64 = 10;
/// The source of every event of ours.
const SOURCE: &str = "tenantry";

/// Publishes from the outbox.
pub struct PublishEvents {
    registry: Database,
    events: aws_sdk_eventbridge::Client,
    bus: String,
}

impl PublishEvents {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(PublishEvents {
            registry: Database::registry(env)?,
            events: aws_sdk_eventbridge::Client::new(&env.aws),
            bus: env.required("EVENT_BUS_NAME")?,
        })
    }

    /// Publishes one batch and returns how many events it took and how many the bus accepted. A crash between the bus and
    /// the mark publishes them again, with the same ids.
    async fn publish_batch(&self, tenant: Option<TenantId>) -> Result<(usize, usize), StepError> {
        let mut client = self.registry.client().await?;
        let transaction = client.transaction().await?;
        let waiting = outbox::take(&transaction, tenant, BATCH).await?;
        if waiting.is_empty() {
            return Ok((0, 0));
        }
        let entries = waiting.iter().map(|event| {
            PutEventsRequestEntry::builder()
                .event_bus_name(&self.bus)
                .source(SOURCE)
                .detail_type(&event.event_type)
                .detail(event.detail.to_string())
                .build()
        });
        let doing = format!("publishing to event bus {}", self.bus);
        let answer = self
            .events
            .put_events()
            .set_entries(Some(entries.collect()))
            .send()
            .await
            .map_err(|error| crate::aws::classify(&doing, &error))?;
        // One result an entry, in order; an entry that the bus refused carries an error code instead of an id.
        let mut accepted = Vec::with_capacity(waiting.len());
        for (event, result) in waiting.iter().zip(answer.entries()) {
            match result.error_code() {
                None => accepted.push(event.id),
                Some(code) => tracing::warn!(event = %event.id, code, "the bus refused an event"),
            }
        }
        outbox::mark_published(&transaction, &accepted).await?;
        transaction.commit().await?;
        Ok((waiting.len(), accepted.len()))
    }
}

impl PublishEvents {
    /// Publishes all that waits, of one tenant or of all, and returns how many events that were.
    ///
    /// # Errors
    /// `Transient` when the bus refused some: they stay in the outbox.
    pub(super) async fn publish(&self, tenant: Option<TenantId>) -> Result<usize, StepError> {
        let mut published = 0;
        loop {
            let (taken, accepted) = self.publish_batch(tenant).await?;
            published += accepted;
            if accepted < taken {
                return Err(StepError::Transient(format!(
                    "event bus {} refused {} of {taken} events; they stay in the outbox",
                    self.bus,
                    taken - accepted
                )));
            }
            if taken == 0 {
                return Ok(published);
            }
        }
    }
}

#[async_trait]
impl Step for PublishEvents {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        // The schedule's sweep names no tenant.
        let sweep = input.as_object().is_some_and(serde_json::Map::is_empty);
        let tenant = if sweep {
            None
        } else {
            let call = StepCall::parse(input)?;
            let record = registry::read(&*self.registry.client().await?, &call.tenant).await?;
            log_tenant(&record.tenant);
            Some(record.tenant.id)
        };
        Ok(json!({ "published": self.publish(tenant).await? }))
    }
}
