//! What a step is, and how one runs: as a Lambda, under the fence, with the journal.

use std::time::Instant;

use async_trait::async_trait;
use json_subscriber::JsonLayer;
use lambda_runtime::{LambdaEvent, service_fn};
use serde_json::{Value, json};
use tracing::{Instrument, Metadata, Span, field};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::registry::fence::{self, Actor};
use crate::registry::{self, Record, journal};
use crate::request::StepCall;
use crate::resource::{Inspection, Resource};
use crate::tenant::{Status, Tenant};

/// One Lambda's work: JSON in, JSON or an error with a name out.
#[async_trait]
pub trait Step: Send + Sync {
    /// Does the work. `name` is the step's name in the journal and the logs.
    ///
    /// # Errors
    /// As the step documents; the error's name is what state machines match on.
    async fn run(&self, name: &'static str, input: &Value) -> Result<Value, StepError>;
}

/// What [`serve`] and [`Journaled`] are built from: a function that wires a step from its settings.
pub type Build = fn(&Environment) -> Result<Box<dyn Step>, StepError>;

/// What [`serve`] ends in: an error only when the Lambda runtime API cannot be reached.
pub type Served = Result<(), lambda_runtime::Error>;

/// Serves a step as a Lambda until the sandbox ends. A step that cannot be built answers every event with the reason,
/// which a crash at start-up would hide from the state machine.
///
/// # Errors
/// When the Lambda runtime API cannot be reached.
pub async fn serve(name: &'static str, build: Build) -> Served {
    init_logs();
    let env = Environment::load().await;
    let built = build(&env);
    let step = &built;
    lambda_runtime::run(service_fn(move |event: LambdaEvent<Value>| async move {
        let span = span(name, &event);
        handle(name, step, event.payload).instrument(span).await
    }))
    .await
}

async fn handle(name: &'static str, step: &Result<Box<dyn Step>, StepError>, input: Value) -> Result<Value, StepError> {
    let begun = Instant::now();
    let result = match step {
        Ok(step) => step.run(name, &input).await,
        Err(error) => Err(error.clone()),
    };
    let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    match &result {
        Ok(_) => tracing::info!(millis, "step succeeded"),
        // An answer, and not a failure.
        Err(StepError::Unauthorized) => tracing::info!(millis, "a payment is due"),
        Err(error) if error.is_transient() => {
            tracing::warn!(millis, error = error.name(), %error, "step will be retried");
        }
        Err(error) => tracing::error!(millis, error = error.name(), %error, "step failed"),
    }
    result
}

/// The fields every log line carries. Only these are taken from the input: the rest may be personal data.
fn span(name: &'static str, event: &LambdaEvent<Value>) -> Span {
    let text = |key: &str| event.payload.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let tenant = Some(text("tenant_id")).filter(|id| !id.is_empty()).unwrap_or_else(|| text("slug"));
    let request_id = event.context.request_id.as_str();
    tracing::info_span!("step", step = name, %tenant, execution = text("execution"), request_id)
}

/// Names the tenant on the log lines that follow, for steps that learn it only by looking.
pub fn log_tenant(tenant: &Tenant) {
    Span::current().record("tenant", field::display(tenant.id));
}

/// One JSON object a line, as CloudWatch Logs Insights reads them, with the span's fields at the top level.
fn init_logs() {
    let level = tracing_subscriber::EnvFilter::try_from_env("LOG_LEVEL")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let mut json = JsonLayer::stdout();
    json.with_timer("timestamp", SystemTime);
    json.with_level("level");
    json.with_flattened_event();
    json.with_top_level_flattened_span_list();
    // The runtime repeats every error that we return, without the step's fields. Its panics, which have an `error` field,
    // stay, and so do its spans: they hold the trace's id.
    let repeated = |event: &Metadata<'_>| {
        let returned = event.target() == "lambda_runtime::layers::panic" && event.fields().field("error").is_none();
        event.is_event() && returned
    };
    let ours = filter_fn(move |metadata| !repeated(metadata));
    tracing_subscriber::registry().with(level).with(ours).with(json).init();
}

/// What a journaled step does to a tenant.
#[async_trait]
pub trait Action: Send + Sync {
    /// Acts; running it again changes nothing. Returns what the journal keeps.
    ///
    /// # Errors
    /// As the action documents.
    async fn act(&self, tenant: &Tenant, database: &Database) -> Result<Value, StepError>;

    /// Whether what another execution's journal entry claims is still true.
    ///
    /// # Errors
    /// When the real system could not be asked.
    async fn holds(&self, tenant: &Tenant) -> Result<bool, StepError>;
}

