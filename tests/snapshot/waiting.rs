//! What waits for a commit that is in the stream and not visible, because its synchronous standby
//! does not answer, and what does not.

use std::time::Duration;

use rowcast::app::Core;
use rowcast::config::Config;
use rowcast::log::Cursor;
use rowcast::pg::throwaway::{Options, Throwaway};
use rowcast::router::Event;
use serde_json::json;
use tokio_postgres::Client as Sql;

use crate::client::{Asked, Client, Heard, id, principal};
use crate::hanging::{hears_of, name_standby, standby_answers, start, write};
use crate::harness::{ANN, DEADLINE, config, connect};

pub(crate) struct World {
    pub(crate) cluster: Throwaway,
    url: String,
    sql: Sql,
    pub(crate) core: Core,
}

impl World {
    pub(crate) async fn start(schema: &str) -> Self {
        Self::with(schema, |_| {}).await
    }

    pub(crate) async fn with(schema: &str, adjust: impl FnOnce(&mut Config)) -> Self {
        let cluster = Throwaway::start(Options::default());
        let cluster = cluster.await.expect("a cluster");
        let url = cluster.fresh_database().await.expect("a database");
        let sql = connect(&url).await;
        let setting = "set synchronous_commit = local";
        sql.batch_execute(setting).await.expect("a setting");
        sql.batch_execute(include_str!("../../sql/auth.sql"))
            .await
            .expect("auth.sql");
        sql.batch_execute(&format!(
            "create table fence (id bigint primary key);
             create table a (id bigint primary key);
             create table b (id bigint primary key);
             create table c (id bigint primary key);
             grant select on a, b, fence to authenticated;
             create publication rowcast for table a, b, c, fence;
             {schema}"
        ))
        .await
        .expect("a schema");
        let mut config = config(&url);
        // Longer than anything here takes: who waits for an answer fails.
        config.ask_timeout = 2 * DEADLINE;
        adjust(&mut config);
        let core = start(&config).await;
        Self {
            cluster,
            url,
            sql,
            core,
        }
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.sql.batch_execute(sql).await.expect(sql);
    }

    /// Somebody who follows `table`, from `since` on or from its rows.
    pub(crate) fn client(&self, table: &str, since: Option<Cursor>) -> Client {
        let who = principal("authenticated", &json!({ "sub": ANN }));
        let asked = Asked {
            since,
            ..Asked::of(table)
        };
        Client::new(&self.core.router, who, asked)
    }

    /// Somebody who has the rows of `table` and hears what changes.
    pub(crate) async fn following(&self, table: &str) -> Client {
        self.following_where(table, "").await
    }

    async fn following_where(&self, table: &str, filter: &str) -> Client {
        let mut client = self.client(table, None);
        client.asked.filter = filter.to_owned();
        client.snapshot().await;
        assert_eq!(client.heard().await, Heard::CaughtUp);
        client
    }

    async fn returning(&self, table: &str, since: Cursor) -> Client {
        let mut client = self.client(table, Some(since));
        client.join().await;
        assert_eq!(client.heard().await, Heard::Joined(vec![]));
        client
    }

    /// Commits a row of `table` that stays invisible until [`World::answer`], and waits until it is
    /// in the log.
    async fn hang(&self, table: &str, id: i64) -> tokio::task::JoinHandle<()> {
        self.hang_on(&format!("insert into {table} values ({id})"))
            .await
    }

    async fn hang_on(&self, sql: &str) -> tokio::task::JoinHandle<()> {
        name_standby(&self.sql, "nobody").await;
        let before = self.core.metrics.changes_read.get();
        let hanging = write(&self.url, sql);
        let read = async || self.core.metrics.changes_read.get() > before;
        until("the change is in the log", read).await;
        hanging
    }

    /// The standby answers.
    async fn answer(&self, hanging: tokio::task::JoinHandle<()>) {
        assert!(!hanging.is_finished(), "it hung");
        standby_answers(&self.sql).await;
        hanging.await.expect("it goes on");
    }

    /// The server was started anew.
    pub(crate) async fn connect_again(&mut self) {
        self.sql = connect(&self.url).await;
    }

    pub(crate) async fn stop(self) {
        self.core.stop().await;
        self.cluster.stop().await;
    }
}

pub(crate) async fn until(what: &str, met: impl AsyncFn() -> bool) {
    let met = async {
        while !met().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, met).await.expect(what);
}

