//! What the daily sweep of holds looks for, by the database's clock: owners to be reminded, holds that have expired, and work on
//! a hold that nobody may be doing any more.

use time::OffsetDateTime;
use tokio_postgres::{Client, Row, Transaction};

use crate::error::StepError;
use crate::tenant::TenantId;

/// The most of each kind that one sweep takes: what is left is the next one's.
const BATCH: i64 = 500;

/// What a hold waits for that its execution should be doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// It is to be exported, or an erasure's deletion to be started.
    Leave,
    /// It has expired: the tenant is to be deleted.
    Expired,
    /// It is being deleted.
    Delete,
    /// It is cancelled, and what it withdrew is to be given back.
    Return,
}

/// A hold that may have nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Its number.
    pub hold: i64,
    /// Whose.
    pub tenant: TenantId,
    /// What is to be done.
    pub work: Work,
    /// The execution that should be doing it; `None` where nobody took it up.
    pub execution: Option<String>,
    /// Whether it is so late that it is done whatever becomes of that execution.
    pub overdue: bool,
}

/// A reminder that an owner is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reminder {
    /// The hold's number.
    pub hold: i64,
    /// Whose.
    pub tenant: TenantId,
    /// When the tenant is deleted.
    pub expires_at: OffsetDateTime,
}

/// Holds whose work may have nobody; those that are expired for longer than `margin` (seconds) are overdue. A tenant that is
/// flagged waits for its operator.
///
/// # Errors
/// When the registry cannot be read.
pub async fn due(client: &Client, margin: f64) -> Result<Vec<Due>, StepError> {
    let sql = "SELECT h.id, h.tenant_id, h.state,
                      CASE WHEN h.state = 'cancelled' THEN t.execution ELSE h.execution END,
                      coalesce(h.state = 'held' AND h.expires_at <= now() - make_interval(secs => $1), false)
               FROM holds h JOIN tenants t ON t.id = h.tenant_id
               WHERE t.status = 'suspended' AND t.needs_operator IS NULL
                 AND (h.state IN ('exporting', 'deleting') OR h.state = 'held' AND h.expires_at <= now()
                      OR h.state = 'cancelled' AND h.thawed_at IS NULL
                         AND NOT EXISTS (SELECT FROM holds later WHERE later.tenant_id = h.tenant_id AND later.id > h.id)
                         AND EXISTS (SELECT FROM suspensions s
                                     WHERE s.tenant_id = h.tenant_id AND s.reason = 'offboarding'))
               ORDER BY coalesce(h.expires_at, h.created_at) LIMIT $2";
    client.query(sql, &[&margin, &BATCH]).await?.iter().map(read).collect()
}

fn read(row: &Row) -> Result<Due, StepError> {
    let work = match row.try_get(2)? {
        "exporting" => Work::Leave,
        "held" => Work::Expired,
        "deleting" => Work::Delete,
        _ => Work::Return,
    };
    Ok(Due {
        hold: row.try_get(0)?,
        tenant: TenantId(row.try_get(1)?),
        work,
        execution: row.try_get(3)?,
        overdue: row.try_get(4)?,
    })
}

/// Takes the next owner to be reminded, who stays locked for other sweeps until the transaction ends: seven days before the
/// deletion, and a day before it. The sweep comes once a day, so what is due before the next one is sent now: nobody has less time
/// than that. Where the hold itself is no longer, there is nothing to be reminded of.
///
/// # Errors
/// When the registry cannot be read.
pub async fn reminder(transaction: &Transaction<'_>, after: i64) -> Result<Option<Reminder>, StepError> {
    let sql = "SELECT id, tenant_id, expires_at FROM holds
               WHERE state = 'held' AND expires_at > now() AND id > $1
                 AND (day_reminded_at IS NULL AND expires_at <= now() + interval '2 days'
                         AND expires_at > published_at + interval '2 days'
                      OR week_reminded_at IS NULL AND expires_at <= now() + interval '8 days'
                         AND expires_at > published_at + interval '8 days')
               ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED";
    let row = transaction.query_opt(sql, &[&after]).await?;
    row.map(|row| {
        Ok(Reminder {
            hold: row.try_get(0)?,
            tenant: TenantId(row.try_get(1)?),
            expires_at: row.try_get::<_, OffsetDateTime>(2)?,
        })
    })
    .transpose()
}

/// Remembers that the owner was reminded. Who hears of the last day need not hear of the last week.
///
/// # Errors
/// When the registry cannot be written.
pub async fn reminded(transaction: &Transaction<'_>, reminder: &Reminder) -> Result<(), StepError> {
    let sql = "UPDATE holds SET week_reminded_at = coalesce(week_reminded_at, now()),
                      day_reminded_at = CASE WHEN expires_at <= now() + interval '2 days' THEN now() ELSE day_reminded_at END
               WHERE id = $1";
    transaction.execute(sql, &[&reminder.hold]).await?;
    Ok(())
}
