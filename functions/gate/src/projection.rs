//! What Redis knows of a tenant: its standing, its limit and its billing cycles, as the registry had them.

use std::collections::HashMap;
use std::sync::LazyLock;

use redis::aio::ConnectionLike;
use redis::{RedisResult, Script};
use uuid::Uuid;

/// How long it is remembered that no tenant has a name, in milliseconds. A tenant that takes the name ends that at once; this
/// bounds what names that nobody has take of Redis.
const UNKNOWN_HOLDS_MS: u64 = 60_000;

static PROJECT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("project.lua")));

/// A tenant as the gate sees it: a row of the registry's view `gate.tenants`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// The first label of its host name.
    pub slug: String,
    /// Its id.
    pub id: Uuid,
    /// When it was registered, in microseconds since 1970: of two tenants that had one name, the later one counts.
    pub registered: i64,
    /// Rises with every change that the gate must see.
    pub version: i64,
    /// `active`, or why it is not served.
    pub standing: String,
    /// API calls of a billing cycle.
    pub limit: i64,
    /// Another limit, and until when it stands, in milliseconds since 1970.
    pub override_until: Option<(i64, i64)>,
    /// Where the cycle before this one begins, this one, and those that follow, in milliseconds since 1970. Empty before the
    /// tenant was in service for the first time.
    pub boundaries: Vec<i64>,
    /// Calls of this cycle that the registry knows of.
    pub counted: i64,
}

/// A billing cycle, in milliseconds since 1970: it holds its start, and not its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cycle {
    /// Its first moment.
    pub start: i64,
    /// The first moment of the next.
    pub end: i64,
}

/// The keys of a tenant, which share a hash tag: in a Redis cluster they lie in one slot.
pub(crate) struct Keys {
    pub(crate) projection: String,
    pub(crate) usage: String,
}

impl Keys {
    pub(crate) fn of(slug: &str) -> Self {
        Keys { projection: format!("gate:{{{slug}}}"), usage: format!("usage:{{{slug}}}") }
    }
}

impl Projection {
    /// The cycle that holds a moment, as far as the boundaries reach.
    pub fn cycle(&self, now: i64) -> Option<Cycle> {
        let pair = self.boundaries.windows(2).find(|pair| pair[0] <= now && now < pair[1])?;
        Some(Cycle { start: pair[0], end: pair[1] })
    }

    /// Calls that a cycle has at a moment.
    pub fn limit_at(&self, now: i64) -> i64 {
        self.override_until.filter(|(_, until)| now < *until).map_or(self.limit, |(amount, _)| amount)
    }

    /// Writes it to Redis, unless a newer one is there. Returns whether it was written. Again is a no-op.
    ///
    /// # Errors
    /// When Redis cannot be reached; then whatever it holds is not newer than before.
    pub async fn write(&self, redis: &mut impl ConnectionLike) -> RedisResult<bool> {
        let keys = Keys::of(&self.slug);
        let mut call = PROJECT.prepare_invoke();
        let (start, stop) = match self.boundaries.as_slice() {
            [_, start, stop, ..] => (Some(*start), Some(*stop)),
            _ => (None, None),
        };
        call.key(&keys.projection).key(&keys.usage);
        call.arg(self.registered).arg(self.version).arg(self.id.to_string()).arg(0);
        call.arg(format!("calls:{}", start.unwrap_or_default())).arg(self.counted);
        call.arg("standing").arg(&self.standing).arg("limit").arg(self.limit);
        if let Some((amount, until)) = self.override_until {
            call.arg("override").arg(amount).arg("override_until").arg(until);
        }
        if let (Some(start), Some(stop)) = (start, stop) {
            let boundaries: Vec<String> = self.boundaries.iter().map(ToString::to_string).collect();
            call.arg("start").arg(start).arg("stop").arg(stop).arg("boundaries").arg(boundaries.join(" "));
        }
        let written: i64 = call.invoke_async(redis).await?;
        Ok(written == 1)
    }

    /// Remembers for a while that no tenant has this name, unless one is known.
    pub(crate) async fn write_unknown(slug: &str, redis: &mut impl ConnectionLike) -> RedisResult<()> {
        let keys = Keys::of(slug);
        let mut call = PROJECT.prepare_invoke();
        call.key(&keys.projection).key(&keys.usage);
        call.arg(0).arg(0).arg("").arg(UNKNOWN_HOLDS_MS).arg("calls:0").arg(0).arg("standing").arg("unknown");
        call.invoke_async::<i64>(redis).await.map(drop)
    }
}

/// What Redis holds of a tenant: whether its projection is as the registry has it, and the calls that were counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Whether the projection is missing or differs.
    pub stale: bool,
    /// Calls by cycle, as far as the projection's boundaries tell which cycle they are of.
    pub calls: Vec<(Cycle, i64)>,
}

impl Projection {
    /// Compares projections with what Redis holds of the same tenants, in one round trip.
    ///
    /// # Errors
    /// When Redis cannot be reached.
    pub async fn compare(all: &[Self], redis: &mut impl ConnectionLike) -> RedisResult<Vec<Held>> {
        let mut pipe = redis::pipe();
        for projection in all {
            let keys = Keys::of(&projection.slug);
            pipe.cmd("HMGET").arg(&keys.projection).arg(&["id", "version", "standing", "limit", "start"]);
            pipe.cmd("HGETALL").arg(&keys.usage);
        }
        let mut answers = pipe.query_async::<Vec<redis::Value>>(redis).await?.into_iter();
        let mut held = Vec::with_capacity(all.len());
        for projection in all {
            let (fields, usage) = (answers.next().unwrap_or(redis::Value::Nil), answers.next());
            let fields: Vec<Option<String>> = redis::from_redis_value(fields)?;
            let usage: HashMap<String, i64> = redis::from_redis_value(usage.unwrap_or(redis::Value::Nil))?;
            held.push(projection.judge(&fields, &usage));
        }
        Ok(held)
    }

    fn judge(&self, fields: &[Option<String>], usage: &HashMap<String, i64>) -> Held {
        let start = self.boundaries.get(1).map(ToString::to_string);
        let expected = [
            Some(self.id.to_string()),
            Some(self.version.to_string()),
            Some(self.standing.clone()),
            Some(self.limit.to_string()),
            start,
        ];
        let cycles = self.boundaries.windows(2).take(2).map(|pair| Cycle { start: pair[0], end: pair[1] });
        let calls = cycles.filter_map(|cycle| Some((cycle, *usage.get(&format!("calls:{}", cycle.start))?)));
        // What another tenant of that name used is not this one's.
        let ours = fields.first().is_none_or(|id| id.is_none() || *id == expected[0]);
        Held { stale: fields != expected, calls: if ours { calls.collect() } else { Vec::new() } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boundary_belongs_to_the_cycle_that_it_begins() {
        let projection = Projection {
            slug: "acme".into(),
            id: Uuid::nil(),
            registered: 1,
            version: 1,
            standing: "active".into(),
            limit: 10,
            override_until: Some((20, 150)),
            boundaries: vec![0, 100, 200, 300],
            counted: 0,
        };
        assert_eq!(projection.cycle(99), Some(Cycle { start: 0, end: 100 }));
        assert_eq!(projection.cycle(100), Some(Cycle { start: 100, end: 200 }));
        assert_eq!(projection.cycle(300), None);
        assert_eq!((projection.limit_at(149), projection.limit_at(150)), (20, 10));
    }
}
