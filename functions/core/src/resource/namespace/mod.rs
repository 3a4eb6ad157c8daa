//! The tenant's Kubernetes namespace and what confines it: quotas, network policies, and an account that sees nothing else.
//!
//! The namespace itself is made by POST, because server-side apply would adopt another's of the same name. What is inside
//! is applied, and an apply that changes nothing writes nothing.

mod objects;

use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1 as core;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use self::objects::{Inner, Openings};
use super::{Freezable, Inspection, Resource, missing};
use crate::environment::Environment;
use crate::error::StepError;
use crate::kubernetes::{Cluster, classify};
use crate::tenant::{OWNER_TAG, Tenant};

/// Who the API server notes as the owner of the fields we apply.
const FIELD_MANAGER: &str = "tenantry";
/// How long a namespace being deleted is waited for (about 5 s when it holds little); the machine's retries wait on.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(300);

/// The tenant's namespace and all that Tenantry puts into it.
pub struct Namespace {
    cluster: Cluster,
    openings: Openings,
}

impl Namespace {
    /// Wires the resource: `KUBECONFIG` or `EKS_CLUSTER`, and optionally `INGRESS_NAMESPACE` (the ingress controller's;
    /// `ingress-nginx`) and `DATABASE_PORT` (5432). Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing or is no port.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        let ingress_namespace = env.optional("INGRESS_NAMESPACE").unwrap_or_else(|| "ingress-nginx".to_owned());
        let database_port = env.optional("DATABASE_PORT").map_or(Ok(5432), |port| {
            port.parse().map_err(|_| StepError::Misconfigured(format!("DATABASE_PORT is not a port: {port}")))
        })?;
        Ok(Namespace { cluster: Cluster::from_env(env)?, openings: Openings { ingress_namespace, database_port } })
    }

    /// Makes the namespace or finds it to be the tenant's; waits for one of the same name to be gone.
    async fn claim(&self, namespaces: &Api<core::Namespace>, tenant: &Tenant) -> Result<core::Namespace, StepError> {
        let name = tenant.namespace();
        let labels = objects::namespace_labels(tenant).into_iter().map(|(key, value)| (key.to_owned(), value));
        let mut wanted = core::Namespace::default();
        wanted.metadata.name = Some(name.clone());
        wanted.metadata.labels = Some(labels.collect());
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let started = Instant::now();
        loop {
            match namespaces.create(&params, &wanted).await {
                Ok(made) => return Ok(made),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(classify(&format!("creating namespace {name}"), &error)),
            }
            match read(namespaces, &name).await? {
                Some(found) if terminating(&found) => {}
                Some(found) if owned(&found, tenant) => return Ok(found),
                Some(found) => {
                    return Err(StepError::Foreign { kind: "namespace", name, found: owner_text(&found) });
                }
                None => continue, // gone since the POST
            }
            if started.elapsed() > PATIENCE {
                return Err(StepError::Transient(format!("namespace {name} is still being deleted")));
            }
            sleep(POLL).await;
        }
    }
}

#[async_trait]
impl Resource for Namespace {
    fn kind(&self) -> &'static str {
        "namespace"
    }

    async fn ensure(&self, tenant: &Tenant) -> Result<Value, StepError> {
        let client = self.cluster.client().await?;
        let namespaces = Api::all(client.clone());
        let found = self.claim(&namespaces, tenant).await?;
        if !label_drift(&found, tenant).is_empty() {
            relabel(&namespaces, &found, tenant).await?;
        }
        for inner in objects::inside(tenant, &self.openings) {
            ensure_inner(&client, tenant, &inner).await?;
        }
        settle_quota(&client, tenant).await?;
        Ok(json!({ "namespace": tenant.namespace(), "service_account": tenant.service_account() }))
    }

    async fn remove(&self, tenant: &Tenant) -> Result<(), StepError> {
        let namespaces: Api<core::Namespace> = Api::all(self.cluster.client().await?);
        let name = tenant.namespace();
        let started = Instant::now();
        loop {
            let Some(found) = read(&namespaces, &name).await? else { return Ok(()) };
            if !owned(&found, tenant) {
                return Ok(());
            }
            if !terminating(&found) {
                // The uid, so that one made since by another is not what is deleted.
                let this_one = Preconditions { uid: found.uid(), resource_version: None };
                match namespaces.delete(&name, &DeleteParams::default().preconditions(this_one)).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {} // looked at again below
                    Err(error) => return Err(classify(&format!("deleting namespace {name}"), &error)),
                }
            }
            if started.elapsed() > PATIENCE {
                return Err(StepError::Transient(format!("namespace {name} is not gone yet{}", what_remains(&found))));
            }
            sleep(POLL).await;
        }
    }

    async fn inspect(&self, tenant: &Tenant) -> Result<Inspection, StepError> {
        let client = self.cluster.client().await?;
        let name = tenant.namespace();
        let Some(found) = read(&Api::all(client.clone()), &name).await? else { return Ok(Inspection::Absent) };
        if !owned(&found, tenant) {
            return Ok(Inspection::Foreign(owner_text(&found)));
        }
        if terminating(&found) {
            return Ok(Inspection::Drifted(vec![format!("it is being deleted{}", what_remains(&found))]));
        }
        let mut drift = label_drift(&found, tenant);
        for inner in objects::inside(tenant, &self.openings) {
            drift.extend(inner_drift(&client, tenant, &inner).await?);
        }
        let no_pods = objects::no_pods(tenant);
        if tenant.frozen {
            drift.extend(inner_drift(&client, tenant, &no_pods).await?);
            let pods = pods(&client, tenant).await?.len();
            drift.extend((pods > 0).then(|| format!("{pods} pods are there")));
        } else if live(&client, tenant, &no_pods).await?.is_some() {
            drift.push(format!("{} should not be there", no_pods.title()));
        }
        Ok(if drift.is_empty() { Inspection::Present } else { Inspection::Drifted(drift) })
    }
}

