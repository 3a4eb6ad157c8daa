//! What callers send, read strictly: every problem is found at once and named by field and rule.

use std::borrow::Cow;
use std::str::FromStr;

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::error::{Problem, StepError};
use crate::registry::Selector;
use crate::registry::contacts::Contact;
use crate::registry::fence::{Actor, Failure};
use crate::registry::payments::PaidFor;
use crate::tenant::{InvalidName, Isolation, Plan, Reason, Region, Slug, TenantId};

/// The longest owner's name, in characters.
const MAX_NAME_CHARS: usize = 200;
/// The longest email address (RFC 5321 4.5.3.1.3, less the angle brackets).
const MAX_EMAIL_BYTES: usize = 254;
/// The longest payment id, in bytes.
const MAX_PAYMENT_ID_BYTES: usize = 255;

/// A sign-up: what `tenant.requested` carries and `events/provision-tenant.json` shows.
#[derive(Clone)]
pub struct SignUp {
    /// Chosen by the sender; the same id is the same sign-up, however often it is delivered.
    pub request_id: Uuid,
    /// The name the tenant will have.
    pub slug: Slug,
    /// What it pays for; `starter` when left out.
    pub plan: Plan,
    /// Where it lives; this stack's region when left out.
    pub region: Region,
    /// How separate its data is to be; the plan's own isolation when left out.
    pub isolation: Option<Isolation>,
    /// Who signed up.
    pub owner: Contact,
    /// A customer of billing's that exists, to be billed for the tenant.
    pub customer: Option<String>,
    /// What is charged; without one, invoices are sent.
    pub payment_method: Option<String>,
    /// Whether it is paid for already; false when left out, and then billing's `payment.confirmed` starts it.
    pub paid: bool,
}

impl SignUp {
    /// Reads a sign-up addressed to a stack that serves `region`.
    ///
    /// # Errors
    /// `InvalidRequest` with every problem.
    pub fn parse(document: &Value, region: &Region) -> Result<Self, StepError> {
        let mut fields = Fields::of("", document)?;
        let request_id = fields.required("request_id", |v| parsed::<Uuid>(v, "must be a UUID"));
        let slug = fields.required("slug", name::<Slug>);
        let plan = fields.optional("plan", name::<Plan>).map(|plan| plan.unwrap_or(Plan::Starter));
        let home = fields.optional("region", |v| served(v, region)).map(|home| home.unwrap_or_else(|| region.clone()));
        let isolation = fields.optional("isolation", name::<Isolation>);
        let (customer, payment_method) = billing(&mut fields);
        let paid = fields.optional("paid", boolean).map(Option::unwrap_or_default);
        let owner = fields.required("owner", |v| Ok::<_, Rule>(v.clone())).and_then(|owner| {
            let mut nested = match Fields::of("owner", &owner) {
                Ok(nested) => nested,
                Err(StepError::InvalidRequest(problems)) => {
                    fields.problems.extend(problems);
                    return None;
                }
                Err(_) => return None,
            };
            let name = nested.required("name", person_name);
            let email = nested.required("email", email);
            fields.problems.extend(nested.finish());
            Some(Contact { name: name?, email: email? })
        });
        let problems = fields.finish();
        match (request_id, slug, plan, home, owner, paid, isolation) {
            (Some(request_id), Some(slug), Some(plan), Some(region), Some(owner), Some(paid), Some(isolation))
                if problems.is_empty() =>
            {
                Ok(SignUp { request_id, slug, plan, region, isolation, owner, customer, payment_method, paid })
            }
            _ => Err(StepError::InvalidRequest(problems)),
        }
    }
}

/// The customer and the payment method that `billing` names.
fn billing(fields: &mut Fields) -> (Option<String>, Option<String>) {
    let Some(Some(document)) = fields.optional("billing", |v| Ok::<_, Rule>(v.clone())) else { return (None, None) };
    let mut nested = match Fields::of("billing", &document) {
        Ok(nested) => nested,
        Err(StepError::InvalidRequest(problems)) => {
            fields.problems.extend(problems);
            return (None, None);
        }
        Err(_) => return (None, None),
    };
    let customer =
        nested.optional("customer", |v| stripe_id(v, "cus_", "must be a Stripe customer's id, such as cus_9s6XKzk"));
    let method = nested.optional("payment_method", |v| {
        stripe_id(v, "pm_", "must be a Stripe payment method's id, such as pm_1MqLiJL")
    });
    let (customer, method) = (customer.flatten(), method.flatten());
    if customer.is_some() && method.is_some() {
        nested.problem("payment_method", "must be left out where billing.customer is named, whose own is charged");
    }
    fields.problems.extend(nested.finish());
    (customer, method)
}

