//! SweepHolds, once a day: owners are reminded of the end of their hold, deletions that nobody waits for are started, and what a
//! dead execution left half-way is taken up again by the machine that it belongs to.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::recovery::round;
use super::takeover::Holders;
use crate::environment::Environment;
use crate::error::StepError;
use crate::mail::Mail;
use crate::postgres::Database;
use crate::registry::hold_sweep::{self, Due, Reminder, Work};
use crate::registry::{self, Selector, contacts};
use crate::step::Step;

/// How long after a hold's end its deletion is started whatever becomes of the execution that waits, in seconds: one that waits
/// wakes within seconds. Which of the two deletes is decided by the hold.
const MARGIN_SECONDS: f64 = 3600.0;

/// Reminds, starts and resumes.
pub struct SweepHolds {
    registry: Database,
    holders: Holders,
    machines: aws_sdk_sfn::Client,
    mail: Mail,
    offboard: String,
    delete: String,
    reactivate: String,
}

impl SweepHolds {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(SweepHolds {
            registry: Database::registry(env)?,
            holders: Holders::from_env(env),
            machines: aws_sdk_sfn::Client::new(&env.aws),
            mail: Mail::from_env(env)?,
            offboard: env.required("OFFBOARD_MACHINE_ARN")?,
            delete: env.required("DELETE_MACHINE_ARN")?,
            reactivate: env.required("REACTIVATE_MACHINE_ARN")?,
        })
    }

    /// Starts what nobody does. A hold's trouble is logged, and keeps no other from being looked at.
    async fn take_up(&self) -> Result<usize, StepError> {
        let mut started = 0;
        let waiting = hold_sweep::due(&*self.registry.client().await?, MARGIN_SECONDS).await?;
        for due in waiting {
            match self.take_up_one(&due).await {
                Ok(begun) => started += usize::from(begun),
                Err(error) => tracing::warn!(
                    tenant = %due.tenant, error = error.name(), %error, "the sweep could not help this hold"
                ),
            }
        }
        Ok(started)
    }

    async fn take_up_one(&self, due: &Due) -> Result<bool, StepError> {
        if let Some(execution) = due.execution.as_deref().filter(|_| !due.overdue)
            && self.holders.may_act(execution).await?
        {
            return Ok(false);
        }
        let (machine, input) = match due.work {
            Work::Leave => (&self.offboard, json!({ "tenant_id": due.tenant })),
            Work::Expired | Work::Delete => (&self.delete, json!({ "tenant_id": due.tenant })),
            Work::Return => (&self.reactivate, json!({ "tenant_id": due.tenant, "reason": "offboarding" })),
        };
        let name = format!("sweep-{}-{}{}", due.tenant, due.hold, round());
        let start = self.machines.start_execution().state_machine_arn(machine).name(&name).input(input.to_string());
        match start.send().await {
            Ok(_) => {}
            Err(error) if crate::aws::code(&error) == Some("ExecutionAlreadyExists") => return Ok(false),
            Err(error) => return Err(crate::aws::classify(&format!("starting execution {name}"), &error)),
        }
        tracing::warn!(tenant = %due.tenant, work = ?due.work, gone = due.execution, "took up what nobody was doing");
        Ok(true)
    }

    /// Mails whom it is time to remind. One that cannot be mailed keeps no other from it, and is tried again tomorrow.
    async fn remind(&self) -> Result<usize, StepError> {
        let (mut sent, mut after) = (0, 0);
        loop {
            let mut client = self.registry.client().await?;
            // Kept locked while the mail is sent: of two sweeps, one reminds.
            let transaction = client.transaction().await?;
            let Some(reminder) = hold_sweep::reminder(&transaction, after).await? else { return Ok(sent) };
            after = reminder.hold;
            match self.remind_one(&transaction, &reminder).await {
                Ok(()) => {
                    hold_sweep::reminded(&transaction, &reminder).await?;
                    transaction.commit().await?;
                    sent += 1;
                }
                Err(error) => tracing::warn!(
                    tenant = %reminder.tenant, error = error.name(), %error, "an owner could not be reminded"
                ),
            }
        }
    }

    async fn remind_one(
        &self,
        transaction: &tokio_postgres::Transaction<'_>,
        reminder: &Reminder,
    ) -> Result<(), StepError> {
        let tenant = registry::read(transaction, &Selector::Id(reminder.tenant)).await?.tenant;
        if let Some(owner) = contacts::owner(transaction, reminder.tenant).await? {
            self.mail.send_deletion_reminder(&tenant, &owner, reminder.expires_at).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Step for SweepHolds {
    async fn run(&self, _name: &'static str, _input: &Value) -> Result<Value, StepError> {
        let started = self.take_up().await;
        // Mail is sent also while Step Functions is away.
        let reminded = self.remind().await?;
        Ok(json!({ "started": started?, "reminded": reminded }))
    }
}
