//! What a function is told by its template: environment variables, and the AWS configuration that its clients share.

use std::env;

use aws_config::SdkConfig;

use crate::error::StepError;

/// A function's settings and its AWS configuration, loaded once at start-up.
pub struct Environment {
    /// Region, credentials, endpoint and HTTP client of every AWS client.
    pub aws: SdkConfig,
}

impl Environment {
    /// Loads the AWS configuration. Makes no network call.
    pub async fn load() -> Self {
        Environment { aws: crate::aws::config().await }
    }

    /// A setting that the function cannot do without.
    ///
    /// # Errors
    /// `Misconfigured`, naming the variable, when it is absent or empty.
    pub fn required(&self, name: &str) -> Result<String, StepError> {
        self.optional(name).ok_or_else(|| {
            StepError::Misconfigured(format!("environment variable {name} is not set; see infra/template.yaml"))
        })
    }

    /// A setting that may be absent; empty counts as absent, because a template cannot leave a variable out.
    pub fn optional(&self, name: &str) -> Option<String> {
        env::var(name).ok().filter(|value| !value.is_empty())
    }
}
