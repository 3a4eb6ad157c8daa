//! A subscription as billing tells of it: what its status means for the tenant, and nothing else of Stripe's object.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use crate::error::StepError;
use crate::tenant::{InvalidName, named};

named! {
    /// What a subscription's status means for its tenant.
    Standing {
        /// Its first payment is open: whoever made the subscription waits for it.
        Open = "open",
        /// Paid for, or on trial.
        Paid = "paid",
        /// A payment failed, and is tried again or waited for.
        Owing = "owing",
        /// Over, because it was not paid for.
        Lapsed = "lapsed",
        /// Over, because its owner asked for that.
        Cancelled = "cancelled",
    } or "must be one of open, paid, owing, lapsed, cancelled"
}

impl Standing {
    /// What a status of Stripe's means, and for one that is over, the `cancellation_details.reason`. Only an owner who asked for
    /// it leaves: a subscription that is over for any other reason, or for none that is told, is one that nobody pays for.
    pub fn of(status: &str, reason: Option<&str>) -> Option<Self> {
        Some(match status {
            "incomplete" => Standing::Open,
            "active" | "trialing" => Standing::Paid,
            // A paused one has come to the end of its trial without a payment method.
            "past_due" | "unpaid" | "paused" => Standing::Owing,
            "canceled" if reason == Some("cancellation_requested") => Standing::Cancelled,
            "canceled" | "incomplete_expired" => Standing::Lapsed,
            _ => return None,
        })
    }

    /// Whether it goes on.
    pub fn is_live(self) -> bool {
        matches!(self, Standing::Open | Standing::Paid | Standing::Owing)
    }
}

/// A subscription as it is at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// What its status means.
    pub standing: Standing,
    /// The ids of the prices it is billed at: the plan's, and perhaps others'. Empty where billing does not say.
    pub prices: Vec<String>,
    /// When its current period began, in whole seconds.
    pub period_start: Option<OffsetDateTime>,
}

impl Subscription {
    /// Reads Stripe's subscription object.
    ///
    /// # Errors
    /// `Unexpected` for a status that this code does not know.
    pub fn of_stripe(object: &Value) -> Result<Self, StepError> {
        let status = object["status"].as_str().unwrap_or_default();
        let standing = Standing::of(status, object["cancellation_details"]["reason"].as_str());
        let standing = standing.ok_or_else(|| {
            let id = object["id"].as_str().unwrap_or_default();
            StepError::Unexpected(format!("Stripe: subscription {id} is {status:?}, which this version does not know"))
        })?;
        let items = object["items"]["data"].as_array().map(Vec::as_slice).unwrap_or_default();
        let prices = items.iter().filter_map(|item| item["price"]["id"].as_str().or(item["plan"]["id"].as_str()));
        Ok(Subscription { standing, prices: prices.map(str::to_owned).collect(), period_start: period_start(object) })
    }
}

/// When the current period of Stripe's subscription object began. Later versions of the API tell it of each item.
pub fn period_start(object: &Value) -> Option<OffsetDateTime> {
    let start = &object["current_period_start"];
    let seconds = start.as_i64().or_else(|| object["items"]["data"][0]["current_period_start"].as_i64())?;
    OffsetDateTime::from_unix_timestamp(seconds).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_who_asked_for_it_leaves() {
        assert_eq!(Standing::of("canceled", Some("cancellation_requested")), Some(Standing::Cancelled));
        for reason in [Some("payment_failed"), Some("payment_disputed"), None] {
            assert_eq!(Standing::of("canceled", reason), Some(Standing::Lapsed), "{reason:?}");
        }
        // A reason without an end is none.
        assert_eq!(Standing::of("active", Some("cancellation_requested")), Some(Standing::Paid));
    }

    #[test]
    fn stripes_object_is_read_in_either_form() {
        let old = json!({
            "id": "sub_1", "status": "past_due", "current_period_start": 1_700_000_000,
            "items": {"data": [{"price": {"id": "price_growth"}}, {"plan": {"id": "price_support"}}]},
        });
        let read = Subscription::of_stripe(&old).expect("a subscription");
        assert_eq!(
            (read.standing, read.prices),
            (Standing::Owing, vec!["price_growth".into(), "price_support".into()])
        );
        let new = json!({"items": {"data": [{"current_period_start": 1_700_000_000}]}});
        assert_eq!(read.period_start, period_start(&new));
        assert!(matches!(Subscription::of_stripe(&json!({"status": "asleep"})), Err(StepError::Unexpected(_))));
    }
}
