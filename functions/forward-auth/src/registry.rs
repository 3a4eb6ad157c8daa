//! The way to the registry, which is asked about tenants that Redis does not know.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use tenant_gate::RegistryError;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

/// The longest a connection and a look-up are waited for, as the gate itself does.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a connection may be silent before it is looked whether it still is one.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Where the registry is, who asks, and whom to trust there.
pub struct Login {
    config: Config,
    tls: Option<ClientConfig>,
}

impl Login {
    /// A login with TLS, verified, where `tls` says against what, and without it otherwise.
    pub fn new(mut config: Config, tls: Option<ClientConfig>) -> Self {
        let options = config.get_options().unwrap_or_default();
        let options = format!("{options} -c statement_timeout={}", PATIENCE.as_millis());
        let mode = if tls.is_some() { SslMode::Require } else { SslMode::Disable };
        config.options(options.trim()).connect_timeout(PATIENCE).keepalives_idle(KEEPALIVE).ssl_mode(mode);
        if config.get_application_name().is_none() {
            config.application_name("forward-auth");
        }
        Login { config, tls }
    }

    /// Connects.
    ///
    /// # Errors
    /// When the server cannot be reached, does not let us in, or is not the one that the CA bundle vouches for.
    pub async fn connect(&self) -> Result<Client, RegistryError> {
        match &self.tls {
            Some(tls) => {
                let (client, connection) = self.config.connect(MakeRustlsConnect::new(tls.clone())).await?;
                tokio::spawn(drive(connection));
                Ok(client)
            }
            None => {
                let (client, connection) = self.config.connect(NoTls).await?;
                tokio::spawn(drive(connection));
                Ok(client)
            }
        }
    }
}

async fn drive(connection: impl Future<Output = Result<(), tokio_postgres::Error>>) {
    if let Err(error) = connection.await {
        tracing::warn!(%error, "the connection to the registry ended");
    }
}

/// Trusts servers whose certificate leads to one of those in a PEM file, and no others.
///
/// # Errors
/// When the file cannot be read or holds no certificate.
pub fn trust(bundle: &str) -> Result<ClientConfig, String> {
    let certificates = CertificateDer::pem_file_iter(bundle).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(certificates.map_err(|error| error.to_string())?);
    if usable == 0 {
        return Err("it holds no certificate".to_owned());
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
