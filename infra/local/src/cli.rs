//! The command line of the local stack.

mod bench;
mod bench_export;
mod bench_gate;
mod certificate;
mod failure;
mod gate;
mod offboarding;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use clap::{Parser, Subcommand};
use serde_json::{Value, json};

use crate::evidence::Witness;
use crate::execution::{self, Following, Outcome};
use crate::inventory::Inventory;
use crate::progress::{Progress, print};
use crate::stack::{Options, Stack};
use crate::supervisor::{self, Up};
use crate::tools::checkout;
use crate::{emulator, guard};

/// The sign-ups of the demo.
const SIGN_UPS: &[&str] =
    &["events/provision-tenant.json", "events/provision-tenant-growth.json", "events/provision-tenant-enterprise.json"];

/// Whose gate the demo shows: the first of the sign-ups.
const DEMO_TENANT: &str = "acme";

/// Boots, drives and ends the local stack of Tenantry.
#[derive(Parser)]
#[command(name = "tenantry", version)]
pub struct Cli {
    /// Writes JSON, an object a line, instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boots a stack and deploys to it; it stays until `down`.
    Up,
    /// Ends the stack.
    Down,
    /// Shows what runs and where.
    Status,
    /// Prints the exports by which other programs reach the stack: eval "$(tenantry env)".
    Env {
        /// The functions' own settings as well, for `cargo lambda watch`.
        #[arg(long)]
        functions: bool,
    },
    /// Boots a stack of its own, takes three sign-ups to active tenants, shows them in every system, and ends it.
    Demo,
    /// Boots a stack of its own, breaks Kubernetes in mid-onboarding, shows what is undone and what is left, repairs it, and
    /// provisions the same tenant.
    DemoFailure,
    /// Boots a stack of its own, and takes tenants out of service: one is exported, held and deleted with a certificate, one
    /// comes back during its hold, one is erased at once.
    DemoOffboarding,
    /// Boots a stack of its own, and measures onboarding: a hundred at once, beside the same steps run by one process.
    #[command(hide = true)]
    BenchOnboarding,
    /// Boots a stack of its own, and measures the gate beside the raw script, and how soon a suspension is felt.
    #[command(hide = true)]
    BenchGate,
    /// Boots a stack of its own, and measures exports beside raw COPY and raw GET and PUT.
    #[command(hide = true)]
    BenchExport,
    /// Starts the provision-tenant machine with a file's JSON, and follows it.
    Provision {
        /// The machine's input, such as events/provision-tenant.json.
        file: PathBuf,
    },
    /// Shows what the functions logged in an execution.
    Logs {
        /// The execution's name or ARN.
        execution: String,
    },
    /// Verifies a certificate of deletion, offline. Exits with 3 for another key, 4 where something was changed, 5 where it is no
    /// certificate.
    VerifyCertificate {
        /// The certificate, as get-certificate gives it or as it is in its bucket.
        file: PathBuf,
        /// SHA-256 of the public key that must have signed it (of its DER form), in hexadecimal.
        #[arg(long)]
        key: String,
    },
    /// Runs a program until it ends or our standard input does.
    #[command(hide = true)]
    Guard {
        #[arg(long)]
        user: Option<String>,
        #[arg(long)]
        interrupt: bool,
        #[arg(last = true, required = true)]
        program: Vec<String>,
    },
    /// Holds the stack that `up` started.
    #[command(hide = true)]
    Supervise,
}

/// Runs the command line.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        // Needs no runtime, and runs once a process of the stack.
        Command::Guard { user, interrupt, program } => guard::watch(&program, user.as_deref(), interrupt),
        // Reads a file, and nothing else of the checkout.
        Command::VerifyCertificate { file, key } => certificate::verify(&file, &key, cli.json),
        command => act(command, cli.json),
    };
    result.unwrap_or_else(|error| {
        if cli.json {
            print(&json!({ "error": format!("{error:#}") }).to_string());
        }
        eprintln!("tenantry: {error:#}");
        ExitCode::FAILURE
    })
}

