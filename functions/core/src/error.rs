//! Why a step failed, and whether trying again can help.

use lambda_runtime::Diagnostic;
use serde::{Deserialize, Serialize};

/// One thing wrong with a request: the field, as the request names it, and the rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Path of the field, such as `owner.email`; empty for the document as a whole.
    pub field: String,
    /// The rule, phrased to follow the field's name: "must be …".
    pub rule: String,
}

/// What a step can end in. [`StepError::name`] is the error name that the state machines match on.
///
/// Messages say what happened, to which thing, and what to do next. They hold no secret and no personal data: Step
/// Functions keeps them for 90 days.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The request breaks rules; all of them are listed.
    #[error("the request was refused: {}", list(.0))]
    InvalidRequest(Vec<Problem>),
    /// The request cannot be honoured beside what exists already (a taken slug, a reused request id).
    #[error("{0}")]
    Conflict(String),
    /// The step's tenant does not exist.
    #[error("no such tenant: {0}")]
    TenantNotFound(String),
    /// Another execution owns the tenant, or its status leaves nothing to do here: end quietly.
    #[error("superseded: {0}")]
    Superseded(String),
    /// A flagged tenant, which only an operator may release.
    #[error("{0}")]
    NeedsOperator(String),
    /// A thing of the tenant's name exists that is not the tenant's. It is neither adopted nor deleted.
    #[error("{kind} {name} exists but is not this tenant's ({found}): remove or rename it, then run again")]
    Foreign {
        /// What it is, such as `bucket`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What marks it as another's.
        found: String,
    },
    /// The function lacks a permission. Waiting does not grant it.
    #[error("not permitted: {0}")]
    Denied(String),
    /// The function's own settings are missing or wrong.
    #[error("the function is misconfigured: {0}")]
    Misconfigured(String),
    /// What an authorizer answers a request with that is not paid for. API Gateway knows it by this very text.
    #[error("Unauthorized")]
    Unauthorized,
    /// Anything not known to be transient. Not retried.
    #[error("{0}")]
    Unexpected(String),
    /// What was asked for is being made or removed, which takes minutes: the machine asks again at its own pace.
    #[error("{0}")]
    NotReady(String),
    /// Worth trying again: throttling, a lost connection, something not ready yet.
    #[error("{0}")]
    Transient(String),
}

fn list(problems: &[Problem]) -> String {
    let mut lines = problems.iter().map(|problem| format!("{} {}", problem.field, problem.rule).trim().to_owned());
    let first = lines.next().unwrap_or_default();
    lines.fold(first, |text, line| text + "; " + &line)
}

impl StepError {
    /// The names that a state machine must not retry, in the order its first `Retry` lists them.
    pub const PERMANENT: &[&str] = &[
        "InvalidRequest",
        "Conflict",
        "TenantNotFound",
        "Superseded",
        "NeedsOperator",
        "ForeignResource",
        "Denied",
        "Misconfigured",
        "Unexpected",
    ];

    /// The name of what takes minutes: a machine that waits for such a thing retries it at a pace of its own.
    pub const NOT_READY: &str = "NotReady";

    /// The error name in the state machines (`ErrorEquals`).
    pub fn name(&self) -> &'static str {
        match self {
            StepError::InvalidRequest(_) => "InvalidRequest",
            StepError::Conflict(_) => "Conflict",
            StepError::TenantNotFound(_) => "TenantNotFound",
            StepError::Superseded(_) => "Superseded",
            StepError::NeedsOperator(_) => "NeedsOperator",
            StepError::Foreign { .. } => "ForeignResource",
            StepError::Denied(_) => "Denied",
            StepError::Misconfigured(_) => "Misconfigured",
            StepError::Unauthorized => "Unauthorized",
            StepError::Unexpected(_) => "Unexpected",
            StepError::NotReady(_) => "NotReady",
            StepError::Transient(_) => "Transient",
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, StepError::Transient(_) | StepError::NotReady(_))
    }

    /// The same kind of error with what was being done in front of it: "creating bucket b: …".
    #[must_use]
    pub fn during(self, doing: &str) -> Self {
        match self {
            StepError::Denied(text) => StepError::Denied(format!("{doing}: {text}")),
            StepError::Misconfigured(text) => StepError::Misconfigured(format!("{doing}: {text}")),
            StepError::Unexpected(text) => StepError::Unexpected(format!("{doing}: {text}")),
            StepError::NotReady(text) => StepError::NotReady(format!("{doing}: {text}")),
            StepError::Transient(text) => StepError::Transient(format!("{doing}: {text}")),
            other => other,
        }
    }
}

/// lambda_runtime reports a Rust type name as `errorType` unless it is told a name.
impl From<StepError> for Diagnostic {
    fn from(error: StepError) -> Self {
        Diagnostic { error_type: error.name().to_owned(), error_message: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_named_at_once() {
        let error = StepError::InvalidRequest(vec![
            Problem { field: "slug".into(), rule: "is a reserved word".into() },
            Problem { field: "owner.email".into(), rule: "must be an e-mail address".into() },
        ]);
        assert_eq!(
            error.to_string(),
            "the request was refused: slug is a reserved word; owner.email must be an e-mail address"
        );
    }

    #[test]
    fn only_transient_is_left_for_the_machine_to_retry() {
        assert!(!StepError::PERMANENT.contains(&StepError::Transient(String::new()).name()));
        assert!(StepError::PERMANENT.contains(&StepError::Unexpected(String::new()).name()));
    }
}
