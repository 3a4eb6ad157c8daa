//! A tenant leaves, and comes back: each in one transaction, with the hold, the fence, the suspension and the event.

use serde_json::{Value, json};
use tokio_postgres::{Client, Transaction};

use super::holds::{self, Hold, Kind, Opening, State};
use super::{Record, audit, fence, outbox, read_for_update, suspensions};
use crate::error::{Problem, StepError};
use crate::request::Leaving;
use crate::tenant::{IN_SERVICE, Reason, Status, Tenant, TenantId};

/// What an execution that takes a tenant out of service is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Departure {
    /// The fence is ours: freeze and export.
    Export,
    /// Nothing stands between the hold and the deletion. The fence is nobody's: the deletion takes it.
    Erase,
    /// The link is published: the owner is told, unless it was, and the hold is waited for until then. The fence is ours.
    AwaitHold(String),
    /// The deletion has begun.
    Deleting,
    /// Another execution holds the tenant. Whether it still lives, only Step Functions knows.
    HeldBy(String),
}

/// What an execution that brings a tenant back is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Return {
    /// The hold is cancelled and the fence is ours: give back what was withdrawn.
    Restore,
    /// Nothing was withdrawn, or all of it was given back: only the suspension is left, and the fence, where it is ours.
    Lift,
    /// Another execution holds the tenant. Whether it still lives, only Step Functions knows.
    HeldBy(String),
}

/// Takes a tenant out of service for good: the fence, the suspension, the hold and `tenant.offboarding_started`, or goes on with
/// the hold that is open. A flag for an operator goes: whoever starts this has looked. Again changes nothing.
///
/// # Errors
/// `Conflict` for a tenant that was never in service, is gone, or is protected; `InvalidRequest` for an erasure that does not
/// name the slug, or a departure without a reason; `NotReady` while it is being provisioned, or that is to be tried again;
/// `Transient` while a person runs a step by hand.
pub async fn begin(
    client: &mut Client,
    tenant: TenantId,
    execution: &str,
    leaving: &Leaving,
) -> Result<Departure, StepError> {
    let transaction = client.transaction().await?;
    audit::act_as(&transaction, &leaving.actor).await?;
    let record = read_for_update(&transaction, tenant).await?;
    refuse_unfit(&transaction, &record, leaving).await?;
    let open = holds::open_hold(&transaction, tenant).await?;
    if open.as_ref().is_some_and(|hold| hold.state == State::Deleting) {
        return Ok(Departure::Deleting);
    }
    // Who asks for erasure need not wait for the end of an export or a hold. The fence goes over at once, so that whatever the
    // hold's own execution still starts is refused.
    let replaced = open.as_ref().filter(|hold| leaving.is_at_once() && !hold.is_at_once());
    if let Some(hold) = replaced
        && hold.execution == record.execution
    {
        fence::refuse_while_manual(&transaction, tenant).await?;
        fence::put(&transaction, tenant, execution).await?;
    } else if let Some(holder) = fence::take(&transaction, &record, execution, IN_SERVICE).await? {
        return Ok(Departure::HeldBy(holder));
    }
    let hold = match open {
        Some(hold) if leaving.is_at_once() && !hold.is_at_once() => {
            refuse_protected(&transaction, &record).await?;
            holds::cancel(&transaction, tenant).await?;
            open_new(&transaction, &record, execution, leaving).await?
        }
        Some(hold) => {
            let before = hold.execution.as_deref().unwrap_or_default();
            holds::hand_on(&transaction, tenant, before, execution).await?;
            hold
        }
        None => {
            refuse_protected(&transaction, &record).await?;
            open_new(&transaction, &record, execution, leaving).await?
        }
    };
    suspensions::add(&transaction, &record, Reason::Offboarding, &leaving.actor).await?;
    transaction.execute("UPDATE tenants SET needs_operator = NULL WHERE id = $1", &[&tenant.0]).await?;
    let departure = match hold.expires_at {
        Some(end) if hold.state == State::Held => Departure::AwaitHold(end),
        _ if hold.is_at_once() => {
            let sql = "UPDATE tenants SET execution = NULL, execution_since = NULL WHERE id = $1";
            transaction.execute(sql, &[&tenant.0]).await?;
            Departure::Erase
        }
        _ => Departure::Export,
    };
    transaction.commit().await?;
    Ok(departure)
}

