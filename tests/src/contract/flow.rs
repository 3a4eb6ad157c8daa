//! Where a machine's states lead: nothing hangs, failures go to the right side of the fence and of the pivot, and what
//! is known of the owner is dropped.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::template::each;
use super::{Contract, Rule, remove};

const MACHINE: &str = "provision-tenant";
/// What takes the tenant for the execution.
const FENCE: &str = "BeginProvisioning";
/// After which nothing is undone.
const PIVOT: &str = "ActivateTenant";
/// Which tells on which side of the pivot a failure left the tenant.
const CONFIRM: &str = "ConfirmActivation";
/// Where a failure before the pivot leads.
const RELEASE: &str = "ReleaseTenant";
/// Where a failure after the pivot leads.
const FLAG: &str = "FlagTenant";

/// The answers of functions that may stay in the state.
const KEPT_ANSWERS: &[&str] = &["$.Payload.tenant_id", "$.Payload.decision", "$.Payload.active"];
/// The states that no execution holds the tenant in, and that may be given what the machine was started with.
const UP_TO_THE_FENCE: &[&str] =
    &["RouteRequest", "ValidateRequest", "RegisterTenant", "ConfirmPayment", "IntendToProvision", FENCE];

/// A way out of a state.
struct Exit<'a> {
    to: &'a str,
    /// Taken on a failure.
    caught: bool,
    /// What the state was given goes along.
    keeps_input: bool,
}

fn exits(state: &Value) -> Vec<Exit<'_>> {
    // A Pass that makes nothing hands its input on; a Task's answer replaces it, unless ResultPath puts it elsewhere.
    let makes_nothing = state["Type"] == "Pass" && state["Parameters"].is_null() && state["Result"].is_null();
    let keeps_input = |clause: &Value| clause.get("ResultPath").is_some_and(|path| path != "$");
    let mut exits = Vec::new();
    for (clause, caught) in
        std::iter::once((state, false)).chain(each(&state["Catch"]).iter().map(|clause| (clause, true)))
    {
        if let Some(to) = clause["Next"].as_str() {
            exits.push(Exit { to, caught, keeps_input: makes_nothing || keeps_input(clause) });
        }
    }
    let choices = each(&state["Choices"]).iter().filter_map(|choice| choice["Next"].as_str());
    exits.extend(choices.chain(state["Default"].as_str()).map(|to| Exit { to, caught: false, keeps_input: true }));
    exits
}

/// What is reached from a state, itself included, by the exits that `follow` takes.
fn reached<'a>(states: &'a Value, from: &'a str, follow: impl Fn(&str, &Exit<'_>) -> bool) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::from([from]);
    let mut unvisited = vec![from];
    while let Some(name) = unvisited.pop() {
        for exit in exits(&states[name]) {
            if follow(name, &exit) && reached.insert(exit.to) {
                unvisited.push(exit.to);
            }
        }
    }
    reached
}

/// The states of provision-tenant, and the one it starts at.
fn provisioning(contract: &Contract) -> (&Value, &str) {
    let definition = &contract.machines[MACHINE];
    (&definition["States"], definition["StartAt"].as_str().unwrap_or_default())
}

fn is_end(state: &Value) -> bool {
    state["Type"] == "Succeed" || state["Type"] == "Fail"
}

pub(super) const CONNECTED: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (machine, definition) in &contract.machines {
            let states = &definition["States"];
            let start = definition["StartAt"].as_str().unwrap_or_default();
            let reached = reached(states, start, |_, _| true);
            let dangling = reached.iter().filter(|name| states[**name].is_null());
            broken.extend(dangling.map(|name| format!("{machine}: there is no state {name:?}, which is led to")));
        }
        for (machine, name, state) in contract.states() {
            let definition = &contract.machines[machine];
            if !reached(&definition["States"], definition["StartAt"].as_str().unwrap_or_default(), |_, _| true)
                .contains(name)
            {
                broken.push(format!("{machine}: nothing leads to {name}"));
            }
            let goes_on = match state["Type"].as_str() {
                Some("Succeed" | "Fail") => true,
                Some("Choice") => state["Default"].is_string(),
                _ => state["Next"].is_string() || state["End"] == true,
            };
            if !goes_on {
                broken.push(format!("{machine}: {name} has no Next (a Choice: no Default) and is no end"));
            }
        }
        broken
    },
    breaches: &[
        ("a Next that does not exist", |contract| contract.state("CreateBucket")["Next"] = json!("CreateBuckets")),
        ("a Catch that leads nowhere", |contract| contract.state("CreateBucket")["Catch"][1]["Next"] = json!("Undo")),
        ("a Choice that leads nowhere", |contract| contract.state("IsActive")["Choices"][0]["Next"] = json!("Done")),
        ("a state that is skipped", |contract| contract.state("CreateIdentity")["Next"] = json!("CreateNamespace")),
        ("a state that goes nowhere", |contract| remove(contract.state("CreateBucket"), "Next")),
        ("a Choice that may match nothing", |contract| remove(contract.state("DecideOnTenant"), "Default")),
        ("a start that does not exist", |contract| {
            contract.machines.get_mut(MACHINE).expect("the machine")["StartAt"] = json!("Start");
        }),
    ],
};

