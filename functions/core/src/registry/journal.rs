//! What each step did for each tenant: a resumed execution skips what is done.

use serde_json::Value;
use tokio_postgres::GenericClient;

use super::Record;
use super::fence::{Actor, check};
use crate::error::StepError;
use crate::tenant::{Status, TenantId};

/// What the journal says of one step of one tenant.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Whether it is `done`, the only state that lets a later run skip it.
    pub done: bool,
    /// Who did it.
    pub execution: String,
    /// What it made.
    pub made: Value,
}

/// Reads a step's entry.
///
/// # Errors
/// When the registry cannot be read.
pub async fn entry(client: &impl GenericClient, tenant: TenantId, step: &str) -> Result<Option<Entry>, StepError> {
    let sql = "SELECT state = 'done', execution, made FROM step_journal WHERE tenant_id = $1 AND step = $2";
    let row = client.query_opt(sql, &[&tenant.0, &step]).await?;
    row.map(|row| {
        Ok(Entry {
            done: row.try_get(0)?,
            execution: row.try_get(1)?,
            made: row.try_get::<_, Option<Value>>(2)?.unwrap_or(Value::Null),
        })
    })
    .transpose()
}

/// Records that a step begins, once more where it began before, if the actor (still) may act.
///
/// # Errors
/// `Superseded` when the tenant changed hands since `record` was read.
pub async fn begin(
    client: &impl GenericClient,
    record: &Record,
    step: &str,
    actor: &Actor,
    allowed: &[Status],
) -> Result<(), StepError> {
    check(record, actor, allowed)?;
    let begun = client
        .execute(
            "INSERT INTO step_journal (tenant_id, step, state, execution)
             SELECT id, $2, 'doing', $3 FROM tenants WHERE id = $1 AND execution IS NOT DISTINCT FROM $4
             ON CONFLICT (tenant_id, step) DO UPDATE
             SET state = 'doing', execution = excluded.execution, attempts = step_journal.attempts + 1,
                 started_at = now(), finished_at = NULL, error = NULL",
            &[&record.tenant.id.0, &step, &actor.to_string(), &record.execution],
        )
        .await?;
    changed_hands_unless(begun == 1, record, actor)
}

/// Records that a step is done and what it made.
///
/// # Errors
/// `Superseded` when the tenant changed hands while the step acted.
pub async fn done(
    client: &impl GenericClient,
    record: &Record,
    step: &str,
    actor: &Actor,
    made: &Value,
) -> Result<(), StepError> {
    let ended = client
        .execute(
            "UPDATE step_journal j SET state = 'done', finished_at = now(), made = $4, error = NULL
             FROM tenants t WHERE t.id = $1 AND t.execution IS NOT DISTINCT FROM $5
                AND j.tenant_id = t.id AND j.step = $2 AND j.execution = $3",
            &[&record.tenant.id.0, &step, &actor.to_string(), made, &record.execution],
        )
        .await?;
    changed_hands_unless(ended == 1, record, actor)
}

/// Records that an attempt of a step failed. Quiet when the tenant changed hands: the entry is another's then.
///
/// # Errors
/// When the registry cannot be written.
pub async fn failed(
    client: &impl GenericClient,
    record: &Record,
    step: &str,
    actor: &Actor,
    error: &StepError,
) -> Result<(), StepError> {
    client
        .execute(
            "UPDATE step_journal SET state = 'failed', finished_at = now(), error = $4
             WHERE tenant_id = $1 AND step = $2 AND execution = $3",
            &[&record.tenant.id.0, &step, &actor.to_string(), &format!("{}: {error}", error.name())],
        )
        .await?;
    Ok(())
}

/// Records that a step's undo begins, whether or not the step was seen to begin: from now on it is not done.
///
/// # Errors
/// `Superseded` when the tenant changed hands since `record` was read.
pub async fn begin_undo(
    client: &impl GenericClient,
    record: &Record,
    step: &str,
    actor: &Actor,
) -> Result<(), StepError> {
    let begun = client
        .execute(
            "INSERT INTO step_journal (tenant_id, step, state, execution)
             SELECT id, $2, 'undoing', $3 FROM tenants WHERE id = $1 AND execution IS NOT DISTINCT FROM $4
             ON CONFLICT (tenant_id, step) DO UPDATE
             SET state = 'undoing', execution = excluded.execution, finished_at = NULL",
            &[&record.tenant.id.0, &step, &actor.to_string(), &record.execution],
        )
        .await?;
    changed_hands_unless(begun == 1, record, actor)
}

/// Records how a step's undo ended.
///
/// # Errors
/// `Superseded` when the tenant changed hands while the undo acted.
pub async fn end_undo(
    client: &impl GenericClient,
    record: &Record,
    step: &str,
    actor: &Actor,
    error: Option<&StepError>,
) -> Result<(), StepError> {
    let error = error.map(|error| format!("{}: {error}", error.name()));
    let ended = client
        .execute(
            "UPDATE step_journal j SET state = CASE WHEN $4::text IS NULL THEN 'undone' ELSE 'undo_failed' END,
                    finished_at = now(), made = CASE WHEN $4::text IS NULL THEN NULL ELSE made END,
                    error = coalesce($4, error)
             FROM tenants t WHERE t.id = $1 AND t.execution IS NOT DISTINCT FROM $5
                AND j.tenant_id = t.id AND j.step = $2 AND j.execution = $3",
            &[&record.tenant.id.0, &step, &actor.to_string(), &error, &record.execution],
        )
        .await?;
    changed_hands_unless(ended == 1, record, actor)
}

/// The newest step that began and is not done: the one that an execution failed in.
///
/// # Errors
/// When the registry cannot be read.
pub async fn unfinished(client: &impl GenericClient, tenant: TenantId) -> Result<Option<String>, StepError> {
    let sql = "SELECT step FROM step_journal WHERE tenant_id = $1 AND state IN ('doing', 'failed')
               ORDER BY started_at DESC LIMIT 1";
    let row = client.query_opt(sql, &[&tenant.0]).await?;
    row.map(|row| row.try_get(0).map_err(StepError::from)).transpose()
}

fn changed_hands_unless(held: bool, record: &Record, actor: &Actor) -> Result<(), StepError> {
    if held {
        return Ok(());
    }
    Err(StepError::Superseded(format!(
        "tenant {} ({}) changed hands while {actor} was acting on it",
        record.tenant.slug, record.tenant.id
    )))
}
