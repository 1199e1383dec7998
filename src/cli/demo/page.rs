//! The page and the endpoints that only it uses.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context as _;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use futures_util::Stream;
use rand::seq::IndexedRandom;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex, broadcast};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::statements::{self, Journal, Ran};
use super::tokens::Tokens;
use super::{PEOPLE, Person, database, guard};
use crate::config::Secret;

const HTML: &str = include_str!("page.html");
const CSS: &str = include_str!("page.css");
const JS: &str = include_str!("page.js");
const CHANNEL_JS: &str = include_str!("channel.js");

/// A write names a person, an action and an id; nothing legitimate is longer.
const BODY_LIMIT: usize = 1024;

/// Everything the page shows, as its user may see it. One statement, hence one snapshot.
const ROWS: &str = "select json_build_object(
  'agents',      (select coalesce(json_agg(t order by t.name), '[]') from public.agents t),
  'contacts',    (select coalesce(json_agg(t order by t.name), '[]') from public.contacts t),
  'agent_tasks', (select coalesce(json_agg(t order by t.created_at), '[]') from public.agent_tasks t),
  'drafts',      (select coalesce(json_agg(t order by t.created_at), '[]') from public.drafts t),
  'follow_ups',  (select coalesce(json_agg(t order by t.created_at), '[]') from public.follow_ups t)
)::text";

/// What the endpoints work with.
pub(super) struct Page {
    database_url: String,
    /// One connection is enough for a page, and is made again when it is lost.
    client: Mutex<Option<Client>>,
    /// Where the relay is, as browsers reach it; empty where it is beside the page.
    relay_url: String,
    secret: Secret,
    journal: Journal,
    stop: CancellationToken,
}

impl Page {
    pub(super) fn new(
        database_url: &str,
        relay_url: &str,
        secret: Secret,
        journal: Journal,
        stop: CancellationToken,
    ) -> Self {
        Self {
            database_url: database_url.to_owned(),
            client: Mutex::new(None),
            relay_url: relay_url.to_owned(),
            secret,
            journal,
            stop,
        }
    }

    /// The connection, if it still stands, or a new one.
    async fn connected<'a>(
        &self,
        client: &'a mut Option<Client>,
    ) -> anyhow::Result<&'a mut Client> {
        if client.as_ref().is_none_or(Client::is_closed) {
            *client = Some(database::connect(&self.database_url).await?);
        }
        client.as_mut().context("no connection")
    }
}

/// The page's routes, each behind the same check of who asks. `listen` is where the demo listens.
pub(super) fn routes(page: Page, listen: IpAddr) -> Router {
    Router::new()
        .route("/", get(|| asset("text/html; charset=utf-8", HTML)))
        .route("/demo.css", get(|| asset("text/css; charset=utf-8", CSS)))
        .route(
            "/demo.js",
            get(|| asset("text/javascript; charset=utf-8", JS)),
        )
        .route(
            "/demo/channel.js",
            get(|| asset("text/javascript; charset=utf-8", CHANNEL_JS)),
        )
        .route("/demo/config.json", get(config))
        .route("/demo/rows", get(rows))
        .route("/demo/sql", get(sql))
        .route("/demo/write", post(write))
        .route_layer(DefaultBodyLimit::max(BODY_LIMIT))
        // For these routes only: the relay's own are other sites' business as well.
        .route_layer(middleware::from_fn_with_state(listen, guard::check))
        .with_state(Arc::new(page))
}

async fn asset(content_type: &'static str, body: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, content_type)], body)
}

/// What went wrong, in words for the page.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

impl From<anyhow::Error> for Refused {
    fn from(error: anyhow::Error) -> Self {
        tracing::warn!("the demo's page could not be answered: {error:#}");
        Self(
            StatusCode::SERVICE_UNAVAILABLE,
            "the database did not answer; it will be tried again".to_owned(),
        )
    }
}

/// Keys and names. The tokens are those of the example's two users, made anew for each page so
/// that one that is left open for long gets others; the check above keeps other sites from reading
/// them.
async fn config(State(page): State<Arc<Page>>) -> Result<Json<Value>, Refused> {
    let tokens = Tokens::mint(&page.secret)?;
    let people: Vec<Value> = tokens
        .people()
        .map(|(person, token)| {
            json!({
                "key": person.key,
                "name": person.name,
                "organization": person.organization,
                "token": token,
            })
        })
        .collect();
    Ok(Json(json!({
        "anon_key": tokens.anon(),
        "websocket": format!("{}/realtime/v1/websocket", page.relay_url),
        "now": statements::now_ms(),
        "people": people,
    })))
}

#[derive(Deserialize)]
struct RowsOf {
    user: String,
}

fn person(key: &str) -> Result<&'static Person, Refused> {
    PEOPLE
        .iter()
        .find(|person| person.key == key)
        .ok_or_else(|| Refused(StatusCode::NOT_FOUND, "nobody of that name".to_owned()))
}

