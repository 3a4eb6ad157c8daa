//! Stands in for a step while offboarding is being built; it is gone when the last one is.

use async_trait::async_trait;
use serde_json::Value;

use crate::error::StepError;
use crate::step::Step;

/// Fails.
pub struct Unbuilt;

#[async_trait]
impl Step for Unbuilt {
    async fn run(&self, name: &'static str, _input: &Value) -> Result<Value, StepError> {
        Err(StepError::Misconfigured(format!("{name} is not built yet")))
    }
}
