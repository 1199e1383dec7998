//! What is done to the relay, its database, its network, its disk and its clock.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::database::{catch_up, get_ahead, lag};
use crate::harness::until;
use crate::proxy::{Proxy, Way};
use crate::relay::SLOT;
use crate::run::World;
use crate::schema::PUBLISH;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    RelayKilled,
    RelayStopped,
    RelayPaused,
    DatabaseKilled,
    WalsenderTerminated,
    SessionsTerminated,
    DatabaseCut,
    DatabaseHangs,
    ClientsCut,
    ClientsHang,
    DiskFull,
    DiskFullAndKilled,
    SlotDropped,
    PublicationRemade,
    StandbyPromoted,
    LaggingStandbyPromoted,
    OldCopyRestored,
    LogTorn,
    LogFlipped,
    ClockJumps,
    Truncated,
    BothKilled,
}

pub(crate) const FAULTS: [Fault; 22] = [
    Fault::RelayKilled,
    Fault::RelayStopped,
    Fault::RelayPaused,
    Fault::DatabaseKilled,
    Fault::WalsenderTerminated,
    Fault::SessionsTerminated,
    Fault::DatabaseCut,
    Fault::DatabaseHangs,
    Fault::ClientsCut,
    Fault::ClientsHang,
    Fault::DiskFull,
    Fault::DiskFullAndKilled,
    Fault::SlotDropped,
    Fault::PublicationRemade,
    Fault::StandbyPromoted,
    Fault::LaggingStandbyPromoted,
    Fault::OldCopyRestored,
    Fault::LogTorn,
    Fault::LogFlipped,
    Fault::ClockJumps,
    Fault::Truncated,
    Fault::BothKilled,
];

impl Fault {
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::RelayKilled => "kill -9 of the relay",
            Self::RelayStopped => "SIGTERM and a new start of the relay",
            Self::RelayPaused => "the relay stands still (SIGSTOP, 1 to 4 s)",
            Self::DatabaseKilled => "kill -9 of PostgreSQL and a new start",
            Self::WalsenderTerminated => "pg_terminate_backend of the walsender",
            Self::SessionsTerminated => "pg_terminate_backend of all the relay's sessions",
            Self::DatabaseCut => "network cut between relay and database (0 to 3 s)",
            Self::DatabaseHangs => "the same network hangs (1 to 4 s), then goes on or is cut",
            Self::ClientsCut => "network cut between clients and relay (0 to 2 s)",
            Self::ClientsHang => "the same network hangs (1 to 4 s), then goes on or is cut",
            Self::DiskFull => "the log's disk is full (1 to 3 s)",
            Self::DiskFullAndKilled => "the same, and kill -9 of the relay meanwhile",
            Self::SlotDropped => "the slot is dropped",
            Self::PublicationRemade => "the publication is dropped and made again",
            Self::StandbyPromoted => "PostgreSQL is killed, its standby is promoted",
            Self::LaggingStandbyPromoted => "the same with a standby that lags behind the relay",
            Self::OldCopyRestored => "ROWCAST_DATA restored from an old copy",
            Self::LogTorn => "kill -9 of the relay, the log's end cut off or overwritten",
            Self::LogFlipped => "kill -9 of the relay, bits of its files flipped",
            Self::ClockJumps => "the relay's clock jumps (hours to days), and back",
            Self::Truncated => "TRUNCATE of a table",
            Self::BothKilled => "kill -9 of PostgreSQL and of the relay",
        }
    }

    /// Whether it can be done here.
    pub(crate) fn is_possible(self, world: &World) -> bool {
        match self {
            Self::DiskFull | Self::DiskFullAndKilled => world.relay.place.is_bounded(),
            Self::ClockJumps => world.relay.has_clock(),
            _ => true,
        }
    }

    /// Does it, and leaves everything such that it can heal.
    pub(crate) async fn carry_out(self, world: &mut World, random: &mut StdRng) {
        match self {
            Self::RelayKilled => {
                world.relay.kill().await;
                pause(random, 0..400).await;
                world.relay.spawn();
            }
            Self::RelayStopped => {
                world.relay.terminate().await;
                pause(random, 0..400).await;
                world.relay.spawn();
            }
            Self::RelayPaused => {
                world.relay.signal("STOP");
                pause(random, 1000..4000).await;
                world.relay.signal("CONT");
            }
            Self::DatabaseKilled => {
                world.database.kill().await;
                pause(random, 0..500).await;
                world.database.start_again().await;
            }
            Self::BothKilled => {
                world.database.kill().await;
                world.relay.kill().await;
                world.database.start_again().await;
                world.relay.spawn();
            }
            Self::WalsenderTerminated => {
                world
                    .database
                    .run("select pg_terminate_backend(pid) from pg_stat_replication")
                    .await;
            }
            Self::SessionsTerminated => {
                let sessions = "select pg_terminate_backend(pid) from pg_stat_activity \
                    where application_name like 'rowcast%'";
                world.database.run(sessions).await;
            }
            Self::DatabaseCut => cut(&world.to_database, random, 0..3000).await,
            Self::ClientsCut => cut(&world.to_relay, random, 0..2000).await,
            Self::DatabaseHangs => hang(&world.to_database, random).await,
            Self::ClientsHang => hang(&world.to_relay, random).await,
            Self::DiskFull => {
                world.relay.place.fill();
                pause(random, 1000..3000).await;
                world.relay.place.make_room();
            }
            Self::DiskFullAndKilled => {
                world.relay.place.fill();
                pause(random, 500..2000).await;
                world.relay.kill().await;
                // It may not be able to start as long as there is no room at all.
                world.relay.spawn();
                pause(random, 200..1000).await;
                world.relay.place.make_room();
            }
            Self::SlotDropped => drop_slot(world).await,
            Self::PublicationRemade => {
                world.database.run("drop publication rowcast").await;
                pause(random, 0..1500).await;
                world.database.run(PUBLISH).await;
            }
            Self::StandbyPromoted | Self::LaggingStandbyPromoted => {
                let standby = world.database.standby().await;
                pause(random, 300..800).await;
                if self == Self::LaggingStandbyPromoted {
                    lag(&standby).await;
                    pause(random, 300..1500).await;
                    get_ahead(&world.database.sql().await, &standby).await;
                } else {
                    world.traffic.pause(world.writers).await;
                    catch_up(&world.database.sql().await, &standby).await;
                }
                world.database.promote(standby).await;
                world.traffic.go_on();
            }
            Self::OldCopyRestored => {
                let copy = world.relay.place.save();
                pause(random, 500..3000).await;
                if random.random() {
                    world.relay.kill().await;
                } else {
                    world.relay.terminate().await;
                }
                world.relay.place.restore(copy.path());
                world.relay.spawn();
            }
            Self::LogTorn => {
                world.relay.kill().await;
                tear(world, random);
                world.relay.spawn();
            }
            Self::LogFlipped => {
                world.relay.kill().await;
                flip(world, random);
                world.relay.spawn();
            }
            Self::ClockJumps => {
                let hours = random.random_range(1..240) * if random.random() { 1 } else { -1 };
                world.relay.set_clock(hours * 3600);
                pause(random, 1500..3500).await;
                if random.random() {
                    world.relay.kill().await;
                    world.relay.spawn();
                    world.relay.serves().await;
                }
                world.relay.set_clock(0);
                pause(random, 1000..1500).await;
            }
            Self::Truncated => {
                let table = ["task", "open", "draft"].choose(random).unwrap();
                world.database.run(&format!("truncate {table}")).await;
            }
        }
    }
}

