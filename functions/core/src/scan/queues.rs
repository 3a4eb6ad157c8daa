//! SQS: queues that are named for the tenant, and what waits in them.

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName as Name;

use super::{Finding, Store, Subject, count};
use crate::aws::classify;
use crate::environment::Environment;
use crate::error::StepError;

/// Queues that one page of a listing holds (the most that SQS gives).
const PAGE: i32 = 1000;

/// The account's queues in this region.
pub(super) struct Queues {
    sqs: Client,
}

impl Queues {
    pub(super) fn from_env(env: &Environment) -> Self {
        Queues { sqs: Client::new(&env.aws) }
    }

    /// Messages that wait, are being handled, or are delayed. SQS's own figures, which are approximate.
    async fn messages(&self, url: &str) -> Result<i64, StepError> {
        let figures = [
            Name::ApproximateNumberOfMessages,
            Name::ApproximateNumberOfMessagesNotVisible,
            Name::ApproximateNumberOfMessagesDelayed,
        ];
        let get = self.sqs.get_queue_attributes().queue_url(url).set_attribute_names(Some(figures.to_vec()));
        let attributes = match get.send().await {
            // Listed for up to a minute after it is gone.
            Err(error) if crate::aws::code(&error).is_some_and(|code| code.contains("NonExistentQueue")) => {
                return Ok(0);
            }
            attributes => attributes.map_err(|error| classify("reading a queue's figures", &error))?.attributes,
        };
        let attributes = attributes.unwrap_or_default();
        let figure = |name: &Name| attributes.get(name).and_then(|text| text.parse::<i64>().ok()).unwrap_or_default();
        Ok(figures.iter().map(figure).sum())
    }
}

#[async_trait]
impl Store for Queues {
    fn name(&self) -> &'static str {
        "queues"
    }

    async fn look(&self, subject: &Subject) -> Result<Finding, StepError> {
        let list = self.sqs.list_queues().queue_name_prefix(subject.tenant.queue()).max_results(PAGE);
        let mut pages = list.into_paginator().items().send();
        let (mut queues, mut messages) = (0, 0);
        while let Some(url) = pages.next().await {
            let url = url.map_err(|error| classify("listing queues", &error))?;
            queues += 1;
            messages += self.messages(&url).await?;
        }
        Ok(Finding::of([("queues", count(queues)), ("messages", messages)]))
    }
}
