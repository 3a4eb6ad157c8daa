//! What tenants used in each billing cycle: calls, kept from the counters in Redis, and the most that they held of what is
//! decided here.

use time::OffsetDateTime;
use tokio_postgres::{Client, GenericClient, Transaction};

use super::notices;
use super::quotas::{self, Balance, Override};
use super::{seats, storage};
use crate::error::StepError;
use crate::tenant::{Metered, Tenant, TenantId};

/// A billing cycle: it holds its start, and not its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cycle {
    /// Its first moment.
    pub start: OffsetDateTime,
    /// The first moment of the next.
    pub end: OffsetDateTime,
    /// Whether it is not over, and has begun.
    pub current: bool,
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
    /// Whether the cycle is not over, and has begun.
    pub current: bool,
    /// Calls.
    pub calls: i64,
    /// Calls that a cycle has now.
    pub quota: i64,
}

/// What a tenant used of one resource in one billing cycle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// Of what.
    pub resource: Metered,
    /// Calls of the cycle, or what is held now: nothing of a cycle that is not the current one.
    pub used: Option<i64>,
    /// The most that was held at one time in the cycle, as far as it is known. None of calls.
    pub most: Option<i64>,
    /// What is promised besides, to uploads that have not arrived. None of other resources.
    pub reserved: Option<i64>,
    /// What the tenant may use now.
    pub quota: i64,
    /// What its plan grants.
    pub plan_quota: i64,
    /// What stands instead of that.
    pub instead: Option<Override>,
}

/// What a tenant used in one billing cycle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The cycle.
    pub cycle: Cycle,
    /// When the calls were last counted: a minute ago at most, while the gate is asked.
    pub calls_counted_at: Option<OffsetDateTime>,
    /// Every resource.
    pub used: Vec<Used>,
}

/// The cycle of a tenant that holds a moment, or the present; `None` before the tenant was in service for the first time.
pub(super) async fn cycle(
    client: &impl GenericClient,
    tenant: TenantId,
    moment: Option<OffsetDateTime>,
) -> Result<Option<Cycle>, StepError> {
    let sql = "SELECT starts, ends, starts <= now() AND now() < ends
               FROM (SELECT cycle_boundary(cycle_anchor, n) AS starts, cycle_boundary(cycle_anchor, n + 1) AS ends
                     FROM (SELECT cycle_anchor, cycle_number(cycle_anchor, coalesce($2, now())) AS n FROM tenants
                           WHERE id = $1 AND cycle_anchor IS NOT NULL) AS numbered) AS bounded";
    let row = client.query_opt(sql, &[&tenant.0, &moment]).await?;
    row.map(|row| Ok(Cycle { start: row.try_get(0)?, end: row.try_get(1)?, current: row.try_get(2)? })).transpose()
}

/// Keeps counted calls, and in the same transaction tells, once, who has reached 80 % or all of the current cycle's quota. What is
/// kept never falls. Returns how many notices are new.
///
/// # Errors
/// When the registry cannot be written; then nothing is kept, and the next run does it.
pub async fn keep(client: &mut Client, counted: &[Counted]) -> Result<usize, StepError> {
    let transaction = client.transaction().await?;
    let mut told = 0;
    // Also where no call was counted since: the quota may have become smaller. That of a cycle that is over was another, perhaps
    // a larger one. A notice takes the tenant's row, and so comes before the cycle's, which is the order that everybody takes
    // them in.
    for count in counted.iter().filter(|count| count.current) {
        let balance = Balance { resource: Metered::ApiCalls, used: count.calls, quota: count.quota };
        let cycle = Cycle { start: moment(count.cycle_start)?, end: moment(count.cycle_end)?, current: true };
        told += notices::tell_reached(&transaction, count.tenant, balance, cycle).await?;
    }
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
    transaction.commit().await?;
    Ok(told)
}

fn moment(millis: i64) -> Result<OffsetDateTime, StepError> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000)
        .map_err(|error| StepError::Unexpected(format!("a cycle's boundary: {error}")))
}

