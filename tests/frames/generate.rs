//! Frames of all kinds: right, nearly right, and none at all.

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore, SeedableRng};
use rowcast::supabase::Serializer;

/// One frame of a client.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    Text(String),
    Binary(Vec<u8>),
}

impl Input {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    fn of(bytes: Vec<u8>) -> Self {
        String::from_utf8(bytes).map_or_else(|error| Self::Binary(error.into_bytes()), Self::Text)
    }
}

/// Frames from a seed; the same seed gives the same frames.
pub(crate) struct Generator {
    pub(crate) rng: SmallRng,
    serializer: Serializer,
}

const TOPICS: [&str; 12] = [
    "realtime:a",
    "realtime:b",
    "realtime:c",
    "realtime:комната",
    "realtime:",
    "realtime:a:b c",
    "phoenix",
    "foo:bar",
    "",
    "realtime:\u{0}",
    "realtime:\u{1f389}",
    "REALTIME:a",
];
const EVENTS: [&str; 10] = [
    "phx_join",
    "phx_leave",
    "heartbeat",
    "access_token",
    "broadcast",
    "presence",
    "postgres_changes",
    "phx_close",
    "system",
    "",
];
const NAMES: [&str; 12] = [
    "public",
    "todos",
    "*",
    "",
    "My Table",
    "a.b",
    "\u{fffd}",
    "user_roles",
    "%",
    "é",
    "id",
    "null",
];
const KEYS: [&str; 24] = [
    "config",
    "private",
    "postgres_changes",
    "event",
    "schema",
    "table",
    "filter",
    "select",
    "id",
    "access_token",
    "user_token",
    "postgres_changes_options",
    "wait",
    "timeout",
    "broadcast",
    "presence",
    "enabled",
    "ack",
    "self",
    "version",
    "ids",
    "__proto__",
    "",
    "\\ud800",
];
const OPERATORS: [&str; 20] = [
    "eq",
    "neq",
    "lt",
    "lte",
    "gt",
    "gte",
    "in",
    "like",
    "ilike",
    "is",
    "match",
    "imatch",
    "isdistinct",
    "cs",
    "fts",
    "EQ",
    "not",
    "not.eq",
    "not.in",
    "not.not.is",
];
const NUMBERS: [&str; 14] = [
    "0",
    "-0",
    "1",
    "-1",
    "1.50",
    "1e5",
    "1E400",
    "-1e-400",
    "9223372036854775808",
    "18446744073709551616",
    "123456789012345678901234567890.1234567890",
    "4294967296",
    "0.0000000000000000000000000000000001",
    "01",
];
const STRINGS: [&str; 16] = [
    "",
    "true",
    "FALSE",
    "1",
    "INSERT",
    "insert",
    "*",
    "\\ud800",
    "\\ud83c\\udf89",
    "\\u0000",
    "\\\\\\\"",
    "é",
    "\u{1f389}",
    "sb_publishable_x",
    "eyJhbGciOiJub25lIn0.e30.",
    "\\x",
];

