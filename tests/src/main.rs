//! The proof, on one real local stack: booted when the first test needs it, shared by all, ended after the last.

#![allow(unreachable_pub)] // A binary has no outside: `pub` says what other modules use.

mod authorizer;
mod bad_input;
mod billing;
mod billing_events;
mod billing_order;
mod bucket;
mod bus;
mod calls;
mod compensation;
mod contract;
mod database;
mod deletion;
mod dns;
mod explain;
mod export;
mod faults;
mod forward_auth;
mod gate;
mod identity;
mod invites;
mod logs;
mod machine;
mod mail;
mod matrix;
mod namespace;
mod neighbour;
mod offboarding;
mod plan_change;
mod provisioning;
mod queue;
mod races;
mod recorder;
mod registry;
mod rls;
mod seats;
mod snapshot;
mod storage;
mod suspension;
mod sweep;
mod tenant_config;
mod tenants;
mod triggers;
mod usage;
mod wire;
mod world;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use tenantry_core::environment::Environment;
use tenantry_local::emulator;
use tenantry_local::stack::{Options, Stack};
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, RwLock};
use tokio::time::timeout;

use faults::Faults;
use world::{Case, World};

/// A case that needs no stack.
type Check = fn() -> Result<()>;

/// Cases that need no stack: they read the repository.
const WITHOUT_STACK: &[(&str, &[(&str, Check)])] =
    &[("contract", contract::CASES), ("forward_auth", forward_auth::SAMPLES)];
/// Cases that share the stack with others.
const TOGETHER: &[(&str, &[(&str, Case)])] = &[
    ("registry", registry::CASES),
    ("database", database::CASES),
    ("rls", rls::CASES),
    ("identity", identity::CASES),
    ("bucket", bucket::CASES),
    ("namespace", namespace::CASES),
    ("dns", dns::CASES),
    ("tenant_config", tenant_config::CASES),
    ("queue", queue::CASES),
    ("billing", billing::CASES),
    ("billing_events", billing_events::CASES),
    ("billing_order", billing_order::CASES),
    ("mail", mail::CASES),
    ("calls", calls::CASES),
    ("provisioning", provisioning::CASES),
    ("compensation", compensation::CASES),
    ("invites", invites::CASES),
    ("sweep", sweep::CASES),
    ("races", races::CASES),
    ("explain", explain::CASES),
    ("triggers", triggers::CASES),
    ("suspension", suspension::CASES),
    ("offboarding", offboarding::CASES),
    ("export", export::CASES),
    ("gate", gate::CASES),
    ("forward_auth", forward_auth::CASES),
    ("authorizer", authorizer::CASES),
    ("usage", usage::CASES),
    ("plan_change", plan_change::CASES),
    ("seats", seats::CASES),
    ("storage", storage::CASES),
    ("deletion", deletion::CASES),
    ("logs", logs::CASES),
    ("matrix", matrix::CASES),
];
/// Cases that compare the whole stack before and after: no other runs meanwhile.
const ALONE: &[(&str, &[(&str, Case)])] = &[
    ("bad_input", bad_input::CASES),
    ("sweep", sweep::ALONE),
    ("offboarding", offboarding::ALONE),
    ("deletion", deletion::ALONE),
];

/// A case that runs longer hangs. The longest is the fault matrix: its 405 cases take a quarter of an hour on two cores.
const CASE_PATIENCE: Duration = Duration::from_secs(2400);

struct Harness {
    runtime: Runtime,
    stack: OnceCell<(Stack, World)>,
    quiet: RwLock<()>,
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let harness = Arc::new(Harness {
        runtime: Runtime::new().expect("a runtime can be started"),
        stack: OnceCell::new(),
        quiet: RwLock::new(()),
    });
    let conclusion = libtest_mimic::run(&args, trials(&harness));
    if let Some(harness) = Arc::into_inner(harness)
        && let Some((stack, _)) = harness.stack.into_inner()
        && let Err(error) = harness.runtime.block_on(stack.shutdown())
    {
        eprintln!("the stack could not be ended: {error:#}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

fn trials(harness: &Arc<Harness>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for (module, cases) in WITHOUT_STACK {
        trials.extend(cases.iter().map(|(name, case)| {
            Trial::test(format!("{module}::{name}"), || case().map_err(|error| Failed::from(format!("{error:#}"))))
        }));
    }
    for (modules, alone) in [(ALONE, true), (TOGETHER, false)] {
        for (module, cases) in modules {
            trials.extend(cases.iter().map(|(name, case)| {
                let harness = Arc::clone(harness);
                Trial::test(format!("{module}::{name}"), move || {
                    harness.run(*case, alone).map_err(|error| Failed::from(format!("{error:#}")))
                })
            }));
        }
    }
    trials
}

impl Harness {
    fn run(&self, case: Case, alone: bool) -> Result<()> {
        self.runtime.block_on(async {
            let (_, world) = Box::pin(self.stack.get_or_try_init(boot)).await?;
            let _alone = if alone { Some(self.quiet.write().await) } else { None };
            let _together = if alone { None } else { Some(self.quiet.read().await) };
            timeout(CASE_PATIENCE, case(world)).await.context("the case hangs")?
        })
    }
}

/// Boots and deploys a stack of this run's own.
async fn boot() -> Result<(Stack, World)> {
    let faults = Arc::new(Faults::default());
    let options = Options { tap: Some(faults.clone()), ..Options::for_tests()? };
    let stack = Box::pin(Stack::boot(options)).await?;
    // Retries are waited for, at a twentieth of their pauses: the systems themselves are waited for by the functions.
    emulator::scale_waits(stack.exports()["AWS_ENDPOINT_URL"].as_str(), 0.05).await?;
    let env = Environment::new(stack.aws_config(), stack.function_variables());
    // Whoever tests the sweep calls it. On its schedule it would begin, by the fifty, what other cases leave paid for and not begun,
    // and what is being looked at would find every instance of a function taken.
    aws_sdk_eventbridge::Client::new(&env.aws).disable_rule().name("sweep-tenants").send().await?;
    let world = World { env, exports: stack.exports(), outputs: stack.outputs().clone(), faults };
    Ok((stack, world))
}