#[async_trait]
impl Freezable for Namespace {
    async fn settle(&self, tenant: &Tenant) -> Result<(), StepError> {
        let client = self.cluster.client().await?;
        let name = tenant.namespace();
        match read(&Api::all(client.clone()), &name).await? {
            Some(found) if owned(&found, tenant) && !terminating(&found) => {}
            Some(found) if !owned(&found, tenant) => {
                return Err(StepError::Foreign { kind: "namespace", name, found: owner_text(&found) });
            }
            _ => return Err(missing("namespace", tenant, "create-namespace")),
        }
        settle_quota(&client, tenant).await?;
        if tenant.frozen { end_pods(&client, tenant).await } else { Ok(()) }
    }
}

/// Makes the quota that admits no pod where the tenant is frozen, and removes it where it is not.
async fn settle_quota(client: &Client, tenant: &Tenant) -> Result<(), StepError> {
    let no_pods = objects::no_pods(tenant);
    if tenant.frozen {
        return ensure_inner(client, tenant, &no_pods).await;
    }
    if live(client, tenant, &no_pods).await?.is_none() {
        return Ok(());
    }
    match api(client, tenant, &no_pods).delete(no_pods.name(), &DeleteParams::default()).await {
        Err(error) if !is_absent(&error) => {
            Err(classify(&format!("deleting {} in namespace {}", no_pods.title(), tenant.namespace()), &error))
        }
        _ => Ok(()),
    }
}

/// Deletes every pod, whose owners make them again once the quota lets them; returns when they are gone. A pod on a node has its
/// own grace period, which the machine's retries wait for.
async fn end_pods(client: &Client, tenant: &Tenant) -> Result<(), StepError> {
    let all: Api<core::Pod> = Api::namespaced(client.clone(), &tenant.namespace());
    let doing = format!("deleting the pods of namespace {}", tenant.namespace());
    let started = Instant::now();
    loop {
        let found = pods(client, tenant).await?;
        if found.is_empty() {
            return Ok(());
        }
        for pod in found.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            match all.delete(&pod.name_any(), &DeleteParams::default()).await {
                Err(error) if !is_absent(&error) => return Err(classify(&doing, &error)),
                _ => {}
            }
        }
        if started.elapsed() > PATIENCE {
            return Err(StepError::Transient(format!("{doing}: {} are not gone yet", found.len())));
        }
        sleep(POLL).await;
    }
}

async fn pods(client: &Client, tenant: &Tenant) -> Result<Vec<core::Pod>, StepError> {
    let pods: Api<core::Pod> = Api::namespaced(client.clone(), &tenant.namespace());
    let listed = pods.list(&ListParams::default()).await;
    let doing = || format!("listing the pods of namespace {}", tenant.namespace());
    listed.map(|list| list.items).map_err(|error| classify(&doing(), &error))
}

/// An object inside the namespace, as the API server has it.
async fn live(client: &Client, tenant: &Tenant, inner: &Inner) -> Result<Option<DynamicObject>, StepError> {
    let doing = || format!("inspecting {} in namespace {}", inner.title(), tenant.namespace());
    api(client, tenant, inner).get_opt(inner.name()).await.map_err(|error| classify(&doing(), &error))
}

async fn read(namespaces: &Api<core::Namespace>, name: &str) -> Result<Option<core::Namespace>, StepError> {
    namespaces.get_opt(name).await.map_err(|error| classify(&format!("reading namespace {name}"), &error))
}

fn owned(namespace: &core::Namespace, tenant: &Tenant) -> bool {
    namespace.labels().get(OWNER_TAG).is_some_and(|owner| *owner == tenant.id.to_string())
}

