//! Exports: what is known of each, part by part, and of its link. What a function writes here counts only while it may act on
//! the tenant: each write checks the fence once more.

use serde_json::json;
use time::OffsetDateTime;
use tokio_postgres::{Client, GenericClient, Row, Transaction};
use uuid::Uuid;

use super::fence::{self, Actor};
use super::{audit, outbox, read_for_update};
use crate::error::StepError;
use crate::export::parts::{Bounds, Part, Uploaded};
use crate::tenant::{Status, TenantId};

/// An export, as the registry has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Export {
    /// Its id.
    pub id: Uuid,
    /// Of which tenant.
    pub tenant: TenantId,
    /// Where it is.
    pub state: State,
    /// The transaction id that no row may have or be after; `None` before it is known.
    pub horizon: Option<i64>,
    /// The last key of the bucket that the plan has reached.
    pub listed_upto: Option<String>,
    /// When it began.
    pub started_at: OffsetDateTime,
    /// Which of its links counts; 0 before there is one.
    pub generation: i32,
    /// When its link ends.
    pub link_expires_at: Option<OffsetDateTime>,
}

/// Where an export is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is being divided into parts.
    Planning,
    /// Its parts are being made.
    Exporting,
    /// All of it is there, and was checked.
    Finished,
    /// Something was written while it was made.
    Spoiled,
}

/// What a finished export is, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Files, the manifest among them.
    pub parts: i64,
    /// Tables.
    pub tables: i64,
    /// Rows of all tables.
    pub rows: i64,
    /// Objects of the bucket.
    pub objects: i64,
    /// Bytes of all files.
    pub bytes: i64,
}

const EXPORT: &str = "id, tenant_id, state, horizon, listed_upto, started_at, generation, link_expires_at";

fn export(row: &Row) -> Result<Export, StepError> {
    Ok(Export {
        id: row.try_get("id")?,
        tenant: TenantId(row.try_get("tenant_id")?),
        state: match row.try_get("state")? {
            "planning" => State::Planning,
            "exporting" => State::Exporting,
            "finished" => State::Finished,
            _ => State::Spoiled,
        },
        horizon: row.try_get("horizon")?,
        listed_upto: row.try_get("listed_upto")?,
        started_at: row.try_get("started_at")?,
        generation: row.try_get("generation")?,
        link_expires_at: row.try_get("link_expires_at")?,
    })
}

/// The export of a hold, or, where there is none, the one that is made by hand; begun now if it was not before. One that was
/// spoiled is followed by another.
///
/// # Errors
/// When the registry cannot be written.
pub async fn begin(client: &impl GenericClient, tenant: TenantId, hold: Option<i64>) -> Result<Export, StepError> {
    let sql = "INSERT INTO exports (tenant_id, hold_id) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    client.execute(sql, &[&tenant.0, &hold]).await?;
    let begun = current(client, tenant, hold).await?;
    begun.ok_or_else(|| StepError::Transient(format!("the export of tenant {tenant} ended while it began")))
}

/// The export of a hold that is being made or is finished; without a hold, the newest by hand.
///
/// # Errors
/// When the registry cannot be read.
pub async fn current(
    client: &impl GenericClient,
    tenant: TenantId,
    hold: Option<i64>,
) -> Result<Option<Export>, StepError> {
    let sql = format!(
        "SELECT {EXPORT} FROM exports
         WHERE tenant_id = $1 AND hold_id IS NOT DISTINCT FROM $2 AND state <> 'spoiled'
         ORDER BY state = 'finished', started_at DESC LIMIT 1"
    );
    client.query_opt(&sql, &[&tenant.0, &hold]).await?.as_ref().map(export).transpose()
}

/// The tenant's newest export that is finished.
///
/// # Errors
/// When the registry cannot be read.
pub async fn newest_finished(client: &impl GenericClient, tenant: TenantId) -> Result<Option<Export>, StepError> {
    let sql = format!(
        "SELECT {EXPORT} FROM exports WHERE tenant_id = $1 AND state = 'finished' ORDER BY finished_at DESC LIMIT 1"
    );
    client.query_opt(&sql, &[&tenant.0]).await?.as_ref().map(export).transpose()
}

/// Keeps the horizon, once. Returns the one that is kept.
///
/// # Errors
/// When the registry cannot be written.
pub async fn keep_horizon(client: &impl GenericClient, export: Uuid, horizon: i64) -> Result<i64, StepError> {
    let sql = "UPDATE exports SET horizon = coalesce(horizon, $2) WHERE id = $1 RETURNING horizon";
    Ok(client.query_one(sql, &[&export, &horizon]).await?.try_get(0)?)
}

