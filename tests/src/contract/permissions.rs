//! Who may do what: a role for each function, nothing open-ended without a reason, tenants' roles bounded, machines
//! calling their own functions. IAM is not enforced by the local stack, so the template is all there is to look at.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::template::{each, taken, target};
use super::{Contract, Rule, function_of, remove};

const FUNCTION: &str = "AWS::Serverless::Function";
const MACHINE: &str = "AWS::Serverless::StateMachine";
const ROLE: &str = "AWS::IAM::Role";
const POLICY: &str = "AWS::IAM::ManagedPolicy";
/// What every function's role has.
const BASICS: &str = "FunctionBasics";
/// What no tenant's role may exceed.
const BOUNDARY: &str = "TenantBoundary";

/// Actions on what has no name of its own, or none that is known before; all others name their resources.
const NAMELESS: &[&str] = &[
    // Figures of the account as a whole.
    "iam:GetAccountSummary",
    // Listings of an account.
    "iam:ListRoles",
    "s3:ListAllMyBuckets",
    "secretsmanager:ListSecrets",
    "sqs:ListQueues",
    // X-Ray and the delivery of Step Functions' logs have no resource types (Service Authorization Reference).
    "xray:",
    "logs:CreateLogDelivery",
    "logs:DeleteLogDelivery",
    "logs:DescribeLogGroups",
    "logs:DescribeResourcePolicies",
    "logs:GetLogDelivery",
    "logs:ListLogDeliveries",
    "logs:PutResourcePolicy",
    "logs:UpdateLogDelivery",
    // Lambda makes a function's network interfaces with the function's role.
    "ec2:AssignPrivateIpAddresses",
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:UnassignPrivateIpAddresses",
];

/// How a resource may be open-ended: what stands before its first wildcard.
const OPEN_ENDED: &[&str] = &[
    // A tenant's own things, which are named for its id or slug.
    ":role/tenant-",
    ":s3:::tenant-",
    ":s3:::tenant-${!aws:PrincipalTag/tenantry-tenant-id}-",
    ":secret:tenant/",
    ":sqs:${AWS::Region}:${AWS::AccountId}:tenant-",
    ":db:tenant-",
    // Counted; and what an instance is made with by default.
    ":db:",
    ":subgrp:",
    ":pg:default.",
    ":og:default:",
    // Snapshots that somebody made by hand are named by hand; only those of an instance of a tenant's are listed.
    ":snapshot:",
    // What exports are made of.
    "${ExportsBucket.Arn}/exports/",
    // A row of database_servers may name any secret under this.
    ":secret:tenantry/${Stage}/database-server/",
    // Secrets Manager ends every ARN in six characters of its own.
    ":secret:${RegistrySecret}-",
    ":secret:${AppDatabaseSecret}-",
    ":secret:${StripeSecret}-",
    ":secret:tenantry/${Stage}/${Prefix}invite-key-",
    ":secret:tenantry/${Stage}/${Prefix}export-key-",
    // Executions are named when they start.
    ":execution:${Prefix}delete-tenant:",
    ":execution:${Prefix}offboard-tenant:",
    ":execution:${Prefix}provision-tenant:",
    ":execution:${Prefix}change-plan:",
    ":execution:${Prefix}offboard-tenant:",
    ":execution:${Prefix}delete-tenant:",
    ":execution:${Prefix}reactivate-tenant:",
    // Certificates are named for tenants' ids.
    "${CertificatesBucket.Arn}/",
    // A change's id is Route 53's, and tells its state and nothing else.
    ":route53:::change/",
    // An association's id is EKS's.
    ":podidentityassociation/${EksCluster}/",
    // An address is verified by itself or with its domain; the statement's condition names the address.
    ":identity/",
];

/// The statements of every policy, roles' own and managed: the policy's resource and the statement.
pub(super) fn statements(contract: &Contract) -> impl Iterator<Item = (&str, &Value)> {
    let own = contract.resources(ROLE).flat_map(|(id, role)| {
        each(&role["Properties"]["Policies"]).iter().map(move |policy| (id, &policy["PolicyDocument"]))
    });
    let managed = contract.resources(POLICY).map(|(id, policy)| (id, &policy["Properties"]["PolicyDocument"]));
    own.chain(managed)
        .flat_map(|(id, document)| each(&document["Statement"]).iter().map(move |listed| (id, taken(listed))))
}

fn actions(statement: &Value) -> impl Iterator<Item = &str> {
    each(&statement["Action"]).iter().filter_map(Value::as_str)
}

/// Who may take a role.
fn trusted(role: &Value) -> Vec<&Value> {
    let trust = &role["Properties"]["AssumeRolePolicyDocument"];
    each(&trust["Statement"]).iter().map(|statement| &statement["Principal"]).collect()
}

