//! The AWS configuration all clients share, and how AWS's errors become ours.

use std::time::Duration;

use aws_config::{AppName, BehaviorVersion, ConfigLoader, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_s3::error::SdkError;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_types::error::display::DisplayErrorContext;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use crate::error::StepError;

/// The longest one AWS operation may take, retries included. It stays below every function's `Timeout` in
/// `infra/template.yaml`, so that a step can still report what happened; a contract test compares them.
pub const OPERATION_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest one attempt of an operation may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(8);

/// Region, credentials and endpoint from the environment, with our timeouts. Calls carry the function's name in their user
/// agent, as CloudTrail shows it. Makes no network call.
pub async fn config() -> SdkConfig {
    let name = std::env::var("AWS_LAMBDA_FUNCTION_NAME").ok().and_then(|name| AppName::new(name).ok());
    match name {
        Some(name) => loader().app_name(name).load().await,
        None => loader().load().await,
    }
}

/// Our HTTP client, retries and timeouts, before anything is read from the environment.
pub fn loader() -> ConfigLoader {
    let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .retry_config(RetryConfig::standard().with_max_attempts(3))
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(Duration::from_secs(3))
                .operation_attempt_timeout(ATTEMPT_TIMEOUT)
                .operation_timeout(OPERATION_TIMEOUT)
                .build(),
        )
}

/// A client of S3. Only AWS resolves a host name per bucket; an endpoint given by hand has the bucket in the path.
pub fn s3(config: &SdkConfig) -> aws_sdk_s3::Client {
    let path_style = config.endpoint_url().is_some();
    aws_sdk_s3::Client::from_conf(aws_sdk_s3::config::Builder::from(config).force_path_style(path_style).build())
}

/// AWS error codes that mean "later": throttling, and things that another call is still making or deleting.
const TRANSIENT_CODES: &[&str] = &[
    "AWS.SimpleQueueService.QueueDeletedRecently",
    "ConcurrentModification",
    "ConcurrentModificationException",
    "ConditionalRequestConflict",
    "EntityBeingDeleted",
    "EntityTemporarilyUnmodifiable",
    "InsufficientDBInstanceCapacity",
    "InternalError",
    "InternalFailure",
    "InternalServerError",
    "InternalServiceError",
    "InvalidDBInstanceState",
    "InvalidDBSnapshotState",
    "LimitExceededException.Throttling",
    "OperationAborted",
    "PriorRequestNotComplete",
    "ProvisionedThroughputExceededException",
    "QueueDeletedRecently",
    "RequestLimitExceeded",
    "RequestTimeout",
    "ResourceInUseException",
    "ServiceUnavailable",
    "SlowDown",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "TransactionConflictException",
    "TransactionInProgressException",
];

/// AWS error codes that mean the function's role lacks something.
const DENIED_CODES: &[&str] = &[
    "AccessDenied",
    "AccessDeniedException",
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "UnauthorizedOperation",
    "UnrecognizedClientException",
];

/// Turns an AWS SDK error into ours: `doing` says what was attempted, on what ("creating bucket tenant-…").
///
/// Calls that never got an answer are transient (they may have taken effect: every `ensure` and `remove` can be run
/// again). A code that is not known to be transient is not retried, unless the answer's status says that the fault is AWS's
/// (5xx) or that we asked too often (429).
pub fn classify<E>(doing: &str, error: &SdkError<E>) -> StepError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let message = error.as_service_error().and_then(ProvideErrorMetadata::message).unwrap_or("no message");
    classified(doing, error, &format!(": {message}"))
}

/// As [`classify`], without what the service says: for services whose messages repeat personal data.
pub fn classify_without_message<E>(doing: &str, error: &SdkError<E>) -> StepError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    classified(doing, error, "")
}

fn classified<E>(doing: &str, error: &SdkError<E>, message: &str) -> StepError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match error {
        SdkError::TimeoutError(_) => StepError::Transient(format!("{doing}: AWS did not answer in time")),
        SdkError::DispatchFailure(_) | SdkError::ResponseError(_) => {
            StepError::Transient(format!("{doing}: no answer from AWS: {}", DisplayErrorContext(error)))
        }
        SdkError::ServiceError(service) => {
            let code = service.err().code().unwrap_or("no error code");
            let text = format!("{doing}: {code}{message}");
            let status = service.raw().status();
            if TRANSIENT_CODES.contains(&code) {
                StepError::Transient(text)
            } else if DENIED_CODES.contains(&code) {
                StepError::Denied(text)
            } else if status.is_server_error() || status.as_u16() == 429 {
                StepError::Transient(text)
            } else {
                StepError::Unexpected(text)
            }
        }
        _ => StepError::Unexpected(format!("{doing}: {}", DisplayErrorContext(error))),
    }
}

/// The AWS error code, if the service answered with one.
pub fn code<E: ProvideErrorMetadata>(error: &SdkError<E>) -> Option<&str> {
    error.as_service_error().and_then(ProvideErrorMetadata::code)
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::config::http::HttpResponse;
    use aws_sdk_s3::error::ErrorMetadata;
    use aws_sdk_s3::operation::head_bucket::HeadBucketError;
    use aws_smithy_types::body::SdkBody;

    use super::*;

    fn answered(status: u16, code: Option<&str>) -> StepError {
        let mut metadata = ErrorMetadata::builder();
        metadata = if let Some(code) = code { metadata.code(code) } else { metadata };
        let status = status.try_into().expect("a status");
        let error = HeadBucketError::generic(metadata.build());
        classify("asking", &SdkError::service_error(error, HttpResponse::new(status, SdkBody::empty())))
    }

    #[test]
    fn what_is_not_known_to_pass_is_not_retried() {
        assert!(matches!(answered(400, Some("MalformedPolicy")), StepError::Unexpected(_)));
        assert!(matches!(answered(403, Some("AccessDenied")), StepError::Denied(_)));
        assert!(matches!(answered(404, None), StepError::Unexpected(_)));
    }

    #[test]
    fn what_a_service_says_can_be_kept_out() {
        let metadata =
            ErrorMetadata::builder().code("MessageRejected").message("not verified: ada@acme.example").build();
        let answer = HttpResponse::new(400.try_into().expect("a status"), SdkBody::empty());
        let error = SdkError::service_error(HeadBucketError::generic(metadata), answer);
        assert_eq!(classify_without_message("mailing", &error).to_string(), "mailing: MessageRejected");
    }

    #[test]
    fn throttling_and_faults_of_aws_are_transient() {
        assert!(answered(400, Some("ThrottlingException")).is_transient());
        assert!(answered(500, Some("SomethingNew")).is_transient());
        assert!(answered(503, None).is_transient());
        assert!(answered(429, None).is_transient());
    }
}
