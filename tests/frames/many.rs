//! Very many frames through parser, session and encoder.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rand::Rng;
use rowcast::auth::{Claims, Principal, TokenError};
use rowcast::router::{ChannelId, Event, Refusal, Resync};
use rowcast::session::{Action, Limits, Now, Reply, Session, Spread};
use rowcast::supabase::{Serializer, encode};
use serde_json::value::RawValue;

use crate::generate::{Generator, Input};
use crate::{MEMORY, alone};

/// Frames of one session.
const OF_A_SESSION: u64 = 500;
/// What a frame may allocate while it is read and answered: so much whatever its length …
const ALLOWANCE: usize = 32 * 1024;
/// … and so much for each of its bytes.
const PER_BYTE: usize = 24;
/// What a session may hold.
const OF_SESSION: usize = 8 * 1024 * 1024;

/// So full that most channels wait for a while before they break.
static SPREAD: LazyLock<Arc<Spread>> =
    LazyLock::new(|| Arc::new(Spread::new(Duration::from_secs(3600))));

/// A session with somebody in the router's and in the authenticator's place who answers at random.
struct Served {
    session: Session,
    serializer: Serializer,
    now: Now,
    /// What the router has been asked and has not answered.
    asked: Vec<(ChannelId, u32)>,
    closed: bool,
}

impl Served {
    fn new(serializer: Serializer) -> Self {
        Self {
            session: Session::counted(
                Arc::new(principal("anon")),
                Limits::default(),
                None,
                Arc::clone(&SPREAD),
            )
            .expect("nobody is counted"),
            serializer,
            now: Now {
                monotonic: Duration::from_secs(1),
                unix: 1_700_000_000,
            },
            asked: Vec::new(),
            closed: false,
        }
    }

    /// Feeds one frame; what is said to the client is returned.
    fn feed(&mut self, input: &Input, generator: &mut Generator) -> Vec<String> {
        let request = match input {
            Input::Text(text) => self.serializer.text(text),
            Input::Binary(bytes) => self.serializer.binary(bytes),
        };
        let mut actions = Vec::new();
        match request {
            Ok(request) => self.session.request(request, self.now, &mut actions),
            Err(_) => self.session.malformed(&mut actions),
        }
        let mut said = Vec::new();
        self.perform(actions, generator, &mut said);
        said
    }

    /// The router's answer to an earlier frame, and time.
    fn go_on(&mut self, generator: &mut Generator) -> Vec<String> {
        let mut said = Vec::new();
        if !self.asked.is_empty() && generator.rng.random_bool(0.7) {
            let at = generator.rng.random_range(0..self.asked.len());
            let (channel, bindings) = self.asked.swap_remove(at);
            let event = event(channel, bindings, generator);
            let mut actions = Vec::new();
            self.session.event(event, self.now, &mut actions);
            self.perform(actions, generator, &mut said);
        }
        self.now.monotonic += Duration::from_millis(generator.rng.random_range(0..100));
        if generator.rng.random_bool(0.1) {
            let mut actions = Vec::new();
            self.session.report(self.now, &mut actions);
            self.perform(actions, generator, &mut said);
        }
        if generator.rng.random_bool(0.01) {
            self.now.unix += generator.rng.random_range(0..10);
            let mut actions = Vec::new();
            self.session.tick(self.now, &mut actions);
            self.perform(actions, generator, &mut said);
        }
        said
    }

    fn perform(
        &mut self,
        mut actions: Vec<Action>,
        generator: &mut Generator,
        said: &mut Vec<String>,
    ) {
        let mut next = Vec::new();
        while !actions.is_empty() {
            for action in actions.drain(..) {
                match action {
                    Action::Reply(reply) => {
                        said.push(encode(self.serializer, &reply).expect("text"));
                    }
                    Action::Join {
                        channel, wanted, ..
                    } => self
                        .asked
                        .push((channel, u32::try_from(wanted.len()).unwrap())),
                    Action::Leave(channel) => self.asked.retain(|(asked, _)| *asked != channel),
                    Action::Verify(verify) => {
                        let result = match generator.rng.random_range(0..4) {
                            0 => Err(TokenError::Malformed),
                            1 => Ok(principal("authenticated")),
                            2 => Ok(Principal {
                                expires_at: Some(self.now.unix + 5),
                                ..principal("anon")
                            }),
                            _ => Ok(principal("anon")),
                        };
                        let (channel, attempt) = (verify.channel, verify.attempt);
                        self.session
                            .verified(channel, attempt, result, self.now, &mut next);
                    }
                    Action::Close(_) => self.closed = true,
                }
            }
            std::mem::swap(&mut actions, &mut next);
        }
    }

    fn is_alive(&mut self) -> bool {
        let frame = match self.serializer {
            Serializer::V1 => r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"1"}"#,
            Serializer::V2 => r#"[null,"1","phoenix","heartbeat",{}]"#,
        };
        let mut actions = Vec::new();
        let request = self.serializer.text(frame).unwrap();
        self.session.request(request, self.now, &mut actions);
        matches!(actions.as_slice(), [Action::Reply(Reply::Ok { .. })])
    }
}

fn principal(role: &str) -> Principal {
    Principal {
        role: role.into(),
        claims: Claims::verified("{}"),
        expires_at: None,
    }
}

