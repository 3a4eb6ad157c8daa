//! The inputs that developers and operators start things by hand with, and the schemas that consumers read.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tenantry_core::billing_event::BillingCall;
use tenantry_core::error::StepError;
use tenantry_core::registry::fence::Actor;
use tenantry_core::request::quotas::{OverrideCall, SeatCall, UploadCall, UsageCall};
use tenantry_core::request::{
    Confirmation, DownstreamSystem, HoldExtension, Leaving, PartCall, Payment, PlanChangeCall, ProtectionCall, SignUp,
    StepCall, SuspensionCall,
};
use tenantry_core::tenant::{Isolation, LeaveReason, Metered, Plan, Reason, Region};
use tenantry_local::stripe_events::BUS;

use super::template::{each, taken, target};
use super::{Contract, Rule, kebab, remove};

/// Where the local stack is.
const REGION: &str = "us-east-1";
/// The sign-up's name in `events/`, which is its machine's; the steps' inputs go on from it.
const SIGN_UP: &str = "provision-tenant";
/// The inputs of the machines that act on a tenant in service; the steps have the same.
const SUSPENSIONS: &[&str] = &["suspend-tenant", "reactivate-tenant"];
const PLAN_CHANGE: &str = "change-plan";
/// The input of the machine that follows billing.
const LOOK: &str = "follow-billing";
/// The inputs of the machines that take a tenant out of service for good.
const OFFBOARDINGS: &[&str] = &["offboard-tenant", "delete-tenant"];
const REQUESTED: &str = "tenant.requested";
const PAID: &str = "payment.confirmed";

fn sign_up(document: &Value) -> Result<SignUp, StepError> {
    let region: Region = REGION.parse().expect("a region");
    SignUp::parse(document, &region)
}

/// The entries of the inputs that `aws events put-events` takes: input's name, entry, and its detail parsed.
fn entries(contract: &Contract) -> impl Iterator<Item = (&str, &Value, Value)> {
    contract.inputs.iter().filter(|(_, input)| input.is_array()).flat_map(|(name, input)| {
        let detail =
            |entry: &Value| serde_json::from_str(entry["Detail"].as_str().unwrap_or_default()).unwrap_or_default();
        each(input).iter().map(move |entry| (name.as_str(), entry, detail(entry)))
    })
}

/// Whether an input is one of a machine's: the one of its name, or a further one, such as provision-tenant-growth.
fn is_for(input: &str, machine: &str) -> bool {
    input.strip_prefix(machine).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// The inputs of a machine: name and document.
fn inputs_of<'a>(contract: &'a Contract, machine: &'a str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    contract.inputs.iter().filter(move |(name, _)| is_for(name, machine))
}

/// Every sign-up in `events/`, started by hand or sent to the bus.
fn sign_ups(contract: &Contract) -> Vec<(&str, Value)> {
    let direct = contract
        .inputs
        .iter()
        .filter(|(name, input)| {
            let others = [SUSPENSIONS, OFFBOARDINGS, &[PLAN_CHANGE, LOOK]].concat();
            input.is_object() && !others.iter().any(|other| is_for(name, other))
        })
        .map(|(name, input)| (name.as_str(), input.clone()));
    let sent = entries(contract)
        .filter(|(_, entry, _)| entry["DetailType"] == REQUESTED)
        .map(|(name, _, detail)| (name, detail));
    direct.chain(sent).collect()
}

