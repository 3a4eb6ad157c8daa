//! Listening to the bus, as a consumer of ours would: a rule feeds a queue, and the queue is read.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aws_config::SdkConfig;
use aws_sdk_eventbridge::types::Target;
use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::{Value, json};
use uuid::Uuid;

/// How long an event may take from the bus to a queue before it is called lost.
const DELIVERY: Duration = Duration::from_secs(60);

/// A queue that a rule on the bus feeds with everything of ours.
pub struct Subscription {
    queues: aws_sdk_sqs::Client,
    url: String,
    seen: Vec<Value>,
}

impl Subscription {
    /// Subscribes. What was sent before does not arrive.
    ///
    /// # Errors
    /// When the queue or the rule cannot be made.
    pub async fn open(aws: &SdkConfig, bus: &str) -> Result<Self> {
        let queues = aws_sdk_sqs::Client::new(aws);
        let rules = aws_sdk_eventbridge::Client::new(aws);
        let name = format!("subscriber-{}", Uuid::new_v4());
        let url = queues.create_queue().queue_name(&name).send().await?.queue_url.context("the queue has no URL")?;
        let attribute = QueueAttributeName::QueueArn;
        let attributes =
            queues.get_queue_attributes().queue_url(&url).attribute_names(attribute.clone()).send().await?;
        let arn = attributes.attributes().and_then(|all| all.get(&attribute)).context("the queue has no ARN")?;
        let pattern = json!({"source": ["tenantry"]}).to_string();
        rules.put_rule().name(&name).event_bus_name(bus).event_pattern(pattern).send().await?;
        let target = Target::builder().id("queue").arn(arn).build()?;
        rules.put_targets().rule(&name).event_bus_name(bus).targets(target).send().await?;
        Ok(Subscription { queues, url, seen: Vec::new() })
    }

    /// Waits for an event of this type about this tenant, and returns all that have arrived about it.
    ///
    /// # Errors
    /// When none comes within a minute.
    pub async fn events_of(&mut self, detail_type: &str, tenant_id: &str) -> Result<Vec<Value>> {
        let begun = Instant::now();
        loop {
            let found = self.about(detail_type, tenant_id);
            if !found.is_empty() {
                return Ok(found);
            }
            if begun.elapsed() > DELIVERY {
                bail!("no {detail_type} of tenant {tenant_id} within {DELIVERY:?}");
            }
            self.receive(1).await?;
        }
    }

    /// What has arrived so far of this type about this tenant, once nothing more comes for two seconds.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub async fn settled(&mut self, detail_type: &str, tenant_id: &str) -> Result<Vec<Value>> {
        while self.receive(2).await? > 0 {}
        Ok(self.about(detail_type, tenant_id))
    }

    fn about(&self, detail_type: &str, tenant_id: &str) -> Vec<Value> {
        let of = |event: &&Value| event["detail-type"] == detail_type && event["detail"]["tenant_id"] == tenant_id;
        self.seen.iter().filter(of).cloned().collect()
    }

    async fn receive(&mut self, wait_seconds: i32) -> Result<usize> {
        let receive = self.queues.receive_message().queue_url(&self.url).max_number_of_messages(10);
        let answer = receive.wait_time_seconds(wait_seconds).send().await?;
        for message in answer.messages() {
            self.seen.push(serde_json::from_str(message.body().unwrap_or_default())?);
            let receipt = message.receipt_handle().unwrap_or_default();
            self.queues.delete_message().queue_url(&self.url).receipt_handle(receipt).send().await?;
        }
        Ok(answer.messages().len())
    }
}
