//! Metrics over HTTP, for scrapers: `GET /metrics`, one answer per connection, and nothing else.
//!
//! It is its own few lines rather than a web framework: a request is a line and some headers that are not looked at, and the
//! answer is a text. Everything that a peer controls is bounded: how many there are, how long they take, how much they say.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Scrapers at once; further ones wait to be accepted.
const SCRAPERS_MAX: usize = 8;
/// A request's line and headers.
const REQUEST_BYTES_MAX: usize = 8 << 10;
/// A whole exchange.
const EXCHANGE_DEADLINE: Duration = Duration::from_secs(10);
/// After an accept that failed: for want of file handles, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound socket that does not answer yet.
pub(crate) struct MetricsEndpoint {
    listener: TcpListener,
    metrics: PrometheusHandle,
}

impl MetricsEndpoint {
    pub(crate) async fn bind(listen: SocketAddr, metrics: PrometheusHandle) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(listen).await?, metrics })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    pub(crate) async fn run(self, stopping: CancellationToken) {
        let places = Arc::new(Semaphore::new(SCRAPERS_MAX));
        loop {
            let accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (self.listener.accept().await, place)
            };
            let (accepted, place) = tokio::select! {
                accepted = accepted => accepted,
                () = stopping.cancelled() => return,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let metrics = self.metrics.clone();
            tokio::spawn(async move {
                let _place = place;
                // Whoever is gone before the answer does not miss it.
                let _ = tokio::time::timeout(EXCHANGE_DEADLINE, exchange(stream, &metrics)).await;
            });
        }
    }
}

async fn exchange(mut stream: TcpStream, metrics: &PrometheusHandle) -> io::Result<()> {
    let request = read_request(&mut stream).await?;
    let answer = Answer::of(&request);
    stream.write_all(&answer.bytes(|| metrics.render())).await?;
    stream.shutdown().await
}

/// Everything up to the empty line behind the headers, or as much as there may be.
async fn read_request(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut request = Vec::with_capacity(1 << 10);
    while !request.windows(4).any(|four| four == b"\r\n\r\n") && request.len() < REQUEST_BYTES_MAX {
        if stream.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    Ok(request)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Metrics { body: bool },
    NotFound,
    NotAllowed,
    BadRequest,
}

impl Answer {
    fn of(request: &[u8]) -> Self {
        let whole = request.windows(4).any(|four| four == b"\r\n\r\n");
        let line =
            request.split(|byte| *byte == b'\r').next().and_then(|line| std::str::from_utf8(line).ok());
        let words: Vec<&str> = line.unwrap_or_default().split(' ').collect();
        let [method, target, version] = words[..] else { return Self::BadRequest };
        if !whole || !version.starts_with("HTTP/1.") {
            return Self::BadRequest;
        }
        let path = target.split('?').next().unwrap_or_default();
        match (method, path) {
            ("GET", "/metrics") => Self::Metrics { body: true },
            ("HEAD", "/metrics") => Self::Metrics { body: false },
            (_, "/metrics") => Self::NotAllowed,
            _ => Self::NotFound,
        }
    }

    fn bytes(self, render: impl FnOnce() -> String) -> Vec<u8> {
        let (status, kind, text) = match self {
            Self::Metrics { .. } => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", render()),
            Self::NotFound => {
                ("404 Not Found", "text/plain", "there is /metrics here, and nothing else\n".to_owned())
            }
            Self::NotAllowed => ("405 Method Not Allowed", "text/plain", "only GET and HEAD\n".to_owned()),
            Self::BadRequest => {
                ("400 Bad Request", "text/plain", "this is no request of HTTP/1.1\n".to_owned())
            }
        };
        let allow = if self == Self::NotAllowed { "allow: GET, HEAD\r\n" } else { "" };
        let length = text.len();
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n{allow}connection: close\r\n\r\n"
        );
        let body = if self == (Self::Metrics { body: false }) { String::new() } else { text };
        [head.into_bytes(), body.into_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_metrics_are_answered_for() {
        for (request, expected) in [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Answer::Metrics { body: true }),
            ("GET /metrics?x=1 HTTP/1.0\r\n\r\n", Answer::Metrics { body: true }),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", Answer::Metrics { body: false }),
            ("POST /metrics HTTP/1.1\r\n\r\n", Answer::NotAllowed),
            ("GET / HTTP/1.1\r\n\r\n", Answer::NotFound),
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n", Answer::BadRequest),
            ("GET /metrics HTTP/2\r\n\r\n", Answer::BadRequest),
            ("\u{16}\u{3}\u{1} is TLS\r\n\r\n", Answer::BadRequest),
            ("", Answer::BadRequest),
        ] {
            assert_eq!(Answer::of(request.as_bytes()), expected, "{request:?}");
        }
    }

    async fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(request).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered, and closed");
        answer
    }

    #[tokio::test]
    async fn a_scraper_gets_the_text_and_its_length() {
        let metrics = crate::telemetry::recorder();
        metrics::counter!("tidemill_requests_total").increment(1);
        let endpoint =
            MetricsEndpoint::bind(SocketAddr::from(([127, 0, 0, 1], 0)), metrics).await.expect("bound");
        let address = endpoint.local_addr().expect("known");
        let stopping = CancellationToken::new();
        let running = tokio::spawn(endpoint.run(stopping.clone()));
        let answer = ask(address, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert!(body.contains("tidemill_requests_total"), "{body}");
        let head_only = ask(address, b"HEAD /metrics HTTP/1.1\r\n\r\n").await;
        assert!(head_only.ends_with("\r\n\r\n"), "{head_only}");
        assert!(ask(address, &vec![b'x'; REQUEST_BYTES_MAX]).await.starts_with("HTTP/1.1 400"));
        // More than there are places: those that say nothing hold up nobody for longer than the deadline, and the others
        // are answered as places come free.
        let idle: Vec<_> =
            futures::future::join_all((0..SCRAPERS_MAX - 1).map(|_| TcpStream::connect(address))).await;
        assert!(ask(address, b"GET / HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404"));
        drop(idle);
        stopping.cancel();
        running.await.expect("it ends");
    }
}
