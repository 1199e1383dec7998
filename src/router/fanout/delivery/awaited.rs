//! Changes that wait in outboxes for what PostgreSQL says of them.

use std::sync::Arc;

use crate::metrics::{HiddenReason, Metrics};
use crate::mutant::LeaveMutant;
use crate::pg::Lsn;
use crate::router::position::Position;
use crate::router::unseen::Unseen;
use crate::router::{ChannelId, Outbox, Resync, Ruling, Verdict, Voice};

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

/// Whoever acts on answers about rows.
#[derive(Clone)]
pub(super) struct Judge {
    pub(super) metrics: Arc<Metrics>,
    pub(super) unseen: Arc<Unseen>,
    pub(super) position: Arc<Position>,
    /// Where the catalog was read by which it was asked.
    pub(super) read_at: Lsn,
}

impl Judge {
    /// Acts on an answer about a row for all who wait for it; `no` is why a no hides it. Those who,
    /// once all have spoken, may or may not have been meant to get it are to read again.
    pub(super) fn conclude(&self, awaited: Vec<Awaited>, voice: Voice, no: Option<HiddenReason>) {
        for one in awaited {
            let ruling = one.verdict.say(voice);
            let hidden = match ruling {
                Ruling::Open | Ruling::Shown => None,
                Ruling::Hidden => no,
                Ruling::InDoubt { timed_out: true } => Some(HiddenReason::AskTimeout),
                Ruling::InDoubt { timed_out: false } => Some(HiddenReason::AskFailed),
            };
            if let Some(reason) = hidden
                && one.unless.is_empty()
            {
                self.metrics.hidden(reason, one.waiting.len() as u64);
            }
            if let Ruling::InDoubt { .. } = ruling {
                for (outbox, channel) in &one.waiting {
                    let cursor = self.position.get();
                    let event = (*channel, Resync::Undecided, self.read_at);
                    self.unseen.tell_to_read(outbox, event, cursor);
                }
                // Nothing behind it goes out before that is there.
                one.verdict.give_up();
            }
            one.wake();
            let (unless, voice) = match ruling {
                Ruling::Open => continue,
                Ruling::Hidden => (one.unless, Voice::Yes),
                Ruling::Shown if LeaveMutant::ShownRowLeaves.active() => (one.unless, Voice::Yes),
                Ruling::Shown => (one.unless, Voice::No),
                Ruling::InDoubt { timed_out: true } => (one.unless, Voice::TimedOut),
                Ruling::InDoubt { timed_out: false } => (one.unless, Voice::Failed),
            };
            self.conclude(unless, voice, None);
        }
    }
}