/// What a step says to its input, as far as it can be told without the step's systems.
fn accepted(step: &str, input: &Value, slug: &Value) -> Result<(), String> {
    let refused = |error: StepError| error.to_string();
    let holds = |holds: bool, rule: &str| if holds { Ok(()) } else { Err(rule.to_owned()) };
    let of_tenant = |parsed: Result<(), StepError>| {
        parsed.map_err(refused)?;
        holds(input["slug"] == *slug, "must name the tenant that events/provision-tenant.json makes")
    };
    match step {
        "validate-request" | "register-tenant" => sign_up(&input["request"]).map(drop).map_err(refused),
        "confirm-payment" => Payment::parse(&input["payment"]).map(drop).map_err(refused),
        "recover-execution" => holds(
            input["detail"]["executionArn"].is_string() && input["detail"]["status"].is_string(),
            "must be a Step Functions Execution Status Change",
        ),
        step if SUSPENSIONS.contains(&step) => {
            SuspensionCall::parse(input).map_err(refused)?;
            holds(input["request"]["slug"] == *slug, "must name the tenant that events/provision-tenant.json makes")
        }
        "confirm-deletion" => Confirmation::parse(input).map(drop).map_err(refused),
        "register-downstream" => DownstreamSystem::parse(input).map(drop).map_err(refused),
        "begin-plan-change" => {
            PlanChangeCall::parse(input).map_err(refused)?;
            holds(input["request"]["slug"] == *slug, "must name the tenant that events/provision-tenant.json makes")
        }
        LOOK => {
            BillingCall::parse(input).map_err(refused)?;
            holds(input["slug"] == *slug, "must name the tenant that events/provision-tenant.json makes")
        }
        "reserve-seat" | "release-seat" => of_tenant(SeatCall::parse(input).map(drop)),
        "issue-upload" => of_tenant(UploadCall::parse(input).map(drop)),
        "read-usage" => of_tenant(UsageCall::parse(input).map(drop)),
        "set-quota-override" => of_tenant(OverrideCall::parse(input).map(drop)),
        "settle-upload" => holds(
            input["bucket"]["name"].as_str().is_some_and(|name| name.starts_with("tenant-"))
                && input["object"]["key"].is_string(),
            "must be the detail of an event of S3's",
        ),
        "cancel-hold" => {
            SuspensionCall::parse(input).map_err(refused)?;
            holds(input["request"]["slug"] == *slug, "must name the tenant that events/provision-tenant.json makes")
        }
        "begin-offboarding" => {
            Leaving::parse(input).map_err(refused)?;
            holds(input["request"]["slug"] == *slug, "must name the tenant that events/provision-tenant.json makes")
        }
        "extend-hold" | "set-deletion-protection" => {
            let read = HoldExtension::parse(input).map(drop);
            let read = if step == "extend-hold" { read } else { ProtectionCall::parse(input).map(drop) };
            read.map_err(refused)?;
            holds(input["slug"] == *slug, "must name the tenant that events/provision-tenant.json makes")
        }
        "sweep-tenants" | "reconcile-gate" | "reconcile-storage" | "sweep-holds" => {
            holds(*input == json!({}), "must be {}, as the schedule sends it")
        }
        "accept-invite" | "download-export" => holds(
            input["requestContext"]["http"]["method"] == "GET" && input["queryStringParameters"]["token"].is_string(),
            "must be a function URL's request that only looks",
        ),
        "export-part" => {
            let call = PartCall::parse(input).map_err(refused)?;
            holds(matches!(call.actor, Actor::Manual(_)), "must be run as manual:<who>")?;
            holds(input["slug"] == *slug, "must name the tenant that events/provision-tenant.json makes")
        }
        "authorize-request" => holds(
            input["type"] == "REQUEST"
                && input["methodArn"].is_string()
                && input["headers"]["Host"].as_str().and_then(|host| host.split('.').next()) == slug.as_str(),
            "must be an authorizer's request of the tenant that events/provision-tenant.json makes",
        ),
        "apply-migrations" => holds(
            input["ResponseURL"].is_null() && input["RequestType"] != "Delete",
            "must have no ResponseURL, which the function would answer to, and not be a deletion, which does nothing",
        ),
        _ => {
            let call = StepCall::parse(input).map_err(refused)?;
            holds(matches!(call.actor, Actor::Manual(_)), "must be run as manual:<who>")?;
            holds(input["slug"] == *slug, "must name the tenant that events/provision-tenant.json makes")?;
            let handles_failures = matches!(step, "release-tenant" | "flag-tenant");
            holds(
                call.failure.is_some() == handles_failures,
                "must hold an error if the step handles one, and else none",
            )
        }
    }
}

