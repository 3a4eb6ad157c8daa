//! Redis: every key with the tenant's hash tag. What tells the gate to refuse it stays.

use async_trait::async_trait;

use super::{Finding, Kept, Store, Subject, count};
use crate::environment::Environment;
use crate::error::StepError;
use crate::gate::{Projector, unreached};
use crate::tenant::Slug;

/// The Redis of the gate.
pub(super) struct Keys {
    redis: Projector,
}

impl Keys {
    pub(super) fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(Keys { redis: Projector::from_env(env)? })
    }
}

#[async_trait]
impl Store for Keys {
    fn name(&self) -> &'static str {
        "redis"
    }

    async fn look(&self, subject: &Subject) -> Result<Finding, StepError> {
        let mut finding = Finding::default();
        let slug = &subject.tenant.slug;
        let mut left = self.redis.keys(slug).await?;
        let projection = projection(slug);
        let mut refuses = true;
        if left.contains(&projection) {
            let standing = redis::cmd("HGET").arg(&projection).arg("standing").to_owned();
            let standing: Option<String> =
                standing.query_async(&mut self.redis.redis().await?).await.map_err(|error| unreached(&error))?;
            refuses = standing.is_some_and(|standing| standing != "active");
        }
        // Also where it is not there now: CloseDeletion, which the certificate comes before, writes it anew.
        if refuses {
            left.retain(|key| *key != projection);
            finding.kept.push(Kept {
                what: "the gate's refusal".into(),
                why: "requests for the deleted tenant are refused at once: its id and its standing, and no usage"
                    .into(),
                until: None,
            });
        }
        finding.counts = Finding::of([("keys", count(left.len()))]).counts;
        Ok(finding)
    }
}

/// The key that says whether the gate lets a tenant in.
fn projection(slug: &Slug) -> String {
    format!("gate:{{{slug}}}")
}
