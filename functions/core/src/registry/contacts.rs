//! The owner's name and email: the only personal data of the registry, in a table of its own.

use tokio_postgres::GenericClient;

use crate::error::StepError;
use crate::tenant::TenantId;

/// Who signed up. It implements no `Debug`, so that it cannot reach a log by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Contact {
    /// The owner's name.
    pub name: String,
    /// The owner's email address.
    pub email: String,
}

/// Reads a tenant's owner; `None` after erasure.
///
/// # Errors
/// When the registry cannot be read.
pub async fn owner(client: &impl GenericClient, tenant: TenantId) -> Result<Option<Contact>, StepError> {
    let row = client.query_opt("SELECT name, email FROM contacts WHERE tenant_id = $1", &[&tenant.0]).await?;
    row.map(|row| Ok(Contact { name: row.try_get(0)?, email: row.try_get(1)? })).transpose()
}