/// What every step of a machine gets: which tenant, and who is acting.
#[derive(Debug, Clone)]
pub struct StepCall {
    /// The tenant.
    pub tenant: Selector,
    /// Who is acting.
    pub actor: Actor,
    /// Whether the machine was asked to undo (`intent: compensate`).
    pub compensate: bool,
    /// What the machine caught, for the steps that handle failures.
    pub failure: Option<Failure>,
}

/// A request to suspend a tenant, or to lift a suspension: what the machines are started with, and who carries it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuspensionCall {
    /// The tenant.
    pub tenant: Selector,
    /// For which reason.
    pub reason: Reason,
    /// Who wants it: named by the request, or else the execution.
    pub actor: String,
}

impl SuspensionCall {
    /// Reads `{"request": {"tenant_id" or "slug", "reason", "actor"}, "execution"}`; by hand, all in one object.
    ///
    /// # Errors
    /// `InvalidRequest` with every problem.
    pub fn parse(document: &Value) -> Result<Self, StepError> {
        let mut outer = Fields::of("", document)?;
        let execution = outer.required("execution", name::<Actor>);
        let mut request = match outer.left.remove("request") {
            Some(request) => Fields::of("request", &request)?,
            None => Fields { path: "", left: std::mem::take(&mut outer.left), problems: Vec::new() },
        };
        let tenant = selector(&mut request);
        let reason = request.required("reason", name::<Reason>);
        let actor = request.optional("actor", |value| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
            let text = value.as_str().filter(|text| (1..=64).contains(&text.len()) && text.bytes().all(plain));
            text.map(str::to_owned).ok_or(
                "must be 1 to 64 letters, digits, dots, colons, hyphens or underscores: no address, no free text",
            )
        });
        let mut problems = outer.finish();
        problems.extend(request.finish());
        match (tenant, reason, actor, execution) {
            (Some(tenant), Some(reason), Some(actor), Some(execution)) if problems.is_empty() => {
                Ok(SuspensionCall { tenant, reason, actor: actor.unwrap_or_else(|| execution.to_string()) })
            }
            _ => Err(StepError::InvalidRequest(problems)),
        }
    }
}

/// Reads which tenant somebody asks about. Who asks is accepted, as every step's input names it, and not needed.
///
/// # Errors
/// `InvalidRequest` with every problem.
pub fn tenant_asked_about(document: &Value) -> Result<Selector, StepError> {
    let mut fields = Fields::of("", document)?;
    let tenant = selector(&mut fields);
    let _ = fields.optional("execution", name::<Actor>);
    let problems = fields.finish();
    tenant.filter(|_| problems.is_empty()).ok_or(StepError::InvalidRequest(problems))
}

/// The one tenant that a document names.
fn selector(fields: &mut Fields) -> Option<Selector> {
    let id = fields.optional("tenant_id", name::<TenantId>);
    let slug = fields.optional("slug", name::<Slug>);
    match (id, slug) {
        (Some(Some(id)), Some(None)) => Some(Selector::Id(id)),
        (Some(None), Some(Some(slug))) => Some(Selector::Slug(slug.to_string())),
        (Some(_), Some(_)) => {
            fields.problem("", "must name one tenant, by tenant_id or by slug");
            None
        }
        _ => None,
    }
}

impl StepCall {
    /// Reads a step's input.
    ///
    /// # Errors
    /// `InvalidRequest` with every problem.
    pub fn parse(document: &Value) -> Result<Self, StepError> {
        let mut fields = Fields::of("", document)?;
        let tenant = selector(&mut fields);
        let actor = fields.required("execution", name::<Actor>);
        let intent = fields.optional("intent", |v| match v.as_str() {
            Some("provision") => Ok(false),
            Some("compensate") => Ok(true),
            _ => Err("must be provision or compensate"),
        });
        let failure = fields.optional("error", caught);
        let problems = fields.finish();
        match (tenant, actor, intent, failure) {
            (Some(tenant), Some(actor), Some(intent), Some(failure)) if problems.is_empty() => {
                Ok(StepCall { tenant, actor, compensate: intent.unwrap_or_default(), failure })
            }
            _ => Err(StepError::InvalidRequest(problems)),
        }
    }
}

/// What ExportPart gets: a step's input, and which part.
#[derive(Debug, Clone)]
pub struct PartCall {
    /// The tenant.
    pub tenant: Selector,
    /// Who is acting.
    pub actor: Actor,
    /// The part's number, from 1.
    pub part: i32,
}

