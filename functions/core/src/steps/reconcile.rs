//! ReconcileGate, on a schedule: what Redis holds is compared with the registry. Projections that differ are written again,
//! counters are kept, and who comes near a quota is told.

use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use serde_json::{Value, json};
use tenant_gate::Projection;
use uuid::Uuid;

use crate::environment::Environment;
use crate::error::StepError;
use crate::gate::{Projector, unreached};
use crate::mail::Mail;
use crate::postgres::Database;
use crate::registry::notices::{self, Notice};
use crate::registry::usage::{self, Counted};
use crate::registry::{self, Selector, contacts};
use crate::step::Step;
use crate::tenant::TenantId;

/// Tenants that are looked at in one round trip to each side.
const PAGE: i64 = 500;

/// Compares, repairs, keeps and tells.
pub struct ReconcileGate {
    registry: Database,
    gate: Projector,
    mail: Mail,
}

impl ReconcileGate {
    /// Wires the step.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(ReconcileGate {
            registry: Database::registry(env)?,
            gate: Projector::from_env(env)?,
            mail: Mail::from_env(env)?,
        })
    }

    /// Returns how many projections were written again, and how many notices are new.
    async fn reconcile(&self) -> Result<(usize, usize), StepError> {
        let mut redis = self.gate.redis().await?;
        let (mut repaired, mut told, mut after) = (0, 0, Uuid::nil());
        loop {
            let mut client = self.registry.client().await?;
            let page = Projection::read_after(&*client, after, PAGE).await?;
            let Some(last) = page.last() else { return Ok((repaired, told)) };
            after = last.id;
            let held = Projection::compare(&page, &mut redis).await.map_err(|error| unreached(&error))?;
            let now = now();
            let mut counted = Vec::new();
            for (projection, held) in page.iter().zip(held) {
                if held.stale {
                    let written = projection.write(&mut redis).await.map_err(|error| unreached(&error))?;
                    repaired += usize::from(written);
                }
                counted.extend(held.calls.iter().map(|(cycle, calls)| Counted {
                    tenant: TenantId(projection.id),
                    cycle_start: cycle.start,
                    cycle_end: cycle.end,
                    current: cycle.start <= now && now < cycle.end,
                    calls: *calls,
                    quota: projection.limit_at(now),
                }));
            }
            told += usage::keep(&mut client, &counted).await?;
        }
    }

    /// Mails what was not mailed yet. One that cannot be mailed keeps no other from it, and is tried again.
    async fn mail(&self) -> Result<usize, StepError> {
        let waiting = notices::to_mail(&*self.registry.client().await?).await?;
        let mut sent = 0;
        for notice in waiting {
            match self.mail_one(&notice).await {
                Ok(()) => sent += 1,
                Err(error) => tracing::warn!(
                    tenant = %notice.tenant, error = error.name(), %error, "a quota notice could not be mailed"
                ),
            }
        }
        Ok(sent)
    }

    async fn mail_one(&self, notice: &Notice) -> Result<(), StepError> {
        let client = self.registry.client().await?;
        let tenant = registry::read(&*client, &Selector::Id(notice.tenant)).await?.tenant;
        // An owner whose data was erased is not written to.
        if let Some(owner) = contacts::owner(&*client, notice.tenant).await? {
            self.mail.send_quota_notice(&tenant, &owner, notice).await?;
        }
        notices::mailed(&*client, notice).await
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[async_trait]
impl Step for ReconcileGate {
    async fn run(&self, _name: &'static str, _input: &Value) -> Result<Value, StepError> {
        let reconciled = self.reconcile().await;
        // What is held is carried over, and mail is sent, also while Redis is down.
        usage::carry_over(&*self.registry.client().await?).await?;
        let mailed = self.mail().await?;
        let (repaired, told) = reconciled?;
        Ok(json!({ "repaired": repaired, "told": told, "mailed": mailed }))
    }
}
