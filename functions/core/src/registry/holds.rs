//! Holds: a tenant on its way out. exporting -> held -> cancelled, or -> deleting -> deleted; each move is one conditional update,
//! and the database refuses every other.

use std::str::FromStr;

use serde_json::json;
use tokio_postgres::{Client, GenericClient, Row, Transaction};

use super::{Selector, audit, read};
use crate::error::StepError;
use crate::tenant::{InvalidName, TenantId};

/// Where a hold is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The tenant is suspended; its export is being made.
    Exporting,
    /// The link is out; everything stays, inaccessible, until the hold expires.
    Held,
    /// The tenant came back.
    Cancelled,
    /// The point of no return.
    Deleting,
    /// Nothing is left but the row.
    Deleted,
}

/// What a hold is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Export, link, hold, deletion.
    Offboarding,
    /// Deletion at once: somebody with the right to it asked for erasure.
    Erasure,
}

/// A tenant's hold, as the registry has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Hold {
    /// Its number.
    pub id: i64,
    /// Whose.
    pub tenant: TenantId,
    /// What for.
    pub kind: Kind,
    /// Where it is.
    pub state: State,
    /// Why the tenant leaves: one of the enumerated reasons.
    pub reason: String,
    /// Who asked.
    pub requested_by: String,
    /// Whether the export was waived, so that the deletion follows at once.
    pub waived: bool,
    /// Whether it has expired, by the database's clock.
    pub expired: bool,
    /// When it expires, in RFC 3339 with a `Z`, as a Wait state takes it; `None` before the link is published. A whole second,
    /// and never an earlier one than the database's, so that who waits for it finds the hold expired.
    pub expires_at: Option<String>,
    /// The execution that works on it, or waits for its end.
    pub execution: Option<String>,
    /// Whether the owner was told of the link and of the date of deletion.
    pub notified: bool,
    /// Whether all that a cancelled hold had withdrawn was seen to be given back.
    pub thawed: bool,
}

/// What a new hold is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening<'a> {
    /// What for.
    pub kind: Kind,
    /// Why: one of the enumerated reasons.
    pub reason: &'a str,
    /// Who asked: a name or an execution, never an address.
    pub requested_by: &'a str,
    /// The ticket of an erasure request.
    pub ticket: Option<&'a str>,
    /// Who waived the export.
    pub waived_by: Option<&'a str>,
    /// The execution that works on it.
    pub execution: &'a str,
}

/// How far a hold's end is put off.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Extension {
    /// To a moment, in seconds since 1970.
    Until(f64),
    /// By so many seconds.
    By(f64),
}

const HOLD: &str = "id, tenant_id, kind, state, reason, requested_by, waived_by IS NOT NULL AS waived,
    coalesce(expires_at <= now(), false) AS expired,
    to_char(date_trunc('second', expires_at + interval '999999 microseconds') AT TIME ZONE 'UTC',
        'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS expires,
    execution, notified_at IS NOT NULL AS notified, thawed_at IS NOT NULL AS thawed";
const OPEN: &str = "state IN ('exporting', 'held', 'deleting')";

impl State {
    /// The text in the registry.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Exporting => "exporting",
            State::Held => "held",
            State::Cancelled => "cancelled",
            State::Deleting => "deleting",
            State::Deleted => "deleted",
        }
    }
}

impl FromStr for State {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [State::Exporting, State::Held, State::Cancelled, State::Deleting, State::Deleted];
        all.into_iter().find(|state| state.as_str() == text).ok_or(InvalidName("must be a state of a hold"))
    }
}

impl Hold {
    /// Whether the deletion waits for nothing: it is an erasure, or its export was waived.
    pub fn is_at_once(&self) -> bool {
        self.kind == Kind::Erasure || self.waived
    }
}

impl Kind {
    /// The text in the registry.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Offboarding => "offboarding",
            Kind::Erasure => "erasure",
        }
    }
}

fn hold(row: &Row) -> Result<Hold, StepError> {
    let state: &str = row.try_get("state")?;
    Ok(Hold {
        id: row.try_get("id")?,
        tenant: TenantId(row.try_get("tenant_id")?),
        kind: if row.try_get::<_, &str>("kind")? == "erasure" { Kind::Erasure } else { Kind::Offboarding },
        state: state.parse().map_err(|rule| StepError::Unexpected(format!("registry: hold state {state:?} {rule}")))?,
        reason: row.try_get("reason")?,
        requested_by: row.try_get("requested_by")?,
        waived: row.try_get("waived")?,
        expired: row.try_get("expired")?,
        expires_at: row.try_get("expires")?,
        execution: row.try_get("execution")?,
        notified: row.try_get("notified")?,
        thawed: row.try_get("thawed")?,
    })
}

