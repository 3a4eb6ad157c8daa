//! What each state keeps to by itself: names, retries, catches, payloads, timeouts.

use std::time::Duration;

use serde_json::{Value, json};
use tenantry_core::error::StepError;
use tenantry_core::export::PART_TIMEOUT;
use tenantry_core::steps::takeover::FUNCTION_TIMEOUT;
use tenantry_core::{aws, postgres};

use super::template::{each, effective};
use super::{Rule, function_of, kebab, remove};

/// Error names that AWS itself gives to what a Task failed on.
const AWS_ERRORS: &[&str] = &["States.ALL", "States.Timeout", "States.TaskFailed", "States.Permissions", THROTTLED];
/// What Step Functions calls it when a function has all the instances that it may have: it was not called at all.
const THROTTLED: &str = "Lambda.TooManyRequestsException";
/// The one error of ours that may pass by itself.
const TRANSIENT: &str = "Transient";

pub(super) const COMMENTED: Rule = Rule {
    check: |contract| {
        let machines = contract.machines.iter().map(|(machine, definition)| (machine.as_str(), "itself", definition));
        machines
            .chain(contract.states())
            .filter(|(_, _, state)| state["Comment"].as_str().is_none_or(|comment| comment.len() < 10))
            .map(|(machine, name, _)| format!("{machine}: {name} has no Comment: the console is the operator's screen"))
            .collect()
    },
    breaches: &[("a state without a Comment", |contract| remove(contract.state("CreateBucket"), "Comment"))],
};

pub(super) const FUNCTIONS_EXIST: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (machine, name, task) in contract.tasks() {
            let called = task["Parameters"]["FunctionName"].as_str().unwrap_or_default();
            let id = function_of(name);
            if task["Resource"] != "arn:aws:states:::lambda:invoke" || called != format!("${{{id}}}") {
                broken.push(format!("{machine}: {name} must invoke ${{{id}}}, not {called:?}"));
                continue;
            }
            let function = &contract.template["Resources"][&id];
            let filled_in = contract.resources("AWS::Serverless::StateMachine").any(|(_, machine)| {
                machine["Properties"]["DefinitionSubstitutions"][&id] == json!({"Fn::GetAtt": format!("{id}.Arn")})
            });
            if function["Type"] != "AWS::Serverless::Function" || !filled_in {
                broken.push(format!("{machine}: {name}: {id} is not a function of the template, or not substituted"));
            }
            if !contract.binaries.contains(&kebab(&id)) {
                broken.push(format!("{machine}: {name} has no binary {}", kebab(&id)));
            }
        }
        broken
    },
    breaches: &[
        ("a function that is not in the template", |contract| {
            remove(&mut contract.template["Resources"], "CreateBucketFunction");
        }),
        ("a placeholder that is not filled in", |contract| {
            remove(
                &mut contract.properties("ProvisionTenantMachine")["DefinitionSubstitutions"],
                "CreateBucketFunction",
            );
        }),
        ("a function without a binary", |contract| _ = contract.binaries.remove("create-bucket")),
        ("a state that calls another's function", |contract| {
            contract.state("CreateBucket")["Parameters"]["FunctionName"] = json!("${CreateNamespaceFunction}");
        }),
    ],
};

