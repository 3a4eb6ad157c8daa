//! A PostgreSQL server of the stack's own.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::{User, getuid};
use rand::distr::{Alphanumeric, SampleString};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tenantry_core::postgres::quote_identifier;
use tokio::time::sleep;
use tokio_postgres::NoTls;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::guard::{Guarded, Program};
use crate::tools::{Tools, free_port};

/// The server's superuser. Functions never connect as it.
const ADMINISTRATOR: &str = "administrator";
/// The role functions log in as: like RDS's master it may make roles and databases, and is no superuser.
const PROVISIONER: &str = "tenantry_provisioner";
/// The one database.
const DATABASE: &str = "tenantry";
const PATIENCE: Duration = Duration::from_secs(30);
const CERTIFICATE: &str = "server.crt";
const KEY: &str = "server.key";

/// A running server.
pub struct Postgres {
    process: Guarded,
    port: u16,
    administrator_password: String,
    /// What the functions connect with.
    pub provisioner_password: String,
    /// What the product's own role will have.
    pub application_password: String,
    outside: Option<PathBuf>,
}

impl Postgres {
    /// Makes a data directory, starts a server on it, and creates the provisioner, and the database where it is the server of
    /// the registry and the pool. The server of the tenants that have one of their own trusts the provisioner on this machine:
    /// it stands for many instances, each with a password of its own.
    ///
    /// # Errors
    /// When PostgreSQL does not come up.
    pub async fn start(
        tools: &Tools,
        directory: &Path,
        logs: &Path,
        authority: &Authority,
        role: Role,
    ) -> Result<Self> {
        let user = unprivileged()?;
        let (home, outside) = home(&directory.join(role.name()), user.as_ref())?;
        let administrator_password = password();
        initialize(tools, &home, user.as_ref(), &administrator_password)?;
        certify(&home, authority, user.as_ref())?;
        if role == Role::Dedicated {
            let rules = home.join("data/pg_hba.conf");
            let trust = format!("host all {PROVISIONER} 127.0.0.1/32 trust\n{}", std::fs::read_to_string(&rules)?);
            std::fs::write(&rules, trust)?;
        }
        let port = free_port()?;
        let settings = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            "unix_socket_directories=".to_owned(),
            "max_connections=500".to_owned(),
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", home.join(CERTIFICATE).display()),
            format!("ssl_key_file={}", home.join(KEY).display()),
            // What is here lives as long as the stack: nothing has to survive a crash of the machine.
            "fsync=off".to_owned(),
            "synchronous_commit=off".to_owned(),
            "full_page_writes=off".to_owned(),
        ];
        let mut args = vec!["-D".to_owned(), home.join("data").display().to_string()];
        args.extend(settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]));
        let process = Program {
            name: role.name(),
            path: &tools.postgres_bin.join("postgres"),
            args,
            environment: vec![("LC_ALL".to_owned(), "C.UTF-8".to_owned())],
            user: user.as_ref(),
            directory: &home,
            interrupt: true,
        }
        .start(logs)?;
        let mut server = Postgres {
            process,
            port,
            administrator_password,
            provisioner_password: password(),
            application_password: password(),
            outside,
        };
        server.prepare(role).await?;
        Ok(server)
    }

    async fn prepare(&mut self, role: Role) -> Result<()> {
        let begun = Instant::now();
        let url = self.url(ADMINISTRATOR, &self.administrator_password, "postgres");
        let client = loop {
            self.process.check()?;
            match tokio_postgres::connect(&url, NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    break client;
                }
                Err(error) => ensure!(begun.elapsed() < PATIENCE, "PostgreSQL does not answer: {error}"),
            }
            sleep(Duration::from_millis(50)).await;
        };
        let password = &self.provisioner_password;
        client
            .batch_execute(&format!(
                "CREATE ROLE {role} LOGIN NOSUPERUSER CREATEROLE CREATEDB PASSWORD '{password}'",
                role = quote_identifier(PROVISIONER)
            ))
            .await?;
        if role == Role::Dedicated {
            return Ok(());
        }
        let owned = format!("CREATE DATABASE {} OWNER {}", quote_identifier(DATABASE), quote_identifier(PROVISIONER));
        client.batch_execute(&owned).await?;
        Ok(())
    }

    /// Fails when the server has ended by itself.
    ///
    /// # Errors
    /// As said.
    pub fn check(&mut self) -> Result<()> {
        self.process.check()
    }

    /// As administrator, on the registry's database.
    pub fn administrator_url(&self) -> String {
        self.url(ADMINISTRATOR, &self.administrator_password, DATABASE)
    }

    /// As administrator, on the database that every server has.
    pub fn maintenance_url(&self) -> String {
        self.url(ADMINISTRATOR, &self.administrator_password, "postgres")
    }

    /// Where it listens on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// As the product's own role, which row-level security binds.
    pub fn application_url(&self) -> String {
        self.url("tenantry_app", &self.application_password, DATABASE)
    }

    /// The secret's text for a role, in the form that RDS writes.
    /// `port` is the server's own, or that of what stands in front of it.
    pub fn secret(&self, username: &str, password: &str, port: u16) -> String {
        serde_json::json!({
            "host": "127.0.0.1", "port": port, "dbname": DATABASE, "username": username, "password": password,
        })
        .to_string()
    }

    /// What the functions log in as.
    pub fn provisioner(&self) -> &'static str {
        PROVISIONER
    }

    fn url(&self, user: &str, password: &str, database: &str) -> String {
        format!("postgresql://{user}:{password}@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.process.release();
        if let Some(outside) = &self.outside {
            let _ = std::fs::remove_dir_all(outside);
        }
    }
}

