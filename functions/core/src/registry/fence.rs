//! Who may act on a tenant.
//!
//! `tenants.execution` names the one execution that may. Every step checks it before it acts and again when it records
//! what it did, so that a duplicate event, a second execution or a late retry changes nothing.

use std::fmt;
use std::str::FromStr;

use tokio_postgres::{Client, GenericClient, Transaction};

use super::{Record, Selector, audit, journal, outbox, read, read_for_update};
use crate::error::StepError;
use crate::tenant::{IN_SERVICE, InvalidName, Status, Tenant, TenantId};

/// Who is acting: an execution of a state machine, or a person running one step by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// The execution's ARN.
    Execution(String),
    /// `manual:<who>`.
    Manual(String),
}

impl FromStr for Actor {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(who) = text.strip_prefix("manual:") else {
            return if text.starts_with("arn:") && text.contains(":states:") {
                Ok(Actor::Execution(text.to_owned()))
            } else {
                Err(InvalidName("must be the ARN of a Step Functions execution, or manual:<who>"))
            };
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if (1..=64).contains(&who.len()) && who.bytes().all(plain) {
            Ok(Actor::Manual(text.to_owned()))
        } else {
            Err(InvalidName(
                "must name who acts after manual: with 1 to 64 letters, digits, dots, hyphens or underscores",
            ))
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::Execution(text) | Actor::Manual(text) => f.write_str(text),
        }
    }
}

/// Refuses who may not act: an execution acts only on a tenant that it holds, in one of these statuses; a person only
/// while no execution holds it and until it is deprovisioned.
///
/// # Errors
/// `Superseded`, saying who holds the tenant.
pub fn check(record: &Record, actor: &Actor, allowed: &[Status]) -> Result<(), StepError> {
    let tenant = &record.tenant;
    let holder = record.execution.as_deref();
    let may = match actor {
        Actor::Execution(execution) => holder == Some(execution) && allowed.contains(&tenant.status),
        Actor::Manual(_) => holder.is_none() && tenant.status != Status::Deprovisioned,
    };
    if may {
        return Ok(());
    }
    Err(StepError::Superseded(format!(
        "tenant {} ({}) is {} and held by {}; {actor} may not act on it",
        tenant.slug,
        tenant.id,
        tenant.status,
        holder.unwrap_or("nobody"),
    )))
}

/// Keeps executions from starting on a tenant while a person runs a step by hand. Ends with the connection, or with
/// [`unlock_manual`].
///
/// # Errors
/// `Transient` when another person's step is running; `Superseded` when an execution holds the tenant.
pub async fn lock_manual(client: &Client, tenant: TenantId, actor: &Actor, step: &str) -> Result<(), StepError> {
    let row = client.query_one("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", &[&lock_name(tenant)]).await?;
    if !row.try_get::<_, bool>(0)? {
        return Err(StepError::Transient(format!("another step of tenant {tenant} is being run by hand")));
    }
    // Read again under the lock: an execution may have begun in between.
    let record = read(client, &Selector::Id(tenant)).await?;
    match check(&record, actor, &[]) {
        Ok(()) => audit::record(client, tenant, &actor.to_string(), step, &serde_json::json!({})).await,
        Err(error) => {
            unlock_manual(client, tenant).await?;
            Err(error)
        }
    }
}

/// Ends [`lock_manual`].
///
/// # Errors
/// When the registry cannot be reached; then the lock has ended with the connection.
pub async fn unlock_manual(client: &Client, tenant: TenantId) -> Result<(), StepError> {
    client.execute("SELECT pg_advisory_unlock(hashtextextended($1, 0))", &[&lock_name(tenant)]).await?;
    Ok(())
}

fn lock_name(tenant: TenantId) -> String {
    format!("tenant {tenant}")
}

/// What an execution that asked for a tenant is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// The fence is ours: make what is missing.
    Provision,
    /// The fence is ours, to undo what was made.
    Compensate,
    /// The tenant is in service already; what follows activation is still to be done, under our fence.
    Finish,
    /// The tenant is in service and nobody has anything left to do.
    NothingToDo,
    /// Another execution holds the tenant. Whether it still lives, only Step Functions knows.
    HeldBy(String),
}

