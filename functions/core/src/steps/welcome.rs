//! SendWelcomeEmail: the owner learns that the tenant is ready.

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::environment::Environment;
use crate::error::StepError;
use crate::invite::{InviteKey, first_admin};
use crate::mail::{Link, Mail};
use crate::postgres::Database;
use crate::registry::contacts;
use crate::registry::invites::{self, State};
use crate::step::Action;
use crate::tenant::Tenant;

/// Writes to the owner, whose address is read where the mail is written and nowhere else.
pub struct WelcomeEmail {
    mail: Mail,
    base_domain: String,
    key: InviteKey,
    accept_url: String,
}

impl WelcomeEmail {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(WelcomeEmail {
            mail: Mail::from_env(env)?,
            base_domain: env.required("BASE_DOMAIN")?,
            key: InviteKey::from_env(env)?,
            accept_url: env.required("ACCEPT_INVITE_URL")?,
        })
    }
}

#[async_trait]
impl Action for WelcomeEmail {
    async fn act(&self, tenant: &Tenant, registry: &Database) -> Result<Value, StepError> {
        let Some(owner) = contacts::owner(&*registry.client().await?, tenant.id).await? else {
            return Ok(json!({ "sent": false, "why": "the owner's data was erased" }));
        };
        let invite = invites::find(&*registry.client().await?, first_admin(tenant.id)).await?;
        let link = match invite.filter(|invite| invite.state == State::Open) {
            Some(invite) => {
                // Derived here, and only here: nothing else ever holds it.
                let token = self.key.token(invite.id, invite.generation).await?;
                Some(Link { url: format!("{}?token={}", self.accept_url, token.as_str()), until: invite.expires_at })
            }
            None => None,
        };
        self.mail.send_welcome(tenant, &owner, &tenant.host(&self.base_domain), link.as_ref()).await
    }

    /// A mail cannot be looked for: that the journal says it was sent is enough.
    async fn holds(&self, _tenant: &Tenant) -> Result<bool, StepError> {
        Ok(true)
    }
}
