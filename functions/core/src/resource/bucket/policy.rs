//! Who may use a tenant's bucket.

use serde_json::{Value, json};

use crate::resource::policy_document::partition;
use crate::tenant::Tenant;

/// The bucket policy: the tenant's role may work with the objects, nobody but it and the stack's own roles may do
/// anything, and nothing travels unencrypted. While the tenant is frozen nobody puts an object, whoever signed the URL for it,
/// and nobody but the stack's own roles, which delete for good, removes one.
///
/// The roles are matched through `aws:PrincipalArn`, which is the role's ARN also for its sessions. A role named as a
/// principal would have to exist first, and would turn into an opaque id when it is deleted. (The account's root user can
/// always delete a bucket policy, so a mistake here locks nobody out for good.)
pub(super) fn bucket_policy(tenant: &Tenant, account: &str, stack_roles: &[String]) -> Value {
    let partition = partition(&tenant.region);
    let bucket = format!("arn:{partition}:s3:::{}", tenant.bucket());
    let everything = json!([bucket, format!("{bucket}/*")]);
    let role = format!("arn:{partition}:iam::{account}:role/{}", tenant.role());
    let mut admitted = vec![role.clone()];
    admitted.extend_from_slice(stack_roles);
    let mut policy = json!({
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "TenantRole",
                "Effect": "Allow",
                "Principal": {"AWS": format!("arn:{partition}:iam::{account}:root")},
                "Action": [
                    "s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:ListBucket",
                    "s3:ListBucketMultipartUploads", "s3:ListMultipartUploadParts", "s3:PutObject",
                ],
                "Resource": everything,
                "Condition": {"ArnEquals": {"aws:PrincipalArn": role}},
            },
            {
                "Sid": "NobodyElse",
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:*",
                "Resource": everything,
                "Condition": {"ArnNotEquals": {"aws:PrincipalArn": admitted}},
            },
            {
                "Sid": "NoPlainHttp",
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:*",
                "Resource": everything,
                "Condition": {"Bool": {"aws:SecureTransport": "false"}},
            },
        ],
    });
    if tenant.frozen
        && let Some(statements) = policy["Statement"].as_array_mut()
    {
        statements.extend(frozen(&format!("{bucket}/*"), stack_roles));
    }
    policy
}

/// A multipart upload is begun, filled and completed with the right to put an object.
fn frozen(objects: &str, stack_roles: &[String]) -> [Value; 2] {
    [
        json!({
            "Sid": "FrozenAgainstWrites",
            "Effect": "Deny",
            "Principal": "*",
            "Action": ["s3:PutObject", "s3:PutObjectAcl", "s3:PutObjectTagging", "s3:RestoreObject"],
            "Resource": objects,
        }),
        json!({
            "Sid": "FrozenAgainstRemoval",
            "Effect": "Deny",
            "Principal": "*",
            "Action": [
                "s3:AbortMultipartUpload", "s3:DeleteObject", "s3:DeleteObjectTagging", "s3:DeleteObjectVersion",
            ],
            "Resource": objects,
            "Condition": {"ArnNotEquals": {"aws:PrincipalArn": stack_roles}},
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::samples::tenant;

    #[test]
    fn admits_the_tenants_role_and_the_stacks_roles_only() {
        let tenant = tenant();
        let stack = ["arn:aws:iam::111122223333:role/tenantry-create-bucket".to_owned()];
        let policy = bucket_policy(&tenant, "111122223333", &stack);
        let bucket = format!("arn:aws:s3:::tenant-{}-us-east-1", tenant.id);
        let role = format!("arn:aws:iam::111122223333:role/tenant-{}", tenant.id);
        let everything = json!([bucket, format!("{bucket}/*")]);
        for statement in policy["Statement"].as_array().expect("statements") {
            assert_eq!(statement["Resource"], everything);
        }
        let allow = &policy["Statement"][0];
        assert_eq!(allow["Effect"], "Allow");
        assert_eq!(allow["Principal"], json!({"AWS": "arn:aws:iam::111122223333:root"}));
        assert_eq!(allow["Condition"], json!({"ArnEquals": {"aws:PrincipalArn": role}}));
        let deny = &policy["Statement"][1];
        assert_eq!(
            (&deny["Effect"], &deny["Principal"], &deny["Action"]),
            (&json!("Deny"), &json!("*"), &json!("s3:*"))
        );
        assert_eq!(deny["Condition"], json!({"ArnNotEquals": {"aws:PrincipalArn": [role, stack[0]]}}));
        let plain = &policy["Statement"][2];
        assert_eq!((&plain["Effect"], &plain["Principal"]), (&json!("Deny"), &json!("*")));
        assert_eq!(plain["Condition"], json!({"Bool": {"aws:SecureTransport": "false"}}));
        assert_eq!(policy["Statement"].as_array().map(Vec::len), Some(3));
    }

    #[test]
    fn a_frozen_tenants_objects_are_written_by_nobody_and_removed_by_the_stack_alone() {
        let open = tenant();
        let frozen = Tenant { frozen: true, ..open.clone() };
        let stack = ["arn:aws:iam::111122223333:role/drain-bucket".to_owned()];
        let policy = bucket_policy(&frozen, "111122223333", &stack);
        let statements = policy["Statement"].as_array().expect("statements");
        let before = bucket_policy(&open, "111122223333", &stack);
        assert_eq!(statements[..3], before["Statement"].as_array().expect("statements")[..]);
        let objects = json!(format!("arn:aws:s3:::tenant-{}-us-east-1/*", frozen.id));
        for statement in &statements[3..] {
            assert_eq!((&statement["Effect"], &statement["Principal"]), (&json!("Deny"), &json!("*")));
            assert_eq!(statement["Resource"], objects);
        }
        assert!(statements[3]["Action"].as_array().expect("actions").contains(&json!("s3:PutObject")));
        assert!(statements[3]["Condition"].is_null(), "somebody may write");
        assert!(statements[4]["Action"].as_array().expect("actions").contains(&json!("s3:DeleteObject")));
        assert_eq!(statements[4]["Condition"], json!({"ArnNotEquals": {"aws:PrincipalArn": stack}}));
    }

    #[test]
    fn arns_follow_the_regions_partition() {
        let mut tenant = tenant();
        tenant.region = "cn-north-1".parse().expect("a region");
        let policy = bucket_policy(&tenant, "111122223333", &[]).to_string();
        assert!(policy.contains("arn:aws-cn:s3:::") && !policy.contains("arn:aws:"), "{policy}");
    }
}
