//! What lies in tenants' buckets, and what is promised room in them.
//!
//! The ledger says of a key what S3 said when it was asked about it, and whoever asks has the turn: S3's answers enter the
//! ledger in the order in which S3 gave them. So it does not matter how often an event comes, when, and in which order.

use std::time::Duration;

use tokio_postgres::{Client, GenericClient, Transaction};

use super::quotas::{self, Balance, Decision};
use super::{Selector, read_for_update, usage};
use crate::error::StepError;
use crate::tenant::{Metered, Status, Tenant, TenantId};

/// How long a bucket that could not be read is left alone.
const AFTER_FAILURE: &str = "1 hour";
/// From one reconciliation of a bucket to the next.
const BETWEEN: &str = "1 day";

/// A version of an object, as S3 lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The object's key.
    pub key: Vec<u8>,
    /// S3's id of the version.
    pub id: String,
    /// Its size.
    pub bytes: i64,
}

/// Keys from one to another, both included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// The first; empty is the first of the bucket.
    pub from: Vec<u8>,
    /// The last; `None` is the last of the bucket.
    pub to: Option<Vec<u8>>,
    /// Whether every version that lies there is known. Otherwise what is not listed may be there all the same.
    pub whole: bool,
}

/// What S3's answer changed in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// Versions that the ledger did not have, or had with another size.
    pub arrived: u64,
    /// Versions that are not there any more.
    pub gone: u64,
    /// By how many bytes the sum rose, or fell.
    pub bytes: i64,
    /// Uploads that were promised room and have arrived.
    pub kept_promises: u64,
}

/// A bucket whose reconciliation is due, held until it is [`Due::settle`]d or dropped.
pub struct Due<'a> {
    transaction: Transaction<'a>,
    /// Whose.
    pub tenant: Tenant,
    /// The last key that was compared; `None` where it begins.
    pub reached: Option<Vec<u8>>,
}

/// Promises an upload room for a while, if it fits beside all that is stored and promised. Returns the tenant too.
///
/// # Errors
/// `TenantNotFound`; a refusal is no error.
pub async fn reserve(
    client: &mut Client,
    tenant: &Selector,
    key: &str,
    bytes: i64,
    holds: Duration,
) -> Result<(Tenant, Decision), StepError> {
    let transaction = client.transaction().await?;
    let tenant = quotas::take(&transaction, tenant).await?;
    let used = stored(&transaction, tenant.id).await? + promised(&transaction, tenant.id).await?;
    let quota = quotas::quota(&transaction, &tenant, Metered::StorageBytes).await?;
    let balance = |used| Balance { resource: Metered::StorageBytes, used, quota };
    if let Some(reason) = quotas::not_served(&transaction, &tenant).await? {
        return Ok((tenant, Decision::Refused(reason, balance(used))));
    }
    let decision = if used.saturating_add(bytes) > quota {
        quotas::does_not_fit(&transaction, tenant.id, balance(used)).await?
    } else {
        let sql = "INSERT INTO upload_reservations (tenant_id, key, bytes, expires_at)
                   VALUES ($1, $2, $3, now() + make_interval(secs => $4))";
        transaction.execute(sql, &[&tenant.id.0, &key.as_bytes(), &bytes, &holds.as_secs_f64()]).await?;
        Decision::Granted(balance(used + bytes))
    };
    transaction.commit().await?;
    Ok((tenant, decision))
}

/// Waits for the turn to ask S3 about one key of a tenant, and to write what it says. It ends with the transaction.
///
/// # Errors
/// `Transient` when the turn does not come in time.
pub async fn turn<'a>(client: &'a mut Client, tenant: TenantId, key: &[u8]) -> Result<Transaction<'a>, StepError> {
    let transaction = client.transaction().await?;
    // Beside those that have other keys, and never beside a reconciliation, which has them all.
    let sql = "SELECT pg_advisory_xact_lock_shared(hashtextextended($1, 0)),
                      pg_advisory_xact_lock(hashtextextended($1 || encode($2, 'hex'), 0))";
    transaction.execute(sql, &[&lock_name(tenant), &key]).await?;
    Ok(transaction)
}

