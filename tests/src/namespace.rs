//! The tenant's namespace against a real API server, with its controllers, and with the rights that functions have there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::core::v1::{ConfigMap, LimitRange, Pod, ResourceQuota, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tenantry_core::error::StepError;
use tenantry_core::resource::namespace::Namespace;
use tenantry_core::resource::{Inspection, Resource};
use tenantry_core::tenant::{OWNER_TAG, Tenant};
use tokio::time::sleep;

use crate::snapshot::cluster_as;
use crate::tenants::fresh_tenant;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("is_made_once", |world| Box::pin(is_made_once(world))),
    ("its_limits_are_enforced", |world| Box::pin(its_limits_are_enforced(world))),
    ("is_repaired", |world| Box::pin(is_repaired(world))),
    ("of_another_is_left_alone", |world| Box::pin(of_another_is_left_alone(world))),
    ("is_removed_with_all_it_holds", |world| Box::pin(is_removed(world))),
    ("functions_may_do_no_more_than_they_need", |world| Box::pin(rights(world))),
];

/// Longer than the controllers take for anything here: reaching it means that it does not happen.
const PATIENCE: Duration = Duration::from_secs(30);

async fn is_made_once(world: &World) -> Result<()> {
    let (tenant, cluster) = (fresh_tenant(world, "namespace")?, world.cluster().await?);
    let namespace = Namespace::from_env(&world.env)?;
    ensure!(namespace.inspect(&tenant).await? == Inspection::Absent);
    let made = namespace.ensure(&tenant).await?;
    ensure!(made == json!({"namespace": tenant.namespace(), "service_account": "tenant"}), "{made}");
    ensure!(namespace.inspect(&tenant).await? == Inspection::Present);

    let live = Api::<core::Namespace>::all(cluster.clone()).get(&tenant.namespace()).await?;
    let label = |key: &str| live.labels().get(key).cloned().unwrap_or_default();
    ensure!(label(OWNER_TAG) == tenant.id.to_string(), "{:?}", live.labels());
    ensure!(label("pod-security.kubernetes.io/enforce") == "restricted", "{:?}", live.labels());

    let before = versions(&cluster, &tenant).await?;
    let kinds = ["LimitRange plan", "NetworkPolicy default-deny", "NetworkPolicy openings", "ResourceQuota plan"];
    for title in kinds.into_iter().chain(["Role tenant", "RoleBinding tenant", "ServiceAccount tenant"]) {
        ensure!(before.contains_key(title), "{title} is missing: {before:?}");
    }
    ensure!(namespace.ensure(&tenant).await? == made, "the second run reports something else");
    let after = versions(&cluster, &tenant).await?;
    ensure!(after == before, "the second run wrote: {before:?} became {after:?}");
    Ok(namespace.remove(&tenant).await?)
}

async fn its_limits_are_enforced(world: &World) -> Result<()> {
    let mut tenant = fresh_tenant(world, "limits")?;
    (tenant.quotas.max_pods, tenant.quotas.cpu_millis, tenant.quotas.max_objects) = (2, 1000, 3);
    let namespace = Namespace::from_env(&world.env)?;
    namespace.ensure(&tenant).await?;
    let cluster = world.cluster().await?;
    let quotas: Api<ResourceQuota> = inside(&cluster, &tenant);
    let begun = Instant::now();
    // One ConfigMap is the cluster's own certificate authority, which a controller adds when it gets to it: counted, it
    // says as well that the quota's controller has seen the quota.
    loop {
        let used = quotas.get("plan").await?.status.and_then(|status| status.used).unwrap_or_default();
        if used.get("configmaps").is_some_and(|count| count.0 == "1") {
            break;
        }
        ensure!(begun.elapsed() < PATIENCE, "nobody counts what the quota bounds: {used:?}");
        sleep(Duration::from_millis(100)).await;
    }
    let pods: Api<Pod> = inside(&cluster, &tenant);
    forbidden(&pods, &pod("unrestricted", &json!({}), "10m"), "violates PodSecurity \"restricted").await?;
    forbidden(&pods, &pod("greedy", &restricted(), "1100m"), "maximum cpu usage").await?;
    create(&pods, &pod("half", &restricted(), "600m")).await?;
    forbidden(&pods, &pod("rest", &restricted(), "600m"), "exceeded quota: plan").await?;
    create(&pods, &pod("small", &restricted(), "10m")).await?;
    forbidden(&pods, &pod("third", &restricted(), "10m"), "exceeded quota: plan").await?;
    let maps: Api<ConfigMap> = inside(&cluster, &tenant);
    let map = |name: &str| json!({"metadata": {"name": name}});
    for name in ["one", "two"] {
        create(&maps, &map(name)).await?;
    }
    forbidden(&maps, &map("three"), "exceeded quota: plan").await?;
    Ok(namespace.remove(&tenant).await?)
}