fn act(command: Command, json: bool) -> Result<ExitCode> {
    let root = checkout()?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        match command {
            Command::Up => up(&root, json)?,
            Command::Down => down(&root, json)?,
            Command::Status => status(&root, json).await?,
            Command::Env { functions } => env(&root, functions, json)?,
            Command::Demo => return Box::pin(demo(&root, json, Show::Success)).await,
            Command::DemoFailure => return Box::pin(demo(&root, json, Show::Failure)).await,
            Command::DemoOffboarding => return Box::pin(demo(&root, json, Show::Offboarding)).await,
            Command::BenchOnboarding => return Box::pin(demo(&root, json, Show::Onboarding)).await,
            Command::BenchExport => return Box::pin(demo(&root, json, Show::Export)).await,
            Command::BenchGate => return Box::pin(demo(&root, json, Show::Gate)).await,
            Command::Provision { file } => return provision(&root, &file, json).await,
            Command::Logs { execution } => logs(&root, &execution, json).await?,
            Command::Supervise => Box::pin(supervisor::supervise(&root, json)).await?,
            Command::Guard { .. } | Command::VerifyCertificate { .. } => bail!("this needs no runtime"),
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn up(root: &Path, json: bool) -> Result<()> {
    let begun = Instant::now();
    let up = supervisor::up(root, json)?;
    if json {
        print(&json!({ "exports": up.exports, "outputs": up.outputs }).to_string());
    } else {
        print(&format!(
            "The stack is up after {:.1} s. `eval \"$(make -s env)\"` gives a shell the way in, `make down` ends it.",
            begun.elapsed().as_secs_f64()
        ));
    }
    Ok(())
}

fn down(root: &Path, json: bool) -> Result<()> {
    let ended = supervisor::down(root)?;
    match (json, ended) {
        (true, _) => print(&json!({ "ended": ended }).to_string()),
        (false, true) => print("The stack has ended."),
        (false, false) => print("No stack is up in this checkout."),
    }
    Ok(())
}

async fn status(root: &Path, json: bool) -> Result<()> {
    let Some(up) = Up::find(root)? else {
        print(if json { r#"{"up":false}"# } else { "No stack is up in this checkout: `make up` boots one." });
        return Ok(());
    };
    let answers = tenants(&up).await;
    if json {
        let tenants = answers
            .as_ref()
            .ok()
            .map(|all| all.iter().map(|(status, count)| json!({status: count})).collect::<Vec<_>>());
        print(
            &json!({ "up": true, "pid": up.pid, "exports": up.exports, "outputs": up.outputs, "tenants": tenants })
                .to_string(),
        );
        return Ok(());
    }
    print(&format!("The stack is up (process {}).", up.pid));
    for (name, value) in up.exports.iter().filter(|(name, _)| !name.starts_with("AWS_") || *name == "AWS_ENDPOINT_URL")
    {
        print(&format!("  {name:<24} {}", without_password(value)));
    }
    match answers {
        Ok(tenants) if tenants.is_empty() => print("  No tenants yet."),
        Ok(tenants) => {
            let tenants: Vec<_> = tenants.iter().map(|(status, count)| format!("{count} {status}")).collect();
            print(&format!("  Tenants: {}.", tenants.join(", ")));
        }
        Err(error) => print(&format!("  The registry does not answer: {error:#}")),
    }
    Ok(())
}

async fn tenants(up: &Up) -> Result<Vec<(String, i64)>> {
    let url = up.exports.get("REGISTRY_DATABASE_URL").context("no REGISTRY_DATABASE_URL")?;
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let rows = client.query("SELECT status::text, count(*) FROM tenants GROUP BY status ORDER BY status", &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn without_password(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(mut parsed) if parsed.password().is_some() => {
            let _ = parsed.set_password(None);
            parsed.to_string()
        }
        _ => url.to_owned(),
    }
}

fn env(root: &Path, functions: bool, json: bool) -> Result<()> {
    let up = Up::expect(root)?;
    let mut exports = up.exports;
    if functions {
        // A function's KUBECONFIG is its own, with its own rights.
        exports.extend(up.variables);
    }
    if json {
        print(&serde_json::to_string(&exports)?);
    } else {
        for (name, value) in exports {
            print(&format!("export {name}='{}'", value.replace('\'', r"'\''")));
        }
    }
    Ok(())
}

async fn provision(root: &Path, file: &Path, json: bool) -> Result<ExitCode> {
    let up = Up::expect(root)?;
    let endpoint = up.exports.get("AWS_ENDPOINT_URL").context("no AWS_ENDPOINT_URL")?;
    let aws = emulator::aws_config(endpoint).await;
    let progress = Progress::detect(json);
    let outcome = start(&aws, up.output("ProvisionTenantMachine")?, file, &progress).await?;
    progress.say(&summary(&outcome));
    progress.tell(&json!({
        "execution": outcome.arn, "status": outcome.status.as_str(), "seconds": outcome.seconds,
        "error": outcome.error, "cause": execution::message(&outcome.cause), "output": outcome.output,
    }));
    Ok(if outcome.status == ExecutionStatus::Succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn start(aws: &aws_config::SdkConfig, machine: &str, file: &Path, progress: &Progress) -> Result<Outcome> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let input: Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
    follow(aws, machine, &input, &file.display().to_string(), progress).await
}

/// Starts an execution, and tells what it does until it ends.
async fn follow(
    aws: &aws_config::SdkConfig,
    machine: &str,
    input: &Value,
    called: &str,
    progress: &Progress,
) -> Result<Outcome> {
    begin(aws, machine, input, called, progress).await?.end().await
}

/// Starts an execution, to be followed.
async fn begin(
    aws: &aws_config::SdkConfig,
    machine: &str,
    input: &Value,
    called: &str,
    progress: &Progress,
) -> Result<Following> {
    let arn = execution::start(aws, machine, input).await?;
    let name = machine.rsplit(':').next().unwrap_or_default();
    progress.say(&format!("\n{name} with {called}\n  {arn}"));
    Ok(Following::begin(aws, &arn, progress))
}

fn summary(outcome: &Outcome) -> String {
    let Outcome { status, seconds, error, cause, .. } = outcome;
    match status {
        ExecutionStatus::Succeeded => format!("  {status} after {seconds:.2} s"),
        _ => format!("  {status} after {seconds:.2} s: {error}: {}", execution::message(cause)),
    }
}

/// What a demo shows.
#[derive(Clone, Copy)]
enum Show {
    Success,
    Failure,
    Offboarding,
    Onboarding,
    Export,
    Gate,
}

async fn demo(root: &Path, json: bool, what: Show) -> Result<ExitCode> {
    let progress = Progress::detect(json);
    let begun = Instant::now();
    progress.say("Booting a stack of this demo's own");
    let parameters = if matches!(what, Show::Offboarding) { offboarding::PARAMETERS } else { &[] };
    let options = Options { root: root.to_owned(), directory: None, progress: progress.clone(), tap: None, parameters };
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let stack = tokio::select! {
        stack = Stack::boot(options) => stack?,
        _ = &mut interrupted => bail!("interrupted"),
    };
    // The stack is ended in any case, before the outcome is told.
    let shown = tokio::select! {
        shown = async {
            match what {
                Show::Success => show(&stack, root, &progress).await,
                Show::Failure => failure::show(&stack, root, &progress).await,
                Show::Offboarding => Box::pin(offboarding::show(&stack, root, &progress)).await,
                Show::Onboarding => bench::onboarding(&stack, &progress).await,
                Show::Export => Box::pin(bench_export::export(&stack, &progress)).await,
                Show::Gate => Box::pin(bench_gate::gate(&stack, &progress)).await,
            }
        } => shown,
        _ = &mut interrupted => Err(anyhow::anyhow!("interrupted")),
    };
    let ending = progress.begin("Shutdown");
    stack.shutdown().await?;
    ending.done("");
    let tenants = shown?;
    let seconds = begun.elapsed().as_secs_f64();
    let what = match what {
        Show::Success => "provisioned and seen in every system; one was suspended until it was paid for, and metered",
        Show::Onboarding => "onboarded at once",
        Show::Export => "exported",
        Show::Gate => "metered",
        Show::Offboarding => "left: one for good, one to come back, one at once; two certificates prove it",
        Show::Failure => "failed, left nothing behind, and was provisioned once the cause was gone",
    };
    let s = if tenants == 1 { "" } else { "s" };
    progress.say(&format!("\n{tenants} tenant{s} {what}; {seconds:.1} s in all."));
    progress.tell(&json!({ "tenants": tenants, "seconds": seconds }));
    Ok(ExitCode::SUCCESS)
}

/// What the real systems show of a tenant in service.
async fn evidence(witness: &mut Witness, slug: &str, progress: &Progress) -> Result<()> {
    progress.say(&format!("\nWhat the real systems show of {slug}"));
    for (system, seen) in Box::pin(witness.of_tenant(slug)).await? {
        progress.say(&format!("  {system:<14} {seen}"));
        progress.tell(&json!({ "tenant": slug, "system": system, "seen": seen }));
    }
    Ok(())
}

/// What is left of a tenant, by each system's own listing. Fails unless it is nothing.
async fn nothing_is_left(stack: &Stack, id: &str, slug: &str, progress: &Progress) -> Result<()> {
    progress.say(&format!("\nWhat is left of {slug}, by each system's own listing"));
    let inventory =
        Inventory { aws: stack.aws_config(), exports: stack.exports(), variables: stack.function_variables() };
    let marks = [id.to_owned(), slug.to_owned(), format!("tenant_{}", slug.replace('-', "_"))];
    for (system, names) in Box::pin(inventory.left_of(&marks)).await? {
        progress.say(&format!("  {system:<46} {}", if names.is_empty() { "nothing" } else { "LEFT" }));
        progress.tell(&json!({ "tenant": slug, "system": system, "left": names }));
        ensure!(names.is_empty(), "{system}: {names:?}");
    }
    Ok(())
}

async fn show(stack: &Stack, root: &Path, progress: &Progress) -> Result<usize> {
    let aws = stack.aws_config();
    let mut witness = Witness::of(stack).await?;
    for sign_up in SIGN_UPS {
        let file = root.join(sign_up);
        let outcome = start(&aws, stack.output("ProvisionTenantMachine")?, &file, progress).await?;
        progress.say(&summary(&outcome));
        if outcome.status != ExecutionStatus::Succeeded {
            bail!("{sign_up} was not provisioned: {}: {}", outcome.error, execution::message(&outcome.cause));
        }
        let input: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
        let slug = input["slug"].as_str().with_context(|| format!("{sign_up} has no slug"))?;
        evidence(&mut witness, slug, progress).await?;
    }
    gate::show(stack, DEMO_TENANT, progress).await?;
    Ok(SIGN_UPS.len())
}

/// The log lines of an execution, oldest first, from the one group that all functions write to.
async fn logs(root: &Path, execution: &str, json: bool) -> Result<()> {
    let up = Up::expect(root)?;
    let endpoint = up.exports.get("AWS_ENDPOINT_URL").context("no AWS_ENDPOINT_URL")?;
    let client = aws_sdk_cloudwatchlogs::Client::new(&emulator::aws_config(endpoint).await);
    let pages = client.filter_log_events().log_group_name(up.output("FunctionLogGroup")?).into_paginator();
    let mut pages = pages.send();
    let mut lines = Vec::new();
    while let Some(page) = pages.next().await {
        for message in page?.events().iter().filter_map(|event| event.message()) {
            lines.extend(message.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()));
        }
    }
    let name = |line: &Value| line["execution"].as_str().unwrap_or_default().to_owned();
    lines.retain(|line| name(line) == execution || name(line).rsplit(':').next() == Some(execution));
    lines.sort_by_key(|line| line["timestamp"].as_str().unwrap_or_default().to_owned());
    if lines.is_empty() {
        bail!("no function has logged anything of execution {execution}");
    }
    for line in lines {
        if json {
            print(&line.to_string());
            continue;
        }
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let error = if line["error"].is_string() { format!(" {}", text("error")) } else { String::new() };
        print(&format!("{} {:<5} {:<20} {}{error}", text("timestamp"), text("level"), text("step"), text("message")));
    }
    Ok(())
}