fn lock_name(tenant: TenantId) -> String {
    format!("tenantry storage {tenant}")
}

/// Writes what S3 said of a stretch, in the turn that it was asked in: the ledger, the promises that were kept, the most of the
/// cycle and the notices, all or nothing. A tenant that is gone stays forgotten.
///
/// # Errors
/// When the registry cannot be written.
pub async fn settle(
    transaction: Transaction<'_>,
    tenant: TenantId,
    stretch: &Stretch,
    versions: &[Version],
) -> Result<Change, StepError> {
    let change = write(&transaction, tenant, stretch, versions).await?;
    transaction.commit().await?;
    Ok(change)
}

async fn write(
    transaction: &Transaction<'_>,
    tenant: TenantId,
    stretch: &Stretch,
    versions: &[Version],
) -> Result<Change, StepError> {
    let tenant = read_for_update(transaction, tenant).await?.tenant;
    if tenant.status == Status::Deprovisioned {
        return Ok(Change::default());
    }
    let before = stored(transaction, tenant.id).await?;
    let keys: Vec<&[u8]> = versions.iter().map(|version| version.key.as_slice()).collect();
    let ids: Vec<&str> = versions.iter().map(|version| version.id.as_str()).collect();
    let sizes: Vec<i64> = versions.iter().map(|version| version.bytes).collect();
    let gone = if stretch.whole {
        let sql = "DELETE FROM stored_versions s
                   WHERE tenant_id = $1 AND key >= $2 AND ($3::bytea IS NULL OR key <= $3)
                     AND (key, version) NOT IN (SELECT * FROM unnest($4::bytea[], $5::text[]))";
        transaction.execute(sql, &[&tenant.id.0, &stretch.from, &stretch.to, &keys, &ids]).await?
    } else {
        0
    };
    // The version `null`, of a bucket that was not versioned for a while, can be another object under the same name.
    let sql = "INSERT INTO stored_versions AS s (tenant_id, key, version, bytes)
               SELECT $1, * FROM unnest($2::bytea[], $3::text[], $4::bigint[])
               ON CONFLICT (tenant_id, key, version) DO UPDATE SET bytes = excluded.bytes WHERE s.bytes <> excluded.bytes
               RETURNING key, bytes";
    let rows = transaction.query(sql, &[&tenant.id.0, &keys, &ids, &sizes]).await?;
    let arrived_keys = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<Vec<u8>>, _>>()?;
    let arrived_sizes = rows.iter().map(|row| row.try_get(1)).collect::<Result<Vec<i64>, _>>()?;
    // One arrival keeps one promise: of the same key, and of the same size, which the upload's URL is signed for.
    let sql = "DELETE FROM upload_reservations WHERE id IN (
                   SELECT waiting.id
                   FROM (SELECT id, key, bytes, row_number() OVER (PARTITION BY key, bytes ORDER BY reserved_at) AS nth
                         FROM upload_reservations WHERE tenant_id = $1) AS waiting
                   JOIN (SELECT key, bytes, row_number() OVER (PARTITION BY key, bytes) AS nth
                         FROM unnest($2::bytea[], $3::bigint[]) AS a (key, bytes)) AS arrived USING (key, bytes, nth))";
    let kept_promises = transaction.execute(sql, &[&tenant.id.0, &arrived_keys, &arrived_sizes]).await?;
    let used = stored(transaction, tenant.id).await?;
    if used != before {
        let quota = quotas::quota(transaction, &tenant, Metered::StorageBytes).await?;
        let balance = Balance { resource: Metered::StorageBytes, used, quota };
        usage::note(transaction, tenant.id, before, balance).await?;
    }
    let arrived = arrived_keys.len() as u64;
    Ok(Change { arrived, gone, bytes: used - before, kept_promises })
}

