//! Leaving and coming back: who may act, what an execution that waited for a month still relies on, and on which side of the
//! point of no return every state is.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::flow::{exits, is_end, reached};
use super::template::each;
use super::{Contract, Rule, remove};

const OFFBOARD: &str = "offboard-tenant";
const DELETE: &str = "delete-tenant";
const REACTIVATE: &str = "reactivate-tenant";
/// What takes the tenant in each machine.
const FENCES: &[(&str, &str)] =
    &[(OFFBOARD, "BeginOffboarding"), (REACTIVATE, "CancelHold"), (DELETE, "BeginDeletion")];
/// The steps that give a tenant back what its hold had withdrawn, in order.
const GIVEN_BACK: &[&str] = &["StopWaiting", "ThawTenant", "ResumeSubscription", "VerifyTenant"];
/// The functions that bring a tenant back into service.
const BACK: &[&str] =
    &["CancelHold", "StopWaiting", "ThawTenant", "ResumeSubscription", "VerifyTenant", "ReactivateTenant"];

fn states<'a>(contract: &'a Contract, machine: &str) -> &'a Value {
    &contract.machine(machine)["States"]
}

fn tasks<'a>(states: &'a Value, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    names.into_iter().filter(|name| states[*name]["Type"] == "Task").collect()
}

pub(super) const BEGINS_WITH_THE_FENCE: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (machine, fence) in FENCES {
            let states = states(contract, machine);
            let start = contract.machine(machine)["StartAt"].as_str().unwrap_or_default();
            let before = reached(states, start, |name, _| name != *fence);
            // Lifting a reason where nothing is held is one conditional transaction.
            let simple = ["ReactivateTenant", "PublishEvents"];
            let acts = tasks(states, before.iter().copied()).into_iter();
            let acts = acts.filter(|name| name != fence && !(*machine == REACTIVATE && simple.contains(name)));
            broken.extend(acts.map(|name| format!("{machine}: {name} is reached without {fence}")));
            let caught = exits(&states[*fence]).into_iter().filter(|exit| exit.caught && !is_end(&states[exit.to]));
            broken.extend(caught.map(|exit| {
                format!(
                    "{machine}: a failure of {fence} leads to {}; it must end the execution, and touch nothing",
                    exit.to
                )
            }));
        }
        broken
    },
    breaches: &[
        ("a freeze without the fence", |contract| {
            contract.machines.get_mut(OFFBOARD).expect("the machine")["StartAt"] = json!("FreezeTenant");
        }),
        ("a refused departure that flags the tenant", |contract| {
            contract.state_of(OFFBOARD, "BeginOffboarding")["Catch"][1]["Next"] = json!("FlagTenant");
        }),
        ("a thaw without the fence", |contract| {
            contract.state_of(REACTIVATE, "RouteReactivation")["Choices"][0]["Next"] = json!("ThawTenant");
        }),
    ],
};

pub(super) const SUPERSEDED_ENDS_QUIETLY: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (machine, fence) in FENCES {
            let states = states(contract, machine);
            for name in reached(states, fence, |_, _| true) {
                let calls =
                    states[name]["Type"] == "Map" || states[name]["Resource"] == "arn:aws:states:::lambda:invoke";
                // What only lifts a reason, or tells, acts under no fence.
                let acts = calls && !(*machine == REACTIVATE && ["ReactivateTenant", "PublishEvents"].contains(&name));
                let first = &states[name]["Catch"][0];
                let quiet = first["ErrorEquals"] == json!(["Superseded"])
                    && first["Next"].as_str().is_some_and(|next| states[next]["Type"] == "Succeed");
                if acts && !quiet {
                    broken.push(format!("{machine}: {name}: the first Catch must be Superseded alone, and succeed"));
                }
            }
        }
        broken
    },
    breaches: &[
        ("a freeze that fails though the tenant came back", |contract| {
            contract.state_of(OFFBOARD, "FreezeTenant")["Catch"].as_array_mut().expect("a list").remove(0);
        }),
        ("a thaw that flags though another has the tenant", |contract| {
            contract.state_of(REACTIVATE, "ThawTenant")["Catch"][0]["Next"] = json!("FlagTenant");
        }),
    ],
};