/// The tenant's open hold, if it has one: there is at most one.
///
/// # Errors
/// When the registry cannot be read.
pub async fn open_hold(client: &impl GenericClient, tenant: TenantId) -> Result<Option<Hold>, StepError> {
    let sql = format!("SELECT {HOLD} FROM holds WHERE tenant_id = $1 AND {OPEN}");
    client.query_opt(&sql, &[&tenant.0]).await?.as_ref().map(hold).transpose()
}

/// The tenant's newest hold, open or ended.
///
/// # Errors
/// When the registry cannot be read.
pub async fn latest(client: &impl GenericClient, tenant: TenantId) -> Result<Option<Hold>, StepError> {
    let sql = format!("SELECT {HOLD} FROM holds WHERE tenant_id = $1 ORDER BY id DESC LIMIT 1");
    client.query_opt(&sql, &[&tenant.0]).await?.as_ref().map(hold).transpose()
}

/// Opens a hold in `exporting`, or finds the one that is open.
///
/// # Errors
/// When the registry cannot be written.
pub async fn open(transaction: &Transaction<'_>, tenant: TenantId, opening: &Opening<'_>) -> Result<Hold, StepError> {
    let sql = "INSERT INTO holds (tenant_id, kind, reason, requested_by, ticket, waived_by, execution)
               VALUES ($1, $2, $3, $4, $5, $6, $7)
               ON CONFLICT (tenant_id) WHERE state IN ('exporting', 'held', 'deleting') DO NOTHING";
    let Opening { kind, reason, requested_by, ticket, waived_by, execution } = opening;
    transaction.execute(sql, &[&tenant.0, &kind.as_str(), reason, requested_by, ticket, waived_by, execution]).await?;
    let found = open_hold(transaction, tenant).await?;
    found.ok_or_else(|| StepError::Unexpected(format!("tenant {tenant} has no hold after one was opened")))
}

/// Publishes: `exporting` to `held`, to expire `seconds` from now. Again changes nothing. Returns the hold.
///
/// # Errors
/// `Superseded` when the hold is no longer there to publish.
pub async fn publish(client: &Client, tenant: TenantId, execution: &str, seconds: f64) -> Result<Hold, StepError> {
    let sql = "UPDATE holds SET state = 'held', published_at = now(), expires_at = now() + make_interval(secs => $3)
               WHERE tenant_id = $1 AND state = 'exporting' AND execution = $2";
    client.execute(sql, &[&tenant.0, &execution, &seconds]).await?;
    match open_hold(client, tenant).await? {
        Some(hold) if hold.state == State::Held && hold.execution.as_deref() == Some(execution) => Ok(hold),
        _ => Err(superseded(client, tenant, "published").await?),
    }
}

/// Cancels: `exporting` or `held` to `cancelled`. Returns the hold as it was, whose execution is to be stopped; `None` when there is
/// nothing to cancel.
///
/// # Errors
/// `Conflict` when its deletion has begun, which is the point of no return.
pub async fn cancel(transaction: &Transaction<'_>, tenant: TenantId) -> Result<Option<Hold>, StepError> {
    let sql = "UPDATE holds SET state = 'cancelled' WHERE tenant_id = $1 AND state IN ('exporting', 'held')";
    let before = open_hold(transaction, tenant).await?;
    if transaction.execute(sql, &[&tenant.0]).await? == 1 {
        return Ok(before);
    }
    // Looked at again: its deletion may have begun since.
    match open_hold(transaction, tenant).await? {
        Some(Hold { state: State::Deleting, .. }) => Err(StepError::Conflict(format!(
            "tenant {tenant} is being deleted: it cannot come back. Its certificate will say when it is gone"
        ))),
        _ => Ok(None),
    }
}

/// Begins the deletion: `held` and expired, or `exporting` for an erasure or a waived export, to `deleting`, by this execution. Again,
/// by the same execution, changes nothing. Exactly one execution gets it, however many ask.
///
/// # Errors
/// `Superseded` when the hold was cancelled, is another's, or has not expired.
pub async fn begin_deletion(client: &Client, tenant: TenantId, execution: &str) -> Result<Hold, StepError> {
    let sql = "UPDATE holds SET state = 'deleting', execution = $2
               WHERE tenant_id = $1 AND (state = 'held' AND expires_at <= now()
                   OR state = 'exporting' AND (kind = 'erasure' OR waived_by IS NOT NULL))";
    client.execute(sql, &[&tenant.0, &execution]).await?;
    match open_hold(client, tenant).await? {
        Some(hold) if hold.state == State::Deleting && hold.execution.as_deref() == Some(execution) => Ok(hold),
        _ => Err(superseded(client, tenant, "deleted").await?),
    }
}

