//! The queue that a tenant's integrations put their messages into, with the queue of those that could not be handled.

use std::collections::HashMap;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName as Name;
use serde_json::{Value, json};

use crate::aws::{classify, code};
use crate::environment::Environment;
use crate::error::StepError;
use crate::resource::policy_document::same_policy;
use crate::resource::wait::until_done;
use crate::resource::{Freezable, Inspection, Resource, missing};
use crate::tenant::{OWNER_TAG, Tenant};

/// How long a message waits for its receiver, in seconds: 14 days, the most that SQS keeps one.
const RETENTION_SECONDS: &str = "1209600";
/// How long a receiver has for a message, in seconds.
const VISIBILITY_SECONDS: &str = "60";
/// How often a message is given out before it counts as one that cannot be handled.
const MOST_RECEIVES: u32 = 5;
/// What SQS answers where a queue does not exist: of the query protocol, and of the JSON protocol.
const NO_QUEUE: &[&str] = &["AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"];

/// The tenant's queue and its dead-letter queue.
pub struct Queue {
    sqs: Client,
}

/// What SQS has under a queue's name.
enum Found {
    Absent,
    Foreign(String),
    Ours { url: String, attributes: HashMap<Name, String> },
}

/// The dead-letter queue first: the other one points to it.
fn names(tenant: &Tenant) -> [String; 2] {
    [tenant.dead_letter_queue(), tenant.queue()]
}

impl Queue {
    /// Wires the resource. Makes no network call.
    pub fn from_env(env: &Environment) -> Self {
        Queue { sqs: Client::new(&env.aws) }
    }

    async fn find(&self, tenant: &Tenant, name: &str) -> Result<Found, StepError> {
        let doing = format!("looking at queue {name}");
        let url = match self.sqs.get_queue_url().queue_name(name).send().await {
            Ok(answer) => answer.queue_url.unwrap_or_default(),
            Err(error) if code(&error).is_some_and(|code| NO_QUEUE.contains(&code)) => return Ok(Found::Absent),
            Err(error) => return Err(classify(&doing, &error)),
        };
        let tags = match self.sqs.list_queue_tags().queue_url(&url).send().await {
            Ok(answer) => answer.tags.unwrap_or_default(),
            Err(error) if code(&error).is_some_and(|code| NO_QUEUE.contains(&code)) => return Ok(Found::Absent),
            Err(error) => return Err(classify(&doing, &error)),
        };
        match tags.get(OWNER_TAG) {
            Some(owner) if *owner == tenant.id.to_string() => {}
            Some(owner) => return Ok(Found::Foreign(format!("queue {name} is tagged {OWNER_TAG}={owner}"))),
            None => return Ok(Found::Foreign(format!("queue {name} is without the tag {OWNER_TAG}"))),
        }
        match self.sqs.get_queue_attributes().queue_url(&url).attribute_names(Name::All).send().await {
            Ok(answer) => Ok(Found::Ours { url, attributes: answer.attributes.unwrap_or_default() }),
            Err(error) if code(&error).is_some_and(|code| NO_QUEUE.contains(&code)) => Ok(Found::Absent),
            Err(error) => Err(classify(&doing, &error)),
        }
    }

