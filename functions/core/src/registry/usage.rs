//! What tenants used, kept from the counters in Redis, and what they were told about it.

use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_postgres::{Client, GenericClient, Row, Transaction};

use super::{Selector, outbox, read};
use crate::error::StepError;
use crate::tenant::{Tenant, TenantId};

/// The share of a quota at which a tenant is warned, in percent.
const WARNING_PERCENT: i64 = 80;
/// Notices that one run mails.
const BATCH: i64 = 100;

/// What a quota is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metered {
    /// Calls through the gate in a billing cycle.
    ApiCalls,
}

/// How much of a quota is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// 80 % or more.
    Warning,
    /// All of it.
    Exceeded,
}

/// What a tenant is told: once a billing cycle, resource and level.
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

/// Calls that were counted in one billing cycle of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Whose.
    pub tenant: TenantId,
    /// The cycle's first moment, in milliseconds since 1970.
    pub cycle_start: i64,
    /// The next cycle's first moment.
    pub cycle_end: i64,
    /// Calls.
    pub calls: i64,
    /// Calls that the cycle has.
    pub quota: i64,
}

impl Metered {
    /// The name in the registry and in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Metered::ApiCalls => "api_calls",
        }
    }

    /// As a person says it.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Metered::ApiCalls => "API calls",
        }
    }

    /// What happens at the quota's end.
    pub(crate) fn consequence(self) -> &'static str {
        match self {
            Metered::ApiCalls => "further calls are refused",
        }
    }
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

/// Keeps counted calls, and in the same transaction tells, once, who has reached 80 % or all of a quota. What is kept never
/// falls. Returns how many notices are new.
///
/// # Errors
/// When the registry cannot be written; then nothing is kept, and the next run does it.
pub async fn keep(client: &mut Client, counted: &[Counted]) -> Result<usize, StepError> {
    let transaction = client.transaction().await?;
    let column = |of: fn(&Counted) -> i64| counted.iter().map(of).collect::<Vec<_>>();
    let tenants: Vec<_> = counted.iter().map(|count| count.tenant.0).collect();
    transaction
        .execute(
            "INSERT INTO usage_cycles (tenant_id, cycle_start, cycle_end, api_calls)
             SELECT tenant, to_timestamp(starts / 1000.0), to_timestamp(ends / 1000.0), calls
             FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[]) AS c (tenant, starts, ends, calls)
             ORDER BY tenant, starts
             ON CONFLICT (tenant_id, cycle_start) DO UPDATE
                 SET api_calls = excluded.api_calls, counted_at = now()
                 WHERE usage_cycles.api_calls < excluded.api_calls",
            &[&tenants, &column(|c| c.cycle_start), &column(|c| c.cycle_end), &column(|c| c.calls)],
        )
        .await?;
    let mut told = 0;
    // Also where no call was counted since: the quota may have become smaller.
    for count in counted {
        for level in Level::reached(count.calls, count.quota) {
            told += usize::from(tell(&transaction, count, level).await?);
        }
    }
    transaction.commit().await?;
    Ok(told)
}

/// Records a notice with its event; false when that was done before.
async fn tell(transaction: &Transaction<'_>, count: &Counted, level: Level) -> Result<bool, StepError> {
    let sql = "INSERT INTO quota_notices (tenant_id, resource, cycle_start, level, used, quota)
               VALUES ($1, $2, to_timestamp($3::bigint / 1000.0), $4, $5, $6)
               ON CONFLICT DO NOTHING RETURNING cycle_start";
    let resource = Metered::ApiCalls;
    let row = transaction
        .query_opt(
            sql,
            &[&count.tenant.0, &resource.as_str(), &count.cycle_start, &level.as_str(), &count.calls, &count.quota],
        )
        .await?;
    if row.is_none() {
        return Ok(false);
    }
    let Tenant { id, slug, plan, region, .. } = read(transaction, &Selector::Id(count.tenant)).await?.tenant;
    let at = |millis: i64| -> Result<String, StepError> {
        let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000);
        moment
            .map_err(|error| error.to_string())
            .and_then(|moment| moment.format(&Rfc3339).map_err(|error| error.to_string()))
            .map_err(|error| StepError::Unexpected(format!("a cycle's boundary: {error}")))
    };
    let detail = json!({
        "slug": slug, "plan": plan, "region": region, "resource": resource.as_str(), "used": count.calls,
        "quota": count.quota, "cycle_start": at(count.cycle_start)?, "cycle_end": at(count.cycle_end)?,
    });
    outbox::enqueue(transaction, id, level.event(), detail).await?;
    Ok(true)
}

/// The notices that no mail was sent for yet, oldest first.
///
/// # Errors
/// When the registry cannot be read.
pub async fn to_mail(client: &impl GenericClient) -> Result<Vec<Notice>, StepError> {
    let sql = "SELECT tenant_id, level, used, quota, cycle_start FROM quota_notices
               WHERE mailed_at IS NULL AND resource = 'api_calls' ORDER BY noticed_at LIMIT $1";
    client.query(sql, &[&BATCH]).await?.iter().map(notice).collect()
}

fn notice(row: &Row) -> Result<Notice, StepError> {
    Ok(Notice {
        tenant: TenantId(row.try_get(0)?),
        resource: Metered::ApiCalls,
        level: if row.try_get::<_, &str>(1)? == "warning" { Level::Warning } else { Level::Exceeded },
        used: row.try_get(2)?,
        quota: row.try_get(3)?,
        cycle_start: row.try_get(4)?,
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
