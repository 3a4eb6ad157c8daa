//! RecoverExecution and SweepTenants: what happens to a tenant whose execution ended without giving it back, and to one that
//! waits for nobody.
//!
//! RecoverExecution is fed by "Step Functions Execution Status Change": `States.ALL` catches neither `States.Runtime` nor a
//! stop. SweepTenants runs on a schedule, finds what that event did not reach, and tries again what may succeed by now.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::takeover::{FUNCTION_TIMEOUT, machine};
use crate::environment::Environment;
use crate::error::{Problem, StepError};
use crate::postgres::Database;
use crate::registry::fence::{self, Failure};
use crate::registry::{self, Record, Selector, billing_state, retries};
use crate::step::{Step, log_tenant};
use crate::tenant::{Reason, TenantId};

/// How often a tenant is resumed by itself before an operator has to look.
const MOST_TAKEOVERS: i32 = 3;
/// How long a sweep looks at tenants that are held: half of its function's time is left for the rest.
const LOOKING: Duration = Duration::from_secs(30);
/// The most tenants that one sweep resumes. After an outage there may be hundreds, and all at once they would need more instances of
/// each function than there are, and fail again.
const MOST_RESUMED: usize = 20;
/// What became of a tenant that is resumed already.
const RESUMED_BEFORE: &str = "resumed before";

/// What resumes, compensates or flags a tenant.
struct Recovery {
    registry: Database,
    machines: aws_sdk_sfn::Client,
    provision_machine: String,
    /// The machines that finish what they began: a stopped execution of theirs is no wish to undo.
    finishing_machines: Vec<String>,
}

/// Recovers the tenant of one execution that ended.
pub struct RecoverExecution(Recovery);

/// Recovers every tenant whose execution has ended, starts the attempts that are due, ends what was never paid for, and has
/// billing looked at where a grace period is over, or nothing was heard of it for a day.
pub struct SweepTenants {
    recovery: Recovery,
    follow_machine: String,
    sign_up_expiry: f64,
    /// Before each further attempt, in seconds.
    pauses: Vec<f64>,
}