    /// Creates a queue with its owner's tag, or mends its attributes. Returns its ARN.
    async fn ensure_one(&self, tenant: &Tenant, name: &str, redrive: Option<&str>) -> Result<String, StepError> {
        let arn = |attributes: &HashMap<Name, String>| {
            attributes
                .get(&Name::QueueArn)
                .cloned()
                .ok_or_else(|| StepError::Unexpected(format!("queue {name} has no ARN")))
        };
        match self.find(tenant, name).await? {
            Found::Foreign(found) => return Err(StepError::Foreign { kind: "queue", name: name.to_owned(), found }),
            Found::Ours { url, attributes } => {
                let arn = arn(&attributes)?;
                let wanted = wanted(tenant, &arn, redrive);
                if !differences(&attributes, &wanted).is_empty() {
                    let set = self.sqs.set_queue_attributes().queue_url(&url).set_attributes(Some(wanted));
                    set.send().await.map_err(|error| classify(&format!("mending queue {name}"), &error))?;
                }
                return Ok(arn);
            }
            Found::Absent => {}
        }
        let doing = format!("creating queue {name}");
        // Its policy names its ARN, which only SQS knows in full: the next look mends it.
        let mut attributes = wanted(tenant, "", redrive);
        attributes.remove(&Name::Policy);
        let create = self.sqs.create_queue().queue_name(name).set_attributes(Some(attributes));
        let created = create.tags(OWNER_TAG, tenant.id.to_string()).send().await;
        match created {
            Ok(_) => {}
            // Another's, made in between, with attributes of its own.
            Err(error)
                if code(&error)
                    .is_some_and(|code| code.contains("QueueNameExists") || code.contains("QueueAlreadyExists")) =>
            {
                return Err(StepError::Transient(format!("{doing}: it appeared meanwhile")));
            }
            Err(error) => return Err(classify(&doing, &error)),
        }
        match self.find(tenant, name).await? {
            Found::Ours { url, attributes } => {
                let arn = arn(&attributes)?;
                let policy = policy(tenant, &arn).to_string();
                let set = self.sqs.set_queue_attributes().queue_url(&url).attributes(Name::Policy, policy);
                set.send().await.map_err(|error| classify(&doing, &error))?;
                Ok(arn)
            }
            Found::Foreign(found) => Err(StepError::Foreign { kind: "queue", name: name.to_owned(), found }),
            // SQS's own queues may take a second to be seen.
            Found::Absent => Err(StepError::Transient(format!("{doing}: it is not there yet"))),
        }
    }
}

/// What a queue is made with. The queue that has a dead-letter queue is given its ARN.
fn wanted(tenant: &Tenant, arn: &str, dead_letters: Option<&str>) -> HashMap<Name, String> {
    let mut attributes = HashMap::from([
        (Name::MessageRetentionPeriod, RETENTION_SECONDS.to_owned()),
        (Name::VisibilityTimeout, VISIBILITY_SECONDS.to_owned()),
        (Name::SqsManagedSseEnabled, "true".to_owned()),
        (Name::Policy, policy(tenant, arn).to_string()),
    ]);
    if let Some(dead_letters) = dead_letters {
        let redrive = json!({ "deadLetterTargetArn": dead_letters, "maxReceiveCount": MOST_RECEIVES });
        attributes.insert(Name::RedrivePolicy, redrive.to_string());
    }
    attributes
}

/// Who may use a queue is said by roles; its own policy only refuses what travels in the clear, and what is sent to a tenant
/// that is frozen.
fn policy(tenant: &Tenant, arn: &str) -> Value {
    let mut statements = vec![json!({
        "Sid": "OnlyEncryptedInTransit",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "sqs:*",
        "Resource": arn,
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    })];
    if tenant.frozen {
        statements.push(json!({
            "Sid": "Frozen", "Effect": "Deny", "Principal": "*", "Action": "sqs:SendMessage", "Resource": arn,
        }));
    }
    json!({ "Version": "2012-10-17", "Statement": statements })
}

/// The attributes in which a queue differs from how it is made.
fn differences(found: &HashMap<Name, String>, wanted: &HashMap<Name, String>) -> Vec<String> {
    let same = |name: &Name, value: &str| match found.get(name) {
        None => false,
        Some(found) if *name == Name::Policy => {
            serde_json::from_str(value).is_ok_and(|value| same_policy(found, &value))
        }
        Some(found) if *name == Name::RedrivePolicy => same_redrive(found, value),
        Some(found) => found == value,
    };
    let mut differing: Vec<String> =
        wanted.iter().filter(|(name, value)| !same(name, value)).map(|(name, _)| name.as_str().to_owned()).collect();
    differing.sort();
    differing
}

/// SQS gives the count back as a number or as a text.
fn same_redrive(found: &str, wanted: &str) -> bool {
    let parsed = |text: &str| -> Option<(String, String)> {
        let value: Value = serde_json::from_str(text).ok()?;
        let count = &value["maxReceiveCount"];
        let count = count.as_str().map_or_else(|| count.to_string(), str::to_owned);
        Some((value["deadLetterTargetArn"].as_str()?.to_owned(), count))
    };
    parsed(found).is_some_and(|found| Some(found) == parsed(wanted))
}

