//! What a function is told by its template: environment variables, and the AWS configuration that its clients share.

use std::collections::HashMap;

use aws_config::SdkConfig;

use crate::error::StepError;

/// A function's settings and its AWS configuration, loaded once at start-up.
#[derive(Clone)]
pub struct Environment {
    /// Region, credentials, endpoint and HTTP client of every AWS client.
    pub aws: SdkConfig,
    variables: HashMap<String, String>,
}

impl Environment {
    /// The process's own environment. Makes no network call.
    pub async fn load() -> Self {
        Environment { aws: crate::aws::config().await, variables: std::env::vars().collect() }
    }

    /// An environment given in full, for callers that act as a function without being one.
    pub fn new(aws: SdkConfig, variables: HashMap<String, String>) -> Self {
        Environment { aws, variables }
    }

    /// The same environment with one setting replaced.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// All settings.
    pub fn variables(&self) -> &HashMap<String, String> {
        &self.variables
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
        self.variables.get(name).filter(|value| !value.is_empty()).cloned()
    }

    /// A number that the function cannot do without.
    ///
    /// # Errors
    /// `Misconfigured`, naming the variable, when it is absent or no number of the wanted type.
    pub fn number<N: std::str::FromStr>(&self, name: &str) -> Result<N, StepError> {
        let text = self.required(name)?;
        text.parse()
            .map_err(|_| StepError::Misconfigured(format!("environment variable {name} is {text:?}, not a number")))
    }

    /// Numbers separated by commas; none when absent.
    ///
    /// # Errors
    /// `Misconfigured`, naming the variable, when one is no number.
    pub fn numbers(&self, name: &str) -> Result<Vec<f64>, StepError> {
        let list = self.list(name);
        list.iter().map(|text| text.parse()).collect::<Result<_, _>>().map_err(|_| {
            StepError::Misconfigured(format!("environment variable {name} is not numbers separated by commas"))
        })
    }

    /// A list separated by commas; empty when absent.
    pub fn list(&self, name: &str) -> Vec<String> {
        let text = self.optional(name).unwrap_or_default();
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }
}