pub(super) const MACHINES_EXIST: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (machine, name, state) in contract.starts() {
            let named = state["Parameters"]["StateMachineArn"].as_str().unwrap_or_default();
            let id = named.trim_start_matches("${").trim_end_matches('}');
            let filled_in = contract
                .resources("AWS::Serverless::StateMachine")
                .any(|(_, machine)| machine["Properties"]["DefinitionSubstitutions"][id] == json!({ "Ref": id }));
            if contract.template["Resources"][id]["Type"] != "AWS::Serverless::StateMachine" || !filled_in {
                broken.push(format!("{machine}: {name}: {named} is not a machine of the template, or not substituted"));
            }
            let input = state["Parameters"]["Input"].as_object();
            let small = input.into_iter().flatten().all(|(_, value)| {
                ["$.tenant_id", "$.plan", "$.reason"].iter().any(|allowed| value == allowed)
                    || !value.to_string().contains('$')
            });
            if !small {
                broken.push(format!("{machine}: {name} hands on more than ids and decisions"));
            }
            let caught = each(&state["Catch"]).last().is_some_and(|last| last["ErrorEquals"] == json!(["States.ALL"]));
            if !caught || !state["TimeoutSeconds"].is_u64() {
                broken.push(format!("{machine}: {name} must have a timeout, and a last Catch of States.ALL alone"));
            }
        }
        broken
    },
    breaches: &[
        ("a machine that is not in the template", |contract| {
            remove(&mut contract.template["Resources"], "DeleteTenantMachine");
        }),
        ("a start that nobody catches", |contract| {
            let machine = contract.machines.get_mut("offboard-tenant").expect("the machine exists");
            remove(&mut machine["States"]["DeleteTenant"], "Catch");
        }),
    ],
};

pub(super) const ERRORS_ARE_KNOWN: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (machine, name, state) in contract.states() {
            let clauses = each(&state["Retry"]).iter().chain(each(&state["Catch"]));
            for error in clauses.flat_map(|clause| each(&clause["ErrorEquals"])).filter_map(Value::as_str) {
                if !StepError::PERMANENT.contains(&error)
                    && ![TRANSIENT, StepError::NOT_READY].contains(&error)
                    && !AWS_ERRORS.contains(&error)
                {
                    broken.push(format!("{machine}: {name} matches {error}, which no function answers"));
                }
            }
        }
        broken
    },
    breaches: &[
        ("a misspelt error in a Catch", |contract| {
            contract.state("CreateBucket")["Catch"][0]["ErrorEquals"] = json!(["Supersedes"]);
        }),
        ("a misspelt error in a Retry", |contract| {
            contract.state("CreateBucket")["Retry"][0]["ErrorEquals"][0] = json!("ForeignBucket");
        }),
    ],
};

/// The states that wait for an RDS instance, which takes 5 to 10 minutes, those that go on call by call through a bucket or the
/// parts of an export, and the one that waits for the end of a tenant's provisioning.
const WAITING: &[&str] = &["CreateDatabase", "RemoveDatabase", "PlanExport", "FinishExport", "BeginOffboarding"];
/// The state whose function may outlast a takeover: what it writes counts only where it still may act, which it looks at when
/// it has written it.
const OUTLASTING: (&str, Duration) = ("ExportPart", PART_TIMEOUT);

/// Whether a clause retries an error alone, for 15 minutes at least, jitter (half a pause, on average) counted.
fn waits_for(error: &str, clause: &Value) -> bool {
    let figure = |key: &str| clause[key].as_f64().unwrap_or_default();
    let (mut pause, mut sum) = (figure("IntervalSeconds"), 0.0);
    for _ in 0..clause["MaxAttempts"].as_u64().unwrap_or_default() {
        sum += pause.min(figure("MaxDelaySeconds"));
        pause *= figure("BackoffRate");
    }
    clause["ErrorEquals"] == json!([error]) && sum / 2.0 >= 900.0
}

