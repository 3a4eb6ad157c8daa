//! FreezeTenant, CancelSubscription and NotifyOwner, by which a tenant that leaves is withdrawn from; ThawTenant and
//! ResumeSubscription, by which one that comes back is given back all of it.

use async_trait::async_trait;
use futures::future::join_all;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::environment::Environment;
use crate::error::StepError;
use crate::export::link::{self, ExportLinks};
use crate::mail::{Link, Mail};
use crate::postgres::Database;
use crate::registry::holds::{self, Hold, State};
use crate::registry::{contacts, holds::latest};
use crate::resource::billing::Billing;
use crate::resource::{self, Freezable};
use crate::step::Action;
use crate::tenant::Tenant;

/// Closes every system to writers, or opens it again.
pub struct Settle {
    resources: Vec<Box<dyn Freezable>>,
    /// What the tenant must be for this to be done.
    frozen: bool,
}

/// Ends the subscription, or begins another.
pub struct Subscription {
    billing: Billing,
    ends: bool,
}

/// Tells the owner where the export is, and when all is deleted.
pub struct NotifyOwner {
    mail: Mail,
    links: ExportLinks,
    /// Where the page of an export's link is.
    page: String,
}

impl Settle {
    /// FreezeTenant.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn freeze(env: &Environment) -> Result<Self, StepError> {
        Ok(Settle { resources: resource::freezable(env)?, frozen: true })
    }

    /// ThawTenant.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn thaw(env: &Environment) -> Result<Self, StepError> {
        Ok(Settle { resources: resource::freezable(env)?, frozen: false })
    }
}

#[async_trait]
impl Action for Settle {
    async fn act(&self, tenant: &Tenant, _database: &Database) -> Result<Value, StepError> {
        if tenant.frozen != self.frozen {
            let is = if tenant.frozen { "has a hold that is open" } else { "has no hold that is open" };
            return Err(StepError::Superseded(format!("tenant {} ({}) {is}", tenant.slug, tenant.id)));
        }
        // All at once, and each to its end: one that fails keeps none from being closed.
        let settled = join_all(self.resources.iter().map(|resource| async {
            let settled = resource.settle(tenant).await;
            settled.map_err(|error| error.during(&format!("the {}", resource.kind()))).map(|()| resource.kind())
        }));
        let (settled, mut failed): (Vec<_>, Vec<_>) = settled.await.into_iter().partition(Result::is_ok);
        // What waiting does not help with is what an operator has to hear.
        failed.sort_by_key(|outcome| outcome.as_ref().err().is_some_and(StepError::is_transient));
        for outcome in failed {
            outcome?;
        }
        Ok(json!({ "settled": settled.into_iter().flatten().collect::<Vec<_>>() }))
    }

    /// What another execution settled is settled again: that is a look at each system, with the rights that this step has.
    async fn holds(&self, _tenant: &Tenant) -> Result<bool, StepError> {
        Ok(false)
    }
}

impl Subscription {
    /// CancelSubscription.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn cancel(env: &Environment) -> Result<Self, StepError> {
        Ok(Subscription { billing: Billing::from_env(env)?, ends: true })
    }

    /// ResumeSubscription.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn resume(env: &Environment) -> Result<Self, StepError> {
        Ok(Subscription { billing: Billing::from_env(env)?, ends: false })
    }
}

#[async_trait]
impl Action for Subscription {
    async fn act(&self, tenant: &Tenant, _database: &Database) -> Result<Value, StepError> {
        if self.ends { self.billing.cancel(tenant).await } else { self.billing.resume(tenant).await }
    }

    async fn holds(&self, tenant: &Tenant) -> Result<bool, StepError> {
        // A refund cannot be told from here: what an execution before began to end, this one ends.
        Ok(!self.ends && self.billing.is_on() && !self.billing.is_cancelled(tenant).await?)
    }
}

impl NotifyOwner {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(NotifyOwner {
            mail: Mail::from_env(env)?,
            links: ExportLinks::from_env(env)?,
            page: env.required("DOWNLOAD_EXPORT_URL")?,
        })
    }
}

#[async_trait]
impl Action for NotifyOwner {
    async fn act(&self, tenant: &Tenant, registry: &Database) -> Result<Value, StepError> {
        let hold = holds::open_hold(&*registry.client().await?, tenant.id).await?;
        let hold = hold.filter(|hold| hold.state == State::Held);
        let Some((hold, end)) = hold.and_then(|hold| hold.expires_at.clone().map(|end| (hold, end))) else {
            let Tenant { slug, id, .. } = tenant;
            return Err(StepError::Superseded(format!(
                "tenant {slug} ({id}) has no hold that its owner could be told of"
            )));
        };
        if hold.notified {
            return Ok(json!({ "sent": false, "why": "it was sent before" }));
        }
        let end = OffsetDateTime::parse(&end, &Rfc3339)
            .map_err(|error| StepError::Unexpected(format!("registry: the end of hold {}: {error}", hold.id)))?;
        // Read before the match, which would keep the connection that the link needs.
        let owner = contacts::owner(&*registry.client().await?, tenant.id).await?;
        let sent = match owner {
            None => json!({ "sent": false, "why": "the owner's data was erased" }),
            Some(owner) => {
                let link = link::url(&*registry.client().await?, &self.links, &self.page, tenant.id).await?;
                let link = link.map(|link| Link { url: link.url, until: link.until });
                self.mail.send_farewell(tenant, &owner, link.as_ref(), end).await?
            }
        };
        holds::notified(&*registry.client().await?, &hold).await?;
        Ok(sent)
    }

    /// Of this hold, not of one before.
    async fn holds(&self, _tenant: &Tenant) -> Result<bool, StepError> {
        Ok(false)
    }
}

/// The hold of a tenant that comes back, as far as it was withdrawn from.
///
/// # Errors
/// `Superseded` when there is none.
pub(super) async fn cancelled_hold(registry: &Database, tenant: &Tenant) -> Result<Hold, StepError> {
    let hold = latest(&*registry.client().await?, tenant.id).await?;
    hold.filter(|hold| hold.state == State::Cancelled).ok_or_else(|| {
        StepError::Superseded(format!("tenant {} ({}) has no hold that was cancelled", tenant.slug, tenant.id))
    })
}
