//! A proxy in front of a PostgreSQL server, which reads the protocol (version 3) as far as it has to: which statement is run
//! with which parameters, and where its answer ends. TLS ends at the proxy, so that it can read.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use hyper::body::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::proxy::{Call, Proxy, Stream, System, Tap, Verdict, end_process};

/// The code of a client's request for TLS, and of one to cancel what another connection does.
const SSL_REQUEST: i32 = 80_877_103;
const CANCEL_REQUEST: i32 = 80_877_102;
/// A message longer than this is no message.
const LONGEST: usize = 1 << 28;

/// One message: its type, and all of it.
struct Message {
    kind: u8,
    whole: Vec<u8>,
}

impl Message {
    /// What follows the type and the length.
    fn content(&self) -> &[u8] {
        &self.whole[5..]
    }
}

/// What is known of a connection.
#[derive(Default)]
struct Session {
    /// The function, as the start-up message names it.
    function: String,
    /// Statements by the name the client gave them.
    prepared: HashMap<String, String>,
    /// A fault that waits for the end of the transaction whose statement it was for: before that there is no effect.
    at_commit: Option<Verdict>,
    in_transaction: bool,
}

/// Stands in front of a server on loopback.
///
/// # Errors
/// When no port is free.
pub async fn sql(system: System, upstream: u16, tls: Arc<ServerConfig>, tap: Arc<dyn Tap>) -> Result<Proxy> {
    let acceptor = TlsAcceptor::from(tls);
    Proxy::listen(move |tcp, peer| {
        let (tap, acceptor) = (tap.clone(), acceptor.clone());
        async move { relay(system, upstream, tcp, peer, &acceptor, &*tap).await }
    })
    .await
}

async fn relay(
    system: System,
    upstream: u16,
    mut client: TcpStream,
    peer: SocketAddr,
    acceptor: &TlsAcceptor,
    tap: &dyn Tap,
) -> Result<()> {
    let own = client.local_addr()?;
    let mut server = TcpStream::connect(("127.0.0.1", upstream)).await?;
    server.set_nodelay(true)?;
    let (mut code, mut start) = start_up(&mut client).await?;
    let mut client: Box<dyn Stream> = if code == SSL_REQUEST {
        client.write_all(b"S").await?;
        let mut client = acceptor.accept(client).await?;
        (code, start) = start_up(&mut client).await?;
        Box::new(client)
    } else {
        Box::new(client)
    };
    server.write_all(&start).await?;
    if code == CANCEL_REQUEST {
        return Ok(());
    }
    let mut session = Session { function: application(&start), ..Session::default() };
    // Logging in goes back and forth until the server is ready for the first statement.
    loop {
        let message = read(&mut server).await?;
        client.write_all(&message.whole).await?;
        let asks = message.kind == b'R' && !matches!(message.content().get(..4), Some([0, 0, 0, 0 | 12]));
        client.flush().await?;
        if asks {
            let answer = read(&mut client).await?;
            server.write_all(&answer.whole).await?;
        }
        if message.kind == b'Z' {
            break;
        }
        if message.kind == b'E' {
            bail!("the server refused the login");
        }
    }
    loop {
        // All that the client sends until it waits for an answer.
        let (mut batch, mut verdict) = (Vec::new(), Verdict::Pass);
        loop {
            let message = read(&mut client).await?;
            verdict = worse(verdict, session.judge(system, peer, &message, tap));
            let waits = matches!(message.kind, b'Q' | b'S' | b'H');
            let ends = message.kind == b'X';
            batch.extend_from_slice(&message.whole);
            if ends {
                server.write_all(&batch).await?;
                return Ok(());
            }
            if waits {
                break;
            }
        }
        match verdict {
            Verdict::Refuse => bail!("refused"),
            Verdict::Hang => std::future::pending::<()>().await,
            Verdict::Kill => return end_process(peer, own),
            Verdict::Pass | Verdict::LoseAnswer => {}
        }
        server.write_all(&batch).await?;
        let mut answer = Vec::new();
        loop {
            let message = read(&mut server).await?;
            answer.extend_from_slice(&message.whole);
            if message.kind == b'Z' {
                session.in_transaction = message.content().first() == Some(&b'T');
                break;
            }
            if verdict == Verdict::Pass && answer.len() > 1 << 16 {
                client.write_all(&answer).await?;
                answer.clear();
            }
        }
        if verdict == Verdict::LoseAnswer {
            bail!("the answer is lost");
        }
        client.write_all(&answer).await?;
        client.flush().await?;
    }
}

fn worse(one: Verdict, other: Verdict) -> Verdict {
    if one == Verdict::Pass { other } else { one }
}