#[tokio::test]
async fn a_table_whose_first_row_hangs_holds_up_no_join_no_rows_and_no_look_at_the_catalog() {
    let world = World::start("").await;
    let _on_a = world.following("a").await;
    let on_b = world.following("b").await;
    // Whoever missed this comes back later.
    let since = world.core.router.position();
    world.run("insert into a values (1)").await;
    until("handed out", async || {
        world.core.router.position().offset > since.offset
    })
    .await;
    let hanging = world.hang("b", 1).await;
    let waits = async || world.core.metrics.catalog_wait.get() > 0.0;
    until("the router waits for it, and says so", waits).await;

    let mut reader = world.client("a", None);
    assert_eq!(reader.snapshot().await[0].rows.len(), 1);
    assert_eq!(reader.heard().await, Heard::CaughtUp);
    let back = world.returning("a", since).await;
    hears_of(&back, 1).await;
    assert_eq!(back.heard().await, Heard::CaughtUp);
    let refusal = world.client("nowhere", None).refusal().await;
    assert!(refusal.contains("check Realtime"), "{refusal}");
    let reloads = world.core.metrics.catalog_reloads.get();
    world.run("grant select on c to authenticated").await;
    until("the catalog is looked at", async || {
        world.core.metrics.catalog_reloads.get() > reloads
    })
    .await;
    // What commits behind it comes behind it.
    world.run("insert into b values (2)").await;
    world.run("insert into a values (2)").await;
    let on_b_late = world.following("b").await;
    assert!(world.core.metrics.catalog_wait.get() > 0.0);
    until("it is named", async || {
        world.core.readiness.delay().is_some()
    })
    .await;
    let told = world.core.readiness.delay().expect("a delay").reason();
    assert!(told.contains("synchronous_standby_names"), "{told}");

    world.answer(hanging).await;
    hears_of(&reader, 2).await;
    hears_of(&back, 2).await;
    for client in [&on_b, &on_b_late] {
        match client.heard().await {
            Heard::Change(data) => assert_eq!(id(&data["record"]), 1),
            other => panic!("the row that hung was expected, not {other:?}"),
        }
    }
    hears_of(&on_b, 2).await;
    until("nothing is said to wait", async || {
        world.core.metrics.catalog_wait.get() == 0.0 && world.core.readiness.delay().is_none()
    })
    .await;
    world.stop().await;
}

#[tokio::test]
async fn a_row_that_hangs_holds_up_those_who_missed_it_and_none_that_come_back_with_them() {
    let world = World::start("").await;
    let _on_a = world.following("a").await;
    let since = world.core.router.position();
    // Nobody hears of it yet, so the router does not wait for it.
    let hanging = world.hang("b", 1).await;
    world.run("insert into a values (1)").await;
    until("the router is past it", async || {
        world.core.router.position().offset.0 >= since.offset.0 + 2
    })
    .await;
    let mut on_b = world.returning("b", since).await;
    let on_a = world.returning("a", since).await;
    let also_on_b = world.returning("b", since).await;
    hears_of(&on_a, 1).await;
    assert_eq!(on_a.heard().await, Heard::CaughtUp);
    // A new token is answered meanwhile, and who leaves and comes back is as well.
    on_b.join_same().await;
    assert_eq!(on_b.heard().await, Heard::Joined(vec![]));
    also_on_b.leave().await;
    let again_on_b = world.returning("b", since).await;
    world.run("insert into a values (2)").await;
    hears_of(&on_a, 2).await;
    // A second cohort is not held up either, behind however many that are.
    for _ in 0..5 {
        world.returning("b", since).await;
    }
    let late_on_a = world.returning("a", since).await;
    hears_of(&late_on_a, 2).await;
    assert_eq!(late_on_a.heard().await, Heard::CaughtUp);

    world.answer(hanging).await;
    for client in [&mut on_b, &mut { again_on_b }] {
        hears_of(client, 1).await;
        assert_eq!(client.heard().await, Heard::CaughtUp);
        world
            .run("delete from b where id = 2; insert into b values (2)")
            .await;
        hears_of(client, 2).await;
    }
    world.stop().await;
}

/// What is put into an outbox and does not come out.
fn comes_out(client: &Client) -> bool {
    let mut events = Vec::new();
    client.outbox.take(&mut events, 1).expect("room") > 0
}

