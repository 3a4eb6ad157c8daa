//! Whom a request is for.

use uuid::Uuid;

/// The tenant that the gate admitted, in the request's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Its id. `None` only where neither Redis nor the registry could be asked, and the gate is open then.
    pub id: Option<Uuid>,
    /// The first label of its host name.
    pub slug: String,
}

#[cfg(feature = "postgres")]
impl Tenant {
    /// Makes row-level security show this tenant's rows, and no others, until the transaction ends.
    ///
    /// # Errors
    /// When PostgreSQL cannot be asked. A tenant without an id sees no rows, which is no error.
    pub async fn enter(&self, transaction: &tokio_postgres::Transaction<'_>) -> Result<(), tokio_postgres::Error> {
        let id = self.id.map(|id| id.to_string()).unwrap_or_default();
        transaction.execute("SELECT set_config('app.current_tenant_id', $1, true)", &[&id]).await?;
        Ok(())
    }
}