/// Finds a bucket whose reconciliation is due, those that were begun first, and holds it: others find another. Tenants that came
/// into service since are due at once.
///
/// # Errors
/// `Transient` when its turn does not come in time, because many events of the tenant are being settled.
pub async fn due(client: &mut Client) -> Result<Option<Due<'_>>, StepError> {
    let transaction = client.transaction().await?;
    let sql = "SELECT r.tenant_id, r.reached FROM storage_reconciliations r JOIN tenants t ON t.id = r.tenant_id
               WHERE r.due_at <= now() AND t.status IN ('active', 'suspended')
               ORDER BY r.reached IS NULL, r.due_at LIMIT 1 FOR NO KEY UPDATE OF r SKIP LOCKED";
    let Some(row) = transaction.query_opt(sql, &[]).await? else { return Ok(None) };
    let tenant = TenantId(row.try_get(0)?);
    let sql = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))";
    transaction.execute(sql, &[&lock_name(tenant)]).await?;
    let tenant = super::read(&transaction, &Selector::Id(tenant)).await?.tenant;
    Ok(Some(Due { transaction, tenant, reached: row.try_get(1)? }))
}

/// Lists the tenants that came into service since as due for their first reconciliation.
///
/// # Errors
/// When the registry cannot be written.
pub async fn list_new(client: &Client) -> Result<(), StepError> {
    let sql = "INSERT INTO storage_reconciliations (tenant_id)
               SELECT id FROM tenants WHERE status IN ('active', 'suspended') ON CONFLICT DO NOTHING";
    client.execute(sql, &[]).await?;
    Ok(())
}

impl Due<'_> {
    /// Writes what S3 said of the next stretch. The bucket's last stretch ends the reconciliation until the next day.
    ///
    /// # Errors
    /// When the registry cannot be written; then the stretch is compared again.
    pub async fn settle(self, stretch: &Stretch, versions: &[Version]) -> Result<Change, StepError> {
        let Due { transaction, tenant, .. } = self;
        let change = write(&transaction, tenant.id, stretch, versions).await?;
        let sql = format!(
            "UPDATE storage_reconciliations SET reached = $2,
                 due_at = CASE WHEN $2::bytea IS NULL THEN now() + interval '{BETWEEN}' ELSE due_at END,
                 done_at = CASE WHEN $2::bytea IS NULL THEN now() ELSE done_at END
             WHERE tenant_id = $1"
        );
        transaction.execute(&sql, &[&tenant.id.0, &stretch.to]).await?;
        transaction.commit().await?;
        Ok(change)
    }

    /// Puts the bucket off, because it could not be read: others have their turn.
    ///
    /// # Errors
    /// When the registry cannot be written.
    pub async fn put_off(self) -> Result<(), StepError> {
        let sql = format!(
            "UPDATE storage_reconciliations SET due_at = now() + interval '{AFTER_FAILURE}' WHERE tenant_id = $1"
        );
        self.transaction.execute(&sql, &[&self.tenant.id.0]).await?;
        Ok(self.transaction.commit().await?)
    }
}

/// Removes the promises that have expired. They count no more anyway. Returns how many there were.
///
/// # Errors
/// When the registry cannot be written.
pub async fn remove_expired(client: &Client) -> Result<u64, StepError> {
    Ok(client.execute("DELETE FROM upload_reservations WHERE expires_at <= now()", &[]).await?)
}

/// Bytes that lie in a tenant's bucket, as far as the ledger knows.
///
/// # Errors
/// When the registry cannot be read.
pub async fn stored(client: &impl GenericClient, tenant: TenantId) -> Result<i64, StepError> {
    let sql = "SELECT coalesce((SELECT bytes FROM stored_bytes WHERE tenant_id = $1), 0)";
    Ok(client.query_one(sql, &[&tenant.0]).await?.try_get(0)?)
}

/// Bytes that are promised to uploads which have not arrived, and may still.
pub(super) async fn promised(client: &impl GenericClient, tenant: TenantId) -> Result<i64, StepError> {
    let sql =
        "SELECT coalesce(sum(bytes), 0)::bigint FROM upload_reservations WHERE tenant_id = $1 AND expires_at > now()";
    Ok(client.query_one(sql, &[&tenant.0]).await?.try_get(0)?)
}
