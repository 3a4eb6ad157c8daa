//! A tenant with a database server of its own: an RDS instance, on it a database, and in that the schema and the login role
//! that a tenant on a shared server has too, so that the product connects in one way to both.

use std::path::PathBuf;
use std::sync::Arc;

use aws_sdk_rds::Client;
use aws_sdk_rds::types::{DbInstance, Tag};
use serde_json::Value;

use super::schema::OwnSchema;
use super::secret::{self, LoginSecret};
use super::{Inspection, missing, role};
use crate::aws::{classify, code};
use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::{self, Credentials, Database, MAINTENANCE, quote_identifier};
use crate::resource::wait::until_done;
use crate::tenant::{OWNER_TAG, Tenant};

/// The instance's master user: like everywhere, no superuser.
pub(super) const MASTER: &str = "tenantry_provisioner";
/// Days that RDS keeps its own backups.
const BACKUP_DAYS: i32 = 7;

/// Instances of tenants.
pub(super) struct Dedicated {
    pub(super) env: Environment,
    pub(super) rds: Client,
    /// The master's login.
    pub(super) master: LoginSecret,
    pub(super) ca_bundle: Option<PathBuf>,
}

/// What RDS has under the instance's name.
enum Found {
    Absent,
    Foreign(String),
    Ours(Box<DbInstance>),
}

impl Dedicated {
    /// Makes the instance, waits for it at the machine's pace, and makes what is on it. `on` gives the schema on a server.
    pub(super) async fn ensure(
        &self,
        tenant: &Tenant,
        on: impl FnOnce() -> (Arc<Database>, OwnSchema),
    ) -> Result<Value, StepError> {
        let name = tenant.database_instance();
        let mut found = self.find(tenant).await?;
        if let Found::Absent = found {
            self.create(tenant).await?;
            found = self.find(tenant).await?;
        }
        let instance = match found {
            Found::Ours(instance) => instance,
            Found::Foreign(found) => return Err(StepError::Foreign { kind: "database instance", name, found }),
            Found::Absent => return Err(StepError::NotReady(format!("instance {name} is not to be seen yet"))),
        };
        let Some(place) = place(tenant, &instance) else {
            return Err(StepError::NotReady(format!("instance {name} is {}", status(&instance))));
        };
        let lost = !matches!(self.master.find(tenant).await?, secret::Found::Ours(Some(_)));
        let master = self.master.ensure(tenant, &place).await?;
        if lost || instance.deletion_protection() != Some(true) {
            let mut modify = self.rds.modify_db_instance().db_instance_identifier(&name).apply_immediately(true);
            modify = modify.deletion_protection(true);
            // The password that the instance has is known to nobody any more.
            modify = if lost { modify.master_user_password(&master.password) } else { modify };
            modify.send().await.map_err(|error| classify(&format!("mending instance {name}"), &error))?;
            if lost {
                return Err(StepError::NotReady(format!("instance {name} is being given another password")));
            }
        }
        self.ensure_database(tenant, &master).await?;
        let (server, schema) = on();
        let mut made = schema.ensure(tenant).await?;
        let grant = format!(
            "GRANT CONNECT ON DATABASE {} TO {}",
            quote_identifier(&master.dbname),
            quote_identifier(&tenant.database_role())
        );
        server.client().await?.batch_execute(&grant).await?;
        made["server"] = name.into();
        made["database"] = master.dbname.into();
        Ok(made)
    }