/// Notes that a tenant held `before` of a resource and holds `balance` now, in the transaction that changes it: the most that
/// it held in this cycle rises, and it is told, once, where it has come to 80 % or all of its quota.
pub(super) async fn note(
    transaction: &Transaction<'_>,
    tenant: TenantId,
    before: i64,
    balance: Balance,
) -> Result<(), StepError> {
    let Some(cycle) = cycle(transaction, tenant, None).await? else { return Ok(()) };
    if balance.used > before {
        notices::tell_reached(transaction, tenant, balance, cycle).await?;
    }
    let column = balance.resource.as_str();
    let sql = format!(
        "INSERT INTO usage_cycles AS u (tenant_id, cycle_start, cycle_end, {column}) VALUES ($1, $2, $3, $4)
         ON CONFLICT (tenant_id, cycle_start) DO UPDATE SET {column} = greatest(u.{column}, excluded.{column})"
    );
    // What was held before was held in this cycle too, which may have begun a moment ago.
    transaction.execute(&sql, &[&tenant.0, &cycle.start, &cycle.end, &before.max(balance.used)]).await?;
    Ok(())
}

/// Carries what tenants hold over into a cycle that has begun: who neither adds nor removes anything holds it all the same.
/// Again is a no-op.
///
/// # Errors
/// When the registry cannot be written; then the next run does it.
pub async fn carry_over(client: &Client) -> Result<(), StepError> {
    let sql = "INSERT INTO usage_cycles AS u (tenant_id, cycle_start, cycle_end, storage_bytes, seats)
               SELECT c.id, starts, ends, coalesce(b.bytes, 0), (SELECT count(*) FROM seats s WHERE s.tenant_id = c.id)
               FROM (SELECT id, cycle_boundary(cycle_anchor, n) AS starts, cycle_boundary(cycle_anchor, n + 1) AS ends
                     FROM (SELECT id, cycle_anchor, cycle_number(cycle_anchor, now()) AS n FROM tenants
                           WHERE status IN ('active', 'suspended')) AS numbered) AS c
               LEFT JOIN stored_bytes b ON b.tenant_id = c.id
               WHERE NOT EXISTS (SELECT FROM usage_cycles known WHERE known.tenant_id = c.id AND known.cycle_start = starts
                                 AND known.storage_bytes IS NOT NULL AND known.seats IS NOT NULL)
               ORDER BY c.id
               ON CONFLICT (tenant_id, cycle_start) DO UPDATE
                   SET storage_bytes = greatest(u.storage_bytes, excluded.storage_bytes),
                       seats = greatest(u.seats, excluded.seats)";
    client.execute(sql, &[]).await?;
    Ok(())
}

/// What a tenant used in the billing cycle that holds a moment, or in the current one.
///
/// # Errors
/// `Conflict` when the tenant was never in service, and so has no cycles.
pub async fn report(client: &Client, tenant: &Tenant, moment: Option<OffsetDateTime>) -> Result<Report, StepError> {
    let Some(cycle) = cycle(client, tenant.id, moment).await? else {
        let Tenant { slug, id, .. } = tenant;
        return Err(StepError::Conflict(format!(
            "tenant {slug} ({id}) was never in service: it has no billing cycles"
        )));
    };
    let sql = "SELECT api_calls, counted_at, storage_bytes, seats FROM usage_cycles WHERE tenant_id = $1 AND cycle_start = $2";
    let kept = client.query_opt(sql, &[&tenant.id.0, &cycle.start]).await?;
    let number = |column: &str| kept.as_ref().map(|row| row.try_get::<_, Option<i64>>(column)).transpose();
    let mut report = Report { cycle, calls_counted_at: None, used: Vec::new() };
    report.calls_counted_at = kept.as_ref().map(|row| row.try_get("counted_at")).transpose()?;
    for &resource in Metered::ALL {
        let instead = quotas::standing_override(client, tenant.id, resource).await?;
        let plan_quota = tenant.plan_quota(resource);
        let known = number(resource.as_str())?.flatten();
        let held = match resource {
            Metered::ApiCalls => None,
            Metered::StorageBytes => Some(storage::stored(client, tenant.id).await?),
            Metered::Seats => Some(seats::taken(client, tenant.id).await?),
        };
        let held = held.filter(|_| cycle.current);
        let reserved = match resource {
            Metered::StorageBytes if cycle.current => Some(storage::promised(client, tenant.id).await?),
            _ => None,
        };
        let (used, most) = match resource {
            Metered::ApiCalls => (Some(known.unwrap_or_default()), None),
            // What is held now was held in this cycle, whether that was noted yet or not.
            Metered::StorageBytes | Metered::Seats => (held, known.max(held)),
        };
        let quota = instead.map_or(plan_quota, |instead| instead.amount);
        report.used.push(Used { resource, used, most, reserved, quota, plan_quota, instead });
    }
    Ok(report)
}
