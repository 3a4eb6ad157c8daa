//! The rules that machines, template and code keep together (the design's contract), read from the files themselves.
//!
//! Each rule is a function from a [`Contract`] to what breaks it, and comes with ways of breaking it: a case holds when
//! the files break nothing and every one of those ways is noticed.

pub use flow::UNDOES;

mod api;
mod billing;
mod buckets;
mod flow;
mod in_service;
mod inputs;
mod leaving;
mod machines;
pub mod permissions;
mod stack;
mod template;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What the rules are about: every machine, the template, the binaries, and the inputs and schemas beside them.
#[derive(Clone, PartialEq)]
pub struct Contract {
    /// Definitions by the machine's name, which is the file's.
    machines: BTreeMap<String, Value>,
    /// The template with its tags spelled out: `!Ref x` is `{"Ref": "x"}`.
    template: Value,
    /// Names of the Lambdas' binaries.
    binaries: BTreeSet<String>,
    /// `events/*.json`, by name.
    inputs: BTreeMap<String, Value>,
    /// `events/billing/*.json`, by name.
    billing: BTreeMap<String, Value>,
    /// `events/steps/*.json`, by step.
    step_inputs: BTreeMap<String, Value>,
    /// `events/schemas/*.json`, by event type.
    schemas: BTreeMap<String, Value>,
}

/// What a state that starts another machine calls.
const START: &str = "arn:aws:states:::states:startExecution";