pub(super) const THE_LONG_WAIT_IS_KEPT: Rule = Rule {
    check: |contract| {
        let states = states(contract, OFFBOARD);
        let mut broken = Vec::new();
        if states["WaitForHold"]["Type"] != "Wait" || states["WaitForHold"]["TimestampPath"] != "$.expires_at" {
            broken.push("WaitForHold must wait until $.expires_at".to_owned());
        }
        let after = tasks(states, reached(states, "WaitForHold", |_, _| true));
        if after.iter().copied().collect::<BTreeSet<_>>() != BTreeSet::from(["CheckHold", "DeleteTenant"]) {
            broken.push(format!(
                "after the wait {after:?} are called; an execution that began a month ago knows no others"
            ));
        }
        // What an execution of an older definition sends, and what it reads of the answer: never to be changed.
        let check = json!({
            "FunctionName": "${CheckHoldFunction}",
            "Payload": {"tenant_id.$": "$.tenant_id", "execution.$": "$$.Execution.Id"},
        });
        let answer = json!({
            "tenant_id.$": "$.Payload.tenant_id", "decision.$": "$.Payload.decision", "expires_at.$": "$.Payload.expires_at",
        });
        let delete = json!({"StateMachineArn": "${DeleteTenantMachine}", "Input": {"tenant_id.$": "$.tenant_id"}});
        for (name, key, kept) in [
            ("CheckHold", "Parameters", check),
            ("CheckHold", "ResultSelector", answer),
            ("DeleteTenant", "Parameters", delete),
        ] {
            if states[name][key] != kept {
                broken.push(format!("{name}: {key} must stay {kept}: executions that wait were started with it"));
            }
        }
        let decisions: Vec<_> =
            each(&states["DecideOnHold"]["Choices"]).iter().map(|c| (&c["StringEquals"], &c["Next"])).collect();
        if decisions != [(&json!("delete"), &json!("DeleteTenant")), (&json!("wait"), &json!("WaitForHold"))] {
            broken.push(format!("DecideOnHold must know delete and wait, and let all else be: {decisions:?}"));
        }
        let name = &contract.template["Resources"]["CheckHoldFunction"]["Properties"]["FunctionName"];
        if *name != json!({"Fn::Sub": "${Prefix}check-hold"}) {
            broken.push(format!("check-hold must keep its name, by which waiting executions call it: {name}"));
        }
        let versioned = contract
            .resources("AWS::Serverless::Function")
            .filter(|(_, function)| !function["Properties"]["AutoPublishAlias"].is_null());
        broken.extend(
            versioned.map(|(id, _)| format!("{id} is versioned: a waiting execution would call an old version")),
        );
        broken
    },
    breaches: &[
        ("another step after the wait", |contract| {
            contract.state_of(OFFBOARD, "CheckHold")["Next"] = json!("NotifyOwner");
        }),
        ("a question with more in it", |contract| {
            contract.state_of(OFFBOARD, "CheckHold")["Parameters"]["Payload"]["hold.$"] = json!("$.hold");
        }),
        ("an answer that older executions do not read", |contract| {
            remove(&mut contract.state_of(OFFBOARD, "CheckHold")["ResultSelector"], "expires_at.$");
        }),
        ("a deletion with another input", |contract| {
            contract.state_of(OFFBOARD, "DeleteTenant")["Parameters"]["Input"] = json!({"slug.$": "$.slug"});
        }),
        ("a function that is called by another name", |contract| {
            contract.properties("CheckHoldFunction")["FunctionName"] = json!({"Fn::Sub": "${Prefix}look-at-hold"});
        }),
        ("a wait that is not the hold's", |contract| {
            contract.state_of(OFFBOARD, "WaitForHold")["TimestampPath"] = json!("$.ends");
        }),
    ],
};

