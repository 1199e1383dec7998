//! What waits for one lane: bounded in bytes, and among filters fair.
//!
//! Every filter has a line of its own and is served in turns. Clients choose filters, so a line is
//! known by how its last turn went: those that were quick are served together, others one by one
//! behind them, and one that did not end in time rests, which leaves its rows undecided. So nobody's
//! filter holds up one that is known to be quick for longer than one turn may take, and a lane that
//! is full gives up the line that fills it. Policies, which owners of tables choose, are one line.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::desk::Subject;
use super::{Answer, Question};

/// What may wait, in bytes of rows (one that several questions are about counts once), each
/// question counting for [`PLACE`] more: 4,096 questions about small rows.
const ROOM: usize = 32 << 20;

/// What a question takes besides its row, in bytes.
const PLACE: usize = 8 << 10;

/// A filter that has more than this waiting is given up where the lane is full, in bytes.
const SHARE: usize = ROOM / 64;

/// Questions of one batch.
const BATCH: usize = 512;

/// Rows of one turn of a filter.
const TURN: usize = 32;

/// The same in bytes; a single row may be larger.
const TURN_BYTES: usize = 1 << 20;

/// How long questions wait aside before it is looked whether their transactions are visible, where
/// nothing else comes: shortly at first, since mostly it is a matter of microseconds, then twice as
/// long each time.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(200));

/// Filters whose pace is remembered; past this those that nothing is asked about are forgotten.
const KNOWN: usize = 10_000;

/// A filter under a role.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) query: Arc<str>,
    pub(super) role: Arc<str>,
}

/// How a filter's last turn went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Pace {
    /// There was none.
    #[default]
    Untried,
    Quick,
    Slow,
    /// It did not end in time. Until then it is not asked about.
    Resting(Instant),
}

/// Questions that are put together.
pub(super) struct Turn {
    /// `None` for policies.
    pub(super) key: Option<Key>,
    pub(super) questions: VecDeque<Question>,
}

pub(super) struct Queue {
    subject: Subject,
    inner: Mutex<Inner>,
    came: Notify,
    left: Notify,
}

#[derive(Default)]
struct Inner {
    /// Policies' questions, all in one line.
    plain: VecDeque<Question>,
    /// Those of them whose transactions were not visible.
    unseen: VecDeque<Question>,
    /// When to look whether they are.
    look: Option<Instant>,
    pause: Duration,
    lines: HashMap<Key, Line>,
    /// The lines in which something waits, those known to be quick and the others. Invariant: a
    /// line is in one of them exactly where it says so itself.
    quick: VecDeque<Key>,
    others: VecDeque<Key>,
    /// How many questions wait about an image, by its address: it stays while they do.
    images: HashMap<usize, usize>,
    bytes: usize,
    closed: bool,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Question>,
    /// What waits, in bytes.
    weight: usize,
    pace: Pace,
    listed: bool,
    /// Whether its turn is being answered.
    in_hand: bool,
}

/// Questions that are answered once the queue is unlocked.
type Answered = Vec<(Question, Answer)>;

fn give(answered: Answered) {
    for (question, answer) in answered {
        question.answer.give(answer);
    }
}