async fn is_repaired(world: &World) -> Result<()> {
    let (tenant, cluster) = (fresh_tenant(world, "namespace")?, world.cluster().await?);
    let namespace = Namespace::from_env(&world.env)?;
    namespace.ensure(&tenant).await?;
    let merge = PatchParams::default();
    let open = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}});
    Api::<core::Namespace>::all(cluster.clone()).patch(&tenant.namespace(), &merge, &Patch::Merge(open)).await?;
    let more = json!({"spec": {"hard": {"pods": "5000"}}});
    inside::<ResourceQuota>(&cluster, &tenant).patch("plan", &merge, &Patch::Merge(more)).await?;
    inside::<NetworkPolicy>(&cluster, &tenant).delete("default-deny", &DeleteParams::default()).await?;
    let bindings: Api<RoleBinding> = inside(&cluster, &tenant);
    bindings.delete("tenant", &DeleteParams::default()).await?;
    let admin = json!({
        "metadata": {"name": "tenant"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
    });
    create(&bindings, &admin).await?;

    let Inspection::Drifted(drift) = namespace.inspect(&tenant).await? else { anyhow::bail!("the drift was not seen") };
    for part in
        ["pod-security.kubernetes.io/enforce", "ResourceQuota plan", "NetworkPolicy default-deny", "RoleBinding tenant"]
    {
        ensure!(drift.iter().any(|text| text.contains(part)), "{part} is not named: {drift:?}");
    }
    namespace.ensure(&tenant).await?;
    ensure!(namespace.inspect(&tenant).await? == Inspection::Present);
    ensure!(bindings.get("tenant").await?.role_ref.kind == "Role", "the account is still an administrator");
    Ok(namespace.remove(&tenant).await?)
}

