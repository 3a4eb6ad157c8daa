//! Who hears of what happens to a tenant's objects: EventBridge, from where the stack's rule takes it, and nobody else.

use aws_sdk_s3::operation::get_bucket_notification_configuration::GetBucketNotificationConfigurationOutput;
use aws_sdk_s3::types::{EventBridgeConfiguration, NotificationConfiguration};

/// What is wanted.
pub(super) fn to_event_bridge() -> NotificationConfiguration {
    NotificationConfiguration::builder().event_bridge_configuration(EventBridgeConfiguration::builder().build()).build()
}

/// What S3 answered, in the form in which it is written. An empty list is none.
pub(super) fn found(answer: GetBucketNotificationConfigurationOutput) -> NotificationConfiguration {
    NotificationConfiguration::builder()
        .set_topic_configurations(answer.topic_configurations.filter(|list| !list.is_empty()))
        .set_queue_configurations(answer.queue_configurations.filter(|list| !list.is_empty()))
        .set_lambda_function_configurations(answer.lambda_function_configurations.filter(|list| !list.is_empty()))
        .set_event_bridge_configuration(answer.event_bridge_configuration)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_lists_are_no_difference_but_another_listener_is() {
        let answer = || {
            GetBucketNotificationConfigurationOutput::builder()
                .set_queue_configurations(Some(Vec::new()))
                .event_bridge_configuration(EventBridgeConfiguration::builder().build())
        };
        assert_eq!(found(answer().build()), to_event_bridge());
        let queue = aws_sdk_s3::types::QueueConfiguration::builder()
            .queue_arn("arn:aws:sqs:us-east-1:111122223333:elsewhere")
            .events(aws_sdk_s3::types::Event::S3ObjectCreated)
            .build()
            .expect("a configuration");
        assert_ne!(found(answer().queue_configurations(queue).build()), to_event_bridge());
        assert_ne!(found(GetBucketNotificationConfigurationOutput::builder().build()), to_event_bridge());
    }
}