/// A way of breaking a rule: what it is, and how it is done.
type Breach = (&'static str, fn(&mut Contract));

/// One rule, with ways of breaking it that it must notice.
struct Rule {
    check: fn(&Contract) -> Vec<String>,
    breaches: &'static [Breach],
}

macro_rules! cases {
    ($($module:ident::$rule:ident: $name:literal),* $(,)?) => {
        /// The rules, by name.
        pub const CASES: &[(&str, fn() -> Result<()>)] = &[$(($name, || hold(&$module::$rule))),*];
    };
}

cases! {
    flow::CONNECTED: "no state is dangling or unreachable",
    flow::NOTHING_UNDONE_BEFORE_THE_FENCE: "before BeginProvisioning a failure touches nothing",
    flow::SUPERSEDED_ENDS_QUIETLY: "after BeginProvisioning the first Catch is Superseded, and ends quietly",
    flow::FAILURES_GO_WHERE_THEY_BELONG: "the last Catch of a step goes where its side of the pivot asks",
    flow::UNDOS_REVERSE_THE_STEPS: "undos reverse the steps, and a failure enters at its own step's",
    flow::PERSONAL_DATA_IS_DROPPED: "the state holds no personal data after registration",
    in_service::FAILURES_FLAG_AND_UNDO_NOTHING: "a plan change takes the fence, gives it back, and undoes nothing",
    leaving::BEGINS_WITH_THE_FENCE: "offboarding and coming back begin with the fence, and a refusal touches nothing",
    leaving::SUPERSEDED_ENDS_QUIETLY: "who leaves or comes back for another execution ends quietly",
    leaving::THE_LONG_WAIT_IS_KEPT: "after the long wait only CheckHold and delete-tenant are called, as they always were",
    leaving::NOTHING_LEADS_BACK: "from the deletion on, nothing leads back",
    leaving::IN_SERVICE_LAST: "a tenant that comes back is in service when everything was given back and seen",
    machines::COMMENTED: "every state says what it is for",
    machines::FUNCTIONS_EXIST: "every function a machine names is in the template and has a binary",
    machines::MACHINES_EXIST: "every machine that another starts is in the template",
    machines::ERRORS_ARE_KNOWN: "errors that are matched exist",
    machines::PERMANENT_ERRORS_ARE_NOT_RETRIED: "permanent errors are not retried, others with backoff and jitter",
    machines::EVERYTHING_IS_CAUGHT: "the last Catch of a Task is States.ALL alone",
    machines::PAYLOADS_ARE_SMALL: "payloads are the tenant's id and the execution",
    machines::TIMEOUTS_NEST: "clients' timeouts < functions' < Tasks', and a machine has none",
    stack::ONE_FUNCTION_A_BINARY: "every binary is a function, and every function is called",
    stack::MACHINES_ARE_KEPT: "machines are named for their file, retained, traced and logged without data",
    stack::RECOVERY_HEARS_OF_BAD_ENDS: "executions that end badly reach RecoverExecution",
    stack::RULES_HAVE_DEAD_LETTER_QUEUES: "every rule has a dead-letter queue that admits it",
    stack::FUNCTIONS_ARE_OBSERVED: "every function is traced, logged with retention, and bounded",
    stack::OPERATORS_ARE_CALLED: "an alarm follows every flag that functions log",
    stack::MIGRATIONS_COME_FIRST: "migrations run on every deploy, before the machine and the rules",
    api::AUTHORIZERS_ARE_NOT_REMEMBERED: "what an authorizer decides is kept by nobody, and only API Gateway may ask it",
    api::REFUSALS_ARE_PROBLEMS: "an API's refusals are the gate's own problem documents, from its first deployment on",
    stack::DATA_IS_KEPT: "tables are retained, encrypted and recoverable",
    stack::CERTIFICATES_ARE_KEPT: "certificates of deletion outlive the stack, and nobody replaces one",
    buckets::ADMIT_ONE_LIST: "whoever writes a bucket's policy admits everybody of ours who enters it",
    permissions::ROLES_ARE_THEIR_OWN: "every function has a role of its own",
    permissions::NO_WILDCARDS: "no role has a wildcard action, nor a wildcard resource without a reason",
    permissions::TENANTS_ROLES_ARE_BOUNDED: "roles are made only for tenants, and only with the boundary",
    permissions::MACHINES_CALL_THEIR_FUNCTIONS: "a machine may call its functions and nothing else",
    inputs::EVERY_STEP_HAS_AN_INPUT: "every function has an input to run it by hand, which it accepts",
    inputs::WORKFLOWS_HAVE_INPUTS: "the workflow's inputs are accepted, and no two share a tenant",
    billing::SAMPLES_ARE_FOLLOWED: "a sample of each of billing's events starts follow-billing, with ids alone",
    inputs::SCHEMAS_ARE_STRICT: "schemas admit what we send and no personal data",
}

/// Reads the files, and proves a rule both ways.
fn hold(rule: &Rule) -> Result<()> {
    let contract = Contract::read(&repository())?;
    let broken = (rule.check)(&contract);
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    ensure!(!rule.breaches.is_empty(), "a rule that nothing is known to break proves nothing");
    for (breach, break_it) in rule.breaches {
        let mut changed = contract.clone();
        break_it(&mut changed);
        ensure!(changed != contract, "this breach changes nothing any more: {breach}");
        ensure!(!(rule.check)(&changed).is_empty(), "the rule does not notice: {breach}");
    }
    Ok(())
}

/// Where the repository is.
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

impl Contract {
    /// Reads them from the repository.
    ///
    /// # Errors
    /// When a file is missing or is not what its name says.
    pub fn read(repository: &Path) -> Result<Self> {
        let template = repository.join("infra/template.yaml");
        let text = fs::read_to_string(&template).with_context(|| template.display().to_string())?;
        Ok(Contract {
            machines: documents(&repository.join("statemachines"), ".asl.json")?,
            template: template::parse(&text).context("infra/template.yaml")?,
            binaries: names(&repository.join("functions/lambdas/src/bin"), ".rs")?.into_iter().collect(),
            inputs: documents(&repository.join("events"), ".json")?,
            billing: documents(&repository.join("events/billing"), ".json")?,
            step_inputs: documents(&repository.join("events/steps"), ".json")?,
            schemas: documents(&repository.join("events/schemas"), ".json")?,
        })
    }

    /// Each machine and what its Maps run for every item: the machine's name, and what has a StartAt and States.
    fn levels(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.machines.iter().flat_map(|(machine, definition)| {
            let states = definition["States"].as_object().into_iter().flatten();
            let inner = states.filter(|(_, state)| state["Type"] == "Map").map(|(_, state)| &state["ItemProcessor"]);
            std::iter::once(definition).chain(inner).map(move |level| (machine.as_str(), level))
        })
    }

    /// Each machine's states, those inside a Map too: machine, name, state.
    fn states(&self) -> impl Iterator<Item = (&str, &str, &Value)> {
        self.levels().flat_map(|(machine, level)| {
            let states = level["States"].as_object();
            states.into_iter().flatten().map(move |(name, state)| (machine, name.as_str(), state))
        })
    }

    /// A machine's definition.
    pub fn machine(&self, name: &str) -> &Value {
        &self.machines[name]
    }

    /// The states that call a function.
    pub fn tasks(&self) -> impl Iterator<Item = (&str, &str, &Value)> {
        self.states().filter(|(_, _, state)| state["Type"] == "Task" && state["Resource"] != START)
    }

    /// The states that start another machine.
    fn starts(&self) -> impl Iterator<Item = (&str, &str, &Value)> {
        self.states().filter(|(_, _, state)| state["Resource"] == START)
    }

    /// The template's resources of a type: logical id and resource.
    fn resources(&self, of_type: &str) -> impl Iterator<Item = (&str, &Value)> {
        let resources = self.template["Resources"].as_object();
        resources
            .into_iter()
            .flatten()
            .filter(move |(_, resource)| resource["Type"] == of_type)
            .map(|(id, r)| (id.as_str(), r))
    }

    /// The logical ids of the template's functions.
    pub fn functions(&self) -> impl Iterator<Item = &str> {
        self.resources("AWS::Serverless::Function").map(|(id, _)| id)
    }

    /// For breaches: a state of provision-tenant.
    fn state(&mut self, name: &str) -> &mut Value {
        &mut self.machines.get_mut("provision-tenant").expect("the machine exists")["States"][name]
    }

    /// For breaches: a state of another machine.
    fn state_of(&mut self, machine: &str, name: &str) -> &mut Value {
        &mut self.machines.get_mut(machine).expect("the machine exists")["States"][name]
    }

    /// For breaches: the properties of a resource.
    fn properties(&mut self, id: &str) -> &mut Value {
        &mut self.template["Resources"][id]["Properties"]
    }
}

/// The logical id of the function that a state calls: it has the state's name, unless two states share one.
fn function_of(state: &str) -> String {
    let name = if state == "PublishFailure" { "PublishEvents" } else { state };
    format!("{name}Function")
}

/// `CreateBucketFunction`'s and `CreateBucket`'s binary: `create-bucket`.
pub fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for letter in name.strip_suffix("Function").unwrap_or(name).chars() {
        if letter.is_ascii_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.push(letter.to_ascii_lowercase());
    }
    kebab
}

/// Removes a key of an object; for breaches.
fn remove(from: &mut Value, key: &str) {
    from.as_object_mut().and_then(|fields| fields.remove(key));
}

fn names(directory: &Path, suffix: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let name = entry?.file_name();
        names.extend(name.to_string_lossy().strip_suffix(suffix).map(str::to_owned));
    }
    ensure!(!names.is_empty(), "no *{suffix} in {}", directory.display());
    Ok(names)
}

fn documents(directory: &Path, suffix: &str) -> Result<BTreeMap<String, Value>> {
    let read = |name: String| {
        let path = directory.join(format!("{name}{suffix}"));
        let text = fs::read_to_string(&path)?;
        Ok((name, serde_json::from_str(&text).with_context(|| path.display().to_string())?))
    };
    names(directory, suffix)?.into_iter().map(read).collect()
}
