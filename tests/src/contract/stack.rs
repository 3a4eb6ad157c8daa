//! What the template promises: functions that are called and observed, machines and data that outlive the stack,
//! failures that are heard of, migrations before anything runs.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::template::{each, effective, prefixed, taken, target};
use super::{Contract, Rule, function_of, kebab, remove};

const FUNCTION: &str = "AWS::Serverless::Function";
const MACHINE: &str = "AWS::Serverless::StateMachine";
const RULE: &str = "AWS::Events::Rule";
const PERMISSION: &str = "AWS::Lambda::Permission";
const MIGRATIONS: &str = "Custom::Migrations";
const RECOVERY: &str = "RecoverExecutionFunction";

/// The rules' targets: the rule's logical id, the rule, the target.
fn targets(contract: &Contract) -> impl Iterator<Item = (&str, &Value, &Value)> {
    contract
        .resources(RULE)
        .flat_map(|(id, rule)| each(&rule["Properties"]["Targets"]).iter().map(move |target| (id, rule, target)))
}

fn is_retained(resource: &Value) -> bool {
    resource["DeletionPolicy"] == "Retain" && resource["UpdateReplacePolicy"] == "Retain"
}

/// The log group that a property refers to, if its entries are kept for a stated time.
fn keeps_logs(contract: &Contract, group: &Value) -> bool {
    let group = &contract.template["Resources"][target(group).unwrap_or_default()];
    group["Type"] == "AWS::Logs::LogGroup" && !group["Properties"]["RetentionInDays"].is_null()
}

/// Functions that people call, and the product's services.
const FOR_CALLERS: &[&str] = &[
    "ExplainTenantFunction",
    "ExtendHoldFunction",
    "GetCertificateFunction",
    "IssueUploadFunction",
    "ReadUsageFunction",
    "RegisterDownstreamFunction",
    "ReleaseSeatFunction",
    "ReserveSeatFunction",
    "RevokeLinkFunction",
    "SetDeletionProtectionFunction",
    "SetQuotaOverrideFunction",
];

pub(super) const ONE_FUNCTION_A_BINARY: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        let mut called: BTreeSet<String> = contract.tasks().map(|(_, name, _)| function_of(name)).collect();
        called.extend(targets(contract).filter_map(|(_, _, called)| target(&called["Arn"])).map(str::to_owned));
        let custom =
            contract.resources(MIGRATIONS).filter_map(|(_, custom)| target(&custom["Properties"]["ServiceToken"]));
        called.extend(custom.map(str::to_owned));
        let pages = contract
            .resources("AWS::Lambda::Url")
            .filter_map(|(_, url)| target(&url["Properties"]["TargetFunctionArn"]));
        called.extend(pages.map(str::to_owned));
        called.extend(super::api::authorizers(contract).map(str::to_owned));
        let mut unused = contract.binaries.clone();
        for (id, function) in contract.resources(FUNCTION) {
            let (name, properties) = (kebab(id), &function["Properties"]);
            unused.remove(&name);
            if !contract.binaries.contains(&name) {
                broken.push(format!("{id}: there is no binary {name}"));
            }
            let code = format!("../target/lambda/{name}/");
            if properties["FunctionName"] != prefixed(&name) || properties["CodeUri"] != *code {
                broken.push(format!("{id} must be named ${{Prefix}}{name}, and run {code}"));
            }
            if !called.contains(id) && !FOR_CALLERS.contains(&id) {
                broken.push(format!("{id} is called by no machine, rule or custom resource"));
            }
        }
        broken.extend(unused.iter().map(|binary| format!("the binary {binary} is no function of the template")));
        broken
    },
    breaches: &[
        ("a binary that is not deployed", |contract| _ = contract.binaries.insert("archive-tenant".to_owned())),
        ("a function that nothing calls", |contract| remove(&mut contract.template["Resources"], "Migrations")),
        ("a function with another's code", |contract| {
            contract.properties("CreateBucketFunction")["CodeUri"] = json!("../target/lambda/create-namespace/");
        }),
        ("a function without a stack's prefix", |contract| {
            contract.properties("CreateBucketFunction")["FunctionName"] = json!("create-bucket");
        }),
    ],
};

