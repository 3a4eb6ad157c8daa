//! ReadUsage, SetQuotaOverride, and what is answered to whoever asks for more of a resource.

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use tenant_gate::Reason;

use crate::environment::Environment;
use crate::error::StepError;
use crate::gate::Projector;
use crate::moment;
use crate::postgres::Database;
use crate::registry;
use crate::registry::quotas::{self, Balance, Decision, Override};
use crate::registry::usage::{self, Used};
use crate::request::quotas::{OverrideCall, UsageCall};
use crate::step::{Step, log_tenant};
use crate::tenant::{Metered, Tenant};

/// For the product's pages and for billing: what a tenant used in a billing cycle, and what it may use.
pub struct ReadUsage {
    registry: Database,
}

/// For operators: gives a tenant another quota than its plan's, for a while.
pub struct SetQuotaOverride {
    registry: Database,
    gate: Projector,
}

impl ReadUsage {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ReadUsage { registry: Database::registry(env)? })
    }
}

impl SetQuotaOverride {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(SetQuotaOverride { registry: Database::registry(env)?, gate: Projector::from_env(env)? })
    }
}

#[async_trait]
impl Step for ReadUsage {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = UsageCall::parse(input)?;
        let client = self.registry.client().await?;
        let tenant = registry::read(&*client, &call.tenant).await?.tenant;
        log_tenant(&tenant);
        let report = usage::report(&client, &tenant, call.moment).await?;
        let resources: Map<String, Value> = report
            .used
            .iter()
            .map(|used| Ok((used.resource.to_string(), line(used)?)))
            .collect::<Result<_, StepError>>()?;
        Ok(json!({
            "tenant_id": tenant.id,
            "slug": tenant.slug,
            "plan": tenant.plan,
            "cycle_start": moment::text(report.cycle.start)?,
            "cycle_end": moment::text(report.cycle.end)?,
            "current": report.cycle.current,
            "calls_counted_at": report.calls_counted_at.map(moment::text).transpose()?,
            "resources": resources,
        }))
    }
}

/// What was used of one resource. Quotas are those of now: of a cycle that is over, only what was used is told.
fn line(used: &Used) -> Result<Value, StepError> {
    let instead = used.instead.map(|Override { amount, expires_at }| {
        Ok::<_, StepError>(json!({ "amount": amount, "expires_at": moment::text(expires_at)? }))
    });
    Ok(json!({
        "used": used.used,
        "most": used.most,
        "reserved": used.reserved,
        "quota": used.quota,
        "plan_quota": used.plan_quota,
        "override": instead.transpose()?,
    }))
}

#[async_trait]
impl Step for SetQuotaOverride {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = OverrideCall::parse(input)?;
        let mut client = self.registry.client().await?;
        let tenant = quotas::set_override(&mut client, &call.tenant, call.resource, call.wanted, &call.actor).await?;
        log_tenant(&tenant);
        self.gate.project(&client, &tenant).await?;
        let quota = call.wanted.map_or(tenant.plan_quota(call.resource), |wanted| wanted.amount);
        Ok(json!({ "tenant_id": tenant.id, "resource": call.resource, "quota": quota }))
    }
}

/// What the caller is told. A refusal is an answer and no error: the status is HTTP's, for whoever hands it on, and the detail
/// says what to do.
pub(super) fn answer(tenant: &Tenant, decision: &Decision) -> Value {
    match decision {
        Decision::Granted(Balance { used, quota, .. }) => json!({ "granted": true, "used": used, "quota": quota }),
        Decision::Refused(reason, balance) => json!({
            "granted": false,
            "reason": reason.name(),
            "status": reason.status().as_u16(),
            "detail": detail(tenant, *reason, balance),
            "used": balance.used,
            "quota": balance.quota,
        }),
    }
}

fn detail(tenant: &Tenant, reason: Reason, balance: &Balance) -> String {
    let Balance { resource, used, quota } = balance;
    let Tenant { slug, plan, .. } = tenant;
    match (reason, resource) {
        (Reason::QuotaExceeded, Metered::Seats) => {
            format!("{used} of the {quota} seats of {slug} (plan {plan}) are taken: release one, or take a larger plan")
        }
        (Reason::QuotaExceeded, Metered::StorageBytes) => format!(
            "{used} of the {quota} bytes of {slug} (plan {plan}) are stored or promised to uploads that are under way: delete \
             something, or take a larger plan"
        ),
        (Reason::QuotaExceeded, Metered::ApiCalls) => {
            format!("{used} of the {quota} API calls of {slug} (plan {plan}) are used: wait, or take a larger plan")
        }
        (Reason::PaymentRequired, _) => format!("{slug} is suspended: its owner can settle the open invoice"),
        (Reason::Suspended, _) => format!("{slug} is suspended: its owner can ask the support"),
        (Reason::NotInService | Reason::Unavailable, _) => format!("{slug} is not in service"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::samples::tenant;

    #[test]
    fn a_refusal_says_how_much_there_is_and_what_to_do() {
        let balance = Balance { resource: Metered::Seats, used: 5, quota: 5 };
        let told = answer(&tenant(), &Decision::Refused(Reason::QuotaExceeded, balance));
        assert_eq!((&told["granted"], &told["reason"]), (&json!(false), &json!("quota-exceeded")));
        assert_eq!((&told["status"], &told["used"], &told["quota"]), (&json!(429), &json!(5), &json!(5)));
        assert_eq!(
            told["detail"],
            "5 of the 5 seats of acme (plan starter) are taken: release one, or take a larger plan"
        );
        let told = answer(&tenant(), &Decision::Refused(Reason::PaymentRequired, balance));
        assert_eq!((&told["reason"], &told["status"]), (&json!("payment-required"), &json!(402)));
    }
}
