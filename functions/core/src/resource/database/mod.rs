//! A tenant's database: rows of the pool, a schema and a login role of its own on the server that the registry remembers for
//! it, or a server of its own.

mod dedicated;
mod read;
mod role;
mod schema;
mod secret;
mod shared;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
pub use read::Reader;
use serde_json::Value;
use tokio::sync::Mutex;

use super::{Inspection, Resource};
use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::registry::contacts::Contact;
use crate::registry::placement;
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
    /// Wires the resource: REGISTRY_SECRET, POSTGRES_CA_BUNDLE; and, to make servers of tenants' own, DEDICATED_INSTANCE_CLASS,
    /// DEDICATED_STORAGE_GIB, DEDICATED_PORT, DEDICATED_SUBNET_GROUP and DEDICATED_SECURITY_GROUPS, read when one is made.
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

    /// Makes the tenant's owner one of its users, with the owner's role. Again changes nothing.
    ///
    /// # Errors
    /// `Transient` when the tenant's database cannot be reached.
    pub async fn add_owner(&self, tenant: &Tenant, owner: &Contact) -> Result<(), StepError> {
        if tenant.isolation == Isolation::Database {
            let server = self.connect_to(&tenant.server_secret()).await;
            return schema::add_owner(&*server.client().await?, tenant, owner).await;
        }
        let placed = placement::placed(&*self.registry.client().await?, tenant).await?;
        let placed = placed.ok_or_else(|| StepError::Unexpected(format!("tenant {} is placed nowhere", tenant.id)))?;
        let server = self.connect_to(&placed.secret).await;
        let mut client = server.client().await?;
        match tenant.isolation {
            Isolation::Shared => shared::add_owner(&mut client, tenant, owner).await,
            Isolation::Schema | Isolation::Database => schema::add_owner(&client, tenant, owner).await,
        }
    }

    /// The database that a secret leads to. The registry's own server is the registry's connection: a function needs but one.
    async fn connect_to(&self, secret: &str) -> Arc<Database> {
        if secret == self.registry_secret {
            return Arc::clone(&self.registry);
        }
        let mut servers = self.servers.lock().await;
        let database =
            servers.entry(secret.to_owned()).or_insert_with(|| Arc::new(Database::new(&self.env, secret.to_owned())));
        Arc::clone(database)
    }

    fn own_schema(&self, server: Arc<Database>) -> schema::OwnSchema {
        schema::OwnSchema { server, secret: self.secret(secret::Whose::Role), ca_bundle: self.ca_bundle() }
    }

    fn ca_bundle(&self) -> Option<PathBuf> {
        self.env.optional("POSTGRES_CA_BUNDLE").map(PathBuf::from)
    }

    fn secret(&self, whose: secret::Whose) -> secret::LoginSecret {
        secret::LoginSecret { client: aws_sdk_secretsmanager::Client::new(&self.env.aws), whose }
    }

    fn dedicated(&self) -> dedicated::Dedicated {
        dedicated::Dedicated {
            env: self.env.clone(),
            rds: aws_sdk_rds::Client::new(&self.env.aws),
            master: self.secret(secret::Whose::Master),
            ca_bundle: self.ca_bundle(),
        }
    }

    /// The schema on the tenant's own server.
    async fn on_own_server(&self, tenant: &Tenant) -> impl FnOnce() -> (Arc<Database>, schema::OwnSchema) {
        let server = self.connect_to(&tenant.server_secret()).await;
        move || (Arc::clone(&server), self.own_schema(server))
    }
}

#[async_trait]
impl Resource for TenantDatabase {
    fn kind(&self) -> &'static str {
        "database"
    }

    async fn ensure(&self, tenant: &Tenant) -> Result<Value, StepError> {
        if tenant.isolation == Isolation::Database {
            return self.dedicated().ensure(tenant, self.on_own_server(tenant).await).await;
        }
        let placed = placement::place(&mut *self.registry.client().await?, tenant).await?;
        let server = self.connect_to(&placed.secret).await;
        let mut made = match tenant.isolation {
            Isolation::Shared => shared::ensure(&mut *server.client().await?, tenant).await?,
            Isolation::Schema | Isolation::Database => self.own_schema(server).ensure(tenant).await?,
        };
        made["server"] = placed.name.into();
        Ok(made)
    }

    async fn remove(&self, tenant: &Tenant) -> Result<(), StepError> {
        if tenant.isolation == Isolation::Database {
            self.dedicated().remove(tenant, self.on_own_server(tenant).await).await?;
            return self.secret(secret::Whose::Role).remove(tenant).await;
        }
        let placed = placement::placed(&*self.registry.client().await?, tenant).await?;
        let Some(placed) = placed else {
            // Placing comes before everything: nothing was made on any server.
            return Ok(());
        };
        let server = self.connect_to(&placed.secret).await;
        match tenant.isolation {
            Isolation::Shared => shared::remove(&mut *server.client().await?, tenant).await,
            Isolation::Schema | Isolation::Database => self.own_schema(server).remove(tenant).await,
        }
    }

    async fn inspect(&self, tenant: &Tenant) -> Result<Inspection, StepError> {
        if tenant.isolation == Isolation::Database {
            return self.dedicated().inspect(tenant, self.on_own_server(tenant).await).await;
        }
        let placed = placement::placed(&*self.registry.client().await?, tenant).await?;
        let Some(placed) = placed else {
            return Ok(Inspection::Absent);
        };
        let server = self.connect_to(&placed.secret).await;
        match tenant.isolation {
            Isolation::Shared => shared::inspect(&mut *server.client().await?, tenant).await,
            Isolation::Schema | Isolation::Database => self.own_schema(server).inspect(tenant).await,
        }
    }
}

/// Whether the product may write the tenant's rows: a suspended tenant's are kept and frozen.
fn writable(tenant: &Tenant) -> bool {
    !matches!(tenant.status, Status::Suspended | Status::Deprovisioned)
}