pub(super) const NOTHING_UNDONE_BEFORE_THE_FENCE: Rule = Rule {
    check: |contract| {
        let (states, start) = provisioning(contract);
        let before = reached(states, start, |name, _| name != FENCE);
        let mut broken = Vec::new();
        for name in &before {
            let acts = states[*name]["Type"] == "Task" && !UP_TO_THE_FENCE.contains(name);
            if acts {
                broken.push(format!(
                    "{name} is reached without {FENCE}, so that two executions may act on the tenant at once"
                ));
            }
            for exit in exits(&states[*name]).iter().filter(|exit| exit.caught && !is_end(&states[exit.to])) {
                broken.push(format!(
                    "{name}: a failure leads to {}; it must end the execution, and touch nothing",
                    exit.to
                ));
            }
        }
        if !before.contains(FENCE) {
            broken.push(format!("{FENCE} is never reached"));
        }
        broken
    },
    breaches: &[
        ("a refused request that is undone", |contract| {
            contract.state("ValidateRequest")["Catch"][0]["Next"] = json!(RELEASE);
        }),
        ("a tenant of another's that is undone", |contract| contract.state(FENCE)["Catch"][1]["Next"] = json!(RELEASE)),
        ("a way around the fence", |contract| contract.state("IntendToProvision")["Next"] = json!("CreateDatabase")),
    ],
};

pub(super) const SUPERSEDED_ENDS_QUIETLY: Rule = Rule {
    check: |contract| {
        let (states, _) = provisioning(contract);
        let after = reached(states, FENCE, |_, _| true).into_iter().filter(|name| states[*name]["Type"] == "Task");
        let quiet = |name: &&str| {
            let first = &states[*name]["Catch"][0];
            first["ErrorEquals"] == json!(["Superseded"])
                && first["Next"].as_str().is_some_and(|next| states[next]["Type"] == "Succeed")
        };
        after
            .filter(|name| !quiet(name))
            .map(|name| format!("{name}: the first Catch must be Superseded alone, and lead to a state that succeeds"))
            .collect()
    },
    breaches: &[
        ("a step that is undone though another execution has the tenant", |contract| {
            contract.state("CreateBucket")["Catch"].as_array_mut().expect("a list").remove(0);
        }),
        ("an undo that fails though another execution has the tenant", |contract| {
            contract.state(RELEASE)["Catch"][0]["Next"] = json!("ProvisioningFailed");
        }),
        ("a fence that fails though another execution has the tenant", |contract| {
            contract.state(FENCE)["Catch"][0]["ErrorEquals"] = json!(["Conflict"]);
        }),
    ],
};

