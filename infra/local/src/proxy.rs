//! Proxies that stand between the functions and the systems they call. Whoever boots a stack may look at every call on its
//! way, and may keep it, its answer, or its sender from going on: faults come from outside, and the functions know nothing of
//! it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_rustls::rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum System {
    /// AWS's services.
    Aws,
    /// The Kubernetes API.
    Kubernetes,
    /// Stripe's API.
    Stripe,
    /// The server of the registry, the pool and the schemas.
    Postgres,
    /// The server of tenants with servers of their own.
    Dedicated,
}

/// A call on its way.
#[derive(Debug, Clone)]
pub struct Call {
    /// What is called.
    pub system: System,
    /// Who calls: the other end of the connection.
    pub peer: SocketAddr,
    /// The function that calls, where it says so.
    pub function: String,
    /// HTTP's method, or `SQL`.
    pub method: String,
    /// HTTP's target with its query, or the statement.
    pub target: String,
    /// HTTP's headers.
    pub headers: HeaderMap,
    /// HTTP's body, or a statement's parameters as they are sent.
    pub body: Bytes,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Pass,
    /// It fails before it has any effect.
    Refuse,
    /// It takes effect, and nobody hears of it.
    LoseAnswer,
    /// It does not go on, and nobody says so.
    Hang,
    /// Its sender is killed before it goes on.
    Kill,
}

/// Who looks at every call.
pub trait Tap: Send + Sync {
    /// Decides over a call.
    fn judge(&self, call: &Call) -> Verdict;
}

/// A listener that goes when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes connections on a free port of loopback, each in a task of its own.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn listen<F, A>(connected: F) -> Result<Self>
    where
        F: Fn(TcpStream, SocketAddr) -> A + Send + Sync + 'static,
        A: Future<Output = Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, peer)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let connection = connected(stream, peer);
                // A connection that breaks is what proxies are for: nobody has to be told.
                connections.spawn(async move { drop(connection.await) });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Proxy { address, task })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A stream of bytes either way.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The server behind an HTTP proxy.
#[derive(Clone)]
pub struct Upstream {
    /// `host:port`.
    pub authority: String,
    /// How it is verified, where it wants TLS.
    pub tls: Option<Arc<ClientConfig>>,
}

impl Upstream {
    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let tcp = TcpStream::connect(&self.authority).await.with_context(|| self.authority.clone())?;
        tcp.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(tcp),
            Some(config) => {
                let host = self.authority.rsplit_once(':').map_or("", |(host, _)| host).to_owned();
                Box::new(TlsConnector::from(config.clone()).connect(ServerName::try_from(host)?, tcp).await?)
            }
        };
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Sends a request on the kept connection, or on a new one, and reads the whole answer.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(crate) async fn send(
        &self,
        kept: &mut Option<SendRequest<Full<Bytes>>>,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Full<Bytes>>> {
        let mut sender = match kept.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        sender.ready().await?;
        let (mut parts, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        parts.headers.remove(TRANSFER_ENCODING);
        *kept = Some(sender);
        Ok(Response::from_parts(parts, Full::new(body)))
    }
}

/// Stands in front of an HTTP server, with TLS where `tls` says how.
///
/// # Errors
/// When no port is free.
pub async fn http(
    system: System,
    upstream: Upstream,
    tls: Option<Arc<ServerConfig>>,
    tap: Arc<dyn Tap>,
) -> Result<Proxy> {
    let acceptor = tls.map(TlsAcceptor::from);
    Proxy::listen(move |tcp, peer| {
        let (upstream, tap, acceptor) = (upstream.clone(), tap.clone(), acceptor.clone());
        async move {
            let own = tcp.local_addr()?;
            let stream: Box<dyn Stream> = match acceptor {
                None => Box::new(tcp),
                Some(acceptor) => Box::new(acceptor.accept(tcp).await?),
            };
            serve(stream, move |request, kept| {
                let (upstream, tap) = (upstream.clone(), tap.clone());
                async move { relay(system, (peer, own), &upstream, &*tap, request, &kept).await }
            })
            .await
        }
    })
    .await
}

/// The connection to the upstream that belongs to a client's.
pub(crate) type Kept = Arc<Mutex<Option<SendRequest<Full<Bytes>>>>>;

/// Answers the requests of one connection. An error ends the connection without an answer.
///
/// # Errors
/// When the connection breaks.
pub(crate) async fn serve<F, A>(stream: Box<dyn Stream>, answer: F) -> Result<()>
where
    F: Fn(Request<Bytes>, Kept) -> A,
    A: Future<Output = Result<Response<Full<Bytes>>>>,
{
    let kept = Kept::default();
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        let (answer, kept) = (&answer, kept.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            answer(Request::from_parts(parts, body), kept).await
        }
    });
    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?;
    Ok(())
}