impl Recovery {
    fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(Recovery {
            registry: Database::registry(env)?,
            machines: aws_sdk_sfn::Client::new(&env.aws),
            provision_machine: env.required("PROVISION_MACHINE_ARN")?,
            finishing_machines: env.list("FINISHING_MACHINE_ARNS"),
        })
    }

    /// Recovers a tenant from the execution that holds it and has ended in `status`. Once for each execution and `round`: what
    /// is started is named for them.
    async fn recover(
        &self,
        record: &Record,
        ended: &str,
        status: &str,
        round: &str,
    ) -> Result<&'static str, StepError> {
        let tenant = record.tenant.id;
        let name = format!("recover-{}{round}", Uuid::new_v5(&Uuid::NAMESPACE_URL, ended.as_bytes()));
        let own = self.finishing_machines.iter().find(|arn| machine(arn) == machine(ended));
        let stopped = status == ExecutionStatus::Aborted.as_str();
        let deletes = own.and_then(|arn| machine(arn)).is_some_and(|name| name.ends_with("delete-tenant"));
        let action = if stopped && deletes {
            // Nothing comes back from a deletion: it is not cancelled, and somebody wanted it to stop.
            tracing::error!(needs_operator = true, "the tenant is flagged: its deletion was stopped");
            let message = format!(
                "execution {ended} was stopped half-way: what is deleted is gone. Start delete-tenant again with \
                 {{\"tenant_id\": \"{tenant}\"}} to go on"
            );
            let failure = Failure { error: status.to_owned(), message };
            fence::flag(&mut *self.registry.client().await?, tenant, ended, &failure).await?;
            "flag"
        } else if stopped && own.is_none() {
            // Stopping an execution is how an operator cancels it.
            if self.start_provisioning(&name, tenant, "compensate").await? { "compensate" } else { RESUMED_BEFORE }
        } else if record.takeovers >= MOST_TAKEOVERS {
            tracing::error!(needs_operator = true, "the tenant is flagged: it was resumed too often");
            let failure = Failure {
                error: status.to_owned(),
                message: format!("execution {ended} ended, the last of {MOST_TAKEOVERS} that resumed the tenant"),
            };
            fence::flag(&mut *self.registry.client().await?, tenant, ended, &failure).await?;
            "flag"
        } else if let Some(own) = own {
            // Also where it was stopped: the tenant would stay half one plan's and half another's, or half gone. What undoes a
            // change is a change back, and an offboarding a reactivation.
            if self.start(own, &name, &again(own, tenant)).await? { "resume" } else { RESUMED_BEFORE }
        } else if self.start_provisioning(&name, tenant, "provision").await? {
            "resume"
        } else {
            RESUMED_BEFORE
        };
        tracing::warn!(ended, status, action, "an execution ended without giving its tenant back");
        Ok(action)
    }

    async fn start_provisioning(&self, name: &str, tenant: TenantId, intent: &str) -> Result<bool, StepError> {
        self.start(&self.provision_machine, name, &json!({ "tenant_id": tenant, "intent": intent })).await
    }

    /// False where it was started before.
    async fn start(&self, machine: &str, name: &str, input: &Value) -> Result<bool, StepError> {
        let start = self.machines.start_execution().state_machine_arn(machine).name(name).input(input.to_string());
        match start.send().await {
            Ok(_) => Ok(true),
            Err(error) if crate::aws::code(&error) == Some("ExecutionAlreadyExists") => Ok(false),
            Err(error) => Err(crate::aws::classify(&format!("starting execution {name} of {machine}"), &error)),
        }
    }

    /// How an execution ended; `None` while it runs. One that Step Functions does not know is as good as failed.
    async fn ending(&self, execution: &str) -> Result<Option<String>, StepError> {
        match self.machines.describe_execution().execution_arn(execution).send().await {
            Ok(described) => Ok(match described.status() {
                ExecutionStatus::Running | ExecutionStatus::PendingRedrive => None,
                ended => Some(ended.as_str().to_owned()),
            }),
            Err(error) if crate::aws::code(&error) == Some("ExecutionDoesNotExist") => Ok(Some("FAILED".to_owned())),
            Err(error) => Err(crate::aws::classify(&format!("asking for execution {execution}"), &error)),
        }
    }
}

impl RecoverExecution {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(RecoverExecution(Recovery::from_env(env)?))
    }
}

