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
use tokio_postgres::GenericClient;
use uuid::Uuid;

use super::{Freezable, Inspection, Resource, missing};
use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::{Database, quote_identifier};
use crate::registry::contacts::Contact;
use crate::registry::placement;
use crate::tenant::{Isolation, Status, Tenant};

/// What a tenant's own tables say it uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// Its users.
    pub users: i64,
    /// Bytes of its files, as its tables have them.
    pub bytes: i64,
}

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

    /// Makes the tenant's owner one of its users, with the owner's role, under an id. Returns the id that the user has: another,
    /// where it was a user before. Again changes nothing.
    ///
    /// # Errors
    /// `Transient` when the tenant's database cannot be reached.
    pub async fn add_owner(&self, tenant: &Tenant, user: Uuid, owner: &Contact) -> Result<Uuid, StepError> {
        let server = self.server_of(tenant).await?;
        let mut client = server.client().await?;
        match tenant.isolation {
            Isolation::Shared => shared::add_owner(&mut client, tenant, user, owner).await,
            Isolation::Schema | Isolation::Database => schema::add_owner(&client, tenant, user, owner).await,
        }
    }

    /// How much of what its plan grants the tenant uses, by its own tables. Changes nothing.
    ///
    /// # Errors
    /// `Transient` when the tenant's database cannot be reached.
    pub async fn usage(&self, tenant: &Tenant) -> Result<Use, StepError> {
        let server = self.server_of(tenant).await?;
        let mut client = server.client().await?;
        match tenant.isolation {
            Isolation::Shared => shared::usage(&mut client, tenant).await,
            Isolation::Schema | Isolation::Database => schema::usage(&client, tenant).await,
        }
    }

    /// The server that holds the tenant.
    async fn server_of(&self, tenant: &Tenant) -> Result<Arc<Database>, StepError> {
        if tenant.isolation == Isolation::Database {
            return Ok(self.connect_to(&tenant.server_secret()).await);
        }
        let placed = placement::placed(&*self.registry.client().await?, tenant).await?;
        let placed = placed.ok_or_else(|| StepError::Unexpected(format!("tenant {} is placed nowhere", tenant.id)))?;
        Ok(self.connect_to(&placed.secret).await)
    }

    /// Keeps the tenant's own role from logging in, and ends its sessions; returns whether there is such a role. One that shares the
    /// product's role has none.
    ///
    /// # Errors
    /// `Transient` when sessions do not end, or the server cannot be reached.
    pub async fn retire(&self, tenant: &Tenant) -> Result<bool, StepError> {
        match tenant.isolation {
            Isolation::Shared => Ok(false),
            Isolation::Schema => {
                let placed = placement::placed(&*self.registry.client().await?, tenant).await?;
                let Some(placed) = placed else { return Ok(false) };
                let server = self.connect_to(&placed.secret).await;
                role::retire_if_ours(&mut *server.client().await?, tenant).await
            }
            Isolation::Database => self.dedicated().retire(tenant).await,
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

/// Reads users and files of the tables in a schema, those of one tenant where it has them to itself or in its context.
async fn usage(client: &impl GenericClient, schema: &str) -> Result<Use, StepError> {
    let schema = quote_identifier(schema);
    let sql = format!(
        "SELECT (SELECT count(*) FROM {schema}.users), (SELECT coalesce(sum(bytes), 0)::bigint FROM {schema}.files)"
    );
    let row = client.query_one(&sql, &[]).await?;
    Ok(Use { users: row.try_get(0)?, bytes: row.try_get(1)? })
}

#[async_trait]
impl Freezable for TenantDatabase {
    async fn settle(&self, tenant: &Tenant) -> Result<(), StepError> {
        if tenant.isolation == Isolation::Database {
            return self.dedicated().settle(tenant, self.on_own_server(tenant).await).await;
        }
        let placed = placement::placed(&*self.registry.client().await?, tenant).await?;
        let placed = placed.ok_or_else(|| missing("place on a database server", tenant, "create-database"))?;
        let server = self.connect_to(&placed.secret).await;
        match tenant.isolation {
            Isolation::Shared => shared::settle(&mut *server.client().await?, tenant).await,
            Isolation::Schema | Isolation::Database => self.own_schema(server).settle(tenant).await,
        }
    }
}

/// Whether the tenant's rows may be written, and, where it has a role of its own, whether that may log in at all. A suspension
/// alone keeps nobody from them but at the gate.
fn writable(tenant: &Tenant) -> bool {
    !tenant.frozen && tenant.status != Status::Deprovisioned
}
