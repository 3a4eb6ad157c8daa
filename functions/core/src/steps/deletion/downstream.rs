//! AskDownstream, AwaitDownstream and ConfirmDeletion: systems outside this stack are asked to delete the tenant's data, waited for
//! within a bound, and heard. RegisterDownstream says which systems there are.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::Removal;
use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::registry::downstream::{self, Waiting};
use crate::registry::holds::Hold;
use crate::registry::{self, Record, Selector};
use crate::request::{Confirmation, DownstreamSystem};
use crate::resource::wait::PATIENCE;
use crate::step::{Step, log_tenant};
use crate::steps::publish::PublishEvents;

const POLL: Duration = Duration::from_millis(500);
/// The pauses of the machine between two looks, in seconds: a fifth of the time that has passed, so that a quick answer is seen
/// soon and a day's wait is 200 looks.
const PAUSES: std::ops::RangeInclusive<f64> = 2.0..=600.0;

/// Writes `tenant.deletion_requested`, and publishes it.
pub struct AskDownstream {
    events: PublishEvents,
    seconds: f64,
}

/// Waits for the confirmations, a while itself, and then at the machine's pace.
pub struct AwaitDownstream {
    seconds: f64,
}

/// Records a system's confirmation.
pub struct ConfirmDeletion {
    registry: Database,
}

/// Registers a system, or retires it.
pub struct RegisterDownstream {
    registry: Database,
}

impl AskDownstream {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(AskDownstream { events: PublishEvents::from_env(env)?, seconds: env.number("DOWNSTREAM_SECONDS")? })
    }
}

#[async_trait]
impl Removal for AskDownstream {
    async fn act(&self, record: &Record, _hold: &Hold, registry: &Database) -> Result<Value, StepError> {
        let tenant = record.tenant.id;
        let asked = downstream::ask(&mut *registry.client().await?, tenant, self.seconds).await?;
        self.events.publish(Some(tenant)).await?;
        Ok(json!({ "asked": asked }))
    }
}

impl AwaitDownstream {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(AwaitDownstream { seconds: env.number("DOWNSTREAM_SECONDS")? })
    }

    /// Whether nobody is waited for any more.
    fn is_over(&self, waiting: &Waiting) -> bool {
        waiting.systems.is_empty() || waiting.asked_for >= self.seconds
    }

    /// Seconds until the machine looks again.
    fn pause(&self, waiting: &Waiting) -> u64 {
        let pause = (waiting.asked_for / 5.0).clamp(*PAUSES.start(), *PAUSES.end());
        let left = (self.seconds - waiting.asked_for).max(1.0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // between 1 and 600
        let whole = pause.min(left).ceil() as u64;
        whole
    }
}

#[async_trait]
impl Removal for AwaitDownstream {
    async fn act(&self, record: &Record, _hold: &Hold, registry: &Database) -> Result<Value, StepError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let waiting = downstream::waiting(&*registry.client().await?, record.tenant.id).await?;
            if self.is_over(&waiting) {
                if !waiting.systems.is_empty() {
                    tracing::warn!(systems = waiting.systems.join(", "), "did not confirm the deletion in time");
                }
                return Ok(json!({ "decision": "done", "seconds": 0, "unconfirmed": waiting.systems }));
            }
            if Instant::now() + POLL > deadline {
                return Ok(json!({ "decision": "wait", "seconds": self.pause(&waiting) }));
            }
            sleep(POLL).await;
        }
    }
}

impl ConfirmDeletion {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ConfirmDeletion { registry: Database::registry(env)? })
    }
}

#[async_trait]
impl Step for ConfirmDeletion {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let confirmation = Confirmation::parse(input)?;
        let client = self.registry.client().await?;
        let record = registry::read(&*client, &Selector::Id(confirmation.tenant)).await?;
        log_tenant(&record.tenant);
        downstream::confirm(&client, confirmation.tenant, &confirmation.system, confirmation.records).await?;
        tracing::info!(system = confirmation.system, "confirmed that it deleted the tenant's data");
        Ok(json!({ "tenant_id": confirmation.tenant, "system": confirmation.system }))
    }
}

impl RegisterDownstream {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(RegisterDownstream { registry: Database::registry(env)? })
    }
}

#[async_trait]
impl Step for RegisterDownstream {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let DownstreamSystem { name, kind, retire, actor } = DownstreamSystem::parse(input)?;
        downstream::register(&mut *self.registry.client().await?, &name, &kind, retire, &actor).await?;
        Ok(json!({ "system": name, "kind": kind, "asked": !retire }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_the_time_that_has_passed() {
        let day = AwaitDownstream { seconds: 86_400.0 };
        let after = |asked_for| Waiting { systems: vec!["search".into()], asked_for };
        assert_eq!([0.0, 20.0, 100.0, 86_000.0].map(|seconds| day.pause(&after(seconds))), [2, 4, 20, 400]);
        assert!(day.is_over(&after(86_400.0)) && !day.is_over(&after(86_399.0)));
        assert!(day.is_over(&Waiting { systems: Vec::new(), asked_for: 1.0 }));
        // Each look lasts 20 s itself.
        let mut looks = (0, 0.0);
        while looks.1 < day.seconds {
            looks =
                (looks.0 + 1, looks.1 + 20.0 + f64::from(u32::try_from(day.pause(&after(looks.1))).expect("small")));
        }
        // A look is about ten events of the execution's 25,000.
        assert!((100..300).contains(&looks.0), "{looks:?}");
    }
}
