//! The gate itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Script, Value};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::decision::{Budget, Reason, Refusal, Verdict};
use crate::later::Later;
use crate::projection::{Keys, Projection};
use crate::registry::Registry;
use crate::tenant::Tenant;

/// The longest that Redis is waited for, before the registry is asked instead.
const REDIS_PATIENCE: Duration = Duration::from_millis(250);
/// The longest that the registry is waited for.
const REGISTRY_PATIENCE: Duration = Duration::from_secs(2);
/// How long Redis is left alone after it did not answer, in milliseconds: requests need not all wait for it.
const REDIS_PAUSE_MS: i64 = 250;
/// How often it is tried to count what was admitted while Redis was down.
const COUNTING_PAUSE: Duration = Duration::from_millis(500);
/// Locks among which tenants that Redis does not know are divided: one request fetches a tenant, others wait for it.
const COLD_LOCKS: usize = 64;
/// The longest DNS label.
const MAX_LABEL: usize = 63;

/// What the gate does when neither Redis nor the registry can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Blind {
    /// Refuses, with 503.
    #[default]
    Closed,
    /// Admits every host below the base domain, as a tenant without an id: the status of none is enforced.
    Open,
}

impl std::str::FromStr for Blind {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "closed" => Ok(Blind::Closed),
            "open" => Ok(Blind::Open),
            _ => Err("must be closed or open"),
        }
    }
}

/// Why a gate cannot be built.
#[derive(Debug)]
pub struct Unusable(String);

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the gate cannot be built: {}", self.0)
    }
}

impl std::error::Error for Unusable {}

/// Decides on requests. Clones share one connection.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    redis: ConnectionManager,
    decide: Script,
    registry: Option<Box<dyn Registry>>,
    /// `.app.example.com`
    domain: String,
    blind: Blind,
    /// Until when Redis is left alone, in milliseconds since 1970.
    redis_pause: AtomicI64,
    cold: Vec<Mutex<()>>,
    later: Later,
    counting: AtomicBool,
}

/// What a gate is built from.
pub struct Builder {
    redis: String,
    domain: String,
    registry: Option<Box<dyn Registry>>,
    blind: Blind,
}

/// What Redis says of a tenant.
enum Answer {
    Cold,
    Refused(Reason),
    Decided { admitted: bool, id: String, budget: Budget },
}

impl Builder {
    /// The truth to fall back to. Without one, a tenant that Redis does not know cannot be served.
    #[must_use]
    pub fn registry(mut self, registry: impl Registry + 'static) -> Self {
        self.registry = Some(Box::new(registry));
        self
    }

    /// What to do when nobody can be asked; [`Blind::Closed`] unless said otherwise.
    #[must_use]
    pub fn when_blind(mut self, blind: Blind) -> Self {
        self.blind = blind;
        self
    }

    /// The gate. Connects when it is first used; call it inside a tokio runtime.
    ///
    /// # Errors
    /// When the URL is none of a Redis.
    pub fn build(self) -> Result<Gate, Unusable> {
        let unusable = |error: redis::RedisError| Unusable(error.to_string());
        let client = redis::Client::open(self.redis.as_str()).map_err(unusable)?;
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(REDIS_PATIENCE))
            .set_response_timeout(Some(REDIS_PATIENCE));
        let redis = ConnectionManager::new_lazy_with_config(client, config).map_err(unusable)?;
        Ok(Gate(Arc::new(Inner {
            redis,
            decide: Script::new(include_str!("decide.lua")),
            registry: self.registry,
            domain: format!(".{}", self.domain.trim_matches('.').to_ascii_lowercase()),
            blind: self.blind,
            redis_pause: AtomicI64::new(0),
            cold: (0..COLD_LOCKS).map(|_| Mutex::new(())).collect(),
            later: Later::default(),
            counting: AtomicBool::new(false),
        })))
    }
}

impl Gate {
    /// A gate for the tenants below `domain`, over the Redis at a URL.
    pub fn builder(redis: &str, domain: &str) -> Builder {
        Builder { redis: redis.to_owned(), domain: domain.to_owned(), registry: None, blind: Blind::default() }
    }

    /// Decides on a request to a host, and counts it as `calls`; 0 only looks, as a login may want.
    pub async fn decide_host(&self, host: &str, calls: u32) -> Verdict {
        match self.slug_of(host) {
            Some(slug) => self.decide(&slug, calls).await,
            None => Verdict::Refused(Refusal::new(Reason::NotInService)),
        }
    }

    /// Decides on a request of the tenant with this slug.
    pub async fn decide(&self, slug: &str, calls: u32) -> Verdict {
        self.decide_at(slug, calls, now()).await
    }

