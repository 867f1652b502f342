//! Listens as a customer's server would, prints each request, and answers 200.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    runtime,
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;

use super::report::{self, Report};
use crate::config;

/// Connections that are served at once.
const CONNECTIONS_MAX: usize = 1_024;
/// How long a head, or a TLS handshake, may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests under way may take once a signal has come.
const DRAIN: Duration = Duration::from_secs(5);

/// Arguments of `m2u receive`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8443")]
    listen: SocketAddr,

    /// The server's certificate chain, PEM; with it, HTTPS is spoken
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,

    /// The certificate's key, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,

    /// Demand a client certificate that one of these authorities signed, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    client_ca: Option<PathBuf>,

    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Serves until a signal comes: 0; 1 if it could not begin.
pub fn execute(arguments: Arguments) -> ExitCode {
    let served = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("can't start: {error}"))
        .and_then(|runtime| runtime.block_on(serve(&arguments)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("m2u receive: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(arguments: &Arguments) -> Result<(), String> {
    let tls = acceptor(arguments)?;
    let cannot_wait = |error| format!("can't wait for signals: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot_wait)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot_wait)?;
    let listen = arguments.listen;
    let listener = TcpListener::bind(listen).await;
    let listener = listener.map_err(|error| format!("can't listen on {listen}: {error}"))?;
    let bound = listener.local_addr().map_err(|error| error.to_string())?;
    eprintln!("m2u receive: listening on {bound}");

    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let drain = GracefulShutdown::new();
    loop {
        let (socket, peer) = tokio::select! {
            accepted = accept(&listener, &connections) => accepted,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        };
        let (tls, json, watcher) = (tls.clone(), arguments.json, drain.watcher());
        let permit = Arc::clone(&connections).acquire_owned().await;
        tokio::spawn(async move {
            let _permit = permit;
            let Some(tls) = tls else {
                return converse(socket, peer, None, json, watcher).await;
            };
            match tokio::time::timeout(HEAD_TIMEOUT, tls.accept(socket)).await {
                Ok(Ok(stream)) => {
                    let chain = stream.get_ref().1.peer_certificates();
                    let subject = chain.and_then(|chain| chain.first());
                    let subject = subject.map(|leaf| report::subject(leaf));
                    converse(stream, peer, subject, json, watcher).await;
                }
                Ok(Err(error)) => eprintln!("m2u receive: {peer}: TLS failed: {error}"),
                Err(_) => eprintln!("m2u receive: {peer}: the TLS handshake took too long"),
            }
        });
    }
    drop(listener);
    // What does not end in time ends with the process.
    let _ = tokio::time::timeout(DRAIN, drain.shutdown()).await;
    Ok(())
}

/// The next connection, as soon as there is room for one.
async fn accept(listener: &TcpListener, connections: &Semaphore) -> (TcpStream, SocketAddr) {
    loop {
        // Never closed, so that it can't fail; given back at once, and taken again by the task.
        drop(connections.acquire().await);
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                eprintln!("m2u receive: can't accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Answers the requests of one connection.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    certificate: Option<String>,
    json: bool,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let service = service_fn(|request| answer(request, peer, certificate.clone(), json));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection).await {
        eprintln!("m2u receive: {peer}: {error}");
    }
}

/// Counts the body, prints the request and says how much came.
async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    certificate: Option<String>,
    json: bool,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, mut body) = request.into_parts();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        size += frame?.data_ref().map_or(0, |piece| piece.len() as u64);
    }
    let report = Report::new(peer, &head, certificate, size);
    print(&if json {
        report.to_json()
    } else {
        report.to_string()
    });
    let text = format!("received {size} bytes from {}\n", report.device());
    let mut response = Response::new(Full::new(Bytes::from(text)));
    let kind = hyper::header::HeaderValue::from_static("text/plain; charset=utf-8");
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, kind);
    Ok(response)
}

/// Prints at once, for whoever reads along.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    // A reader that went away is no reason to refuse requests.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// What HTTPS is spoken with; `None` for plain HTTP.
fn acceptor(arguments: &Arguments) -> Result<Option<TlsAcceptor>, String> {
    let (Some(cert), Some(key)) = (&arguments.cert, &arguments.key) else {
        return Ok(None);
    };
    let chain = certificates(cert)?;
    let private = config::read_key(key)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier: Arc<dyn ClientCertVerifier> = match &arguments.client_ca {
        None => Arc::new(NoClientAuth),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(path)? {
                let taken = roots.add(root);
                taken.map_err(|error| format!("{} is no authority: {error}", path.display()))?;
            }
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|error| error.to_string())?
        }
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, private)
        .map_err(|error| {
            format!(
                "{} and {} do not go together: {error}",
                cert.display(),
                key.display()
            )
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// All certificates of a file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unreadable = |error| {
        format!(
            "no certificate can be read from {}: {error}",
            path.display()
        )
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(unreadable)?
        .collect();
    let found = found.map_err(unreadable)?;
    match found.is_empty() {
        true => Err(format!("{} holds no certificate", path.display())),
        false => Ok(found),
    }
}
