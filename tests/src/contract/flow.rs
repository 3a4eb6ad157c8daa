//! Where a machine's states lead: nothing hangs, failures go to the right side of the fence and of the pivot, and what is
//! known of the owner is dropped.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::template::each;
use super::{Contract, Rule};

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

/// A way out of a state.
struct Exit<'a> {
    to: &'a str,
    /// Taken on a failure.
    caught: bool,
    /// Where the result, or the failure, is put in the state's input; `$` replaces it.
    result_path: Option<&'a str>,
}

fn exits(state: &Value) -> Vec<Exit<'_>> {
    let path = |clause: &'_ Value| -> Option<String> { clause["ResultPath"].as_str().map(str::to_owned) };
    let result_path = |clause: &'_ Value| match clause.get("ResultPath") {
        None => Some("$"),
        Some(Value::Null) => None,
        Some(_) if path(clause).as_deref() == Some("$") => Some("$"),
        Some(_) => Some("$.…"),
    };
    let exit = |clause: &'_ Value, caught| (clause["Next"].as_str().map(str::to_owned), result_path(clause), caught);
    let _ = exit;
    let mut exits = Vec::new();
    for (clause, caught) in std::iter::once((state, false)).chain(each(&state["Catch"]).iter().map(|clause| (clause, true))) {
        if let Some(to) = clause["Next"].as_str() {
            exits.push(Exit { to, caught, result_path: result_path(clause) });
        }
    }
    let choices = each(&state["Choices"]).iter().filter_map(|choice| choice["Next"].as_str());
    exits.extend(choices.chain(state["Default"].as_str()).map(|to| Exit { to, caught: false, result_path: None }));
    exits
}