pub(super) const PERMANENT_ERRORS_ARE_NOT_RETRIED: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (machine, name, task) in contract.tasks() {
            let (permanent, rest) = match each(&task["Retry"]) {
                [permanent, throttled, rest] if !WAITING.contains(&name) && waits_for(THROTTLED, throttled) => {
                    (permanent, rest)
                }
                [permanent, waiting, throttled, rest]
                    if WAITING.contains(&name)
                        && waits_for(StepError::NOT_READY, waiting)
                        && waits_for(THROTTLED, throttled) =>
                {
                    (permanent, rest)
                }
                _ => {
                    broken.push(format!(
                        "{machine}: {name} must have two Retry clauses, and between them one that waits 15 minutes at \
                         least for an instance of the function, and before that one that does so for what is not ready, \
                         if it is one of {WAITING:?}"
                    ));
                    continue;
                }
            };
            if permanent["ErrorEquals"] != json!(StepError::PERMANENT) || permanent["MaxAttempts"] != 0 {
                broken.push(format!(
                    "{machine}: {name}: the first Retry must list StepError::PERMANENT, with MaxAttempts 0"
                ));
            }
            let attempts = rest["MaxAttempts"].as_u64().unwrap_or_default();
            let backs_off = rest["BackoffRate"].as_f64().is_some_and(|rate| rate > 1.0)
                && rest["IntervalSeconds"].as_u64().is_some_and(|seconds| seconds > 0)
                && rest["MaxDelaySeconds"].as_u64().is_some_and(|seconds| seconds <= 60)
                && rest["JitterStrategy"] == "FULL";
            if rest["ErrorEquals"] != json!(["States.ALL"]) || !(1..=20).contains(&attempts) || !backs_off {
                broken.push(format!(
                    "{machine}: {name}: the last Retry must be States.ALL alone, 1 to 20 times, with backoff, a \
                     bound of 60 s and full jitter"
                ));
            }
        }
        broken
    },
    breaches: &[
        ("a permanent error that is left out", |contract| {
            let errors = contract.state("CreateBucket")["Retry"][0]["ErrorEquals"].as_array_mut();
            errors.expect("a list").pop();
        }),
        ("a permanent error that is retried", |contract| {
            contract.state("CreateBucket")["Retry"][0]["MaxAttempts"] = json!(1);
        }),
        ("an instance that is not waited for", |contract| {
            contract.state("CreateDatabase")["Retry"].as_array_mut().expect("a list").remove(1);
        }),
        ("a function that is given up early", |contract| {
            contract.state("CreateBucket")["Retry"][1]["MaxAttempts"] = json!(7);
        }),
        ("a function that is not waited for", |contract| {
            contract.state("CreateBucket")["Retry"].as_array_mut().expect("a list").remove(1);
        }),
        ("an instance that is given up early", |contract| {
            contract.state("CreateDatabase")["Retry"][1]["MaxAttempts"] = json!(10);
        }),
        ("retries without jitter", |contract| {
            remove(&mut contract.state("CreateBucket")["Retry"][2], "JitterStrategy");
        }),
        ("retries without backoff", |contract| contract.state("CreateBucket")["Retry"][2]["BackoffRate"] = json!(1)),
        ("retries of Lambda's errors alone", |contract| {
            contract.state("CreateBucket")["Retry"][2]["ErrorEquals"] = json!(["Transient"]);
        }),
        ("retries in the wrong order", |contract| {
            contract.state("CreateBucket")["Retry"].as_array_mut().expect("a list").reverse();
        }),
    ],
};

pub(super) const EVERYTHING_IS_CAUGHT: Rule = Rule {
    check: |contract| {
        // What runs inside a Map is caught by the Map.
        let within = |machine: &str, name: &str| contract.machines[machine]["States"][name].is_null();
        let maps = contract.states().filter(|(_, _, state)| state["Type"] == "Map");
        let tasks = contract.tasks().filter(|(machine, name, _)| !within(machine, name));
        let uncaught = tasks.chain(maps).filter(|(_, _, task)| {
            each(&task["Catch"]).last().is_none_or(|last| last["ErrorEquals"] != json!(["States.ALL"]))
        });
        uncaught
            .map(|(machine, name, _)| format!("{machine}: {name}: the last Catch must be States.ALL alone"))
            .collect()
    },
    breaches: &[
        ("a Task without a Catch", |contract| remove(contract.state("CreateBucket"), "Catch")),
        ("a Catch that misses timeouts", |contract| {
            let catch = contract.state("CreateBucket")["Catch"].as_array_mut().expect("a list");
            catch.last_mut().expect("a Catch")["ErrorEquals"] = json!(["States.TaskFailed"]);
        }),
    ],
};

