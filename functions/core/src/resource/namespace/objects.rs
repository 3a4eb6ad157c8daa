//! What a tenant's namespace holds, each object as it is applied.

use kube::api::{ApiResource, DynamicObject};
use serde_json::{Value, json};

use k8s_openapi::api::core::v1::{LimitRange, ResourceQuota, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};

use crate::tenant::{OWNER_TAG, Tenant};

/// The cluster's own things that a tenant's network is opened to.
pub(super) struct Openings {
    /// The namespace of the ingress controller.
    pub(super) ingress_namespace: String,
    /// The TCP port of the tenants' databases.
    pub(super) database_port: u16,
}

/// An object inside the namespace, with what the API calls its kind.
pub(super) struct Inner {
    pub(super) resource: ApiResource,
    pub(super) object: DynamicObject,
}

impl Inner {
    fn new<K: kube::Resource<DynamicType = ()>>(tenant: &Tenant, name: &str, content: Value) -> Self {
        let resource = ApiResource::erase::<K>(&());
        let mut object = DynamicObject::new(name, &resource).within(&tenant.namespace()).data(content);
        object.metadata.labels = Some(ownership(tenant).map(|(key, value)| (key.to_owned(), value)).into());
        Inner { resource, object }
    }

    pub(super) fn name(&self) -> &str {
        self.object.metadata.name.as_deref().unwrap_or_default()
    }

    /// Kind and name, as messages have them.
    pub(super) fn title(&self) -> String {
        format!("{} {}", self.resource.kind, self.name())
    }
}

/// The labels that mark the namespace and everything in it.
fn ownership(tenant: &Tenant) -> [(&'static str, String); 2] {
    [(OWNER_TAG, tenant.id.to_string()), ("app.kubernetes.io/managed-by", "tenantry".to_owned())]
}

/// The namespace's labels: whose it is, and the strictest of the Pod Security levels, of the cluster's own version.
pub(super) fn namespace_labels(tenant: &Tenant) -> Vec<(&'static str, String)> {
    let mut labels = Vec::from(ownership(tenant));
    for (key, value) in [
        ("pod-security.kubernetes.io/enforce", "restricted"),
        ("pod-security.kubernetes.io/enforce-version", "latest"),
        ("pod-security.kubernetes.io/audit", "restricted"),
        ("pod-security.kubernetes.io/audit-version", "latest"),
        ("pod-security.kubernetes.io/warn", "restricted"),
        ("pod-security.kubernetes.io/warn-version", "latest"),
    ] {
        labels.push((key, value.to_owned()));
    }
    labels
}

/// What keeps a frozen tenant's pods from being made again by what owns them. It adds up with the plan's own quota, and goes
/// when the tenant comes back.
pub(super) fn no_pods(tenant: &Tenant) -> Inner {
    Inner::new::<ResourceQuota>(tenant, "frozen", json!({ "spec": { "hard": { "pods": "0" } } }))
}

/// Everything inside, in the order it is applied: limits before what they limit, and the role before its binding.
pub(super) fn inside(tenant: &Tenant, openings: &Openings) -> Vec<Inner> {
    let account = tenant.service_account();
    vec![
        Inner::new::<ResourceQuota>(tenant, "plan", resource_quota(tenant)),
        Inner::new::<LimitRange>(tenant, "plan", limit_range(tenant)),
        Inner::new::<NetworkPolicy>(
            tenant,
            "default-deny",
            // No rule of either type is nothing in and nothing out. (An empty list would be written anew by every apply.)
            json!({ "spec": { "podSelector": {}, "policyTypes": ["Ingress", "Egress"] } }),
        ),
        Inner::new::<NetworkPolicy>(tenant, "openings", openings_policy(openings)),
        // No token unless a pod asks for one: most pods never call the Kubernetes API. EKS Pod Identity has its own.
        Inner::new::<ServiceAccount>(tenant, account, json!({ "automountServiceAccountToken": false })),
        // Looking only, and no secrets. The functions must hold what they grant, on the whole cluster: infra/kube/rbac.yaml.
        Inner::new::<Role>(
            tenant,
            account,
            json!({ "rules": [{
                "apiGroups": [""], "resources": ["pods", "services", "configmaps"], "verbs": ["get", "list", "watch"],
            }] }),
        ),
        Inner::new::<RoleBinding>(
            tenant,
            account,
            json!({
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account },
                "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": tenant.namespace() }],
            }),
        ),
    ]
}

fn resource_quota(tenant: &Tenant) -> Value {
    let quotas = &tenant.quotas;
    let (cpu, memory) = (cpu(quotas.cpu_millis), memory(quotas.memory_mib));
    let objects = quotas.max_objects.to_string();
    json!({ "spec": { "hard": {
        "requests.cpu": cpu,
        "requests.memory": memory,
        // What pods may burst to is bounded as well: beyond their requests they take from their neighbours.
        "limits.cpu": cpu,
        "limits.memory": memory,
        "pods": quotas.max_pods.to_string(),
        "services": objects,
        "configmaps": objects,
        "secrets": objects,
        "persistentvolumeclaims": objects,
        // Tenants are reached through the ingress alone.
        "services.nodeports": "0",
        "services.loadbalancers": "0",
    } } })
}

/// What a container gets that asks for nothing, so that the plan's number of such pods fits the plan's quota; at most, all.
fn limit_range(tenant: &Tenant) -> Value {
    let quotas = &tenant.quotas;
    let pods = quotas.max_pods.max(1);
    let share = json!({
        "cpu": cpu((quotas.cpu_millis / pods).max(1)), "memory": memory((quotas.memory_mib / pods).max(1)),
    });
    let all = json!({ "cpu": cpu(quotas.cpu_millis), "memory": memory(quotas.memory_mib) });
    json!({ "spec": { "limits": [{ "type": "Container", "default": share, "defaultRequest": share, "max": all }] } })
}

/// In: the ingress controller. Out: DNS, the databases, and the agent that hands out the pod's AWS credentials. Policies
/// add up, so the product may open more beside these.
fn openings_policy(openings: &Openings) -> Value {
    let dns = json!([{ "protocol": "UDP", "port": 53 }, { "protocol": "TCP", "port": 53 }]);
    json!({ "spec": {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{ "from": [in_namespace(&openings.ingress_namespace)] }],
        "egress": [
            {
                // The cluster's DNS, and the node-local cache where there is one.
                "to": [in_namespace("kube-system"), { "ipBlock": { "cidr": "169.254.20.10/32" } }],
                "ports": dns,
            },
            {
                // Databases are inside the VPC: private addresses (RFC 1918) and EKS' secondary range (RFC 6598).
                "to": [
                    { "ipBlock": { "cidr": "10.0.0.0/8" } },
                    { "ipBlock": { "cidr": "172.16.0.0/12" } },
                    { "ipBlock": { "cidr": "192.168.0.0/16" } },
                    { "ipBlock": { "cidr": "100.64.0.0/10" } },
                ],
                "ports": [{ "protocol": "TCP", "port": openings.database_port }],
            },
            {
                // The EKS Pod Identity agent, by its fixed address.
                "to": [{ "ipBlock": { "cidr": "169.254.170.23/32" } }],
                "ports": [{ "protocol": "TCP", "port": 80 }],
            },
        ],
    } })
}

fn in_namespace(name: &str) -> Value {
    // Set by the API server on every namespace, so nobody can pass for another.
    json!({ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": name } } })
}

fn cpu(millis: i32) -> String {
    format!("{millis}m")
}

fn memory(mib: i32) -> String {
    format!("{mib}Mi")
}