impl PartCall {
    /// Reads the step's input.
    ///
    /// # Errors
    /// `InvalidRequest` with every problem.
    pub fn parse(document: &Value) -> Result<Self, StepError> {
        let mut fields = Fields::of("", document)?;
        let tenant = selector(&mut fields);
        let actor = fields.required("execution", name::<Actor>);
        let part = fields.required("part", |value| {
            let number = value.as_i64().and_then(|number| i32::try_from(number).ok()).filter(|number| *number > 0);
            number.ok_or("must be the number of a part, from 1")
        });
        let problems = fields.finish();
        match (tenant, actor, part) {
            (Some(tenant), Some(actor), Some(part)) if problems.is_empty() => Ok(PartCall { tenant, actor, part }),
            _ => Err(StepError::InvalidRequest(problems)),
        }
    }
}

/// Billing's `payment.confirmed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payment {
    /// Billing's own id of the payment.
    pub payment_id: String,
    /// What it pays for.
    pub paid_for: PaidFor,
}

impl Payment {
    /// Reads the event's detail.
    ///
    /// # Errors
    /// `InvalidRequest` with every problem.
    pub fn parse(document: &Value) -> Result<Self, StepError> {
        let mut fields = Fields::of("payment", document)?;
        let payment_id = fields.required("payment_id", |v| match v.as_str() {
            Some(text) if (1..=MAX_PAYMENT_ID_BYTES).contains(&text.len()) => Ok(text.to_owned()),
            _ => Err("must be a text of 1 to 255 bytes"),
        });
        let request = fields.optional("request_id", |v| parsed::<Uuid>(v, "must be a UUID"));
        let tenant = fields.optional("tenant_id", name::<TenantId>);
        let paid_for = match (request, tenant) {
            (Some(Some(request)), Some(None)) => Some(PaidFor::Request(request)),
            (Some(None), Some(Some(tenant))) => Some(PaidFor::Tenant(tenant)),
            (Some(_), Some(_)) => {
                fields.problem("", "must name what it pays for, by request_id or by tenant_id");
                None
            }
            _ => None,
        };
        let problems = fields.finish();
        match (payment_id, paid_for) {
            (Some(payment_id), Some(paid_for)) if problems.is_empty() => Ok(Payment { payment_id, paid_for }),
            _ => Err(StepError::InvalidRequest(problems)),
        }
    }
}

/// A rule that a field breaks, phrased to follow the field's name.
type Rule = Cow<'static, str>;

/// The fields of one JSON object, taken one by one; what is left over is a problem too.
struct Fields {
    path: &'static str,
    left: Map<String, Value>,
    problems: Vec<Problem>,
}

impl Fields {
    fn of(path: &'static str, document: &Value) -> Result<Self, StepError> {
        match document {
            Value::Object(map) => Ok(Fields { path, left: map.clone(), problems: Vec::new() }),
            _ => Err(StepError::InvalidRequest(vec![Problem {
                field: if path.is_empty() { "the request".into() } else { path.into() },
                rule: "must be a JSON object".into(),
            }])),
        }
    }

    /// A field that must be there. `None` when there is a problem with it.
    fn required<T, R: Into<Rule>>(&mut self, field: &str, read: impl FnOnce(&Value) -> Result<T, R>) -> Option<T> {
        match self.optional(field, read) {
            Some(None) => {
                self.problem(field, "is required");
                None
            }
            Some(value) => value,
            None => None,
        }
    }

    /// A field that may be left out (`null` counts as left out). The outer `None` means there is a problem with it.
    fn optional<T, R: Into<Rule>>(
        &mut self,
        field: &str,
        read: impl FnOnce(&Value) -> Result<T, R>,
    ) -> Option<Option<T>> {
        let value = match self.left.remove(field) {
            None | Some(Value::Null) => return Some(None),
            Some(value) => value,
        };
        match read(&value) {
            Ok(value) => Some(Some(value)),
            Err(rule) => {
                self.problem(field, &rule.into());
                None
            }
        }
    }

    fn problem(&mut self, field: &str, rule: &str) {
        let path = [self.path, field].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(".");
        let field = if path.is_empty() { "the request".to_owned() } else { path };
        self.problems.push(Problem { field, rule: rule.to_owned() });
    }

    /// Every problem, with the fields nobody asked for.
    fn finish(mut self) -> Vec<Problem> {
        // A name nobody asked for is the sender's text: shortened, and without control characters, before it is shown.
        let unknown: Vec<String> = self.left.keys().map(|key| key.escape_debug().take(64).collect()).collect();
        for field in unknown {
            self.problem(&field, "is not a field of this request");
        }
        self.problems
    }
}