pub(super) const MACHINES_ARE_KEPT: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        let mut undeployed: BTreeSet<&String> = contract.machines.keys().collect();
        for (id, machine) in contract.resources(MACHINE) {
            let properties = &machine["Properties"];
            let name = kebab(id.strip_suffix("Machine").unwrap_or(id));
            undeployed.remove(&name);
            let file = format!("../statemachines/{name}.asl.json");
            if properties["DefinitionUri"] != *file || properties["Name"] != prefixed(&name) {
                broken.push(format!("{id} must be named ${{Prefix}}{name}, and be defined by {file}"));
            }
            if properties["Type"] != "STANDARD" {
                broken.push(format!("{id} must be STANDARD: an express execution is not there to be looked at"));
            }
            let role = &contract.template["Resources"][target(&properties["Role"]).unwrap_or_default()];
            if !is_retained(machine) || !is_retained(role) {
                broken.push(format!("{id} and its role must be retained: executions outlive deployments"));
            }
            let (tracing, logging) = (&properties["Tracing"], &properties["Logging"]);
            let group = &logging["Destinations"][0]["CloudWatchLogsLogGroup"]["LogGroupArn"];
            if tracing["Enabled"] != true || logging["Level"] != "ALL" || !keeps_logs(contract, group) {
                broken.push(format!("{id} must be traced, and logged to a group with a retention"));
            }
            if logging["IncludeExecutionData"] != false {
                broken.push(format!("{id}: its logs must not hold the executions' data"));
            }
        }
        broken.extend(undeployed.iter().map(|name| format!("{name}.asl.json is no machine of the template")));
        broken
    },
    breaches: &[
        ("a machine that is deleted with the stack", |contract| {
            remove(&mut contract.template["Resources"]["ProvisionTenantMachine"], "DeletionPolicy");
        }),
        ("a machine that loses its role", |contract| {
            remove(&mut contract.template["Resources"]["ProvisionTenantMachineRole"], "DeletionPolicy");
        }),
        ("a machine that is replaced under another name", |contract| {
            contract.properties("ProvisionTenantMachine")["Name"] = json!("provisioning");
        }),
        ("logs with the owner's address", |contract| {
            contract.properties("ProvisionTenantMachine")["Logging"]["IncludeExecutionData"] = json!(true);
        }),
        ("logs that are kept for ever", |contract| {
            remove(contract.properties("ProvisionTenantLogs"), "RetentionInDays");
        }),
        ("a machine without traces", |contract| remove(contract.properties("ProvisionTenantMachine"), "Tracing")),
        ("a machine that is not deployed", |contract| {
            let definition = contract.machines["provision-tenant"].clone();
            contract.machines.insert("archive-tenant".to_owned(), definition);
        }),
    ],
};