async fn pause(random: &mut StdRng, milliseconds: std::ops::Range<u64>) {
    tokio::time::sleep(Duration::from_millis(random.random_range(milliseconds))).await;
}

async fn cut(network: &Proxy, random: &mut StdRng, milliseconds: std::ops::Range<u64>) {
    network.way(Way::Closed);
    network.cut();
    pause(random, milliseconds).await;
    network.way(Way::Open);
}

async fn hang(network: &Proxy, random: &mut StdRng) {
    network.way(Way::Hanging);
    pause(random, 1000..4000).await;
    if random.random() {
        network.cut();
    }
    network.way(Way::Open);
}

/// Takes the slot from whoever reads it.
async fn drop_slot(world: &World) {
    let sql = world.database.sql().await;
    let terminate = format!(
        "select pg_terminate_backend(active_pid) from pg_replication_slots \
         where slot_name = '{SLOT}' and active"
    );
    let drop = format!(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots \
         where slot_name = '{SLOT}'"
    );
    until("the slot is dropped", async || {
        sql.batch_execute(&terminate).await.unwrap();
        sql.execute(&drop, &[])
            .await
            .is_ok_and(|dropped| dropped == 1)
    })
    .await;
}

/// What a disk may have left of the newest segment.
fn tear(world: &World, random: &mut StdRng) {
    let files = world.relay.place.files();
    let mut segments = files
        .iter()
        .filter(|(path, _)| path.extension().is_some_and(|end| end == "segment"));
    let (path, bytes) = segments.next_back().expect("a segment");
    let lost = random.random_range(0..=(*bytes).min(20_000));
    let file = OpenOptions::new().write(true).open(path).unwrap();
    match random.random_range(0..3) {
        0 => file.set_len(bytes - lost).unwrap(),
        1 => file
            .write_all_at(&vec![0; usize::try_from(lost).unwrap()], bytes - lost)
            .unwrap(),
        _ => {
            let noise: Vec<u8> = (0..lost).map(|_| random.random()).collect();
            file.write_all_at(&noise, *bytes).unwrap();
        }
    }
}

/// A few bits of any of the files.
fn flip(world: &World, random: &mut StdRng) {
    let files: Vec<_> = world
        .relay
        .place
        .files()
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .collect();
    for _ in 0..random.random_range(1..4) {
        let (path, bytes) = files.choose(random).unwrap();
        let at = usize::try_from(random.random_range(0..*bytes)).unwrap();
        let mut content = fs::read(path).unwrap();
        println!("a bit of byte {at} of {bytes} of {}", path.display());
        content[at] ^= 1 << random.random_range(0..8);
        fs::write(path, content).unwrap();
    }
}
