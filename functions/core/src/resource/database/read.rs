//! Reading all that is a tenant's, on a connection of its own.

use std::time::Duration;

use tokio_postgres::Client;

use super::TenantDatabase;
use crate::error::StepError;
use crate::migrations::POOL;
use crate::migrations::roles::AUDITOR_ROLE;
use crate::postgres::{self, quote_identifier};
use crate::registry::placement;
use crate::tenant::{Isolation, Tenant, TenantId};

/// A session that sees every row of a tenant, and what it sees them in.
pub struct Reader {
    /// The session. Its search path is the schema, so that the catalog names what is in it without the schema's name.
    pub client: Client,
    /// The schema that the tenant's tables are in.
    pub schema: String,
    /// Whose rows to read of tables that tenants share; `None` where the schema is the tenant's own.
    pub shared: Option<TenantId>,
}

impl TenantDatabase {
    /// Connects as the provisioner, in a schema that it owns; in shared tables as the auditor, whom no policy hides rows from.
    /// Times, intervals, numbers and bytes are written in the forms that every PostgreSQL reads back. `patience` bounds each
    /// statement.
    ///
    /// # Errors
    /// `Transient` when the server cannot be reached; `Unexpected` for a tenant that is placed nowhere.
    pub async fn reader(&self, tenant: &Tenant, patience: Duration) -> Result<Reader, StepError> {
        let secret = if tenant.isolation == Isolation::Database {
            tenant.server_secret()
        } else {
            let placed = placement::placed(&*self.registry.client().await?, tenant).await?;
            placed.ok_or_else(|| StepError::Unexpected(format!("tenant {} is placed nowhere", tenant.id)))?.secret
        };
        let credentials = self.connect_to(&secret).await.credentials().await?;
        let client = postgres::connect(&credentials, self.ca_bundle().as_deref()).await?;
        let (schema, shared) = match tenant.isolation {
            Isolation::Shared => (POOL.to_owned(), Some(tenant.id)),
            Isolation::Schema | Isolation::Database => (tenant.schema(), None),
        };
        // Rows that a policy would hide from their owner are an error. The auditor has a policy of its own, which is looked at.
        let see_all = match shared {
            Some(_) => format!("SET ROLE {AUDITOR_ROLE}"),
            None => "SET row_security = off".to_owned(),
        };
        client
            .batch_execute(&format!(
                "SET search_path = {}; SET statement_timeout = {}; SET default_transaction_read_only = on;
                 SET client_encoding = 'UTF8'; SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; SET timezone = 'UTC';
                 SET extra_float_digits = 3; SET bytea_output = 'hex'; {see_all}",
                quote_identifier(&schema),
                patience.as_millis(),
            ))
            .await
            .map_err(|error| StepError::from(error).during(&format!("reading the database of tenant {}", tenant.id)))?;
        Ok(Reader { client, schema, shared })
    }
}