/// What a function's role and the policy that all functions share allow, on anything at all.
///
/// `function` is the logical id, such as `CreateBucketFunction`; actions have IAM's names, such as `s3:CreateBucket`.
pub fn allowed(contract: &Contract, function: &str) -> BTreeSet<String> {
    let resources = &contract.template["Resources"];
    let Some(role) = target(&resources[function]["Properties"]["Role"]) else { return BTreeSet::new() };
    let attached = each(&resources[role]["Properties"]["ManagedPolicyArns"]).iter().filter_map(target);
    let policies: Vec<&str> = attached.chain([role]).collect();
    statements(contract)
        .filter(|(id, statement)| policies.contains(id) && statement["Effect"] == "Allow")
        .flat_map(|(_, statement)| actions(statement).map(str::to_owned))
        .collect()
}

pub(super) const ROLES_ARE_THEIR_OWN: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (id, function) in contract.resources(FUNCTION) {
            let role = &contract.template["Resources"][format!("{id}Role")];
            if function["Properties"]["Role"] != json!({"Fn::GetAtt": format!("{id}Role.Arn")}) || role["Type"] != ROLE
            {
                broken.push(format!("{id} must have a role of its own, {id}Role"));
                continue;
            }
            if trusted(role) != [&json!({"Service": "lambda.amazonaws.com"})] {
                broken.push(format!("{id}Role must trust Lambda and nobody else"));
            }
            if role["Properties"]["ManagedPolicyArns"] != json!([{"Ref": BASICS}]) {
                broken.push(format!("{id}Role must have {BASICS}, and no other managed policy"));
            }
            let basics = ["logs:PutLogEvents", "xray:PutTraceSegments", "secretsmanager:GetSecretValue"];
            let allowed = allowed(contract, id);
            broken.extend(
                basics
                    .iter()
                    .filter(|action| !allowed.contains(**action))
                    .map(|action| format!("{id} may not {action}, which every function does")),
            );
        }
        broken
    },
    breaches: &[
        ("a function that acts as another", |contract| {
            contract.properties("CreateBucketFunction")["Role"] =
                json!({"Fn::GetAtt": "CreateIdentityFunctionRole.Arn"});
        }),
        ("a role that anyone may take", |contract| {
            let trust = &mut contract.properties("CreateBucketFunctionRole")["AssumeRolePolicyDocument"];
            trust["Statement"][0]["Principal"] = json!("*");
        }),
        ("a function with AWS's broad policy", |contract| {
            let policies = contract.properties("CreateBucketFunctionRole")["ManagedPolicyArns"].as_array_mut();
            policies.expect("a list").push(json!("arn:aws:iam::aws:policy/AmazonS3FullAccess"));
        }),
        ("functions that cannot log", |contract| {
            contract.properties(BASICS)["PolicyDocument"]["Statement"].as_array_mut().expect("a list").remove(0);
        }),
    ],
};

pub(super) const NO_WILDCARDS: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (id, statement) in statements(contract) {
            if statement["Effect"] != "Allow"
                || !statement["NotAction"].is_null()
                || !statement["NotResource"].is_null()
            {
                broken.push(format!("{id}: a statement must say what is allowed, and on what: {statement}"));
            }
            let open = actions(statement).filter(|action| action.contains(['*', '?']));
            broken.extend(open.map(|action| format!("{id} allows {action}: name the actions")));
            for resource in each(&statement["Resource"]) {
                let name = resource["Fn::Sub"].as_str().or(resource.as_str()).unwrap_or_default();
                let named = name.split(['*', '?']).next().unwrap_or_default();
                let known = match (name.len() > named.len(), named) {
                    (false, _) => target(resource).is_some() || resource["Fn::Sub"].is_string(),
                    (true, "") => actions(statement).all(|a| NAMELESS.iter().any(|nameless| a.starts_with(nameless))),
                    (true, _) => OPEN_ENDED.iter().any(|open_ended| named.ends_with(open_ended)),
                };
                if !known {
                    broken.push(format!("{id} allows {} on {resource}: name the resource", statement["Action"]));
                }
            }
            if each(&statement["Resource"]).is_empty() {
                broken.push(format!("{id}: a statement without a resource: {statement}"));
            }
            let sends_mail = actions(statement).any(|action| action.starts_with("ses:"));
            if sends_mail && statement["Condition"]["StringEquals"]["ses:FromAddress"].is_null() {
                broken.push(format!("{id} may send mail from any address"));
            }
        }
        broken
    },
    breaches: &[
        ("a wildcard action", |contract| own_statement(contract, "CreateBucket")["Action"] = json!(["s3:*"])),
        ("a wildcard within an action", |contract| {
            own_statement(contract, "CreateBucket")["Action"] = json!("s3:Put*");
        }),
        ("every bucket", |contract| own_statement(contract, "CreateBucket")["Resource"] = json!("*")),
        ("every bucket of a longer name", |contract| {
            own_statement(contract, "CreateBucket")["Resource"] = json!({"Fn::Sub": "arn:${AWS::Partition}:s3:::*"});
        }),
        ("every secret", |contract| {
            let everything = "arn:${AWS::Partition}:secretsmanager:${AWS::Region}:${AWS::AccountId}:secret:*";
            own_statement(contract, "ApplyMigrations")["Resource"] = json!({"Fn::Sub": everything});
        }),
        ("everything but one action", |contract| {
            let statement = own_statement(contract, "CreateBucket");
            remove(statement, "Action");
            statement["NotAction"] = json!("s3:DeleteBucket");
        }),
        ("mail from any address", |contract| remove(own_statement(contract, "SendWelcomeEmail"), "Condition")),
        ("machines that any function may end", |contract| {
            let condition = &mut contract.properties(BASICS)["PolicyDocument"]["Statement"][3]["Fn::If"];
            condition[1]["Action"] = json!("ec2:TerminateInstances");
        }),
    ],
};