#[tokio::test]
async fn whoever_is_told_to_read_finds_all_that_it_is_not_told_of() {
    let world = World::start("").await;
    let (on_a, on_b) = (world.following("a").await, world.following("b").await);
    for table in ["a", "b"] {
        world.run(&format!("insert into {table} values (0)")).await;
    }
    hears_of(&on_a, 0).await;
    hears_of(&on_b, 0).await;
    let plain = async |table: &str| {
        let mut client = world.client(table, None);
        client.asked.plain = true;
        client.join().await;
        client
    };
    let before = world.core.router.position();
    let hanging = world.hang("a", 1).await;
    hears_of(&on_a, 1).await;
    // It would read the table without the row, and be told of what comes behind it only.
    let reader = plain("a").await;
    let of_other = plain("b").await;
    assert_eq!(of_other.heard().await, Heard::Joined(vec![]));
    assert!(!comes_out(&reader), "the row cannot be read yet");
    world.run("insert into b values (1)").await;
    hears_of(&of_other, 1).await;
    world.answer(hanging).await;
    assert_eq!(reader.heard().await, Heard::Joined(vec![]));
    let row = "select count(*) from a where id = 1";
    let rows: i64 = world.sql.query_one(row, &[]).await.expect(row).get(0);
    assert_eq!(rows, 1);
    world.run("insert into a values (2)").await;
    hears_of(&reader, 2).await;

    // Where it takes long, it is told later that it may have missed something.
    let hanging = world.hang("a", 3).await;
    hears_of(&reader, 3).await;
    let impatient = plain("a").await;
    assert_eq!(impatient.heard().await, Heard::Joined(vec![]));
    // And who is told to read goes on from before the row.
    world.run("drop table b").await;
    let resync = async {
        loop {
            if let Event::Resync { cursor, .. } = of_other.event().await {
                return cursor.expect("a cursor");
            }
        }
    };
    let cursor = resync.await;
    assert!(cursor.offset > before.offset && cursor.offset < world.core.router.position().offset);
    let back = world.returning("a", cursor).await;
    world.answer(hanging).await;
    hears_of(&back, 3).await;
    assert_eq!(
        impatient.heard().await,
        Heard::Again("undecided".to_owned())
    );
    world.stop().await;
}

#[tokio::test]
async fn a_question_about_a_row_that_hangs_holds_up_no_other() {
    let world = World::start(
        "create table asked (id bigint primary key);
         alter table asked enable row level security;
         create function passes(id bigint) returns bool language plpgsql as
             'begin for i in 1..1 loop perform 1; end loop; return id not in (2, 4); end';
         create policy passing on asked for select to authenticated using (passes(id));
         grant select on asked to authenticated;
         alter publication rowcast add table asked;",
    )
    .await;
    let of_one = world.following_where("asked", "id=eq.1").await;
    let of_others = world.following_where("asked", "id=neq.1").await;
    world.run("insert into asked values (0)").await;
    hears_of(&of_others, 0).await;
    let questions = world.core.metrics.questions.get();
    assert!(questions > 0, "the policy is asked about");
    let hanging = world.hang("asked", 1).await;
    for id in 2..=5 {
        world.run(&format!("insert into asked values ({id})")).await;
    }
    for expected in [3, 5] {
        match of_others.heard().await {
            Heard::Change(data) => assert_eq!(id(&data["record"]), expected),
            other => panic!("a row was expected, not {other:?}"),
        }
    }
    assert_eq!(
        world.core.metrics.questions.get(),
        questions + 4,
        "and about the row that hangs nothing was asked"
    );
    world.answer(hanging).await;
    hears_of(&of_one, 1).await;
    world.stop().await;
}

/// Rows with an odd number are shown; of number 3 it takes long to say so.
const SLOWLY_ASKED: &str = "
    create table asked (id bigint primary key, version int default 1);
    alter table asked enable row level security;
    create function passes(id bigint) returns bool language plpgsql as
        'begin
           for i in 1..1 loop perform 1; end loop;
           if id = 3 then perform pg_sleep(30); end if;
           return id % 2 = 1;
         end';
    create policy passing on asked for select to authenticated using (passes(id));
    grant select on asked to authenticated;
    alter publication rowcast add table asked;";

