//! What callers send, read strictly: every problem is found at once and named by field and rule.

pub mod quotas;

use std::borrow::Cow;
use std::str::FromStr;

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::error::{Problem, StepError};
use crate::moment;
use crate::registry::Selector;
use crate::registry::contacts::Contact;
use crate::registry::fence::{Actor, Failure};
use crate::registry::holds::Extension;
use crate::registry::payments::PaidFor;
use crate::registry::plans::Wish;
use crate::tenant::{InvalidName, Isolation, LeaveReason, Plan, Reason, Region, Slug, TenantId};

/// The longest owner's name, in characters.
const MAX_NAME_CHARS: usize = 200;
/// The longest email address (RFC 5321 4.5.3.1.3, less the angle brackets).
const MAX_EMAIL_BYTES: usize = 254;
/// The most that a hold is put off at once: ten years.
const MAX_EXTENSION_SECONDS: f64 = 315_360_000.0;
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
    /// Why nobody could look what was left after that.
    pub unseen: Option<Failure>,
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
    /// Who carries it out.
    pub execution: Actor,
}

/// A request to take a tenant out of service for good: what offboard-tenant is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaving {
    /// The tenant.
    pub tenant: Selector,
    /// Why; left out by who goes on with a hold that is open.
    pub reason: Option<LeaveReason>,
    /// Who wants it: named by the request, or else the execution.
    pub actor: String,
    /// Where somebody asked for erasure: no export, no hold.
    pub erasure: Option<Erasure>,
    /// Who waived the export, without which nothing else is deleted at once.
    pub waived_by: Option<String>,
    /// Who carries it out.
    pub execution: Actor,
}

/// A request for erasure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    /// The slug once more, so that nobody is erased by a wrong line.
    pub confirm_slug: String,
    /// Where the request is kept.
    pub ticket: String,
}

impl Leaving {
    /// Reads `{"request": {"tenant_id" or "slug", "reason", "actor", "erasure", "waive_export"}, "execution"}`; by hand, all in
    /// one object.
    ///
    /// # Errors
    /// `InvalidRequest` with every problem.
    pub fn parse(document: &Value) -> Result<Self, StepError> {
        let (execution, mut request, mut problems) = carried(document)?;
        let tenant = selector(&mut request);
        let reason = request.optional("reason", name::<LeaveReason>);
        let actor = request.optional("actor", label);
        let erasure = request.nested("erasure", "request.erasure", |fields| {
            let confirm_slug = fields.required("confirm_slug", name::<Slug>);
            let ticket = fields.required("ticket", ticket);
            Some(Erasure { confirm_slug: confirm_slug?.to_string(), ticket: ticket? })
        });
        let waived_by = request.nested("waive_export", "request.waive_export", |fields| fields.required("by", label));
        if matches!((&erasure, &waived_by), (Some(Some(_)), Some(Some(_)))) {
            request.problem("waive_export", "must be left out of an erasure, which has no export");
        }
        problems.extend(request.finish());
        match (tenant, reason, actor, erasure, waived_by, execution) {
            (Some(tenant), Some(reason), Some(actor), Some(erasure), Some(waived_by), Some(execution))
                if problems.is_empty() =>
            {
                let actor = actor.unwrap_or_else(|| execution.to_string());
                Ok(Leaving { tenant, reason, actor, erasure, waived_by, execution })
            }
            _ => Err(StepError::InvalidRequest(problems)),
        }
    }

    /// Whether the deletion is to follow at once.
    pub fn is_at_once(&self) -> bool {
        self.erasure.is_some() || self.waived_by.is_some()
    }
}

/// An operator's wish to put a hold's end off.
#[derive(Debug, Clone, PartialEq)]
pub struct HoldExtension {
    /// The tenant.
    pub tenant: Selector,
    /// How far.
    pub until: Extension,
    /// Who wants it.
    pub actor: Actor,
}

impl HoldExtension {
    /// Reads `{"tenant_id" or "slug", "until" or "seconds", "execution"}`.
    ///
    /// # Errors
    /// `InvalidRequest` with every problem.
    pub fn parse(document: &Value) -> Result<Self, StepError> {
        let mut fields = Fields::of("", document)?;
        let tenant = selector(&mut fields);
        let until = fields.optional("until", |value| {
            #[allow(clippy::cast_precision_loss)] // seconds since 1970 are exact in an f64
            moment::read(value).map(|moment| Extension::Until(moment.unix_timestamp() as f64))
        });
        let seconds = fields.optional("seconds", |value| {
            let seconds = value.as_f64().filter(|seconds| (1.0..=MAX_EXTENSION_SECONDS).contains(seconds));
            seconds.map(Extension::By).ok_or("must be a number of seconds, up to ten years")
        });
        let actor = fields.required("execution", name::<Actor>);
        let until = match (until, seconds) {
            (Some(Some(until)), Some(None)) | (Some(None), Some(Some(until))) => Some(until),
            (Some(_), Some(_)) => {
                fields.problem("", "must say until when, or by how many seconds");
                None
            }
            _ => None,
        };
        let problems = fields.finish();
        match (tenant, until, actor) {
            (Some(tenant), Some(until), Some(actor)) if problems.is_empty() => {
                Ok(HoldExtension { tenant, until, actor })
            }
            _ => Err(StepError::InvalidRequest(problems)),
        }
    }
}