pub(super) const EVERY_STEP_HAS_AN_INPUT: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        let slug = &contract.inputs[SIGN_UP]["slug"];
        let functions = contract.resources("AWS::Serverless::Function").map(|(id, _)| kebab(id));
        let mut unused: BTreeSet<&String> = contract.step_inputs.keys().collect();
        for step in functions {
            unused.remove(&step);
            let result = match contract.step_inputs.get(&step) {
                Some(input) => accepted(&step, input, slug),
                None => Err("is missing".to_owned()),
            };
            broken.extend(result.err().map(|why| format!("events/steps/{step}.json {why}")));
        }
        broken.extend(unused.iter().map(|step| format!("events/steps/{step}.json is no function's")));
        broken
    },
    breaches: &[
        ("a function without an input", |contract| drop(contract.step_inputs.remove("create-bucket"))),
        ("an input without a function", |contract| {
            contract.step_inputs.insert("create-quota".to_owned(), json!({"slug": "acme", "execution": "manual:you"}));
        }),
        ("an input of another tenant", |contract| step_input(contract, "create-bucket")["slug"] = json!("globex")),
        ("an input with a field that no step has", |contract| {
            step_input(contract, "create-bucket")["bucket"] = json!("tenant-acme");
        }),
        ("a step by hand that acts as an execution", |contract| {
            step_input(contract, "create-bucket")["execution"] =
                json!("arn:aws:states:us-east-1:000000000000:execution:x:y");
        }),
        ("a seat for an address", |contract| {
            step_input(contract, "reserve-seat")["user"] = json!("ada@acme.example");
        }),
        ("an upload to another tenant", |contract| step_input(contract, "issue-upload")["slug"] = json!("globex")),
        ("an event of another bucket", |contract| {
            step_input(contract, "settle-upload")["bucket"]["name"] = json!("functions");
        }),
        ("a release without a reason", |contract| remove(step_input(contract, "release-tenant"), "error")),
        ("a sign-up that is refused", |contract| {
            step_input(contract, "validate-request")["request"]["slug"] = json!("WWW");
        }),
        ("a payment of nothing", |contract| {
            remove(&mut step_input(contract, "confirm-payment")["payment"], "request_id");
        }),
        ("a request to another tenant's host", |contract| {
            step_input(contract, "authorize-request")["headers"]["Host"] = json!("globex.app.example.com");
        }),
        ("migrations that answer to nobody", |contract| {
            step_input(contract, "apply-migrations")["ResponseURL"] = json!("");
        }),
    ],
};

