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
/// The steps that make something, in order, each with what removes it again.
pub const UNDOES: &[(&str, &str)] = &[
    ("CreateDatabase", "RemoveDatabase"),
    ("CreateIdentity", "RemoveIdentity"),
    ("CreateBucket", "RemoveBucket"),
    ("CreateQueue", "RemoveQueue"),
    ("CreateNamespace", "RemoveNamespace"),
    ("CreateDnsRecord", "RemoveDnsRecord"),
    ("ConfigureBilling", "CancelBilling"),
    ("SeedConfig", "RemoveConfig"),
    ("InviteAdmin", "RevokeInvite"),
];
/// Where the undos end.
const RELEASE: &str = "ReleaseTenant";
/// Where a failure after the pivot leads, and one that leaves open what is left.
const FLAG: &str = "FlagTenant";

/// The answers of functions that may stay in the state.
const KEPT_ANSWERS: &[&str] = &[
    "$.Payload.tenant_id",
    "$.Payload.decision",
    "$.Payload.plan",
    "$.Payload.active",
    "$.Payload.status",
    // An export's parts, which are numbers, when a hold ends, and how long others are waited for.
    "$.Payload.parts",
    "$.Payload.expires_at",
    "$.Payload.seconds",
];
/// The states that no execution holds the tenant in, and that may be given what the machine was started with.
const UP_TO_THE_FENCE: &[&str] =
    &["RouteRequest", "ValidateRequest", "RegisterTenant", "ConfirmPayment", "IntendToProvision", FENCE];

/// A way out of a state.
pub(super) struct Exit<'a> {
    pub(super) to: &'a str,
    /// Taken on a failure.
    pub(super) caught: bool,
    /// What the state was given goes along.
    keeps_input: bool,
}

pub(super) fn exits(state: &Value) -> Vec<Exit<'_>> {
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
pub(super) fn reached<'a>(
    states: &'a Value,
    from: &'a str,
    follow: impl Fn(&str, &Exit<'_>) -> bool,
) -> BTreeSet<&'a str> {
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

pub(super) fn is_end(state: &Value) -> bool {
    state["Type"] == "Succeed" || state["Type"] == "Fail"
}

pub(super) const CONNECTED: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (machine, level) in contract.levels() {
            let states = &level["States"];
            let start = level["StartAt"].as_str().unwrap_or_default();
            let reached = reached(states, start, |_, _| true);
            let dangling = reached.iter().filter(|name| states[**name].is_null());
            broken.extend(dangling.map(|name| format!("{machine}: there is no state {name:?}, which is led to")));
            let names = states.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
            let idle = names.filter(|name| !reached.contains(name));
            broken.extend(idle.map(|name| format!("{machine}: nothing leads to {name}")));
        }
        for (machine, name, state) in contract.states() {
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

/// The steps from the fence to the pivot, in order.
fn steps(states: &Value) -> Vec<&str> {
    let next = |name: &str| states[name]["Next"].as_str();
    let first = UNDOES.first().map(|(step, _)| *step);
    std::iter::successors(first, |name| next(name)).take_while(|name| *name != PIVOT).take(100).collect()
}

fn undo_of(step: &str) -> Option<&'static str> {
    UNDOES.iter().find(|(done, _)| *done == step).map(|(_, undo)| *undo)
}

