//! BeginProvisioning, CloseProvisioning and FlagTenant: the fence's way through an execution.

use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use crate::capacity::Capacity;
use crate::environment::Environment;
use crate::error::{Problem, StepError};
use crate::postgres::Database;
use crate::registry::fence::{self, Actor, Failure, Grant};
use crate::registry::{self, Record};
use crate::request::StepCall;
use crate::step::{Step, log_tenant};
use crate::tenant::{Status, TenantId};

/// The `Timeout` of every function that acts on a tenant (`infra/template.yaml`; a contract test compares them). An
/// execution that ended longer ago has no function running any more.
pub const FUNCTION_TIMEOUT: Duration = Duration::from_secs(60);
/// How long BeginProvisioning itself waits for a dead holder's functions to end, before the machine's retries do.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_secs(2);

/// Takes the fence: from nobody, or from an execution that has ended.
pub struct BeginProvisioning {
    registry: Database,
    executions: aws_sdk_sfn::Client,
    capacity: Capacity,
}

/// What a step of this file needs beyond its own logic.
pub struct Settle {
    registry: Database,
    how: How,
}

#[derive(Clone, Copy)]
enum How {
    Close,
    Flag,
}

impl BeginProvisioning {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(BeginProvisioning {
            registry: Database::registry(env)?,
            executions: aws_sdk_sfn::Client::new(&env.aws),
            capacity: Capacity::from_env(env)?,
        })
    }

    /// Takes the fence over once its holder has been dead for longer than any function can run.
    async fn take_over(&self, tenant: TenantId, holder: &str, execution: &str) -> Result<(), StepError> {
        let waiting_since = Instant::now();
        loop {
            let wait = match self.ended_since(holder).await? {
                None => {
                    return Err(StepError::Superseded(format!(
                        "tenant {tenant} is held by {holder}, which is running"
                    )));
                }
                Some(since) => FUNCTION_TIMEOUT.saturating_sub(since),
            };
            if wait.is_zero() {
                if fence::take_over(&*self.registry.client().await?, tenant, holder, execution).await? {
                    tracing::warn!(holder, "took the tenant over from an execution that ended without giving it back");
                }
                return Ok(());
            }
            if waiting_since.elapsed() > PATIENCE {
                return Err(StepError::Transient(format!(
                    "tenant {tenant} is held by {holder}, which has ended; its functions may run for {} s more",
                    wait.as_secs()
                )));
            }
            sleep(wait.min(POLL)).await;
        }
    }

    /// How long ago an execution ended; `None` while it runs. One that Step Functions does not know ended long ago.
    async fn ended_since(&self, execution: &str) -> Result<Option<Duration>, StepError> {
        let described = match self.executions.describe_execution().execution_arn(execution).send().await {
            Ok(described) => described,
            Err(error) if crate::aws::code(&error) == Some("ExecutionDoesNotExist") => return Ok(Some(Duration::MAX)),
            Err(error) => return Err(crate::aws::classify(&format!("asking for execution {execution}"), &error)),
        };
        if matches!(described.status(), ExecutionStatus::Running | ExecutionStatus::PendingRedrive) {
            return Ok(None);
        }
        let ended = described.stop_date().map_or(0.0, aws_smithy_types::DateTime::as_secs_f64);
        #[allow(clippy::cast_precision_loss)] // seconds since 1970 are exact in an f64 for a few million years
        let now = OffsetDateTime::now_utc().unix_timestamp_nanos() as f64 / 1e9;
        Ok(Some(Duration::try_from_secs_f64(now - ended).unwrap_or_default()))
    }
}

#[async_trait]
impl Step for BeginProvisioning {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = StepCall::parse(input)?;
        let record = registry::read(&*self.registry.client().await?, &call.tenant).await?;
        log_tenant(&record.tenant);
        let id = record.tenant.id;
        let Actor::Execution(execution) = &call.actor else {
            return by_hand(&record, &[Status::Active, Status::Suspended], json!({"decision": "nothing_to_do"}));
        };
        if record.tenant.status == Status::Pending && !call.compensate {
            // Before the fence: a refused tenant has made nothing, and stays as it is.
            self.capacity.refuse_full(&*self.registry.client().await?, record.tenant.isolation).await?;
        }
        // Twice at most: what was taken over is ours, or another's that is alive.
        for _ in 0..3 {
            let granted = fence::acquire(&mut *self.registry.client().await?, id, execution, call.compensate).await?;
            let decision = match granted {
                Grant::Provision => "provision",
                Grant::Compensate => "compensate",
                Grant::Finish => "finish",
                Grant::NothingToDo => "nothing_to_do",
                Grant::HeldBy(holder) => {
                    self.take_over(id, &holder, execution).await?;
                    continue;
                }
            };
            return Ok(json!({ "tenant_id": id, "decision": decision }));
        }
        Err(StepError::Transient(format!("tenant {id} keeps changing hands")))
    }
}

impl Settle {
    /// CloseProvisioning: all is done, the fence is given back.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn close(env: &Environment) -> Result<Box<dyn Step>, StepError> {
        Ok(Box::new(Settle { registry: Database::registry(env)?, how: How::Close }))
    }

    /// FlagTenant: an operator has to look; the tenant stays in service.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn flag(env: &Environment) -> Result<Box<dyn Step>, StepError> {
        Ok(Box::new(Settle { registry: Database::registry(env)?, how: How::Flag }))
    }
}

#[async_trait]
impl Step for Settle {
    async fn run(&self, name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = StepCall::parse(input)?;
        let mut client = self.registry.client().await?;
        let record = registry::read(&*client, &call.tenant).await?;
        log_tenant(&record.tenant);
        let id = record.tenant.id;
        let Actor::Execution(execution) = &call.actor else {
            let settled = &[Status::Active, Status::Suspended];
            return by_hand(&record, settled, json!({ "step": name, "outcome": "nothing to do" }));
        };
        let failure = call.failure.unwrap_or_else(Failure::compensated);
        match self.how {
            How::Close => fence::give_back(&client, id, execution).await?,
            How::Flag => {
                tracing::error!(needs_operator = true, error = failure.error, "the tenant is flagged");
                fence::flag(&mut client, id, execution, &failure).await?;
            }
        }
        Ok(json!({ "step": name, "outcome": "done" }))
    }
}

/// A person can hold no fence, so by hand these steps do nothing on a tenant that is where they would bring it, and are
/// refused on any other.
pub(super) fn by_hand(record: &Record, settled: &[Status], nothing: Value) -> Result<Value, StepError> {
    if record.execution.is_none() && settled.contains(&record.tenant.status) {
        return Ok(nothing);
    }
    Err(StepError::InvalidRequest(vec![Problem {
        field: "execution".into(),
        rule: format!(
            "must be the execution that holds tenant {}: it is {}, and only an execution can hold it. Start the \
             provision-tenant machine with {{\"tenant_id\": \"{}\"}} instead",
            record.tenant.slug, record.tenant.status, record.tenant.id
        ),
    }]))
}