/// Adds parts to the plan, and how far the bucket is listed. Numbers go on from those that are there; a plan that another
/// call has taken further meanwhile is left as it is.
///
/// # Errors
/// `Transient` when another call plans as well; what the fence says.
pub async fn add_parts(
    client: &mut Client,
    actor: &Actor,
    planned: &Export,
    parts: &[Part],
    listed_upto: Option<&str>,
    complete: bool,
) -> Result<(), StepError> {
    let transaction = client.transaction().await?;
    guard(&transaction, planned.tenant, actor).await?;
    let sql = "SELECT state = 'planning' AND listed_upto IS NOT DISTINCT FROM $2,
                      (SELECT coalesce(max(number), 0) FROM export_parts WHERE export_id = $1)
               FROM exports WHERE id = $1 FOR UPDATE";
    let row = transaction.query_one(sql, &[&planned.id, &planned.listed_upto]).await?;
    if !row.try_get::<_, bool>(0)? {
        return Err(StepError::Transient(format!("export {} is being planned by another call", planned.id)));
    }
    let last: i32 = row.try_get(1)?;
    let (mut numbers, mut kinds, mut names) = (Vec::new(), Vec::new(), Vec::new());
    let (mut sources, mut bounds) = (Vec::new(), Vec::new());
    for (number, part) in (last + 1..).zip(parts) {
        numbers.push(number);
        kinds.push(part.bounds.kind());
        names.push(part.name.as_str());
        sources.push(part.bounds.source());
        bounds.push(
            serde_json::to_value(&part.bounds).map_err(|error| StepError::Unexpected(format!("a part: {error}")))?,
        );
    }
    let sql = "INSERT INTO export_parts (export_id, number, kind, name, source, bounds)
               SELECT $1, * FROM unnest($2::int[], $3::text[], $4::text[], $5::text[], $6::jsonb[])";
    transaction.execute(sql, &[&planned.id, &numbers, &kinds, &names, &sources, &bounds]).await?;
    let sql = "UPDATE exports SET listed_upto = coalesce($2, listed_upto),
                      state = CASE WHEN $3 THEN 'exporting' ELSE state END,
                      planned_at = CASE WHEN $3 THEN now() END
               WHERE id = $1";
    transaction.execute(sql, &[&planned.id, &listed_upto, &complete]).await?;
    transaction.commit().await?;
    Ok(())
}

/// Refuses who may not act on the tenant any more, until the transaction ends.
async fn guard(transaction: &Transaction<'_>, tenant: TenantId, actor: &Actor) -> Result<(), StepError> {
    let record = read_for_update(transaction, tenant).await?;
    fence::check(&record, actor, &[Status::Suspended])
}

