//! What starts follow-billing, read strictly: an event of ours, one of Stripe's as its rule cuts it down, or somebody who wants
//! a tenant looked at.

use serde_json::Value;
use time::OffsetDateTime;

use crate::error::StepError;
use crate::moment;
use crate::registry::Selector;
use crate::registry::fence::Actor;
use crate::request::{Fields, name, selector};
use crate::subscription::Standing;
use crate::tenant::Plan;

/// Stripe's events that the rules listen to.
pub const STRIPE_TYPES: &[&str] =
    &["customer.subscription.deleted", "customer.subscription.updated", "invoice.paid", "invoice.payment_failed"];

/// What is known of what happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BillingCall {
    /// Nothing: an operator or the sweep wants the tenant looked at.
    Look(Selector),
    /// Something happened to a subscription, and Stripe knows what.
    Happened(Account),
    /// A subscription is as the event says.
    Changed(Change),
}

/// Whose subscription it is, in billing's own ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The customer's id.
    pub customer: String,
    /// The subscription's id.
    pub subscription: String,
}

/// The detail of `billing.subscription_changed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Whose subscription it is.
    pub account: Account,
    /// Rises with every change of the subscription.
    pub sequence: i64,
    /// What its status means.
    pub standing: Standing,
    /// What it is billed for, where the event says so.
    pub billed: Option<Billed>,
    /// When its current period began, where the event says so.
    pub period_start: Option<OffsetDateTime>,
}

/// What a subscription is billed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Billed {
    /// One of our plans, by name.
    Plan(Plan),
    /// A price of billing's, by id.
    Price(String),
}

impl BillingCall {
    /// Reads `{"request": …, "execution"}`; by hand, all in one object. The request is told apart by what it names: a tenant, a
    /// type of Stripe's, or else it is an event of ours.
    ///
    /// # Errors
    /// `InvalidRequest` with every problem.
    pub fn parse(document: &Value) -> Result<Self, StepError> {
        let mut outer = Fields::of("", document)?;
        let _ = outer.required("execution", name::<Actor>);
        let mut request = outer.request()?;
        let call = if request.has("tenant_id") || request.has("slug") {
            selector(&mut request).map(BillingCall::Look)
        } else if request.has("type") {
            happened(&mut request).map(BillingCall::Happened)
        } else {
            changed(&mut request).map(BillingCall::Changed)
        };
        let mut problems = outer.finish();
        problems.extend(request.finish());
        call.filter(|_| problems.is_empty()).ok_or(StepError::InvalidRequest(problems))
    }
}

fn happened(fields: &mut Fields) -> Option<Account> {
    let _ = fields.required("event_id", id);
    let _ = fields.required("type", |value| match value.as_str() {
        Some(text) if STRIPE_TYPES.contains(&text) => Ok(()),
        _ => Err(format!("must be one of {}", STRIPE_TYPES.join(", "))),
    });
    let _ = fields.required("created", |value| value.as_i64().ok_or("must be in seconds since 1970"));
    account(fields)
}