impl Session {
    /// What the tap says to a message that runs something. A fault that needs an effect waits for the commit.
    fn judge(&mut self, system: System, peer: SocketAddr, message: &Message, tap: &dyn Tap) -> Verdict {
        let (statement, parameters) = match message.kind {
            b'P' => {
                let (name, rest) = text(message.content());
                let (statement, _) = text(rest);
                self.prepared.insert(name, statement);
                return Verdict::Pass;
            }
            b'B' => {
                let (_, rest) = text(message.content());
                let (name, parameters) = text(rest);
                let statement = self.prepared.get(&name).cloned().unwrap_or_default();
                (statement, Bytes::copy_from_slice(parameters))
            }
            b'Q' => (text(message.content()).0, Bytes::new()),
            _ => return Verdict::Pass,
        };
        let ends = statement.trim_start().get(..6).is_some_and(|word| word.eq_ignore_ascii_case("COMMIT"));
        if ends && let Some(verdict) = self.at_commit.take() {
            return verdict;
        }
        if statement.trim_start().get(..8).is_some_and(|word| word.eq_ignore_ascii_case("ROLLBACK")) {
            self.at_commit = None;
        }
        let call = Call {
            system,
            peer,
            function: self.function.clone(),
            method: "SQL".to_owned(),
            target: statement,
            headers: hyper::HeaderMap::new(),
            body: parameters,
        };
        match tap.judge(&call) {
            Verdict::LoseAnswer if self.in_transaction => {
                self.at_commit = Some(Verdict::LoseAnswer);
                Verdict::Pass
            }
            verdict => verdict,
        }
    }
}

/// A text that ends in a zero, and what follows it.
fn text(content: &[u8]) -> (String, &[u8]) {
    let end = content.iter().position(|byte| *byte == 0).unwrap_or(content.len());
    (String::from_utf8_lossy(&content[..end]).into_owned(), content.get(end + 1..).unwrap_or_default())
}

/// The first message of a connection has no type: its code, and all of it.
async fn start_up(client: &mut (impl AsyncReadExt + Unpin)) -> Result<(i32, Vec<u8>)> {
    let length = client.read_i32().await?;
    let size =
        usize::try_from(length).ok().filter(|size| (8..LONGEST).contains(size)).context("no start-up message")?;
    let mut whole = length.to_be_bytes().to_vec();
    whole.resize(size, 0);
    client.read_exact(&mut whole[4..]).await?;
    let code = i32::from_be_bytes([whole[4], whole[5], whole[6], whole[7]]);
    Ok((code, whole))
}

/// The `application_name` of a start-up message.
fn application(start: &[u8]) -> String {
    let texts: Vec<_> = start.get(8..).unwrap_or_default().split(|byte| *byte == 0).collect();
    let pair = texts.chunks(2).find(|pair| pair[0] == b"application_name");
    pair.and_then(|pair| pair.get(1)).map(|name| String::from_utf8_lossy(name).into_owned()).unwrap_or_default()
}

async fn read(from: &mut (impl AsyncReadExt + Unpin)) -> Result<Message> {
    let kind = from.read_u8().await?;
    let length = from.read_i32().await?;
    let size = usize::try_from(length).ok().filter(|size| (4..LONGEST).contains(size)).context("no message")?;
    let mut whole = vec![kind];
    whole.extend_from_slice(&length.to_be_bytes());
    whole.resize(size + 1, 0);
    from.read_exact(&mut whole[5..]).await?;
    Ok(Message { kind, whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Everything;

    impl Tap for Everything {
        fn judge(&self, call: &Call) -> Verdict {
            if call.target.contains("tenants") { Verdict::LoseAnswer } else { Verdict::Pass }
        }
    }

    fn query(text: &str) -> Message {
        let mut whole = vec![b'Q', 0, 0, 0, 0];
        whole.extend_from_slice(text.as_bytes());
        whole.push(0);
        Message { kind: b'Q', whole }
    }

    #[test]
    fn an_answer_is_lost_where_the_effect_is() {
        let peer = "127.0.0.1:1".parse().expect("an address");
        let mut session = Session::default();
        let judge =
            |session: &mut Session, text: &str| session.judge(System::Postgres, peer, &query(text), &Everything);
        assert_eq!(judge(&mut session, "UPDATE tenants"), Verdict::LoseAnswer);
        session.in_transaction = true;
        assert_eq!(judge(&mut session, "UPDATE tenants"), Verdict::Pass);
        assert_eq!(judge(&mut session, "COMMIT"), Verdict::LoseAnswer);
        assert_eq!(judge(&mut session, "COMMIT"), Verdict::Pass);
    }
}