    async fn create(&self, tenant: &Tenant) -> Result<(), StepError> {
        let name = tenant.database_instance();
        // Kept before it is used: an instance whose password nobody knows is of no use.
        let nowhere = Credentials {
            host: "not-made-yet".to_owned(),
            port: self.env.number("DEDICATED_PORT")?,
            dbname: tenant.schema(),
            username: MASTER.to_owned(),
            password: String::new(),
        };
        let master = self.master.ensure(tenant, &nowhere).await?;
        let groups = self.env.list("DEDICATED_SECURITY_GROUPS");
        let created = self
            .rds
            .create_db_instance()
            .db_instance_identifier(&name)
            .engine("postgres")
            .db_instance_class(self.env.required("DEDICATED_INSTANCE_CLASS")?)
            .allocated_storage(self.env.number("DEDICATED_STORAGE_GIB")?)
            .storage_type("gp3")
            .storage_encrypted(true)
            .deletion_protection(true)
            .publicly_accessible(false)
            .port(i32::from(nowhere.port))
            .master_username(MASTER)
            .master_user_password(&master.password)
            .backup_retention_period(BACKUP_DAYS)
            .copy_tags_to_snapshot(true)
            .set_db_subnet_group_name(self.env.optional("DEDICATED_SUBNET_GROUP"))
            .set_vpc_security_group_ids(Some(groups).filter(|groups| !groups.is_empty()))
            .tags(Tag::builder().key(OWNER_TAG).value(tenant.id.to_string()).build())
            .send()
            .await;
        match created {
            Ok(_) => Ok(()),
            Err(error) if code(&error) == Some("DBInstanceAlreadyExists") => {
                Err(StepError::Transient(format!("instance {name} appeared while it was being created")))
            }
            Err(error) => Err(classify(&format!("creating instance {name}"), &error)),
        }
    }

    /// The database, closed to everyone who is not let in by name. The instance is the tenant's, and with it all that is on it.
    async fn ensure_database(&self, tenant: &Tenant, master: &Credentials) -> Result<(), StepError> {
        let client = self.maintenance(master).await?;
        let name = quote_identifier(&tenant.schema());
        let sql = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
        if !client.query_one(sql, &[&tenant.schema()]).await?.try_get::<_, bool>(0)? {
            let doing =
                |error: tokio_postgres::Error| StepError::from(error).during(&format!("creating database {name}"));
            client.batch_execute(&format!("CREATE DATABASE {name}")).await.map_err(doing)?;
        }
        client.batch_execute(&format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC")).await?;
        Ok(())
    }

    /// Keeps the tenant's role from logging in, and ends its sessions, while the instance answers; returns whether there is such a
    /// role. The role is the server's, and may be there when the tenant's database is not any more.
    pub(super) async fn retire(&self, tenant: &Tenant) -> Result<bool, StepError> {
        let Found::Ours(instance) = self.find(tenant).await? else { return Ok(false) };
        let (Some(_), secret::Found::Ours(Some(master))) = (place(tenant, &instance), self.master.find(tenant).await?)
        else {
            return Ok(false);
        };
        role::retire_if_ours(&mut self.maintenance(&master).await?, tenant).await
    }

    /// Removes what is on the instance, the instance with its backups and snapshots, and the master's login.
    pub(super) async fn remove(
        &self,
        tenant: &Tenant,
        on: impl FnOnce() -> (Arc<Database>, OwnSchema),
    ) -> Result<(), StepError> {
        let name = &tenant.database_instance();
        let instance = match self.find(tenant).await? {
            Found::Foreign(_) => return Ok(()),
            Found::Absent => None,
            Found::Ours(instance) => Some(instance),
        };
        if let Some(instance) = instance {
            let place = place(tenant, &instance);
            if let (Some(_), secret::Found::Ours(Some(master))) = (&place, self.master.find(tenant).await?) {
                match self.empty(tenant, &master, on).await {
                    // The instance goes with all it holds: a login that it refuses is no reason to keep it.
                    Err(StepError::Denied(text)) => {
                        tracing::warn!(text, "the instance's database could not be dropped");
                    }
                    emptied => emptied?,
                }
            }
            let deleting = instance.db_instance_status() == Some("deleting");
            if !deleting && instance.deletion_protection() == Some(true) {
                if place.is_none() {
                    return Err(StepError::NotReady(format!(
                        "instance {name} is {}: its protection cannot be lifted",
                        status(&instance)
                    )));
                }
                let lift = self.rds.modify_db_instance().db_instance_identifier(name).deletion_protection(false);
                let lift = lift.apply_immediately(true).send().await;
                lift.map_err(|error| classify(&format!("lifting the protection of instance {name}"), &error))?;
            }
            if !deleting {
                self.delete(name).await?;
            }
        }
        self.delete_snapshots(tenant).await?;
        let doing = format!("deleting instance {name}");
        let gone = until_done(&doing, || async {
            Ok(matches!(self.find(tenant).await?, Found::Ours(_)).then(|| "it is still there".to_owned()))
        });
        gone.await.map_err(|error| match error {
            StepError::Transient(text) => StepError::NotReady(text),
            other => other,
        })?;
        self.master.remove(tenant).await
    }

    async fn delete(&self, name: &str) -> Result<(), StepError> {
        let delete = self.rds.delete_db_instance().db_instance_identifier(name);
        match delete.skip_final_snapshot(true).delete_automated_backups(true).send().await {
            Err(error) if code(&error) == Some("DBInstanceNotFound") => Ok(()),
            // "Cannot delete protected DB Instance": its protection was lifted a moment ago, and RDS has not seen it yet.
            Err(error) if code(&error) == Some("InvalidParameterCombination") => {
                Err(StepError::NotReady(format!("instance {name} is still protected from deletion")))
            }
            deleted => deleted.map(drop).map_err(|error| classify(&format!("deleting instance {name}"), &error)),
        }
    }

    /// Drops the database with its sessions, and the role.
    async fn empty(
        &self,
        tenant: &Tenant,
        master: &Credentials,
        on: impl FnOnce() -> (Arc<Database>, OwnSchema),
    ) -> Result<(), StepError> {
        let client = self.maintenance(master).await?;
        let name = quote_identifier(&tenant.schema());
        let sql = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1),
                          EXISTS (SELECT FROM pg_roles WHERE rolname = $2)";
        let row = client.query_one(sql, &[&tenant.schema(), &tenant.database_role()]).await?;
        let (database, role): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
        if database {
            if role {
                let role = quote_identifier(&tenant.database_role());
                client.batch_execute(&format!("REVOKE ALL ON DATABASE {name} FROM {role}")).await?;
            }
            let (server, schema) = on();
            schema.remove(tenant).await?;
            server.close().await;
            client.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await?;
        }
        Ok(())
    }

