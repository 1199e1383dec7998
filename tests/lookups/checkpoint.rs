//! The mirrors in a file: taken after a restart, and never when it is not what it was.

use std::os::unix::fs::PermissionsExt as _;

use rowcast::lookup::keep::State;

use crate::harness::World;

const SCHEMA: &str = "
    create table kinds (id int primary key, t text, u uuid, b bool, n numeric, f float8,
        at timestamp, j jsonb, y bytea, big bigint);
    create publication rowcast;
    insert into kinds values
      (1, e'a\\n\"\\\\', '00000000-0000-0000-0000-000000000001', true, 1.50, 'NaN', 'infinity', '[1.0, null]', '\\x00ff', 9223372036854775807),
      (2, null, null, null, 'NaN', '-0', '4713-01-01 00:00:00 BC', 'null', '\\x', -9223372036854775808),
      (3, '', null, false, -0.000, 1e300, '2020-02-02 02:02:02.000002', '{\"a\": \"b\"}', null, 0);";

const COLUMNS: [&str; 9] = ["t", "u", "b", "n", "f", "at", "j", "y", "big"];

#[tokio::test]
async fn after_a_restart_the_checkpoint_serves_unless_it_is_damaged_or_the_table_changed() {
    let world = World::new(SCHEMA, None).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lookups.checkpoint");
    let wanted = world.wanted("kinds", &COLUMNS).await;
    let table = wanted.table;
    let wanted = [wanted];

    let mut follower = world.follow(World::settings(Some(path.clone())));
    follower.keeping.want(&wanted);
    follower.all_ready().await;
    follower.check(&world, "kinds", table).await;
    follower.keeping.stop().await;
    let place = follower.next;
    drop(follower);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "row values are nobody else's business");

    // What happened meanwhile is in the log.
    world
        .run("insert into kinds (id, t) values (4, 'new'); delete from kinds where id = 3")
        .await;
    let lsn = world.now().await;
    while world.log.appended() < lsn {
        tokio::task::yield_now().await;
    }
    let copies = world.metrics.lookups.copies.get();
    let mut again = world.follow(World::settings(Some(path.clone())));
    assert!(
        again.next > place,
        "the router begins at the end of the log"
    );
    again.keeping.want(&wanted);
    again.all_ready().await;
    again.check(&world, "kinds", table).await;
    assert_eq!(
        world.metrics.lookups.copies.get(),
        copies,
        "nothing was copied"
    );
    world.run("update kinds set t = 'newer' where id = 4").await;
    again.passes(world.now().await).await;
    again.check(&world, "kinds", table).await;
    again.keeping.stop().await;
    drop(again);

    // A byte, anywhere.
    let right = std::fs::read(&path).unwrap();
    for at in (0..right.len()).step_by(right.len() / 6) {
        let mut wrong = right.clone();
        wrong[at] ^= 1;
        std::fs::write(&path, &wrong).unwrap();
        let copies = world.metrics.lookups.copies.get();
        let mut other = world.follow(World::settings(Some(path.clone())));
        other.keeping.want(&wanted);
        other.all_ready().await;
        other.check(&world, "kinds", table).await;
        assert_eq!(world.metrics.lookups.copies.get(), copies + 1, "byte {at}");
    }

    // The same file, and another table by now.
    std::fs::write(&path, &right).unwrap();
    world
        .run("alter table kinds alter column big type bigint using 1")
        .await;
    let copies = world.metrics.lookups.copies.get();
    let mut other = world.follow(World::settings(Some(path.clone())));
    other.keeping.want(&wanted);
    other.all_ready().await;
    other.passes(world.now().await).await;
    other.check(&world, "kinds", table).await;
    assert!(world.metrics.lookups.copies.get() > copies);
    assert_eq!(other.status(table).state, State::Ready);
}