/// Every resource is an action: make sure of it.
#[async_trait]
impl<R: Resource> Action for R {
    async fn act(&self, tenant: &Tenant, _database: &Database) -> Result<Value, StepError> {
        self.ensure(tenant).await
    }

    async fn holds(&self, tenant: &Tenant) -> Result<bool, StepError> {
        Ok(self.inspect(tenant).await? == Inspection::Present)
    }
}

/// A step that acts on a tenant under the fence, once: a resumed execution finds it in the journal and goes on.
pub struct Journaled {
    registry: Database,
    action: Box<dyn Action>,
    allowed: &'static [Status],
}

impl Journaled {
    /// A step of provisioning itself: acts while the tenant is `provisioning`.
    ///
    /// # Errors
    /// `Misconfigured` when the registry's secret is not named.
    pub fn provisioning(env: &Environment, action: Box<dyn Action>) -> Result<Box<dyn Step>, StepError> {
        Ok(Box::new(Journaled { registry: Database::registry(env)?, action, allowed: &[Status::Provisioning] }))
    }

    /// A step that follows activation.
    ///
    /// # Errors
    /// `Misconfigured` when the registry's secret is not named.
    pub fn after_activation(env: &Environment, action: Box<dyn Action>) -> Result<Box<dyn Step>, StepError> {
        let allowed = &[Status::Active, Status::Suspended];
        Ok(Box::new(Journaled { registry: Database::registry(env)?, action, allowed }))
    }

    /// Acts under the fence and keeps the journal.
    async fn act(&self, name: &str, record: &Record, actor: &Actor) -> Result<Value, StepError> {
        let work = self.action.act(&record.tenant, &self.registry);
        let made = journaled(&self.registry, name, record, actor, self.allowed, work).await?;
        Ok(json!({ "step": name, "outcome": "done", "made": made }))
    }
}

/// Does work on a tenant between two entries of the journal, if the actor may act on it before and after. Returns what it made.
pub(crate) async fn journaled(
    registry: &Database,
    name: &str,
    record: &Record,
    actor: &Actor,
    allowed: &[Status],
    work: impl Future<Output = Result<Value, StepError>>,
) -> Result<Value, StepError> {
    journal::begin(&*registry.client().await?, record, name, actor, allowed).await?;
    let made = match work.await {
        Ok(made) => made,
        Err(error) => {
            // The failure itself matters more than its entry: a registry that is down must not hide it.
            let recorded = async { journal::failed(&*registry.client().await?, record, name, actor, &error).await };
            if let Err(unrecorded) = recorded.await {
                tracing::warn!(error = %unrecorded, "the failure could not be recorded in the journal");
            }
            return Err(error);
        }
    };
    journal::done(&*registry.client().await?, record, name, actor, &made).await?;
    Ok(made)
}

#[async_trait]
impl Step for Journaled {
    async fn run(&self, name: &'static str, input: &Value) -> Result<Value, StepError> {
        let call = StepCall::parse(input)?;
        let record = registry::read(&*self.registry.client().await?, &call.tenant).await?;
        log_tenant(&record.tenant);
        fence::check(&record, &call.actor, self.allowed)?;
        if matches!(call.actor, Actor::Manual(_)) {
            // A person who runs a step wants it run: the journal is written, not believed.
            let work = Box::pin(self.act(name, &record, &call.actor));
            return act_by_hand(&self.registry, &record, &call.actor, name, work).await;
        }
        let entry = journal::entry(&*self.registry.client().await?, record.tenant.id, name).await?;
        if let Some(entry) = entry.filter(|entry| entry.done) {
            let ours = entry.execution == call.actor.to_string();
            if ours || self.action.holds(&record.tenant).await? {
                tracing::info!("done before: skipped");
                return Ok(json!({ "step": name, "outcome": "done before", "made": entry.made }));
            }
            tracing::warn!("the journal says done, the system does not: doing it again");
        }
        self.act(name, &record, &call.actor).await
    }
}

/// Does a person's work on a tenant, locked against executions, and audited under the step's name.
pub(crate) async fn act_by_hand(
    registry: &Database,
    record: &Record,
    actor: &Actor,
    name: &str,
    work: impl Future<Output = Result<Value, StepError>>,
) -> Result<Value, StepError> {
    let id = record.tenant.id;
    fence::lock_manual(&*registry.client().await?, id, actor, name).await?;
    let result = work.await;
    fence::unlock_manual(&*registry.client().await?, id).await?;
    result
}
