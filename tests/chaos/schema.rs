//! The tables, their policies, and what a user may see of them now.

use serde_json::{Value, json};

use crate::harness::{connect, unix_now};

/// Rows never change hands and never move between teams: a client is not told of a row that leaves
/// its view. `version` counts a row's changes from 1, so that a lost one shows. `strict` tells
/// under which of its two policies a row of `draft` was written.
pub(crate) const SCHEMA: &str = "
create table task (id bigint primary key, owner uuid not null, team bigint not null,
    shared boolean not null, strict boolean not null, version bigint not null, body text);
create table open (like task including all);
create table draft (like task including all);
create table plan (like task including all);
create table fence (id bigint primary key);
create table member (team bigint, person uuid, primary key (team, person));
create table era (strict boolean not null);
create table elsewhere (id bigserial primary key, body text);
insert into era values (true);
alter table task replica identity full;
alter table open replica identity full;
alter table draft replica identity full;
alter table plan replica identity full;
alter table task enable row level security;
alter table draft enable row level security;
alter table plan enable row level security;
create policy mine on task for select to authenticated using (owner = auth.uid());
create policy seen on draft for select to authenticated using (owner = auth.uid());
create policy ours on plan for select to authenticated using (exists
    (select from member m where m.team = plan.team and m.person = auth.uid()));
grant select on task, open, draft, plan, fence, member to authenticated;
";

pub(crate) const PUBLISH: &str =
    "create publication rowcast for table task, open, draft, plan, fence, member";

pub(crate) const TABLES: [&str; 4] = ["task", "open", "draft", "plan"];
pub(crate) const DRAFT: usize = 2;

pub(crate) const USERS: usize = 4;
pub(crate) const TEAMS: i64 = 3;

/// Nobody of this user is ever a member of this team.
pub(crate) const fn never(user: usize, team: i64) -> bool {
    user as i64 % TEAMS == team
}

pub(crate) fn person(user: usize) -> String {
    format!("00000000-0000-4000-8000-{user:012}")
}

pub(crate) fn token(user: usize) -> String {
    // Good over every jump of the clock.
    let claims = json!({
        "role": "authenticated", "sub": person(user), "exp": unix_now() + 90 * 86_400,
    });
    rowcast::auth::mint(crate::harness::SECRET, &claims).unwrap()
}

/// What clients ask to be filtered by, and the same in SQL.
pub(crate) const FILTERS: [(&str, &str); 3] = [
    ("", "true"),
    ("shared=eq.true", "shared"),
    ("team=in.(0,1)", "team in (0, 1)"),
];

/// The rows of a table that a user may see now, read as that user.
pub(crate) async fn visible(
    sql: &mut tokio_postgres::Client,
    (user, table, filter): (usize, usize, usize),
) -> Result<Vec<Value>, tokio_postgres::Error> {
    let claims = json!({ "role": "authenticated", "sub": person(user) }).to_string();
    let transaction = sql.transaction().await?;
    transaction
        .batch_execute("set local role authenticated")
        .await?;
    transaction
        .execute(
            "select set_config('request.jwt.claims', $1, true)",
            &[&claims],
        )
        .await?;
    let (table, condition) = (TABLES[table], FILTERS[filter].1);
    let rows = transaction
        .query(
            &format!("select to_jsonb(t) from {table} t where {condition}"),
            &[],
        )
        .await?;
    transaction.commit().await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Whether a user may ever have been shown this row; `written` where it is shown because it was
/// written just so.
pub(crate) fn may_be_shown(user: usize, table: usize, row: &Value, written: bool) -> bool {
    let mine = row["owner"] == person(user).as_str();
    match TABLES[table] {
        "task" => mine,
        "open" => true,
        "draft" => mine || row["shared"] == true && !(written && row["strict"] == true),
        "plan" => row["team"].as_i64().is_some_and(|team| !never(user, team)),
        other => panic!("{other}"),
    }
}

/// A connection, once there is one.
pub(crate) async fn connected(
    url: &tokio::sync::watch::Receiver<String>,
) -> tokio_postgres::Client {
    loop {
        let now = url.borrow().clone();
        if let Ok((client, connection)) = tokio_postgres::connect(&now, tokio_postgres::NoTls).await
        {
            tokio::spawn(async move {
                // Whoever uses it sees it end.
                let _ended = connection.await;
            });
            return client;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

pub(crate) async fn make(url: &str) {
    let sql = connect(url).await;
    sql.batch_execute(include_str!("../../sql/auth.sql"))
        .await
        .unwrap();
    sql.batch_execute(SCHEMA).await.unwrap();
    sql.batch_execute(PUBLISH).await.unwrap();
    for user in 0..USERS {
        for team in 0..TEAMS {
            if !never(user, team) && (user + 1) as i64 % TEAMS == team {
                let member = format!("insert into member values ({team}, '{}')", person(user));
                sql.batch_execute(&member).await.unwrap();
            }
        }
    }
}
