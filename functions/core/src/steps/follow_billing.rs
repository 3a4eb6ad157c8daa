//! FollowBilling: brings a tenant to where its subscription is. Events come twice, late and out of order, so they only say that
//! something happened: what to do is read from Stripe, or where Stripe is not asked, from the newest event.

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio_postgres::{Client, Transaction};

use crate::billing_event::{Account, BillingCall, Change};
use crate::environment::Environment;
use crate::error::StepError;
use crate::gate::Projector;
use crate::postgres::Database;
use crate::registry::billing_state::{self, Followed};
use crate::registry::{self, Selector, plans, suspensions};
use crate::step::{Step, log_tenant};
use crate::stripe::Stripe;
use crate::subscription::{Standing, Subscription};
use crate::tenant::{Plan, Reason, Status, Tenant, TenantId};

/// Who suspends and lifts, as the audit trail has it.
const ACTOR: &str = "billing";

/// Follows one tenant's subscription.
pub struct FollowBilling {
    registry: Database,
    stripe: Option<Stripe>,
    gate: Projector,
}

/// What is left for others to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    /// Nothing.
    None,
    /// The tenant pays for another plan than it has.
    ChangePlan(Plan),
    /// Its owner wants to leave.
    Offboard,
}

impl FollowBilling {
    /// Reads REGISTRY_SECRET, REDIS_URL, STRIPE_SECRET (empty: events of our own form are all there is) and STRIPE_API_URL. Makes
    /// no network call.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(FollowBilling {
            registry: Database::registry(env)?,
            stripe: Stripe::from_env(env)?,
            gate: Projector::from_env(env)?,
        })
    }

    async fn follow(&self, call: &BillingCall) -> Result<Value, StepError> {
        let mut client = self.registry.client().await?;
        let Some(tenant) = self.tenant_of(&client, call).await? else {
            return Ok(ignored(None, "it is no tenant's subscription, or not the one that its tenant has now"));
        };
        let tenant = registry::read(&*client, &Selector::Id(tenant)).await?.tenant;
        log_tenant(&tenant);
        if tenant.status == Status::Deprovisioned {
            return Ok(ignored(Some(tenant.id), "the tenant is gone"));
        }
        // Until this transaction ends, nobody else follows this tenant: who acts last has read last.
        let transaction = client.transaction().await?;
        billing_state::lock(&transaction, tenant.id).await?;
        let followed = self.account(&transaction, tenant.id, call).await?;
        let Some(followed) = followed.filter(|followed| call.concerns(&followed.account)) else {
            return Ok(ignored(Some(tenant.id), "it is not the subscription that the tenant has now"));
        };
        if followed.cancelled_by_us {
            return Ok(ignored(Some(tenant.id), "we cancelled the subscription ourselves"));
        }
        let Some((seen, sequence)) = self.see(&transaction, &followed, call).await? else {
            return Ok(ignored(Some(tenant.id), "billing has said nothing of the subscription yet"));
        };
        let subscription = &followed.account.subscription;
        let Some(grace_is_over) = billing_state::keep(&transaction, tenant.id, subscription, &seen, sequence).await?
        else {
            return Ok(ignored(Some(tenant.id), "the subscription was given up meanwhile"));
        };
        let tenant = act(&transaction, tenant, &seen, grace_is_over).await?;
        transaction.commit().await?;
        self.gate.project(&client, &tenant).await?;
        tracing::info!(subscription, standing = %seen.standing, status = %tenant.status, "followed billing");
        let decision = decide(&client, &tenant, subscription, &seen).await?;
        Ok(answer(&tenant, decision))
    }

    async fn tenant_of(&self, client: &Client, call: &BillingCall) -> Result<Option<TenantId>, StepError> {
        match call {
            BillingCall::Look(tenant) => Ok(Some(registry::read(client, tenant).await?.tenant.id)),
            BillingCall::Happened(account) => billing_state::owner(client, account, false).await,
            BillingCall::Changed(change) => billing_state::owner(client, &change.account, self.stripe.is_none()).await,
        }
    }

    /// The tenant's account. Where Stripe is not asked, nobody but billing's events can say which subscription is the tenant's:
    /// the first one is.
    async fn account(
        &self,
        transaction: &Transaction<'_>,
        tenant: TenantId,
        call: &BillingCall,
    ) -> Result<Option<Followed>, StepError> {
        if let (BillingCall::Changed(change), None) = (call, &self.stripe) {
            billing_state::claim(transaction, tenant, &change.account).await?;
        }
        billing_state::followed(transaction, tenant).await
    }

    /// The subscription as it is now, and the sequence of the event that says so, where it is one that says it. `None` where
    /// nothing was ever said.
    async fn see(
        &self,
        transaction: &Transaction<'_>,
        followed: &Followed,
        call: &BillingCall,
    ) -> Result<Option<(Subscription, Option<i64>)>, StepError> {
        if let Some(stripe) = &self.stripe {
            return Ok(Some((stripe.subscription(&followed.account.subscription).await?, None)));
        }
        match call {
            BillingCall::Changed(change) if followed.sequence.is_none_or(|newest| change.sequence > newest) => {
                let seen = changed(transaction, change, followed).await?;
                Ok(Some((seen, Some(change.sequence))))
            }
            BillingCall::Happened(_) => Err(StepError::Misconfigured(
                "an event of Stripe's arrived, and STRIPE_SECRET is empty: nobody can be asked what happened".into(),
            )),
            // An event that came before, or after a newer one: what is known is made sure of, as by a look.
            _ => Ok(followed.seen.clone().map(|seen| (seen, None))),
        }
    }
}