#[tokio::test]
async fn who_is_to_read_again_for_a_row_in_doubt_hears_of_none_behind_it_first() {
    let timeout = |config: &mut Config| config.ask_timeout = Duration::from_secs(2);
    let world = World::with(SLOWLY_ASKED, timeout).await;
    let client = world.following("asked").await;
    world.run("insert into asked values (1)").await;
    hears_of(&client, 1).await;
    let asked = async || {
        world.run("insert into asked values (3)").await;
        world.run("update asked set version = 2 where id = 1").await;
    };
    asked().await;
    // Not the update, which was decided meanwhile.
    assert_eq!(client.heard().await, Heard::Again("undecided".to_owned()));
    world.stop().await;
}

#[tokio::test]
async fn a_row_that_could_not_be_asked_about_as_it_hangs_is_not_lost_to_who_reads_again() {
    let timeout = |config: &mut Config| config.ask_timeout = Duration::from_secs(1);
    let world = World::with(SLOWLY_ASKED, timeout).await;
    let client = world.following("asked").await;
    world.run("insert into asked values (1)").await;
    hears_of(&client, 1).await;
    let hanging = world.hang("asked", 5).await;
    // Told to read again, it finds no row; what it goes on from lies before that.
    let cursor = loop {
        match client.event().await {
            Event::Resync { cursor, reason, .. } => {
                assert_eq!(reason.as_str(), "undecided");
                break cursor.expect("a place before the row");
            }
            Event::Introduced { .. } => {}
            other => panic!("it was to be told to read again, not {other:?}"),
        }
    };
    let rows = async || {
        let row = "select count(*) from asked where id = 5";
        let row = world.sql.query_one(row, &[]).await;
        row.expect("a number").get::<_, i64>(0)
    };
    assert_eq!(rows().await, 0);
    assert!(
        cursor.offset < world.core.router.position().offset,
        "{cursor:?}"
    );
    let back = world.returning("asked", cursor).await;
    world.answer(hanging).await;
    // What the function looks into is not known: it is told to read once more, or it is shown the row.
    match back.heard().await {
        Heard::Change(data) => assert_eq!(id(&data["record"]), 5),
        Heard::Again(_) => assert_eq!(rows().await, 1),
        other => panic!("the row was expected, not {other:?}"),
    }
    world.stop().await;
}

#[tokio::test]
async fn what_the_log_lets_go_while_a_row_hangs_is_not_waited_for() {
    let world = World::with("", |config| config.log_max_changes = 50).await;
    let on_a = world.following("a").await;
    let on_b = world.following("b").await;
    let before = world.core.router.position().offset.0;
    let hanging = world.hang("b", 1).await;
    let waits = async || world.core.metrics.catalog_wait.get() > 0.0;
    until("the router waits for it", waits).await;
    for id in 1..=60 {
        world.run(&format!("insert into a values ({id})")).await;
    }
    for client in [&on_a, &on_b] {
        assert_eq!(client.heard().await, Heard::Again("trimmed".to_owned()));
    }
    // The first of these rows may have told them already, and the last let go of that place too.
    until("all is handed out", async || {
        world.core.router.position().offset.0 >= before + 61
    })
    .await;
    // Rows that are read first would lack the one that hangs, and its change with them.
    let place = world.core.router.position();
    let (again_on_a, again_on_b) = (
        world.returning("a", place).await,
        world.returning("b", place).await,
    );
    world.run("insert into a values (100)").await;
    hears_of(&again_on_a, 100).await;
    world.answer(hanging).await;
    world.run("insert into b values (2)").await;
    hears_of(&again_on_b, 2).await;
    world.stop().await;
}

#[tokio::test]
async fn a_row_before_an_alter_in_a_transaction_that_hangs_is_judged_as_it_was_written() {
    let world = World::start("").await;
    let on_b = world.following("b").await;
    world.run("insert into b values (0)").await;
    hears_of(&on_b, 0).await;
    let hanging = world
        .hang_on(
            "insert into b values (1); alter table b add column more int; \
             insert into b values (2, 2)",
        )
        .await;
    let waits = async || world.core.metrics.catalog_wait.get() > 0.0;
    until("the router waits for it", waits).await;
    // It is looked at again, and must not find what hangs before the router has come to it.
    let refusal = tokio::spawn({
        let mut client = world.client("nowhere", None);
        async move { client.refusal().await }
    });
    world.answer(hanging).await;
    for expected in [1, 2] {
        match on_b.heard().await {
            Heard::Change(data) => assert_eq!(id(&data["record"]), expected, "{data}"),
            other => panic!("a row was expected, not {other:?}"),
        }
    }
    assert!(refusal.await.expect("an answer").contains("Realtime"));
    world.stop().await;
}
