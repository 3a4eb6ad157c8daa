//! A tenant and the name of everything it owns.
//!
//! Names come from the tenant's id and slug alone, never from what an earlier step returned, so that a retry names the
//! same thing and an undo needs no memory.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

/// The tag, label or attribute that marks a thing as made by Tenantry for one tenant. Its value is the tenant's id.
///
/// It is written in the call that creates the thing; what exists without it is foreign.
pub const OWNER_TAG: &str = "tenantry-tenant-id";

/// A tenant's identity for its whole life and beyond: the row that carries it is never deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TenantId(pub Uuid);

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for TenantId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(TenantId).map_err(|_| InvalidName("must be a UUID"))
    }
}

/// The name a tenant is known by: its subdomain, namespace and schema. A lower-case DNS label (RFC 1123) of 3 to 56
/// characters that is not reserved.
///
/// 56, because `tenant-{slug}` must fit a Kubernetes namespace (63) and `tenant_{slug}` a PostgreSQL identifier (63 bytes).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Slug(String);

/// Why a text is not a valid name. The rule is phrased to follow the field's name: "slug must be …".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(pub &'static str);

/// Names that a tenant may not take: the product's own hosts, what mail and web clients look up by themselves, and words
/// that would let a tenant pass for the operator.
const RESERVED_SLUGS: &[&str] = &[
    "abuse",
    "account",
    "accounts",
    "admin",
    "administrator",
    "api",
    "app",
    "assets",
    "auth",
    "autoconfig",
    "autodiscover",
    "beta",
    "billing",
    "blog",
    "cdn",
    "console",
    "dashboard",
    "dev",
    "dns",
    "docs",
    "download",
    "email",
    "ftp",
    "git",
    "help",
    "hostmaster",
    "imap",
    "internal",
    "kube-system",
    "localhost",
    "login",
    "mail",
    "metrics",
    "monitoring",
    "mta-sts",
    "news",
    "noreply",
    "ns1",
    "ns2",
    "oauth",
    "ops",
    "pool",
    "pop",
    "postgres",
    "postmaster",
    "public",
    "register",
    "root",
    "security",
    "signup",
    "smtp",
    "ssl",
    "sso",
    "staging",
    "static",
    "status",
    "support",
    "system",
    "tenantry",
    "test",
    "vpn",
    "webmail",
    "webmaster",
    "wpad",
    "www",
];

impl Slug {
    /// The longest slug, in characters (see the type for the reason).
    pub const MAX_LEN: usize = 56;
    /// The shortest slug, in characters: one- and two-letter hosts are kept for the operator.
    pub const MIN_LEN: usize = 3;

    /// The slug as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host name of the tenant that has this slug.
    pub fn host(&self, base_domain: &str) -> String {
        format!("{self}.{base_domain}")
    }
}

impl FromStr for Slug {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() < Self::MIN_LEN {
            return Err(InvalidName("must have at least 3 characters"));
        }
        if text.len() > Self::MAX_LEN {
            return Err(InvalidName("must have at most 56 characters"));
        }
        if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            return Err(InvalidName("may hold only lower-case letters a-z, digits and hyphens"));
        }
        if !text.as_bytes()[0].is_ascii_lowercase() {
            return Err(InvalidName("must begin with a letter"));
        }
        if text.ends_with('-') {
            return Err(InvalidName("must not end with a hyphen"));
        }
        if text.contains("--") {
            return Err(InvalidName("must not hold two hyphens in a row (those name internationalized domains)"));
        }
        if RESERVED_SLUGS.contains(&text) {
            return Err(InvalidName("is a reserved word"));
        }
        Ok(Slug(text.to_owned()))
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An AWS region, such as `eu-central-1`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Region(String);