/// Moves a tenant from `pending` to `provisioning` under the execution's fence, or tells why not.
///
/// # Errors
/// `NeedsOperator` for a flagged tenant, unless to compensate; `Conflict` for one that is not paid for or is gone;
/// `Transient` while a person runs a step by hand.
pub async fn acquire(
    client: &mut Client,
    tenant: TenantId,
    execution: &str,
    compensate: bool,
) -> Result<Grant, StepError> {
    let transaction = client.transaction().await?;
    audit::act_as(&transaction, execution).await?;
    let record = read_for_update(&transaction, tenant).await?;
    let slug = &record.tenant.slug;
    let ours = if compensate { Grant::Compensate } else { Grant::Provision };
    let grant = match (record.tenant.status, record.execution.as_deref()) {
        (Status::Deprovisioned, _) => {
            return Err(StepError::Conflict(format!("tenant {slug} ({tenant}) is deprovisioned: it cannot come back")));
        }
        (Status::Provisioning, Some(holder)) if holder == execution => ours,
        (Status::Active | Status::Suspended, Some(holder)) if holder == execution => Grant::Finish,
        (_, Some(holder)) => Grant::HeldBy(holder.to_owned()),
        (Status::Active | Status::Suspended, None) => Grant::NothingToDo,
        (Status::Pending | Status::Provisioning, None) => {
            if !compensate {
                refuse_unready(&record)?;
            }
            refuse_while_manual(&transaction, tenant).await?;
            transaction
                .execute(
                    "UPDATE tenants SET status = 'provisioning', execution = $2, execution_since = now(), takeovers = 0,
                            retry_at = NULL
                     WHERE id = $1",
                    &[&tenant.0, &execution],
                )
                .await?;
            ours
        }
    };
    transaction.commit().await?;
    Ok(grant)
}

fn refuse_unready(record: &Record) -> Result<(), StepError> {
    let (slug, id) = (&record.tenant.slug, record.tenant.id);
    if let Some(reason) = &record.needs_operator {
        return Err(StepError::NeedsOperator(format!(
            "tenant {slug} ({id}) needs an operator first: {reason}. Start this machine with \
             {{\"tenant_id\": \"{id}\", \"intent\": \"compensate\"}} once the cause is removed"
        )));
    }
    if !record.paid {
        return Err(StepError::Conflict(format!(
            "tenant {slug} ({id}) is not paid for: provisioning starts when billing confirms the payment"
        )));
    }
    Ok(())
}

pub(super) async fn refuse_while_manual(transaction: &Transaction<'_>, tenant: TenantId) -> Result<(), StepError> {
    let sql = "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))";
    if transaction.query_one(sql, &[&lock_name(tenant)]).await?.try_get::<_, bool>(0)? {
        return Ok(());
    }
    Err(StepError::Transient(format!("a step of tenant {tenant} is being run by hand")))
}

/// Takes the fence from an execution that has ended. False when that execution no longer holds it.
///
/// The caller has made sure, with Step Functions, that the holder ended longer ago than any function can run.
///
/// # Errors
/// When the registry cannot be written.
pub async fn take_over(client: &Client, tenant: TenantId, from: &str, to: &str) -> Result<bool, StepError> {
    let taken = client
        .execute(
            "WITH taken AS (
                UPDATE tenants SET execution = $3, execution_since = now(), takeovers = takeovers + 1
                WHERE id = $1 AND execution = $2 RETURNING id
             )
             INSERT INTO audit (tenant_id, actor, action, detail)
             SELECT id, $3, 'takeover', jsonb_build_object('from', $2::text) FROM taken",
            &[&tenant.0, &from, &to],
        )
        .await?;
    Ok(taken == 1)
}

/// Takes a tenant in one of these statuses for an execution, in one conditional update. `None` when it is ours now, or else who
/// holds it: whether that one still lives, only Step Functions knows.
///
/// # Errors
/// `Conflict` when the tenant is in another status; `Transient` while a person runs a step by hand.
pub async fn hold(
    client: &mut Client,
    tenant: TenantId,
    execution: &str,
    statuses: &[Status],
) -> Result<Option<String>, StepError> {
    let transaction = client.transaction().await?;
    audit::act_as(&transaction, execution).await?;
    let record = read_for_update(&transaction, tenant).await?;
    let holder = take(&transaction, &record, execution, statuses).await?;
    transaction.commit().await?;
    Ok(holder)
}

/// As [`hold`], in a transaction that has read the tenant's row to change it.
///
/// # Errors
/// As [`hold`].
pub(super) async fn take(
    transaction: &Transaction<'_>,
    record: &Record,
    execution: &str,
    statuses: &[Status],
) -> Result<Option<String>, StepError> {
    let Record { tenant: Tenant { id, slug, status, .. }, execution: holder, .. } = record;
    if let Some(holder) = holder.as_deref().filter(|holder| *holder != execution) {
        return Ok(Some(holder.to_owned()));
    }
    if !statuses.contains(status) {
        let wanted = if statuses == IN_SERVICE {
            "in service".to_owned()
        } else {
            statuses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
        };
        return Err(StepError::Conflict(format!(
            "tenant {slug} ({id}) is {status}, and not {wanted}: nothing was changed"
        )));
    }
    refuse_while_manual(transaction, *id).await?;
    put(transaction, *id, execution).await?;
    Ok(None)
}

