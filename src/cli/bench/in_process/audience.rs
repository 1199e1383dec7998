//! Subscribers that are nothing but an outbox and somebody who empties it: whoever hands out the
//! changes, as with a socket, and a task where that cannot.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, TryLockError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use futures_util::{StreamExt, stream};
use serde_json::json;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::auth::{Claims, Principal};
use crate::cli::bench::books::Books;
use crate::cli::bench::database::{NAME, ROLE};
use crate::cli::bench::frame::{self, Frame};
use crate::cli::bench::plan::{Plan, Written, user_id};
use crate::cli::bench::subscriber::Condition;
use crate::cli::bench::verifier::{Tally, Verifier};
use crate::encode::Body;
use crate::router::{Carrier, ChannelId, Event, Join, Outbox, Outgoing, Router, SessionId};
use crate::subscription::{Events, Start, Wanted, filter as condition};

/// Joins under way at once.
const JOINING: usize = 1_024;

/// No join takes this long unless something is wrong.
const JOIN_PATIENCE: Duration = Duration::from_secs(30);

/// Events taken at once.
const BATCH: usize = 256;

/// Changes that a thread knows again.
const KNOWN_CHANGES: usize = 1_024;

/// The one binding of a subscriber.
const BINDING: u32 = 1;

/// Makes subscribers, and lets them go.
#[derive(Debug)]
pub struct Sessions {
    router: Router,
    next: u64,
    max_events: usize,
    max_bytes: usize,
}

/// The subscribers of a round.
#[derive(Debug)]
pub struct Audience {
    outboxes: Vec<Arc<Outbox>>,
    receivers: TaskTracker,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    books: Arc<Books>,
    /// Set when the round is over.
    written: OnceLock<Written>,
    tally: Mutex<Tally>,
}

impl Sessions {
    /// Nobody yet. Every outbox will have these bounds.
    #[must_use]
    pub const fn new(router: Router, max_events: usize, max_bytes: usize) -> Self {
        Self {
            router,
            next: 0,
            max_events,
            max_bytes,
        }
    }