/// An operator's wish to protect a tenant from deletion, or to lift that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtectionCall {
    /// The tenant.
    pub tenant: Selector,
    /// Whether it is to be protected.
    pub protected: bool,
    /// Who wants it.
    pub actor: Actor,
}

impl ProtectionCall {
    /// Reads `{"tenant_id" or "slug", "protected", "execution"}`.
    ///
    /// # Errors
    /// `InvalidRequest` with every problem.
    pub fn parse(document: &Value) -> Result<Self, StepError> {
        let mut fields = Fields::of("", document)?;
        let tenant = selector(&mut fields);
        let protected = fields.required("protected", boolean);
        let actor = fields.required("execution", name::<Actor>);
        let problems = fields.finish();
        match (tenant, protected, actor) {
            (Some(tenant), Some(protected), Some(actor)) if problems.is_empty() => {
                Ok(ProtectionCall { tenant, protected, actor })
            }
            _ => Err(StepError::InvalidRequest(problems)),
        }
    }
}

/// Who carries a request out, the request itself, and what is wrong around it. By hand, all is in one object.
fn carried(document: &Value) -> Result<(Option<Actor>, Fields, Vec<Problem>), StepError> {
    let mut outer = Fields::of("", document)?;
    let execution = outer.required("execution", name::<Actor>);
    let request = outer.request()?;
    Ok((execution, request, outer.finish()))
}

impl SuspensionCall {
    /// Reads `{"request": {"tenant_id" or "slug", "reason", "actor"}, "execution"}`; by hand, all in one object.
    ///
    /// # Errors
    /// `InvalidRequest` with every problem.
    pub fn parse(document: &Value) -> Result<Self, StepError> {
        let (execution, mut request, mut problems) = carried(document)?;
        let tenant = selector(&mut request);
        let reason = request.required("reason", name::<Reason>);
        let actor = request.optional("actor", label);
        problems.extend(request.finish());
        match (tenant, reason, actor, execution) {
            (Some(tenant), Some(reason), Some(actor), Some(execution)) if problems.is_empty() => {
                let actor = actor.unwrap_or_else(|| execution.to_string());
                Ok(SuspensionCall { tenant, reason, actor, execution })
            }
            _ => Err(StepError::InvalidRequest(problems)),
        }
    }
}

/// A request to change a tenant's plan: what the machine is started with, and who carries it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanChangeCall {
    /// The tenant.
    pub tenant: Selector,
    /// What is wanted.
    pub wish: Wish,
    /// Who carries it out.
    pub by: Actor,
}

