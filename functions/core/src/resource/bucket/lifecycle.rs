//! What S3 itself removes from a tenant's bucket, or moves to cheaper storage, as the plan says.

use aws_sdk_s3::error::BuildError;
use aws_sdk_s3::types::{
    AbortIncompleteMultipartUpload, ExpirationStatus, LifecycleExpiration, LifecycleRule, LifecycleRuleFilter,
    NoncurrentVersionExpiration, Transition, TransitionStorageClass,
};

use crate::tenant::PlanQuotas;

/// Days after which the parts of an upload that was never completed are removed: nobody can read them, everybody pays.
const INCOMPLETE_UPLOAD_DAYS: i32 = 7;

/// The ids of the rules that plans have. Any other rule was added by the tenant or an operator, and stays.
const OURS: &[&str] = &["incomplete-uploads", "infrequent-access", "replaced-versions"];

/// The plan's rules, each for the whole bucket, in the order of their ids.
pub(super) fn rules(quotas: &PlanQuotas) -> Result<Vec<LifecycleRule>, BuildError> {
    let mut rules = vec![
        rule("incomplete-uploads").abort_incomplete_multipart_upload(
            AbortIncompleteMultipartUpload::builder().days_after_initiation(INCOMPLETE_UPLOAD_DAYS).build(),
        ),
        // A delete marker that hides no version any more is removed with the last of them.
        rule("replaced-versions")
            .noncurrent_version_expiration(
                NoncurrentVersionExpiration::builder().noncurrent_days(quotas.noncurrent_version_days).build(),
            )
            .expiration(LifecycleExpiration::builder().expired_object_delete_marker(true).build()),
    ];
    if let Some(days) = quotas.infrequent_access_days {
        rules.insert(
            1,
            rule("infrequent-access").transitions(
                Transition::builder().days(days).storage_class(TransitionStorageClass::StandardIa).build(),
            ),
        );
    }
    rules.into_iter().map(aws_sdk_s3::types::builders::LifecycleRuleBuilder::build).collect()
}

/// What a bucket is to have: the plan's rules, and beside them those of its own that no plan has.
pub(super) fn beside_others(kept: &[LifecycleRule], wanted: Vec<LifecycleRule>) -> Vec<LifecycleRule> {
    let others = kept.iter().filter(|rule| rule.id().is_none_or(|id| !OURS.contains(&id)));
    wanted.into_iter().chain(others.cloned()).collect()
}

fn rule(id: &str) -> aws_sdk_s3::types::builders::LifecycleRuleBuilder {
    LifecycleRule::builder()
        .id(id)
        .status(ExpirationStatus::Enabled)
        .filter(LifecycleRuleFilter::builder().prefix("").build())
}

/// Whether the bucket's rules are the plan's; their order means nothing, nor how S3 prints a filter that takes everything.
pub(super) fn same_rules(kept: &[LifecycleRule], wanted: &[LifecycleRule]) -> bool {
    normal(kept) == normal(wanted)
}

fn normal(rules: &[LifecycleRule]) -> Vec<LifecycleRule> {
    let everything = LifecycleRuleFilter::builder().prefix("").build();
    let mut rules = rules.to_vec();
    for rule in &mut rules {
        if rule.filter.as_ref().is_none_or(|filter| *filter == LifecycleRuleFilter::builder().build()) {
            rule.filter = Some(everything.clone());
        }
    }
    rules.sort_by(|a, b| a.id.cmp(&b.id));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::samples::tenant;

    #[test]
    fn the_plan_decides_the_rules() {
        let mut quotas = tenant().quotas;
        (quotas.noncurrent_version_days, quotas.infrequent_access_days) = (30, Some(90));
        let rules = rules(&quotas).expect("rules");
        let ids: Vec<_> = rules.iter().filter_map(LifecycleRule::id).collect();
        assert_eq!(ids, ["incomplete-uploads", "infrequent-access", "replaced-versions"]);
        let abort = rules[0].abort_incomplete_multipart_upload.as_ref().expect("abort");
        assert_eq!(abort.days_after_initiation, Some(7));
        assert_eq!(rules[1].transitions()[0].days, Some(90));
        let replaced = rules[2].noncurrent_version_expiration.as_ref().expect("expiration");
        assert_eq!(replaced.noncurrent_days, Some(30));
    }

    #[test]
    fn a_plan_without_infrequent_access_keeps_the_standard_class() {
        let rules = rules(&tenant().quotas).expect("rules");
        assert!(rules.iter().all(|rule| rule.transitions().is_empty()));
    }

    #[test]
    fn another_plans_rules_go_and_those_of_no_plan_stay() {
        let (starter, mut growth) = (tenant().quotas, tenant().quotas);
        growth.infrequent_access_days = Some(90);
        let own = rule("archive-logs")
            .transitions(Transition::builder().days(365).storage_class(TransitionStorageClass::DeepArchive).build());
        let mut kept = rules(&growth).expect("rules");
        kept.push(own.build().expect("a rule"));
        let wanted = beside_others(&kept, rules(&starter).expect("rules"));
        let ids: Vec<_> = wanted.iter().filter_map(LifecycleRule::id).collect();
        assert_eq!(ids, ["incomplete-uploads", "replaced-versions", "archive-logs"]);
        assert!(!same_rules(&kept, &wanted));
        assert!(same_rules(&wanted, &beside_others(&wanted, rules(&starter).expect("rules"))));
        assert!(rules(&growth).expect("rules").iter().all(|rule| rule.id().is_some_and(|id| OURS.contains(&id))));
    }

    #[test]
    fn order_and_empty_filters_are_no_difference_but_days_are() {
        let wanted = rules(&tenant().quotas).expect("rules");
        let mut kept = wanted.clone();
        kept.reverse();
        kept[0].filter = Some(LifecycleRuleFilter::builder().build());
        assert!(same_rules(&kept, &wanted));
        kept[0].noncurrent_version_expiration = Some(NoncurrentVersionExpiration::builder().noncurrent_days(1).build());
        assert!(!same_rules(&kept, &wanted));
        assert!(!same_rules(&wanted[..1], &wanted));
    }
}