pub(super) const TENANTS_ROLES_ARE_BOUNDED: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        let tenants = json!({"Fn::Sub": "arn:${AWS::Partition}:iam::${AWS::AccountId}:role/tenant-*"});
        for (id, statement) in statements(contract) {
            let of_iam = |action: &&str| action.starts_with("iam:") || action.starts_with("sts:");
            for action in actions(statement).filter(of_iam).filter(|action| !NAMELESS.contains(action)) {
                let conditions = &statement["Condition"]["StringEquals"];
                if statement["Resource"] != tenants {
                    broken.push(format!("{id} allows {action} beyond the tenants' roles"));
                }
                match action {
                    "iam:CreateRole" | "iam:PutRolePermissionsBoundary"
                        if conditions["iam:PermissionsBoundary"] != json!({"Ref": BOUNDARY}) =>
                    {
                        broken.push(format!("{id} allows {action} without the boundary"));
                    }
                    "iam:PassRole" if conditions["iam:PassedToService"] != "pods.eks.amazonaws.com" => {
                        broken.push(format!("{id} may pass tenants' roles to more than pods"));
                    }
                    "iam:DeleteRolePermissionsBoundary" => broken.push(format!("{id} may take the boundary away")),
                    _ => {}
                }
            }
        }
        for (_, statement) in statements(contract).filter(|(id, _)| *id == BOUNDARY) {
            // Fn::Sub writes ${!x} for IAM's own variable ${x}.
            let own =
                |text: &Value| text.to_string().replace("${!", "${").contains("${aws:PrincipalTag/tenantry-tenant-id}");
            let resources = each(&statement["Resource"]);
            let keys = &statement["Condition"]["ForAllValues:StringEquals"]["dynamodb:LeadingKeys"];
            // ForAllValues also holds for a call that names no key.
            let by_key = own(keys) && statement["Condition"]["Null"]["dynamodb:LeadingKeys"] == "false";
            if resources.is_empty() || !(by_key || resources.iter().all(own)) {
                broken.push(format!("{BOUNDARY} does not keep a tenant to what is its own: {statement}"));
            }
        }
        let function = &contract.template["Resources"]["CreateIdentityFunction"]["Properties"];
        if function["Environment"]["Variables"]["TENANT_BOUNDARY_ARN"] != json!({"Ref": BOUNDARY}) {
            broken.push(format!("CreateIdentityFunction must make roles with {BOUNDARY}"));
        }
        broken
    },
    breaches: &[
        ("roles without a boundary", |contract| remove(own_statement(contract, "CreateIdentity"), "Condition")),
        ("a boundary that can be taken away", |contract| {
            let actions = own_statement(contract, "CreateIdentity")["Action"].as_array_mut();
            actions.expect("a list").push(json!("iam:DeleteRolePermissionsBoundary"));
        }),
        ("roles of any name", |contract| {
            let every = json!({"Fn::Sub": "arn:${AWS::Partition}:iam::${AWS::AccountId}:role/*"});
            own_statement(contract, "CreateIdentity")["Resource"] = every;
        }),
        ("roles that are passed to anything", |contract| {
            own_statement(contract, "CreateIdentity")["Action"] = json!("iam:PassRole");
        }),
        ("a boundary around every tenant's bucket", |contract| {
            let boundary = &mut contract.properties(BOUNDARY)["PolicyDocument"]["Statement"][0];
            boundary["Resource"][0] = json!({"Fn::Sub": "arn:${AWS::Partition}:s3:::tenant-*"});
        }),
        ("a boundary that a call without a key passes", |contract| {
            let boundary = &mut contract.properties(BOUNDARY)["PolicyDocument"]["Statement"][1];
            remove(&mut boundary["Condition"], "Null");
        }),
        ("another boundary", |contract| {
            let variables = &mut contract.properties("CreateIdentityFunction")["Environment"]["Variables"];
            variables["TENANT_BOUNDARY_ARN"] = json!({"Ref": BASICS});
        }),
    ],
};

