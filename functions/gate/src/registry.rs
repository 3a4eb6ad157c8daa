//! The truth behind the projection, for when Redis cannot tell.

use std::error::Error;
use std::pin::Pin;

use crate::projection::Projection;

/// Why the registry could not be asked.
pub type RegistryError = Box<dyn Error + Send + Sync>;

/// The answer to a look-up, when it comes.
pub type LookUp<'a> = Pin<Box<dyn Future<Output = Result<Option<Projection>, RegistryError>> + Send + 'a>>;

/// Where tenants are looked up that Redis does not know.
pub trait Registry: Send + Sync {
    /// The tenant of this name. `None` if no tenant has it.
    fn look_up<'a>(&'a self, slug: &'a str) -> LookUp<'a>;
}

#[cfg(feature = "postgres")]
pub use postgres::PostgresRegistry;

#[cfg(feature = "postgres")]
mod postgres {
    use std::sync::Arc;

    use tokio::sync::Mutex;
    use tokio_postgres::types::Type;
    use tokio_postgres::{Client, GenericClient, Row};

    use super::{LookUp, Registry, RegistryError};
    use crate::projection::Projection;

    const COLUMNS: &str =
        "slug, id, registered, version, standing, api_calls, override, override_until, boundaries, counted";

    /// The registry over one connection, which all look-ups share, and which is made again when it is found closed.
    pub struct PostgresRegistry<C> {
        connect: C,
        client: Mutex<Option<Arc<Client>>>,
    }

    impl<C, F> PostgresRegistry<C>
    where
        C: Fn() -> F + Send + Sync,
        F: Future<Output = Result<Client, RegistryError>> + Send,
    {
        /// A registry that is connected to, when it is asked for the first time, by `connect`: the product's own role will do,
        /// and the product's own way with TLS. `connect` should not wait longer than a request can.
        pub fn new(connect: C) -> Self {
            PostgresRegistry { connect, client: Mutex::new(None) }
        }

        async fn client(&self) -> Result<Arc<Client>, RegistryError> {
            let mut slot = self.client.lock().await;
            if let Some(client) = slot.as_ref().filter(|client| !client.is_closed()) {
                return Ok(Arc::clone(client));
            }
            let client = Arc::new((self.connect)().await?);
            *slot = Some(Arc::clone(&client));
            Ok(client)
        }
    }

    impl<C, F> Registry for PostgresRegistry<C>
    where
        C: Fn() -> F + Send + Sync,
        F: Future<Output = Result<Client, RegistryError>> + Send,
    {
        fn look_up<'a>(&'a self, slug: &'a str) -> LookUp<'a> {
            Box::pin(async move {
                let client = self.client().await?;
                Projection::read(&*client, slug).await.map_err(Into::into)
            })
        }
    }

    impl Projection {
        /// Reads a tenant from the registry, as the product's own role may, in one round trip. `None` if no tenant has the name.
        ///
        /// # Errors
        /// When the registry cannot be read.
        pub async fn read(client: &impl GenericClient, slug: &str) -> Result<Option<Self>, tokio_postgres::Error> {
            let sql = format!("SELECT {COLUMNS} FROM gate.tenant($1)");
            let rows = client.query_typed(&sql, &[(&slug, Type::TEXT)]).await?;
            rows.first().map(from_row).transpose()
        }

        /// Reads tenants in the order of their ids, `limit` of those after `after`, as the registry's owner may.
        ///
        /// # Errors
        /// When the registry cannot be read.
        pub async fn read_after(
            client: &impl GenericClient,
            after: uuid::Uuid,
            limit: i64,
        ) -> Result<Vec<Self>, tokio_postgres::Error> {
            let sql = format!("SELECT {COLUMNS} FROM gate.tenants WHERE id > $1 ORDER BY id LIMIT $2");
            let rows = client.query_typed(&sql, &[(&after, Type::UUID), (&limit, Type::INT8)]).await?;
            rows.iter().map(from_row).collect()
        }
    }

    fn from_row(row: &Row) -> Result<Projection, tokio_postgres::Error> {
        let amount: Option<i64> = row.try_get(6)?;
        let until: Option<i64> = row.try_get(7)?;
        Ok(Projection {
            slug: row.try_get(0)?,
            id: row.try_get(1)?,
            registered: row.try_get(2)?,
            version: row.try_get(3)?,
            standing: row.try_get(4)?,
            limit: row.try_get(5)?,
            override_until: amount.zip(until),
            boundaries: row.try_get(8)?,
            counted: row.try_get(9)?,
        })
    }
}
