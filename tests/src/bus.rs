//! Standing where billing and our consumers stand: putting events on the bus, and listening to it.

use anyhow::{Result, bail};
use aws_sdk_eventbridge::types::PutEventsRequestEntry;
use serde_json::Value;
use tenantry_local::events::Subscription;

use crate::world::World;

impl World {
    /// Subscribes to everything of ours on the bus.
    pub async fn subscribe(&self) -> Result<Subscription> {
        Subscription::open(&self.env.aws, &self.env.required("EVENT_BUS_NAME")?).await
    }

    /// Puts an event on the bus, as billing or the product's sign-up would.
    pub async fn put_event(&self, source: &str, detail_type: &str, detail: &Value) -> Result<()> {
        self.put_event_on(&self.env.required("EVENT_BUS_NAME")?, source, detail_type, detail).await
    }

    /// Puts an event on any bus.
    pub async fn put_event_on(&self, bus: &str, source: &str, detail_type: &str, detail: &Value) -> Result<()> {
        let entry = PutEventsRequestEntry::builder()
            .event_bus_name(bus)
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
