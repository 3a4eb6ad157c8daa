//! The gate in front of a service.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::header::HOST;
use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use crate::decision::Verdict;
use crate::gate::Gate;

/// Puts a [`Gate`] in front of a service: `Router::new().layer(GateLayer::new(gate))`.
#[derive(Clone)]
pub struct GateLayer {
    gate: Gate,
}

/// A service behind a gate. Its answers carry the RateLimit headers.
#[derive(Clone)]
pub struct GateService<S> {
    inner: S,
    gate: Gate,
}

impl GateLayer {
    /// A layer that counts every request as one call.
    pub fn new(gate: Gate) -> Self {
        GateLayer { gate }
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = GateService<S>;

    fn layer(&self, inner: S) -> GateService<S> {
        GateService { inner, gate: self.gate.clone() }
    }
}

impl<S, B, R> Service<Request<B>> for GateService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: From<String>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // The one that was polled ready is the one to call.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let gate = self.gate.clone();
        Box::pin(async move {
            let host = host(&request).unwrap_or_default().to_owned();
            match gate.decide_host(&host, 1).await {
                Verdict::Refused(refusal) => Ok(refusal.response()),
                Verdict::Admitted(tenant, budget) => {
                    request.extensions_mut().insert(tenant);
                    let mut response = inner.call(request).await?;
                    if let Some(budget) = budget {
                        budget.write(response.headers_mut());
                    }
                    Ok(response)
                }
            }
        })
    }
}

/// The host that a request is for: HTTP/2's authority, or the Host header.
fn host<B>(request: &Request<B>) -> Option<&str> {
    let header = || request.headers().get(HOST).and_then(|host| host.to_str().ok());
    request.uri().host().or_else(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, header: &str) -> Request<()> {
        Request::builder().uri(uri).header(HOST, header).body(()).expect("a request")
    }

    #[test]
    fn the_host_is_http_2s_authority_or_http_1s_header() {
        // As hyper makes them: HTTP/2 has `:authority` in the URI, HTTP/1 the path alone.
        let second = request("https://acme.app.example.com:8443/orders", "globex.app.example.com");
        assert_eq!(host(&second), Some("acme.app.example.com"));
        assert_eq!(host(&request("/orders", "acme.app.example.com:8080")), Some("acme.app.example.com:8080"));
        assert_eq!(host(&Request::new(())), None);
    }
}
