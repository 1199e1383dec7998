//! `--churn`: whether the relay keeps anything of sockets that have come and gone.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;

use super::Stage;
use crate::cli::bench::crowd::token_of;
use crate::cli::bench::relay::{Relay, Storage};
use crate::cli::bench::report::float;
use crate::cli::bench::subscriber::{Subscriber, System, Wish};

/// Sockets at once.
const AT_ONCE: usize = 64;

/// What the first sockets make the relay allocate once is not what it keeps of each.
const WARM_UP: u64 = 2_000;

/// How long the relay may take to give back what the last ones had.
const SETTLE: Duration = Duration::from_secs(20);

/// Memory that allocators may keep, and descriptors of the admin server's clients.
const SLACK_BYTES: u64 = 4 << 20;

/// What sockets left.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Churn {
    /// Sockets that connected, joined and closed.
    pub connections: u64,
    /// The relay's memory before, in bytes.
    pub rss_before: u64,
    /// The relay's memory afterwards, in bytes.
    pub rss_after: u64,
    /// Its open descriptors before.
    pub descriptors_before: u64,
    /// Its open descriptors afterwards.
    pub descriptors_after: u64,
}

impl Churn {
    /// Whether all is as before, but for what an allocator may keep.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.descriptors_after <= self.descriptors_before
            && self.rss_after <= self.rss_before + SLACK_BYTES
    }

    pub(super) fn table(&self) -> String {
        format!(
            "{} sockets came and went: RSS {:.1} MiB before, {:.1} MiB after; descriptors {} before, {} after\n",
            self.connections,
            float(self.rss_before) / 1_048_576.0,
            float(self.rss_after) / 1_048_576.0,
            self.descriptors_before,
            self.descriptors_after
        )
    }
}

/// Has so many sockets connect, join and close.
///
/// # Errors
/// Where one of them is not served.
pub async fn run(stage: &mut Stage<'_>, connections: u64) -> anyhow::Result<Churn> {
    let log = stage.logs.first().copied().unwrap_or(Storage::Disk);
    let most = AT_ONCE as u64 * 16;
    let relay = Relay::rowcast(stage.database, log, stage.jwt_secret, most).await?;
    stage.progress.step("warming up");
    come_and_go(stage, &relay, WARM_UP).await?;
    // What the relay gives back late is not to be taken for what was there before.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (rss_before, descriptors_before) = (relay.child.rss_bytes()?, relay.child.descriptors()?);
    stage.progress.step("coming and going");
    come_and_go(stage, &relay, connections).await?;
    let deadline = Instant::now() + SETTLE;
    loop {
        let found = Churn {
            connections,
            rss_before,
            rss_after: relay.child.rss_bytes()?,
            descriptors_before,
            descriptors_after: relay.child.descriptors()?,
        };
        if found.is_clean() || Instant::now() > deadline {
            relay.child.stop().await;
            return Ok(found);
        }
        // The kernel tells nobody that a process has given something back.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn come_and_go(stage: &mut Stage<'_>, relay: &Relay, count: u64) -> anyhow::Result<()> {
    let address = relay.address()?;
    let secret = stage.jwt_secret;
    let mut gone = 0_u64;
    let visits = stream::iter(0..count).map(|number| async move {
        let token = token_of(number % 1_000, secret)?;
        let visitor =
            Subscriber::connect(System::Rowcast, address, &token, &Wish::default()).await?;
        visitor.close().await;
        anyhow::Ok(())
    });
    let mut visits = visits.buffer_unordered(AT_ONCE);
    while visits.try_next().await?.is_some() {
        gone += 1;
        stage.progress.update(|| format!("{gone} of {count}"));
    }
    Ok(())
}