impl Generator {
    pub(crate) fn new(seed: u64, serializer: Serializer) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(seed),
            serializer,
        }
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.rng.random_range(0..n) == 0
    }

    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list.choose(&mut self.rng).unwrap()
    }

    pub(crate) fn frame(&mut self) -> Input {
        match self.rng.random_range(0..100) {
            0..4 => Input::of(self.bytes(200)),
            4..8 => self.tokens(),
            8..18 => Input::Binary(self.binary()),
            18..32 => {
                let mut bytes = self.message().into_bytes();
                self.spoil(&mut bytes);
                Input::of(bytes)
            }
            32 => Input::Text(self.deep()),
            33..36 => {
                let mut bytes = self.binary();
                self.spoil(&mut bytes);
                Input::Binary(bytes)
            }
            _ => Input::Text(self.message()),
        }
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.rng.random_range(0..=most)];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    /// What JSON is made of, in no order.
    fn tokens(&mut self) -> Input {
        const TOKENS: [&str; 16] = [
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "null",
            "true",
            "1",
            "\"topic\"",
            "\"ref\"",
            "\\",
            " ",
            "\"phx_join\"",
            "\"realtime:a\"",
        ];
        let count = self.rng.random_range(0..30);
        let mut text = String::new();
        for _ in 0..count {
            let token = self.of(&TOKENS);
            text.push_str(token);
        }
        Input::Text(text)
    }

    fn spoil(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.rng.random_range(1..4) {
            if bytes.is_empty() {
                return;
            }
            let at = self.rng.random_range(0..bytes.len());
            match self.rng.random_range(0..5) {
                0 => bytes.truncate(at),
                1 => {
                    bytes.remove(at);
                }
                2 => bytes.insert(at, self.rng.random()),
                3 => bytes[at] = self.rng.random(),
                _ => {
                    let end = self.rng.random_range(at..=bytes.len().min(at + 40));
                    let slice = bytes[at..end].to_vec();
                    bytes.splice(at..at, slice);
                }
            }
        }
    }

    fn deep(&mut self) -> String {
        let depth = if self.one_in(50) {
            20_000
        } else {
            self.rng.random_range(1..300)
        };
        let (open, close) = if self.one_in(2) {
            ("[", "]")
        } else {
            ("{\"a\":", "}")
        };
        let inner = if self.one_in(3) { "" } else { "1" };
        let value = format!("{}{inner}{}", open.repeat(depth), close.repeat(depth));
        if self.one_in(2) {
            return value;
        }
        let payload = format!("{{\"config\":{{\"postgres_changes\":[{{\"table\":{value}}}]}}}}");
        self.framed("\"1\"", "\"1\"", "realtime:a", "phx_join", &payload)
    }

    /// A push (kind 0) or a broadcast (kind 3), or a kind that there is not; the lengths may lie.
    fn binary(&mut self) -> Vec<u8> {
        let kind = self.rng.random_range(0..6_u8);
        let names = [
            self.of(&["", "1", "22"]),
            self.of(&["", "2", "\u{1f389}"]),
            self.of(&TOPICS),
            self.of(&EVENTS),
            self.of(&["", "{\"persist\":true}"]),
        ];
        let count = if kind == 3 { 5 } else { 4 };
        let mut frame = vec![kind];
        for name in &names[..count] {
            let length = u8::try_from(name.len()).unwrap();
            let lie = if self.one_in(10) {
                self.rng.random()
            } else {
                length
            };
            frame.push(lie);
        }
        if kind == 3 {
            frame.push(self.rng.random_range(0..3));
        }
        for name in &names[..count] {
            frame.extend_from_slice(name.as_bytes());
        }
        let payload = self.bytes(40);
        frame.extend(payload);
        frame
    }

    fn message(&mut self) -> String {
        let (join_ref, reference) = (self.reference(), self.reference());
        let topics = if self.one_in(4) { TOPICS.len() } else { 3 };
        let topic = self.of(&TOPICS[..topics]);
        let event = if self.one_in(2) {
            "phx_join"
        } else {
            self.of(&EVENTS)
        };
        let payload = match event {
            "phx_join" if !self.one_in(20) => self.join(),
            "access_token" if !self.one_in(4) => {
                let token = self.string();
                format!("{{\"access_token\":{token}}}")
            }
            _ => self.json(3),
        };
        self.framed(&join_ref, &reference, topic, event, &payload)
    }

    fn framed(
        &mut self,
        join_ref: &str,
        reference: &str,
        topic: &str,
        event: &str,
        payload: &str,
    ) -> String {
        let topic = serde_json::to_string(topic).unwrap();
        match self.serializer {
            Serializer::V2 => {
                let more = if self.one_in(20) { ",[],{}" } else { "" };
                format!("[{join_ref},{reference},{topic},\"{event}\",{payload}{more}]")
            }
            Serializer::V1 => {
                let more = if self.one_in(20) {
                    ",\"x\":[1],\"topic\":\"twice\""
                } else {
                    ""
                };
                format!(
                    "{{\"topic\":{topic},\"event\":\"{event}\",\"payload\":{payload},\"ref\":{reference},\"join_ref\":{join_ref}{more}}}"
                )
            }
        }
    }

    fn reference(&mut self) -> String {
        match self.rng.random_range(0..8) {
            0 => "null".to_owned(),
            1 => self.json(1),
            2 => self.of(&NUMBERS).to_owned(),
            _ => format!("\"{}\"", self.rng.random_range(1..20)),
        }
    }

    fn join(&mut self) -> String {
        if self.one_in(30) {
            return self.json(4);
        }
        let count = match self.rng.random_range(0..200) {
            0 => 120,
            1 => 1_200,
            _ => self.rng.random_range(0..4),
        };
        let mut bindings = String::from("[");
        for at in 0..count {
            if at > 0 {
                bindings.push(',');
            }
            if count > 100 {
                bindings.push_str("{\"table\":\"t\"}");
            } else {
                let binding = self.binding();
                bindings.push_str(&binding);
            }
        }
        bindings.push(']');
        if self.one_in(30) {
            bindings = self.json(2);
        }
        let mut payload = format!("{{\"config\":{{\"postgres_changes\":{bindings}");
        if self.one_in(4) {
            let private = self.boolean();
            payload.push_str(&format!(",\"private\":{private}"));
        }
        if self.one_in(4) {
            let wait = self.boolean();
            let options = format!("\"postgres_changes_options\":{{\"wait\":{wait}}}");
            payload.push_str(&format!(",{options}"));
        }
        if self.one_in(6) {
            let (key, value) = (self.of(&KEYS), self.json(2));
            payload.push_str(&format!(",\"{key}\":{value}"));
        }
        payload.push('}');
        if self.one_in(4) {
            let (key, token) = (self.of(&["access_token", "user_token"]), self.string());
            payload.push_str(&format!(",\"{key}\":{token}"));
        }
        payload.push('}');
        payload
    }

    fn boolean(&mut self) -> String {
        self.of(&["true", "false", "\"True\"", "\"false\"", "null", "1", "[]"])
            .to_owned()
    }

    fn binding(&mut self) -> String {
        if self.one_in(12) {
            return self.json(2);
        }
        let (event, schema) = (self.of(&["*", "INSERT", "update", "x"]), self.of(&NAMES));
        let table = self.of(&NAMES);
        let mut binding = format!("{{\"event\":\"{event}\",\"schema\" : \"{schema}\"");
        if !self.one_in(4) {
            binding.push_str(&format!(", \"table\":\"{table}\""));
        }
        if !self.one_in(3) {
            let filter = serde_json::to_string(&self.filter()).unwrap();
            binding.push_str(&format!(",\"filter\":{filter}"));
        }
        if self.one_in(5) {
            let select = match self.rng.random_range(0..4) {
                0 => self.json(2),
                1 => "[]".to_owned(),
                2 => "\"id\"".to_owned(),
                _ => "[\"id\",\"title\",7]".to_owned(),
            };
            binding.push_str(&format!(",\"select\":{select}"));
        }
        if self.one_in(8) {
            let (key, value) = (self.of(&KEYS), self.json(1));
            binding.push_str(&format!(",\"{key}\":{value}"));
        }
        binding.push('}');
        binding
    }

    /// The text of a filter: of the grammar, beside it, or of its characters.
    pub(crate) fn filter(&mut self) -> String {
        let mut filter = String::new();
        if self.one_in(8) {
            for _ in 0..self.rng.random_range(0..24) {
                let piece = self.of(&[
                    "=", ".", ",", "(", ")", "\"", "\\", " ", "in", "not", "eq", "a", "{", "}",
                    "é", "null", "\u{0}",
                ]);
                filter.push_str(piece);
            }
            return filter;
        }
        let count = if self.one_in(100) {
            300
        } else {
            self.rng.random_range(0..4)
        };
        for at in 0..count {
            if at > 0 {
                filter.push_str(self.of(&[",", ",", ",", ", ", ",,"]));
            }
            let (column, operator) = (self.of(&NAMES), self.of(&OPERATORS));
            filter.push_str(column);
            filter.push_str(self.of(&["=", "=", "=", "==", ""]));
            filter.push_str(operator);
            filter.push_str(self.of(&[".", ".", ".", ""]));
            if operator.ends_with("in") {
                let items = if self.one_in(50) {
                    150
                } else {
                    self.rng.random_range(0..5)
                };
                filter.push('(');
                for at in 0..items {
                    if at > 0 {
                        filter.push(',');
                    }
                    let value = self.value();
                    filter.push_str(&value);
                }
                filter.push_str(self.of(&[")", ")", ")", "", "))"]));
            } else {
                let value = self.value();
                filter.push_str(&value);
            }
        }
        filter
    }

    fn value(&mut self) -> String {
        match self.rng.random_range(0..8) {
            0 => "null".to_owned(),
            1 => "\"quoted, ) \\\" text\"".to_owned(),
            2 => "\"open".to_owned(),
            3 => self.of(&NUMBERS).to_owned(),
            4 => "[a-z]{1,3}%_".to_owned(),
            5 => "é".repeat(self.rng.random_range(0..40)),
            _ => self.rng.random_range(-5..1000).to_string(),
        }
    }

    fn string(&mut self) -> String {
        match self.rng.random_range(0..10) {
            0 => self.json(1),
            1 => format!("\"{}\"", "x".repeat(self.rng.random_range(0..300))),
            2 => serde_json::to_string(&self.filter()).unwrap(),
            _ => format!("\"{}\"", self.of(&STRINGS)),
        }
    }

    pub(crate) fn json(&mut self, depth: u32) -> String {
        let kinds = if depth == 0 { 5 } else { 8 };
        match self.rng.random_range(0..kinds) {
            0 => self.of(&["null", "true", "false"]).to_owned(),
            1 => self.of(&NUMBERS).to_owned(),
            2..5 => format!("\"{}\"", self.of(&STRINGS)),
            5 => {
                let count = self.rng.random_range(0..4);
                let items: Vec<_> = (0..count).map(|_| self.json(depth - 1)).collect();
                format!("[{}]", items.join(","))
            }
            _ => {
                let count = if self.one_in(200) {
                    70
                } else {
                    self.rng.random_range(0..5)
                };
                let items: Vec<_> = (0..count)
                    .map(|_| {
                        let key = self.of(&KEYS);
                        let value = if count > 64 {
                            "1".to_owned()
                        } else {
                            self.json(depth - 1)
                        };
                        format!("\"{key}\": {value}")
                    })
                    .collect();
                format!("{{{}}}", items.join(","))
            }
        }
    }
}