pub(super) const WORKFLOWS_HAVE_INPUTS: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        let unstarted = contract.machines.keys().filter(|machine| !contract.inputs.contains_key(*machine));
        broken.extend(unstarted.map(|machine| format!("events/{machine}.json is missing, to start the machine with")));
        let (mut slugs, mut requests) = (BTreeSet::new(), BTreeSet::new());
        for (name, document) in sign_ups(contract) {
            match sign_up(&document) {
                Err(error) => broken.push(format!("events/{name}.json: {error}")),
                Ok(request) => {
                    if !slugs.insert(request.slug.to_string()) || !requests.insert(request.request_id) {
                        broken.push(format!("events/{name}.json asks for another input's tenant"));
                    }
                }
            }
        }
        for (name, input) in SUSPENSIONS.iter().flat_map(|machine| inputs_of(contract, machine)) {
            let call = json!({"request": input, "execution": "manual:you"});
            broken.extend(SuspensionCall::parse(&call).err().map(|error| format!("events/{name}.json: {error}")));
        }
        let call = json!({"request": contract.inputs[PLAN_CHANGE], "execution": "manual:you"});
        broken.extend(PlanChangeCall::parse(&call).err().map(|error| format!("events/{PLAN_CHANGE}.json: {error}")));
        let look = json!({"request": contract.inputs[LOOK], "execution": "manual:you"});
        broken.extend(BillingCall::parse(&look).err().map(|error| format!("events/{LOOK}.json: {error}")));
        for (name, input) in inputs_of(contract, "offboard-tenant") {
            let leaving = json!({"request": input, "execution": "manual:you"});
            match Leaving::parse(&leaving) {
                Err(error) => broken.push(format!("events/{name}.json: {error}")),
                Ok(Leaving { erasure: Some(erasure), .. }) if input["slug"] != erasure.confirm_slug.as_str() => {
                    broken.push(format!("events/{name}.json confirms another tenant's erasure"));
                }
                Ok(_) => {}
            }
        }
        for (name, entry, detail) in entries(contract) {
            if entry["DetailType"] == PAID {
                let waiting = sign_ups(contract)
                    .iter()
                    .any(|(_, sign_up)| sign_up["request_id"] == detail["request_id"] && sign_up["paid"] != true);
                match Payment::parse(&detail) {
                    Err(error) => broken.push(format!("events/{name}.json: {error}")),
                    Ok(_) if !waiting => broken.push(format!("events/{name}.json pays for no sign-up of events/")),
                    Ok(_) => {}
                }
            }
            if !contract.resources("AWS::Events::Rule").any(|(_, rule)| matches(contract, rule, entry)) {
                broken.push(format!("events/{name}.json: no rule listens to {} on this bus", entry["DetailType"]));
            }
        }
        broken
    },
    breaches: &[
        ("a machine without an input", |contract| drop(contract.inputs.remove("provision-tenant"))),
        ("a suspension for no reason", |contract| {
            remove(contract.inputs.get_mut("suspend-tenant").expect("the input"), "reason");
        }),
        ("a look at no tenant", |contract| {
            remove(contract.inputs.get_mut("follow-billing").expect("the input"), "slug");
        }),
        ("a departure with free text", |contract| {
            contract.inputs.get_mut("offboard-tenant").expect("the input")["reason"] =
                json!("we like another one better");
        }),
        ("a return for no reason", |contract| {
            remove(contract.inputs.get_mut("reactivate-tenant-offboarding").expect("the input"), "reason");
        }),
        ("an erasure that names another tenant", |contract| {
            contract.inputs.get_mut("offboard-tenant-erasure").expect("the input")["slug"] = json!("acme");
        }),
        ("a sign-up that is refused", |contract| {
            contract.inputs.get_mut("provision-tenant").expect("the input")["owner"]["email"] = json!("ada");
        }),
        ("a change to a plan that there is not", |contract| {
            contract.inputs.get_mut(PLAN_CHANGE).expect("the input")["plan"] = json!("platinum");
        }),
        ("a sign-up for another region", |contract| {
            contract.inputs.get_mut("provision-tenant").expect("the input")["region"] = json!("eu-central-1");
        }),
        ("two inputs with one slug", |contract| {
            contract.inputs.get_mut("provision-tenant-growth").expect("the input")["slug"] = json!("acme");
        }),
        ("two inputs with one request id", |contract| {
            let id = contract.inputs["provision-tenant"]["request_id"].clone();
            contract.inputs.get_mut("provision-tenant-growth").expect("the input")["request_id"] = id;
        }),
        ("a payment of another sign-up", |contract| {
            let detail = r#"{"payment_id": "pay_0001", "request_id": "5d0f9a5c-9c3e-4d52-8f0a-5b1f6c1d2e99"}"#;
            contract.inputs.get_mut("payment-confirmed").expect("the input")[0]["Detail"] = json!(detail);
        }),
        ("a sign-up that nothing listens to", |contract| {
            contract.inputs.get_mut("tenant-requested").expect("the input")[0]["DetailType"] = json!("tenant.asked");
        }),
        ("an event on another bus", |contract| {
            contract.inputs.get_mut("tenant-requested").expect("the input")[0]["EventBusName"] = json!("default");
        }),
        ("a payment that is not billing's", |contract| {
            contract.inputs.get_mut("payment-confirmed").expect("the input")[0]["Source"] = json!("website");
        }),
    ],
};