impl SweepTenants {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(SweepTenants {
            recovery: Recovery::from_env(env)?,
            follow_machine: env.required("FOLLOW_BILLING_MACHINE_ARN")?,
            sign_up_expiry: env.number("SIGN_UP_EXPIRY_SECONDS")?,
            pauses: env.numbers("RETRY_PAUSES")?,
        })
    }

    /// A tenant's trouble is logged, and keeps nobody else from being looked at.
    async fn sweep(&self) -> Result<[usize; 4], StepError> {
        let Recovery { registry, .. } = &self.recovery;
        let recovered = self.recover_all().await?;
        let due = retries::due(&*registry.client().await?).await?;
        let mut started = 0;
        for due in due {
            started += usize::from(noted(due.tenant, self.try_again(&due).await.map(|()| true)));
        }
        let expired = retries::expire(&mut *registry.client().await?, self.sign_up_expiry, "sweep-tenants").await?;
        for tenant in &expired {
            tracing::info!(tenant = %tenant, "a sign-up that was not paid for has expired");
        }
        let to_look_at = billing_state::to_look_at(&*registry.client().await?).await?;
        let mut looked_at = 0;
        for tenant in to_look_at {
            looked_at += usize::from(noted(tenant, self.look_at_billing(tenant).await.map(|()| true)));
        }
        Ok([recovered, started, expired.len(), looked_at])
    }

    /// Looks at every tenant that is held for long, while there is time. Most are held for a good reason, some for days: they must
    /// not keep those from being looked at that are held since later.
    async fn recover_all(&self) -> Result<usize, StepError> {
        let (begun, seconds) = (Instant::now(), FUNCTION_TIMEOUT.as_secs_f64());
        let (mut recovered, mut last) = (0, None);
        loop {
            let page = retries::held(&*self.recovery.registry.client().await?, seconds, last.as_ref()).await?;
            for held in &page {
                if begun.elapsed() > LOOKING || recovered == MOST_RESUMED {
                    tracing::warn!(since = %held.since, recovered, "the next sweep looks at the other tenants that are held");
                    return Ok(recovered);
                }
                recovered += usize::from(noted(held.tenant, self.recover_held(held.tenant, &held.execution).await));
            }
            last = page.into_iter().next_back();
            if last.is_none() {
                return Ok(recovered);
            }
        }
    }

    async fn recover_held(&self, tenant: TenantId, execution: &str) -> Result<bool, StepError> {
        let Some(status) = self.recovery.ending(execution).await? else { return Ok(false) };
        let record = registry::read(&*self.recovery.registry.client().await?, &Selector::Id(tenant)).await?;
        if record.execution.as_deref() != Some(execution) {
            return Ok(false);
        }
        self.recovery.recover(&record, execution, &status, &round()).await.map(|action| action != RESUMED_BEFORE)
    }

    /// Started before it is counted: a crash in between starts the same name again, which is no second execution.
    async fn try_again(&self, due: &retries::Due) -> Result<(), StepError> {
        let round = if due.retry == 0 { round() } else { String::new() };
        let name = format!("retry-{}-{}{round}", due.tenant, due.retry);
        self.recovery.start_provisioning(&name, due.tenant, "provision").await?;
        tracing::info!(tenant = %due.tenant, retry = due.retry, "trying again");
        retries::started(&*self.recovery.registry.client().await?, due, &self.pauses).await
    }

    /// Whether it is paid by now is asked again, and not concluded from what was said before.
    async fn look_at_billing(&self, tenant: TenantId) -> Result<(), StepError> {
        let name = format!("look-{tenant}{}", round());
        tracing::info!(%tenant, "billing is looked at again");
        self.recovery.start(&self.follow_machine, &name, &json!({ "tenant_id": tenant })).await.map(drop)
    }
}

/// Which quarter of an hour it is, since 1970. An execution's name is used once in 90 days: what a sweep started, and what was
/// refused before it took the tenant, must be able to start again.
pub(super) fn round() -> String {
    format!("-{}", OffsetDateTime::now_utc().unix_timestamp() / 900)
}

/// What a machine is started with to finish what an execution of it began.
fn again(arn: &str, tenant: TenantId) -> Value {
    // It alone must be told why: a tenant may be suspended for several reasons, and only this one's end takes the fence.
    if machine(arn).is_some_and(|name| name.ends_with("reactivate-tenant")) {
        return json!({ "tenant_id": tenant, "reason": Reason::Offboarding, "actor": "recovery" });
    }
    json!({ "tenant_id": tenant })
}

fn noted(tenant: TenantId, result: Result<bool, StepError>) -> bool {
    result.unwrap_or_else(|error| {
        tracing::warn!(%tenant, error = error.name(), %error, "the sweep could not help this tenant");
        false
    })
}

#[async_trait]
impl Step for RecoverExecution {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let detail = |key: &str| input.pointer(&format!("/detail/{key}")).and_then(Value::as_str);
        let (Some(execution), Some(status)) = (detail("executionArn"), detail("status")) else {
            return Err(StepError::InvalidRequest(vec![Problem {
                field: "detail".into(),
                rule: "must be that of a Step Functions Execution Status Change".into(),
            }]));
        };
        let held = fence::held_by(&*self.0.registry.client().await?, execution).await?;
        let Some(tenant) = held else {
            return Ok(json!({ "action": "ignored", "why": "the execution holds no tenant" }));
        };
        let record = registry::read(&*self.0.registry.client().await?, &Selector::Id(tenant)).await?;
        log_tenant(&record.tenant);
        let action = self.0.recover(&record, execution, status, "").await?;
        Ok(json!({ "action": action, "tenant_id": tenant }))
    }
}

#[async_trait]
impl Step for SweepTenants {
    async fn run(&self, _name: &'static str, _input: &Value) -> Result<Value, StepError> {
        let [recovered, started, expired, looked_at] = self.sweep().await?;
        Ok(json!({ "recovered": recovered, "started": started, "expired": expired, "looked_at": looked_at }))
    }
}