impl Region {
    /// The region as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Region {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // area-direction-number, as every commercial, China and GovCloud region is named; at most the 32 characters of
        // the registry's column.
        let mut parts = text.rsplitn(2, '-');
        let number = parts.next().unwrap_or_default();
        let place = parts.next().unwrap_or_default();
        let place_is_words = place.contains('-')
            && place.split('-').all(|word| word.len() >= 2 && word.bytes().all(|b| b.is_ascii_lowercase()));
        let number_is_small = (1..=2).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
        if text.len() <= 32 && place_is_words && number_is_small {
            Ok(Region(text.to_owned()))
        } else {
            Err(InvalidName("must be the name of an AWS region, such as us-east-1"))
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Gives an enum the text form that the registry, the events and the requests share.
macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal),+ $(,)? } or $rule:literal) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[$doc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every value, in order.
            pub const ALL: &[$name] = &[$($name::$variant),+];

            /// The text form.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text { $($text => Ok($name::$variant),)+ _ => Err(InvalidName($rule)) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use named;

named! {
    /// What the customer pays for; its quotas are rows of `plan_quotas`.
    Plan {
        /// The entry plan.
        Starter = "starter",
        /// The middle plan.
        Growth = "growth",
        /// The largest plan.
        Enterprise = "enterprise",
    } or "must be one of starter, growth, enterprise"
}

named! {
    /// Where a tenant's rows live, from the most shared to the most separate.
    Isolation {
        /// Rows of the pool's tables, divided by row-level security.
        Shared = "shared",
        /// A schema and a login role of its own on a shared server.
        Schema = "schema",
        /// A database server of its own.
        Database = "database",
    } or "must be one of shared, schema, database"
}

named! {
    /// Where a tenant is in its life. The registry refuses every move but the ones the product allows.
    Status {
        /// Registered, holding no resources (or only what a failed attempt could not undo).
        Pending = "pending",
        /// One execution is making its resources.
        Provisioning = "provisioning",
        /// In service.
        Active = "active",
        /// Everything is kept, nothing is served.
        Suspended = "suspended",
        /// Gone; the row is the tombstone.
        Deprovisioned = "deprovisioned",
    } or "must be one of pending, provisioning, active, suspended, deprovisioned"
}

/// The statuses in which everything that a tenant owns is there.
pub const IN_SERVICE: &[Status] = &[Status::Active, Status::Suspended];

named! {
    /// Why a tenant leaves: what its hold, its events and its certificate say, in place of free text.
    LeaveReason {
        /// Its owner asked for it.
        CustomerRequest = "customer_request",
        /// Its owner cancelled the subscription.
        SubscriptionCancelled = "subscription_cancelled",
        /// The contract came to its end.
        ContractEnded = "contract_ended",
        /// A law on data protection gives somebody the right to it.
        DataProtectionLaw = "data_protection_law",
        /// The account exists twice.
        DuplicateAccount = "duplicate_account",
    } or "must be one of customer_request, subscription_cancelled, contract_ended, data_protection_law, duplicate_account"
}

named! {
    /// Why a tenant is suspended. It may be so for several reasons at once; it is in service when none is left.
    Reason {
        /// The bill was not paid. Paying it lifts this reason, and no other.
        PaymentFailure = "payment_failure",
        /// The tenant broke the product's rules.
        PolicyViolation = "policy_violation",
        /// The tenant is leaving.
        Offboarding = "offboarding",
        /// An operator wants it.
        Admin = "admin",
    } or "must be one of payment_failure, policy_violation, offboarding, admin"
}

named! {
    /// What a quota is of.
    Metered {
        /// Calls through the gate in a billing cycle.
        ApiCalls = "api_calls",
        /// Bytes in the tenant's bucket: every version of every object.
        StorageBytes = "storage_bytes",
        /// Users of the tenant.
        Seats = "seats",
    } or "must be one of api_calls, storage_bytes, seats"
}

/// What a plan grants, as the registry's `plan_quotas` row has it.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanQuotas {
    /// Bytes in the tenant's bucket.
    pub storage_bytes: i64,
    /// Calls through the gate in one billing cycle.
    pub api_calls_per_month: i64,
    /// Users of the tenant.
    pub seats: i32,
    /// CPU that the namespace may request, in thousandths of a core.
    pub cpu_millis: i32,
    /// Memory that the namespace may request, in MiB.
    pub memory_mib: i32,
    /// Pods in the namespace.
    pub max_pods: i32,
    /// Objects of every other counted kind (services, config maps, secrets, volume claims) in the namespace, each.
    pub max_objects: i32,
    /// Days after which a replaced or deleted object version is removed from the bucket.
    pub noncurrent_version_days: i32,
    /// Days after which an object moves to infrequent access; `None` keeps it in the standard class.
    pub infrequent_access_days: Option<i32>,
    /// The isolation a tenant of this plan gets when its request names none.
    pub default_isolation: Isolation,
    /// Feature flags by name, each a JSON boolean.
    pub flags: Map<String, Value>,
    /// Rate limits by name, each a JSON number (requests a second unless the name says otherwise).
    pub rate_limits: Map<String, Value>,
    /// Default settings by name, any JSON value.
    pub settings: Map<String, Value>,
}

