//! The invitation of the tenant's first administrator.

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::environment::Environment;
use crate::error::StepError;
use crate::invite::{InviteKey, first_admin};
use crate::postgres::Database;
use crate::registry::invites::{self, State};
use crate::resource::{Inspection, Resource};
use crate::tenant::Tenant;

/// An invitation that works once, for a time; its token is derived where the mail is written.
pub struct Invite {
    registry: Database,
    key: InviteKey,
    seconds: f64,
}

impl Invite {
    /// Reads REGISTRY_SECRET, INVITE_KEY_SECRET and INVITE_SECONDS. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing or no number.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(Invite {
            registry: Database::registry(env)?,
            key: InviteKey::from_env(env)?,
            seconds: env.number("INVITE_SECONDS")?,
        })
    }

    async fn open(&self, client: &Client, tenant: &Tenant, id: Uuid, generation: i32) -> Result<(), StepError> {
        let token = self.key.token(id, generation).await?;
        invites::open(client, id, tenant.id, generation, &token.hash(), self.seconds).await
    }
}

#[async_trait]
impl Resource for Invite {
    fn kind(&self) -> &'static str {
        "invite"
    }

    /// A link that works stays; one that ended is followed by a new generation.
    async fn ensure(&self, tenant: &Tenant) -> Result<Value, StepError> {
        let id = first_admin(tenant.id);
        let client = self.registry.client().await?;
        match invites::find(&*client, id).await? {
            None => self.open(&client, tenant, id, 1).await?,
            Some(found) if matches!(found.state, State::Expired | State::Revoked) => {
                self.open(&client, tenant, id, found.generation + 1).await?;
            }
            Some(_) => {}
        }
        Ok(json!({ "invite": id }))
    }

    async fn remove(&self, tenant: &Tenant) -> Result<(), StepError> {
        invites::revoke(&*self.registry.client().await?, first_admin(tenant.id)).await
    }

    /// What is revoked or expired is nothing that works: the row stays, so that its generation is never given out again.
    async fn inspect(&self, tenant: &Tenant) -> Result<Inspection, StepError> {
        let found = invites::find(&*self.registry.client().await?, first_admin(tenant.id)).await?;
        Ok(match found.map(|found| found.state) {
            None | Some(State::Revoked) => Inspection::Absent,
            Some(State::Open | State::Accepted) => Inspection::Present,
            Some(State::Expired) => Inspection::Drifted(vec!["its link has expired".to_owned()]),
        })
    }
}