pub(super) const PAYLOADS_ARE_SMALL: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (machine, name, task) in contract.tasks() {
            let payload = &task["Parameters"]["Payload"];
            if payload["execution.$"] != "$$.Execution.Id" {
                broken.push(format!("{machine}: {name} must be told the execution"));
            }
            for (key, value) in payload.as_object().into_iter().flatten() {
                let expected = match key.as_str() {
                    "execution.$" => "$$.Execution.Id",
                    "tenant_id.$" => "$.tenant_id",
                    "intent.$" => "$.intent",
                    "error.$" => "$.error",
                    // What is not registered yet has no id.
                    "request.$" if matches!(name, "ValidateRequest" | "RegisterTenant") => "$",
                    // Which tenant, for which reason, and who wants it.
                    "request.$" if matches!(name, "SuspendTenant" | "ReactivateTenant") => "$",
                    // Which tenant, which plan, and who wants it.
                    "request.$" if name == "BeginPlanChange" => "$",
                    // Billing's ids of what happened.
                    "request.$" if name == "FollowBilling" => "$",
                    "request.$" if matches!(name, "BeginOffboarding" | "BeginDeletion" | "CancelHold") => "$",
                    "part.$" if name == "ExportPart" => "$.part",
                    "payment.$" if name == "ConfirmPayment" => "$",
                    _ => "nothing",
                };
                if value != expected {
                    broken
                        .push(format!("{machine}: {name}: {key} is {value} in the payload, which may hold {expected}"));
                }
            }
        }
        broken
    },
    breaches: &[
        ("a payload that is the whole state", |contract| {
            contract.state("CreateBucket")["Parameters"]["Payload"]["state.$"] = json!("$");
        }),
        ("a step that is not told who acts", |contract| {
            remove(&mut contract.state("CreateBucket")["Parameters"]["Payload"], "execution.$");
        }),
    ],
};

pub(super) const TIMEOUTS_NEST: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        let inner = aws::OPERATION_TIMEOUT.max(postgres::STATEMENT_TIMEOUT);
        for (machine, definition) in &contract.machines {
            if !definition["TimeoutSeconds"].is_null() {
                broken.push(format!("{machine} has a TimeoutSeconds of its own, which nothing can catch"));
            }
        }
        for (machine, name, task) in contract.tasks() {
            let function = &contract.template["Resources"][function_of(name)];
            let function = effective(contract, function, "Timeout").as_u64().map(Duration::from_secs);
            let patience = task["TimeoutSeconds"].as_u64().map(Duration::from_secs);
            match (function, patience) {
                (Some(function), Some(patience)) if inner < function && function < patience => {
                    let bound = if name == OUTLASTING.0 { OUTLASTING.1 } else { FUNCTION_TIMEOUT };
                    if function != bound {
                        broken.push(format!("{name}Function: Timeout must be {bound:?}, which takeovers count on"));
                    }
                }
                _ => broken.push(format!(
                    "{machine}: {name}: {inner:?} (clients, statements) < {function:?} (function) < {patience:?} \
                     (Task) must hold: a Task that times out does not stop its Lambda"
                )),
            }
        }
        broken
    },
    breaches: &[
        ("a machine's own timeout", |contract| {
            contract.machines.get_mut("provision-tenant").expect("the machine")["TimeoutSeconds"] = json!(3600);
        }),
        ("a Task without a timeout", |contract| remove(contract.state("CreateBucket"), "TimeoutSeconds")),
        ("a Task that gives up before its function", |contract| {
            contract.state("CreateBucket")["TimeoutSeconds"] = json!(60);
        }),
        ("a function that runs longer than its Task", |contract| {
            contract.properties("CreateBucketFunction")["Timeout"] = json!(90);
        }),
        ("a part that is given more time than its statements", |contract| {
            contract.properties("ExportPartFunction")["Timeout"] = json!(300);
        }),
        ("a function that ends before its client gives up", |contract| {
            contract.template["Globals"]["Function"]["Timeout"] = json!(20);
        }),
    ],
};