fn password() -> String {
    Alphanumeric.sample_string(&mut rand::rng(), 32)
}

/// PostgreSQL refuses to run as root: then it runs as the user that Debian's package made for it.
fn unprivileged() -> Result<Option<User>> {
    if !getuid().is_root() {
        return Ok(None);
    }
    let user = User::from_name("postgres")?.or(User::from_name("nobody")?);
    Ok(Some(user.context("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")?))
}

/// Where the data goes: below the stack's directory, or outside where another user cannot reach that.
fn home(inside: &Path, user: Option<&User>) -> Result<(PathBuf, Option<PathBuf>)> {
    let Some(user) = user else {
        std::fs::create_dir_all(inside)?;
        return Ok((inside.to_owned(), None));
    };
    let reachable = inside
        .ancestors()
        .skip(1)
        .all(|above| std::fs::metadata(above).is_ok_and(|found| found.permissions().mode() & 0o001 != 0));
    let (home, outside) = if reachable {
        (inside.to_owned(), None)
    } else {
        let elsewhere = std::env::temp_dir().join(format!("tenantry-postgres-{}", uuid::Uuid::new_v4()));
        (elsewhere.clone(), Some(elsewhere))
    };
    std::fs::create_dir_all(&home)?;
    chown(&home, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    Ok((home, outside))
}

/// Which server of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Of the registry, the pool and the schemas.
    Registry,
    /// Of the tenants that have a server of their own on AWS.
    Dedicated,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Registry => "postgres",
            Role::Dedicated => "postgres-dedicated",
        }
    }
}

/// A certificate authority of the stack's own, as Amazon's is RDS's.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The file with its certificate.
    pub bundle: PathBuf,
    /// The same certificate, as PEM.
    pub certificate: String,
}

impl Authority {
    /// Makes one, and writes its certificate below the stack's directory.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn make(directory: &Path) -> Result<Self> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let bundle = directory.join("ca.pem");
        let certificate = authority.self_signed(&key)?.pem();
        std::fs::write(&bundle, &certificate)?;
        Ok(Authority { issuer: Issuer::new(authority, key), bundle, certificate })
    }

    /// How a server of ours on loopback speaks TLS.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn server_config(&self) -> Result<ServerConfig> {
        let (certificate, key) = self.issue()?;
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
        let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        Ok(config.with_no_client_auth().with_single_cert(vec![certificate], key)?)
    }

    /// A certificate for loopback, and its key, as PEM.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn issue(&self) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let server = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        Ok((server.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }
}

/// The cryptography that everything here uses.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(tokio_rustls::rustls::crypto::ring::default_provider())
}

/// Gives the server a certificate.
fn certify(home: &Path, authority: &Authority, user: Option<&User>) -> Result<()> {
    let (certificate, key) = authority.issue()?;
    for (name, pem) in [(CERTIFICATE, certificate), (KEY, key)] {
        let file = home.join(name);
        std::fs::write(&file, pem)?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
        if let Some(user) = user {
            chown(&file, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
    }
    Ok(())
}

fn initialize(tools: &Tools, home: &Path, user: Option<&User>, password: &str) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let file = home.join("password");
    std::fs::write(&file, password)?;
    if let Some(user) = user {
        chown(&file, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    }
    let mut command = Command::new(tools.postgres_bin.join("initdb"));
    command
        .args(["--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", "--auth=scram-sha-256"])
        .arg(format!("--username={ADMINISTRATOR}"))
        .arg(format!("--pwfile={}", file.display()))
        .arg(home.join("data"))
        .current_dir(home);
    if let Some(user) = user {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    let output = command.output().context("running initdb")?;
    std::fs::remove_file(&file)?;
    ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
