//! What was handed out and not seen yet: by those who are to read it, or by the log itself.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::Live;
use crate::policy::reader::Mark;
use crate::policy::watch::CatalogWatch;
use crate::router::Resync;
use crate::subscription::Wanted;

/// How long a new history waits to be told what lies before it, and how often it asks.
const PATIENCE: Duration = Duration::from_secs(5);
const BETWEEN: Duration = Duration::from_millis(100);

/// What every snapshot shows from now on; `None` where PostgreSQL, to which the source has just
/// connected, does not say so.
pub(super) async fn first_mark(watch: CatalogWatch) -> Option<Arc<Mark>> {
    let ask = async {
        loop {
            if let Some(mark) = watch.mark().await {
                return mark;
            }
            tokio::time::sleep(BETWEEN).await;
        }
    };
    tokio::time::timeout(PATIENCE, ask).await.ok()
}

pub(super) async fn looked(
    looking: &mut Option<BoxFuture<'static, Option<Arc<Mark>>>>,
) -> Option<Arc<Mark>> {
    match looking {
        Some(looking) => looking.await,
        None => pending().await,
    }
}

impl Live {
    /// Looks what can be read, where somebody waits for it.
    pub(super) fn look_again(&mut self, away: bool) {
        if let Some(pause) = self.fanout.unseen.look_in(away) {
            let watch = self.fanout.watch.clone();
            self.looking = Some(Box::pin(async move {
                tokio::time::sleep(pause).await;
                watch.mark().await
            }));
        }
    }

    pub(super) fn seen(&mut self, mark: Option<Arc<Mark>>) {
        self.looking = None;
        match &mark {
            Some(mark) => self.look_for_seen(mark),
            None => self.fanout.unseen.go_on(),
        }
        self.look_again(mark.is_none());
    }

    /// Lets those go who waited until something can be read, and has those read again who did that
    /// too early.
    pub(super) fn look_for_seen(&mut self, mark: &Arc<Mark>) {
        for missed in self.fanout.unseen.look(mark) {
            let (session, channel, joining) = missed;
            match self.fanout.channel(session, channel) {
                Some(known) if known.joining == joining && known.away => {
                    // It is told once it is back.
                    self.fanout.unseen.keep(missed);
                }
                Some(known) if known.joining == joining => {
                    self.fanout.expel(session, channel, Resync::Undecided);
                }
                _ => {}
            }
        }
    }

    /// Tells those whose cursor still lies ahead once nothing that was given out is to come again:
    /// theirs are of another history.
    pub(super) fn look_whether_whole(&mut self) {
        if self.whole {
            return;
        }
        let log = &self.fanout.log;
        self.whole = log.appended() >= self.started_at && self.next >= log.range().end;
        if !self.whole {
            return;
        }
        let sessions = self.fanout.sessions.iter();
        let ahead: Vec<_> = sessions
            .flat_map(|(session, channels)| {
                channels
                    .iter()
                    .map(move |(channel, state)| (*session, *channel, state))
            })
            .filter(|(_, _, state)| !state.away && self.is_ahead(&state.wanted))
            .map(|(session, channel, _)| (session, channel))
            .collect();
        for (session, channel) in ahead {
            self.fanout.expel(session, channel, Resync::Epoch);
        }
    }

    /// Whether one of the wishes begins where the router has not come yet.
    pub(super) fn is_ahead(&self, wanted: &[Wanted]) -> bool {
        let mut cursors = wanted.iter().filter_map(|wish| wish.start.since);
        cursors.any(|cursor| cursor.offset > self.next)
    }
}