/// Opens the hold, audits who asked and why, and tells the world.
async fn open_new(
    transaction: &Transaction<'_>,
    record: &Record,
    execution: &str,
    leaving: &Leaving,
) -> Result<Hold, StepError> {
    let Tenant { id, slug, plan, region, .. } = &record.tenant;
    let Some(reason) = leaving.reason else {
        return Err(refused("reason", format!("is required: tenant {slug} has no hold that could be gone on with")));
    };
    let kind = if leaving.erasure.is_some() { Kind::Erasure } else { Kind::Offboarding };
    let ticket = leaving.erasure.as_ref().map(|erasure| erasure.ticket.as_str());
    let opening = Opening {
        kind,
        reason: reason.as_str(),
        requested_by: &leaving.actor,
        ticket,
        waived_by: leaving.waived_by.as_deref(),
        execution,
    };
    let hold = holds::open(transaction, *id, &opening).await?;
    let detail = json!({
        "kind": kind.as_str(), "reason": reason, "ticket": ticket, "export_waived_by": leaving.waived_by,
        "execution": execution,
    });
    audit::record(transaction, *id, &leaving.actor, "offboarding started", &detail).await?;
    let event = json!({
        "slug": slug, "plan": plan, "region": region, "kind": kind.as_str(), "reason": reason,
        "exported": !hold.is_at_once(),
    });
    outbox::enqueue(transaction, *id, "tenant.offboarding_started", event).await?;
    Ok(hold)
}

fn refused(field: &str, rule: String) -> StepError {
    StepError::InvalidRequest(vec![Problem { field: format!("request.{field}"), rule }])
}

async fn refuse_unfit(transaction: &Transaction<'_>, record: &Record, leaving: &Leaving) -> Result<(), StepError> {
    let Tenant { id, slug, status, .. } = &record.tenant;
    match status {
        Status::Active | Status::Suspended => {}
        Status::Deprovisioned => return Err(StepError::Conflict(format!("tenant {slug} ({id}) is gone already"))),
        Status::Provisioning => return Err(not_yet(&record.tenant, "is being provisioned")),
        Status::Pending if is_tried_again(transaction, *id).await? => {
            return Err(not_yet(&record.tenant, "was not provisioned, which is tried again"));
        }
        Status::Pending => {
            return Err(StepError::Conflict(format!(
                "tenant {slug} ({id}) was never in service. A sign-up that is not paid for ends by itself; what a failed \
                 attempt left is removed by provision-tenant with {{\"tenant_id\": \"{id}\", \"intent\": \"compensate\"}}"
            )));
        }
    }
    match &leaving.erasure {
        Some(erasure) if erasure.confirm_slug != slug.as_str() => {
            Err(refused("erasure.confirm_slug", "must be the tenant's slug".to_owned()))
        }
        _ => Ok(()),
    }
}

/// Whether the sweep is to provision a tenant whose attempt failed once more.
async fn is_tried_again(transaction: &Transaction<'_>, tenant: TenantId) -> Result<bool, StepError> {
    let sql = "SELECT retry_at IS NOT NULL FROM tenants WHERE id = $1";
    Ok(transaction.query_one(sql, &[&tenant.0]).await?.try_get(0)?)
}

/// It leaves when it is in service; the machine's retries wait for that.
fn not_yet(tenant: &Tenant, why: &str) -> StepError {
    StepError::NotReady(format!("tenant {} ({}) {why}: it leaves afterwards", tenant.slug, tenant.id))
}

async fn refuse_protected(transaction: &Transaction<'_>, record: &Record) -> Result<(), StepError> {
    let Tenant { id, slug, .. } = &record.tenant;
    let sql = "SELECT deletion_protection FROM tenants WHERE id = $1";
    if !transaction.query_one(sql, &[&id.0]).await?.try_get::<_, bool>(0)? {
        return Ok(());
    }
    Err(StepError::Conflict(format!(
        "tenant {slug} ({id}) is protected from deletion. To lift that, call set-deletion-protection with \
         {{\"slug\": \"{slug}\", \"protected\": false, \"execution\": \"manual:<you>\"}}, and start again"
    )))
}