async fn of_another_is_left_alone(world: &World) -> Result<()> {
    let (tenant, other) = (fresh_tenant(world, "namespace")?, fresh_tenant(world, "namespace")?);
    let namespaces = Api::<core::Namespace>::all(world.cluster().await?);
    let namespace = Namespace::from_env(&world.env)?;
    let name = tenant.namespace();
    for labels in [json!({}), json!({OWNER_TAG: other.id})] {
        create(&namespaces, &json!({"metadata": {"name": name, "labels": labels}})).await?;
        let version = namespaces.get(&name).await?.resource_version();
        ensure!(matches!(namespace.inspect(&tenant).await?, Inspection::Foreign(_)));
        let refused = namespace.ensure(&tenant).await;
        ensure!(matches!(refused, Err(StepError::Foreign { kind: "namespace", .. })), "{refused:?}");
        namespace.remove(&tenant).await?;
        let live = namespaces.get(&name).await.context("another's namespace was deleted")?;
        ensure!(live.resource_version() == version, "another's namespace was touched");
        namespaces.delete(&name, &DeleteParams::default()).await?;
        let begun = Instant::now();
        while namespaces.get_opt(&name).await?.is_some() {
            ensure!(begun.elapsed() < PATIENCE, "{name} does not go");
            sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}

async fn is_removed(world: &World) -> Result<()> {
    let (tenant, other) = (fresh_tenant(world, "namespace")?, fresh_tenant(world, "namespace")?);
    let cluster = world.cluster().await?;
    let namespace = Namespace::from_env(&world.env)?;
    namespace.ensure(&tenant).await?;
    namespace.ensure(&other).await?;
    create(&inside::<ConfigMap>(&cluster, &tenant), &json!({"metadata": {"name": "theirs"}})).await?;
    namespace.remove(&tenant).await?;
    ensure!(namespace.inspect(&tenant).await? == Inspection::Absent);
    ensure!(inside::<ConfigMap>(&cluster, &tenant).get_opt("theirs").await?.is_none(), "what it held is still there");
    namespace.remove(&tenant).await.context("removing what is gone")?;
    namespace.ensure(&tenant).await.context("making it anew")?;
    namespace.remove(&tenant).await?;
    ensure!(namespace.inspect(&other).await? == Inspection::Present);
    Ok(namespace.remove(&other).await?)
}

async fn rights(world: &World) -> Result<()> {
    let file = world.env.required("KUBECONFIG")?;
    ensure!(file != world.export("KUBECONFIG")?, "functions log in as the administrator");
    let reviews = Api::<SelfSubjectAccessReview>::all(cluster_as(&file).await?);
    for (verb, group, resource, namespace, allowed) in [
        ("create", "", "namespaces", "", true),
        ("patch", "", "resourcequotas", "tenant-acme", true),
        ("patch", "rbac.authorization.k8s.io", "rolebindings", "tenant-acme", true),
        ("get", "", "secrets", "kube-system", false),
        ("list", "", "secrets", "tenant-acme", false),
        ("create", "", "pods", "tenant-acme", false),
        ("delete", "", "pods", "tenant-acme", true),
        ("delete", "", "resourcequotas", "tenant-acme", true),
        ("delete", "", "limitranges", "tenant-acme", false),
        ("create", "", "pods/exec", "tenant-acme", false),
        ("create", "", "serviceaccounts/token", "tenant-acme", false),
        ("list", "", "nodes", "", false),
        // The deletion scan's right, in a group of its own on EKS.
        ("list", "", "namespaces", "", true),
        ("list", "", "persistentvolumes", "", true),
        ("create", "rbac.authorization.k8s.io", "clusterroles", "", false),
        ("create", "rbac.authorization.k8s.io", "clusterrolebindings", "", false),
        ("escalate", "rbac.authorization.k8s.io", "roles", "tenant-acme", false),
        ("bind", "rbac.authorization.k8s.io", "roles", "tenant-acme", false),
        ("impersonate", "", "users", "", false),
    ] {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let review = json!({"metadata": {}, "spec": {"resourceAttributes": {
            "verb": verb, "group": group, "resource": resource, "subresource": subresource, "namespace": namespace,
        }}});
        let answer = create(&reviews, &review).await?.status.context("no answer")?;
        ensure!(answer.allowed == allowed, "{verb} {resource}/{subresource} in {namespace:?}: {}", answer.allowed);
    }
    // Pods that are no tenant's are out of reach, whatever RBAC cannot say.
    let (name, cluster) = (format!("bystander-{}", uuid::Uuid::new_v4().simple()), world.cluster().await?);
    let theirs: Api<Pod> = Api::namespaced(cluster, "default");
    create(&theirs, &pod(&name, &restricted(), "10m")).await?;
    let ours: Api<Pod> = Api::namespaced(cluster_as(&file).await?, "default");
    let refused = ours.delete(&name, &DeleteParams::default()).await.err().context("another's pod was deleted")?;
    ensure!(refused.to_string().contains("only namespaces named tenant-"), "{refused}");
    theirs.delete(&name, &DeleteParams::default()).await?;
    Ok(())
}

/// Kind and name of each object that Tenantry made inside, and its version, which every write changes.
async fn versions(cluster: &Client, tenant: &Tenant) -> Result<BTreeMap<String, String>> {
    let mut versions = BTreeMap::new();
    collect::<LimitRange>(cluster, tenant, &mut versions).await?;
    collect::<NetworkPolicy>(cluster, tenant, &mut versions).await?;
    collect::<Role>(cluster, tenant, &mut versions).await?;
    collect::<RoleBinding>(cluster, tenant, &mut versions).await?;
    collect::<ServiceAccount>(cluster, tenant, &mut versions).await?;
    // Its version changes with its status, which the controller writes when it likes: ours is the spec.
    for quota in inside::<ResourceQuota>(cluster, tenant).list(&ListParams::default()).await?.items {
        versions.insert(format!("ResourceQuota {}", quota.name_any()), format!("{:?}", quota.spec));
    }
    Ok(versions)
}

async fn collect<K>(cluster: &Client, tenant: &Tenant, versions: &mut BTreeMap<String, String>) -> Result<()>
where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let ours = ListParams::default().labels(&format!("{OWNER_TAG}={}", tenant.id));
    for object in inside::<K>(cluster, tenant).list(&ours).await?.items {
        let title = format!("{} {}", K::kind(&()), object.name_any());
        versions.insert(title, object.resource_version().unwrap_or_default());
    }
    Ok(())
}

pub fn inside<K>(cluster: &Client, tenant: &Tenant) -> Api<K>
where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::namespaced(cluster.clone(), &tenant.namespace())
}

pub async fn create<K>(api: &Api<K>, object: &Value) -> Result<K>
where
    K: Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
{
    Ok(api.create(&PostParams::default(), &serde_json::from_value(object.clone())?).await?)
}

pub async fn forbidden<K>(api: &Api<K>, object: &Value, why: &str) -> Result<()>
where
    K: Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
{
    let refused = create(api, object).await.err().with_context(|| format!("accepted, though {why}: {object}"))?;
    ensure!(refused.to_string().contains(why), "refused, but not because {why}: {refused}");
    Ok(())
}

pub fn restricted() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "runAsNonRoot": true,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

pub fn pod(name: &str, security: &Value, cpu: &str) -> Value {
    let resources = json!({"cpu": cpu, "memory": "16Mi"});
    json!({"metadata": {"name": name}, "spec": {"containers": [{
        "name": "main",
        "image": "registry.invalid/none",
        "securityContext": security,
        "resources": {"requests": resources, "limits": resources},
    }]}})
}