    async fn delete_snapshots(&self, tenant: &Tenant) -> Result<(), StepError> {
        let name = tenant.database_instance();
        let doing = format!("deleting the snapshots of instance {name}");
        let list = self.rds.describe_db_snapshots().db_instance_identifier(&name).snapshot_type("manual");
        let mut snapshots = list.into_paginator().items().send();
        while let Some(snapshot) = snapshots.next().await {
            let snapshot = match snapshot {
                Err(error) if code(&error) == Some("DBInstanceNotFound") => return Ok(()),
                snapshot => snapshot.map_err(|error| classify(&doing, &error))?,
            };
            let Some(id) = snapshot.db_snapshot_identifier() else { continue };
            match self.rds.delete_db_snapshot().db_snapshot_identifier(id).send().await {
                Err(error) if code(&error) == Some("DBSnapshotNotFound") => {}
                deleted => drop(deleted.map_err(|error| classify(&doing, &error))?),
            }
        }
        Ok(())
    }

    /// Closes the schema on the instance, or opens it.
    pub(super) async fn settle(
        &self,
        tenant: &Tenant,
        on: impl FnOnce() -> (Arc<Database>, OwnSchema),
    ) -> Result<(), StepError> {
        let name = tenant.database_instance();
        match self.find(tenant).await? {
            Found::Ours(instance) if place(tenant, &instance).is_some() => on().1.settle(tenant).await,
            Found::Ours(instance) => {
                Err(StepError::NotReady(format!("instance {name} is {}: it lets nobody in", status(&instance))))
            }
            Found::Foreign(found) => Err(StepError::Foreign { kind: "database instance", name, found }),
            Found::Absent => Err(missing("database instance", tenant, "create-database")),
        }
    }

