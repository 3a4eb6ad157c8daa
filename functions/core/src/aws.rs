//! The AWS configuration all clients share, and how AWS's errors become ours.

use std::time::Duration;

use aws_config::{BehaviorVersion, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_types::error::display::DisplayErrorContext;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use crate::error::StepError;

/// The longest one AWS operation may take, retries included. It stays below every function's `Timeout` in
/// `infra/template.yaml`, so that a step can still report what happened; a contract test compares them.
pub const OPERATION_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest one attempt of an operation may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(8);

/// Region, credentials and endpoint from the environment, with our timeouts. Makes no network call.
pub async fn config() -> SdkConfig {
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
        .load()
        .await
}

/// AWS error codes that mean "later": throttling, and things that another call is still making or deleting.
const TRANSIENT_CODES: &[&str] = &[
    "AWS.SimpleQueueService.QueueDeletedRecently",
    "ConcurrentModification",
    "ConcurrentModificationException",
    "ConditionalRequestConflict",
    "EntityBeingDeleted",
    "EntityTemporarilyUnmodifiable",
    "InternalError",
    "InternalFailure",
    "InternalServerError",
    "InternalServiceError",
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
/// again). A code that is not known to be transient is not retried.
pub fn classify<E, R>(doing: &str, error: aws_sdk_s3::error::SdkError<E, R>) -> StepError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug + 'static,
{
    use aws_sdk_s3::error::SdkError;
    match &error {
        SdkError::TimeoutError(_) => StepError::Transient(format!("{doing}: AWS did not answer in time")),
        SdkError::DispatchFailure(_) | SdkError::ResponseError(_) => {
            StepError::Transient(format!("{doing}: no answer from AWS: {}", DisplayErrorContext(&error)))
        }
        SdkError::ServiceError(service) => {
            let code = service.err().code().unwrap_or("no error code");
            let text = format!("{doing}: {code}: {}", service.err().message().unwrap_or("no message"));
            if TRANSIENT_CODES.contains(&code) {
                StepError::Transient(text)
            } else if DENIED_CODES.contains(&code) {
                StepError::Denied(text)
            } else {
                StepError::Unexpected(text)
            }
        }
        _ => StepError::Unexpected(format!("{doing}: {}", DisplayErrorContext(&error))),
    }
}

/// The AWS error code, if the service answered with one.
pub fn code<E: ProvideErrorMetadata, R>(error: &aws_sdk_s3::error::SdkError<E, R>) -> Option<&str> {
    error.as_service_error().and_then(ProvideErrorMetadata::code)
}
