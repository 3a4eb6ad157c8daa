//! Who gets into a tenant's bucket: its policy shuts everybody out but the tenant and a list of our roles, which several functions
//! write. Two lists would undo each other, and shut out who is on one of them only.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::Rule;
use super::permissions::statements;
use super::template::each;

const FUNCTION: &str = "AWS::Serverless::Function";
const LIST: &str = "STACK_ROLE_ARNS";

/// What a function is told that the policy admits: the logical ids of roles.
fn admitted(function: &Value) -> Option<BTreeSet<&str>> {
    let list = function["Properties"]["Environment"]["Variables"][LIST]["Fn::Sub"].as_str()?;
    Some(list.split(',').map(|role| role.trim_start_matches("${").trim_end_matches(".Arn}")).collect())
}

fn is_bucket(resource: &Value) -> bool {
    resource["Fn::Sub"].as_str().is_some_and(|arn| arn.contains(":s3:::tenant-*"))
}

pub(super) const ADMIT_ONE_LIST: Rule = Rule {
    check: |contract| {
        let enter: BTreeSet<&str> = statements(contract)
            .filter(|(_, statement)| {
                statement["Effect"] == "Allow" && each(&statement["Resource"]).iter().any(is_bucket)
            })
            .map(|(role, _)| role)
            .collect();
        let lists: Vec<_> =
            contract.resources(FUNCTION).filter_map(|(id, function)| Some((id, admitted(function)?))).collect();
        let mut broken = Vec::new();
        if lists.is_empty() {
            broken.push(format!("no function is given {LIST}"));
        }
        for (id, list) in lists {
            let (missing, idle): (Vec<_>, Vec<_>) =
                (enter.difference(&list).collect(), list.difference(&enter).collect());
            if !missing.is_empty() || !idle.is_empty() {
                broken.push(format!("{id} writes policies that shut out {missing:?}, and admit {idle:?} for nothing"));
            }
        }
        broken
    },
    breaches: &[
        ("a writer with a list of its own", |contract| {
            let variables = &mut contract.properties("ThawTenantFunction")["Environment"]["Variables"];
            variables[LIST] = json!({"Fn::Sub": "${CreateBucketFunctionRole.Arn},${ThawTenantFunctionRole.Arn}"});
        }),
        ("a function that enters, and is on no list", |contract| {
            let policies = contract.properties("SendWelcomeEmailFunctionRole")["Policies"].as_array_mut();
            let bucket = json!({"Fn::Sub": "arn:${AWS::Partition}:s3:::tenant-*"});
            policies.expect("a list")[0]["PolicyDocument"]["Statement"] =
                json!([{"Effect": "Allow", "Action": "s3:ListBucket", "Resource": bucket}]);
        }),
    ],
};