/// Whether a rule listens to an entry, where every parameter has its default, and Stripe's bus is the local stack's.
pub(super) fn matches(contract: &Contract, rule: &Value, entry: &Value) -> bool {
    let properties = &rule["Properties"];
    let filled_in = |value: &Value| match value["Ref"].as_str() {
        Some(parameter) => contract.template["Parameters"][parameter]["Default"].clone(),
        None => value.clone(),
    };
    let listens = |key: &str, value: &Value| {
        let wanted = &properties["EventPattern"][key];
        wanted.is_null() || each(wanted).iter().any(|wanted| filled_in(wanted) == *value)
    };
    // By default, billing's bus is this stack's own.
    let bus = taken(&properties["EventBusName"]);
    let name = target(bus).and_then(|bus| match bus {
        "StripeEventBusName" => Some(BUS),
        own => contract.template["Resources"][own]["Properties"]["Name"]["Fn::Sub"].as_str(),
    });
    properties["EventPattern"].is_object()
        && name.is_some_and(|name| entry["EventBusName"] == name.replace("${Prefix}", ""))
        && listens("source", &entry["Source"])
        && listens("detail-type", &entry["DetailType"])
}

/// Events as the outbox writes them, one for each plan and isolation.
fn sent(event_type: &str) -> Vec<Value> {
    let event = |particular: Value| {
        let mut event = json!({
            "event_id": "5d0f9a5c-9c3e-4d52-8f0a-5b1f6c1d2e04",
            "schema_version": 1,
            "version": 2,
            "occurred_at": "2026-11-24T08:00:00.123456Z",
            "tenant_id": "5d0f9a5c-9c3e-4d52-8f0a-5b1f6c1d2e05",
            "slug": "acme",
            "region": REGION,
        });
        let fields = event.as_object_mut().expect("an object");
        fields.extend(particular.as_object().cloned().unwrap_or_default());
        event
    };
    let plans = || Plan::ALL.iter().copied();
    match event_type {
        "tenant.provisioned" => plans()
            .flat_map(|plan| Isolation::ALL.iter().map(move |isolation| (plan, isolation)))
            .map(|(plan, isolation)| {
                event(json!({"plan": plan, "isolation": isolation, "host": "acme.app.example.com"}))
            })
            .collect(),
        "tenant.provisioning_failed" => [(json!("create-bucket"), true), (Value::Null, false)]
            .into_iter()
            .map(|(step, clean)| {
                event(json!({"plan": "growth", "failed_step": step, "error": "States.Timeout", "clean": clean}))
            })
            .collect(),
        "tenant.suspended" | "tenant.reactivated" => plans()
            .flat_map(|plan| Reason::ALL.iter().map(move |reason| (plan, reason)))
            .map(|(plan, reason)| event(json!({"plan": plan, "reason": reason})))
            .collect(),
        "tenant.plan_changed" => plans()
            .map(|to| {
                event(json!({
                    "from": "growth",
                    "to": to,
                    "fits": false,
                    "does_not_fit": [
                        {"what": "seats", "used": 7, "allowed": 5},
                        {"what": "storage_bytes", "used": 2, "allowed": 1},
                        {"what": "api_calls", "used": 2, "allowed": 1},
                        {"what": "isolation", "used": "database", "allowed": "schema"},
                        {"what": "flag", "name": "sso"},
                    ],
                }))
            })
            .chain([event(json!({"from": "starter", "to": "growth", "fits": true, "does_not_fit": []}))])
            .collect(),
        "tenant.offboarding_started" => plans()
            .flat_map(|plan| LeaveReason::ALL.iter().map(move |reason| (plan, reason)))
            .flat_map(|(plan, reason)| {
                [("offboarding", true), ("offboarding", false), ("erasure", false)].map(|kind| (plan, reason, kind))
            })
            .map(|(plan, reason, (kind, exported))| {
                event(json!({"plan": plan, "reason": reason, "kind": kind, "exported": exported}))
            })
            .collect(),
        "tenant.deletion_requested" => plans()
            .flat_map(|plan| [json!([]), json!(["search", "warehouse"])].map(|systems| (plan, systems)))
            .map(|(plan, systems)| {
                event(json!({"plan": plan, "systems": systems, "respond_by": "2026-11-25T08:00:00.5Z"}))
            })
            .collect(),
        "tenant.deleted" => plans()
            .flat_map(|plan| ["offboarding", "erasure"].map(|kind| (plan, kind)))
            .map(|(plan, kind)| event(json!({"plan": plan, "kind": kind, "reason": "customer_request"})))
            .collect(),
        "tenant.exported" => plans()
            .map(|plan| {
                event(json!({
                    "plan": plan,
                    "export_id": "5d0f9a5c-9c3e-4d52-8f0a-5b1f6c1d2e06",
                    "parts": 14,
                    "tables": 7,
                    "rows": 1_000_000,
                    "objects": 0,
                    "bytes": 123_456_789_012_i64,
                }))
            })
            .collect(),
        "tenant.quota_warning" | "tenant.quota_exceeded" => plans()
            .flat_map(|plan| Metered::ALL.iter().map(move |resource| (plan, resource)))
            .map(|(plan, resource)| {
                event(json!({
                    "plan": plan,
                    "resource": resource,
                    "used": 80,
                    "quota": 100,
                    "cycle_start": "2026-11-24T08:00:00Z",
                    "cycle_end": "2026-12-24T08:00:00Z",
                }))
            })
            .collect(),
        _ => Vec::new(),
    }
}

