//! What the registry itself holds of a deleted tenant: which tables are emptied of it, and which keep their rows, and why.

use std::collections::BTreeMap;

use tokio_postgres::{Client, GenericClient};

use crate::error::StepError;
use crate::tenant::TenantId;

/// Tables that a deleted tenant has no row in: they hold what is personal, what it used, or what it is at Stripe.
///
/// Versions come before the sum of their bytes, which follows them.
pub const ERASED: &[&str] = &[
    "billing_accounts",
    "contacts",
    "invites",
    "quota_notices",
    "quota_overrides",
    "seats",
    "storage_reconciliations",
    "stored_versions",
    "stored_bytes",
    "upload_reservations",
    "usage_cycles",
];

/// Of the tables that are erased, those of usage: what Redis counted is kept there too, and they go with its keys.
pub const USAGE: &[&str] = &["quota_notices", "quota_overrides", "usage_cycles"];

/// Tables that keep a deleted tenant's rows, and why. A test compares both lists with the catalog.
pub const KEPT: &[(&str, &str)] = &[
    ("audit", "who did what, for ever: names of executions and operators, nothing personal of the tenant"),
    ("deletions", "the certificate, and what it is made from"),
    ("downstream_requests", "who confirmed that it deleted the tenant's data"),
    ("exports", "the export outlives the tenant, until its link has expired: ids, counts and hashes"),
    ("holds", "who asked for the deletion, and why"),
    ("outbox", "the events that were sent: no personal data, as their schemas say"),
    ("plan_changes", "which plans it had, and who changed them: no addresses, no sentences"),
    ("step_journal", "which steps ran; what they made and said is erased"),
    ("suspensions", "why it was out of service: enumerated reasons"),
];

/// What a payment's id becomes. Its row stays, so that a confirmation that comes once more is known to be one.
const ERASED_PAYMENT: &str = "erased";

/// Deletes a tenant's rows of these tables, and returns how many there were. Again finds none.
///
/// # Errors
/// When the registry cannot be written.
pub async fn erase(client: &mut Client, tenant: TenantId, tables: &[&str]) -> Result<u64, StepError> {
    let transaction = client.transaction().await?;
    let mut rows = 0;
    for table in tables {
        rows += transaction.execute(&format!("DELETE FROM {table} WHERE tenant_id = $1"), &[&tenant.0]).await?;
    }
    transaction.commit().await?;
    Ok(rows)
}

/// Erases payments' ids, and what the journal says of things that are gone. Again finds nothing.
///
/// # Errors
/// When the registry cannot be written.
pub async fn erase_traces(client: &Client, tenant: TenantId) -> Result<u64, StepError> {
    let payments = "UPDATE payments p SET payment_id = $2 FROM tenants t
                    WHERE t.id = $1 AND p.request_id = t.request_id AND p.payment_id <> $2";
    let journal = "UPDATE step_journal SET made = NULL, error = NULL
                   WHERE tenant_id = $1 AND (made IS NOT NULL OR error IS NOT NULL) AND state IN ('done', 'undone')";
    Ok(client.execute(payments, &[&tenant.0, &ERASED_PAYMENT]).await? + client.execute(journal, &[&tenant.0]).await?)
}

/// The tables of the registry that say which tenant a row is of, as the catalog has them.
///
/// # Errors
/// When the registry cannot be read.
pub async fn tables(client: &impl GenericClient) -> Result<Vec<String>, StepError> {
    let sql = "SELECT c.relname::text FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
               WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND a.attname = 'tenant_id'
                   AND NOT a.attisdropped ORDER BY 1";
    client.query(sql, &[]).await?.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// How many rows each table has of the tenant, apart from those that are kept; payments by their request. Tables come from the
/// catalog: one that a migration forgot to list is looked into too.
///
/// # Errors
/// When the registry cannot be read.
pub async fn rows(client: &impl GenericClient, tenant: TenantId) -> Result<BTreeMap<String, i64>, StepError> {
    let mut rows = BTreeMap::new();
    for table in tables(client).await? {
        if KEPT.iter().any(|(kept, _)| *kept == table) {
            continue;
        }
        // The name is the catalog's, and quoted.
        let name = crate::postgres::quote_identifier(&table);
        let row = client.query_one(&format!("SELECT count(*) FROM {name} WHERE tenant_id = $1"), &[&tenant.0]).await?;
        rows.insert(table, row.try_get(0)?);
    }
    let sql =
        "SELECT count(*) FROM payments p JOIN tenants t USING (request_id) WHERE t.id = $1 AND p.payment_id <> $2";
    let row = client.query_one(sql, &[&tenant.0, &ERASED_PAYMENT]).await?;
    rows.insert("payments".to_owned(), row.try_get(0)?);
    rows.retain(|_, count| *count > 0);
    Ok(rows)
}
