//! Stripe's events on a bus of their own, where a partner's arrive in an AWS account: localstripe sends them as webhooks, and
//! they are put there.
//!
//! Nobody but AWS's partners may send from `aws.partner/…`, not on the emulator either: the source is another one here, and the
//! template's rules go by the bus alone.

use anyhow::{Context, Result, ensure};
use aws_config::SdkConfig;
use aws_sdk_eventbridge::Client;
use aws_sdk_eventbridge::types::PutEventsRequestEntry;
use http_body_util::Full;
use hyper::Response;
use hyper::body::Bytes;
use serde_json::Value;

use crate::proxy::{Proxy, serve};
use crate::stripe::Stripe;

/// The bus, named as Stripe's are.
pub const BUS: &str = "aws.partner/stripe.com/ed_local";
/// Where its events come from.
pub const SOURCE: &str = "stripe.com";

/// Carries events from Stripe to the bus until it is dropped.
pub struct StripeEvents {
    _webhook: Proxy,
}

impl StripeEvents {
    /// Makes the bus, and has Stripe's events brought to it.
    ///
    /// # Errors
    /// When the bus cannot be made, or localstripe does not take the webhook.
    pub async fn start(aws: &SdkConfig, stripe: &Stripe) -> Result<Self> {
        let client = Client::new(aws);
        client.create_event_bus().name(BUS).send().await?;
        let webhook = Proxy::listen(move |tcp, _| {
            let client = client.clone();
            serve(Box::new(tcp), move |request, _| {
                let client = client.clone();
                async move {
                    put(&client, request.body()).await?;
                    Ok(Response::new(Full::default()))
                }
            })
        })
        .await?;
        stripe.tell(&format!("http://{}", webhook.address())).await?;
        Ok(StripeEvents { _webhook: webhook })
    }
}

async fn put(client: &Client, event: &Bytes) -> Result<()> {
    let parsed: Value = serde_json::from_slice(event)?;
    let entry = PutEventsRequestEntry::builder()
        .event_bus_name(BUS)
        .source(SOURCE)
        .detail_type(parsed["type"].as_str().context("an event without a type")?)
        .detail(parsed.to_string())
        .build();
    let answer = client.put_events().entries(entry).send().await?;
    ensure!(answer.failed_entry_count() == 0, "the bus refused an event of Stripe's: {:?}", answer.entries());
    Ok(())
}
