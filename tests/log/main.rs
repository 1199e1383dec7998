//! The log on disk, on a real one: what is taken comes back as it was, over restarts, crashes and
//! damage, and what cannot come back is said.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may end where it stands"
)]

mod damage;

mod model;

use std::path::Path;
use std::time::Duration;

use rowcast::log::disk::{DiskLog, OpenError, Options, inspect};
use rowcast::log::{Log, LogError, Offset, Origin, sealed};
use rowcast::pg::Lsn;

use model::{Transaction, all, append, rows, same};

fn options(directory: &Path) -> Options {
    Options {
        directory: directory.to_owned(),
        // All was committed in 1970.
        keep_for: Duration::from_secs(1 << 33),
        keep_bytes: 1 << 30,
        segment_bytes: 16 << 10,
        recent_bytes: 8 << 10,
    }
}

fn origin(timeline: u32) -> Origin {
    Origin {
        system_identifier: 7,
        timeline,
        slot: "rowcast".to_owned(),
        publication: "rowcast".to_owned(),
    }
}

/// Waits until the disk has everything up to `lsn`.
async fn stored(log: &DiskLog, lsn: u64) {
    let mut storing = log.stored();
    let wait = storing.wait_for(|stored| *stored >= Lsn(lsn));
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .expect("the disk is slow")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_is_read_again_after_a_restart_with_the_same_epoch_and_offsets() {
    let directory = tempfile::tempdir().unwrap();
    let (epoch, before) = {
        let log = DiskLog::open(options(directory.path())).unwrap();
        log.begin(origin(1), Lsn(0)).await;
        for commit in 1..=300 {
            append(&log, Transaction::new(commit, 3)).await;
        }
        let before = all(&log).await;
        assert_eq!(before.len(), 900);
        (log.epoch(), before)
    };
    assert!(
        std::fs::read_dir(directory.path()).unwrap().count() > 4,
        "there are several segments"
    );
    let log = DiskLog::open(options(directory.path())).unwrap();
    assert_eq!(log.epoch(), epoch);
    assert_eq!(log.origin(), Some(origin(1)));
    assert_eq!(*log.stored().borrow(), log.appended());
    assert_eq!(log.appended(), Transaction::new(300, 3).end_lsn());
    same(&all(&log).await, &before);
    // What the source sends again is passed over; what is new goes on behind it.
    append(&log, Transaction::new(300, 3)).await;
    append(&log, Transaction::new(301, 1)).await;
    assert_eq!(log.range(), Offset(0)..Offset(901));
    assert_eq!(all(&log).await.len(), 901);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_cannot_use_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let _log = DiskLog::open(options(directory.path())).unwrap();
    let second = DiskLog::open(options(directory.path()));
    assert!(matches!(second, Err(OpenError::Locked(_))), "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_taken_transaction_is_not_there_after_a_restart_and_can_be_taken_again() {
    let directory = tempfile::tempdir().unwrap();
    {
        let log = DiskLog::open(options(directory.path())).unwrap();
        append(&log, Transaction::new(1, 2)).await;
        let mut batches = Transaction::new(2, 2_500).batches();
        assert_eq!(batches.len(), 3);
        log.append(batches.remove(0)).await.unwrap();
        log.append(batches.remove(0)).await.unwrap();
        assert_eq!(all(&log).await.len(), 2, "readers see whole transactions");
        stored(&log, 0x15).await;
    }
    let log = DiskLog::open(options(directory.path())).unwrap();
    assert_eq!(all(&log).await.len(), 2);
    let mut batches = Transaction::new(2, 2_500).batches();
    log.append(batches.remove(0)).await.unwrap();
    log.abandon();
    append(&log, Transaction::new(2, 2_500)).await;
    same(&all(&log).await, &rows([(1, 2), (2, 2_500)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_larger_than_memory_passes_and_one_larger_than_the_log_says_which_tables() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = options(directory.path());
    options.keep_bytes = 2 << 20;
    let log = DiskLog::open(options).unwrap();
    append(&log, Transaction::new(1, 1)).await;
    append(&log, Transaction::new(2, 5_000)).await;
    append(&log, Transaction::new(3, 1)).await;
    same(&all(&log).await, &rows([(1, 1), (2, 5_000), (3, 1)]));
    append(&log, Transaction::new(4, 60_000)).await;
    append(&log, Transaction::new(5, 1)).await;
    let mut found = all(&log).await;
    let last = found.pop().unwrap();
    assert_eq!(last.1, "5/0");
    let lost: Vec<_> = found
        .iter()
        .rev()
        .map_while(|(_, row)| row.strip_prefix("lost "))
        .collect();
    assert_eq!(lost, ["public.b", "public.a"], "both tables are named once");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_segments_go_by_size_and_by_age_and_a_reader_of_them_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let mut small = options(directory.path());
    small.keep_bytes = 64 << 10;
    {
        let log = DiskLog::open(small.clone()).unwrap();
        for commit in 1..=1_000 {
            append(&log, Transaction::new(commit, 3)).await;
        }
        stored(&log, 1_000 * 16 + 5).await;
        let range = log.range();
        assert!(range.start > Offset(0), "{range:?}");
        assert_eq!(range.end, Offset(3_000));
        let trimmed = log.read(Offset(0), 1).await;
        assert!(matches!(trimmed, Err(LogError::Trimmed { oldest }) if oldest == range.start));
        let ahead = log.read(Offset(3_001), 1).await;
        assert!(matches!(ahead, Err(LogError::Ahead { .. })));
        assert_eq!(all(&log).await.len() as u64, range.end.0 - range.start.0);
    }
    let bytes: u64 = inspect(directory.path())
        .unwrap()
        .segments
        .iter()
        .map(|segment| segment.bytes)
        .sum();
    assert!(bytes < 96 << 10, "{bytes}");
    small.keep_for = Duration::from_secs(60);
    let log = DiskLog::open(small).unwrap();
    append(&log, Transaction::new(1_001, 1)).await;
    let wait = async {
        while inspect(directory.path()).unwrap().segments.len() > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .expect("old segments go");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_origin_or_a_loss_begins_a_new_history_and_readers_of_the_old_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let first = {
        let log = DiskLog::open(options(directory.path())).unwrap();
        log.begin(origin(1), Lsn(0)).await;
        for commit in 1..=200 {
            append(&log, Transaction::new(commit, 3)).await;
        }
        log.epoch()
    };
    let log = DiskLog::open(options(directory.path())).unwrap();
    assert_eq!(log.epoch(), first);
    log.begin(origin(2), Lsn(3)).await;
    let second = log.epoch();
    assert_ne!(second, first);
    assert_eq!((log.appended(), *log.stored().borrow()), (Lsn(3), Lsn(3)));
    let lost = log.read(Offset(10), 1).await;
    assert!(matches!(lost, Err(LogError::Lost { next }) if next == log.range().end));
    append(&log, Transaction::new(1, 2)).await;
    same(&all(&log).await, &rows([(1, 2)]));
    log.begin(origin(2), Lsn(0)).await;
    assert_ne!(log.epoch(), second);
    append(&log, Transaction::new(1, 1)).await;
    same(&all(&log).await, &rows([(1, 1)]));
    let (third, range) = (log.epoch(), log.range());
    drop(log);
    let log = DiskLog::open(options(directory.path())).unwrap();
    assert_eq!((log.epoch(), log.range()), (third, range));
    assert_eq!(log.origin(), Some(origin(2)));
    same(&all(&log).await, &rows([(1, 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_format_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state.json");
    for text in ["{\"format\":2,\"epoch\":1}", "nonsense", "{}"] {
        std::fs::write(&state, text).unwrap();
        let refused = DiskLog::open(options(directory.path()));
        assert!(
            matches!(refused, Err(OpenError::Foreign { .. })),
            "{text}: {refused:?}"
        );
        assert_eq!(std::fs::read_to_string(&state).unwrap(), text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_passed_is_stored_at_once_where_somebody_waits_also_when_it_is_said_again() {
    let directory = tempfile::tempdir().unwrap();
    let log = DiskLog::open(options(directory.path())).unwrap();
    log.begin(origin(1), Lsn(0)).await;
    let mut stored = log.stored();
    for place in [1_u64, 2, 3] {
        let lsn = Lsn(place * 16);
        // Nobody waits: it may be stored later.
        log.pass(lsn, false);
        log.pass(lsn, true);
        let wait = stored.wait_for(|stored| *stored >= lsn);
        tokio::time::timeout(Duration::from_secs(30), wait)
            .await
            .expect("it is stored")
            .expect("the log lives");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_sets_what_was_passed_back_and_goes_on_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let epoch = {
        let log = DiskLog::open(options(directory.path())).unwrap();
        log.begin(origin(1), Lsn(0)).await;
        append(&log, Transaction::new(1, 2)).await;
        assert_eq!(log.committed(), Transaction::new(1, 2).end_lsn());
        log.pass(Lsn(16 * 16), true);
        assert_eq!(log.appended(), Lsn(16 * 16));
        // The new timeline began before that, and its transactions lie there too.
        log.follow(origin(2), Lsn(3 * 16)).await;
        assert_eq!(log.appended(), Lsn(3 * 16));
        assert_eq!(*log.stored().borrow(), Lsn(3 * 16));
        log.epoch()
    };
    let log = DiskLog::open(options(directory.path())).unwrap();
    assert_eq!(
        (log.epoch(), log.origin(), log.appended()),
        (epoch, Some(origin(2)), Lsn(3 * 16))
    );
    assert_eq!(log.committed(), Transaction::new(1, 2).end_lsn());
    append(&log, Transaction::new(4, 3)).await;
    same(&all(&log).await, &rows([(1, 2), (4, 3)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_log_can_be_read_here_and_written_by_another() {
    let directory = tempfile::tempdir().unwrap();
    let log = DiskLog::open(options(directory.path())).unwrap();
    append(&log, Transaction::new(1, 2)).await;
    log.close().await;
    assert_eq!(*log.stored().borrow(), log.appended(), "all is stored");
    let next = DiskLog::open(options(directory.path())).unwrap();
    append(&next, Transaction::new(2, 2)).await;
    same(&all(&log).await, &rows([(1, 2)]));
    same(&all(&next).await, &rows([(1, 2), (2, 2)]));
    let mut batches = Transaction::new(2, 1).batches();
    let refused = log.append(batches.remove(0)).await;
    assert!(matches!(refused, Err(LogError::Stopped)), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_another_format_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    drop(DiskLog::open(options(directory.path())).unwrap());
    let state = directory.path().join("state.json");
    sealed::replace(&state, r#"{"format":1,"epoch":7}"#).unwrap();
    let refused = DiskLog::open(options(directory.path())).unwrap_err();
    assert!(matches!(refused, OpenError::Foreign { .. }), "{refused:?}");
    let text = refused.to_string();
    assert!(text.contains("its format is 1"), "{text}");
    assert!(text.contains("name another directory"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_was_damaged_begins_a_new_history_and_another_programs_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let epoch = {
        let log = DiskLog::open(options(directory.path())).unwrap();
        log.begin(origin(1), Lsn(0)).await;
        append(&log, Transaction::new(1, 2)).await;
        log.close().await;
        log.epoch()
    };
    let state = directory.path().join("state.json");
    let right = std::fs::read(&state).unwrap();
    // A digit of the timeline, say: it would still read as a state.
    let mut wrong = right.clone();
    let digit = wrong.iter().rposition(u8::is_ascii_digit).unwrap();
    wrong[digit] ^= 1;
    std::fs::write(&state, &wrong).unwrap();
    {
        let log = DiskLog::open(options(directory.path())).unwrap();
        assert_ne!(log.epoch(), epoch);
        assert_eq!((log.origin(), log.range()), (None, Offset(0)..Offset(0)));
    }
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("state.json"), "{\"mine\": 1}\n").unwrap();
    let refused = DiskLog::open(options(other.path())).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("another program's"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_knows_whether_it_was_closed() {
    let directory = tempfile::tempdir().unwrap();
    for closes in [true, false, false, true, true] {
        let log = DiskLog::open(options(directory.path())).unwrap();
        append(&log, Transaction::new(1, 2)).await;
        if closes {
            log.close().await;
        } else {
            // As a crash leaves it.
            let state = directory.path().join("state.json");
            let open = std::fs::read(&state).unwrap();
            drop(log);
            std::fs::write(&state, open).unwrap();
        }
        let next = DiskLog::open(options(directory.path())).unwrap();
        assert_eq!(next.was_closed(), closes);
        next.close().await;
    }
}
