//! A tenant's database: rows of the pool, or a schema and a login role of its own, on the server that the registry
//! remembers for it.

mod role;
mod schema;
mod secret;
mod shared;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::Mutex;

use super::{Inspection, Resource};
use crate::environment::Environment;
use crate::error::{Problem, StepError};
use crate::postgres::Database;
use crate::registry::placement::{self, Server};
use crate::tenant::{Isolation, Status, Tenant};

/// The tenant's place in PostgreSQL.
pub struct TenantDatabase {
    env: Environment,
    registry: Arc<Database>,
    registry_secret: String,
    /// The servers connected to, by the name of their secret.
    servers: Mutex<HashMap<String, Arc<Database>>>,
}

impl TenantDatabase {
    /// Wires the resource: REGISTRY_SECRET, POSTGRES_CA_BUNDLE.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(TenantDatabase {
            env: env.clone(),
            registry: Arc::new(Database::registry(env)?),
            registry_secret: env.required("REGISTRY_SECRET")?,
            servers: Mutex::default(),
        })
    }

    /// The server's database. The registry's own server is the registry's connection: a function needs but one.
    async fn connect_to(&self, server: &Server) -> Arc<Database> {
        if server.secret == self.registry_secret {
            return Arc::clone(&self.registry);
        }
        let mut servers = self.servers.lock().await;
        let database = servers
            .entry(server.secret.clone())
            .or_insert_with(|| Arc::new(Database::new(&self.env, server.secret.clone())));
        Arc::clone(database)
    }

    fn own_schema(&self, server: Arc<Database>) -> schema::OwnSchema {
        let ca_bundle = self.env.optional("POSTGRES_CA_BUNDLE").map(PathBuf::from);
        schema::OwnSchema { server, secret: self.secret(), ca_bundle }
    }

    fn secret(&self) -> secret::LoginSecret {
        secret::LoginSecret { client: aws_sdk_secretsmanager::Client::new(&self.env.aws) }
    }
}

#[async_trait]
impl Resource for TenantDatabase {
    fn kind(&self) -> &'static str {
        "database"
    }

    async fn ensure(&self, tenant: &Tenant) -> Result<Value, StepError> {
        if tenant.isolation == Isolation::Database {
            return Err(not_offered(tenant));
        }
        let placed = placement::place(&mut *self.registry.client().await?, tenant).await?;
        let server = self.connect_to(&placed).await;
        let mut made = match tenant.isolation {
            Isolation::Shared => shared::ensure(&mut *server.client().await?, tenant).await?,
            Isolation::Schema | Isolation::Database => self.own_schema(server).ensure(tenant).await?,
        };
        made["server"] = placed.name.into();
        Ok(made)
    }

    async fn remove(&self, tenant: &Tenant) -> Result<(), StepError> {
        let placed = placement::placed(&*self.registry.client().await?, tenant).await?;
        let Some(placed) = placed else {
            // Placing comes before everything: nothing was made on any server.
            return Ok(());
        };
        let server = self.connect_to(&placed).await;
        match tenant.isolation {
            Isolation::Shared => shared::remove(&mut *server.client().await?, tenant).await,
            Isolation::Schema | Isolation::Database => self.own_schema(server).remove(tenant).await,
        }
    }

    async fn inspect(&self, tenant: &Tenant) -> Result<Inspection, StepError> {
        let placed = placement::placed(&*self.registry.client().await?, tenant).await?;
        let Some(placed) = placed else {
            return Ok(Inspection::Absent);
        };
        let server = self.connect_to(&placed).await;
        match tenant.isolation {
            Isolation::Shared => shared::inspect(&mut *server.client().await?, tenant).await,
            Isolation::Schema | Isolation::Database => self.own_schema(server).inspect(tenant).await,
        }
    }
}

fn not_offered(tenant: &Tenant) -> StepError {
    StepError::InvalidRequest(vec![Problem {
        field: "isolation".into(),
        rule: format!(
            "must be shared or schema for now, and tenant {}'s is database: servers of their own are not offered by this \
             version. Register the tenant again under another plan, or set its plan's default_isolation in plan_quotas \
             before it registers",
            tenant.slug
        ),
    }])
}

/// Whether the product may write the tenant's rows: a suspended tenant's are kept and frozen.
fn writable(tenant: &Tenant) -> bool {
    !matches!(tenant.status, Status::Suspended | Status::Deprovisioned)
}
