//! The tenant's queue and its dead-letter queue.

use anyhow::{Context, Result, ensure};
use aws_sdk_sqs::types::QueueAttributeName as Name;
use tenantry_core::error::StepError;
use tenantry_core::resource::queue::Queue;
use tenantry_core::resource::{Inspection, Resource};

use crate::recorder::Recorder;
use crate::tenants::fresh_tenant;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("is_made_once_mended_and_removed", |world| Box::pin(made(world))),
    ("anothers_is_left_alone", |world| Box::pin(foreign(world))),
];

async fn made(world: &World) -> Result<()> {
    let tenant = fresh_tenant(world, "queue")?;
    let recorder = Recorder::start(world).await?;
    let queue = Queue::from_env(&recorder.env);
    ensure!(queue.inspect(&tenant).await? == Inspection::Absent);
    let made = queue.ensure(&tenant).await?;
    ensure!(queue.inspect(&tenant).await? == Inspection::Present, "{:?}", queue.inspect(&tenant).await?);
    recorder.mutations();
    ensure!(queue.ensure(&tenant).await? == made);
    ensure!(recorder.mutations().is_empty(), "running it again changes something");

    let sqs = aws_sdk_sqs::Client::new(&world.env.aws);
    let url = sqs.get_queue_url().queue_name(tenant.queue()).send().await?.queue_url.context("no queue")?;
    sqs.set_queue_attributes().queue_url(&url).attributes(Name::VisibilityTimeout, "1").send().await?;
    let drift = vec![format!("{}: VisibilityTimeout", tenant.queue())];
    ensure!(queue.inspect(&tenant).await? == Inspection::Drifted(drift));
    queue.ensure(&tenant).await?;
    ensure!(queue.inspect(&tenant).await? == Inspection::Present);
    // As after a crash between the two.
    sqs.delete_queue().queue_url(&url).send().await?;
    ensure!(matches!(queue.inspect(&tenant).await?, Inspection::Drifted(_)));
    queue.ensure(&tenant).await?;
    queue.remove(&tenant).await?;
    ensure!(queue.inspect(&tenant).await? == Inspection::Absent);
    queue.remove(&tenant).await?;
    Ok(())
}

async fn foreign(world: &World) -> Result<()> {
    let tenant = fresh_tenant(world, "queue")?;
    let sqs = aws_sdk_sqs::Client::new(&world.env.aws);
    let url = sqs.create_queue().queue_name(tenant.queue()).send().await?.queue_url.context("no queue")?;
    let queue = Queue::from_env(&world.env);
    ensure!(matches!(queue.ensure(&tenant).await, Err(StepError::Foreign { .. })));
    ensure!(matches!(queue.inspect(&tenant).await?, Inspection::Foreign(_)));
    let listed = sqs.list_queues().queue_name_prefix(tenant.dead_letter_queue()).send().await?;
    ensure!(listed.queue_urls().is_empty(), "a dead-letter queue was made for a queue that is another's");
    queue.remove(&tenant).await?;
    sqs.get_queue_attributes().queue_url(&url).send().await.context("another's queue was removed")?;
    sqs.delete_queue().queue_url(&url).send().await?;
    Ok(())
}