pub(super) const UNDOS_REVERSE_THE_STEPS: Rule = Rule {
    check: |contract| {
        let (states, _) = provisioning(contract);
        let steps = steps(states);
        let mut broken = Vec::new();
        let undone: Vec<&str> = steps.iter().copied().filter(|step| undo_of(step).is_some()).collect();
        if undone != UNDOES.iter().map(|(step, _)| *step).collect::<Vec<_>>() {
            broken
                .push(format!("the steps that make something go {undone:?}, and their undos are kept for {UNDOES:?}"));
        }
        let chain: Vec<&str> = UNDOES.iter().rev().map(|(_, undo)| *undo).chain([RELEASE]).collect();
        for pair in chain.windows(2) {
            let (undo, following) = (pair[0], pair[1]);
            let last = each(&states[undo]["Catch"]).last().unwrap_or(&Value::Null);
            if states[undo]["Next"] != following || last["Next"] != following {
                broken.push(format!("{undo} must lead to {following}, whether it succeeds or fails for good"));
            }
            if each(&states[undo]["Catch"]).iter().any(|clause| clause["ResultPath"] == "$.error") {
                broken.push(format!("{undo} must keep $.error, the reason that all are undone for"));
            }
        }
        let mut own = None;
        for step in steps {
            own = undo_of(step).or(own);
            let last = each(&states[step]["Catch"]).last().unwrap_or(&Value::Null);
            if last["Next"].as_str() != own || last["ResultPath"] != "$.error" {
                broken.push(format!(
                    "{step}: the last Catch must lead to {own:?} with $.error: it may have taken effect"
                ));
            }
        }
        for (asked, found) in [
            ("IsActive", &states["IsActive"]["Default"]),
            ("IntendToCompensate", &states["IntendToCompensate"]["Next"]),
        ] {
            if found != chain[0] {
                broken.push(format!("{asked} must lead to {}, where the whole chain begins", chain[0]));
            }
        }
        broken
    },
    breaches: &[
        ("a failed bucket that is left", |contract| {
            contract.state("CreateBucket")["Catch"][1]["Next"] = json!("RemoveIdentity");
        }),
        ("a failed bucket that only flags the tenant", |contract| {
            contract.state("CreateBucket")["Catch"][1]["Next"] = json!(FLAG);
        }),
        ("a failed verification that leaves the record", |contract| {
            contract.state("VerifyDnsRecord")["Catch"][1]["Next"] = json!("RemoveNamespace");
        }),
        ("undos in the order of the steps", |contract| {
            contract.state("RemoveBucket")["Next"] = json!("RemoveNamespace");
        }),
        ("an undo that ends the chain when it fails", |contract| {
            contract.state("RemoveBucket")["Catch"][1]["Next"] = json!(RELEASE);
        }),
        ("an undo that forgets why", |contract| {
            contract.state("RemoveBucket")["Catch"][1]["ResultPath"] = json!("$.error");
        }),
        ("an undo that never learns the reason", |contract| {
            contract.state("CreateBucket")["Catch"][1]["ResultPath"] = json!("$.reason");
        }),
        ("a compensation that begins in the middle", |contract| {
            contract.state("IntendToCompensate")["Next"] = json!("RemoveBucket");
        }),
        ("a step without an undo", |contract| contract.state("CreateIdentity")["Next"] = json!("CreateNamespace")),
    ],
};

pub(super) const FAILURES_GO_WHERE_THEY_BELONG: Rule = Rule {
    check: |contract| {
        let (states, _) = provisioning(contract);
        let mut broken = Vec::new();
        let after = reached(states, PIVOT, |_, exit| !exit.caught).into_iter().filter(|name| *name != PIVOT);
        let after =
            after.filter(|name| states[*name]["Type"] == "Task").map(|name| (name, FLAG, "it stays in service"));
        for (name, asked, why) in after.chain([
            (PIVOT, CONFIRM, "nobody knows yet on which side of the pivot the tenant is"),
            (CONFIRM, "ProvisioningInterrupted", "the registry itself could not be told"),
            (RELEASE, FLAG, "nobody knows what is left, and why all was undone stays the reason"),
            (FLAG, "ProvisioningInterrupted", "the registry itself could not be told"),
        ]) {
            let last = each(&states[name]["Catch"]).last().unwrap_or(&Value::Null);
            let path = if name == RELEASE { "$.error.release" } else { "$.error" };
            if last["Next"] != asked || last["ResultPath"] != path {
                broken.push(format!("{name}: the last Catch must lead to {asked} with {path}: {why}"));
            }
        }
        let succeeds = |name: &&str| states[*name]["End"] == true || states[*name]["Type"] == "Succeed";
        for handler in [RELEASE, FLAG] {
            let ends = reached(states, handler, |_, exit| !exit.caught);
            broken.extend(ends.iter().filter(|name| succeeds(name)).map(|name| {
                format!(
                    "{handler} leads to {name}, which succeeds: the execution must fail, so that the operator sees it"
                )
            }));
        }
        let next = &states[PIVOT]["Next"];
        if states[CONFIRM]["Next"] != "IsActive" || states["IsActive"]["Choices"][0]["Next"] != *next {
            broken.push(format!("{CONFIRM} must lead to {next} where the tenant is active"));
        }
        broken
    },
    breaches: &[
        ("a failed mail that takes the tenant out of service", |contract| {
            contract.state("SendWelcomeEmail")["Catch"][1]["Next"] = json!("RemoveConfig");
        }),
        ("an unanswered activation that is undone unseen", |contract| {
            contract.state(PIVOT)["Catch"][1]["Next"] = json!("RemoveConfig");
        }),
        ("an activation that took effect and is undone", |contract| {
            contract.state("IsActive")["Choices"][0]["Next"] = json!("RemoveConfig");
        }),
        ("a release that repeats itself", |contract| contract.state(RELEASE)["Catch"][1]["Next"] = json!(RELEASE)),
        ("a release that forgets why", |contract| {
            contract.state(RELEASE)["Catch"][1]["ResultPath"] = json!("$.error");
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