/// The numbers of an export's parts, in order, the manifest's not among them.
///
/// # Errors
/// When the registry cannot be read.
pub async fn numbers(client: &impl GenericClient, export: Uuid) -> Result<Vec<i32>, StepError> {
    let sql = "SELECT number FROM export_parts WHERE export_id = $1 AND kind <> 'manifest' ORDER BY number";
    client.query(sql, &[&export]).await?.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// The parts of an export, in order.
///
/// # Errors
/// When the registry cannot be read.
pub async fn parts(client: &impl GenericClient, export: Uuid) -> Result<Vec<Part>, StepError> {
    let sql = format!("SELECT {PART} FROM export_parts WHERE export_id = $1 ORDER BY number");
    client.query(&sql, &[&export]).await?.iter().map(part).collect()
}

/// One part of an export.
///
/// # Errors
/// When the registry cannot be read.
pub async fn part_of(client: &impl GenericClient, export: Uuid, number: i32) -> Result<Option<Part>, StepError> {
    let sql = format!("SELECT {PART} FROM export_parts WHERE export_id = $1 AND number = $2");
    client.query_opt(&sql, &[&export, &number]).await?.as_ref().map(part).transpose()
}

const PART: &str =
    "number, kind, name, source, bounds, bytes, items, sha256, etag, listing, verified_at IS NOT NULL AS verified,
    coalesce(done_at < now() - interval '12 hours', false) AS aged";

fn part(row: &Row) -> Result<Part, StepError> {
    let bounds: Option<serde_json::Value> = row.try_get("bounds")?;
    let kind: &str = row.try_get("kind")?;
    let bounds = match bounds {
        Some(bounds) => serde_json::from_value(bounds)
            .map_err(|error| StepError::Unexpected(format!("registry: the bounds of a part: {error}")))?,
        None => Bounds::Forgotten { kind: kind.to_owned(), source: row.try_get("source")? },
    };
    let sha256: Option<String> = row.try_get("sha256")?;
    let etag: Option<String> = row.try_get("etag")?;
    let bytes: Option<i64> = row.try_get("bytes")?;
    let made = match (sha256, etag, bytes) {
        (Some(sha256), Some(etag), Some(bytes)) => {
            Some(Uploaded { bytes, sha256, etag, items: row.try_get("items")?, listing: row.try_get("listing")? })
        }
        _ => None,
    };
    Ok(Part {
        number: row.try_get("number")?,
        name: row.try_get("name")?,
        bounds,
        made,
        verified: row.try_get("verified")?,
        aged: row.try_get("aged")?,
    })
}

/// Records that a part is in the exports bucket.
///
/// # Errors
/// What the fence says: then the part counts for nothing.
pub async fn part_done(
    client: &mut Client,
    actor: &Actor,
    of: &Export,
    number: i32,
    made: &Uploaded,
) -> Result<(), StepError> {
    let transaction = client.transaction().await?;
    guard(&transaction, of.tenant, actor).await?;
    let sql = "UPDATE export_parts SET bytes = $3, items = $4, sha256 = $5, etag = $6, listing = $7, done_at = now(),
                      verified_at = NULL
               WHERE export_id = $1 AND number = $2
                   AND EXISTS (SELECT FROM exports WHERE id = $1 AND state = 'exporting')";
    let Uploaded { bytes, items, sha256, etag, listing } = made;
    transaction.execute(sql, &[&of.id, &number, bytes, items, sha256, etag, listing]).await?;
    transaction.commit().await?;
    Ok(())
}

/// Records that a part was found as it was made, and its source unchanged.
///
/// # Errors
/// When the registry cannot be written.
pub async fn part_verified(client: &impl GenericClient, export: Uuid, number: i32) -> Result<(), StepError> {
    let sql = "UPDATE export_parts SET verified_at = now() WHERE export_id = $1 AND number = $2";
    client.execute(sql, &[&export, &number]).await?;
    Ok(())
}

/// Gives an export up, because something was written while it was made. The next plan begins another.
///
/// # Errors
/// What the fence says.
pub async fn spoil(client: &mut Client, actor: &Actor, of: &Export, why: &str) -> Result<(), StepError> {
    let transaction = client.transaction().await?;
    guard(&transaction, of.tenant, actor).await?;
    let sql = "UPDATE exports SET state = 'spoiled' WHERE id = $1 AND state IN ('planning', 'exporting')";
    if transaction.execute(sql, &[&of.id]).await? == 1 {
        transaction.execute("SELECT forget_bounds($1)", &[&of.id]).await?;
        let detail = json!({ "export": of.id, "why": why });
        audit::record(&transaction, of.tenant, &actor.to_string(), "export spoiled", &detail).await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// What the parts come to.
///
/// # Errors
/// When the registry cannot be read.
pub async fn totals(client: &impl GenericClient, export: Uuid) -> Result<Totals, StepError> {
    let sql = "SELECT count(*), count(DISTINCT source) FILTER (WHERE kind = 'table'),
                      coalesce(sum(items) FILTER (WHERE kind = 'table'), 0)::bigint,
                      coalesce(sum(items) FILTER (WHERE kind IN ('objects', 'piece')), 0)::bigint,
                      coalesce(sum(bytes), 0)::bigint
               FROM export_parts WHERE export_id = $1";
    let row = client.query_one(sql, &[&export]).await?;
    Ok(Totals {
        parts: row.try_get(0)?,
        tables: row.try_get(1)?,
        rows: row.try_get(2)?,
        objects: row.try_get(3)?,
        bytes: row.try_get(4)?,
    })
}

/// Ends an export: its manifest is in the bucket. Tells the world and the audit trail. Again changes nothing.
///
/// # Errors
/// What the fence says.
pub async fn finish(
    client: &mut Client,
    actor: &Actor,
    of: &Export,
    name: &str,
    manifest: &Uploaded,
) -> Result<Totals, StepError> {
    let transaction = client.transaction().await?;
    audit::act_as(&transaction, &actor.to_string()).await?;
    let record = read_for_update(&transaction, of.tenant).await?;
    fence::check(&record, actor, &[Status::Suspended])?;
    let Uploaded { bytes, sha256, etag, .. } = manifest;
    let sql = "INSERT INTO export_parts (export_id, number, kind, name, bytes, sha256, etag, done_at, verified_at)
               SELECT $1, (SELECT coalesce(max(number), 0) + 1 FROM export_parts WHERE export_id = $1), 'manifest',
                      $2, $3, $4, $5, now(), now()
               FROM exports WHERE id = $1 AND state = 'exporting'";
    let ended = transaction.execute(sql, &[&of.id, &name, bytes, sha256, etag]).await? == 1;
    let totals = totals(&transaction, of.id).await?;
    if ended {
        let sql = "UPDATE exports SET state = 'finished', finished_at = now(), manifest_sha256 = $2 WHERE id = $1";
        transaction.execute(sql, &[&of.id, sha256]).await?;
        transaction.execute("SELECT forget_bounds($1)", &[&of.id]).await?;
        let Totals { parts, tables, rows, objects, bytes } = totals;
        let counts = json!({ "parts": parts, "tables": tables, "rows": rows, "objects": objects, "bytes": bytes });
        let mut detail = json!({
            "slug": record.tenant.slug, "plan": record.tenant.plan, "region": record.tenant.region, "export_id": of.id,
        });
        if let (Some(detail), Some(counts)) = (detail.as_object_mut(), counts.as_object()) {
            detail.extend(counts.clone());
        }
        outbox::enqueue(&transaction, of.tenant, "tenant.exported", detail).await?;
        let detail = json!({ "export": of.id, "manifest_sha256": sha256, "counts": counts });
        audit::record(&transaction, of.tenant, &actor.to_string(), "exported", &detail).await?;
    }
    transaction.commit().await?;
    Ok(totals)
}

/// The link that a token leads to, as it stands by the database's clock.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// Of which export.
    pub export: Export,
    /// SHA-256 of the token that works.
    pub token_hash: Vec<u8>,
    /// Whether it has expired.
    pub expired: bool,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// The link of an export, if it has one.
///
/// # Errors
/// When the registry cannot be read.
pub async fn link(client: &impl GenericClient, export_id: Uuid) -> Result<Option<Opened>, StepError> {
    let sql = format!(
        "SELECT {EXPORT}, token_hash, link_expires_at <= now() AS expired, revoked_at IS NOT NULL AS revoked
         FROM exports WHERE id = $1 AND token_hash IS NOT NULL"
    );
    let Some(row) = client.query_opt(&sql, &[&export_id]).await? else { return Ok(None) };
    Ok(Some(Opened {
        export: export(&row)?,
        token_hash: row.try_get("token_hash")?,
        expired: row.try_get("expired")?,
        revoked: row.try_get("revoked")?,
    }))
}

/// Makes a link work, for so many seconds, but not past what the bucket keeps: a day more than that, from when the parts were
/// made, of which half is left for making them. Of this generation, if none is newer. Again changes nothing.
///
/// # Errors
/// `Transient` when another link was made meanwhile.
pub async fn open_link(
    client: &impl GenericClient,
    of: &Export,
    generation: i32,
    token_hash: &[u8],
    seconds: f64,
    actor: &str,
) -> Result<(), StepError> {
    let sql = "WITH opened AS (
                   UPDATE exports SET generation = $2, token_hash = $3, revoked_at = NULL,
                          link_expires_at = least(now(), (SELECT min(done_at) FROM export_parts WHERE export_id = $1)
                                                       + interval '12 hours') + make_interval(secs => $4)
                   WHERE id = $1 AND generation = $2 - 1 AND state = 'finished' RETURNING id, tenant_id)
               INSERT INTO audit (tenant_id, actor, action, detail)
               SELECT tenant_id, $5, 'export link published', jsonb_build_object('export', id, 'generation', $2)
               FROM opened";
    client.execute(sql, &[&of.id, &generation, &token_hash, &seconds, &actor]).await?;
    match link(client, of.id).await? {
        Some(opened) if opened.token_hash == token_hash => Ok(()),
        _ => Err(StepError::Transient(format!("export {} was given another link meanwhile", of.id))),
    }
}

/// Ends every link to the tenant's exports that still works. Returns the exports whose link it was.
///
/// # Errors
/// When the registry cannot be written.
pub async fn revoke_links(client: &impl GenericClient, tenant: TenantId, actor: &str) -> Result<Vec<Uuid>, StepError> {
    let sql = "WITH revoked AS (
                   UPDATE exports SET revoked_at = now()
                   WHERE tenant_id = $1 AND token_hash IS NOT NULL AND revoked_at IS NULL AND link_expires_at > now()
                   RETURNING id, tenant_id, generation),
               recorded AS (
                   INSERT INTO audit (tenant_id, actor, action, detail)
                   SELECT tenant_id, $2, 'export link revoked',
                          jsonb_build_object('export', id, 'generation', generation) FROM revoked)
               SELECT id FROM revoked";
    client.query(sql, &[&tenant.0, &actor]).await?.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Records a click on a part, before its download begins.
///
/// # Errors
/// When the registry cannot be written: then there is no download.
pub async fn record_download(client: &impl GenericClient, of: &Export, part: i32) -> Result<(), StepError> {
    let sql = "INSERT INTO export_downloads (export_id, part, generation) VALUES ($1, $2, $3)";
    client.execute(sql, &[&of.id, &part, &of.generation]).await?;
    Ok(())
}