/// Cancels a hold, which is the decision, and takes the tenant for the execution that gives back what was withdrawn. The fence
/// goes over at once, so that whatever the hold's own execution still starts is refused. Again changes nothing.
///
/// # Errors
/// `Conflict` when the tenant is gone or its deletion has begun; `Transient` while a person runs a step by hand.
pub async fn come_back(
    client: &mut Client,
    tenant: TenantId,
    execution: &str,
    actor: &str,
) -> Result<Return, StepError> {
    let transaction = client.transaction().await?;
    audit::act_as(&transaction, actor).await?;
    let record = read_for_update(&transaction, tenant).await?;
    let Tenant { slug, status, .. } = &record.tenant;
    if *status == Status::Deprovisioned {
        return Err(StepError::Conflict(format!("tenant {slug} ({tenant}) is deprovisioned: it cannot come back")));
    }
    let Some(hold) = holds::latest(&transaction, tenant).await? else { return Ok(Return::Lift) };
    match (hold.state, record.execution.filter(|holder| *holder != execution)) {
        (State::Exporting | State::Held, Some(holder)) if hold.execution.as_ref() != Some(&holder) => {
            return Ok(Return::HeldBy(holder));
        }
        (State::Cancelled, Some(holder)) => return Ok(Return::HeldBy(holder)),
        _ => {}
    }
    if hold.state == State::Cancelled && hold.thawed {
        // Flagged all the same where nobody heard that all was back: whoever starts this has looked.
        let sql = "UPDATE tenants SET needs_operator = NULL
                   WHERE id = $1 AND EXISTS (SELECT FROM suspensions WHERE tenant_id = $1 AND reason = $2)";
        transaction.execute(sql, &[&tenant.0, &Reason::Offboarding.as_str()]).await?;
        transaction.commit().await?;
        return Ok(Return::Lift);
    }
    let cancelled = holds::cancel(&transaction, tenant).await?.is_some();
    if !cancelled && hold.state != State::Cancelled {
        return Err(StepError::Transient(format!(
            "the hold of tenant {slug} ({tenant}) changed while it was looked at"
        )));
    }
    if cancelled {
        audit::record(&transaction, tenant, actor, "offboarding cancelled", &json!({ "execution": execution })).await?;
    }
    fence::refuse_while_manual(&transaction, tenant).await?;
    fence::put(&transaction, tenant, execution).await?;
    transaction.commit().await?;
    Ok(Return::Restore)
}

/// Records that all is given back, which lets the suspension be lifted; a flag for an operator goes with it.
///
/// # Errors
/// `Superseded` when the hold is not cancelled any more.
pub async fn thawed(client: &mut Client, tenant: TenantId) -> Result<(), StepError> {
    let transaction = client.transaction().await?;
    let sql = "UPDATE holds SET thawed_at = coalesce(thawed_at, now())
               WHERE id = (SELECT max(id) FROM holds WHERE tenant_id = $1) AND state = 'cancelled'";
    if transaction.execute(sql, &[&tenant.0]).await? == 0 {
        return Err(StepError::Superseded(format!("tenant {tenant} has no hold that was cancelled")));
    }
    transaction.execute("UPDATE tenants SET needs_operator = NULL WHERE id = $1", &[&tenant.0]).await?;
    transaction.commit().await?;
    Ok(())
}

/// Protects a tenant from deletion, or lifts that. Returns whether it changed.
///
/// # Errors
/// `Conflict` when the tenant is on its way out or gone: a hold is cancelled by reactivating the tenant.
pub async fn protect(client: &mut Client, tenant: TenantId, protected: bool, actor: &str) -> Result<bool, StepError> {
    let transaction = client.transaction().await?;
    let record = read_for_update(&transaction, tenant).await?;
    let Tenant { slug, status, frozen, .. } = &record.tenant;
    if *status == Status::Deprovisioned || protected && *frozen {
        return Err(StepError::Conflict(format!(
            "tenant {slug} ({tenant}) is {}: there is nothing left to protect. While its hold lasts, reactivate-tenant with \
             the reason offboarding brings it back",
            if *frozen { "on its way out" } else { status.as_str() }
        )));
    }
    let sql = "UPDATE tenants SET deletion_protection = $2 WHERE id = $1 AND deletion_protection <> $2";
    let changed = transaction.execute(sql, &[&tenant.0, &protected]).await? == 1;
    if changed {
        let detail: Value = json!({ "protected": protected });
        audit::record(&transaction, tenant, actor, "deletion protection", &detail).await?;
    }
    transaction.commit().await?;
    Ok(changed)
}
