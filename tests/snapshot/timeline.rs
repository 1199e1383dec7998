//! A server that has gone to another timeline before the source has noticed.

use std::fs;

use rowcast::router::Event;
use rowcast::router::Resync;

use crate::client::Heard;
use crate::harness::DEADLINE;
use crate::waiting::{World, until};

#[tokio::test]
async fn rows_are_not_read_on_another_timeline_than_that_of_the_changes_behind_them() {
    let mut world = World::with("", |config| {
        config.snapshot.timeout = DEADLINE / 10;
    })
    .await;
    world.run("insert into a values (1)").await;
    let follower = world.following("a").await;
    let position = world.core.router.position();
    // The source cannot come back, while everybody else can.
    world.cluster.stop_server().await;
    let data = world.cluster.directory().join("data");
    fs::write(data.join("recovery.signal"), "").expect("a file");
    let settings = [
        "restore_command = 'false'",
        "hot_standby = off",
        "max_wal_senders = 0",
    ];
    world.cluster.configure(&settings).expect("settings");
    world.cluster.start_server().await.expect("a server");
    world.connect_again().await;
    world.run("insert into a values (2)").await;

    let mut early = world.client("a", None);
    early.join().await;
    assert_eq!(early.heard().await, Heard::Joined(vec![]));
    match early.event().await {
        Event::SnapshotFailed { .. } => {}
        other => panic!("rows of a timeline that nobody follows: {other:?}"),
    }
    assert_eq!(world.core.router.position(), position, "the source is away");

    let again = ["max_wal_senders = 10"];
    world.cluster.configure(&again).expect("settings");
    world.cluster.restart().await.expect("a server");
    until("the source goes on", async || {
        world.core.router.position() != position
    })
    .await;
    let mut late = world.client("a", None);
    assert_eq!(late.snapshot().await[0].rows.len(), 2);
    match follower.heard().await {
        Heard::Change(_) => {}
        Heard::Again(reason) => assert_eq!(reason, Resync::SlotLost.as_str()),
        other => panic!("the row, or a word that it may be missing, not {other:?}"),
    }
    world.stop().await;
}