pub(super) const FAILURES_GO_WHERE_THEY_BELONG: Rule = Rule {
    check: |contract| {
        let (states, _) = provisioning(contract);
        let forward = |from| reached(states, from, |_, exit| !exit.caught);
        let mut broken = Vec::new();
        for name in forward(FENCE).into_iter().chain([CONFIRM, FLAG]).filter(|name| states[*name]["Type"] == "Task") {
            let (asked, why) = match name {
                FENCE => continue,
                PIVOT => (CONFIRM, "nobody knows yet on which side of the pivot the tenant is"),
                CONFIRM | RELEASE | FLAG => ("ProvisioningInterrupted", "the registry itself could not be told"),
                step if forward(step).contains(PIVOT) => (RELEASE, "the tenant is not in service"),
                _ => (FLAG, "the tenant is in service, and stays so"),
            };
            let last = each(&states[name]["Catch"]).last().unwrap_or(&Value::Null);
            if last["Next"] != asked || last["ResultPath"] != "$.error" {
                broken.push(format!("{name}: the last Catch must lead to {asked} with $.error: {why}"));
            }
        }
        let succeeds = |name: &&str| states[*name]["End"] == true || states[*name]["Type"] == "Succeed";
        for handler in [RELEASE, FLAG] {
            broken.extend(forward(handler).iter().filter(|name| succeeds(name)).map(|name| {
                format!(
                    "{handler} leads to {name}, which succeeds: the execution must fail, so that the operator sees it"
                )
            }));
        }
        let confirmed = exits(&states["IsActive"]).iter().map(|exit| exit.to.to_owned()).collect::<Vec<_>>();
        let next = states[PIVOT]["Next"].as_str().unwrap_or_default();
        if states[CONFIRM]["Next"] != "IsActive" || confirmed != [next, RELEASE] {
            broken.push(format!("{CONFIRM} must lead to {next} where the tenant is active, and else to {RELEASE}"));
        }
        broken
    },
    breaches: &[
        ("a failed mail that takes the tenant out of service", |contract| {
            contract.state("SendWelcomeEmail")["Catch"][1]["Next"] = json!(RELEASE);
        }),
        ("a failed bucket that only flags the tenant", |contract| {
            contract.state("CreateBucket")["Catch"][1]["Next"] = json!(FLAG);
        }),
        ("an unanswered activation that is undone unseen", |contract| {
            contract.state(PIVOT)["Catch"][1]["Next"] = json!(RELEASE);
        }),
        ("an activation that took effect and is undone", |contract| {
            contract.state("IsActive")["Choices"][0]["Next"] = json!(RELEASE);
        }),
        ("an undo that repeats itself", |contract| contract.state(RELEASE)["Catch"][1]["Next"] = json!(RELEASE)),
        ("an undo that never learns the reason", |contract| {
            contract.state("CreateBucket")["Catch"][1]["ResultPath"] = json!("$.reason");
        }),
        ("a failure that looks like success", |contract| contract.state(RELEASE)["Next"] = json!("NothingToDo")),
    ],
};

pub(super) const PERSONAL_DATA_IS_DROPPED: Rule = Rule {
    check: |contract| {
        let (states, start) = provisioning(contract);
        let mut broken = Vec::new();
        for name in reached(states, start, |_, exit| exit.keeps_input) {
            if !UP_TO_THE_FENCE.contains(&name) && !is_end(&states[name]) {
                broken.push(format!("{name} is still given what the machine was started with"));
            }
        }
        for (machine, name, task) in contract.tasks().filter(|(_, _, task)| task["ResultPath"] != Value::Null) {
            let selected = task["ResultSelector"].as_object();
            if selected.is_none() {
                broken.push(format!("{machine}: {name} must select what it keeps of the answer"));
            }
            for answer in selected.into_iter().flat_map(|selected| selected.values()) {
                // ConfirmPayment names no tenant for a payment that it keeps, and a path to nothing would fail.
                let whole = name == "ConfirmPayment" && answer == "$.Payload";
                if !whole && !KEPT_ANSWERS.iter().any(|kept| answer == kept) {
                    broken.push(format!("{machine}: {name} keeps {answer}, which may be more than ids and decisions"));
                }
            }
        }
        broken
    },
    breaches: &[
        ("a sign-up that stays beside the tenant's id", |contract| {
            contract.state("RegisterTenant")["ResultPath"] = json!("$.tenant");
        }),
        ("an answer that is kept whole", |contract| remove(contract.state("RegisterTenant"), "ResultSelector")),
        ("an answer with the owner in it", |contract| {
            contract.state("RegisterTenant")["ResultSelector"]["owner.$"] = json!("$.Payload.owner");
        }),
        ("an input by hand that is kept", |contract| contract.state(FENCE)["ResultPath"] = json!("$.fence")),
        ("a failure that keeps the sign-up", |contract| {
            contract.state("RegisterTenant")["Catch"][0] = json!({
                "ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": FLAG,
            });
        }),
    ],
};