pub(super) const RECOVERY_HEARS_OF_BAD_ENDS: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (machine, _) in contract.resources(MACHINE) {
            let heard = targets(contract).any(|(_, rule, called)| {
                let (properties, pattern) = (&rule["Properties"], &rule["Properties"]["EventPattern"]);
                // AWS's own events come on the account's default bus.
                properties["EventBusName"].is_null()
                    && properties["State"].as_str().is_none_or(|state| state == "ENABLED")
                    && pattern["source"] == json!(["aws.states"])
                    && pattern["detail-type"] == json!(["Step Functions Execution Status Change"])
                    && pattern["detail"]["status"] == json!(["FAILED", "TIMED_OUT", "ABORTED"])
                    && each(&pattern["detail"]["stateMachineArn"]).contains(&json!({"Ref": machine}))
                    && target(&called["Arn"]) == Some(RECOVERY)
            });
            if !heard {
                broken.push(format!(
                    "no rule tells {RECOVERY} of {machine}'s executions that fail, time out or are stopped"
                ));
            }
        }
        for (id, _, called) in targets(contract).filter(|(_, _, called)| target(&called["Arn"]) == Some(RECOVERY)) {
            let told = &called["InputTransformer"]["InputPathsMap"];
            if *told != json!({"execution": "$.detail.executionArn", "status": "$.detail.status"}) {
                broken.push(format!(
                    "{id}: {RECOVERY} must be told the execution and its status, and not the owner's data"
                ));
            }
        }
        let unheard = contract.resources("AWS::Lambda::EventInvokeConfig").any(|(_, config)| {
            let properties = &config["Properties"];
            target(&properties["FunctionName"]) == Some(RECOVERY)
                && properties["DestinationConfig"]["OnFailure"]["Destination"]["Fn::GetAtt"].is_string()
        });
        if !unheard {
            broken.push(format!("what {RECOVERY} fails on must go to a queue"));
        }
        broken
    },
    breaches: &[
        ("stopped executions go unheard", |contract| {
            contract.properties("ExecutionEndedRule")["EventPattern"]["detail"]["status"] =
                json!(["FAILED", "TIMED_OUT"]);
        }),
        ("a rule on a bus that AWS's events do not come on", |contract| {
            contract.properties("ExecutionEndedRule")["EventBusName"] = json!({"Ref": "EventBus"});
        }),
        ("a machine that is left out", |contract| {
            let machines = &mut contract.properties("ExecutionEndedRule")["EventPattern"]["detail"]["stateMachineArn"];
            *machines = json!([]);
        }),
        ("a rule that is switched off", |contract| {
            contract.properties("ExecutionEndedRule")["State"] = json!("DISABLED");
        }),
        ("an event with the execution's input", |contract| {
            remove(&mut contract.properties("ExecutionEndedRule")["Targets"][0], "InputTransformer");
        }),
        ("a recovery that fails unheard", |contract| {
            remove(&mut contract.template["Resources"], "RecoverExecutionFailures");
        }),
    ],
};

pub(super) const RULES_HAVE_DEAD_LETTER_QUEUES: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (id, _, called) in targets(contract) {
            let queue = target(&called["DeadLetterConfig"]["Arn"]).unwrap_or_default();
            let properties = &contract.template["Resources"][queue]["Properties"];
            // 14 days, the most that SQS keeps a message.
            if properties["MessageRetentionPeriod"] != 1_209_600 || properties["SqsManagedSseEnabled"] != true {
                broken.push(format!(
                    "{id} must have a dead-letter queue that is encrypted and keeps messages for 14 days"
                ));
            }
            let this = json!({"Fn::GetAtt": format!("{id}.Arn")});
            let admitted = contract.resources("AWS::SQS::QueuePolicy").any(|(_, policy)| {
                let properties = &policy["Properties"];
                let statements = each(&properties["PolicyDocument"]["Statement"]);
                each(&properties["Queues"]).contains(&json!({"Ref": queue}))
                    && statements.iter().any(|statement| {
                        statement["Effect"] == "Allow"
                            && statement["Principal"] == json!({"Service": "events.amazonaws.com"})
                            && statement["Action"] == "sqs:SendMessage"
                            && each(&statement["Condition"]["ArnEquals"]["aws:SourceArn"])
                                .iter()
                                .any(|arn| *taken(arn) == this)
                    })
            });
            if !admitted {
                broken.push(format!("{id}: the policy of {queue:?} must let the rule in, and nobody else"));
            }
            let retries = &called["RetryPolicy"];
            if retries["MaximumEventAgeInSeconds"].is_null() || retries["MaximumRetryAttempts"].is_null() {
                broken.push(format!("{id} must say how long it tries"));
            }
            let function = target(&called["Arn"]).filter(|id| contract.template["Resources"][id]["Type"] == FUNCTION);
            let permitted = |function| {
                contract.resources(PERMISSION).any(|(_, permission)| {
                    let properties = &permission["Properties"];
                    target(&properties["FunctionName"]) == Some(function)
                        && properties["Principal"] == "events.amazonaws.com"
                        && properties["SourceArn"] == this
                })
            };
            match function {
                Some(function) if !permitted(function) => broken.push(format!("{id} may not call {function}")),
                None if called["RoleArn"].is_null() => broken.push(format!("{id} may not start what it targets")),
                _ => {}
            }
        }
        broken
    },
    breaches: &[
        ("a rule without a queue", |contract| {
            remove(&mut contract.properties("PublishEventsRule")["Targets"][0], "DeadLetterConfig");
        }),
        ("a queue that refuses a rule", |contract| {
            let statement = &mut contract.properties("UndeliveredEventsPolicy")["PolicyDocument"]["Statement"][0];
            statement["Condition"]["ArnEquals"]["aws:SourceArn"].as_array_mut().expect("a list").pop();
        }),
        ("a queue that anyone may fill", |contract| {
            let statement = &mut contract.properties("UndeliveredEventsPolicy")["PolicyDocument"]["Statement"][0];
            statement["Principal"] = json!("*");
        }),
        ("a queue that forgets", |contract| {
            contract.properties("UndeliveredEvents")["MessageRetentionPeriod"] = json!(60);
        }),
        ("a function that the rule may not call", |contract| {
            remove(&mut contract.template["Resources"], "ExecutionEndedPermission");
        }),
        ("a machine that the rule may not start", |contract| {
            remove(&mut contract.properties("TenantRequestedRule")["Targets"][0], "RoleArn");
        }),
    ],
};

