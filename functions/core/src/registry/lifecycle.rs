//! Changes of a tenant's status that the product tells the world about, each with its event in the same transaction.

use serde_json::json;
use tokio_postgres::Client;

use super::fence::{Actor, check};
use super::{audit, outbox, read_for_update, suspensions};
use crate::error::StepError;
use crate::tenant::{Status, TenantId};

/// Brings a tenant into service: `provisioning` to `active`, with `tenant.provisioned` in the outbox; straight on to
/// `suspended`, with `tenant.suspended`, where a suspension was recorded meanwhile. Again is a no-op. Returns the status reached.
///
/// # Errors
/// `Superseded` when the execution does not hold the tenant.
pub async fn activate(
    client: &mut Client,
    tenant: TenantId,
    execution: &str,
    base_domain: &str,
) -> Result<Status, StepError> {
    let transaction = client.transaction().await?;
    audit::act_as(&transaction, execution).await?;
    let record = read_for_update(&transaction, tenant).await?;
    let actor = Actor::Execution(execution.to_owned());
    check(&record, &actor, &[Status::Provisioning, Status::Active, Status::Suspended])?;
    if record.tenant.status != Status::Provisioning {
        return Ok(record.tenant.status);
    }
    transaction
        .execute(
            "UPDATE tenants SET status = 'active', failed_step = NULL, failed_error = NULL, failed_message = NULL,
                    failed_at = NULL, retries = 0, retry_at = NULL WHERE id = $1",
            &[&tenant.0],
        )
        .await?;
    let detail = json!({
        "slug": record.tenant.slug,
        "plan": record.tenant.plan,
        "isolation": record.tenant.isolation,
        "region": record.tenant.region,
        "host": record.tenant.host(base_domain),
    });
    outbox::enqueue(&transaction, tenant, "tenant.provisioned", detail).await?;
    let suspended = suspensions::apply_recorded(&transaction, &record).await?;
    transaction.commit().await?;
    Ok(if suspended { Status::Suspended } else { Status::Active })
}