fn terminating(namespace: &core::Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_some()
}

fn owner_text(namespace: &core::Namespace) -> String {
    namespace
        .labels()
        .get(OWNER_TAG)
        .map_or_else(|| format!("it has no label {OWNER_TAG}"), |owner| format!("its label {OWNER_TAG} is {owner}"))
}

/// Why the namespace controller is not done, in its own words.
fn what_remains(namespace: &core::Namespace) -> String {
    let conditions = namespace.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions
        .filter(|condition| condition.status == "True")
        .filter_map(|condition| condition.message.as_deref())
        .fold(String::new(), |text, message| format!("{text}; {message}"))
}

fn label_drift(namespace: &core::Namespace, tenant: &Tenant) -> Vec<String> {
    objects::namespace_labels(tenant)
        .into_iter()
        .filter(|(key, value)| namespace.labels().get(*key) != Some(value))
        .map(|(key, value)| format!("label {key} is not {value}"))
        .collect()
}

async fn relabel(namespaces: &Api<core::Namespace>, found: &core::Namespace, tenant: &Tenant) -> Result<(), StepError> {
    let name = tenant.namespace();
    let labels: serde_json::Map<_, _> =
        objects::namespace_labels(tenant).into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
    // The uid makes this a conflict where another's namespace has taken the place of ours since.
    let wanted = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "uid": found.uid(), "labels": labels },
    });
    namespaces
        .patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(wanted))
        .await
        .map_err(|error| classify(&format!("labelling namespace {name}"), &error))?;
    Ok(())
}

fn api(client: &Client, tenant: &Tenant, inner: &Inner) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), &tenant.namespace(), &inner.resource)
}

async fn ensure_inner(client: &Client, tenant: &Tenant, inner: &Inner) -> Result<(), StepError> {
    let api = api(client, tenant, inner);
    let doing = format!("applying {} in namespace {}", inner.title(), tenant.namespace());
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let answer = match api.patch(inner.name(), &params, &Patch::Apply(&inner.object)).await {
        // A binding names its role for ever: one that names another has to make way.
        Err(kube::Error::Api(status)) if status.code == 422 && inner.resource.kind == "RoleBinding" => {
            match api.delete(inner.name(), &DeleteParams::default()).await {
                Err(error) if !is_absent(&error) => return Err(classify(&doing, &error)),
                _ => api.patch(inner.name(), &params, &Patch::Apply(&inner.object)).await,
            }
        }
        answer => answer,
    };
    match answer {
        Ok(_) => Ok(()),
        // The namespace was deleted meanwhile; the next run makes it again.
        Err(error) if is_absent(&error) => Err(StepError::Transient(format!("{doing}: the namespace is gone"))),
        Err(error) => Err(classify(&doing, &error)),
    }
}

/// What an apply would change, by asking the API server to apply without storing: quantities and defaults are then
/// compared as it writes them.
async fn inner_drift(client: &Client, tenant: &Tenant, inner: &Inner) -> Result<Vec<String>, StepError> {
    let api = api(client, tenant, inner);
    let title = inner.title();
    let doing = format!("inspecting {title} in namespace {}", tenant.namespace());
    let Some(live) = live(client, tenant, inner).await? else { return Ok(vec![format!("{title} is missing")]) };
    let params = PatchParams::apply(FIELD_MANAGER).force().dry_run();
    match api.patch(inner.name(), &params, &Patch::Apply(&inner.object)).await {
        Ok(applied) => {
            let mut changes = Vec::new();
            compare(&title, &stored(live), &stored(applied), &mut changes);
            Ok(changes)
        }
        Err(kube::Error::Api(status)) if status.code == 422 => {
            Ok(vec![format!("{title} cannot be changed into what it should be: {}", status.message)])
        }
        Err(error) => Err(classify(&doing, &error)),
    }
}

/// The parts of an object that are said by whoever writes it, not by the API server or a controller.
fn stored(object: DynamicObject) -> Value {
    let mut content = object.data;
    if let Some(fields) = content.as_object_mut() {
        fields.remove("status");
        fields.insert("labels".to_owned(), json!(object.metadata.labels));
    }
    content
}

/// Names every path at which the two differ.
fn compare(path: &str, live: &Value, wanted: &Value, changes: &mut Vec<String>) {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            for (key, value) in wanted {
                compare(&format!("{path}.{key}"), live.get(key).unwrap_or(&Value::Null), value, changes);
            }
            for key in live.keys().filter(|key| !wanted.contains_key(*key)) {
                changes.push(format!("{path}.{key} should not be there"));
            }
        }
        _ if live == wanted => {}
        _ => changes.push(format!("{path} is {live}, not {wanted}")),
    }
}

fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}
