//! `rowcast health`: what a container's health check runs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use super::{EXIT_USAGE, fail};
use crate::config::{self, Given};

/// Arguments of `rowcast health`.
#[derive(Args)]
pub(super) struct Arguments {
    /// What to ask [default: /readyz at ROWCAST_ADMIN_LISTEN]
    #[arg(long)]
    url: Option<String>,
    /// The configuration file, for the admin address
    #[arg(long, value_name = "FILE")]
    config: Option<std::path::PathBuf>,
}

/// A health check that hangs is worth no more than one that fails.
const PATIENCE: Duration = Duration::from_secs(3);

/// Asks the relay.
pub(super) async fn run(arguments: Arguments) -> ExitCode {
    let url = match arguments.url {
        Some(url) => url,
        None => {
            let loaded = Given::read(Vec::new(), arguments.config.as_deref())
                .and_then(|given| config::load(&given, false));
            match loaded {
                Ok(loaded) => format!("http://{}/readyz", reachable(loaded.config.admin_listen)),
                Err(error) => return fail(EXIT_USAGE, format_args!("{error}")),
            }
        }
    };
    match ask(&url).await {
        Ok((200, _)) => ExitCode::SUCCESS,
        Ok((status, body)) => fail(1, format_args!("{url} says {status}: {}", body.trim())),
        Err(error) => fail(1, format_args!("{url} does not answer: {error}")),
    }
}

/// Where a server that listens on `address` can be reached from its own machine.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// The status and the beginning of the body that a GET of an `http://` URL is answered with.
///
/// # Errors
/// Where there is no answer within three seconds.
pub(super) async fn ask(url: &str) -> anyhow::Result<(u16, String)> {
    let url = url.parse()?;
    let answer = async {
        let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
        let response = client.get(url).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), 64 * 1024)
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::time::timeout(PATIENCE, answer).await?
}
