//! What every test acts on: a deployed stack, the settings its functions have, and the real systems behind it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use futures::future::BoxFuture;
use tenantry_core::environment::Environment;

use crate::faults::Faults;

/// One test: what it proves is its name in the list it stands in.
pub type Case = for<'a> fn(&'a World) -> BoxFuture<'a, Result<()>>;

/// A deployed stack and the ways into it.
pub struct World {
    /// The settings of the functions, all together, with an AWS configuration that reaches the stack.
    pub env: Environment,
    /// The same variables `make -s env` exports: REGISTRY_DATABASE_URL, APP_DATABASE_URL, KUBECONFIG, DNS_SERVER, …
    pub exports: HashMap<String, String>,
    /// The template's outputs.
    pub outputs: HashMap<String, String>,
    /// What looks at every call of the functions.
    pub faults: Arc<Faults>,
}

static NAMES: AtomicU32 = AtomicU32::new(0);

impl World {
    /// One of the variables that `make -s env` exports.
    pub fn export(&self, name: &str) -> Result<&str> {
        self.exports.get(name).map(String::as_str).with_context(|| format!("{name} is not among the stack's exports"))
    }

    /// A connection to the registry as its administrator.
    pub async fn registry(&self) -> Result<tokio_postgres::Client> {
        connect(self.export("REGISTRY_DATABASE_URL")?).await
    }

    /// A connection as the product's application role, bound by row-level security.
    pub async fn application(&self) -> Result<tokio_postgres::Client> {
        connect(self.export("APP_DATABASE_URL")?).await
    }

    /// A slug that no other test of this run uses, and that begins no other: a fault is told apart by what its calls hold.
    pub fn fresh_slug(&self, stem: &str) -> String {
        format!("{stem}-{:04}", NAMES.fetch_add(1, Ordering::Relaxed))
    }
}

/// Connects without TLS, as an ordinary client on this machine would.
pub async fn connect(url: &str) -> Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.context(url.to_owned())?;
    tokio::spawn(connection);
    Ok(client)
}
