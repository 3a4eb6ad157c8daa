//! What acts on a tenant in service: the fence first and given back, failures that flag the tenant and undo nothing.

use serde_json::{Value, json};

use super::flow::{is_end, reached};
use super::template::each;
use super::{Contract, Rule};

const MACHINE: &str = "change-plan";
/// What takes the tenant for the execution.
const FENCE: &str = "BeginPlanChange";
/// What gives it back.
const CLOSE: &str = "ClosePlanChange";
/// Where a failure leads that happens in between.
const FLAG: &str = "FlagTenant";

/// The states from the fence to where it is given back, in order.
fn held(states: &Value) -> Vec<&str> {
    let next = |name: &&str| states[*name]["Next"].as_str();
    let mut held: Vec<&str> = std::iter::successors(states[FENCE]["Next"].as_str(), next).take(100).collect();
    let closed = held.iter().position(|name| *name == CLOSE);
    held.truncate(closed.map_or(0, |closed| closed + 1));
    held
}

fn last_catch(state: &Value) -> &Value {
    each(&state["Catch"]).last().unwrap_or(&Value::Null)
}

pub(super) const FAILURES_FLAG_AND_UNDO_NOTHING: Rule = Rule {
    check: |contract| {
        let definition = &contract.machines[MACHINE];
        let states = &definition["States"];
        let end = |next: &Value, kind: &str| next.as_str().is_some_and(|next| states[next]["Type"] == kind);
        let mut broken = Vec::new();
        if definition["StartAt"] != FENCE {
            broken.push(format!("{MACHINE} must start at {FENCE}: nothing may act before it"));
        }
        let refused = last_catch(&states[FENCE]);
        if !end(&refused["Next"], "Fail") || refused["ResultPath"] != "$" {
            broken.push(format!("{FENCE}: the last Catch must end the execution, and touch nothing"));
        }
        let held = held(states);
        if held.is_empty() {
            broken.push(format!("{FENCE} never leads to {CLOSE}: the tenant is not given back"));
        }
        for name in &held {
            let last = last_catch(&states[*name]);
            if last["Next"] != FLAG || last["ResultPath"] != "$.error" {
                broken.push(format!(
                    "{name}: the last Catch must lead to {FLAG} with $.error: the tenant stays in service"
                ));
            }
        }
        for name in held.iter().chain([&FENCE, &FLAG]) {
            let first = &states[*name]["Catch"][0];
            if first["ErrorEquals"] != json!(["Superseded"]) || !end(&first["Next"], "Succeed") {
                broken.push(format!(
                    "{name}: the first Catch must be Superseded alone, and lead to a state that succeeds"
                ));
            }
        }
        if !end(&states[FLAG]["Next"], "Fail") || !end(&last_catch(&states[FLAG])["Next"], "Fail") {
            broken.push(format!("{FLAG} must lead to ends that fail, so that the operator sees it"));
        }
        let after = reached(states, CLOSE, |_, exit| !exit.caught).into_iter().filter(|name| *name != CLOSE);
        for name in after.filter(|name| states[*name]["Type"] == "Task") {
            let last = last_catch(&states[name])["Next"].as_str().unwrap_or_default();
            if !is_end(&states[last]) {
                broken.push(format!("{name}: a failure leads to {last}, and the tenant is not ours any more"));
            }
        }
        broken
    },
    breaches: &[
        ("a step before the fence", |contract| {
            contract.machines.get_mut(MACHINE).expect("the machine")["StartAt"] = json!("ApplyPlanConfig");
        }),
        ("a refused change that flags the tenant", |contract| state(contract, FENCE)["Catch"][1]["Next"] = json!(FLAG)),
        ("a tenant that is never given back", |contract| {
            state(contract, "ReportPlanFit")["Next"] = json!("PublishEvents");
        }),
        ("a failure that holds the tenant for ever", |contract| {
            state(contract, "ApplyPlanConfig")["Catch"][1]["Next"] = json!("OperatorNeeded");
        }),
        ("a step that goes on though another execution has the tenant", |contract| {
            state(contract, "ApplyBucketLifecycle")["Catch"].as_array_mut().expect("a list").remove(0);
        }),
        ("a second change that fails loudly", |contract| {
            state(contract, FENCE)["Catch"][0]["Next"] = json!("ChangeRefused");
        }),
        ("a flag that nobody sees", |contract| state(contract, FLAG)["Next"] = json!("PlanChanged")),
        ("another execution's tenant that is flagged", |contract| {
            state(contract, "PublishEvents")["Catch"][0]["Next"] = json!(FLAG);
        }),
    ],
};

/// For breaches: a state of this machine.
fn state<'a>(contract: &'a mut Contract, name: &str) -> &'a mut Value {
    &mut contract.machines.get_mut(MACHINE).expect("the machine exists")["States"][name]
}
