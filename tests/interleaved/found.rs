//! What the draws have found, each as a test of its own.

use crate::harness::{ANN, BEN, Relay, Seen};

const SCHEMA: &str = "
    create table m (org int, u uuid, primary key (org, u));
    create table t (id int primary key, org int, s text);
    alter table t replica identity full;
    alter table t enable row level security;
    create policy members on t using (org in (select org from m where u = auth.uid()));
    grant select on t, m to authenticated;
    insert into t values (1, 1, 'open'), (2, 1, 'open'), (3, 1, 'open')";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_transaction_writes_and_takes_somebody_out_of_is_not_told_them_as_an_old_row() {
    let members = format!("insert into m values (1, '{ANN}'), (1, '{BEN}')");
    let mut relay = Relay::start(&format!("{SCHEMA}; {members}"), "t").await;
    let ann = relay.watch_as(ANN, "t").await;
    let ben = relay.watch_as(BEN, "t").await;
    relay
        .run(&format!(
            "begin;
             delete from m where u = '{BEN}';
             update t set s = 'secret' where id = 1;
             update t set id = 11 where id = 1;
             delete from t where id = 11;
             update t set s = 'secret' where id = 2;
             update t set org = 2 where id = 2;
             delete from t where id = 3;
             commit"
        ))
        .await;
    let seen = relay.seen(&ben).await;
    let text = format!("{seen:?}");
    assert!(!text.contains("secret"), "{text}");
    // The row that it had seen is gone, and it is to read again.
    let (resync, rows) = seen.split_last().expect("it is told");
    assert_eq!(resync.brief(), "resync access_changed");
    assert_eq!(
        rows.iter().map(Seen::brief).collect::<Vec<_>>(),
        ["DELETE 3"]
    );
    let seen = relay.seen(&ann).await;
    let told: Vec<String> = seen.iter().map(Seen::brief).collect();
    let all = ["UPDATE 1", "UPDATE 11", "DELETE 11", "UPDATE 2", "DELETE 3"];
    assert_eq!(told, all, "who stays sees it all");
    assert_eq!(seen[2].change()["old_record"]["s"], "secret");
}
