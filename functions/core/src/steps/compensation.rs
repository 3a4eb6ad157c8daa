//! Compensation: each resource of a failed attempt removed again, in reverse order, and ReleaseTenant, which looks whether
//! that worked and returns the tenant to `pending`.

use async_trait::async_trait;
use futures::future::join_all;
use serde_json::{Value, json};

use super::provisioning::{MACHINE, by_hand};
use crate::environment::Environment;
use crate::error::{Problem, StepError};
use crate::postgres::Database;
use crate::registry::fence::{self, Actor, Failure};
use crate::registry::{self, Record, deletions, journal};
use crate::request::StepCall;
use crate::resource::{self, Inspection, Resource};
use crate::step::{self, Step, log_tenant};
use crate::tenant::{Status, Tenant};

/// Removes one resource, under the fence: of an attempt that failed, or of a tenant that is deleted. The step that made it is no
/// longer done once this has begun.
pub struct Undo {
    registry: Database,
    resource: Box<dyn Resource>,
    undoes: &'static str,
}

/// Looks at every resource, and gives the tenant back: `pending` with the reason, and flagged when something is left over.
pub struct ReleaseTenant {
    registry: Database,
    resources: Vec<Box<dyn Resource>>,
    /// Before each further attempt, in seconds.
    pauses: Vec<f64>,
}

impl Undo {
    /// The undo of the step of that name, which makes the resource.
    ///
    /// # Errors
    /// `Misconfigured` when the registry's secret is not named.
    pub fn of(
        undoes: &'static str,
        env: &Environment,
        resource: Box<dyn Resource>,
    ) -> Result<Box<dyn Step>, StepError> {
        Ok(Box::new(Undo { registry: Database::registry(env)?, resource, undoes }))
    }

    async fn undo(&self, record: &Record, actor: &Actor) -> Result<Value, StepError> {
        journal::begin_undo(&*self.registry.client().await?, record, self.undoes, actor).await?;
        let removed = self.resource.remove(&record.tenant).await;
        journal::end_undo(&*self.registry.client().await?, record, self.undoes, actor, removed.as_ref().err()).await?;
        removed?;
        Ok(json!({ "undone": self.undoes, "resource": self.resource.kind() }))
    }
}

#[async_trait]
impl Step for Undo {
    async fn run(&self, name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = StepCall::parse(input)?;
        let record = registry::read(&*self.registry.client().await?, &call.tenant).await?;
        log_tenant(&record.tenant);
        fence::check(&record, &call.actor, &[Status::Provisioning, Status::Suspended])?;
        let deleted = record.tenant.status == Status::Suspended;
        if deleted {
            // Nothing of a tenant in service is taken away: a suspended one's only once its deletion has begun.
            deletions::under_way(&*self.registry.client().await?, &record, &call.actor).await?;
        }
        let Actor::Execution(execution) = &call.actor else {
            if !deleted {
                refuse_in_service(&record)?;
            }
            let work = self.undo(&record, &call.actor);
            return step::act_by_hand(&self.registry, &record, &call.actor, name, work).await;
        };
        if let Some(failure) = &call.failure {
            // Before the journal forgets which step it was.
            fence::note_failure(&*self.registry.client().await?, record.tenant.id, execution, failure).await?;
        }
        self.undo(&record, &call.actor).await
    }
}

/// A person may clear up after a failed attempt, and may not take a tenant's things away while it is in service.
fn refuse_in_service(record: &Record) -> Result<(), StepError> {
    if record.tenant.status == Status::Pending {
        return Ok(());
    }
    Err(StepError::InvalidRequest(vec![Problem {
        field: "execution".into(),
        rule: format!(
            "must be the execution that compensates tenant {}: it is {}, and by hand only what a pending tenant left \
             behind is removed",
            record.tenant.slug, record.tenant.status
        ),
    }]))
}

impl ReleaseTenant {
    /// Wires the step, with every resource that provisioning makes.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        let pauses = env.numbers("RETRY_PAUSES")?;
        Ok(ReleaseTenant { registry: Database::registry(env)?, resources: resource::all(env)?, pauses })
    }

    /// What of the tenant's still exists, all systems asked at once. What is another's is not the tenant's to leave behind.
    async fn leftovers(&self, tenant: &Tenant) -> Result<Vec<&'static str>, StepError> {
        let looks = self.resources.iter().map(|resource| async {
            match resource.inspect(tenant).await {
                Ok(Inspection::Absent | Inspection::Foreign(_)) => Ok(None),
                Ok(Inspection::Present | Inspection::Drifted(_)) => Ok(Some(resource.kind())),
                Err(error) => Err(error.during(&format!("looking whether the {} is gone", resource.kind()))),
            }
        });
        let looks: Result<Vec<_>, _> = join_all(looks).await.into_iter().collect();
        Ok(looks?.into_iter().flatten().collect())
    }
}

#[async_trait]
impl Step for ReleaseTenant {
    async fn run(&self, name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = StepCall::parse(input)?;
        let record = registry::read(&*self.registry.client().await?, &call.tenant).await?;
        log_tenant(&record.tenant);
        let Actor::Execution(execution) = &call.actor else {
            return by_hand(&record, &[Status::Pending], json!({ "step": name, "outcome": "nothing to do" }), MACHINE);
        };
        if record.tenant.status == Status::Pending && record.execution.is_none() {
            return Ok(json!({ "step": name, "outcome": "done before" }));
        }
        fence::check(&record, &call.actor, &[Status::Provisioning])?;
        let failure = call.failure.unwrap_or_else(Failure::compensated);
        let leftovers = self.leftovers(&record.tenant).await?;
        if !leftovers.is_empty() {
            tracing::error!(
                leftovers = leftovers.join(", "),
                needs_operator = true,
                "compensation left something behind"
            );
        }
        let mut client = self.registry.client().await?;
        fence::release(&mut client, record.tenant.id, execution, &failure, &leftovers, &self.pauses).await?;
        Ok(json!({ "step": name, "outcome": "done", "left_over": leftovers }))
    }
}