pub(super) const NOTHING_LEADS_BACK: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        let offboard = states(contract, OFFBOARD);
        let after = reached(offboard, "DeleteTenant", |_, _| true).into_iter();
        let after = after.filter(|name| *name != "DeleteTenant" && !is_end(&offboard[*name]));
        broken.extend(after.map(|name| format!("{OFFBOARD}: {name} follows the deletion's start; nothing may")));
        let delete = states(contract, DELETE);
        for name in delete.as_object().into_iter().flatten().map(|(name, _)| name.as_str()) {
            if BACK.contains(&name) || delete[name]["Resource"] == "arn:aws:states:::states:startExecution" {
                broken.push(format!("{DELETE}: {name} would bring back a tenant that is half deleted"));
            }
        }
        broken
    },
    breaches: &[
        ("a deletion whose start is waited for again", |contract| {
            contract.state_of(OFFBOARD, "DeleteTenant")["Catch"][0]["Next"] = json!("WaitForHold");
        }),
        ("a deletion that thaws", |contract| {
            let thaw = contract.machine(REACTIVATE)["States"]["ThawTenant"].clone();
            contract.machines.get_mut(DELETE).expect("the machine")["States"]["ThawTenant"] = thaw;
        }),
    ],
};

pub(super) const IN_SERVICE_LAST: Rule = Rule {
    check: |contract| {
        let states = states(contract, REACTIVATE);
        let mut broken = Vec::new();
        for pair in GIVEN_BACK.windows(2) {
            if states[pair[0]]["Next"] != pair[1] {
                broken.push(format!("{} must lead to {}", pair[0], pair[1]));
            }
        }
        for name in GIVEN_BACK {
            let last = each(&states[*name]["Catch"]).last().unwrap_or(&Value::Null);
            if last["Next"] != "FlagTenant" || last["ResultPath"] != "$.error" {
                broken.push(format!(
                    "{name}: the last Catch must lead to FlagTenant with $.error: the tenant is half back"
                ));
            }
            // Whatever happens, only the last of them leads to service.
            let skips = exits(&states[*name]).into_iter().filter(|exit| *name != "VerifyTenant" || exit.caught);
            let skips = skips.filter(|exit| ["LiftOffboarding", "ReactivateTenant"].contains(&exit.to));
            broken.extend(skips.map(|exit| format!("{name} leads to {} before all is seen to be given back", exit.to)));
        }
        let (verified, lifted) = (&states["VerifyTenant"]["Next"], &states["LiftOffboarding"]["Next"]);
        if verified != "LiftOffboarding" || lifted != "ReactivateTenant" {
            broken.push("VerifyTenant must lead to LiftOffboarding, and that to ReactivateTenant".to_owned());
        }
        let flagged = reached(states, "FlagTenant", |_, exit| !exit.caught);
        if flagged.iter().any(|name| states[*name]["Type"] == "Succeed") {
            broken.push("FlagTenant must lead to a failure, so that the operator sees it".to_owned());
        }
        broken
    },
    breaches: &[
        ("a tenant in service that cannot write", |contract| {
            contract.state_of(REACTIVATE, "StopWaiting")["Next"] = json!("LiftOffboarding");
        }),
        ("a failed thaw that is passed over", |contract| {
            contract.state_of(REACTIVATE, "ThawTenant")["Catch"][1]["Next"] = json!("ResumeSubscription");
        }),
        ("a return that nobody looks at", |contract| {
            contract.state_of(REACTIVATE, "ResumeSubscription")["Next"] = json!("LiftOffboarding");
        }),
        ("a half return that looks like success", |contract| {
            contract.state_of(REACTIVATE, "FlagTenant")["Next"] = json!("Reactivated");
        }),
    ],
};