pub(super) const FUNCTIONS_ARE_OBSERVED: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (id, function) in contract.resources(FUNCTION) {
            let logging = effective(contract, function, "LoggingConfig");
            let said = function["Properties"]["Description"].as_str().is_some_and(|text| !text.is_empty());
            let conditions = [
                (effective(contract, function, "Tracing") == "Active", "traced"),
                (logging["LogFormat"] == "JSON", "logged as JSON"),
                (keeps_logs(contract, &logging["LogGroup"]), "logged to a group with a retention"),
                (effective(contract, function, "Timeout").is_u64(), "bounded in time"),
                (effective(contract, function, "MemorySize").is_u64(), "bounded in memory"),
                (!effective(contract, function, "ReservedConcurrentExecutions").is_null(), "bounded in number"),
                (said, "described"),
            ];
            broken
                .extend(conditions.iter().filter(|(holds, _)| !holds).map(|(_, what)| format!("{id} must be {what}")));
        }
        broken
    },
    breaches: &[
        ("functions without traces", |contract| remove(&mut contract.template["Globals"]["Function"], "Tracing")),
        ("a function whose logs are kept for ever", |contract| {
            contract.properties("CreateBucketFunction")["LoggingConfig"] = json!({"LogFormat": "JSON"});
        }),
        ("functions that exhaust the registry's connections", |contract| {
            remove(&mut contract.template["Globals"]["Function"], "ReservedConcurrentExecutions");
        }),
        ("functions with Lambda's own timeout", |contract| {
            remove(&mut contract.template["Globals"]["Function"], "Timeout");
        }),
        ("logs without a retention", |contract| remove(contract.properties("FunctionLogs"), "RetentionInDays")),
        ("a function that nobody can tell apart", |contract| {
            remove(contract.properties("CreateBucketFunction"), "Description");
        }),
    ],
};

pub(super) const MIGRATIONS_COME_FIRST: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        let mut migrations = contract.resources(MIGRATIONS);
        let (Some((id, custom)), None) = (migrations.next(), migrations.next()) else {
            return vec![format!("there must be one {MIGRATIONS}")];
        };
        let properties = &custom["Properties"];
        let function = target(&properties["ServiceToken"]).unwrap_or_default();
        if function != "ApplyMigrationsFunction" {
            broken.push(format!("{id} must call ApplyMigrationsFunction, not {function:?}"));
        }
        if properties["DeployId"] != json!({"Ref": "DeployId"}) {
            broken.push(format!("{id} must differ on every deploy, or CloudFormation leaves it out"));
        }
        let timeout = effective(contract, &contract.template["Resources"][function], "Timeout").as_u64();
        if properties["ServiceTimeout"].as_u64() <= timeout {
            broken.push(format!("{id}: CloudFormation must wait longer than {function} runs"));
        }
        for (user, resource) in contract.resources(MACHINE).chain(contract.resources(RULE)) {
            if !each(&resource["DependsOn"]).contains(&json!(id)) {
                broken.push(format!("{user} must depend on {id}, or it runs against the old schema"));
            }
        }
        broken
    },
    breaches: &[
        ("migrations on the first deploy alone", |contract| remove(contract.properties("Migrations"), "DeployId")),
        ("a machine that does not wait", |contract| {
            remove(&mut contract.template["Resources"]["ProvisionTenantMachine"], "DependsOn");
        }),
        ("a rule that does not wait", |contract| {
            remove(&mut contract.template["Resources"]["PublishEventsRule"], "DependsOn");
        }),
        ("a deploy that gives up before the function", |contract| {
            contract.properties("Migrations")["ServiceTimeout"] = json!(60);
        }),
        ("a deploy that waits for an hour", |contract| remove(contract.properties("Migrations"), "ServiceTimeout")),
        ("no migrations", |contract| remove(&mut contract.template["Resources"], "Migrations")),
    ],
};

