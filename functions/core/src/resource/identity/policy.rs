//! Who may become a tenant's role, and what the role may do.

use serde_json::{Value, json};

use crate::resource::policy_document::partition;
use crate::tenant::Tenant;

/// Where the tenant's things are, beyond what the tenant itself says.
pub(super) struct Place {
    /// The AWS account's number.
    pub(super) account: String,
    /// The EKS cluster's name.
    pub(super) cluster: String,
    /// The configuration table's name.
    pub(super) config_table: String,
}

/// The trust policy: EKS Pod Identity, for the tenant's own service account in its own namespace of this cluster.
///
/// Pod Identity names them in session tags, which is why TagSession is needed beside AssumeRole. The cluster is compared
/// by name and ARN: a name alone could come back in another region.
pub(super) fn trust(tenant: &Tenant, place: &Place) -> Value {
    let Place { account, cluster, .. } = place;
    let (partition, region) = (partition(&tenant.region), &tenant.region);
    json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Sid": "PodsOfThisTenant",
            "Effect": "Allow",
            "Principal": {"Service": "pods.eks.amazonaws.com"},
            "Action": ["sts:AssumeRole", "sts:TagSession"],
            "Condition": {"StringEquals": {
                "aws:SourceAccount": account,
                "aws:RequestTag/eks-cluster-arn": format!("arn:{partition}:eks:{region}:{account}:cluster/{cluster}"),
                "aws:RequestTag/eks-cluster-name": cluster,
                "aws:RequestTag/kubernetes-namespace": tenant.namespace(),
                "aws:RequestTag/kubernetes-service-account": tenant.service_account(),
            }},
        }],
    })
}

/// The inline policy: the tenant's own bucket, configuration items and queue, and nothing else.
///
/// The items are for reading: among them are the plan's rate limits, which a tenant's pods must not be able to lift.
/// What a tenant may change is changed by the product on its behalf. `Null` refuses a call that names no key at all, which
/// `ForAllValues` would let pass.
pub(super) fn permissions(tenant: &Tenant, place: &Place) -> Value {
    let Place { account, config_table, .. } = place;
    let (partition, region) = (partition(&tenant.region), &tenant.region);
    let bucket = format!("arn:{partition}:s3:::{}", tenant.bucket());
    json!({
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "Bucket",
                "Effect": "Allow",
                "Action": ["s3:ListBucket", "s3:ListBucketMultipartUploads"],
                "Resource": bucket,
            },
            {
                "Sid": "Objects",
                "Effect": "Allow",
                "Action": [
                    "s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:ListMultipartUploadParts",
                    "s3:PutObject",
                ],
                "Resource": format!("{bucket}/*"),
            },
            {
                "Sid": "ConfigItems",
                "Effect": "Allow",
                "Action": ["dynamodb:BatchGetItem", "dynamodb:GetItem", "dynamodb:Query"],
                "Resource": format!("arn:{partition}:dynamodb:{region}:{account}:table/{config_table}"),
                "Condition": {
                    "ForAllValues:StringEquals": {"dynamodb:LeadingKeys": [tenant.config_key()]},
                    "Null": {"dynamodb:LeadingKeys": "false"},
                },
            },
            {
                "Sid": "Queue",
                "Effect": "Allow",
                "Action": [
                    "sqs:ChangeMessageVisibility", "sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:GetQueueUrl",
                    "sqs:ReceiveMessage", "sqs:SendMessage",
                ],
                "Resource": format!("arn:{partition}:sqs:{region}:{account}:{}", tenant.queue()),
            },
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::samples::tenant;

    fn place() -> Place {
        Place { account: "111122223333".into(), cluster: "main".into(), config_table: "config".into() }
    }

    #[test]
    fn only_pods_of_the_tenants_own_service_account_may_become_the_role() {
        let trust = trust(&tenant(), &place());
        let statement = &trust["Statement"][0];
        assert_eq!(trust["Statement"].as_array().map(Vec::len), Some(1));
        assert_eq!(statement["Principal"], json!({"Service": "pods.eks.amazonaws.com"}));
        assert_eq!(statement["Action"], json!(["sts:AssumeRole", "sts:TagSession"]));
        assert_eq!(
            statement["Condition"],
            json!({"StringEquals": {
                "aws:SourceAccount": "111122223333",
                "aws:RequestTag/eks-cluster-arn": "arn:aws:eks:us-east-1:111122223333:cluster/main",
                "aws:RequestTag/eks-cluster-name": "main",
                "aws:RequestTag/kubernetes-namespace": "tenant-acme",
                "aws:RequestTag/kubernetes-service-account": "tenant",
            }})
        );
    }

    #[test]
    fn the_role_reaches_the_tenants_own_things_only() {
        let tenant = tenant();
        let policy = permissions(&tenant, &place());
        let statements = policy["Statement"].as_array().expect("statements");
        let resources: Vec<_> = statements.iter().map(|statement| statement["Resource"].clone()).collect();
        let bucket = format!("arn:aws:s3:::tenant-{}-us-east-1", tenant.id);
        assert_eq!(
            resources,
            [
                json!(bucket),
                json!(format!("{bucket}/*")),
                json!("arn:aws:dynamodb:us-east-1:111122223333:table/config"),
                json!(format!("arn:aws:sqs:us-east-1:111122223333:tenant-{}", tenant.id)),
            ]
        );
        let actions: Vec<_> = statements.iter().flat_map(|s| s["Action"].as_array().expect("actions")).collect();
        assert!(actions.iter().all(|action| !action.as_str().unwrap_or("*").contains('*')), "{actions:?}");
        assert_eq!(
            statements[2]["Condition"],
            json!({
                "ForAllValues:StringEquals": {"dynamodb:LeadingKeys": [format!("tenant.{}", tenant.id)]},
                "Null": {"dynamodb:LeadingKeys": "false"},
            })
        );
        // The largest inline policies of a role are 10,240 characters, without white space.
        assert!(policy.to_string().len() < 10_240);
    }
}