/// The request as it goes on: a body of known length, and nothing that is between two neighbours.
pub(crate) fn forwarded(request: Request<Bytes>) -> Request<Full<Bytes>> {
    let (mut parts, body) = request.into_parts();
    for header in [EXPECT, TRANSFER_ENCODING] {
        parts.headers.remove(header);
    }
    if !body.is_empty() || parts.headers.contains_key(CONTENT_LENGTH) {
        parts.headers.insert(CONTENT_LENGTH, body.len().into());
    }
    Request::from_parts(parts, Full::new(body))
}

async fn relay(
    system: System,
    (peer, own): (SocketAddr, SocketAddr),
    upstream: &Upstream,
    tap: &dyn Tap,
    mut request: Request<Bytes>,
    kept: &Kept,
) -> Result<Response<Full<Bytes>>> {
    let call = Call {
        system,
        peer,
        method: request.method().to_string(),
        target: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
        function: named(request.headers()),
        headers: request.headers().clone(),
        body: request.body().clone(),
    };
    // AWS's signatures cover the host, which the emulator does not verify, and function URLs are told apart by it.
    if system != System::Aws {
        request.headers_mut().insert(HOST, upstream.authority.parse()?);
    }
    let verdict = tap.judge(&call);
    match verdict {
        Verdict::Refuse => Ok(Response::builder().status(503).body(Full::default())?),
        Verdict::Hang => hang().await,
        Verdict::Kill => {
            end_process(peer, own)?;
            anyhow::bail!("its sender is gone")
        }
        Verdict::Pass | Verdict::LoseAnswer => {
            let answer = upstream.send(&mut *kept.lock().await, forwarded(request)).await?;
            anyhow::ensure!(verdict == Verdict::Pass, "the answer is lost");
            Ok(answer)
        }
    }
}

/// The `app/…` of a user agent, which AWS's SDKs keep apart from the usual one.
fn named(headers: &HeaderMap) -> String {
    let agents = ["x-amz-user-agent", "user-agent"].into_iter().filter_map(|name| headers.get(name)?.to_str().ok());
    let mut words = agents.flat_map(str::split_whitespace);
    words.find_map(|word| word.strip_prefix("app/")).unwrap_or_default().to_owned()
}

/// Never answers: the connection ends when its other end has had enough.
pub(crate) async fn hang() -> Result<Response<Full<Bytes>>> {
    std::future::pending::<Infallible>().await;
    unreachable!("a future that is pending for ever")
}

/// Kills the process at the other end of a connection on this machine: the one whose socket goes from `peer` to `own`.
///
/// # Errors
/// When there is none.
pub fn end_process(peer: SocketAddr, own: SocketAddr) -> Result<()> {
    let inode =
        socket_inode(peer, own).with_context(|| format!("no socket of this machine goes from {peer} to {own}"))?;
    let pid = owner_of(&format!("socket:[{inode}]")).with_context(|| format!("no process has the socket {peer}"))?;
    kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("killing process {pid}"))
}

/// The inode of the socket between two addresses (`man 5 proc_net`: columns 2, 3 and 10). Both count: a port may be the local
/// end of several connections at once, of several processes.
fn socket_inode(from: SocketAddr, to: SocketAddr) -> Option<u64> {
    let written = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => Some(format!("{:08X}:{:04X}", u32::from_le_bytes(v4.ip().octets()), v4.port())),
        SocketAddr::V6(_) => None,
    };
    let (from, to) = (written(from)?, written(to)?);
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = |columns: &Vec<&str>| columns.get(1) == Some(&from.as_str()) && columns.get(2) == Some(&to.as_str());
    lines.find(ours)?.get(9)?.parse().ok()
}

fn owner_of(socket: &str) -> Option<i32> {
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok()).find(|pid| {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors.into_iter().any(|one| std::fs::read_link(one.path()).is_ok_and(|to| to.to_string_lossy() == socket))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_leads_to_its_process() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connected");
        let (from, to) = (client.local_addr().expect("an address"), client.peer_addr().expect("an address"));
        let inode = socket_inode(from, to).expect("a socket of ours");
        assert_eq!(socket_inode(from, "127.0.0.1:1".parse().expect("an address")), None);
        assert_eq!(owner_of(&format!("socket:[{inode}]")), i32::try_from(std::process::id()).ok());
    }
}
