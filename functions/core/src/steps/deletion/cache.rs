//! InvalidateCache: nothing of the tenant is served from the CDN any more, where there is one.

use async_trait::async_trait;
use aws_sdk_cloudfront::Client;
use aws_sdk_cloudfront::error::BuildError;
use aws_sdk_cloudfront::types::{InvalidationBatch, Paths};
use serde_json::{Value, json};

use super::Removal;
use crate::aws::classify;
use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::registry::Record;
use crate::registry::holds::Hold;
use crate::resource::wait::until_done;

/// What stands for the tenant's slug in the pattern.
const SLUG: &str = "{slug}";

/// Invalidates the tenant's path pattern of a CloudFront distribution.
pub struct InvalidateCache {
    cloudfront: Client,
    distribution: Option<String>,
    pattern: String,
}

impl InvalidateCache {
    /// Reads DISTRIBUTION_ID (empty: there is no CDN) and CACHE_PATH_PATTERN.
    ///
    /// # Errors
    /// `Misconfigured` when the pattern is missing, or is no path.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        let pattern = env.required("CACHE_PATH_PATTERN")?;
        if !pattern.starts_with('/') {
            return Err(StepError::Misconfigured(format!("CACHE_PATH_PATTERN must begin with /, and is {pattern}")));
        }
        Ok(InvalidateCache {
            cloudfront: Client::new(&env.aws),
            distribution: env.optional("DISTRIBUTION_ID"),
            pattern,
        })
    }
}

#[async_trait]
impl Removal for InvalidateCache {
    async fn act(&self, record: &Record, hold: &Hold, _registry: &Database) -> Result<Value, StepError> {
        let Some(distribution) = &self.distribution else { return Ok(json!({ "cache": "none" })) };
        let path = self.pattern.replace(SLUG, record.tenant.slug.as_str());
        let doing = &format!("invalidating a tenant's path of distribution {distribution}");
        let paths = Paths::builder().quantity(1).items(path).build().map_err(|error| unbuildable(&error))?;
        // The same reference with the same paths is the same invalidation, however often it is asked for.
        let reference = format!("{} {}", record.tenant.id, hold.id);
        let batch = InvalidationBatch::builder().paths(paths).caller_reference(reference).build();
        let batch = batch.map_err(|error| unbuildable(&error))?;
        let create = self.cloudfront.create_invalidation().distribution_id(distribution).invalidation_batch(batch);
        let made = create.send().await.map_err(|error| classify(doing, &error))?.invalidation;
        let id = made.map(|made| made.id).ok_or_else(|| StepError::Unexpected(format!("{doing}: it has no id")))?;
        until_done(doing, || async {
            let get = self.cloudfront.get_invalidation().distribution_id(distribution).id(&id).send().await;
            let found = get.map_err(|error| classify(doing, &error))?.invalidation;
            let status = found.map(|found| found.status).unwrap_or_default();
            Ok((status != "Completed").then(|| format!("it is {status}")))
        })
        .await?;
        Ok(json!({ "invalidation": id }))
    }
}

fn unbuildable(error: &BuildError) -> StepError {
    StepError::Unexpected(format!("composing an invalidation: {error}"))
}
