//! Which IAM actions an AWS call asks for, read from the request as it is on the wire.

use tenantry_local::proxy::Call;
use url::form_urlencoded::parse;

/// Actions by the sub-resource of a bucket, for reading and for writing.
const OF_BUCKETS: &[(&str, &str, &str)] = &[
    ("encryption", "s3:GetEncryptionConfiguration", "s3:PutEncryptionConfiguration"),
    ("lifecycle", "s3:GetLifecycleConfiguration", "s3:PutLifecycleConfiguration"),
    ("notification", "s3:GetBucketNotification", "s3:PutBucketNotification"),
    ("ownershipControls", "s3:GetBucketOwnershipControls", "s3:PutBucketOwnershipControls"),
    ("policy", "s3:GetBucketPolicy", "s3:PutBucketPolicy"),
    ("publicAccessBlock", "s3:GetBucketPublicAccessBlock", "s3:PutBucketPublicAccessBlock"),
    ("tagging", "s3:GetBucketTagging", "s3:PutBucketTagging"),
    ("uploads", "s3:ListBucketMultipartUploads", "?"),
    ("versioning", "s3:GetBucketVersioning", "s3:PutBucketVersioning"),
    ("versions", "s3:ListBucketVersions", "?"),
    ("list-type", "s3:ListBucket", "?"),
];

/// The actions, as a policy names them; `service:?` for a request that is not known.
pub fn actions(call: &Call) -> Vec<String> {
    // Signed in advance, and called by whoever has the URL: the function that signed it is seen to by `calls`.
    if call.target.contains("X-Amz-Signature=") {
        return Vec::new();
    }
    let header = |name: &str| call.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // Credential=<key>/<date>/<region>/<service>/aws4_request
    let service = header("authorization").split("Credential=").nth(1).and_then(|scope| scope.split('/').nth(3));
    let service = match service.unwrap_or("?") {
        "email" => "ses",
        other => other,
    };
    let (path, query) = call.target.split_once('?').unwrap_or((&call.target, ""));
    let queried: Vec<String> = parse(query.as_bytes()).map(|(name, _)| name.into_owned()).collect();
    let has = |name: &str| queried.iter().any(|one| one == name);
    let operation = if let Some((_, operation)) = header("x-amz-target").split_once('.') {
        operation.to_owned()
    } else if let Some((_, action)) = parse(&call.body).find(|(name, _)| name == "Action") {
        action.into_owned()
    } else {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let named = match (service, call.method.as_str(), parts.as_slice()) {
            ("ses", "POST", ["v2", "email", "outbound-emails"]) => "SendEmail",
            ("route53", "GET", [_, "hostedzone", _, "rrset"]) => "ListResourceRecordSets",
            ("route53", "POST", [_, "hostedzone", _, "rrset" | "rrset/"]) => "ChangeResourceRecordSets",
            ("route53", "GET", [_, "hostedzone", _]) => "GetHostedZone",
            ("route53", "GET", [_, "change", _]) => "GetChange",
            ("cloudfront", "POST", [_, "distribution", _, "invalidation"]) => "CreateInvalidation",
            ("cloudfront", "GET", [_, "distribution", _, "invalidation", _]) => "GetInvalidation",
            ("eks", "GET", ["clusters", _]) => "DescribeCluster",
            ("eks", "GET", ["clusters", _, "pod-identity-associations"]) => "ListPodIdentityAssociations",
            ("eks", "POST", ["clusters", _, "pod-identity-associations"]) => "CreatePodIdentityAssociation",
            ("eks", "GET", ["clusters", _, "pod-identity-associations", _]) => "DescribePodIdentityAssociation",
            ("eks", "POST", ["clusters", _, "pod-identity-associations", _]) => "UpdatePodIdentityAssociation",
            ("eks", "DELETE", ["clusters", _, "pod-identity-associations", _]) => "DeletePodIdentityAssociation",
            ("s3", "GET", []) => "ListAllMyBuckets",
            ("s3", method, [_]) => {
                let of = OF_BUCKETS.iter().find(|(name, ..)| has(name));
                match (of, method) {
                    (Some((_, read, _)), "GET") => return vec![(*read).to_owned()],
                    (Some((_, _, write)), "PUT") => return vec![(*write).to_owned()],
                    (None, "PUT") => "CreateBucket",
                    (None, "DELETE") => "DeleteBucket",
                    (None, "HEAD") => "ListBucket",
                    (None, "POST") if has("delete") => {
                        return vec!["s3:DeleteObject".to_owned(), "s3:DeleteObjectVersion".to_owned()];
                    }
                    _ => "?",
                }
            }
            ("s3", "DELETE", _) if has("uploadId") => "AbortMultipartUpload",
            // Of an object: reading it and its head are one action, and so are all the calls that put it there.
            ("s3", "GET" | "HEAD", [_, _, ..]) => "GetObject",
            ("s3", "PUT", [_, _, ..]) => "PutObject",
            ("s3", "POST", [_, _, ..]) if has("uploads") || has("uploadId") => "PutObject",
            _ => "?",
        };
        named.to_owned()
    };
    vec![format!("{service}:{operation}")]
}