impl Queue {
    pub(super) fn new(subject: Subject) -> Self {
        Self {
            subject,
            inner: Mutex::default(),
            came: Notify::new(),
            left: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code under this lock panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a question in, or answers it at once where its filter rests or fills the lane. Gives it
    /// back where there is no room and no filter is to blame.
    pub(super) fn put(&self, question: Question, now: Instant) -> Option<Question> {
        let mut answered = Answered::new();
        let back = self.lock().put(self.subject, question, now, &mut answered);
        give(answered);
        if back.is_none() {
            self.came.notify_one();
        }
        back
    }

    /// Waits until [`Queue::put`] is worth another try. Cancel safe.
    pub(super) async fn room(&self) {
        self.left.notified().await;
    }

    /// Waits for the next batch; `None` once nobody asks any more. For one caller, who says
    /// [`Queue::served`] of every filter in it.
    pub(super) async fn next(&self) -> Option<Vec<Turn>> {
        loop {
            let mut answered = Answered::new();
            let (turns, look, closed) = {
                let mut inner = self.lock();
                let now = Instant::now();
                let turns = match self.subject {
                    Subject::Policies => inner.batch(now, &mut answered),
                    Subject::Filter => inner.turns(now, &mut answered),
                };
                (turns, inner.look, inner.closed)
            };
            give(answered);
            if !turns.is_empty() {
                self.left.notify_one();
                return Some(turns);
            }
            if closed {
                return None;
            }
            tokio::select! {
                () = self.came.notified() => {}
                () = at(look) => {}
            }
        }
    }

    /// Has questions wait whose transactions are not visible. Where there is no room for all, those
    /// that have waited longest are undecided.
    pub(super) fn put_aside(&self, unseen: Vec<Question>) {
        if unseen.is_empty() {
            return;
        }
        let mut answered = Answered::new();
        self.lock().put_aside(unseen, Instant::now(), &mut answered);
        give(answered);
    }

    /// Notes how a filter's turn went; `None` where it says nothing about the filter.
    pub(super) fn served(&self, key: &Key, pace: Option<Pace>) {
        let answered = self.lock().served(key, pace);
        give(answered);
        self.left.notify_one();
    }

    /// Nobody asks any more.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.came.notify_one();
        self.left.notify_one();
    }

    /// Nobody answers any more.
    pub(super) fn abandon(&self) {
        self.close();
        let abandoned = mem::replace(
            &mut *self.lock(),
            Inner {
                closed: true,
                ..Inner::default()
            },
        );
        drop(abandoned);
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

fn weight(question: &Question) -> usize {
    question.image.len() + PLACE
}

/// Where an image is, which tells it from all others that are there at the time.
fn address(question: &Question) -> usize {
    question.image.as_ptr().addr()
}

impl Inner {
    fn put(
        &mut self,
        subject: Subject,
        question: Question,
        now: Instant,
        answered: &mut Answered,
    ) -> Option<Question> {
        if self.closed {
            answered.push((question, Answer::Failed));
            return None;
        }
        if subject == Subject::Policies {
            self.make_room(&question, answered);
            if self.is_full(&question) {
                return Some(question);
            }
            self.count(&question);
            self.plain.push_back(question);
            return None;
        }
        let key = Key {
            query: Arc::clone(&question.query),
            role: Arc::clone(&question.role),
        };
        if let Some(line) = self.lines.get_mut(&key)
            && let Pace::Resting(until) = line.pace
        {
            if now < until {
                answered.push((question, Answer::TimedOut));
                return None;
            }
            line.pace = Pace::Slow;
        }
        while self.is_full(&question) {
            let lines = self.lines.iter();
            let heaviest = lines.max_by_key(|(_, line)| line.weight);
            let Some(blamed) = heaviest
                .filter(|(_, line)| line.weight > SHARE)
                .map(|(blamed, _)| blamed.clone())
            else {
                return Some(question);
            };
            self.give_up(&blamed, answered);
            if blamed == key {
                answered.push((question, Answer::TimedOut));
                return None;
            }
        }
        self.count(&question);
        if self.lines.len() >= KNOWN && !self.lines.contains_key(&key) {
            let idle = |line: &Line| line.waiting.is_empty() && !line.in_hand && !line.listed;
            let rests = |line: &Line| matches!(line.pace, Pace::Resting(until) if now < until);
            self.lines.retain(|_, line| !idle(line) || rests(line));
        }
        let line = self.lines.entry(key.clone()).or_default();
        line.weight += weight(&question);
        line.waiting.push_back(question);
        self.list(&key);
        None
    }

    fn is_full(&self, question: &Question) -> bool {
        let known = self.images.contains_key(&address(question));
        let added = PLACE + if known { 0 } else { question.image.len() };
        // One that is larger than the whole lane must be able to pass an empty one.
        self.bytes > 0 && self.bytes + added > ROOM
    }

    fn count(&mut self, question: &Question) {
        let about = self.images.entry(address(question)).or_default();
        *about += 1;
        if *about == 1 {
            self.bytes += question.image.len();
        }
        self.bytes += PLACE;
    }

    fn discount(&mut self, question: &Question) {
        self.bytes -= PLACE;
        let address = address(question);
        let Some(about) = self.images.get_mut(&address) else {
            return;
        };
        *about -= 1;
        if *about == 0 {
            self.images.remove(&address);
            self.bytes -= question.image.len();
        }
    }

    /// Gives a line its turn, where something waits in it and it has none.
    fn list(&mut self, key: &Key) {
        let Some(line) = self.lines.get_mut(key) else {
            return;
        };
        if line.listed || line.in_hand || line.waiting.is_empty() {
            return;
        }
        line.listed = true;
        match line.pace {
            Pace::Quick => self.quick.push_back(key.clone()),
            Pace::Untried | Pace::Slow | Pace::Resting(_) => self.others.push_back(key.clone()),
        }
    }

    /// What waits in a line is undecided.
    fn give_up(&mut self, key: &Key, answered: &mut Answered) {
        let Some(line) = self.lines.get_mut(key) else {
            return;
        };
        line.weight = 0;
        for question in mem::take(&mut line.waiting) {
            self.discount(&question);
            answered.push((question, Answer::TimedOut));
        }
    }

    /// Where the lane is full, questions that wait aside are undecided.
    fn make_room(&mut self, question: &Question, answered: &mut Answered) {
        while self.is_full(question)
            && let Some(unseen) = self.unseen.pop_front()
        {
            self.discount(&unseen);
            answered.push((unseen, Answer::TimedOut));
        }
    }

    fn put_aside(&mut self, unseen: Vec<Question>, now: Instant, answered: &mut Answered) {
        for question in unseen {
            self.make_room(&question, answered);
            if self.is_full(&question) {
                answered.push((question, Answer::TimedOut));
                continue;
            }
            self.count(&question);
            self.unseen.push_back(question);
        }
        self.look = Some(now + self.pause);
    }

    /// What came, and what waited aside: whoever looks whether the one is visible knows it of the
    /// other.
    fn batch(&mut self, now: Instant, answered: &mut Answered) -> Vec<Turn> {
        let most = self.plain.len().min(BATCH);
        if most == 0 && self.look.is_none_or(|look| now < look) {
            return Vec::new();
        }
        let (soonest, latest) = PAUSE;
        self.pause = if most > 0 {
            soonest
        } else {
            latest.min(self.pause * 2)
        };
        self.look = None;
        let aside = self.unseen.drain(..);
        let (mut questions, mut late) = (VecDeque::new(), Vec::new());
        for question in aside.chain(self.plain.drain(..most)) {
            if question.deadline <= now {
                late.push(question);
            } else {
                questions.push_back(question);
            }
        }
        for question in questions.iter().chain(&late) {
            self.discount(question);
        }
        let late = late.into_iter();
        answered.extend(late.map(|question| (question, Answer::TimedOut)));
        let turn = |questions| Turn {
            key: None,
            questions,
        };
        (!questions.is_empty())
            .then(|| turn(questions))
            .into_iter()
            .collect()
    }

    /// A turn of each filter that is known to be quick, and behind them one of another.
    fn turns(&mut self, now: Instant, answered: &mut Answered) -> Vec<Turn> {
        let mut turns = Vec::new();
        let mut taken = 0;
        while taken < BATCH
            && let Some(key) = self.quick.pop_front()
        {
            if let Some(turn) = self.turn(key, now, answered) {
                taken += turn.questions.len();
                turns.push(turn);
            }
        }
        while let Some(key) = self.others.pop_front() {
            if let Some(turn) = self.turn(key, now, answered) {
                turns.push(turn);
                break;
            }
        }
        turns
    }

    fn turn(&mut self, key: Key, now: Instant, answered: &mut Answered) -> Option<Turn> {
        let line = self.lines.get_mut(&key)?;
        line.listed = false;
        let mut questions = VecDeque::new();
        let (mut late, mut bytes) = (Vec::new(), 0);
        while questions.len() < TURN
            && let Some(question) = line.waiting.pop_front()
        {
            line.weight -= weight(&question);
            if question.deadline <= now {
                late.push(question);
                continue;
            }
            bytes += question.image.len();
            questions.push_back(question);
            if bytes >= TURN_BYTES {
                break;
            }
        }
        line.in_hand = !questions.is_empty();
        for question in questions.iter().chain(&late) {
            self.discount(question);
        }
        answered.extend(
            late.into_iter()
                .map(|question| (question, Answer::TimedOut)),
        );
        (!questions.is_empty()).then_some(Turn {
            key: Some(key),
            questions,
        })
    }

    fn served(&mut self, key: &Key, pace: Option<Pace>) -> Answered {
        let mut answered = Answered::new();
        if let Some(line) = self.lines.get_mut(key) {
            line.in_hand = false;
            line.pace = pace.unwrap_or(line.pace);
            if matches!(line.pace, Pace::Resting(_)) {
                self.give_up(key, &mut answered);
            }
        }
        self.list(key);
        answered
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::{Reply, Xid};
    use super::*;
    use crate::auth::Claims;

    /// Where answers go: how many were left undecided.
    type Undecided = Arc<AtomicUsize>;

    fn question(query: &str, image: &Arc<str>, undecided: &Undecided) -> Question {
        let undecided = Arc::clone(undecided);
        Question {
            subject: Subject::Filter,
            xid: Xid(1),
            query: query.into(),
            role: "r".into(),
            claims: Claims::verified("{}".to_owned()),
            image: Arc::clone(image),
            deadline: Instant::now() + Duration::from_secs(60),
            answer: Reply::new(move |answer| {
                if answer == Answer::TimedOut {
                    undecided.fetch_add(1, Ordering::Relaxed);
                }
            }),
        }
    }

    fn queries(turns: &[Turn]) -> Vec<(String, usize)> {
        let name = |turn: &Turn| {
            let key = turn.key.as_ref().unwrap();
            (key.query.to_string(), turn.questions.len())
        };
        turns.iter().map(name).collect()
    }

    fn expected(turns: &[(&str, usize)]) -> Vec<(String, usize)> {
        let own = turns.iter();
        own.map(|(name, count)| ((*name).to_owned(), *count))
            .collect()
    }

    fn all_served(queue: &Queue, turns: &[Turn], pace: Pace) {
        for turn in turns {
            queue.served(turn.key.as_ref().unwrap(), Some(pace));
        }
    }

    #[test]
    fn what_is_not_visible_waits_aside_and_gives_way_to_what_comes() {
        let (queue, undecided) = (Queue::new(Subject::Policies), Undecided::default());
        let (row, now): (Arc<str>, _) = ("".into(), Instant::now());
        let new = || question("policy", &row, &undecided);
        let put = |times: usize| {
            for _ in 0..times {
                assert!(queue.put(new(), now).is_none());
            }
        };
        let batch = |after: u64| -> Vec<Question> {
            let mut answered = Answered::new();
            let at = now + Duration::from_millis(after);
            let turns = queue.lock().batch(at, &mut answered);
            give(answered);
            turns.into_iter().flat_map(|turn| turn.questions).collect()
        };
        let aside = |unseen: Vec<Question>, after: u64| {
            let (at, mut answered) = (now + Duration::from_millis(after), Answered::new());
            queue.lock().put_aside(unseen, at, &mut answered);
            give(answered);
        };
        let room = ROOM / PLACE;
        aside((0..room - 100).map(|_| new()).collect(), 0);
        put(150);
        assert_eq!(undecided.load(Ordering::Relaxed), 50, "the oldest");
        assert_eq!(batch(0).len(), room, "both at once");
        put(1);
        assert_eq!(batch(0).len(), 1);
        let mut at = 0;
        for pause in [1, 2, 4, 8, 16, 32, 64, 128, 200, 200] {
            aside(vec![new()], at);
            assert!(batch(at + pause - 1).is_empty(), "not yet");
            at += pause;
            assert_eq!(batch(at).len(), 1, "looked again");
        }
        aside(vec![new()], at);
        assert!(batch(at + 60_000).is_empty());
        assert_eq!(undecided.load(Ordering::Relaxed), 51, "too late");
        assert_eq!(queue.lock().bytes, 0);
    }

    #[tokio::test]
    async fn quick_filters_are_served_together_and_wait_for_one_turn_of_one_other_at_most() {
        let (queue, undecided) = (Queue::new(Subject::Filter), Undecided::default());
        let row: Arc<str> = "{}".into();
        let now = Instant::now();
        let put = |query: &str, times: usize| {
            for _ in 0..times {
                assert!(queue.put(question(query, &row, &undecided), now).is_none());
            }
        };
        put("a", 1);
        put("b", 1);
        for name in ["a", "b"] {
            let turns = queue.next().await.unwrap();
            assert_eq!(queries(&turns), expected(&[(name, 1)]), "untried: alone");
            all_served(&queue, &turns, Pace::Quick);
        }
        put("slow", 100);
        put("flood", 100);
        put("a", 40);
        put("b", 1);
        let turns = queue.next().await.unwrap();
        assert_eq!(
            queries(&turns),
            expected(&[("a", 32), ("b", 1), ("slow", 32)])
        );
        put("a", 1);
        all_served(&queue, &turns[..2], Pace::Quick);
        all_served(&queue, &turns[2..], Pace::Slow);
        let turns = queue.next().await.unwrap();
        assert_eq!(queries(&turns), expected(&[("a", 9), ("flood", 32)]));
        assert_eq!(undecided.load(Ordering::Relaxed), 0);
        let rests = Pace::Resting(now + Duration::from_secs(60));
        all_served(&queue, &turns[1..], rests);
        assert_eq!(undecided.load(Ordering::Relaxed), 68, "what waited");
        put("flood", 1);
        assert_eq!(undecided.load(Ordering::Relaxed), 69, "what comes");
    }

    #[tokio::test]
    async fn a_full_lane_gives_up_the_filter_that_fills_it() {
        let (queue, undecided) = (Queue::new(Subject::Filter), Undecided::default());
        let now = Instant::now();
        let small: Arc<str> = "{}".into();
        let put =
            |query: &str, image: &Arc<str>| queue.put(question(query, image, &undecided), now);
        for name in ["a", "b"] {
            assert!(put(name, &small).is_none());
        }
        // Each its own megabyte.
        for n in 0..ROOM >> 20 {
            let large: Arc<str> = format!("{n}{}", "x".repeat(1 << 20)).into();
            assert!(put("large", &large).is_none(), "the router never waits");
        }
        let given_up = undecided.load(Ordering::Relaxed);
        assert!(given_up >= (ROOM >> 20) - 1, "{given_up}");
        let turns = queue.next().await.unwrap();
        assert_eq!(queries(&turns), expected(&[("a", 1)]), "it was not touched");
        // By number: one filter with thousands of rows.
        while undecided.swap(0, Ordering::Relaxed) == 0 {
            assert!(put("many", &small).is_none());
        }
        // Where each has little there is nobody to blame.
        let most = ROOM / PLACE;
        let full = (0..=most).position(|n| put(&format!("q{n}"), &small).is_some());
        assert!(full.is_some_and(|at| at > most / 2), "{full:?}");
    }

    #[tokio::test]
    async fn rows_of_policies_are_bounded_in_bytes_and_shared_ones_count_once() {
        let queue = Queue::new(Subject::Policies);
        let (undecided, now) = (Undecided::default(), Instant::now());
        let row = |n: usize| -> Arc<str> { format!("{n}{}", "x".repeat(1 << 20)).into() };
        let put = |image: &Arc<str>| queue.put(question("p", image, &undecided), now);
        let shared = row(0);
        for _ in 0..1000 {
            assert!(put(&shared).is_none(), "one row, however many ask");
        }
        let full = (1..100).position(|n| put(&row(n)).is_some());
        assert!(full.is_some_and(|at| at < ROOM >> 20), "{full:?}");
        assert_eq!(queue.next().await.unwrap()[0].questions.len(), BATCH);
        while let Some(turns) = {
            queue.close();
            queue.next().await
        } {
            drop(turns);
        }
        let inner = queue.lock();
        assert_eq!(
            (inner.bytes, inner.images.len()),
            (0, 0),
            "all is given back"
        );
    }
}