/// What a person may see now: read as `authenticated` with their claims, so that PostgreSQL's
/// policies decide here as well.
async fn rows(
    State(page): State<Arc<Page>>,
    Query(RowsOf { user }): Query<RowsOf>,
) -> Result<Response, Refused> {
    let person = person(&user)?;
    let text = read_as(&page, person).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

async fn read_as(page: &Page, person: &Person) -> anyhow::Result<String> {
    let mut client = page.client.lock().await;
    let client = page.connected(&mut client).await?;
    let claims = json!({ "sub": person.user_id, "role": "authenticated" }).to_string();
    let transaction = client
        .build_transaction()
        .read_only(true)
        .start()
        .await
        .context("cannot begin")?;
    transaction
        .query(
            "select set_config('role', 'authenticated', true), \
             set_config('request.jwt.claims', $1, true)",
            &[&claims],
        )
        .await
        .context("cannot act as the user")?;
    let row = transaction
        .query_one(ROWS, &[])
        .await
        .context("cannot read")?;
    let text = row.try_get(0).context("cannot read the answer")?;
    transaction.commit().await.context("cannot end")?;
    Ok(text)
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Insert,
    Advance,
    Delete,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Write {
    user: String,
    action: Action,
    id: Option<String>,
}

/// Runs one of three statements, as the tables' owner but confined to the person's organisation by
/// its parameters.
async fn write(
    State(page): State<Arc<Page>>,
    write: Result<Json<Write>, JsonRejection>,
) -> Result<Json<Ran>, Refused> {
    let Json(write) = write.map_err(|error| Refused(error.status(), error.body_text()))?;
    let person = person(&write.user)?;
    let ran = change(&page, person, &write).await?;
    if ran.rows == 0 {
        let gone = "there is no such task to change any more";
        return Err(Refused(StatusCode::CONFLICT, gone.to_owned()));
    }
    Ok(Json(Ran::clone(&ran)))
}

async fn change(page: &Page, person: &'static Person, write: &Write) -> Result<Arc<Ran>, Refused> {
    let organization = person.organization_id;
    let id = match &write.id {
        Some(id) if is_uuid(id) => id,
        None if matches!(write.action, Action::Insert) => "",
        _ => {
            let which = "the id of a task is needed";
            return Err(Refused(StatusCode::BAD_REQUEST, which.to_owned()));
        }
    };
    let (sql, parameters): (_, Vec<&str>) = match write.action {
        Action::Insert => (
            statements::INSERT_TASK,
            vec![
                organization,
                person.user_id,
                any_of(&person.agents),
                any_of(&person.contacts),
                any_of(&person.titles),
            ],
        ),
        Action::Advance => (
            statements::ADVANCE_TASK,
            vec![id, organization, "Moved on by hand"],
        ),
        Action::Delete => (statements::DELETE_TASK, vec![id, organization]),
    };
    let mut client = page.client.lock().await;
    let client = page.connected(&mut client).await?;
    let (_, ran) = page
        .journal
        .run(client, person.name, sql, &parameters)
        .await
        .context("cannot write")?;
    Ok(ran)
}

fn any_of(choices: &[&'static str]) -> &'static str {
    choices
        .choose(&mut rand::rng())
        .copied()
        .unwrap_or_default()
}

/// Whether a text is a UUID as PostgreSQL prints one. Checked here so that a wrong one is a wrong
/// request and not a failed statement.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// The statements that run, as they run, until the demo ends. Where a page fell behind an event
/// `missed` says how many it will not be told of.
async fn sql(State(page): State<Arc<Page>>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    Sse::new(statements_from(page.journal.watch(), page.stop.clone()))
        .keep_alive(KeepAlive::default())
}

fn statements_from(
    entries: broadcast::Receiver<Arc<Ran>>,
    stop: CancellationToken,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let watch = (entries, stop);
    futures_util::stream::unfold(watch, |(mut entries, stop)| async move {
        loop {
            let entry = tokio::select! {
                entry = entries.recv() => entry,
                () = stop.cancelled() => return None,
            };
            match entry {
                Ok(ran) => {
                    let Ok(event) = Event::default().json_data(&*ran) else {
                        continue;
                    };
                    return Some((Ok(event), (entries, stop)));
                }
                Err(RecvError::Lagged(missed)) => {
                    let event = Event::default().event("missed").data(missed.to_string());
                    return Some((Ok(event), (entries, stop)));
                }
                Err(RecvError::Closed) => return None,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_page_that_fell_behind_is_told_how_many_statements_it_missed() {
        let (sender, entries) = broadcast::channel(2);
        let mut body = Sse::new(statements_from(entries, CancellationToken::new()))
            .into_response()
            .into_body()
            .into_data_stream();
        for number in 1..=5 {
            let ran = Ran {
                by: "worker",
                sql: "update",
                parameters: vec![number.to_string()],
                rows: 1,
                id: None,
                committed_at: 0,
                took_ms: 0.0,
            };
            sender.send(Arc::new(ran)).unwrap();
        }
        drop(sender);
        let mut told = Vec::new();
        while let Some(event) = body.next().await {
            told.push(String::from_utf8(event.unwrap().to_vec()).unwrap());
        }
        assert_eq!(told.len(), 3, "{told:?}");
        assert_eq!(told[0], "event: missed\ndata: 3\n\n");
        assert!(told[1].contains(r#""parameters":["4"]"#), "{told:?}");
        assert!(told[2].contains(r#""parameters":["5"]"#), "{told:?}");
    }

    #[test]
    fn only_uuids_are_taken_for_ids() {
        assert!(is_uuid("0a000000-0000-4000-8000-0000000000f1"));
        assert!(!is_uuid("0a000000-0000-4000-8000-0000000000f"));
        assert!(!is_uuid("0a000000x0000-4000-8000-0000000000f1"));
        assert!(!is_uuid("'; drop table agent_tasks; --......"));
    }

    #[test]
    fn a_write_says_exactly_what_it_may_say() {
        let taken = |text: &str| serde_json::from_str::<Write>(text).is_ok();
        assert!(taken(r#"{"user":"ann","action":"insert"}"#));
        assert!(!taken(r#"{"user":"ann","action":"truncate"}"#));
        assert!(!taken(
            r#"{"user":"ann","action":"insert","sql":"select 1"}"#
        ));
    }
}