    /// The same at a moment, in milliseconds since 1970, which decides on the billing cycle.
    pub async fn decide_at(&self, slug: &str, calls: u32, now: i64) -> Verdict {
        match self.ask(slug, calls.into(), now, false).await {
            Some(Answer::Cold) => self.warm_up(slug, calls, now).await,
            Some(answer) => verdict(slug, answer),
            None => self.without_redis(slug, calls, now).await,
        }
    }

    /// The slug in a host name, if it is one below the base domain.
    fn slug_of(&self, host: &str) -> Option<String> {
        let name = host.rsplit_once(':').map_or(host, |(name, _port)| name).trim_end_matches('.').to_ascii_lowercase();
        let slug = name.strip_suffix(&self.0.domain)?;
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        ((1..=MAX_LABEL).contains(&slug.len()) && slug.bytes().all(plain)).then(|| slug.to_owned())
    }

    /// Asks Redis; `None` when it does not answer, or has not lately.
    async fn ask(&self, slug: &str, calls: u64, now: i64, only_count: bool) -> Option<Answer> {
        let inner = &*self.0;
        if crate::gate::now() < inner.redis_pause.load(Ordering::Relaxed) {
            return None;
        }
        let keys = Keys::of(slug);
        let mut call = inner.decide.prepare_invoke();
        call.key(keys.projection).key(keys.usage).arg(now).arg(calls).arg(u8::from(only_count));
        let mut redis = inner.redis.clone();
        match timeout(REDIS_PATIENCE, call.invoke_async::<Vec<Value>>(&mut redis)).await {
            Ok(Ok(reply)) => Some(read(&reply, now)),
            Ok(Err(error)) => self.pause(&error.to_string()),
            Err(_) => self.pause("no answer in time"),
        }
    }

    fn pause(&self, why: &str) -> Option<Answer> {
        let until = crate::gate::now() + REDIS_PAUSE_MS;
        if self.0.redis_pause.swap(until, Ordering::Relaxed) + REDIS_PAUSE_MS < until {
            tracing::warn!(why, "Redis does not answer: the registry is asked instead");
        }
        None
    }

    /// Fetches a tenant that Redis does not know from the registry, for all who wait for it.
    async fn warm_up(&self, slug: &str, calls: u32, now: i64) -> Verdict {
        let _turn = self.0.cold[lock_of(slug)].lock().await;
        match self.ask(slug, calls.into(), now, false).await {
            Some(Answer::Cold) => {}
            Some(answer) => return verdict(slug, answer),
            None => return self.without_redis(slug, calls, now).await,
        }
        let projection = match self.look_up(slug).await {
            Ok(projection) => projection,
            Err(why) => return self.blind(slug, calls, now, &why),
        };
        let mut redis = self.0.redis.clone();
        let written = match &projection {
            Some(projection) => projection.write(&mut redis).await.map(drop),
            None => Projection::write_unknown(slug, &mut redis).await,
        };
        if written.is_ok()
            && let Some(answer @ (Answer::Refused(_) | Answer::Decided { .. })) =
                self.ask(slug, calls.into(), now, false).await
        {
            return verdict(slug, answer);
        }
        self.by_registry(slug, projection, calls, now)
    }

    async fn without_redis(&self, slug: &str, calls: u32, now: i64) -> Verdict {
        match self.look_up(slug).await {
            Ok(projection) => self.by_registry(slug, projection, calls, now),
            Err(why) => self.blind(slug, calls, now, &why),
        }
    }

    /// Enforces the status, admits the call and counts it later.
    fn by_registry(&self, slug: &str, projection: Option<Projection>, calls: u32, now: i64) -> Verdict {
        let standing = projection.as_ref().map_or("unknown", |projection| projection.standing.as_str());
        if let Some(reason) = Reason::of_standing(standing) {
            return Verdict::Refused(Refusal::new(reason));
        }
        self.count_later(slug, calls.into(), now);
        Verdict::Admitted(Tenant { id: projection.map(|projection| projection.id), slug: slug.to_owned() }, None)
    }

    fn blind(&self, slug: &str, calls: u32, now: i64, why: &str) -> Verdict {
        tracing::warn!(slug, why, blind = ?self.0.blind, "neither Redis nor the registry can be asked");
        match self.0.blind {
            Blind::Closed => Verdict::Refused(Refusal::new(Reason::Unavailable)),
            Blind::Open => {
                self.count_later(slug, calls.into(), now);
                Verdict::Admitted(Tenant { id: None, slug: slug.to_owned() }, None)
            }
        }
    }

    async fn look_up(&self, slug: &str) -> Result<Option<Projection>, String> {
        let Some(registry) = &self.0.registry else { return Err("no registry is configured".to_owned()) };
        match timeout(REGISTRY_PATIENCE, registry.look_up(slug)).await {
            Ok(Ok(projection)) => Ok(projection),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the registry does not answer in time".to_owned()),
        }
    }

