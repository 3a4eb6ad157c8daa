//! Kubernetes: the tenant's namespace by name and by label, what is in it, what carries the tenant's label anywhere else, and
//! volumes that were claimed from it.

use async_trait::async_trait;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{
    ConfigMap, LimitRange, Namespace, PersistentVolume, Pod, ResourceQuota, Service, ServiceAccount,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::{Client, ResourceExt};

use super::{Finding, Store, Subject, count};
use crate::environment::Environment;
use crate::error::StepError;
use crate::kubernetes::{Cluster, classify};
use crate::tenant::{OWNER_TAG, Tenant};

/// The cluster. Secrets are not looked for by themselves: the right to list them is the right to read them all. They are in the
/// tenant's namespace, which is not gone before they are.
pub(super) struct Namespaces {
    cluster: Cluster,
}

impl Namespaces {
    pub(super) fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(Namespaces { cluster: Cluster::from_env(env)? })
    }
}

/// The kinds that tenants have inside namespaces.
fn kinds() -> [ApiResource; 9] {
    [
        ApiResource::erase::<ConfigMap>(&()),
        ApiResource::erase::<LimitRange>(&()),
        ApiResource::erase::<NetworkPolicy>(&()),
        ApiResource::erase::<Pod>(&()),
        ApiResource::erase::<ResourceQuota>(&()),
        ApiResource::erase::<Role>(&()),
        ApiResource::erase::<RoleBinding>(&()),
        ApiResource::erase::<Service>(&()),
        ApiResource::erase::<ServiceAccount>(&()),
    ]
}

#[async_trait]
impl Store for Namespaces {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    async fn look(&self, subject: &Subject) -> Result<Finding, StepError> {
        let client = self.cluster.client().await?;
        let tenant = &subject.tenant;
        let (namespaces, volumes) = futures::try_join!(namespaces(&client, tenant), volumes(&client, tenant))?;
        let objects = try_join_all(kinds().into_iter().map(|kind| objects(&client, tenant, kind))).await?;
        Ok(Finding::of([
            ("namespaces", count(namespaces)),
            ("volumes", count(volumes)),
            ("objects", count(objects.iter().sum())),
        ]))
    }
}

async fn namespaces(client: &Client, tenant: &Tenant) -> Result<usize, StepError> {
    let all = Api::<Namespace>::all(client.clone()).list_metadata(&ListParams::default()).await;
    let all = all.map_err(|error| classify("listing namespaces", &error))?;
    let (name, id) = (tenant.namespace(), tenant.id.to_string());
    Ok(all.iter().filter(|one| one.name_any() == name || one.labels().get(OWNER_TAG) == Some(&id)).count())
}

/// Volumes outlive their claims where their class says so.
async fn volumes(client: &Client, tenant: &Tenant) -> Result<usize, StepError> {
    let all = Api::<PersistentVolume>::all(client.clone()).list(&ListParams::default()).await;
    let all = all.map_err(|error| classify("listing persistent volumes", &error))?;
    let name = tenant.namespace();
    let claimed = |volume: &&PersistentVolume| {
        let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        claim.is_some_and(|claim| claim.namespace.as_ref() == Some(&name))
    };
    Ok(all.items.iter().filter(claimed).count())
}

/// What is in the tenant's namespace, and what carries its label elsewhere.
async fn objects(client: &Client, tenant: &Tenant, kind: ApiResource) -> Result<usize, StepError> {
    let doing = format!("listing {}", kind.plural);
    let labelled = ListParams::default().labels(&format!("{OWNER_TAG}={}", tenant.id));
    let anywhere = Api::<DynamicObject>::all_with(client.clone(), &kind).list_metadata(&labelled).await;
    let anywhere = anywhere.map_err(|error| classify(&doing, &error))?;
    let namespace = tenant.namespace();
    let inside = Api::<DynamicObject>::namespaced_with(client.clone(), &namespace, &kind);
    let inside = inside.list_metadata(&ListParams::default()).await.map_err(|error| classify(&doing, &error))?;
    let elsewhere = anywhere.iter().filter(|object| object.namespace().as_ref() != Some(&namespace));
    Ok(inside.items.len() + elsewhere.count())
}
