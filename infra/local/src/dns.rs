//! An authoritative DNS server for the stack's hosted zone: what the emulator's Route 53 holds, it answers, over UDP and
//! TCP, at once. So a verification asks a real name server, as on AWS.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_route53::types::{ResourceRecordSet, RrType};
use hickory_server::net::runtime::Time;
use hickory_server::proto::op::{Header, HeaderCounts, Metadata, OpCode, ResponseCode};
use hickory_server::proto::rr::{LowerName, Name, RData, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo, Server};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::net::{TcpListener, UdpSocket};

use crate::tools::free_port;

const TCP_TIMEOUT: Duration = Duration::from_secs(5);
const TCP_BUFFER: usize = 64;

/// A running server. Dropping it ends it.
pub struct DnsServer {
    _server: Server<Zone>,
    address: SocketAddr,
}

/// The zone, and where its records are asked for on every query.
struct Zone {
    route53: aws_sdk_route53::Client,
    id: String,
    origin: LowerName,
}

/// What a zone says to a question.
#[derive(Default)]
struct Answer {
    answers: Vec<Record>,
    /// The zone's SOA, where there is nothing to answer.
    soa: Vec<Record>,
    /// Whether the name exists, with records of whatever type.
    exists: bool,
}

impl DnsServer {
    /// Serves a hosted zone on a free port of loopback.
    ///
    /// # Errors
    /// When no port can be had, or the origin is not a domain name.
    pub async fn start(aws: &SdkConfig, zone_id: &str, origin: &str) -> Result<Self> {
        let zone = Zone {
            route53: aws_sdk_route53::Client::new(aws),
            id: zone_id.to_owned(),
            origin: LowerName::from(fully_qualified(origin).with_context(|| origin.to_owned())?),
        };
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let mut server = Server::new(zone);
        server.register_socket(UdpSocket::bind(address).await?);
        server.register_listener(TcpListener::bind(address).await?, TCP_TIMEOUT, TCP_BUFFER);
        Ok(DnsServer { _server: server, address })
    }

    /// Where it listens, as host:port.
    pub fn address(&self) -> String {
        self.address.to_string()
    }
}

#[async_trait]
impl RequestHandler for Zone {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut responder: R) -> ResponseInfo {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        let mut answer = Answer::default();
        match request.request_info() {
            Err(_) => metadata.response_code = ResponseCode::FormErr,
            Ok(_) if request.metadata.op_code != OpCode::Query => metadata.response_code = ResponseCode::NotImp,
            Ok(info) if !self.origin.zone_of(info.query.name()) => metadata.response_code = ResponseCode::Refused,
            Ok(info) => match self.answer(info.query.original().name(), info.query.query_type()).await {
                Ok(found) => {
                    metadata.authoritative = true;
                    if !found.exists {
                        metadata.response_code = ResponseCode::NXDomain;
                    }
                    answer = found;
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the zone could not be read");
                    metadata.response_code = ResponseCode::ServFail;
                }
            },
        }
        let response =
            MessageResponseBuilder::from_message_request(request).build(metadata, &answer.answers, [], &answer.soa, []);
        responder.send_response(response).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "an answer could not be sent");
            let mut failed = metadata;
            failed.response_code = ResponseCode::ServFail;
            ResponseInfo::from(Header { metadata: failed, counts: HeaderCounts::default() })
        })
    }
}

impl Zone {
    async fn answer(&self, name: &Name, record_type: RecordType) -> Result<Answer> {
        let (mut sets, mut exists) = self.records(name).await?;
        if !exists {
            // A wildcard answers for names that do not exist (RFC 4592); ours have one label below the base domain.
            sets = self.records(&name.clone().into_wildcard()).await?.0;
            exists = !sets.is_empty();
        }
        let mut answers = Vec::new();
        for set in &sets {
            let held: RecordType = set.r#type().as_str().parse()?;
            if held == record_type || held == RecordType::CNAME || record_type == RecordType::ANY {
                answers.extend(records_of(set, name)?);
            }
        }
        let mut soa = Vec::new();
        if answers.is_empty() {
            let origin = Name::from(&self.origin);
            let (apex, _) = self.records(&origin).await?;
            for set in apex.iter().filter(|set| *set.r#type() == RrType::Soa) {
                soa.extend(records_of(set, &origin)?);
            }
        }
        Ok(Answer { answers, soa, exists })
    }

    /// The record sets of exactly this name, and whether the name exists: with records, or with names below it.
    async fn records(&self, name: &Name) -> Result<(Vec<ResourceRecordSet>, bool)> {
        let listed = self
            .route53
            .list_resource_record_sets()
            .hosted_zone_id(&self.id)
            .start_record_name(name.to_ascii())
            .send()
            .await?;
        let mut own = Vec::new();
        let mut exists = false;
        // Sorted by name from the last label on: what has the name, then what is below it, then others.
        for set in listed.resource_record_sets {
            let held = fully_qualified(&unescaped(&set.name))?;
            if held == *name {
                own.push(set);
            } else if name.zone_of(&held) {
                exists = true;
            } else {
                break;
            }
        }
        exists |= !own.is_empty();
        Ok((own, exists))
    }
}

fn records_of(set: &ResourceRecordSet, name: &Name) -> Result<Vec<Record>> {
    let ttl = u32::try_from(set.ttl.unwrap_or_default()).unwrap_or_default();
    let record_type: RecordType = set.r#type().as_str().parse()?;
    set.resource_records()
        .iter()
        .map(|value| {
            let data = RData::try_from_str(record_type, value.value()).with_context(|| set.name.clone())?;
            Ok(Record::from_rdata(name.clone(), ttl, data))
        })
        .collect()
}

fn fully_qualified(name: &str) -> Result<Name> {
    let mut name = Name::from_ascii(name)?;
    name.set_fqdn(true);
    Ok(name)
}

/// Route 53 writes `*` and other characters as a backslash and three octal digits; DNS's own form has decimal ones.
fn unescaped(name: &str) -> String {
    name.replace("\\052", "*").replace("\\137", "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_compare_whatever_their_case_and_escapes() {
        let held = fully_qualified(&unescaped("\\052.app.example.com.")).expect("a name");
        assert_eq!(held, fully_qualified("*.APP.example.com").expect("a name"));
    }

    #[test]
    fn every_value_of_a_set_is_a_record() {
        let value =
            |text: &str| aws_sdk_route53::types::ResourceRecord::builder().value(text).build().expect("a value");
        let set = ResourceRecordSet::builder()
            .name("a.app.example.com.")
            .r#type(RrType::Txt)
            .ttl(60)
            .resource_records(value("\"one two\""))
            .resource_records(value("\"three\""))
            .build()
            .expect("a record set");
        let records = records_of(&set, &fully_qualified("a.app.example.com").expect("a name")).expect("records");
        assert_eq!(records.len(), 2);
        assert_eq!(records[0].ttl, 60);
        assert_eq!(records[0].data.to_string(), "one two");
    }
}
