//! The append-only audit trail. Changes of status enter it by themselves (a trigger); what people do is recorded here.

use serde_json::Value;
use tokio_postgres::GenericClient;

use crate::error::StepError;
use crate::tenant::TenantId;

/// Records that `actor` did `action`. `detail` holds no personal data: the trail is kept for ever.
///
/// # Errors
/// When the registry cannot be written.
pub async fn record(
    client: &impl GenericClient,
    tenant: TenantId,
    actor: &str,
    action: &str,
    detail: &Value,
) -> Result<(), StepError> {
    let sql = "INSERT INTO audit (tenant_id, actor, action, detail) VALUES ($1, $2, $3, $4)";
    client.execute(sql, &[&tenant.0, &actor, &action, detail]).await?;
    Ok(())
}

/// Names who acts for the rest of the transaction, for the triggers that audit changes of status.
pub(super) async fn act_as(transaction: &tokio_postgres::Transaction<'_>, actor: &str) -> Result<(), StepError> {
    transaction.execute("SELECT set_config('tenantry.actor', $1, true)", &[&actor]).await?;
    Ok(())
}