/// A tenant as every step sees it: read from the registry on each call, never passed between steps. It holds no personal
/// data.
#[derive(Debug, Clone, PartialEq)]
pub struct Tenant {
    /// Never changes, never reused.
    pub id: TenantId,
    /// Its name; given to one tenant only.
    pub slug: Slug,
    /// What it pays for.
    pub plan: Plan,
    /// Where its rows live; fixed at registration.
    pub isolation: Isolation,
    /// Where its resources live; fixed at registration.
    pub region: Region,
    /// Where it is in its life.
    pub status: Status,
    /// Whether it is on its way out, so that nothing of it may be written: it has a hold that is open. A suspension alone
    /// touches nothing.
    pub frozen: bool,
    /// What its plan grants.
    pub quotas: PlanQuotas,
}

impl Tenant {
    /// What its plan grants of a resource, in the resource's own unit.
    pub fn plan_quota(&self, resource: Metered) -> i64 {
        match resource {
            Metered::ApiCalls => self.quotas.api_calls_per_month,
            Metered::StorageBytes => self.quotas.storage_bytes,
            Metered::Seats => self.quotas.seats.into(),
        }
    }

    /// The S3 bucket: at most 58 of the 63 characters that S3 allows.
    pub fn bucket(&self) -> String {
        format!("tenant-{}-{}", self.id, self.region)
    }

    /// The IAM role: 43 of the 64 characters that IAM allows.
    pub fn role(&self) -> String {
        format!("tenant-{}", self.id)
    }

    /// The SQS queue of the tenant's integrations.
    pub fn queue(&self) -> String {
        format!("tenant-{}", self.id)
    }

    /// The queue of messages that the tenant's integrations could not handle.
    pub fn dead_letter_queue(&self) -> String {
        format!("tenant-{}-dead-letters", self.id)
    }

    /// The RDS instance of a tenant with a server of its own. RDS wants no `--` and no `-` at the end, and a UUID has neither.
    pub fn database_instance(&self) -> String {
        format!("tenant-{}", self.id)
    }

    /// The Secrets Manager secret that holds the master login of the tenant's own server.
    pub fn server_secret(&self) -> String {
        format!("tenant/{}/database-server", self.id)
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> String {
        format!("tenant-{}", self.slug)
    }

    /// The service account, inside the namespace, that the tenant's pods run as.
    pub fn service_account(&self) -> &'static str {
        "tenant"
    }

    /// The PostgreSQL schema. `-` becomes `_`, one to one, since a slug has no `_`.
    pub fn schema(&self) -> String {
        format!("tenant_{}", self.slug.as_str().replace('-', "_"))
    }

    /// The PostgreSQL login role of a tenant that has its own schema or database.
    pub fn database_role(&self) -> String {
        self.schema()
    }

    /// The Secrets Manager secret that holds the login role's credentials.
    pub fn database_secret(&self) -> String {
        format!("tenant/{}/database", self.id)
    }

    /// The partition key of the tenant's items in the configuration table.
    pub fn config_key(&self) -> String {
        format!("tenant.{}", self.id)
    }

    /// The host name customers use.
    pub fn host(&self, base_domain: &str) -> String {
        self.slug.host(base_domain)
    }

    /// The name of the TXT record that says whose the host is. A CNAME tolerates no other record of its own name.
    pub fn ownership_record(&self, base_domain: &str) -> String {
        format!("_tenantry.{}.{base_domain}", self.slug)
    }

    /// The text of the ownership record, without the quotes that DNS puts around it.
    pub fn ownership_text(&self) -> String {
        format!("{OWNER_TAG}={}", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slug_rules_are_each_refused_by_name() {
        for (text, rule) in [
            ("ab", "at least 3"),
            (&"a".repeat(57), "at most 56"),
            ("Acme", "lower-case"),
            ("acmé", "lower-case"),
            ("a_b", "lower-case"),
            ("1acme", "begin with a letter"),
            ("-acme", "begin with a letter"),
            ("acme-", "end with a hyphen"),
            ("xn--acme", "two hyphens"),
            ("www", "reserved"),
        ] {
            let error = text.parse::<Slug>().expect_err(text).to_string();
            assert!(error.contains(rule), "{text}: {error}");
        }
        assert!("a".repeat(56).parse::<Slug>().is_ok());
    }

    #[test]
    fn regions_are_recognised_by_form() {
        for good in ["us-east-1", "ap-southeast-4", "us-gov-west-1", "cn-north-1"] {
            assert!(good.parse::<Region>().is_ok(), "{good}");
        }
        for bad in ["", "us-east", "us_east_1", "US-EAST-1", "us-east-1a", "mars-1", "us-east-1; drop"] {
            assert!(bad.parse::<Region>().is_err(), "{bad}");
        }
    }
}