/// Makes an execution the tenant's holder, whoever was before.
///
/// # Errors
/// When the registry cannot be written.
pub(super) async fn put(transaction: &Transaction<'_>, tenant: TenantId, execution: &str) -> Result<(), StepError> {
    let sql = "UPDATE tenants SET execution = $2,
                      execution_since = CASE WHEN execution = $2 THEN execution_since ELSE now() END,
                      takeovers = CASE WHEN execution IS NULL THEN 0 ELSE takeovers END WHERE id = $1";
    transaction.execute(sql, &[&tenant.0, &execution]).await?;
    Ok(())
}

/// Gives the fence of a tenant in service back. Again is a no-op.
///
/// # Errors
/// `Superseded` when another execution holds the tenant.
pub async fn give_back(client: &impl GenericClient, tenant: TenantId, execution: &str) -> Result<(), StepError> {
    let sql = "UPDATE tenants SET execution = NULL, execution_since = NULL
               WHERE id = $1 AND execution = $2 AND status IN ('active', 'suspended')";
    if client.execute(sql, &[&tenant.0, &execution]).await? == 1 {
        return Ok(());
    }
    let record = read(client, &Selector::Id(tenant)).await?;
    match (record.tenant.status, &record.execution) {
        (Status::Active | Status::Suspended, None) => Ok(()),
        _ => check(&record, &Actor::Execution(execution.to_owned()), &[]),
    }
}

/// The tenant an execution holds, if it holds one.
///
/// # Errors
/// When the registry cannot be read.
pub async fn held_by(client: &impl GenericClient, execution: &str) -> Result<Option<TenantId>, StepError> {
    let row = client.query_opt("SELECT id FROM tenants WHERE execution = $1", &[&execution]).await?;
    row.map(|row| Ok(TenantId(row.try_get(0)?))).transpose()
}

/// Why an attempt to provision failed, as the registry keeps it for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The error's name, as the state machine saw it.
    pub error: String,
    /// What happened and what to do.
    pub message: String,
}

/// The error's name where nothing failed.
const COMPENSATED: &str = "Compensated";

impl Failure {
    /// The reason where nothing failed.
    pub fn compensated() -> Self {
        Failure { error: COMPENSATED.into(), message: "an operator asked for what was made to be undone".into() }
    }

    /// Whether another attempt may succeed though nobody did anything: what failed is neither permanent nor a wish.
    pub fn may_pass(&self) -> bool {
        self.error != COMPENSATED && !StepError::PERMANENT.contains(&self.error.as_str())
    }
}

/// Keeps which step failed, and why, before the undos begin: the one that the journal shows as begun and not ended. Once
/// the undo of that step has begun there is none any more, and nothing changes.
///
/// # Errors
/// When the registry cannot be written.
pub async fn note_failure(
    client: &Client,
    tenant: TenantId,
    execution: &str,
    failure: &Failure,
) -> Result<(), StepError> {
    let Some(step) = journal::unfinished(client, tenant).await? else { return Ok(()) };
    let sql = "UPDATE tenants SET failed_step = $3, failed_error = $4, failed_message = $5, failed_at = now()
               WHERE id = $1 AND execution = $2";
    client.execute(sql, &[&tenant.0, &execution, &step, &failure.error, &failure.message]).await?;
    Ok(())
}

/// Returns a tenant to `pending` with the reason, gives the fence back, and tells the world. `leftovers` are the kinds of
/// what could not be removed: with any, the tenant needs an operator; without, it needs none any more. What may pass by itself
/// is tried again after the next of `pauses` (seconds), while there is one. Again is a no-op.
///
/// # Errors
/// `Superseded` when another execution holds the tenant.
pub async fn release(
    client: &mut Client,
    tenant: TenantId,
    execution: &str,
    failure: &Failure,
    leftovers: &[&str],
    pauses: &[f64],
) -> Result<(), StepError> {
    let left = leftovers.join(", ");
    let reason = (!left.is_empty())
        .then(|| format!("compensation after {} could not remove: {left} ({})", failure.error, failure.message));
    let flag = reason.map(|reason| (reason, serde_json::json!({ "left_over": leftovers })));
    end_attempt(client, tenant, execution, failure, flag, pauses).await
}

