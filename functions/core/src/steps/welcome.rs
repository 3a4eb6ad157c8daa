//! SendWelcomeEmail: the owner learns that the tenant is ready.

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::environment::Environment;
use crate::error::StepError;
use crate::mail::Mail;
use crate::postgres::Database;
use crate::registry::contacts;
use crate::step::Action;
use crate::tenant::Tenant;

/// Writes to the owner, whose address is read where the mail is written and nowhere else.
pub struct WelcomeEmail {
    mail: Mail,
    base_domain: String,
}

impl WelcomeEmail {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(WelcomeEmail { mail: Mail::from_env(env)?, base_domain: env.required("BASE_DOMAIN")? })
    }
}

#[async_trait]
impl Action for WelcomeEmail {
    async fn act(&self, tenant: &Tenant, registry: &Database) -> Result<Value, StepError> {
        let Some(owner) = contacts::owner(&*registry.client().await?, tenant.id).await? else {
            return Ok(json!({ "sent": false, "why": "the owner's data was erased" }));
        };
        self.mail.send_welcome(tenant, &owner, &tenant.host(&self.base_domain)).await
    }

    /// A mail cannot be looked for: that the journal says it was sent is enough.
    async fn holds(&self, _tenant: &Tenant) -> Result<bool, StepError> {
        Ok(true)
    }
}