fn changed(fields: &mut Fields) -> Option<Change> {
    let _ = fields.required("event_id", id);
    let sequence = fields.required("sequence", |value| {
        value.as_i64().filter(|sequence| *sequence >= 0).ok_or("must be a whole number that is not negative")
    });
    let account = account(fields);
    let status = fields.required("status", |value| match value.as_str() {
        Some(text @ ("active" | "past_due" | "unpaid" | "canceled")) => Ok(text.to_owned()),
        _ => Err("must be one of active, past_due, unpaid, canceled"),
    });
    let reason = fields.optional("cancellation_reason", |value| match value.as_str() {
        Some(text @ ("cancellation_requested" | "payment_failed" | "payment_disputed")) => Ok(text.to_owned()),
        _ => Err("must be one of cancellation_requested, payment_failed, payment_disputed"),
    });
    match (status.as_deref(), &reason) {
        (Some("canceled"), Some(None)) => fields.problem("cancellation_reason", "is required where status is canceled"),
        (Some("canceled") | None, _) | (_, None | Some(None)) => {}
        (Some(_), Some(Some(_))) => fields.problem("cancellation_reason", "must be left out unless status is canceled"),
    }
    let plan = fields.optional("plan", name::<Plan>);
    let price = fields.optional("price", id);
    let billed = match (plan, price) {
        (Some(Some(_)), Some(Some(_))) => {
            fields.problem("price", "must be left out where plan is named");
            None
        }
        (Some(plan), Some(price)) => Some(plan.map(Billed::Plan).or(price.map(Billed::Price))),
        _ => None,
    };
    let period_start = fields.optional("period_start", moment::read);
    Some(Change {
        account: account?,
        sequence: sequence?,
        standing: Standing::of(&status?, reason?.as_deref())?,
        billed: billed?,
        period_start: period_start?,
    })
}

fn account(fields: &mut Fields) -> Option<Account> {
    let (customer, subscription) = (fields.required("customer", id), fields.required("subscription", id));
    Some(Account { customer: customer?, subscription: subscription? })
}

/// An id of billing's: it is logged, compared, and part of URLs.
fn id(value: &Value) -> Result<String, &'static str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    let text = value.as_str().filter(|text| (1..=255).contains(&text.len()) && text.bytes().all(plain));
    text.map(str::to_owned).ok_or("must be an id of 1 to 255 letters, digits, dots, colons, hyphens or underscores")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ours() -> Value {
        json!({
            "event_id": "evt-1", "sequence": 7, "customer": "cus_1", "subscription": "sub_1", "status": "canceled",
            "cancellation_reason": "payment_failed", "price": "price_1", "period_start": "2026-11-24T08:00:00Z",
        })
    }

    fn parse(request: &Value) -> Result<BillingCall, StepError> {
        BillingCall::parse(&json!({"request": request, "execution": "manual:test"}))
    }

    #[test]
    fn a_request_is_told_apart_by_what_it_names() {
        let BillingCall::Changed(change) = parse(&ours()).expect("an event of ours") else { panic!("not of ours") };
        assert_eq!((change.sequence, change.standing), (7, Standing::Lapsed));
        assert_eq!(change.billed, Some(Billed::Price("price_1".into())));
        let stripes = json!({
            "event_id": "evt_1", "type": "invoice.paid", "created": 1, "customer": "cus_1", "subscription": "sub_1",
        });
        let account = Account { customer: "cus_1".into(), subscription: "sub_1".into() };
        assert_eq!(parse(&stripes), Ok(BillingCall::Happened(account)));
        assert_eq!(parse(&json!({"slug": "acme"})), Ok(BillingCall::Look(Selector::Slug("acme".into()))));
    }

    #[test]
    fn every_problem_is_named_with_its_field() {
        let bad = json!({
            "event_id": "", "sequence": -1, "customer": "ada@acme.example", "subscription": "sub_1", "status": "late",
            "plan": "growth", "price": "price_1", "period_start": "yesterday", "email": "ada@acme.example",
        });
        let Err(StepError::InvalidRequest(problems)) = parse(&bad) else { panic!("accepted") };
        let fields: Vec<&str> = problems.iter().map(|problem| problem.field.as_str()).collect();
        let named = ["event_id", "sequence", "customer", "status", "price", "period_start", "email"];
        assert_eq!(fields, named.map(|field| format!("request.{field}")));
    }

    #[test]
    fn a_reason_belongs_to_a_cancellation() {
        let mut event = ours();
        event["status"] = json!("active");
        assert!(parse(&event).is_err(), "a reason without a cancellation");
        event["status"] = json!("canceled");
        event["cancellation_reason"] = Value::Null;
        assert!(parse(&event).is_err(), "a cancellation without a reason");
    }
}
