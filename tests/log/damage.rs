//! Crashes and bad disks: files that end too early, and bits that are not what they were.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use proptest::prelude::*;
use rowcast::log::Log;
use rowcast::log::disk::{DiskLog, inspect};

use super::model::{Transaction, all, append, rows, same};
use super::options;

fn segments(directory: &std::path::Path) -> Vec<PathBuf> {
    let mut segments: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "segment"))
        .collect();
    segments.sort();
    segments
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

#[derive(Debug, Clone)]
enum Act {
    Transaction(usize),
    Half(usize),
    Reopen,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (1_usize..40).prop_map(Act::Transaction),
        1 => (900_usize..2_200).prop_map(Act::Transaction),
        1 => (1_001_usize..2_200).prop_map(Act::Half),
        2 => Just(Act::Reopen),
    ];
    prop::collection::vec(act, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_taken_given_up_and_opened_again_reads_as_a_list_would(acts in acts()) {
        let directory = tempfile::tempdir().unwrap();
        runtime().block_on(async {
            let mut log = DiskLog::open(options(directory.path())).unwrap();
            let mut model = Vec::new();
            for (commit, act) in (1..).zip(acts) {
                match act {
                    Act::Transaction(rows) => {
                        append(&log, Transaction::new(commit, rows)).await;
                        model.push((commit, rows));
                    }
                    Act::Half(rows) => {
                        let first = Transaction::new(commit, rows).batches().remove(0);
                        log.append(first).await.unwrap();
                        log.abandon();
                    }
                    Act::Reopen => {
                        drop(log);
                        log = DiskLog::open(options(directory.path())).unwrap();
                    }
                }
            }
            same(&all(&log).await, &rows(model));
        });
    }

    /// A crash leaves any part of what was written behind the last synchronisation.
    #[test]
    fn a_file_that_ends_anywhere_gives_whole_transactions_and_takes_the_rest_again(
        sizes in prop::collection::vec(1_usize..60, 1..60),
        keep in 0.0_f64..1.0,
        rubbish in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let directory = tempfile::tempdir().unwrap();
        runtime().block_on(async {
            {
                let log = DiskLog::open(options(directory.path())).unwrap();
                for (commit, size) in (1..).zip(&sizes) {
                    append(&log, Transaction::new(commit, *size)).await;
                }
            }
            let newest = segments(directory.path()).pop().unwrap();
            let length = fs::metadata(&newest).unwrap().len();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "any place will do")]
            let kept = (length as f64 * keep) as u64;
            let file = OpenOptions::new().write(true).open(&newest).unwrap();
            file.set_len(kept).unwrap();
            file.write_all_at(&rubbish, kept).unwrap();
            drop(file);
            let log = DiskLog::open(options(directory.path())).unwrap();
            let before = log.range();
            let found = all(&log).await;
            let model: Vec<_> = (1..).zip(sizes.iter().copied()).collect();
            let whole = rows(model.clone());
            if before.start.0 == 0 && !found.is_empty() {
                same(&found, &whole[..found.len()]);
                let ends: Vec<usize> = sizes
                    .iter()
                    .scan(0, |sum, size| { *sum += size; Some(*sum) })
                    .collect();
                assert!(ends.contains(&found.len()), "{} of {ends:?}", found.len());
                // The source sends all of it again; what is there is passed over.
                for (commit, size) in model {
                    append(&log, Transaction::new(commit, size)).await;
                }
                same(&all(&log).await, &whole);
            }
        });
    }

    /// A flipped bit is noticed: what is read is right, or it is said that it cannot be read.
    #[test]
    fn a_flipped_bit_is_never_read_as_a_row(
        sizes in prop::collection::vec(1_usize..60, 20..60),
        segment in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let directory = tempfile::tempdir().unwrap();
        runtime().block_on(async {
            {
                let log = DiskLog::open(options(directory.path())).unwrap();
                for (commit, size) in (1..).zip(&sizes) {
                    append(&log, Transaction::new(commit, *size)).await;
                }
            }
            let damaged = segment.get(&segments(directory.path())).clone();
            let mut bytes = fs::read(&damaged).unwrap();
            let at = place.index(bytes.len());
            bytes[at] ^= 1 << bit;
            fs::write(&damaged, bytes).unwrap();
            let report = inspect(directory.path()).unwrap();
            let whole = rows((1..).zip(sizes.iter().copied()));
            let log = DiskLog::open(options(directory.path())).unwrap();
            let range = log.range();
            let mut from = range.start;
            let mut read = 0;
            while from < range.end {
                match log.read(from, 16).await {
                    Ok(entries) => {
                        assert!(!entries.is_empty());
                        for entry in entries {
                            assert_eq!(entry.first, from);
                            for (offset, change) in entry.changes() {
                                let name = super::model::described(&entry, change);
                                let place = usize::try_from(offset.0).unwrap();
                                assert_eq!(name, whole[place].1);
                                read += 1;
                            }
                            from = entry.end();
                        }
                    }
                    Err(error) => {
                        assert!(
                            report.segments.iter().any(|segment| segment.verified.is_err())
                                || report.segments.len() < segments(directory.path()).len(),
                            "{error}: {report:?}"
                        );
                        break;
                    }
                }
            }
            assert!(read <= whole.len());
        });
    }
}
