//! DNS: every record of the zone that is at or below the tenant's host name, says that it is the tenant's, or owns its name.

use async_trait::async_trait;
use aws_sdk_route53::Client;
use aws_sdk_route53::types::ResourceRecordSet;

use super::{Finding, Store, Subject};
use crate::aws::classify;
use crate::environment::Environment;
use crate::error::StepError;
use crate::tenant::Tenant;

/// The hosted zone, read whole.
pub(super) struct Records {
    route53: Client,
    zone: String,
    base_domain: String,
}

impl Records {
    pub(super) fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(Records {
            route53: Client::new(&env.aws),
            zone: env.required("HOSTED_ZONE_ID")?,
            base_domain: env.required("BASE_DOMAIN")?,
        })
    }
}

#[async_trait]
impl Store for Records {
    fn name(&self) -> &'static str {
        "DNS"
    }

    async fn look(&self, subject: &Subject) -> Result<Finding, StepError> {
        let host = subject.tenant.host(&self.base_domain);
        let list = || self.route53.list_resource_record_sets().hosted_zone_id(&self.zone);
        let (mut records, mut request) = (0, list());
        loop {
            let page = request.send().await.map_err(|error| classify("listing the zone", &error))?;
            let ours = page.resource_record_sets.iter().filter(|set| is_of(set, &subject.tenant, &host));
            records += ours.count();
            if !page.is_truncated {
                return Ok(Finding::of([("records", super::count(records))]));
            }
            request = list()
                .set_start_record_name(page.next_record_name)
                .set_start_record_type(page.next_record_type)
                .set_start_record_identifier(page.next_record_identifier);
        }
    }
}

fn is_of(set: &ResourceRecordSet, tenant: &Tenant, host: &str) -> bool {
    let name = set.name().trim_end_matches('.').to_ascii_lowercase();
    let mark = tenant.ownership_text();
    let below = name.strip_suffix(host).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    below || set.resource_records().iter().any(|record| record.value().contains(&mark))
}

#[cfg(test)]
mod tests {
    use aws_sdk_route53::types::{ResourceRecord, RrType};

    use super::*;
    use crate::resource::samples;

    fn set(name: &str, value: &str) -> ResourceRecordSet {
        let record = ResourceRecord::builder().value(value).build().expect("a record");
        let set = ResourceRecordSet::builder().name(name).r#type(RrType::Txt).resource_records(record);
        set.build().expect("a set")
    }

    #[test]
    fn a_longer_name_is_another_tenants() {
        let tenant = samples::tenant();
        let of = |name: &str, value: &str| is_of(&set(name, value), &tenant, "acme.app.example.com");
        assert!(of("acme.app.example.com.", "x") && of("_tenantry.ACME.app.example.com.", "x"));
        assert!(of("elsewhere.app.example.com.", &format!("\"{}\"", tenant.ownership_text())));
        assert!(!of("not-acme.app.example.com.", "x") && !of("app.example.com.", "x"));
    }
}