/// How long ago, in seconds, a hold was last cancelled whose export was not finished: functions may be writing it still.
///
/// # Errors
/// When the registry cannot be read.
pub async fn export_broken_off(client: &Client, tenant: TenantId) -> Result<Option<f64>, StepError> {
    let sql = "SELECT extract(epoch FROM now() - max(ended_at))::float8 FROM holds
               WHERE tenant_id = $1 AND state = 'cancelled' AND kind = 'offboarding' AND published_at IS NULL";
    Ok(client.query_one(sql, &[&tenant.0]).await?.try_get(0)?)
}

/// Hands an open hold on from an execution that has ended. False when it is not that one's.
///
/// # Errors
/// When the registry cannot be written.
pub async fn hand_on(client: &impl GenericClient, tenant: TenantId, from: &str, to: &str) -> Result<bool, StepError> {
    let sql = format!("UPDATE holds SET execution = $3 WHERE tenant_id = $1 AND execution = $2 AND {OPEN}");
    Ok(client.execute(&sql, &[&tenant.0, &from, &to]).await? == 1)
}

/// Ends the deletion: `deleting` to `deleted`, in the transaction that deprovisions the tenant.
///
/// # Errors
/// `Superseded` when this execution does not delete the tenant.
pub async fn finish(transaction: &Transaction<'_>, tenant: TenantId, execution: &str) -> Result<(), StepError> {
    let sql = "UPDATE holds SET state = 'deleted' WHERE tenant_id = $1 AND state = 'deleting' AND execution = $2";
    if transaction.execute(sql, &[&tenant.0, &execution]).await? == 1 {
        return Ok(());
    }
    Err(superseded(transaction, tenant, "ended").await?)
}

/// Puts a hold's end off: to a moment (seconds since 1970), or by so many seconds. The owner is reminded of the new date. Returns
/// the hold.
///
/// # Errors
/// `Conflict` when there is no hold to put off, or the moment is not later than the one it has.
pub async fn extend(client: &mut Client, tenant: TenantId, until: Extension, actor: &str) -> Result<Hold, StepError> {
    let (moment, seconds) = match until {
        Extension::Until(moment) => (Some(moment), None),
        Extension::By(seconds) => (None, Some(seconds)),
    };
    let transaction = client.transaction().await?;
    let sql = "UPDATE holds SET expires_at = wanted, week_reminded_at = NULL, day_reminded_at = NULL
               FROM (SELECT id AS of, coalesce(to_timestamp($2), expires_at + make_interval(secs => $3)) AS wanted
                     FROM holds WHERE tenant_id = $1 AND state = 'held' FOR UPDATE) AS asked
               WHERE id = of AND wanted > expires_at";
    let extended = transaction.execute(sql, &[&tenant.0, &moment, &seconds]).await? == 1;
    let hold = open_hold(&transaction, tenant).await?;
    match hold {
        Some(hold) if extended => {
            let detail = json!({ "until": hold.expires_at });
            audit::record(&transaction, tenant, actor, "hold extended", &detail).await?;
            transaction.commit().await?;
            Ok(hold)
        }
        Some(Hold { state: State::Held, expires_at: Some(end), .. }) => Err(StepError::Conflict(format!(
            "the hold of tenant {tenant} ends at {end}: it can be put off, and not brought forward"
        ))),
        _ => Err(StepError::Conflict(format!("tenant {tenant} has no hold whose end could be put off"))),
    }
}

/// Remembers that the owner was told. Again changes nothing.
///
/// # Errors
/// When the registry cannot be written.
pub async fn notified(client: &Client, hold: &Hold) -> Result<(), StepError> {
    let sql = "UPDATE holds SET notified_at = coalesce(notified_at, now()) WHERE id = $1";
    client.execute(sql, &[&hold.id]).await?;
    Ok(())
}

/// Forgets that the owner was told, because the link of that mail has ended: NotifyOwner tells again. Without a hold that waits,
/// nothing changes.
///
/// # Errors
/// When the registry cannot be written.
pub async fn untold(client: &Client, tenant: TenantId) -> Result<(), StepError> {
    let sql = "UPDATE holds SET notified_at = NULL WHERE tenant_id = $1 AND state = 'held'";
    client.execute(sql, &[&tenant.0]).await?;
    Ok(())
}

async fn superseded(client: &impl GenericClient, tenant: TenantId, what: &str) -> Result<StepError, StepError> {
    let slug = read(client, &Selector::Id(tenant)).await?.tenant.slug;
    Ok(StepError::Superseded(match latest(client, tenant).await? {
        None => format!("tenant {slug} ({tenant}) has no hold that could be {what}"),
        Some(hold) => format!(
            "the hold of tenant {slug} ({tenant}) cannot be {what} by this execution: it is {}, {}, and {} works on it",
            hold.state.as_str(),
            if hold.expired { "expired" } else { "not expired" },
            hold.execution.as_deref().unwrap_or("nobody"),
        ),
    }))
}
