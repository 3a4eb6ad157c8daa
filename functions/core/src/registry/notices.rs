//! What tenants are told about their quotas: once a billing cycle, resource and level, whoever notices, and however often.

use serde_json::json;
use time::OffsetDateTime;
use tokio_postgres::{GenericClient, Row, Transaction};

use super::quotas::Balance;
use super::usage::Cycle;
use super::{Selector, outbox, read};
use crate::error::StepError;
use crate::moment;
use crate::tenant::{Metered, Tenant, TenantId};

/// The share of a quota at which a tenant is warned, in percent.
const WARNING_PERCENT: i64 = 80;
/// Notices that one run mails.
const BATCH: i64 = 100;

/// How much of a quota is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// 80 % or more.
    Warning,
    /// All of it, or so much that what was asked for does not fit.
    Exceeded,
}

/// What a tenant is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Whom.
    pub tenant: TenantId,
    /// About what.
    pub resource: Metered,
    /// How much of it.
    pub level: Level,
    /// In the resource's own unit.
    pub used: i64,
    /// In the resource's own unit.
    pub quota: i64,
    /// The first moment of the billing cycle that it is about.
    pub cycle_start: OffsetDateTime,
}

impl Level {
    /// The levels that a use has reached.
    fn reached(used: i64, quota: i64) -> impl Iterator<Item = Level> {
        // As i128: a share of the largest quota does not fit otherwise.
        let warned = i128::from(used) * 100 >= i128::from(quota) * i128::from(WARNING_PERCENT);
        [(warned, Level::Warning), (used >= quota, Level::Exceeded)]
            .into_iter()
            .filter_map(|(reached, level)| reached.then_some(level))
    }

    fn as_str(self) -> &'static str {
        match self {
            Level::Warning => "warning",
            Level::Exceeded => "exceeded",
        }
    }

    fn event(self) -> &'static str {
        match self {
            Level::Warning => "tenant.quota_warning",
            Level::Exceeded => "tenant.quota_exceeded",
        }
    }
}

/// Records a notice with its event, in the transaction of what it tells of; false when that was done before.
pub(super) async fn tell(
    transaction: &Transaction<'_>,
    tenant: TenantId,
    balance: Balance,
    level: Level,
    cycle: Cycle,
) -> Result<bool, StepError> {
    let sql = "INSERT INTO quota_notices (tenant_id, resource, cycle_start, level, used, quota)
               VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
    let Balance { resource, used, quota } = balance;
    let told = transaction
        .execute(sql, &[&tenant.0, &resource.as_str(), &cycle.start, &level.as_str(), &used, &quota])
        .await?;
    if told == 0 {
        return Ok(false);
    }
    let Tenant { id, slug, plan, region, .. } = read(transaction, &Selector::Id(tenant)).await?.tenant;
    let detail = json!({
        "slug": slug, "plan": plan, "region": region, "resource": resource, "used": used, "quota": quota,
        "cycle_start": moment::text(cycle.start)?, "cycle_end": moment::text(cycle.end)?,
    });
    outbox::enqueue(transaction, id, level.event(), detail).await?;
    Ok(true)
}

/// Tells of every level that a balance has reached. Returns how many notices are new.
pub(super) async fn tell_reached(
    transaction: &Transaction<'_>,
    tenant: TenantId,
    balance: Balance,
    cycle: Cycle,
) -> Result<usize, StepError> {
    let mut told = 0;
    for level in Level::reached(balance.used, balance.quota) {
        told += usize::from(tell(transaction, tenant, balance, level, cycle).await?);
    }
    Ok(told)
}

/// The notices that no mail was sent for yet, oldest first.
///
/// # Errors
/// When the registry cannot be read.
pub async fn to_mail(client: &impl GenericClient) -> Result<Vec<Notice>, StepError> {
    let sql = "SELECT tenant_id, resource, level, used, quota, cycle_start FROM quota_notices
               WHERE mailed_at IS NULL ORDER BY noticed_at LIMIT $1";
    client.query(sql, &[&BATCH]).await?.iter().map(notice).collect()
}

fn notice(row: &Row) -> Result<Notice, StepError> {
    Ok(Notice {
        tenant: TenantId(row.try_get("tenant_id")?),
        resource: super::known(row, "resource")?,
        level: if row.try_get::<_, &str>("level")? == "warning" { Level::Warning } else { Level::Exceeded },
        used: row.try_get("used")?,
        quota: row.try_get("quota")?,
        cycle_start: row.try_get("cycle_start")?,
    })
}

/// Notes that a notice was mailed.
///
/// # Errors
/// When the registry cannot be written; then it is mailed again.
pub async fn mailed(client: &impl GenericClient, notice: &Notice) -> Result<(), StepError> {
    let sql = "UPDATE quota_notices SET mailed_at = now()
               WHERE tenant_id = $1 AND resource = $2 AND cycle_start = $3 AND level = $4";
    let (resource, level) = (notice.resource.as_str(), notice.level.as_str());
    client.execute(sql, &[&notice.tenant.0, &resource, &notice.cycle_start, &level]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eighty_percent_is_a_warning_and_all_of_it_is_too_much() {
        let reached = |used, quota| Level::reached(used, quota).collect::<Vec<_>>();
        assert_eq!(reached(79, 100), []);
        assert_eq!(reached(80, 100), [Level::Warning]);
        assert_eq!(reached(99, 100), [Level::Warning]);
        assert_eq!(reached(100, 100), [Level::Warning, Level::Exceeded]);
        assert_eq!(reached(3, 4), []);
        assert_eq!(reached(i64::MAX - 1, i64::MAX), [Level::Warning]);
    }
}
