//! Deploying `infra/template.yaml` to the emulator through CloudFormation: packaged as `sam package` does it, changed in
//! nothing else.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aws_config::SdkConfig;
use aws_sdk_cloudformation::types::{Capability, Parameter, Stack as Deployed, StackEvent};
use aws_sdk_s3::Client as S3;
use aws_sdk_s3::primitives::ByteStream;
use tokio::time::sleep;
use uuid::Uuid;

use crate::{emulator, functions};

/// The CloudFormation stack's name.
pub const STACK: &str = "tenantry";
/// The parameter that bounds a function's instances.
pub const CONCURRENCY: &str = "FunctionConcurrency";
const ARTIFACTS: &str = "tenantry-artifacts";
const PATIENCE: Duration = Duration::from_secs(400);
const POLL: Duration = Duration::from_millis(100);

/// A template whose `CodeUri`s and `DefinitionUri`s are in a bucket, and the way to it.
pub struct Packaged {
    url: String,
    /// The functions' names without the prefix.
    pub functions: Vec<String>,
}

/// What a deployment gave.
pub struct Deployment {
    /// The template's outputs.
    pub outputs: HashMap<String, String>,
    /// The environment variables of the functions, all together. Where functions differ in one, the first function's stands.
    pub variables: HashMap<String, String>,
}

/// Zips and uploads the code, the definitions and the template itself.
///
/// # Errors
/// When a binary is not built, or the template names a file that is not there.
pub async fn package(aws: &SdkConfig, root: &Path) -> Result<Packaged> {
    let s3 = emulator::s3(aws);
    s3.create_bucket().bucket(ARTIFACTS).send().await?;
    let infra = root.join("infra");
    let template = std::fs::read_to_string(infra.join("template.yaml"))?;
    let names = named_by(&template, "CodeUri").map(|uri| last_component(&uri)).collect::<Vec<_>>();
    ensure!(!names.is_empty(), "infra/template.yaml names no function's CodeUri");
    let mut keys = BTreeMap::new();
    for code in functions::upload(&s3, ARTIFACTS, &functions::built()?, &names).await? {
        keys.insert(code.name, code.key);
    }
    for uri in named_by(&template, "DefinitionUri") {
        let key = upload_definition(&s3, &infra.join(&uri)).await?;
        keys.insert(last_component(&uri), key);
    }
    let packaged = rewrite(&template, |uri| {
        keys.get(&last_component(uri)).map(|key| format!("{{Bucket: {ARTIFACTS}, Key: {key}}}"))
    });
    let key = format!("templates/{}.yaml", Uuid::new_v4());
    s3.put_object().bucket(ARTIFACTS).key(&key).body(ByteStream::from(packaged.into_bytes())).send().await?;
    let endpoint = aws.endpoint_url().context("no endpoint")?;
    Ok(Packaged { url: format!("{endpoint}/{ARTIFACTS}/{key}"), functions: names })
}

async fn upload_definition(s3: &S3, path: &PathBuf) -> Result<String> {
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    let key = format!("statemachines/{}", path.file_name().unwrap_or_default().to_string_lossy());
    s3.put_object().bucket(ARTIFACTS).key(&key).body(ByteStream::from(text)).send().await?;
    Ok(key)
}

/// The values of a property that are paths, in order.
fn named_by<'a>(template: &'a str, property: &'a str) -> impl Iterator<Item = String> + 'a {
    template.lines().filter_map(move |line| {
        let (name, value) = line.trim().split_once(": ")?;
        (name == property && value.starts_with("../")).then(|| value.trim().to_owned())
    })
}

/// The template with every path of code or of a definition replaced. A text edit, because a YAML parser would have to be
/// taught CloudFormation's tags to write them back as they are.
fn rewrite(template: &str, place: impl Fn(&str) -> Option<String>) -> String {
    let mut text = String::with_capacity(template.len());
    for line in template.lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        let place = line.trim().split_once(": ").and_then(|(name, value)| match name {
            "CodeUri" | "DefinitionUri" => place(value).map(|place| format!("{indent}{name}: {place}")),
            _ => None,
        });
        text.push_str(place.as_deref().unwrap_or(line));
        text.push('\n');
    }
    text
}

fn last_component(uri: &str) -> String {
    uri.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
}