fn event(channel: ChannelId, bindings: u32, generator: &mut Generator) -> Event {
    let refusals = (1..=bindings)
        .filter(|_| generator.rng.random_bool(0.2))
        .map(|binding| Refusal {
            binding,
            reason: "invalid column for filter \"x\"".to_owned(),
        })
        .collect();
    match generator.rng.random_range(0..10) {
        0 => Event::Unavailable { channel },
        1 => Event::Resync {
            channel,
            reason: Resync::Undecided,
            cursor: None,
            read_at: rowcast::pg::Lsn(0),
        },
        _ => Event::Joined {
            channel,
            refusals,
            notices: Vec::new(),
            holder: None,
        },
    }
}

/// What a client said is spliced into what it is told; that must be a frame still.
fn assert_frame(serializer: Serializer, frame: &str) {
    let payload = match serializer {
        Serializer::V1 => {
            let object: HashMap<&str, &RawValue> = serde_json::from_str(frame).expect(frame);
            let mut keys: Vec<_> = object.keys().copied().collect();
            keys.sort_unstable();
            assert_eq!(keys, ["event", "payload", "ref", "topic"], "{frame}");
            object["payload"]
        }
        Serializer::V2 => {
            let array: Vec<&RawValue> = serde_json::from_str(frame).expect(frame);
            assert_eq!(array.len(), 5, "{frame}");
            array[4]
        }
    };
    assert!(payload.get().starts_with('{'), "{frame}");
}

/// The most that was allocated at once while something was done.
fn measured<T>(what: impl FnOnce() -> T) -> (usize, T) {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let done = what();
    (MEMORY.peak_usage().saturating_sub(before), done)
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn frames_in_great_number_are_read_without_a_panic_a_wedge_or_memory_beyond_their_size() {
    let _alone = alone();
    let cases = from_environment("ROWCAST_CASES").unwrap_or(100_000);
    let first = from_environment("ROWCAST_SEED").unwrap_or_else(|| rand::rng().random());
    println!("ROWCAST_SEED={first} ROWCAST_CASES={cases}");
    let started = Instant::now();
    let (mut most, mut joined, mut answers, mut bytes) = (0_usize, 0_usize, 0_usize, 0_usize);
    let mut after_first = None;
    for session in 0..cases / OF_A_SESSION {
        let seed = first.wrapping_add(session);
        let serializer = [Serializer::V1, Serializer::V2][usize::from(session % 2 == 0)];
        let mut generator = Generator::new(seed, serializer);
        let empty = MEMORY.current_usage();
        let mut served = Served::new(serializer);
        let mut longest = 0;
        for number in 0..OF_A_SESSION {
            let input = generator.frame();
            bytes += input.len();
            longest = longest.max(input.len());
            let (took, mut said) = measured(|| served.feed(&input, &mut generator));
            let may = ALLOWANCE + PER_BYTE * input.len();
            assert!(
                took <= may,
                "seed {seed}, frame {number}: {took} bytes for {input:?}"
            );
            most = most.max(took * 100 / may);
            let (took, later) = measured(|| served.go_on(&mut generator));
            let may = ALLOWANCE + PER_BYTE * longest;
            assert!(
                took <= may,
                "seed {seed}, after frame {number}: {took} bytes"
            );
            said.extend(later);
            for frame in &said {
                assert_frame(serializer, frame);
            }
            answers += said.len();
            assert!(served.session.channels() <= Limits::default().channels);
            if served.closed {
                // As the transport does it: a client that says nothing readable is gone.
                joined += served.session.channels();
                served = Served::new(serializer);
            }
        }
        let held = MEMORY.current_usage().saturating_sub(empty);
        assert!(
            held <= OF_SESSION,
            "seed {seed}: the session holds {held} bytes"
        );
        joined += served.session.channels();
        assert!(
            served.is_alive(),
            "seed {seed}: a heartbeat is not answered"
        );
        drop(served);
        // What is made once is made by the first.
        let usage = MEMORY.current_usage();
        let first_usage = *after_first.get_or_insert(usage);
        let left = usage.saturating_sub(first_usage);
        assert!(
            left <= 64 * 1024,
            "{left} bytes are left of sessions that are gone"
        );
    }
    let took = started.elapsed();
    println!(
        "{cases} frames, {bytes} bytes, {answers} answers, {joined} channels, {most} % of the memory, {took:?}"
    );
    assert!(joined > 0 && answers > 0, "the frames reach the session");
}

#[test]
fn filters_in_great_number_are_read_without_a_panic_or_memory_beyond_their_size() {
    let _alone = alone();
    let cases = from_environment("ROWCAST_CASES").unwrap_or(100_000);
    let seed = from_environment("ROWCAST_SEED").unwrap_or_else(|| rand::rng().random());
    println!("ROWCAST_SEED={seed} ROWCAST_CASES={cases}");
    let mut generator = Generator::new(seed, Serializer::V2);
    let mut read = 0_u64;
    for number in 0..cases {
        let text = generator.filter();
        let (took, parsed) = measured(|| rowcast::subscription::filter::parse(&text));
        let may = ALLOWANCE + PER_BYTE * text.len();
        assert!(took <= may, "filter {number}: {took} bytes for {text:?}");
        read += u64::from(parsed.is_ok());
    }
    println!("{read} of {cases} filters are right");
    assert!(
        read > cases / 20 && read < cases,
        "some are right and some are not"
    );
}
