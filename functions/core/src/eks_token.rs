//! The bearer token that EKS takes from an AWS principal, as `aws eks get-token` makes it: a presigned STS
//! GetCallerIdentity request, which the cluster's authenticator sends to learn who asks.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use url::Url;

use crate::error::StepError;

/// How long EKS honours a token after it was signed, whatever the URL's own expiry says (aws-iam-authenticator,
/// `maxTokenLifetime` less one minute as the AWS CLI reports it).
pub const LIFETIME: Duration = Duration::from_secs(14 * 60);
/// The URL's own expiry, which is what the AWS CLI and aws-iam-authenticator sign.
const URL_EXPIRY: Duration = Duration::from_secs(60);
/// Names the cluster in the signature, so that a token for one cluster is refused by the next.
const CLUSTER_HEADER: &str = "x-k8s-aws-id";
const PREFIX: &str = "k8s-aws-v1.";

/// Makes the token with which `credentials` log in to `cluster` (its name) in `region`. No network call.
///
/// # Errors
/// `Unexpected` when the request cannot be signed.
pub fn token(
    cluster: &str,
    region: &str,
    credentials: &Credentials,
    signed_at: SystemTime,
) -> Result<String, StepError> {
    let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    let url = format!("https://sts.{region}.{suffix}/?Action=GetCallerIdentity&Version=2011-06-15");
    let signed = presign(&url, cluster, region, credentials, signed_at)
        .map_err(|error| StepError::Unexpected(format!("signing a token for EKS cluster {cluster}: {error}")))?;
    Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(signed.as_str())))
}

fn presign(
    url: &str,
    cluster: &str,
    region: &str,
    credentials: &Credentials,
    signed_at: SystemTime,
) -> Result<Url, Box<dyn std::error::Error + Send + Sync>> {
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(URL_EXPIRY);
    let identity = credentials.clone().into();
    let params = SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("sts")
        .time(signed_at)
        .settings(settings)
        .build()?
        .into();
    let headers = [(CLUSTER_HEADER, cluster)];
    let request = SignableRequest::new("GET", url, headers.into_iter(), SignableBody::Bytes(&[]))?;
    let (instructions, _signature) = sign(request, &params)?.into_parts();
    let mut signed = Url::parse(url)?;
    signed.query_pairs_mut().extend_pairs(instructions.params());
    Ok(signed)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// 2026-11-24T02:00:00Z
    const SIGNED_AT: u64 = 1_795_485_600;

    fn query(session_token: Option<&str>, region: &str) -> (Url, BTreeMap<String, String>) {
        let credentials = Credentials::new(
            "AKIDEXAMPLE",
            "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            session_token.map(str::to_owned),
            None,
            "test",
        );
        let signed_at = SystemTime::UNIX_EPOCH + Duration::from_secs(SIGNED_AT);
        let token = token("tenants", region, &credentials, signed_at).expect("fixed input is signable");
        let encoded = token.strip_prefix("k8s-aws-v1.").expect("EKS's prefix");
        assert!(!encoded.contains(['=', '+', '/']), "base64url without padding: {encoded}");
        let url = Url::parse(&String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).expect("base64url")).expect("UTF-8"))
            .expect("a URL");
        let pairs = url.query_pairs().into_owned().collect();
        (url, pairs)
    }

    #[test]
    fn it_is_the_token_of_aws_eks_get_token() {
        // Signatures of `aws eks get-token` (awscli 1.45.11, awscli.customizations.eks.get_token) with its clock stopped.
        for (session_token, signature) in [
            (None, "13a7a40313dd7389348b040b583562307f1dae6921c7947431d7d9d1a02e00fb"),
            (
                Some("FwoGZXIvYXdzEJr//session+token=="),
                "3c8a80b6c07cea67ad713b5e1ffb5db899e0bbad06d8d653135d62927304bc0e",
            ),
        ] {
            let (url, pairs) = query(session_token, "eu-central-1");
            assert_eq!(url.as_str().split('?').next(), Some("https://sts.eu-central-1.amazonaws.com/"));
            let mut expected = BTreeMap::from(
                [
                    ("Action", "GetCallerIdentity"),
                    ("Version", "2011-06-15"),
                    ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
                    ("X-Amz-Credential", "AKIDEXAMPLE/20261124/eu-central-1/sts/aws4_request"),
                    ("X-Amz-Date", "20261124T020000Z"),
                    ("X-Amz-Expires", "60"),
                    ("X-Amz-SignedHeaders", "host;x-k8s-aws-id"),
                    ("X-Amz-Signature", signature),
                ]
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
            );
            expected.extend(session_token.map(|token| ("X-Amz-Security-Token".to_owned(), token.to_owned())));
            assert_eq!(pairs, expected);
        }
    }

    #[test]
    fn china_has_hosts_of_its_own() {
        assert_eq!(query(None, "cn-north-1").0.host_str(), Some("sts.cn-north-1.amazonaws.com.cn"));
    }
}
