//! Standing where billing and our consumers stand: putting events on the bus, and listening to it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use aws_sdk_eventbridge::types::{PutEventsRequestEntry, Target};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::world::World;

/// How long an event may take from the bus to a queue before a test calls it lost.
const DELIVERY: Duration = Duration::from_secs(60);

/// A queue that a rule on the stack's bus feeds.
pub struct Subscription {
    queues: aws_sdk_sqs::Client,
    url: String,
    seen: Vec<Value>,
}

impl World {
    /// Subscribes to everything of ours on the bus.
    pub async fn subscribe(&self) -> Result<Subscription> {
        let queues = aws_sdk_sqs::Client::new(&self.env.aws);
        let rules = aws_sdk_eventbridge::Client::new(&self.env.aws);
        let name = format!("test-{}", Uuid::new_v4());
        let url = queues.create_queue().queue_name(&name).send().await?.queue_url().unwrap_or_default().to_owned();
        let arn_name = aws_sdk_sqs::types::QueueAttributeName::QueueArn;
        let attributes =
            queues.get_queue_attributes().queue_url(&url).attribute_names(arn_name.clone()).send().await?;
        let arn = attributes.attributes().and_then(|all| all.get(&arn_name)).cloned().unwrap_or_default();
        let bus = self.env.required("EVENT_BUS_NAME")?;
        let pattern = json!({"source": ["tenantry"]}).to_string();
        rules.put_rule().name(&name).event_bus_name(&bus).event_pattern(pattern).send().await?;
        let target = Target::builder().id("queue").arn(arn).build()?;
        rules.put_targets().rule(&name).event_bus_name(&bus).targets(target).send().await?;
        Ok(Subscription { queues, url, seen: Vec::new() })
    }

    /// Puts an event on the bus, as billing or the product's sign-up would.
    pub async fn put_event(&self, source: &str, detail_type: &str, detail: &Value) -> Result<()> {
        let entry = PutEventsRequestEntry::builder()
            .event_bus_name(self.env.required("EVENT_BUS_NAME")?)
            .source(source)
            .detail_type(detail_type)
            .detail(detail.to_string())
            .build();
        let answer = aws_sdk_eventbridge::Client::new(&self.env.aws).put_events().entries(entry).send().await?;
        if answer.failed_entry_count() != 0 {
            bail!("the bus refused the event: {:?}", answer.entries());
        }
        Ok(())
    }
}

impl Subscription {
    /// Waits for an event of this type about this tenant, and returns all that have arrived about it.
    pub async fn events_of(&mut self, detail_type: &str, tenant_id: &str) -> Result<Vec<Value>> {
        let begun = Instant::now();
        loop {
            let found: Vec<Value> = self.about(detail_type, tenant_id);
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
    pub async fn settled(&mut self, detail_type: &str, tenant_id: &str) -> Result<Vec<Value>> {
        while self.receive(2).await? > 0 {}
        Ok(self.about(detail_type, tenant_id))
    }

    fn about(&self, detail_type: &str, tenant_id: &str) -> Vec<Value> {
        let of = |event: &&Value| event["detail-type"] == detail_type && event["detail"]["tenant_id"] == tenant_id;
        self.seen.iter().filter(of).cloned().collect()
    }

    async fn receive(&mut self, wait_seconds: i32) -> Result<usize> {
        let answer = self
            .queues
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(10)
            .wait_time_seconds(wait_seconds)
            .send()
            .await?;
        for message in answer.messages() {
            self.seen.push(serde_json::from_str(message.body().unwrap_or_default())?);
            let receipt = message.receipt_handle().unwrap_or_default();
            self.queues.delete_message().queue_url(&self.url).receipt_handle(receipt).send().await?;
        }
        Ok(answer.messages().len())
    }
}