pub(super) const MACHINES_CALL_THEIR_FUNCTIONS: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (id, machine) in contract.resources(MACHINE) {
            let uri = machine["Properties"]["DefinitionUri"].as_str().unwrap_or_default();
            let name = uri.trim_start_matches("../statemachines/").trim_end_matches(".asl.json");
            let called = contract.tasks().filter(|(of, _, _)| *of == name).map(|(_, state, _)| function_of(state));
            let called: BTreeSet<String> = called.collect();
            let started = contract.starts().filter(|(of, _, _)| *of == name);
            let started = started.filter_map(|(_, _, state)| state["Parameters"]["StateMachineArn"].as_str());
            let started: BTreeSet<String> =
                started.map(|named| named.trim_start_matches("${").trim_end_matches('}').to_owned()).collect();
            let filled_in = machine["Properties"]["DefinitionSubstitutions"].as_object();
            let filled_in: BTreeSet<String> = filled_in.into_iter().flatten().map(|(name, _)| name.clone()).collect();
            let named: BTreeSet<String> = called.union(&started).cloned().collect();
            if filled_in != named {
                broken.push(format!("{id} fills in {filled_in:?}, and its definition calls {named:?}"));
            }
            let role = target(&machine["Properties"]["Role"]).unwrap_or_default();
            let (mut allowed, mut may_start) = (BTreeSet::new(), BTreeSet::new());
            for (_, statement) in statements(contract).filter(|(id, _)| *id == role) {
                for action in
                    actions(statement).filter(|action| !NAMELESS.iter().any(|other| action.starts_with(other)))
                {
                    if action == "lambda:InvokeFunction" {
                        let functions = each(&statement["Resource"]).iter().filter_map(target).map(str::to_owned);
                        allowed.extend(functions);
                    } else if action == "states:StartExecution" {
                        may_start.extend(each(&statement["Resource"]).iter().filter_map(target).map(str::to_owned));
                    } else {
                        broken.push(format!("{role} allows {action}, which the machine does not do"));
                    }
                }
            }
            if may_start != started {
                broken.push(format!("{role} may start {may_start:?}, and {id} starts {started:?}"));
            }
            if allowed != called {
                broken.push(format!("{role} may call {allowed:?}, and {id} calls {called:?}"));
            }
            if trusted(&contract.template["Resources"][role]) != [&json!({"Service": "states.amazonaws.com"})] {
                broken.push(format!("{role} must trust Step Functions and nobody else"));
            }
        }
        broken
    },
    breaches: &[
        ("a function that the machine may not call", |contract| {
            own_statement(contract, "ProvisionTenantMachine")["Resource"].as_array_mut().expect("a list").remove(0);
        }),
        ("a function that the machine has no business with", |contract| {
            let functions = own_statement(contract, "ProvisionTenantMachine")["Resource"].as_array_mut();
            functions.expect("a list").push(json!({"Fn::GetAtt": "ApplyMigrationsFunction.Arn"}));
        }),
        ("a placeholder for a function that is not called", |contract| {
            let placeholders = &mut contract.properties("ProvisionTenantMachine")["DefinitionSubstitutions"];
            placeholders["ApplyMigrationsFunction"] = json!({"Fn::GetAtt": "ApplyMigrationsFunction.Arn"});
        }),
        ("a machine that may read buckets", |contract| {
            own_statement(contract, "ProvisionTenantMachine")["Action"] =
                json!(["lambda:InvokeFunction", "s3:GetObject"]);
        }),
        ("a machine that acts as a function", |contract| {
            contract.properties("ProvisionTenantMachine")["Role"] =
                json!({"Fn::GetAtt": "CreateBucketFunctionRole.Arn"});
        }),
    ],
};

/// For breaches: the first statement that is particular to a function's or machine's role.
fn own_statement<'a>(contract: &'a mut Contract, of: &str) -> &'a mut Value {
    let role = if of.ends_with("Machine") { format!("{of}Role") } else { format!("{of}FunctionRole") };
    &mut contract.properties(&role)["Policies"][0]["PolicyDocument"]["Statement"][0]
}