    fn count_later(&self, slug: &str, calls: u64, now: i64) {
        if calls == 0 {
            return;
        }
        self.0.later.add(slug, now, calls);
        if !self.0.counting.swap(true, Ordering::AcqRel) {
            tokio::spawn(count(self.clone()));
        }
    }

    /// Counts what was admitted while Redis was down. Returns whether nothing is left: call it before the process ends.
    pub async fn flush(&self) -> bool {
        for (slug, at, calls) in self.0.later.take() {
            if !self.count_one(&slug, at, calls).await {
                self.0.later.add(&slug, at, calls);
            }
        }
        self.0.later.is_empty()
    }

    async fn count_one(&self, slug: &str, at: i64, calls: u64) -> bool {
        match self.ask(slug, calls, at, true).await {
            None => false,
            Some(Answer::Cold) => match self.look_up(slug).await {
                Err(_) => false,
                // It was let in blindly, and is nobody.
                Ok(None) => true,
                Ok(Some(projection)) => {
                    let written = projection.write(&mut self.0.redis.clone()).await;
                    written.is_ok() && self.ask(slug, calls, at, true).await.is_some()
                }
            },
            Some(_) => true,
        }
    }
}

/// Tries until everything is counted.
async fn count(gate: Gate) {
    loop {
        tokio::time::sleep(COUNTING_PAUSE).await;
        if gate.flush().await {
            gate.0.counting.store(false, Ordering::Release);
            // Something may have come in between the two.
            if gate.0.later.is_empty() || gate.0.counting.swap(true, Ordering::AcqRel) {
                return;
            }
        }
    }
}

fn verdict(slug: &str, answer: Answer) -> Verdict {
    match answer {
        Answer::Cold => Verdict::Refused(Refusal::new(Reason::NotInService)),
        Answer::Refused(reason) => Verdict::Refused(Refusal::new(reason)),
        Answer::Decided { admitted: false, budget, .. } => {
            Verdict::Refused(Refusal { reason: Reason::QuotaExceeded, budget: Some(budget) })
        }
        Answer::Decided { admitted: true, id, budget } => {
            Verdict::Admitted(Tenant { id: id.parse().ok(), slug: slug.to_owned() }, Some(budget))
        }
    }
}

/// Reads the script's answer.
fn read(reply: &[Value], now: i64) -> Answer {
    let [word, id, limit, used, end, start] = match reply {
        [word, id, limit, used, end, start] => [word, id, limit, used, end, start].map(text),
        [word] => {
            let word = text(word);
            return match (word.as_str(), Reason::of_standing(&word)) {
                ("cold" | "active", _) | (_, None) => Answer::Cold,
                (_, Some(reason)) => Answer::Refused(reason),
            };
        }
        _ => return Answer::Cold,
    };
    let number = |text: &str| text.parse::<i64>().unwrap_or_default();
    let (limit, used, end, start) = (number(&limit), number(&used), number(&end), number(&start));
    let seconds = |from: i64| u64::try_from(end - from).unwrap_or_default().div_ceil(1000);
    let budget = Budget { limit, remaining: (limit - used).max(0), resets_in: seconds(now), window: seconds(start) };
    Answer::Decided { admitted: word == "active", id, budget }
}

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        Value::Int(number) => number.to_string(),
        _ => String::new(),
    }
}

fn lock_of(slug: &str) -> usize {
    slug.bytes().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % COLD_LOCKS
}

/// Milliseconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slug_is_one_label_below_the_base_domain() {
        let gate = Gate::builder("redis://127.0.0.1:1", "app.example.com").build().expect("a gate");
        for host in ["acme.app.example.com", "ACME.app.example.com:8443", "acme.app.example.com."] {
            assert_eq!(gate.slug_of(host).as_deref(), Some("acme"), "{host}");
        }
        for host in [
            "",
            "app.example.com",
            "a.b.app.example.com",
            "acme.example.com",
            "ac{me.app.example.com",
            ".app.example.com",
        ] {
            assert_eq!(gate.slug_of(host), None, "{host}");
        }
    }

    #[tokio::test]
    async fn a_gate_that_can_ask_nobody_is_closed() {
        let gate = Gate::builder("redis://127.0.0.1:1", "app.example.com").build().expect("a gate");
        let Verdict::Refused(refusal) = gate.decide("acme", 1).await else { panic!("admitted") };
        assert_eq!(refusal.reason, Reason::Unavailable);
        let open = Gate::builder("redis://127.0.0.1:1", "app.example.com").when_blind(Blind::Open);
        let verdict = open.build().expect("a gate").decide("acme", 1).await;
        assert_eq!(verdict, Verdict::Admitted(Tenant { id: None, slug: "acme".into() }, None));
    }
}
