//! Payments that billing confirmed, kept even when they come before the request they pay for.

use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use super::{Record, Selector, read};
use crate::error::StepError;
use crate::tenant::TenantId;

/// What a payment is for: billing knows the sign-up's request, or the tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaidFor {
    /// The request that the sign-up carries.
    Request(Uuid),
    /// A tenant that is registered.
    Tenant(TenantId),
}

/// Records a confirmed payment, once however often it is told, and returns its tenant. `None` when its request has not
/// arrived yet: the payment is applied when it does.
///
/// # Errors
/// `TenantNotFound` when a tenant is named that does not exist.
pub async fn confirm(client: &mut Client, payment_id: &str, paid_for: PaidFor) -> Result<Option<Record>, StepError> {
    let transaction = client.transaction().await?;
    let request_id = match paid_for {
        PaidFor::Request(request_id) => request_id,
        PaidFor::Tenant(tenant) => read(&transaction, &Selector::Id(tenant)).await?.request_id,
    };
    lock_request(&transaction, request_id).await?;
    let kept = "INSERT INTO payments (request_id, payment_id) VALUES ($1, $2) ON CONFLICT (request_id) DO NOTHING";
    transaction.execute(kept, &[&request_id, &payment_id]).await?;
    let paid = "UPDATE tenants SET paid_at = coalesce(paid_at, now()) WHERE request_id = $1 RETURNING id";
    let record = match transaction.query_opt(paid, &[&request_id]).await? {
        Some(row) => Some(read(&transaction, &Selector::Id(TenantId(row.try_get(0)?))).await?),
        None => None,
    };
    transaction.commit().await?;
    Ok(record)
}

/// Serializes a request's registration with its payment: whichever commits second sees the other.
pub(super) async fn lock_request(transaction: &Transaction<'_>, request_id: Uuid) -> Result<(), StepError> {
    let name = format!("request {request_id}");
    transaction.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", &[&name]).await?;
    Ok(())
}