pub(super) const DATA_IS_KEPT: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (id, table) in contract.resources("AWS::DynamoDB::Table") {
            let properties = &table["Properties"];
            let conditions = [
                (is_retained(table), "retained"),
                (properties["SSESpecification"]["SSEEnabled"] == true, "encrypted"),
                (properties["DeletionProtectionEnabled"] == true, "protected from deletion"),
                (
                    properties["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"] == true,
                    "recoverable to a point in time",
                ),
            ];
            broken
                .extend(conditions.iter().filter(|(holds, _)| !holds).map(|(_, what)| format!("{id} must be {what}")));
        }
        broken.extend(exports_end(contract));
        broken
    },
    breaches: &[
        ("exports that are deleted with the stack", |contract| {
            remove(&mut contract.template["Resources"]["ExportsBucket"], "DeletionPolicy");
        }),
        ("exports in the clear", |contract| remove(contract.properties("ExportsBucket"), "BucketEncryption")),
        ("exports for everybody", |contract| {
            contract.properties("ExportsBucket")["PublicAccessBlockConfiguration"]["BlockPublicPolicy"] = json!(false);
        }),
        ("exports over plain HTTP", |contract| remove(&mut contract.template["Resources"], "ExportsBucketPolicy")),
        ("exports that never end", |contract| remove(contract.properties("ExportsBucket"), "LifecycleConfiguration")),
        ("exports that end before their link", |contract| {
            contract.template["Parameters"]["ExportDays"]["Default"] = json!(30);
        }),
        ("a table that is deleted with the stack", |contract| {
            remove(&mut contract.template["Resources"]["ConfigTable"], "DeletionPolicy");
        }),
        ("a table that is lost when it is replaced", |contract| {
            contract.template["Resources"]["ConfigTable"]["UpdateReplacePolicy"] = json!("Delete");
        }),
        ("a table without a way back", |contract| {
            remove(contract.properties("ConfigTable"), "PointInTimeRecoverySpecification");
        }),
        ("a table in the clear", |contract| {
            contract.properties("ConfigTable")["SSESpecification"]["SSEEnabled"] = json!(false);
        }),
        ("a table that anyone can delete", |contract| {
            remove(contract.properties("ConfigTable"), "DeletionProtectionEnabled");
        }),
    ],
};

pub(super) const CERTIFICATES_ARE_KEPT: Rule = Rule {
    check: |contract| {
        let (bucket, key) =
            (&contract.template["Resources"]["CertificatesBucket"], &contract.template["Resources"]["CertificateKey"]);
        let (kept, signs) = (&bucket["Properties"], &key["Properties"]);
        let encryption = &kept["BucketEncryption"]["ServerSideEncryptionConfiguration"][0];
        let closed = ["BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"];
        let conditions = [
            (is_retained(bucket) && is_retained(key), "certificates and their key must be retained"),
            (signs["KeySpec"] == "ECC_NIST_P256" && signs["KeyUsage"] == "SIGN_VERIFY", "the key must sign with P-256"),
            (encryption["ServerSideEncryptionByDefault"].is_object(), "certificates must be encrypted"),
            (kept["VersioningConfiguration"]["Status"] == "Enabled", "no certificate may replace another"),
            (
                closed.iter().all(|block| kept["PublicAccessBlockConfiguration"][block] == true),
                "certificates must not be public",
            ),
        ];
        conditions.iter().filter(|(holds, _)| !holds).map(|(_, rule)| (*rule).to_owned()).collect()
    },
    breaches: &[
        ("a key that goes with the stack", |contract| {
            remove(&mut contract.template["Resources"]["CertificateKey"], "DeletionPolicy");
        }),
        ("a key that encrypts", |contract| {
            contract.properties("CertificateKey")["KeyUsage"] = json!("ENCRYPT_DECRYPT");
        }),
        ("certificates in the clear", |contract| remove(contract.properties("CertificatesBucket"), "BucketEncryption")),
        ("certificates that are replaced", |contract| {
            remove(contract.properties("CertificatesBucket"), "VersioningConfiguration");
        }),
        ("certificates that anybody reads", |contract| {
            contract.properties("CertificatesBucket")["PublicAccessBlockConfiguration"]["BlockPublicPolicy"] =
                json!(false);
        }),
    ],
};