impl BillingCall {
    /// Whether it is about this account.
    fn concerns(&self, account: &Account) -> bool {
        match self {
            BillingCall::Look(_) => true,
            BillingCall::Happened(named) => named == account,
            BillingCall::Changed(change) => change.account == *account,
        }
    }
}

/// The subscription as an event of ours says it is. What the event leaves out is as it was.
async fn changed(
    transaction: &Transaction<'_>,
    change: &Change,
    followed: &Followed,
) -> Result<Subscription, StepError> {
    let before = followed.seen.as_ref();
    let prices = match &change.billed {
        Some(billed) => vec![billing_state::price(transaction, billed).await?],
        None => before.map(|seen| seen.prices.clone()).unwrap_or_default(),
    };
    let period_start = change.period_start.or_else(|| before?.period_start);
    Ok(Subscription { standing: change.standing, prices, period_start })
}

/// Suspends, lifts, or leaves it. Returns the tenant as it is then.
async fn act(
    transaction: &Transaction<'_>,
    tenant: Tenant,
    seen: &Subscription,
    grace_is_over: bool,
) -> Result<Tenant, StepError> {
    if let Some(start) = seen.period_start.filter(|_| seen.standing.is_live()) {
        billing_state::anchor(transaction, tenant.id, start).await?;
    }
    match seen.standing {
        Standing::Paid => {
            let lifted = suspensions::lift_in(transaction, tenant.id, Reason::PaymentFailure, ACTOR).await?;
            Ok(lifted.0)
        }
        Standing::Owing if grace_is_over => {
            suspensions::suspend_in(transaction, tenant.id, Reason::PaymentFailure, ACTOR).await
        }
        Standing::Lapsed => suspensions::suspend_in(transaction, tenant.id, Reason::PaymentFailure, ACTOR).await,
        Standing::Open | Standing::Owing | Standing::Cancelled => Ok(tenant),
    }
}

/// What is left to do about a subscription, by its state alone: asked again, it is decided again.
async fn decide(
    client: &Client,
    tenant: &Tenant,
    subscription: &str,
    seen: &Subscription,
) -> Result<Decision, StepError> {
    if seen.standing == Standing::Cancelled {
        return Ok(Decision::Offboard);
    }
    if !seen.standing.is_live() || seen.prices.is_empty() {
        return Ok(Decision::None);
    }
    match billing_state::plan_of(client, tenant.plan, &seen.prices).await? {
        Some(plan) if plan == tenant.plan => Ok(Decision::None),
        // An operator's change is under way, and Stripe may not have its price yet: a change back would undo it.
        Some(_) if plans::open(client, tenant.id).await?.is_some() => Err(StepError::Transient(format!(
            "the plan of tenant {} ({}) is being changed: billing is looked at again when that is done",
            tenant.slug, tenant.id
        ))),
        Some(plan) => Ok(Decision::ChangePlan(plan)),
        None => Err(StepError::Conflict(format!(
            "subscription {subscription} of tenant {} ({}) is to {}, which is no plan's: set plan_quotas.billing_price, \
             or the subscription's price",
            tenant.slug,
            tenant.id,
            seen.prices.join(", "),
        ))),
    }
}

fn answer(tenant: &Tenant, decision: Decision) -> Value {
    let (decision, plan) = match decision {
        Decision::None => ("none", None),
        Decision::ChangePlan(plan) => ("change_plan", Some(plan)),
        Decision::Offboard => ("offboard", None),
    };
    json!({ "tenant_id": tenant.id, "decision": decision, "plan": plan, "status": tenant.status })
}

fn ignored(tenant: Option<TenantId>, why: &str) -> Value {
    tracing::info!(why, "there is nothing to follow");
    json!({ "tenant_id": tenant, "decision": "ignored", "plan": null, "why": why })
}

#[async_trait]
impl Step for FollowBilling {
    async fn run(&self, _name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = BillingCall::parse(input)?;
        Box::pin(self.follow(&call)).await
    }
}