impl PlanChangeCall {
    /// Reads `{"request": {"tenant_id" or "slug", "plan", "actor", "reason"}, "execution"}`; by hand, all in one object. The
    /// plan may be left out, to finish a change or to put right what the tenant has.
    ///
    /// # Errors
    /// `InvalidRequest` with every problem.
    pub fn parse(document: &Value) -> Result<Self, StepError> {
        let (by, mut request, mut problems) = carried(document)?;
        let tenant = selector(&mut request);
        let plan = request.optional("plan", name::<Plan>);
        let actor = request.optional("actor", label);
        let reason = request.optional("reason", label);
        problems.extend(request.finish());
        match (tenant, plan, actor, reason, by) {
            (Some(tenant), Some(plan), Some(actor), Some(reason), Some(by)) if problems.is_empty() => {
                let actor = actor.unwrap_or_else(|| by.to_string());
                Ok(PlanChangeCall { tenant, wish: Wish { plan, actor, reason }, by })
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

/// Reads what delete-tenant was started with, and who carries it out: `{"request": {"tenant_id" or "slug"}, "execution"}`; by hand,
/// all in one object.
///
/// # Errors
/// `InvalidRequest` with every problem.
pub fn tenant_to_delete(document: &Value) -> Result<(Selector, Actor), StepError> {
    let mut outer = Fields::of("", document)?;
    let actor = outer.required("execution", name::<Actor>);
    let mut request = outer.request()?;
    let tenant = selector(&mut request);
    let mut problems = outer.finish();
    problems.extend(request.finish());
    match (tenant, actor) {
        (Some(tenant), Some(actor)) if problems.is_empty() => Ok((tenant, actor)),
        _ => Err(StepError::InvalidRequest(problems)),
    }
}

/// A downstream system's `tenant.deletion_confirmed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmation {
    /// Whose data was deleted.
    pub tenant: TenantId,
    /// The system's name, as it is registered.
    pub system: String,
    /// How many records were deleted, if the system says so.
    pub records: Option<i64>,
}

impl Confirmation {
    /// Reads the event's detail.
    ///
    /// # Errors
    /// `InvalidRequest` with every problem.
    pub fn parse(document: &Value) -> Result<Self, StepError> {
        let mut fields = Fields::of("", document)?;
        let tenant = fields.required("tenant_id", name::<TenantId>);
        let system = fields.required("system", system_name);
        let records = fields.optional("records", |value| {
            value.as_i64().filter(|number| *number >= 0).ok_or("must be a number of records, from 0")
        });
        let problems = fields.finish();
        match (tenant, system, records) {
            (Some(tenant), Some(system), Some(records)) if problems.is_empty() => {
                Ok(Confirmation { tenant, system, records })
            }
            _ => Err(StepError::InvalidRequest(problems)),
        }
    }
}

/// An operator's wish to have a system asked about every tenant that is deleted, or not asked any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownstreamSystem {
    /// Its name.
    pub name: String,
    /// What kind of system it is, such as `search-index`.
    pub kind: String,
    /// Whether it is not asked any more.
    pub retire: bool,
    /// Who wants it.
    pub actor: String,
}

impl DownstreamSystem {
    /// Reads `{"name", "kind", "retire", "execution": "manual:<who>"}`.
    ///
    /// # Errors
    /// `InvalidRequest` with every problem.
    pub fn parse(document: &Value) -> Result<Self, StepError> {
        let mut fields = Fields::of("", document)?;
        let called = fields.required("name", system_name);
        let kind = fields.required("kind", system_name);
        let retire = fields.optional("retire", boolean).map(Option::unwrap_or_default);
        let actor = fields.required("execution", |value| match name::<Actor>(value) {
            Ok(Actor::Manual(who)) => Ok(who),
            Ok(Actor::Execution(_)) => Err("must be manual:<who>: only a person registers a system"),
            Err(rule) => Err(rule),
        });
        let problems = fields.finish();
        match (called, kind, retire, actor) {
            (Some(name), Some(kind), Some(retire), Some(actor)) if problems.is_empty() => {
                Ok(DownstreamSystem { name, kind, retire, actor })
            }
            _ => Err(StepError::InvalidRequest(problems)),
        }
    }
}

/// The name of a downstream system, or of a kind of them.
fn system_name(value: &Value) -> Result<String, &'static str> {
    let plain = |text: &&str| {
        (2..=63).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && text.starts_with(|first: char| first.is_ascii_lowercase())
            && !text.ends_with('-')
    };
    let text = value.as_str().filter(plain).map(str::to_owned);
    text.ok_or("must be 2 to 63 lower-case letters, digits and hyphens, beginning with a letter")
}

/// The one tenant that a document names.
pub(crate) fn selector(fields: &mut Fields) -> Option<Selector> {
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
        let error = fields.optional("error", |value| {
            // ReleaseTenant's own failure lies within the one that it was to release the tenant after.
            let unseen = value.get("release").map(caught).transpose();
            caught(value).and_then(|failure| Ok((failure, unseen?)))
        });
        let problems = fields.finish();
        match (tenant, actor, intent, error) {
            (Some(tenant), Some(actor), Some(intent), Some(error)) if problems.is_empty() => {
                let (failure, unseen) = error.unzip();
                let unseen = unseen.flatten();
                Ok(StepCall { tenant, actor, compensate: intent.unwrap_or_default(), failure, unseen })
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
pub(crate) type Rule = Cow<'static, str>;

/// The fields of one JSON object, taken one by one; what is left over is a problem too.
pub(crate) struct Fields {
    path: &'static str,
    left: Map<String, Value>,
    problems: Vec<Problem>,
}

impl Fields {
    pub(crate) fn of(path: &'static str, document: &Value) -> Result<Self, StepError> {
        match document {
            Value::Object(map) => Ok(Fields { path, left: map.clone(), problems: Vec::new() }),
            _ => Err(StepError::InvalidRequest(vec![Problem {
                field: if path.is_empty() { "the request".into() } else { path.into() },
                rule: "must be a JSON object".into(),
            }])),
        }
    }

    /// What the caller asks for: under `request`, as machines send it, or by hand beside the rest.
    pub(crate) fn request(&mut self) -> Result<Self, StepError> {
        match self.left.remove("request") {
            Some(request) => Fields::of("request", &request),
            None => Ok(Fields { path: "", left: std::mem::take(&mut self.left), problems: Vec::new() }),
        }
    }

    /// Whether a field is there.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.left.contains_key(field)
    }

    /// A field that must be there. `None` when there is a problem with it.
    pub(crate) fn required<T, R: Into<Rule>>(
        &mut self,
        field: &str,
        read: impl FnOnce(&Value) -> Result<T, R>,
    ) -> Option<T> {
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
    pub(crate) fn optional<T, R: Into<Rule>>(
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

    /// An object inside this one, which may be left out; its own path is `path`.
    fn nested<T>(
        &mut self,
        field: &str,
        path: &'static str,
        read: impl FnOnce(&mut Fields) -> Option<T>,
    ) -> Option<Option<T>> {
        let document = match self.optional(field, |value| Ok::<_, Rule>(value.clone()))? {
            Some(document) => document,
            None => return Some(None),
        };
        let mut nested = match Fields::of(path, &document) {
            Ok(nested) => nested,
            Err(StepError::InvalidRequest(problems)) => {
                self.problems.extend(problems);
                return None;
            }
            Err(_) => return None,
        };
        let value = read(&mut nested);
        self.problems.extend(nested.finish());
        value.map(Some)
    }

    pub(crate) fn problem(&mut self, field: &str, rule: &str) {
        let path = [self.path, field].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(".");
        let field = if path.is_empty() { "the request".to_owned() } else { path };
        self.problems.push(Problem { field, rule: rule.to_owned() });
    }

    /// Every problem, with the fields nobody asked for.
    pub(crate) fn finish(mut self) -> Vec<Problem> {
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

pub(crate) fn name<T: FromStr<Err = InvalidName>>(value: &Value) -> Result<T, &'static str> {
    value.as_str().ok_or("must be a text")?.parse().map_err(|InvalidName(rule)| rule)
}

fn boolean(value: &Value) -> Result<bool, &'static str> {
    value.as_bool().ok_or("must be true or false")
}

/// The name of somebody that may be kept for ever, because it is no personal data.
fn label(value: &Value) -> Result<String, &'static str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    let text = value.as_str().filter(|text| (1..=64).contains(&text.len()) && text.bytes().all(plain));
    text.map(str::to_owned)
        .ok_or("must be 1 to 64 letters, digits, dots, colons, hyphens or underscores: no address, no free text")
}

fn served(value: &Value, here: &Region) -> Result<Region, Rule> {
    let region = name::<Region>(value)?;
    if region == *here {
        Ok(region)
    } else {
        Err(format!("{region} is not served by this stack, which serves {here}").into())
    }
}

/// A name of who acts, as the audit trail keeps it for ever.
fn ticket(value: &Value) -> Result<String, &'static str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let text = value.as_str().filter(|text| (1..=64).contains(&text.len()) && text.bytes().all(plain));
    text.map(str::to_owned).ok_or("must be 1 to 64 letters, digits, dots, hyphens or underscores: no free text")
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
        assert_eq!(call.unseen, None);
    }

    #[test]
    fn a_failed_release_leaves_the_first_error_as_it_is() {
        let input = json!({
            "slug": "acme",
            "execution": "manual:ada",
            "error": {"Error": "Denied", "Cause": "no", "release": {"Error": "Transient", "Cause": "not yet"}},
        });
        let call = StepCall::parse(&input).expect("valid");
        assert_eq!(call.failure, Some(Failure { error: "Denied".into(), message: "no".into() }));
        assert_eq!(call.unseen, Some(Failure { error: "Transient".into(), message: "not yet".into() }));
    }

    #[test]
    fn a_plan_change_names_every_problem() {
        let call = json!({
            "request": {"slug": "acme", "plan": "platinum", "reason": "asked by ada@acme.example", "seats": 5},
            "execution": "manual:ada",
        });
        let Err(StepError::InvalidRequest(problems)) = PlanChangeCall::parse(&call) else { panic!("accepted") };
        let fields: Vec<&str> = problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(fields, ["request.plan", "request.reason", "request.seats"]);
        let call = PlanChangeCall::parse(&json!({"slug": "acme", "execution": "manual:ada"})).expect("valid");
        assert_eq!((call.wish.plan, call.wish.actor.as_str()), (None, "manual:ada"));
    }

    #[test]
    fn a_payment_names_one_thing() {
        assert!(Payment::parse(&json!({"payment_id": "p"})).is_err());
        let both = json!({"payment_id": "p", "request_id": Uuid::nil(), "tenant_id": Uuid::nil()});
        assert!(Payment::parse(&both).is_err());
    }
}