#[async_trait]
impl Resource for Queue {
    fn kind(&self) -> &'static str {
        "queue"
    }

    async fn ensure(&self, tenant: &Tenant) -> Result<Value, StepError> {
        // Both looked at first: where one is another's, the other is not made.
        for name in names(tenant) {
            if let Found::Foreign(found) = self.find(tenant, &name).await? {
                return Err(StepError::Foreign { kind: "queue", name, found });
            }
        }
        let [dead_letters, queue] = names(tenant);
        let dead_letters = self.ensure_one(tenant, &dead_letters, None).await?;
        let arn = self.ensure_one(tenant, &queue, Some(&dead_letters)).await?;
        Ok(json!({ "queue": queue, "arn": arn, "dead_letters": dead_letters }))
    }

    async fn remove(&self, tenant: &Tenant) -> Result<(), StepError> {
        for name in names(tenant).into_iter().rev() {
            let Found::Ours { url, .. } = self.find(tenant, &name).await? else { continue };
            let doing = &format!("deleting queue {name}");
            match self.sqs.delete_queue().queue_url(&url).send().await {
                Err(error) if code(&error).is_some_and(|code| NO_QUEUE.contains(&code)) => continue,
                deleted => drop(deleted.map_err(|error| classify(doing, &error))?),
            }
            let name = &name;
            until_done(doing, || async move {
                let gone = !matches!(self.find(tenant, name).await?, Found::Ours { .. });
                Ok((!gone).then(|| "it is still there".to_owned()))
            })
            .await?;
        }
        Ok(())
    }

    async fn inspect(&self, tenant: &Tenant) -> Result<Inspection, StepError> {
        let [dead_letters, queue] = names(tenant);
        let (first, second) = futures::try_join!(self.find(tenant, &dead_letters), self.find(tenant, &queue))?;
        let dead_letters_arn = match &first {
            Found::Ours { attributes, .. } => attributes.get(&Name::QueueArn).cloned(),
            _ => None,
        };
        let (mut absent, mut drift) = (0, Vec::new());
        for (name, found, redrive) in [(dead_letters, first, None), (queue, second, dead_letters_arn.as_deref())] {
            match found {
                Found::Foreign(found) => return Ok(Inspection::Foreign(found)),
                Found::Absent => {
                    absent += 1;
                    drift.push(format!("{name} is missing"));
                }
                Found::Ours { attributes, .. } => {
                    let arn = attributes.get(&Name::QueueArn).map(String::as_str).unwrap_or_default();
                    let differing = differences(&attributes, &wanted(tenant, arn, redrive));
                    drift.extend(differing.iter().map(|what| format!("{name}: {what}")));
                }
            }
        }
        Ok(match (absent, drift.is_empty()) {
            (2, _) => Inspection::Absent,
            (_, true) => Inspection::Present,
            (_, false) => Inspection::Drifted(drift),
        })
    }
}

#[async_trait]
impl Freezable for Queue {
    async fn settle(&self, tenant: &Tenant) -> Result<(), StepError> {
        for name in names(tenant) {
            let (url, attributes) = match self.find(tenant, &name).await? {
                Found::Ours { url, attributes } => (url, attributes),
                Found::Foreign(found) => return Err(StepError::Foreign { kind: "queue", name, found }),
                Found::Absent => return Err(missing("queue", tenant, "create-queue")),
            };
            let arn = attributes.get(&Name::QueueArn).map(String::as_str).unwrap_or_default();
            let wanted = HashMap::from([(Name::Policy, policy(tenant, arn).to_string())]);
            if !differences(&attributes, &wanted).is_empty() {
                let set = self.sqs.set_queue_attributes().queue_url(&url).set_attributes(Some(wanted));
                set.send().await.map_err(|error| classify(&format!("writing the policy of queue {name}"), &error))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_its_text_are_one_count() {
        let wanted = json!({"deadLetterTargetArn": "arn:x", "maxReceiveCount": 5}).to_string();
        assert!(same_redrive(r#"{"maxReceiveCount":"5","deadLetterTargetArn":"arn:x"}"#, &wanted));
        assert!(!same_redrive(r#"{"maxReceiveCount":"9","deadLetterTargetArn":"arn:x"}"#, &wanted));
    }
}
