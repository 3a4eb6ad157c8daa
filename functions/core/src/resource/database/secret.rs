//! The secrets with the logins of a tenant's own role, and of the master of its own server, in the form that RDS writes.

use std::time::Duration;

use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::types::Tag;
use rand::distr::{Alphanumeric, SampleString};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::aws::{classify, code};
use crate::error::StepError;
use crate::postgres::Credentials;
use crate::tenant::{OWNER_TAG, Tenant};

/// Characters of a generated password: 238 bits.
const PASSWORD_CHARS: usize = 40;
/// How long a deleted secret may take to be gone.
const GONE_TIMEOUT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(250);

/// Secrets of tenants' logins.
pub(super) struct LoginSecret {
    pub(super) client: Client,
    pub(super) whose: Whose,
}

/// Whose login a secret holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// The tenant's own role.
    Role,
    /// The master user of the tenant's own server.
    Master,
}

/// What Secrets Manager has under the secret's name.
pub(super) enum Found {
    Absent,
    /// Ours; without credentials when it holds none that can be read.
    Ours(Option<Credentials>),
    /// Ours, and scheduled for deletion.
    Deleting,
    Foreign(String),
}

impl LoginSecret {
    /// The tenant's login on a server, generated once; a scheduled deletion is taken back. The server's address is kept up to
    /// date.
    pub(super) async fn ensure(&self, tenant: &Tenant, server: &Credentials) -> Result<Credentials, StepError> {
        let name = self.name(tenant);
        let mut found = self.find(tenant).await?;
        if let Found::Deleting = found {
            let doing = format!("restoring secret {name}");
            self.client.restore_secret().secret_id(&name).send().await.map_err(|error| classify(&doing, &error))?;
            found = self.find(tenant).await?;
        }
        match found {
            Found::Absent => {
                let login = self.login(tenant, server, Alphanumeric.sample_string(&mut rand::rng(), PASSWORD_CHARS));
                self.create(tenant, &login).await?;
                Ok(login)
            }
            Found::Ours(Some(kept)) if self.matches(&kept, tenant, server) => Ok(kept),
            Found::Ours(kept) => {
                let password = kept.map(|kept| kept.password).filter(|password| password.len() >= PASSWORD_CHARS);
                let password = password.unwrap_or_else(|| Alphanumeric.sample_string(&mut rand::rng(), PASSWORD_CHARS));
                let login = self.login(tenant, server, password);
                let doing = format!("updating secret {name}");
                let put = self.client.put_secret_value().secret_id(&name).secret_string(text(&login));
                put.send().await.map_err(|error| classify(&doing, &error))?;
                Ok(login)
            }
            Found::Deleting => Err(StepError::Transient(format!("secret {name} is being deleted still"))),
            Found::Foreign(found) => Err(StepError::Foreign { kind: "secret", name, found }),
        }
    }

    async fn create(&self, tenant: &Tenant, login: &Credentials) -> Result<(), StepError> {
        let name = self.name(tenant);
        let created = self
            .client
            .create_secret()
            .name(&name)
            .description(format!("PostgreSQL login of tenant {} ({:?})", tenant.slug, self.whose))
            .secret_string(text(login))
            .tags(Tag::builder().key(OWNER_TAG).value(tenant.id.to_string()).build())
            .send()
            .await;
        match created {
            Ok(_) => Ok(()),
            // Made since we looked: the next run reads it.
            Err(error) if code(&error) == Some("ResourceExistsException") => {
                Err(StepError::Transient(format!("secret {name} appeared while it was being created")))
            }
            Err(error) => Err(classify(&format!("creating secret {name}"), &error)),
        }
    }

    /// Deletes the secret for good, at once: its name would be kept for the recovery window otherwise.
    pub(super) async fn remove(&self, tenant: &Tenant) -> Result<(), StepError> {
        let name = self.name(tenant);
        if matches!(self.find(tenant).await?, Found::Absent | Found::Foreign(_)) {
            return Ok(());
        }
        let delete = self.client.delete_secret().secret_id(&name).force_delete_without_recovery(true);
        match delete.send().await {
            Ok(_) => {}
            Err(error) if code(&error) == Some("ResourceNotFoundException") => return Ok(()),
            Err(error) => return Err(classify(&format!("deleting secret {name}"), &error)),
        }
        // "Without recovery" is asynchronous.
        let since = Instant::now();
        while !matches!(self.find(tenant).await?, Found::Absent) {
            if since.elapsed() > GONE_TIMEOUT {
                return Err(StepError::Transient(format!("secret {name} is being deleted still")));
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    fn name(&self, tenant: &Tenant) -> String {
        match self.whose {
            Whose::Role => tenant.database_secret(),
            Whose::Master => tenant.server_secret(),
        }
    }

    fn username(&self, tenant: &Tenant) -> String {
        match self.whose {
            Whose::Role => tenant.database_role(),
            Whose::Master => super::dedicated::MASTER.to_owned(),
        }
    }

    /// Whether a login leads to this server as this user.
    pub(super) fn matches(&self, login: &Credentials, tenant: &Tenant, server: &Credentials) -> bool {
        login.host == server.host
            && login.port == server.port
            && login.dbname == server.dbname
            && login.username == self.username(tenant)
            && login.password.len() >= PASSWORD_CHARS
    }

    fn login(&self, tenant: &Tenant, server: &Credentials, password: String) -> Credentials {
        Credentials {
            host: server.host.clone(),
            port: server.port,
            dbname: server.dbname.clone(),
            username: self.username(tenant),
            password,
        }
    }

    /// Looks, by tag, whose the secret is, and reads it if it is the tenant's.
    pub(super) async fn find(&self, tenant: &Tenant) -> Result<Found, StepError> {
        let name = self.name(tenant);
        let described = match self.client.describe_secret().secret_id(&name).send().await {
            Ok(described) => described,
            Err(error) if code(&error) == Some("ResourceNotFoundException") => return Ok(Found::Absent),
            Err(error) => return Err(classify(&format!("looking at secret {name}"), &error)),
        };
        let owner = described.tags().iter().find(|tag| tag.key() == Some(OWNER_TAG)).and_then(Tag::value);
        if owner != Some(tenant.id.to_string().as_str()) {
            return Ok(Found::Foreign(match owner {
                Some(owner) => format!("tagged {OWNER_TAG}={owner}"),
                None => format!("without the tag {OWNER_TAG}"),
            }));
        }
        if described.deleted_date().is_some() {
            return Ok(Found::Deleting);
        }
        match self.client.get_secret_value().secret_id(&name).send().await {
            Ok(value) => Ok(Found::Ours(serde_json::from_str(value.secret_string().unwrap_or_default()).ok())),
            Err(error) if code(&error) == Some("ResourceNotFoundException") => Ok(Found::Ours(None)),
            Err(error) => Err(classify(&format!("reading secret {name}"), &error)),
        }
    }
}

fn text(login: &Credentials) -> String {
    json!({
        "host": login.host,
        "port": login.port,
        "dbname": login.dbname,
        "username": login.username,
        "password": login.password,
    })
    .to_string()
}