    /// Compares the instance, and then what is on it.
    pub(super) async fn inspect(
        &self,
        tenant: &Tenant,
        on: impl FnOnce() -> (Arc<Database>, OwnSchema),
    ) -> Result<Inspection, StepError> {
        let instance = match self.find(tenant).await? {
            Found::Foreign(found) => return Ok(Inspection::Foreign(found)),
            Found::Absent => {
                let master = self.master.find(tenant).await?;
                let login = on().1.secret.find(tenant).await?;
                let mut left = Vec::new();
                for (kept, what) in [(master, "master's"), (login, "role's")] {
                    if matches!(kept, secret::Found::Ours(_) | secret::Found::Deleting) {
                        left.push(format!("the {what} secret is there without an instance"));
                    }
                }
                return Ok(if left.is_empty() { Inspection::Absent } else { Inspection::Drifted(left) });
            }
            Found::Ours(instance) => instance,
        };
        let mut drift = Vec::new();
        if instance.deletion_protection() != Some(true) {
            drift.push("instance may be deleted".to_owned());
        }
        if instance.storage_encrypted() != Some(true) {
            drift.push("instance is not encrypted".to_owned());
        }
        let Some(place) = place(tenant, &instance) else {
            drift.push(format!("instance is {}", status(&instance)));
            return Ok(Inspection::Drifted(drift));
        };
        match self.master.find(tenant).await? {
            secret::Found::Ours(Some(master)) if self.master.matches(&master, tenant, &place) => {
                drift.extend(self.inspect_database(tenant, &master, on).await?);
            }
            _ => drift.push("the master's secret does not lead to the instance".to_owned()),
        }
        Ok(if drift.is_empty() { Inspection::Present } else { Inspection::Drifted(drift) })
    }

    async fn inspect_database(
        &self,
        tenant: &Tenant,
        master: &Credentials,
        on: impl FnOnce() -> (Arc<Database>, OwnSchema),
    ) -> Result<Vec<String>, StepError> {
        let client = self.maintenance(master).await?;
        let sql = "SELECT has_database_privilege('public', datname, 'CONNECT') FROM pg_database WHERE datname = $1";
        let Some(row) = client.query_opt(sql, &[&tenant.schema()]).await? else {
            return Ok(vec!["database is missing".to_owned()]);
        };
        let mut drift = Vec::new();
        if row.try_get(0)? {
            drift.push("everyone may connect to the database".to_owned());
        }
        match on().1.inspect(tenant).await? {
            Inspection::Present => {}
            Inspection::Absent => drift.push("schema, role and secret are missing".to_owned()),
            Inspection::Drifted(more) => drift.extend(more),
            Inspection::Foreign(found) => drift.push(format!("on the instance is another's: {found}")),
        }
        Ok(drift)
    }

    async fn find(&self, tenant: &Tenant) -> Result<Found, StepError> {
        let name = tenant.database_instance();
        let described = match self.rds.describe_db_instances().db_instance_identifier(&name).send().await {
            Err(error) if code(&error) == Some("DBInstanceNotFound") => return Ok(Found::Absent),
            described => described.map_err(|error| classify(&format!("looking at instance {name}"), &error))?,
        };
        let Some(instance) = described.db_instances.unwrap_or_default().into_iter().next() else {
            return Ok(Found::Absent);
        };
        let owner = instance.tag_list().iter().find(|tag| tag.key() == Some(OWNER_TAG)).and_then(Tag::value);
        Ok(match owner {
            Some(owner) if owner == tenant.id.to_string() => Found::Ours(Box::new(instance)),
            Some(owner) => Found::Foreign(format!("instance is tagged {OWNER_TAG}={owner}")),
            None => Found::Foreign(format!("instance is without the tag {OWNER_TAG}")),
        })
    }

    /// A connection as the master to the database that every server has.
    async fn maintenance(&self, master: &Credentials) -> Result<tokio_postgres::Client, StepError> {
        let login = Credentials { dbname: MAINTENANCE.to_owned(), ..master.clone() };
        postgres::connect(&login, self.ca_bundle.as_deref()).await
    }
}

fn status(instance: &DbInstance) -> &str {
    instance.db_instance_status().unwrap_or("without a status")
}

/// Where the tenant's database is on an instance that answers; `None` while it does not.
fn place(tenant: &Tenant, instance: &DbInstance) -> Option<Credentials> {
    // A change may be one of the password: what does not interrupt has statuses of its own.
    const ANSWERING: &[&str] = &["available", "backing-up", "storage-optimization", "configuring-enhanced-monitoring"];
    let status = instance.db_instance_status()?;
    let endpoint = instance.endpoint().filter(|_| ANSWERING.contains(&status))?;
    Some(Credentials {
        host: endpoint.address()?.to_owned(),
        port: u16::try_from(endpoint.port()?).ok()?,
        dbname: tenant.schema(),
        username: MASTER.to_owned(),
        password: String::new(),
    })
}
