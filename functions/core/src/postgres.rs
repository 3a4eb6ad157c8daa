//! Connections to PostgreSQL: credentials from Secrets Manager, TLS against a given CA bundle, bounded waiting, and how
//! PostgreSQL's errors become ours.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::Deserialize;
use tokio::sync::{Mutex, MutexGuard};
use tokio_postgres::{Client, Config, NoTls, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::environment::Environment;
use crate::error::StepError;

/// The longest one statement may run. Below [`crate::aws::OPERATION_TIMEOUT`]'s sibling bound, the functions' `Timeout`.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(20);
/// The database that every server has, to create and drop others from.
pub const MAINTENANCE: &str = "postgres";
/// The longest a statement may wait for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// A transaction left open by a killed function ends after this long.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A killed sandbox leaves its session behind; keepalives end it.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What a database secret holds, in the form that RDS writes.
#[derive(Clone, Deserialize)]
pub struct Credentials {
    /// Host name or address of the server.
    pub host: String,
    /// TCP port.
    #[serde(default = "default_port")]
    pub port: u16,
    /// The database to connect to.
    pub dbname: String,
    /// The login role.
    pub username: String,
    /// Its password.
    pub password: String,
}

fn default_port() -> u16 {
    5432
}

/// One database, connected on first use and again whenever the connection is found closed.
///
/// A Lambda handles one event at a time, so one connection is all it can use.
pub struct Database {
    secrets: aws_sdk_secretsmanager::Client,
    secret_id: String,
    ca_bundle: Option<PathBuf>,
    client: Mutex<Option<Client>>,
}

impl Database {
    /// The database whose credentials the secret holds. Connects to nothing yet.
    pub fn new(env: &Environment, secret_id: String) -> Self {
        Database {
            secrets: aws_sdk_secretsmanager::Client::new(&env.aws),
            secret_id,
            ca_bundle: env.optional("POSTGRES_CA_BUNDLE").map(PathBuf::from),
            client: Mutex::new(None),
        }
    }

    /// The registry's database, as `REGISTRY_SECRET` names it.
    ///
    /// # Errors
    /// `Misconfigured` when the variable is absent.
    pub fn registry(env: &Environment) -> Result<Self, StepError> {
        Ok(Self::new(env, env.required("REGISTRY_SECRET")?))
    }

    /// The connection, for one caller at a time. The secret is read again for each new connection, so a rotated password
    /// is picked up.
    ///
    /// # Errors
    /// `Transient` when the server cannot be reached; `Misconfigured` when the secret or the CA bundle is unusable.
    pub async fn client(&self) -> Result<Connection<'_>, StepError> {
        let mut slot = self.client.lock().await;
        if slot.as_ref().is_none_or(Client::is_closed) {
            *slot = Some(connect(&self.credentials().await?, self.ca_bundle.as_deref()).await?);
        }
        Ok(Connection(slot))
    }

    /// Closes the connection, where there is one; the next use connects again.
    pub async fn close(&self) {
        *self.client.lock().await = None;
    }

    /// A session of its own in another database of the same server.
    ///
    /// # Errors
    /// As [`Database::client`].
    pub async fn session_in(&self, database: &str) -> Result<Client, StepError> {
        let login = Credentials { dbname: database.to_owned(), ..self.credentials().await? };
        connect(&login, self.ca_bundle.as_deref()).await
    }

    /// Reads the credentials from Secrets Manager.
    ///
    /// # Errors
    /// As [`Database::client`].
    pub async fn credentials(&self) -> Result<Credentials, StepError> {
        let doing = format!("reading database secret {}", self.secret_id);
        let secret = self
            .secrets
            .get_secret_value()
            .secret_id(&self.secret_id)
            .send()
            .await
            .map_err(|error| crate::aws::classify(&doing, &error))?;
        serde_json::from_str(secret.secret_string().unwrap_or_default())
            .map_err(|error| StepError::Misconfigured(format!("{doing}: not a database secret: {error}")))
    }
}

/// Exclusive use of a [`Database`]'s connection.
pub struct Connection<'a>(MutexGuard<'a, Option<Client>>);

impl std::ops::Deref for Connection<'_> {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.0.as_ref().expect("Database::client fills the slot before it hands it out")
    }
}

impl std::ops::DerefMut for Connection<'_> {
    fn deref_mut(&mut self) -> &mut Client {
        self.0.as_mut().expect("Database::client fills the slot before it hands it out")
    }
}