    /// Joins a round's subscribers, each as a user of its own; `progress` hears how many have.
    ///
    /// # Errors
    /// The first join that is refused or not answered, or what `progress` says.
    pub async fn join(
        &mut self,
        plan: Plan,
        books: Books,
        mut progress: impl FnMut(u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<Audience> {
        let shared = Arc::new(Shared {
            books: Arc::new(books),
            written: OnceLock::new(),
            tally: Mutex::new(Tally::default()),
        });
        let receivers = TaskTracker::new();
        let mut outboxes = Vec::new();
        let first = self.next;
        self.next += plan.subscribers;
        let mut joining = stream::iter(0..plan.subscribers)
            .map(|number| {
                let session = SessionId(first + number);
                let outbox = Outbox::new(session, self.max_events, self.max_bytes);
                let router = &self.router;
                async move {
                    timeout(JOIN_PATIENCE, join(router, &outbox, &plan, number))
                        .await
                        .context("A subscriber's join was not answered")?
                        .with_context(|| format!("Subscriber {number}"))?;
                    anyhow::Ok((number, outbox))
                }
            })
            .buffer_unordered(JOINING);
        while let Some(joined) = joining.next().await {
            let (number, outbox) = joined?;
            let receiver = Arc::new(Receiver {
                outbox: Arc::clone(&outbox),
                verifier: Mutex::new(Some(Verifier::new(plan, number))),
                shared: Arc::clone(&shared),
            });
            let carrier: Arc<dyn Carrier> = Arc::clone(&receiver) as _;
            outbox.carried_by(Arc::downgrade(&carrier));
            receivers.spawn(receiver.receive());
            outboxes.push(outbox);
            progress(outboxes.len() as u64)?;
        }
        receivers.close();
        Ok(Audience {
            outboxes,
            receivers,
            shared,
        })
    }

    /// Ends a round: the numbers, and the books.
    ///
    /// # Errors
    /// Where the router has ended.
    pub async fn finish(
        &self,
        audience: Audience,
        written: Written,
    ) -> anyhow::Result<(Tally, Arc<Books>)> {
        let shared = audience.shared;
        ensure!(shared.written.set(written).is_ok(), "A round ended twice");
        for outbox in &audience.outboxes {
            outbox.wake();
        }
        audience.receivers.wait().await;
        for outbox in audience.outboxes {
            outbox.close();
            self.router.disconnect(outbox.session()).await?;
        }
        let tally = *shared.tally.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((tally, Arc::clone(&shared.books)))
    }
}

impl Audience {
    /// What its subscribers write down.
    #[must_use]
    pub fn books(&self) -> &Books {
        &self.shared.books
    }
}

async fn join(
    router: &Router,
    outbox: &Arc<Outbox>,
    plan: &Plan,
    number: u64,
) -> anyhow::Result<()> {
    let claims = json!({"role": ROLE, "sub": user_id(number)});
    let filter = match Condition::of(plan, number) {
        Some(filter) => condition::parse(&filter.to_string())?,
        None => Vec::new(),
    };
    router
        .join(Join {
            outbox: Arc::clone(outbox),
            channel: ChannelId(1),
            principal: Arc::new(Principal {
                role: ROLE.into(),
                claims: Claims::verified(claims.to_string()),
                expires_at: None,
            }),
            keeps_cursor: false,
            wanted: vec![Wanted {
                id: BINDING,
                events: Events::Insert,
                schema: Some(NAME.to_owned()),
                table: Some("rows".to_owned()),
                filter,
                select: None,
                leave: false,
                start: Start::default(),
            }],
        })
        .await?;
    let mut events = Vec::new();
    loop {
        // One only: what is behind the answer is for the books.
        outbox.take(&mut events, 1)?;
        match events.pop() {
            Some(Event::Joined { refusals, .. }) => match refusals.first() {
                None => return Ok(()),
                Some(refusal) => bail!("A join was refused: {}", refusal.reason),
            },
            Some(_) => {}
            None => outbox.readable().await,
        }
    }
}

/// A subscriber, and what it wrote down; nothing any more once the round is over.
struct Receiver {
    outbox: Arc<Outbox>,
    verifier: Mutex<Option<Verifier>>,
    shared: Arc<Shared>,
}

impl Receiver {
    /// Takes what comes until the round is over, and then holds it against what was written.
    async fn receive(self: Arc<Self>) {
        loop {
            // Looked at before the outbox: what came before the end is still taken.
            let written = self.shared.written.get();
            let finished = {
                let locked = self.verifier.lock();
                let mut verifier = locked.unwrap_or_else(PoisonError::into_inner);
                self.empty(&mut verifier);
                written.and_then(|written| Some(verifier.take()?.finish(written)))
            };
            if let Some(tally) = finished {
                let all = self.shared.tally.lock();
                all.unwrap_or_else(PoisonError::into_inner).add(&tally);
                return;
            }
            self.outbox.readable().await;
        }
    }

    fn empty(&self, verifier: &mut Option<Verifier>) {
        if let Some(verifier) = verifier {
            empty(&self.outbox, verifier, &self.shared.books);
        }
    }
}

impl Carrier for Receiver {
    fn carry(&self) -> bool {
        match self.verifier.try_lock() {
            Ok(mut verifier) => self.empty(&mut verifier),
            Err(TryLockError::Poisoned(verifier)) => self.empty(&mut verifier.into_inner()),
            // Whoever has it may have looked into the outbox already.
            Err(TryLockError::WouldBlock) => return false,
        }
        true
    }
}

fn empty(outbox: &Outbox, verifier: &mut Verifier, books: &Books) {
    thread_local! {
        /// What is being read; as a socket's are, it is not made anew for each.
        static EVENTS: RefCell<Vec<Event>> = RefCell::default();
    }
    EVENTS.with_borrow_mut(|events| {
        loop {
            let taken = outbox.take(events, BATCH).unwrap_or_else(|overflow| {
                books.note(overflow.to_string());
                0
            });
            for event in events.drain(..) {
                read_event(event, verifier, books);
            }
            // Then nothing was left that may go out.
            if taken < BATCH {
                return;
            }
        }
    });
}

fn read_event(event: Event, verifier: &mut Verifier, books: &Books) {
    match event {
        Event::Change { change, .. } if change.bindings[..] == [BINDING] => match read(&change) {
            Ok(Frame::Row { id, sent, .. }) => books.take(verifier, id, sent),
            Ok(_) => books.note("a change of an unknown form".to_owned()),
            Err(error) => books.note(format!("a change of an unknown form: {error}")),
        },
        Event::Change { .. } => books.note("a change for another binding".to_owned()),
        Event::Resync { reason, .. } => books.note(format!("resync {}", reason.as_str())),
        Event::Snapshot { .. } | Event::SnapshotFailed { .. } => {
            books.note("a snapshot that nobody asked for".to_owned());
        }
        Event::CaughtUp { .. } => books.note("caught up with nothing".to_owned()),
        Event::Joined { .. } => books.note("joined twice".to_owned()),
        // In force from before, with other rules.
        Event::Introduced { .. } => {}
        Event::Unavailable { .. } => books.note("the database is away".to_owned()),
    }
}

/// Reads a change; one of those that this thread read last at once, where others receive it, too:
/// they share its bytes, so that reading them again would be measured for the relay's work.
fn read(change: &Arc<Outgoing>) -> serde_json::Result<Frame> {
    thread_local! {
        /// What was read, by where it lies, with the row's number and time.
        static KNOWN: RefCell<HashMap<usize, (Body, u64, u64)>> = RefCell::default();
    }
    let data = &change.data;
    KNOWN.with_borrow_mut(|known| {
        let place = data.as_ptr().addr();
        // It is held here, so nothing else can lie in its place.
        if let Some((_, id, sent)) = known.get(&place) {
            return Ok(Frame::Row {
                id: *id,
                sent: *sent,
                cursor: None,
            });
        }
        let frame = frame::read_data(data)?;
        let shared = Arc::strong_count(change) > 1;
        if let Frame::Row { id, sent, .. } = frame
            && shared
        {
            if known.len() >= KNOWN_CHANGES {
                known.clear();
            }
            known.insert(place, (data.clone(), id, sent));
        }
        Ok(frame)
    })
}