/// As [`release`], where nobody could look what is left, which `unseen` says: the tenant needs an operator, and what it failed on
/// first stays its failure. Again is a no-op.
///
/// # Errors
/// `Superseded` when another execution holds the tenant.
pub async fn release_unseen(
    client: &mut Client,
    tenant: TenantId,
    execution: &str,
    failure: &Failure,
    unseen: &Failure,
) -> Result<(), StepError> {
    let reason = format!(
        "nobody could look what compensation after {} left: {}: {} ({})",
        failure.error, unseen.error, unseen.message, failure.message
    );
    let detail = serde_json::json!({ "error": unseen.error });
    end_attempt(client, tenant, execution, failure, Some((reason, detail)), &[]).await
}

/// `flag` is why an operator is needed, with what the audit trail keeps of it.
async fn end_attempt(
    client: &mut Client,
    tenant: TenantId,
    execution: &str,
    failure: &Failure,
    flag: Option<(String, serde_json::Value)>,
    pauses: &[f64],
) -> Result<(), StepError> {
    let transaction = client.transaction().await?;
    audit::act_as(&transaction, execution).await?;
    let record = read_for_update(&transaction, tenant).await?;
    if record.tenant.status == Status::Pending && record.execution.is_none() {
        return Ok(());
    }
    check(&record, &Actor::Execution(execution.to_owned()), &[Status::Provisioning])?;
    let unfinished = journal::unfinished(&transaction, tenant).await?;
    let (reason, audited) = flag.unzip();
    // A step that was noted under this fence is the one that failed, although its undo has been journaled since.
    let row = transaction
        .query_one(
            "UPDATE tenants SET status = 'pending', execution = NULL, execution_since = NULL, needs_operator = $5,
                    attempt = attempt + 1,
                    retry_at = CASE WHEN $6 THEN now() + make_interval(secs => ($7::float8[])[retries + 1]) END,
                    failed_step = coalesce($2, CASE WHEN failed_at >= execution_since THEN failed_step END),
                    failed_error = $3, failed_message = $4, failed_at = now()
             WHERE id = $1 RETURNING failed_step",
            &[
                &tenant.0,
                &unfinished,
                &failure.error,
                &failure.message,
                &reason,
                &(reason.is_none() && failure.may_pass()),
                &pauses,
            ],
        )
        .await?;
    if let Some(audited) = audited {
        audit::record(&transaction, tenant, execution, "needs_operator", &audited).await?;
    }
    let failed_step: Option<String> = row.try_get(0)?;
    let detail = serde_json::json!({
        "slug": record.tenant.slug, "plan": record.tenant.plan, "region": record.tenant.region,
        "failed_step": failed_step, "error": failure.error, "clean": reason.is_none(),
    });
    outbox::enqueue(&transaction, tenant, "tenant.provisioning_failed", detail).await?;
    transaction.commit().await?;
    Ok(())
}

/// Marks a tenant for an operator, with the reason, and gives the fence back: one that is `active` stays in service, one
/// that is `provisioning` returns to `pending`.
///
/// # Errors
/// `Superseded` when another execution holds the tenant.
pub async fn flag(client: &mut Client, tenant: TenantId, execution: &str, failure: &Failure) -> Result<(), StepError> {
    let transaction = client.transaction().await?;
    audit::act_as(&transaction, execution).await?;
    let record = read_for_update(&transaction, tenant).await?;
    if record.execution.is_none() && record.needs_operator.is_some() {
        return Ok(());
    }
    check(
        &record,
        &Actor::Execution(execution.to_owned()),
        &[Status::Provisioning, Status::Active, Status::Suspended],
    )?;
    let step = journal::unfinished(&transaction, tenant).await?;
    let reason = format!("{}: {}", failure.error, failure.message);
    transaction
        .execute(
            "UPDATE tenants SET execution = NULL, execution_since = NULL, needs_operator = $5,
                    status = CASE status WHEN 'provisioning' THEN 'pending' ELSE status END,
                    failed_step = $2, failed_error = $3, failed_message = $4, failed_at = now()
             WHERE id = $1",
            &[&tenant.0, &step, &failure.error, &failure.message, &reason],
        )
        .await?;
    let detail = serde_json::json!({ "error": failure.error });
    audit::record(&transaction, tenant, execution, "needs_operator", &detail).await?;
    transaction.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actors_are_executions_or_named_people() {
        let arn = "arn:aws:states:us-east-1:000000000000:execution:provision-tenant:x";
        assert_eq!(arn.parse(), Ok(Actor::Execution(arn.into())));
        assert_eq!("manual:ada".parse(), Ok(Actor::Manual("manual:ada".into())));
        for bad in ["", "manual:", "manual:a b", "manual:ada@example.com", "x", "arn:aws:iam::1:role/x"] {
            assert!(bad.parse::<Actor>().is_err(), "{bad}");
        }
    }
}
