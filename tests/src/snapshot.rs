//! Everything that exists in the stack's systems, as the local stack's own inventory lists it.

use anyhow::Result;
use serde_json::Value;
pub use tenantry_local::inventory::cluster_as;
use tenantry_local::inventory::{Inventory, Snapshot};

use tenantry_local::emulator;

use crate::world::World;

impl World {
    /// The ways into every system.
    pub fn inventory(&self) -> Inventory {
        Inventory { aws: self.env.aws.clone(), exports: self.exports.clone(), variables: self.env.variables().clone() }
    }

    /// Looks into every system that a tenant may own something in.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        self.inventory().take().await
    }

    /// What localstripe answers to a GET.
    pub async fn stripe(&self, path: &str) -> Result<Value> {
        self.inventory().stripe(path).await
    }

    /// The mail that SES was asked to send, as the emulator keeps it.
    pub async fn emails(&self) -> Result<Vec<Value>> {
        emulator::mail(self.export("AWS_ENDPOINT_URL")?).await
    }

    /// The cluster, as its administrator.
    pub async fn cluster(&self) -> Result<kube::Client> {
        cluster_as(self.export("KUBECONFIG")?).await
    }
}