fn parsed<T: FromStr>(value: &Value, rule: &'static str) -> Result<T, &'static str> {
    value.as_str().and_then(|text| text.parse().ok()).ok_or(rule)
}

fn name<T: FromStr<Err = InvalidName>>(value: &Value) -> Result<T, &'static str> {
    value.as_str().ok_or("must be a text")?.parse().map_err(|InvalidName(rule)| rule)
}

fn boolean(value: &Value) -> Result<bool, &'static str> {
    value.as_bool().ok_or("must be true or false")
}

fn served(value: &Value, here: &Region) -> Result<Region, Rule> {
    let region = name::<Region>(value)?;
    if region == *here {
        Ok(region)
    } else {
        Err(format!("{region} is not served by this stack, which serves {here}").into())
    }
}

fn stripe_id(value: &Value, prefix: &str, rule: &'static str) -> Result<String, &'static str> {
    let text = value.as_str().ok_or(rule)?;
    let rest = text.strip_prefix(prefix).ok_or(rule)?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if (1..=250).contains(&rest.len()) && rest.bytes().all(plain) { Ok(text.to_owned()) } else { Err(rule) }
}

fn person_name(value: &Value) -> Result<String, &'static str> {
    let text = value.as_str().ok_or("must be a text")?;
    if text.trim().is_empty() {
        Err("must not be empty")
    } else if text.chars().count() > MAX_NAME_CHARS {
        Err("must have at most 200 characters")
    } else if text.chars().any(char::is_control) {
        Err("must not hold control characters")
    } else {
        Ok(text.to_owned())
    }
}

fn email(value: &Value) -> Result<String, &'static str> {
    let text = value.as_str().ok_or("must be a text")?;
    let options = email_address::Options::default().with_required_tld().without_display_text().without_domain_literal();
    let plain = text.is_ascii() && !text.contains(['"', '\\', ' ']) && text.len() <= MAX_EMAIL_BYTES;
    if plain && email_address::EmailAddress::parse_with_options(text, options).is_ok() {
        Ok(text.to_owned())
    } else {
        Err("must be an email address, such as owner@example.com")
    }
}

/// What a state machine's Catch leaves: `{"Error": …, "Cause": …}`, where a Lambda's cause is JSON with the message.
fn caught(value: &Value) -> Result<Failure, &'static str> {
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let error = text("Error").ok_or("must be an error that a state machine caught")?;
    let cause = text("Cause").unwrap_or_default();
    let message = serde_json::from_str::<Value>(cause)
        .ok()
        .and_then(|cause| cause.get("errorMessage").and_then(Value::as_str).map(str::to_owned))
        .unwrap_or_else(|| cause.to_owned());
    Ok(Failure { error: error.to_owned(), message })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn home() -> Region {
        "us-east-1".parse().expect("a region")
    }

    fn good() -> Value {
        json!({
            "request_id": "7f3b8a4e-51b9-4a8e-9a30-6f4f1f5f7a11",
            "slug": "acme",
            "owner": {"name": "Ada Lovelace", "email": "ada@acme.example"},
        })
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let Ok(request) = SignUp::parse(&good(), &home()) else { panic!("refused") };
        assert_eq!((request.plan, request.region, request.paid), (Plan::Starter, home(), false));
    }

    #[test]
    fn every_problem_is_named_with_its_field() {
        let mut request = good();
        request["slug"] = json!("WWW");
        request["plan"] = json!("platinum");
        request["region"] = json!("eu-central-1");
        request["owner"]["email"] = json!("ada");
        request["owner"]["phone"] = json!("1");
        request["coupon"] = json!(1);
        let Err(StepError::InvalidRequest(problems)) = SignUp::parse(&request, &home()) else { panic!("accepted") };
        let fields: Vec<&str> = problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(fields, ["slug", "plan", "region", "owner.email", "owner.phone", "coupon"]);
    }

    #[test]
    fn a_caught_lambda_error_gives_its_message() {
        let input = json!({
            "tenant_id": "7f3b8a4e-51b9-4a8e-9a30-6f4f1f5f7a11",
            "execution": "manual:ada",
            "error": {"Error": "Denied", "Cause": "{\"errorType\":\"Denied\",\"errorMessage\":\"not permitted: x\"}"},
        });
        let call = StepCall::parse(&input).expect("valid");
        assert_eq!(call.failure, Some(Failure { error: "Denied".into(), message: "not permitted: x".into() }));
    }

    #[test]
    fn a_payment_names_one_thing() {
        assert!(Payment::parse(&json!({"payment_id": "p"})).is_err());
        let both = json!({"payment_id": "p", "request_id": Uuid::nil(), "tenant_id": Uuid::nil()});
        assert!(Payment::parse(&both).is_err());
    }
}
