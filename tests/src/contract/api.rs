//! What the template promises of the API behind the gate: its authorizer is asked every time, and its refusals say what the
//! gate says everywhere else.

use serde_json::{Value, json};
use tenant_gate::{Reason, Refusal};

use super::template::{each, target};
use super::{Contract, Rule, remove};

const AUTHORIZER: &str = "AWS::ApiGateway::Authorizer";
const DEPLOYMENT: &str = "AWS::ApiGateway::Deployment";
const METHOD: &str = "AWS::ApiGateway::Method";
const RESPONSE: &str = "AWS::ApiGateway::GatewayResponse";
const PERMISSION: &str = "AWS::Lambda::Permission";

/// How API Gateway says what the gate decided: its own name of the outcome, and the reason that it stands for. A denial stands
/// for two, of which the document tells the one that gives nothing away.
const REFUSALS: &[(&str, Reason)] = &[
    ("UNAUTHORIZED", Reason::PaymentRequired),
    ("ACCESS_DENIED", Reason::NotInService),
    ("AUTHORIZER_FAILURE", Reason::Unavailable),
];

/// The functions that authorizers ask.
pub(super) fn authorizers(contract: &Contract) -> impl Iterator<Item = &str> {
    contract.resources(AUTHORIZER).filter_map(|(_, authorizer)| asked(authorizer))
}

/// The function that an authorizer asks.
fn asked(authorizer: &Value) -> Option<&str> {
    let uri = authorizer["Properties"]["AuthorizerUri"]["Fn::Sub"].as_str()?;
    uri.split_once(":lambda:path/2015-03-31/functions/${")?.1.strip_suffix(".Arn}/invocations")
}

pub(super) const AUTHORIZERS_ARE_NOT_REMEMBERED: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (id, authorizer) in contract.resources(AUTHORIZER) {
            let properties = &authorizer["Properties"];
            if properties["Type"] != "REQUEST" || properties["IdentitySource"] != "method.request.header.Host" {
                broken.push(format!("{id} must be asked about the request's Host"));
            }
            // Without a number, API Gateway keeps a result for five minutes.
            if properties["AuthorizerResultTtlInSeconds"] != 0 {
                broken.push(format!("{id} must be asked every time, or a suspended tenant is let in meanwhile"));
            }
            let api = target(&properties["RestApiId"]).unwrap_or_default();
            let only_this = format!(
                "arn:${{AWS::Partition}}:execute-api:${{AWS::Region}}:${{AWS::AccountId}}:${{{api}}}/authorizers/${{{id}}}"
            );
            let permitted = contract.resources(PERMISSION).any(|(_, permission)| {
                let permission = &permission["Properties"];
                target(&permission["FunctionName"]) == asked(authorizer)
                    && permission["Principal"] == "apigateway.amazonaws.com"
                    && permission["SourceArn"] == json!({ "Fn::Sub": only_this })
            });
            if !permitted {
                broken.push(format!("{id} may not call its function, or others may"));
            }
        }
        for (id, method) in contract.resources(METHOD) {
            let properties = &method["Properties"];
            let authorizer = target(&properties["AuthorizerId"]).unwrap_or_default();
            if properties["AuthorizationType"] != "CUSTOM"
                || contract.template["Resources"][authorizer]["Type"] != AUTHORIZER
            {
                broken.push(format!("{id} is open: nobody is asked"));
            }
        }
        broken
    },
    breaches: &[
        ("a result that is kept", |contract| {
            contract.properties("GatedApiAuthorizer")["AuthorizerResultTtlInSeconds"] = json!(300);
        }),
        ("a result that is kept by default", |contract| {
            remove(contract.properties("GatedApiAuthorizer"), "AuthorizerResultTtlInSeconds");
        }),
        ("an authorizer that is asked about a token", |contract| {
            contract.properties("GatedApiAuthorizer")["Type"] = json!("TOKEN");
        }),
        ("a function that any API may call", |contract| {
            remove(contract.properties("AuthorizeRequestPermission"), "SourceArn");
        }),
        ("a method that is open", |contract| {
            contract.properties("GatedApiMethod")["AuthorizationType"] = json!("NONE");
        }),
    ],
};

pub(super) const REFUSALS_ARE_PROBLEMS: Rule = Rule {
    check: |contract| {
        let mut broken = Vec::new();
        for (id, deployment) in contract.resources(DEPLOYMENT) {
            let api = &deployment["Properties"]["RestApiId"];
            let of_this_api = |of_type| {
                contract.resources(of_type).filter(|(_, resource)| resource["Properties"]["RestApiId"] == *api)
            };
            // What comes after a deployment is not in it.
            let late = of_this_api(METHOD).chain(of_this_api(RESPONSE)).map(|(id, _)| id);
            let late = late.filter(|before| !each(&deployment["DependsOn"]).contains(&json!(before)));
            broken.extend(late.map(|before| format!("{id} must wait for {before}, which would not be in it")));
            for (outcome, reason) in REFUSALS {
                let refusal = Refusal { reason: *reason, budget: None };
                let mut responses = of_this_api(RESPONSE).map(|(_, response)| &response["Properties"]);
                let Some(response) = responses.find(|response| response["ResponseType"] == *outcome) else {
                    broken.push(format!("{id} answers {outcome} in API Gateway's own words"));
                    continue;
                };
                let said = response["ResponseTemplates"]["application/json"].as_str().unwrap_or_default();
                let said: Value = serde_json::from_str(said).unwrap_or_default();
                let expected: Value = serde_json::from_str(&refusal.problem()).unwrap_or_default();
                let retry = refusal.retry_after().map_or(Value::Null, |seconds| json!(format!("'{seconds}'")));
                let header = |name: &str| &response["ResponseParameters"][format!("gatewayresponse.header.{name}")];
                if response["StatusCode"] != refusal.reason.status().as_str()
                    || said != expected
                    || *header("Content-Type") != "'application/problem+json'"
                    || *header("Cache-Control") != "'no-store'"
                    || *header("Retry-After") != retry
                {
                    broken.push(format!("{outcome} of {id} must be the gate's answer: {expected}"));
                }
            }
        }
        broken
    },
    breaches: &[
        ("a payment that is asked for with 401", |contract| {
            contract.properties("GatedApiPaymentRequired")["StatusCode"] = json!("401");
        }),
        ("a denial in API Gateway's own words", |contract| {
            remove(&mut contract.template["Resources"], "GatedApiNotInService");
        }),
        ("a document that says another thing", |contract| {
            let templates = &mut contract.properties("GatedApiNotInService")["ResponseTemplates"];
            templates["application/json"] = json!("{\"message\": \"Forbidden\"}");
        }),
        ("an answer that may be kept", |contract| {
            let headers = &mut contract.properties("GatedApiPaymentRequired")["ResponseParameters"];
            remove(headers, "gatewayresponse.header.Cache-Control");
        }),
        ("a deployment without the responses", |contract| {
            contract.template["Resources"]["GatedApiDeployment"]["DependsOn"] = json!("GatedApiMethod");
        }),
    ],
};
