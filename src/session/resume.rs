//! Cursors: how far a client has got, when it is told, and which cursors have been refused.

use std::sync::Arc;
use std::time::Duration;

use super::channel::{Channel, ROWCAST};
use super::machine::Session;
use super::reply::{Reply, Status};
use super::{Action, Now};
use crate::log::Cursor;
use crate::pg::Lsn;
use crate::router::ChannelId;
use crate::subscription::{Start, Wanted};

/// Between two cursors of a channel on which changes come.
const BUSY: Duration = Duration::from_secs(1);

/// Between two cursors of a channel on which none come: the log goes on, and a cursor that is left
/// behind ages out of it.
const QUIET: Duration = Duration::from_secs(15);

/// Refused cursors that are remembered; the oldest are forgotten.
const MAX_REFUSED: usize = 128;

/// What a channel knows of its cursor.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Whether the client wants to be told.
    pub(super) reported: bool,
    /// Whether it has been given all that it had missed.
    pub(super) current: bool,
    /// Everything before is with the client.
    reached: Option<Cursor>,
    /// Where it was when it joined. The log may have lost what lies before that in a crash, and be
    /// given it again: then this is ahead of all else.
    began: Option<Cursor>,
    /// What it was told last.
    told: Option<Cursor>,
    /// When there was last something to tell, or it was looked whether there is.
    looked: Option<Duration>,
    /// Whether a change went out since.
    busy: bool,
}

impl Progress {
    pub(super) fn new(reported: bool, wanted: &[Wanted]) -> Self {
        Self {
            reported,
            current: !wanted.iter().any(|wish| wish.start.is_earlier()),
            began: if wanted.iter().all(|wish| wish.start.since.is_some()) {
                let cursors = wanted.iter().filter_map(|wish| wish.start.since);
                cursors.min_by_key(|cursor| cursor.offset)
            } else {
                None
            },
            ..Self::default()
        }
    }

    /// A change goes out, behind which `cursor` is.
    pub(super) fn pass(&mut self, cursor: Cursor) {
        if self.reported {
            self.reached = Some(cursor);
            self.busy = true;
        }
    }

    /// What it was told last is said in another way from now on.
    pub(super) const fn tell_anew(&mut self) {
        self.busy |= self.told.is_some();
        self.told = None;
    }

    /// When it is to be told, since the clock's start.
    fn due(&self) -> Option<Duration> {
        if !self.reported || self.reached.is_none() && !self.current {
            return None;
        }
        let soon = self.busy || self.reached.is_none();
        let wait = if soon { BUSY } else { QUIET };
        Some(self.looked.map_or(Duration::ZERO, |at| at + wait))
    }
}

impl Session {
    /// Everything before `position` has been put into the outbox, and with `drained` taken out of
    /// it as well.
    pub fn reach(&mut self, position: Cursor, drained: bool) {
        self.position = Some(position);
        if !drained {
            return;
        }
        for channel in &mut self.channels {
            let progress = &mut channel.progress;
            if progress.reported && progress.current && channel.joining.is_none() {
                // What is in hand may have been handed out before that was said of its place.
                let ahead = |reached: &Cursor| {
                    reached.epoch == position.epoch && reached.offset > position.offset
                };
                let known = [progress.reached, progress.began];
                let farthest = known.into_iter().flatten().filter(ahead);
                progress.reached = farthest
                    .max_by_key(|cursor| cursor.offset)
                    .or(Some(position));
            }
        }
    }

    /// When [`Session::report`] is due, since the clock's start.
    #[must_use]
    pub fn next_report(&self) -> Option<Duration> {
        let joined = self
            .channels
            .iter()
            .filter(|channel| channel.joining.is_none());
        let due = |channel: &Channel| channel.breaks_at.or_else(|| channel.progress.due());
        joined.filter_map(due).min()
    }