/// Connects with our timeouts; with TLS, verified, when a CA bundle is given.
///
/// # Errors
/// As [`Database::client`].
pub async fn connect(credentials: &Credentials, ca_bundle: Option<&Path>) -> Result<Client, StepError> {
    let mut config = Config::new();
    config
        .host(&credentials.host)
        .port(credentials.port)
        .dbname(&credentials.dbname)
        .user(&credentials.username)
        .password(&credentials.password)
        // As pg_stat_activity shows it.
        .application_name(std::env::var("AWS_LAMBDA_FUNCTION_NAME").as_deref().unwrap_or("tenantry"))
        .connect_timeout(CONNECT_TIMEOUT)
        .keepalives_idle(KEEPALIVE)
        .options(format!(
            "-c statement_timeout={} -c lock_timeout={} -c idle_in_transaction_session_timeout={}",
            STATEMENT_TIMEOUT.as_millis(),
            LOCK_TIMEOUT.as_millis(),
            IDLE_IN_TRANSACTION_TIMEOUT.as_millis(),
        ));
    let connected = match ca_bundle {
        Some(path) => {
            let tls = MakeRustlsConnect::new(tls_config(path)?);
            config.ssl_mode(SslMode::Require).connect(tls).await.map(|(client, connection)| {
                tokio::spawn(drive(connection));
                client
            })
        }
        None => config.ssl_mode(SslMode::Disable).connect(NoTls).await.map(|(client, connection)| {
            tokio::spawn(drive(connection));
            client
        }),
    };
    connected.map_err(|error| {
        StepError::from(error).during(&format!("connecting to PostgreSQL at {}:{}", credentials.host, credentials.port))
    })
}

async fn drive(connection: impl Future<Output = Result<(), tokio_postgres::Error>>) {
    if let Err(error) = connection.await {
        tracing::warn!(%error, "PostgreSQL connection ended");
    }
}

fn tls_config(ca_bundle: &Path) -> Result<rustls::ClientConfig, StepError> {
    let unusable = |why: String| StepError::Misconfigured(format!("CA bundle {}: {why}", ca_bundle.display()));
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca_bundle).map_err(|error| unusable(error.to_string()))? {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unusable("holds no certificate".into()));
    }
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map(|config| config.with_root_certificates(roots).with_no_client_auth())
        .map_err(|error| unusable(error.to_string()))
}

/// An identifier as SQL text. Everything but identifiers is bound, never quoted.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The registry's own refusals, raised by its triggers.
pub mod refusal {
    /// A transition that the product does not have.
    pub const TRANSITION: &str = "TN001";
    /// A change of what never changes.
    pub const IMMUTABLE: &str = "TN002";
    /// A removal of what stays for ever.
    pub const REMOVAL: &str = "TN003";
}

impl From<tokio_postgres::Error> for StepError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            // Connection refused, reset, closed, timed out: the statement may have taken effect, and all of ours can be
            // run again. A value that could not be converted is a mistake of ours.
            let text = chain(&error);
            if is_distrust(&error) {
                return StepError::Misconfigured(format!("{text}: the CA bundle does not vouch for the server"));
            }
            return if error.is_closed() || is_io(&error) {
                StepError::Transient(text)
            } else {
                StepError::Unexpected(text)
            };
        };
        let text = format!("PostgreSQL {}: {}", db.code().code(), db.message());
        match db.code().code() {
            // serialization failure, deadlock, lock not available, statement timeout, too many connections, and the
            // server going down or coming up
            "40001" | "40P01" | "55P03" | "57014" | "53300" | "57P01" | "57P02" | "57P03" => StepError::Transient(text),
            code if code.starts_with("08") => StepError::Transient(text),
            "XX000" if db.message().contains("tuple concurrently") => StepError::Transient(text),
            "42501" | "28000" | "28P01" => StepError::Denied(text),
            _ => StepError::Unexpected(text),
        }
    }
}

/// Whether the server's certificate did not verify, which waiting does not change.
fn is_distrust(error: &tokio_postgres::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    let cause = cause.and_then(std::io::Error::get_ref).and_then(|cause| cause.downcast_ref::<rustls::Error>());
    matches!(cause, Some(rustls::Error::InvalidCertificate(_)))
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.is::<std::io::Error>() {
            return true;
        }
        source = cause.source();
    }
    // tokio-postgres reports its own connect_timeout without a source.
    error.to_string().contains("timeout") || error.to_string().contains("connecting to server")
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_cannot_break_out() {
        assert_eq!(quote_identifier(r#"a"; DROP TABLE t; --"#), r#""a""; DROP TABLE t; --""#);
    }
}
