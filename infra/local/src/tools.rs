//! Where the programs are that a stack is made of, as `make set-up` found or built them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde::Deserialize;

/// What `infra/setup/run` wrote to `.local/tools.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Tools {
    /// The AWS emulator's executable.
    pub ministack: PathBuf,
    /// The Kubernetes API server's executable; empty when `KUBECONFIG` names a cluster.
    pub kube: PathBuf,
    /// The directory of PostgreSQL's executables.
    pub postgres_bin: PathBuf,
    /// The Python that has the Stripe fake.
    pub localstripe_python: PathBuf,
    /// The Redis server's executable.
    pub redis_server: PathBuf,
    /// The nginx executable.
    pub nginx: PathBuf,
}

impl Tools {
    /// Reads what the set-up found.
    ///
    /// # Errors
    /// When the set-up has not run in this checkout.
    pub fn load(root: &Path) -> Result<Self> {
        let path = root.join(".local/tools.json");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("{}: run `make set-up` first", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{}: run `make set-up` again", path.display()))
    }
}

/// The checkout: the directory that holds the workspace's `Cargo.toml` and `infra/template.yaml`, this one or above.
///
/// # Errors
/// When called from outside a checkout.
pub fn checkout() -> Result<PathBuf> {
    let here = std::env::current_dir()?;
    here.ancestors()
        .find(|directory| directory.join("infra/template.yaml").is_file())
        .map(Path::to_path_buf)
        .with_context(|| format!("{} is not inside a checkout of Tenantry", here.display()))
}

/// A TCP and UDP port of loopback that nobody listens on just now.
///
/// # Errors
/// When the system has none.
pub fn free_port() -> Result<u16> {
    // The system may give a port again that is not used yet: no two of our own programs are told the same one.
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let new = GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port);
        if new && std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
}