    /// Tells the channels their cursors that are due, and those that are to join again that they
    /// broke, when it is their turn.
    pub fn report(&mut self, now: Now, actions: &mut Vec<Action>) {
        let breaks = |channel: &mut Channel| {
            let at = channel.breaks_at;
            at.is_some_and(|at| at <= now.monotonic)
        };
        let broken = self.channels.extract_if(.., breaks);
        actions.extend(broken.map(|channel| Action::Reply(channel.broken())));
        for channel in &mut self.channels {
            let due = channel.progress.due().filter(|_| channel.joining.is_none());
            if due.is_some_and(|due| due <= now.monotonic) {
                tell(channel, now.monotonic, actions);
            }
        }
    }

    /// Tells all channels that want to know how far they have got: nothing follows.
    pub fn last_report(&mut self, actions: &mut Vec<Action>) {
        for channel in &mut self.channels {
            let at = channel.progress.looked.unwrap_or(Duration::ZERO);
            tell(channel, at, actions);
        }
    }

    /// A channel has been given what it had missed.
    pub(super) fn caught_up(&mut self, channel: ChannelId) {
        let at = self.position(channel);
        if let Some(channel) = at.and_then(|at| self.channels.get_mut(at)) {
            channel.progress.current = true;
            // It is told soon, also where it was told of a place on the way.
            channel.progress.busy = true;
        }
    }

    /// Remembers the cursors of a channel that is told to read again.
    pub(super) fn refuse_cursors(&mut self, channel: &Channel) {
        for cursor in channel.wanted.iter().filter_map(|wish| wish.start.since) {
            if self.was_refused(&channel.topic, cursor) {
                continue;
            }
            if self.refused.len() >= MAX_REFUSED {
                self.refused.remove(0);
            }
            self.refused.push((Arc::clone(&channel.topic), cursor));
        }
    }

    /// Remembers a cursor that a channel is given together with the word to read again.
    pub(super) fn hand_out(&mut self, topic: Arc<str>, cursor: Cursor, read_at: Lsn) {
        self.handed_out
            .retain(|(of, known, _)| (&**of, *known) != (&*topic, cursor));
        if self.handed_out.len() >= MAX_REFUSED {
            self.handed_out.pop_front();
        }
        self.handed_out.push_back((topic, cursor, read_at));
    }

    /// Has a binding that is joined begin where its client says, unless that was refused; one that
    /// was told to read, and from where to go on, has done so.
    pub(super) fn begin(&self, topic: &str, start: &mut Start) {
        let Some(cursor) = start.since else {
            return;
        };
        let mut handed_out = self.handed_out.iter();
        let given = handed_out.find(|(of, known, _)| **of == *topic && *known == cursor);
        start.read_at = given.map(|(_, _, read_at)| *read_at);
        if given.is_none() && self.was_refused(topic, cursor) {
            start.since = None;
        }
    }

    /// Whether somebody who holds this cursor was told to read again: an application that does
    /// not take notice would otherwise come back with it for ever.
    fn was_refused(&self, topic: &str, cursor: Cursor) -> bool {
        let mut refused = self.refused.iter();
        refused.any(|(of, known)| **of == *topic && *known == cursor)
    }
}

/// Says how far a channel has got, unless it knows.
fn tell(channel: &mut Channel, at: Duration, actions: &mut Vec<Action>) {
    let progress = &mut channel.progress;
    progress.looked = Some(at);
    let Some(cursor) = progress.reached.filter(|_| progress.reported) else {
        return;
    };
    let known = progress.told == Some(cursor);
    progress.told = Some(cursor);
    progress.busy = false;
    if known {
        return;
    }
    let text = "Everything up to this cursor has been sent".to_owned();
    let mut system = channel.system(ROWCAST, Status::Cursor, text);
    system.cursor = Some(channel.held(cursor));
    actions.push(Action::Reply(Reply::System(Box::new(system))));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_that_waits_for_an_answer_is_not_looked_at_without_a_pause() {
        let mut progress = Progress::new(true, &[]);
        assert_eq!(progress.due(), Some(Duration::ZERO));
        // Nothing has been reached: what is in the outbox is held.
        progress.looked = Some(Duration::from_secs(7));
        assert_eq!(progress.due(), Some(Duration::from_secs(7) + BUSY));
    }
}