/// Creates the stack from a packaged template, or deploys over the one that is there, and waits for it.
///
/// # Errors
/// When it fails: with what CloudFormation says of every resource that failed.
pub async fn deploy(aws: &SdkConfig, packaged: &Packaged, parameters: &[(&str, &str)]) -> Result<Deployment> {
    let client = aws_sdk_cloudformation::Client::new(aws);
    let given = parameters
        .iter()
        .map(|(name, value)| Parameter::builder().parameter_key(*name).parameter_value(*value).build())
        .collect();
    let capabilities = vec![Capability::CapabilityNamedIam, Capability::CapabilityAutoExpand];
    if client.describe_stacks().stack_name(STACK).send().await.is_ok() {
        let update = client.update_stack().stack_name(STACK).template_url(&packaged.url);
        update.set_capabilities(Some(capabilities)).set_parameters(Some(given)).send().await?;
    } else {
        let create = client.create_stack().stack_name(STACK).template_url(&packaged.url);
        create.set_capabilities(Some(capabilities)).set_parameters(Some(given)).send().await?;
    }
    let deployed = settled(&client).await?;
    let outputs = deployed
        .outputs()
        .iter()
        .filter_map(|output| Some((output.output_key()?.to_owned(), output.output_value()?.to_owned())))
        .collect();
    let bound =
        parameters.iter().find(|(name, _)| *name == CONCURRENCY).context("no FunctionConcurrency")?.1.parse()?;
    Ok(Deployment { outputs, variables: finish(aws, &packaged.functions, bound).await? })
}

async fn settled(client: &aws_sdk_cloudformation::Client) -> Result<Deployed> {
    let begun = Instant::now();
    loop {
        let described = client.describe_stacks().stack_name(STACK).send().await?;
        let stack = described.stacks.unwrap_or_default().into_iter().next().context("the stack is gone")?;
        let status = stack.stack_status().map_or("", |status| status.as_str());
        match status {
            "CREATE_COMPLETE" | "UPDATE_COMPLETE" => return Ok(stack),
            _ if status.ends_with("_IN_PROGRESS") => {}
            _ => bail!("the deployment ended in {status}:\n{}", failures(client).await?),
        }
        ensure!(begun.elapsed() < PATIENCE, "the deployment is still {status} after {PATIENCE:?}");
        sleep(POLL).await;
    }
}

async fn failures(client: &aws_sdk_cloudformation::Client) -> Result<String> {
    let events = client.describe_stack_events().stack_name(STACK).send().await?;
    let failed =
        |event: &StackEvent| event.resource_status().is_some_and(|status| status.as_str().ends_with("_FAILED"));
    let line = |event: &StackEvent| {
        let reason = event.resource_status_reason().unwrap_or("no reason given");
        format!("  {}: {reason}", event.logical_resource_id().unwrap_or_default())
    };
    let lines: Vec<String> = events.stack_events().iter().filter(|event| failed(event)).map(line).collect();
    Ok(lines.join("\n"))
}

/// Applies what the emulator's CloudFormation drops and local behaviour depends on, and reads the functions' settings.
async fn finish(aws: &SdkConfig, names: &[String], bound: i32) -> Result<HashMap<String, String>> {
    let client = aws_sdk_lambda::Client::new(aws);
    let mut variables = HashMap::new();
    for name in names {
        client
            .put_function_concurrency()
            .function_name(name)
            .reserved_concurrent_executions(bound)
            .send()
            .await
            .with_context(|| format!("bounding {name}"))?;
        let settings = client.get_function_configuration().function_name(name).send().await?;
        let own = settings.environment.and_then(|environment| environment.variables).unwrap_or_default();
        for (variable, value) in own {
            variables.entry(variable).or_insert(value);
        }
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = "Resources:\n  A:\n    CodeUri: ../target/lambda/create-bucket/\n    Role: !GetAtt R.Arn\n  \
                            M:\n    DefinitionUri: ../statemachines/provision-tenant.asl.json\n";

    #[test]
    fn only_paths_of_code_and_definitions_are_replaced() {
        let codes: Vec<_> = named_by(TEMPLATE, "CodeUri").collect();
        assert_eq!(codes, ["../target/lambda/create-bucket/"]);
        let packaged = rewrite(TEMPLATE, |uri| Some(format!("{{Key: {}}}", last_component(uri))));
        assert_eq!(
            packaged,
            "Resources:\n  A:\n    CodeUri: {Key: create-bucket}\n    Role: !GetAtt R.Arn\n  M:\n    DefinitionUri: \
             {Key: provision-tenant.asl.json}\n"
        );
    }
}
