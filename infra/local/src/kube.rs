//! The Kubernetes API server of the stack's own, or the cluster that `KUBECONFIG` names.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::config::Kubeconfig;
use tokio::time::sleep;
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::guard::{Guarded, Program};
use crate::postgres::{Authority, provider};
use crate::proxy::{self, Proxy, System, Tap, Upstream};
use crate::tools::Tools;

/// Cold, on two busy cores.
const PATIENCE: Duration = Duration::from_secs(90);

/// A cluster to provision in.
pub struct Cluster {
    process: Option<Guarded>,
    /// Administrator's kubeconfig.
    pub admin: PathBuf,
    /// The functions' kubeconfig: bound to the ClusterRole that we ship.
    pub functions: PathBuf,
}

impl Cluster {
    /// Starts an API server, unless `KUBECONFIG` names a cluster: then functions act on that one, with its credentials.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(tools: &Tools, directory: &Path, logs: &Path) -> Result<Self> {
        if let Some(given) = given() {
            ensure!(given.is_file(), "KUBECONFIG names {}, which is not a file", given.display());
            return Ok(Cluster { process: None, admin: given.clone(), functions: given });
        }
        let home = directory.join("kube");
        std::fs::create_dir_all(&home)?;
        let process = Program {
            name: "kube",
            path: &tools.kube,
            // The guard's standard input is the stack's; this program's own is empty.
            args: vec!["up".into(), "--dir".into(), home.display().to_string(), "--ignore-stdin".into()],
            environment: vec![("HOME".into(), home.display().to_string()), ("PATH".into(), "/usr/bin:/bin".into())],
            user: None,
            directory: &home,
            interrupt: false,
        }
        .start(logs)?;
        let mut cluster = Cluster {
            admin: home.join("admin.kubeconfig"),
            functions: home.join("functions.kubeconfig"),
            process: Some(process),
        };
        let begun = Instant::now();
        while !cluster.ready() {
            cluster.check()?;
            ensure!(begun.elapsed() < PATIENCE, "the Kubernetes API server is not ready after {PATIENCE:?}");
            sleep(Duration::from_millis(50)).await;
        }
        Ok(cluster)
    }

    /// Lets somebody look at every call of the functions: their kubeconfig leads through a proxy from now on. A given
    /// cluster is left alone.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read or written.
    pub async fn tap(&mut self, authority: &Authority, tap: Arc<dyn Tap>) -> Result<Option<Proxy>> {
        if self.process.is_none() {
            return Ok(None);
        }
        let mut config = Kubeconfig::read_from(&self.functions)?;
        let named = config.clusters.first_mut().and_then(|named| named.cluster.as_mut()).context("no cluster")?;
        let server = named.server.clone().context("no server")?;
        let trusted = named.certificate_authority_data.clone().context("no certificate authority")?;
        let upstream = Upstream {
            authority: server.trim_start_matches("https://").trim_end_matches('/').to_owned(),
            tls: Some(Arc::new(trusting(&STANDARD.decode(trusted)?)?)),
        };
        let proxy = proxy::http(System::Kubernetes, upstream, Some(Arc::new(authority.server_config()?)), tap).await?;
        named.server = Some(format!("https://{}", proxy.address()));
        named.certificate_authority_data = Some(STANDARD.encode(&authority.certificate));
        self.functions = self.functions.with_file_name("tapped.kubeconfig");
        std::fs::write(&self.functions, serde_json::to_string(&config)?)?;
        Ok(Some(proxy))
    }

    /// Whether it is the stack's own.
    pub fn is_own(&self) -> bool {
        self.process.is_some()
    }

    /// It says so on its standard output, once it serves and its controllers act.
    fn ready(&self) -> bool {
        let Some(process) = &self.process else { return true };
        let log = std::fs::read_to_string(process.log()).unwrap_or_default();
        log.lines().any(|line| line.starts_with("ready "))
    }

    /// Fails when the server has ended by itself.
    ///
    /// # Errors
    /// As said.
    pub fn check(&mut self) -> Result<()> {
        self.process.as_mut().map_or(Ok(()), Guarded::check)
    }
}

/// The cluster that the caller names. One of ours is not meant: it is what `eval "$(make -s env)"` left in the shell.
fn given() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty())?);
    let ours = path.ends_with("kube/admin.kubeconfig") && path.components().any(|part| part.as_os_str() == ".local");
    (!ours).then_some(path)
}

/// Verifies a server against the certificates of a PEM text.
fn trusting(pem: &[u8]) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate?)?;
    }
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