/// The bucket of exports outlives the stack, is closed and encrypted, and each export ends a day after its link.
fn exports_end(contract: &Contract) -> Vec<String> {
    let bucket = &contract.template["Resources"]["ExportsBucket"];
    let (properties, parameters) = (&bucket["Properties"], &contract.template["Parameters"]);
    let block = &properties["PublicAccessBlockConfiguration"];
    let closed = ["BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"];
    let rule = &properties["LifecycleConfiguration"]["Rules"][0];
    let seconds = |name: &str, unit: u64| parameters[name]["Default"].as_u64().map_or(0, |number| number * unit);
    let refused =
        &contract.template["Resources"]["ExportsBucketPolicy"]["Properties"]["PolicyDocument"]["Statement"][0];
    let conditions = [
        (is_retained(bucket), "retained"),
        (!properties["BucketEncryption"]["ServerSideEncryptionConfiguration"][0].is_null(), "encrypted"),
        (closed.iter().all(|name| block[*name] == true), "closed to the public"),
        (
            refused["Effect"] == "Deny" && refused["Condition"]["Bool"]["aws:SecureTransport"] == "false",
            "closed to plain HTTP",
        ),
        (
            rule["Status"] == "Enabled"
                && rule["Prefix"] == "exports/"
                && rule["ExpirationInDays"] == json!({"Ref": "ExportDays"})
                && !rule["AbortIncompleteMultipartUpload"].is_null(),
            "emptied by its lifecycle",
        ),
        (seconds("ExportDays", 86_400) >= seconds("LinkSeconds", 1) + 86_400, "kept a day longer than links work"),
    ];
    conditions.iter().filter(|(holds, _)| !holds).map(|(_, what)| format!("ExportsBucket must be {what}")).collect()
}

pub(super) const OPERATORS_ARE_CALLED: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (id, filter) in contract.resources("AWS::Logs::MetricFilter") {
            let filter = &filter["Properties"];
            let metric = &filter["MetricTransformations"][0];
            let alarmed = contract.resources("AWS::CloudWatch::Alarm").any(|(_, alarm)| {
                let alarm = &alarm["Properties"];
                alarm["Namespace"] == metric["MetricNamespace"] && alarm["MetricName"] == metric["MetricName"]
            });
            if !alarmed || target(&filter["LogGroupName"]) != Some("FunctionLogs") {
                broken.push(format!("{id} must count lines of FunctionLogs, and an alarm must watch what it counts"));
            }
        }
        // As steps/compensation.rs, provisioning.rs and recovery.rs write it.
        let flagged = json!("{ $.needs_operator IS TRUE }");
        if !contract
            .resources("AWS::Logs::MetricFilter")
            .any(|(_, filter)| filter["Properties"]["FilterPattern"] == flagged)
        {
            broken.push("no metric counts the lines that say needs_operator".to_owned());
        }
        broken
    },
    breaches: &[
        ("a flag that nobody counts", |contract| {
            contract.properties("TenantNeedsOperatorMetric")["FilterPattern"] = json!("{ $.operator IS TRUE }");
        }),
        ("a count that nobody watches", |contract| {
            contract.properties("TenantNeedsOperatorAlarm")["MetricName"] = json!("Other");
        }),
        ("a count of other lines", |contract| {
            contract.properties("TenantNeedsOperatorMetric")["LogGroupName"] = json!({"Ref": "ProvisionTenantLogs"});
        }),
    ],
};
