//! Billing's events: a rule listens to each, hands on ids and nothing that is personal, and the function accepts them.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tenantry_core::billing_event::{BillingCall, STRIPE_TYPES};
use tenantry_local::stripe_events::{BUS, SOURCE};

use super::inputs::matches;
use super::template::{each, target};
use super::{Contract, Rule, remove};

const CHANGED: &str = "billing.subscription_changed";
const MACHINE: &str = "FollowBillingMachine";
/// What may be taken of an event of Stripe's. Its objects hold names and addresses besides.
const IDS: &[&str] = &[
    "$.detail.id",
    "$.detail-type",
    "$.detail.created",
    "$.detail.data.object.customer",
    "$.detail.data.object.id",
    "$.detail.data.object.subscription",
    "$.detail.data.object.parent.subscription_details.subscription",
];

/// An entry of `aws events put-events` as rules see it.
fn event(entry: &Value) -> Value {
    let detail: Value = serde_json::from_str(entry["Detail"].as_str().unwrap_or_default()).unwrap_or_default();
    json!({"source": entry["Source"], "detail-type": entry["DetailType"], "detail": detail})
}

/// Whether a pattern lets a value pass: literals, `prefix` and `exists`.
fn admits(pattern: &Value, value: &Value) -> bool {
    match pattern {
        Value::Object(fields) => fields.iter().all(|(key, wanted)| admits(wanted, &value[key])),
        alternatives => each(alternatives).iter().any(|wanted| match (&wanted["prefix"], &wanted["exists"]) {
            (Value::String(prefix), _) => value.as_str().is_some_and(|text| text.starts_with(prefix.as_str())),
            (_, Value::Bool(exists)) => *exists != value.is_null(),
            _ => wanted == value,
        }),
    }
}

/// What a target is given of an event.
fn handed_on(called: &Value, event: &Value) -> Option<Value> {
    let at = |path: &str| event.pointer(&path.trim_start_matches('$').replace('.', "/")).cloned();
    if let Some(path) = called["InputPath"].as_str() {
        return at(path);
    }
    let transformer = &called["InputTransformer"];
    let mut text = transformer["InputTemplate"].as_str()?.to_owned();
    for (name, path) in transformer["InputPathsMap"].as_object()? {
        text = text.replace(&format!("<{name}>"), &at(path.as_str()?)?.to_string());
    }
    serde_json::from_str(&text).ok()
}

/// The rules on Stripe's bus that take more of its events than ids.
fn overreaching(contract: &Contract) -> Vec<String> {
    let on_its_bus = contract
        .resources("AWS::Events::Rule")
        .filter(|(_, rule)| target(&rule["Properties"]["EventBusName"]) == Some("StripeEventBusName"));
    let mut broken = Vec::new();
    for (id, rule) in on_its_bus {
        if rule["Condition"] != "StripeSendsEvents" {
            broken.push(format!("{id} must be left out where there is no such bus"));
        }
        for called in each(&rule["Properties"]["Targets"]) {
            let taken = called["InputTransformer"]["InputPathsMap"].as_object();
            let paths: Vec<&str> = taken.into_iter().flatten().filter_map(|(_, path)| path.as_str()).collect();
            if paths.is_empty() || paths.iter().any(|path| !IDS.contains(path)) {
                broken.push(format!("{id} hands on {paths:?}; of Stripe's events only {IDS:?} may be kept"));
            }
        }
    }
    broken
}

pub(super) const SAMPLES_ARE_FOLLOWED: Rule = Rule {
    check: |contract| {
        let mut broken = overreaching(contract);
        let mut missing: BTreeSet<&str> = STRIPE_TYPES.iter().copied().chain([CHANGED]).collect();
        for (name, entry) in
            contract.billing.iter().flat_map(|(name, input)| each(input).iter().map(move |e| (name, e)))
        {
            let kind = entry["DetailType"].as_str().unwrap_or_default();
            missing.remove(kind);
            if kind != CHANGED && (entry["EventBusName"] != BUS || entry["Source"] != SOURCE) {
                broken.push(format!("events/billing/{name}.json must be sent as the local stack's Stripe sends it"));
            }
            let event = event(entry);
            let heard = contract.resources("AWS::Events::Rule").filter(|(_, rule)| {
                let detail = &rule["Properties"]["EventPattern"]["detail"];
                matches(contract, rule, entry) && (detail.is_null() || admits(detail, &event["detail"]))
            });
            let heard: Vec<&Value> = heard.flat_map(|(_, rule)| each(&rule["Properties"]["Targets"])).collect();
            let [called] = heard.as_slice() else {
                broken.push(format!("events/billing/{name}.json starts {} things, not one", heard.len()));
                continue;
            };
            let input = handed_on(called, &event).unwrap_or_default();
            if target(&called["Arn"]) != Some(MACHINE) {
                broken.push(format!("events/billing/{name}.json must start {MACHINE}"));
            }
            if let Err(error) = BillingCall::parse(&json!({"request": input, "execution": "manual:you"})) {
                broken.push(format!("events/billing/{name}.json: {error}"));
            }
        }
        broken.extend(missing.iter().map(|kind| format!("events/billing has no sample of {kind}")));
        broken
    },
    breaches: &[
        ("an event without a sample", |contract| drop(contract.billing.remove("invoice-paid"))),
        ("an event that no rule listens to", |contract| {
            contract.properties("StripeInvoiceRule")["EventPattern"]["detail-type"] = json!(["invoice.paid"]);
        }),
        ("an event that starts two executions", |contract| {
            let later = &mut contract.properties("StripeLaterInvoiceRule")["EventPattern"];
            remove(later, "detail");
        }),
        ("an event of ours that is refused", |contract| {
            let sample = contract.billing.get_mut("subscription-changed").expect("the sample");
            sample[0]["Detail"] = json!("{\"event_id\": \"1\"}");
        }),
        ("an event of Stripe's as a whole", |contract| {
            remove(&mut contract.properties("StripeInvoiceRule")["Targets"][0], "InputTransformer");
        }),
        ("an address", |contract| {
            let called = &mut contract.properties("StripeInvoiceRule")["Targets"][0]["InputTransformer"];
            called["InputPathsMap"]["customer"] = json!("$.detail.data.object.customer_email");
        }),
        ("a rule on a bus that is not there", |contract| {
            remove(&mut contract.template["Resources"]["StripeSubscriptionRule"], "Condition");
        }),
    ],
};
