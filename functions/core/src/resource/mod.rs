//! The things a tenant owns, one file each.
//!
//! A resource answers three questions. Provisioning asks `ensure`, compensation and deletion ask `remove`, the deletion
//! scan and drift repair ask `inspect`.

pub mod billing;
pub mod bucket;
pub mod database;
pub mod dns;
pub mod identity;
pub mod invite;
pub mod namespace;
mod policy_document;
pub mod queue;
#[cfg(test)]
pub(crate) mod samples;
pub mod tenant_config;
pub(crate) mod wait;

use async_trait::async_trait;
use serde_json::Value;

use crate::environment::Environment;
use crate::error::StepError;
use crate::tenant::Tenant;

/// What `inspect` found in the real system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inspection {
    /// Nothing of the tenant's name exists.
    Absent,
    /// It exists, is the tenant's, and is as `ensure` would make it.
    Present,
    /// It is the tenant's, and differs: each entry says in what. `ensure` repairs it.
    Drifted(Vec<String>),
    /// A thing of the tenant's name exists that is not the tenant's; the text says what marks it.
    Foreign(String),
}

/// Every resource that provisioning makes, in the order it makes them.
///
/// # Errors
/// `Misconfigured` when a setting of one of them is missing.
pub fn all(env: &Environment) -> Result<Vec<Box<dyn Resource>>, StepError> {
    let mut all: Vec<Box<dyn Resource>> = vec![
        Box::new(database::TenantDatabase::from_env(env)?),
        Box::new(identity::Identity::from_env(env)?),
        Box::new(bucket::Bucket::from_env(env)?),
        Box::new(queue::Queue::from_env(env)),
        Box::new(namespace::Namespace::from_env(env)?),
        Box::new(dns::DnsRecord::from_env(env)?),
        Box::new(tenant_config::TenantConfig::from_env(env)?),
        Box::new(invite::Invite::from_env(env)?),
    ];
    let billing = billing::Billing::from_env(env)?;
    if billing.is_on() {
        let before_config = all.len() - 2;
        all.insert(before_config, Box::new(billing));
    }
    Ok(all)
}

/// Every resource that can be written, in the order in which a tenant that leaves is kept from it.
///
/// # Errors
/// `Misconfigured` when a setting of one of them is missing.
pub fn freezable(env: &Environment) -> Result<Vec<Box<dyn Freezable>>, StepError> {
    Ok(vec![
        Box::new(database::TenantDatabase::from_env(env)?),
        Box::new(bucket::Bucket::from_env(env)?),
        Box::new(queue::Queue::from_env(env)),
        Box::new(namespace::Namespace::from_env(env)?),
    ])
}

/// A resource that a tenant on its way out must not write any more, and may write again when it comes back.
#[async_trait]
pub trait Freezable: Resource {
    /// Closes it to every writer where the tenant is frozen, those that are writing included, and opens it where it is not.
    /// Running it again changes nothing. Returns when that is in force. Nothing is made: what is missing is an error, since
    /// an empty thing in its place would hide the loss.
    ///
    /// # Errors
    /// `Foreign` when the thing is not the tenant's; `Transient` when trying again may help.
    async fn settle(&self, tenant: &Tenant) -> Result<(), StepError>;
}

/// A thing that is to be closed or opened, and is not there.
pub(crate) fn missing(what: &str, tenant: &Tenant, step: &str) -> StepError {
    StepError::NeedsOperator(format!(
        "tenant {} ({}): its {what} is missing. Find out what became of it; {step}, run by hand, makes it anew",
        tenant.slug, tenant.id
    ))
}

/// A thing a tenant owns in some system, named by the tenant's id and slug alone.
#[async_trait]
pub trait Resource: Send + Sync {
    /// What it is, in one lower-case word or two: `bucket`, `namespace`.
    fn kind(&self) -> &'static str;

    /// Creates it, or adopts and repairs what is the tenant's already; running it again changes nothing. Ownership is
    /// written in the creating call itself. Returns what the journal keeps: names and ARNs, no secrets, no personal data.
    ///
    /// # Errors
    /// `Foreign` when a thing of that name is not the tenant's; `Transient` when trying again may help.
    async fn ensure(&self, tenant: &Tenant) -> Result<Value, StepError>;

    /// Removes it with all it holds. Absent is success, and `ensure` may have died anywhere. Returns when it is really
    /// gone; a foreign thing is left alone, which is success too.
    ///
    /// # Errors
    /// `Transient` when it is not gone yet.
    async fn remove(&self, tenant: &Tenant) -> Result<(), StepError>;

    /// Looks at the real system and changes nothing.
    ///
    /// # Errors
    /// Only when the system could not be asked.
    async fn inspect(&self, tenant: &Tenant) -> Result<Inspection, StepError>;
}
