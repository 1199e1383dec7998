//! Who has read under new rules is not told by them what lies before.

use rowcast::pg::Lsn;

use crate::client::Heard;
use crate::harness::DEADLINE;
use crate::waiting::{World, until};

#[tokio::test]
async fn what_a_policy_hid_stays_hidden_from_who_has_read_under_the_next_one() {
    let world = World::start(
        "alter table a add secret boolean not null default false, enable row level security;
         create policy p on a for select using (not secret);",
    )
    .await;
    let follower = world.following("a").await;
    let since = world.core.router.position();
    world.run("insert into a values (1, true)").await;
    world.run("insert into a values (2, false)").await;
    match follower.heard().await {
        Heard::Change(data) => assert_eq!(data["record"]["id"], 2, "1 is hidden"),
        other => panic!("row 2 was expected, not {other:?}"),
    }
    world.run("alter policy p on a using (true)").await;
    // Until the relay goes by it.
    until("a new one sees both rows", async || {
        let mut reader = world.client("a", None);
        let rows = reader.snapshot().await[0].rows.len();
        world
            .run("insert into b values (0) on conflict do nothing")
            .await;
        rows == 2 && world.core.metrics.catalog_reloads.get() > 0
    })
    .await;
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let mut returning = world.client("a", Some(since));
        returning.asked.plain = true;
        returning.asked.read_at = Some(Lsn(u64::MAX));
        returning.join().await;
        assert_eq!(returning.heard().await, Heard::Joined(vec![]));
        match returning.heard().await {
            Heard::Again(reason) => {
                assert_eq!(reason, "access_changed");
                break;
            }
            // As long as the old policy is in force.
            Heard::Change(data) => assert_eq!(data["record"]["id"], 2, "1 was hidden"),
            other => panic!("it is neither told nor has to read: {other:?}"),
        }
        assert!(tokio::time::Instant::now() < deadline, "not in time");
    }
    world.stop().await;
}
