//! The publication of the lookups, beside the one whose tables can be subscribed to: whether the
//! stream carries it, and the wish that it should.
//!
//! The server looks publications up as they were when a change was made. So one that is new can be
//! named only once the slot has passed its making; named before, it ends the stream.

use std::path::PathBuf;

use tokio::sync::watch;

use crate::pg::Lsn;

/// What the stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Coverage {
    /// Names the time since when the lookups' publication has been in the stream without a break;
    /// `None` while it is not. Whoever reads the log finds it said before the first entry that it
    /// is true of.
    pub stretch: Option<u64>,
    /// The last wish that was followed.
    pub answered: u64,
    /// How often the stream was opened.
    pub opened: u64,
}

/// That the stream begins anew, with the lookups' publication, once everything before `from` is
/// stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wish {
    /// Counts the wishes.
    pub number: u64,
    /// What commits from here on finds the publication as it is wished for.
    pub from: Lsn,
}

/// The end of whoever reads the source.
#[derive(Debug)]
pub struct Reading {
    coverage: watch::Sender<Coverage>,
    wishes: watch::Receiver<Wish>,
    /// Whether the publication is to be named where it exists.
    named: bool,
    stretches: u64,
    /// A file that means nothing once the stream went on without the publication.
    checkpoint: Option<PathBuf>,
}

/// The end of whoever needs the lookups' changes.
#[derive(Debug, Clone)]
pub struct Wishing {
    coverage: watch::Receiver<Coverage>,
    wishes: watch::Sender<Wish>,
}

/// Both ends. `checkpoint` is a file that holds what was made of the lookups' changes: it is removed
/// before the stream goes on without them.
#[must_use]
pub fn coverage(checkpoint: Option<PathBuf>) -> (Reading, Wishing) {
    let (coverage, covered) = watch::channel(Coverage::default());
    let (wishes, wished) = watch::channel(Wish::default());
    let reading = Reading {
        coverage,
        wishes: wished,
        named: true,
        stretches: 0,
        checkpoint,
    };
    let wishing = Wishing {
        coverage: covered,
        wishes,
    };
    (reading, wishing)
}

impl Reading {
    /// Whether the publication is to be named where it exists.
    #[must_use]
    pub const fn names(&self) -> bool {
        self.named
    }

    /// Says what a stream that was opened carries. To be called before its first change is taken.
    pub fn opened(&mut self, with_lookups: bool) {
        let answered = self.wishes.borrow().number;
        let Coverage {
            stretch: before,
            opened,
            ..
        } = *self.coverage.borrow();
        let stretch = if with_lookups {
            before.or_else(|| {
                self.stretches += 1;
                Some(self.stretches)
            })
        } else {
            if let Some(path) = &self.checkpoint {
                // One that is not there is as good as one that was removed.
                let _removed = std::fs::remove_file(path);
            }
            None
        };
        self.coverage.send_replace(Coverage {
            stretch,
            answered,
            opened: opened + 1,
        });
    }

    /// A stream that named the publication cannot go on: the next one goes without, until somebody
    /// wishes for it again.
    pub const fn leave_out(&mut self) {
        self.named = false;
    }

    /// Whether a wish is to be followed now, when everything before `stored` is.
    pub fn is_due(&mut self, stored: Lsn) -> bool {
        let wish = *self.wishes.borrow_and_update();
        let due = wish.number > self.coverage.borrow().answered && stored >= wish.from;
        if due {
            self.named = true;
        }
        due
    }

    /// Whether there is a wish that has not been followed.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.wishes.borrow().number > self.coverage.borrow().answered
    }

    /// Returns when there is another wish. Cancel safe.
    pub async fn wished(&mut self) {
        if self.wishes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Wishing {
    /// What the stream carries now.
    #[must_use]
    pub fn now(&self) -> Coverage {
        *self.coverage.borrow()
    }

    /// Wishes; the number that [`Coverage::answered`] will have reached.
    pub fn wish(&self, from: Lsn) -> u64 {
        let mut number = 0;
        self.wishes.send_modify(|wish| {
            wish.number += 1;
            wish.from = from;
            number = wish.number;
        });
        number
    }

    /// Returns once it was said what the stream carries. Cancel safe.
    pub async fn said(&mut self) {
        if self.coverage.wait_for(|now| now.opened > 0).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns when something else is said of the stream, or nobody reads it any more. Cancel safe.
    pub async fn changed(&mut self) -> bool {
        self.coverage.changed().await.is_ok()
    }
}
