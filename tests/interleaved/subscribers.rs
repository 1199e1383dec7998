//! Who watches what: most without a socket, some with one.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rowcast::subscription::{Events, Start, Wanted, filter};
use serde_json::{Value, json};

use crate::harness::{ANN, BEN, Relay, Seen, Watcher};
use crate::rows::CAT;
use crate::socket::Socket;

/// A filter as clients write it, as SQL, and the columns that it reads.
pub(crate) struct Filter {
    pub(crate) text: &'static str,
    pub(crate) sql: &'static str,
    pub(crate) reads: &'static [&'static str],
}

const fn of(text: &'static str, sql: &'static str, reads: &'static [&'static str]) -> Filter {
    Filter { text, sql, reads }
}

pub(crate) const FILTERS: [Filter; 9] = [
    of("", "true", &[]),
    of("", "true", &[]),
    of("org=eq.1", "org = 1", &["org"]),
    of("org=in.(0,2)", "org in (0, 2)", &["org"]),
    of("s=eq.a", "s = 'a'", &["s"]),
    of("s=neq.b", "s <> 'b'", &["s"]),
    of("ok=eq.true", "ok", &["ok"]),
    of("n=gt.2", "n > 2", &["n"]),
    of("ok=eq.true,n=lte.3", "ok and n <= 3", &["ok", "n"]),
];

pub(crate) const ROLES: [&str; 4] = [
    "authenticated",
    "anon",
    "service_role",
    "interleaved_keeper",
];

/// Somebody who may ask.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    pub(crate) role: &'static str,
    pub(crate) claims: Value,
    /// Whether reading the claims may raise an error.
    pub(crate) raises: bool,
}

pub(crate) fn everybody() -> Vec<Who> {
    let who = |role: &'static str, mut claims: Value| {
        claims["role"] = role.into();
        let raises = claims["sub"] == "nobody";
        Who {
            role,
            claims,
            raises,
        }
    };
    let user = |claims: Value| who("authenticated", claims);
    let [authenticated, anon, service, keeper] = ROLES;
    vec![
        user(json!({"sub": ANN, "org": 1, "s": "a"})),
        user(json!({"sub": ANN, "org": 2, "s": "b"})),
        user(json!({"sub": BEN, "org": 1, "s": "ab"})),
        user(json!({"sub": BEN, "org": 3})),
        user(json!({"sub": CAT, "org": 0, "s": "é"})),
        user(json!({"sub": CAT})),
        user(json!({"org": 2})),
        user(json!({})),
        user(json!({"sub": "nobody", "org": "x"})),
        who(authenticated, json!({"sub": null, "s": null})),
        who(anon, json!({})),
        who(anon, json!({"sub": BEN, "org": 3, "s": "a"})),
        who(service, json!({})),
        who(keeper, json!({"sub": ANN})),
    ]
}

/// What somebody asks for.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// Among [`everybody`].
    pub(crate) who: usize,
    pub(crate) table: &'static str,
    /// Among [`FILTERS`].
    pub(crate) filter: usize,
    pub(crate) event: &'static str,
    pub(crate) leave: bool,
}

impl Wish {
    pub(crate) fn random(random: &mut StdRng, who: usize, table: &'static str) -> Self {
        let event = *["*", "*", "*", "*", "INSERT", "UPDATE", "DELETE"]
            .choose(random)
            .unwrap();
        Self {
            who,
            table,
            filter: random.random_range(0..FILTERS.len()),
            event,
            leave: matches!(event, "*" | "DELETE") && random.random_bool(0.6),
        }
    }

    pub(crate) fn wants(&self, kind: &str) -> bool {
        self.event == "*" || self.event == kind
    }
}

/// The end of a subscriber at which its events come out.
pub(crate) enum Line {
    Inside(Watcher),
    Socket(Box<Socket>),
}

impl Line {
    /// Everything before a fence, or before it was told to read again.
    pub(crate) async fn until(&mut self, fence: u64) -> Vec<Seen> {
        match self {
            Self::Inside(watcher) => watcher.until(fence).await,
            Self::Socket(socket) => socket.until(fence).await,
        }
    }

    /// The reason of a `resync` that comes a moment later, if one does.
    pub(crate) async fn resync(&mut self) -> Option<String> {
        let late = async {
            match self {
                Self::Inside(watcher) => watcher.resync().await.to_owned(),
                Self::Socket(socket) => socket.resync().await,
            }
        };
        tokio::time::timeout(Duration::from_secs(10), late)
            .await
            .ok()
    }
}

pub(crate) struct Subscriber {
    pub(crate) wish: Wish,
    /// Whether it has a socket.
    pub(crate) by_socket: bool,
    /// `None` while it is out.
    pub(crate) line: Option<Line>,
}

impl Subscriber {
    /// Joins, or says why not.
    pub(crate) async fn join(
        &mut self,
        relay: &Relay,
        address: std::net::SocketAddr,
        who: &Who,
    ) -> Result<(), String> {
        let wish = &self.wish;
        let line = if self.by_socket {
            Line::Socket(Box::new(Socket::join(address, who, wish).await?))
        } else {
            let wanted = Wanted {
                id: 1,
                events: Events::from_name(wish.event),
                schema: Some("public".to_owned()),
                table: Some(wish.table.to_owned()),
                filter: filter::parse(FILTERS[wish.filter].text).expect("a filter"),
                select: None,
                leave: wish.leave,
                start: Start::default(),
            };
            Line::Inside(relay.watch_wanted(who.role, &who.claims, wanted).await?)
        };
        self.line = Some(line);
        Ok(())
    }
}

/// Those who watch a world: everybody each table several times, and a few of them by a socket.
pub(crate) fn subscribers(
    random: &mut StdRng,
    whos: usize,
    tables: &[&'static str],
) -> Vec<Subscriber> {
    let mut all = Vec::new();
    for table in tables {
        for who in 0..whos {
            for _ in 0..30 / tables.len() {
                all.push(Subscriber {
                    wish: Wish::random(random, who, table),
                    by_socket: false,
                    line: None,
                });
            }
        }
    }
    for _ in 0..8 {
        let who = random.random_range(0..whos);
        let table = tables.choose(random).unwrap();
        all.push(Subscriber {
            wish: Wish::random(random, who, table),
            by_socket: true,
            line: None,
        });
    }
    all
}