pub(super) const SCHEMAS_ARE_STRICT: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (name, schema) in &contract.schemas {
            let validator = match jsonschema::options().should_validate_formats(true).build(schema) {
                Ok(validator) => validator,
                Err(error) => {
                    broken.push(format!("{name}: not a schema: {error}"));
                    continue;
                }
            };
            let sent = sent(name);
            let Some(one) = sent.first() else {
                broken.push(format!("{name}: no event of this type is sent"));
                continue;
            };
            for event in &sent {
                broken
                    .extend(validator.iter_errors(event).map(|error| format!("{name} refuses what we send: {error}")));
            }
            // One field at a time, missing, of another type, or added.
            for field in one.as_object().into_iter().flat_map(serde_json::Map::keys) {
                let mut without = one.clone();
                remove(&mut without, field);
                let mut mistyped = one.clone();
                mistyped[field] = json!({"value": one[field]});
                if validator.is_valid(&without) || validator.is_valid(&mistyped) {
                    broken.push(format!("{name}: {field} must be required, and of its type"));
                }
            }
            for added in ["owner", "email", "name", "invite", "cause"] {
                let mut with = one.clone();
                with[added] = json!("ada@acme.example");
                if validator.is_valid(&with) {
                    broken.push(format!("{name} lets {added} pass, which may be personal data"));
                }
            }
            if schema["title"] != **name || schema["$id"] != format!("https://tenantry.dev/schemas/{name}.json") {
                broken.push(format!("{name} must carry its own name in title and $id"));
            }
        }
        broken
    },
    breaches: &[
        ("a schema that lets any field pass", |contract| remove(schema(contract), "additionalProperties")),
        ("a schema with the owner's address", |contract| {
            schema(contract)["properties"]["email"] = json!({"type": "string"});
        }),
        ("a plan that is left out", |contract| schema(contract)["properties"]["plan"]["enum"] = json!(["starter"])),
        ("a field that need not be there", |contract| {
            schema(contract)["required"].as_array_mut().expect("a list").pop();
        }),
        ("a field of any type", |contract| schema(contract)["properties"]["version"] = json!({})),
        ("a schema that is none", |contract| schema(contract)["type"] = json!("record")),
        ("a schema of an event that is never sent", |contract| {
            let schema = contract.schemas["tenant.provisioned"].clone();
            contract.schemas.insert("tenant.moved".to_owned(), schema);
        }),
    ],
};

/// For breaches: a step's input.
fn step_input<'a>(contract: &'a mut Contract, step: &str) -> &'a mut Value {
    contract.step_inputs.get_mut(step).expect("the step has an input")
}

/// For breaches: the schema of tenant.provisioned.
fn schema(contract: &mut Contract) -> &mut Value {
    contract.schemas.get_mut("tenant.provisioned").expect("the schema exists")
}
