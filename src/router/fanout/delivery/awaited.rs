//! Changes that wait in outboxes for what PostgreSQL says of them.

use std::sync::Arc;

use crate::metrics::{HiddenReason, Metrics};
use crate::mutant::LeaveMutant;
use crate::pg::Lsn;
use crate::router::{ChannelId, Event, Outbox, Resync, Ruling, Verdict, Voice};

/// A change that is held in outboxes.
#[derive(Clone)]
pub(super) struct Awaited {
    pub(super) verdict: Arc<Verdict>,
    pub(super) waiting: Vec<(Arc<Outbox>, ChannelId)>,
    /// Those whom the row has left unless it is shown here. Where there are any nothing is held for
    /// this itself.
    pub(super) unless: Vec<Self>,
}

impl Awaited {
    pub(super) fn new(voices: u8) -> Self {
        Self {
            verdict: Arc::new(Verdict::of(voices)),
            waiting: Vec::new(),
            unless: Vec::new(),
        }
    }

    pub(super) fn wake(&self) {
        for (outbox, _) in &self.waiting {
            outbox.wake();
        }
    }
}

/// Acts on an answer about a row for all who wait for it; `no` is why a no hides it. Those who,
/// once all have spoken, may or may not have been meant to get it are to read again.
pub(super) fn conclude(
    awaited: Vec<Awaited>,
    voice: Voice,
    no: Option<HiddenReason>,
    metrics: &Metrics,
) {
    for one in awaited {
        let ruling = one.verdict.say(voice);
        let (hidden, in_doubt) = match ruling {
            Ruling::Open | Ruling::Shown => (None, false),
            Ruling::Hidden => (no, false),
            Ruling::InDoubt { timed_out: true } => (Some(HiddenReason::AskTimeout), true),
            Ruling::InDoubt { timed_out: false } => (Some(HiddenReason::AskFailed), true),
        };
        if let Some(reason) = hidden
            && one.unless.is_empty()
        {
            metrics.hidden(reason, one.waiting.len() as u64);
        }
        for (outbox, channel) in one.waiting.iter().filter(|_| in_doubt) {
            outbox.push(Event::Resync {
                channel: *channel,
                reason: Resync::Undecided,
                cursor: None,
                read_at: Lsn(0),
            });
        }
        one.wake();
        match ruling {
            Ruling::Open => {}
            Ruling::Hidden => conclude(one.unless, Voice::Yes, None, metrics),
            Ruling::Shown if LeaveMutant::ShownRowLeaves.active() => {
                conclude(one.unless, Voice::Yes, None, metrics);
            }
            // Where it is in doubt they are to read again.
            Ruling::Shown | Ruling::InDoubt { .. } => {
                conclude(one.unless, Voice::No, None, metrics);
            }
        }
    }
}
