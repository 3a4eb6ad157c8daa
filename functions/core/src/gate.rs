//! The gate's projection, from the side that writes it, after every transition that the gate must see; and the registry, from
//! the side that asks it where Redis cannot tell.

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use tenant_gate::{LookUp, Projection, Registry};
use tokio::sync::OnceCell;
use tokio_postgres::Client;

use crate::environment::Environment;
use crate::error::StepError;
use crate::postgres::Database;
use crate::tenant::{Slug, Tenant};

/// The longest that Redis is waited for: below the functions' `Timeout`, and the machines try again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Writes projections to Redis.
pub struct Projector {
    url: String,
    redis: OnceCell<ConnectionManager>,
}

impl Projector {
    /// Reads REDIS_URL. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when it is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(Projector { url: env.required("REDIS_URL")?, redis: OnceCell::new() })
    }

    /// Redis, connected when it is first used.
    ///
    /// # Errors
    /// `Misconfigured` when REDIS_URL is no URL of a Redis; `Transient` when it cannot be reached.
    pub async fn redis(&self) -> Result<ConnectionManager, StepError> {
        let connect = || async {
            // The URL may hold a password.
            let unusable =
                |error: redis::RedisError| StepError::Misconfigured(format!("REDIS_URL: {}", error.category()));
            let client = redis::Client::open(self.url.as_str()).map_err(unusable)?;
            let config = ConnectionManagerConfig::new()
                .set_number_of_retries(1)
                .set_connection_timeout(Some(PATIENCE))
                .set_response_timeout(Some(PATIENCE));
            ConnectionManager::new_lazy_with_config(client, config).map_err(unusable)
        };
        self.redis.get_or_try_init(connect).await.cloned()
    }

    /// Tells the gate what the registry has of a tenant. A newer projection is left as it is; again is a no-op.
    ///
    /// # Errors
    /// `Transient` when Redis cannot be reached: the gate must be told before the transition is over.
    pub async fn project(&self, registry: &Client, tenant: &Tenant) -> Result<(), StepError> {
        let Some(projection) = Projection::read(registry, tenant.slug.as_str()).await? else { return Ok(()) };
        projection.write(&mut self.redis().await?).await.map_err(|error| unreached(&error))?;
        Ok(())
    }
}

impl Registry for Database {
    fn look_up<'a>(&'a self, slug: &'a str) -> LookUp<'a> {
        Box::pin(async move {
            let read = Projection::read(&*self.client().await?, slug).await;
            match read {
                // A sandbox that slept finds its connection closed when it first uses it, and nobody tries again for it.
                Err(error) if error.is_closed() => Ok(Projection::read(&*self.client().await?, slug).await?),
                read => Ok(read?),
            }
        })
    }
}

/// Keys that one step of a scan of Redis looks at.
const SCAN_COUNT: u32 = 1000;

impl Projector {
    /// Every key with the tenant's hash tag, whoever wrote it.
    ///
    /// # Errors
    /// `Transient` when Redis cannot be reached.
    pub async fn keys(&self, slug: &Slug) -> Result<Vec<String>, StepError> {
        let mut redis = self.redis().await?;
        let (mut keys, mut cursor) = (Vec::new(), 0_u64);
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(format!("*{{{slug}}}*")).arg("COUNT").arg(SCAN_COUNT);
            let (next, found): (u64, Vec<String>) =
                scan.query_async(&mut redis).await.map_err(|error| unreached(&error))?;
            keys.extend(found);
            if next == 0 {
                // A key that is moved meanwhile may be told twice.
                keys.sort_unstable();
                keys.dedup();
                return Ok(keys);
            }
            cursor = next;
        }
    }

    /// Deletes every key with the tenant's hash tag, and returns how many there were.
    ///
    /// # Errors
    /// `Transient` when Redis cannot be reached.
    pub async fn forget(&self, slug: &Slug) -> Result<usize, StepError> {
        let keys = self.keys(slug).await?;
        if !keys.is_empty() {
            let mut unlink = redis::cmd("UNLINK");
            unlink.arg(&keys);
            let unlinked: Result<i64, _> = unlink.query_async(&mut self.redis().await?).await;
            unlinked.map_err(|error| unreached(&error))?;
        }
        Ok(keys.len())
    }
}

/// Every call of ours can be made again, whatever Redis said.
pub(crate) fn unreached(error: &redis::RedisError) -> StepError {
    StepError::Transient(format!("Redis: {}", error.category()))
}
