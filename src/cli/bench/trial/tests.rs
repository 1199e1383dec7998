use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    trials: Trials,
}

fn chosen(arguments: &[&str]) -> Result<Option<Trial>, String> {
    let words = std::iter::once("bench").chain(arguments.iter().copied());
    Line::try_parse_from(words)
        .map(|line| line.trials.chosen())
        .map_err(|error| error.to_string())
}

#[test]
fn a_trial_is_chosen_by_its_flag_with_or_without_a_number() {
    for (arguments, expected) in [
        (&[][..], None),
        (&["--idle", "7"], Some(Trial::Idle(7))),
        (&["--backlog"], Some(Trial::Backlog(100_000))),
        (&["--backlog", "500"], Some(Trial::Backlog(500))),
        (&["--drain"], Some(Trial::Drain(100_000))),
        (&["--decode"], Some(Trial::Decode(200_000))),
        (&["--churn"], Some(Trial::Churn(100_000))),
        (&["--replay"], Some(Trial::Replay(500_000))),
        (&["--returning", "3"], Some(Trial::Returning(3))),
        (&["--returning"], Some(Trial::Returning(10_000))),
        (&["--restart"], Some(Trial::Restart(1_024))),
        (&["--stalled"], Some(Trial::Stalled(100))),
    ] {
        assert_eq!(chosen(arguments), Ok(expected), "{arguments:?}");
    }
}

#[test]
fn trials_are_made_one_at_a_time_and_within_what_can_be_measured() {
    let refused = chosen(&["--replay", "--restart"]).unwrap_err();
    assert!(refused.contains("cannot be used with"), "{refused}");
    let refused = chosen(&["--restart", "4000"]).unwrap_err();
    assert!(refused.contains("not in 1..=3500"), "{refused}");
}

#[test]
fn what_has_no_meaning_for_a_trial_is_refused_by_name() {
    let logs = |logs: &[Storage]| Given {
        logs: logs.to_vec(),
        ..Given::default()
    };
    let both = [Storage::Memory, Storage::Disk];
    assert!(Trial::Backlog(1).check(&logs(&both)).is_ok());
    assert!(Trial::Replay(1).check(&logs(&both[..1])).is_ok());
    let rows = Given {
        rows: true,
        ..Given::default()
    };
    assert!(Trial::Returning(1).check(&rows).is_ok());
    let inside = Given {
        in_process: true,
        ..Given::default()
    };
    assert!(Trial::Idle(1).check(&inside).is_ok());
    for (trial, given, word) in [
        (Trial::Replay(1), logs(&both), "one log"),
        (Trial::Restart(1), logs(&both[..1]), "outlives"),
        (Trial::Replay(1), rows, "--rows"),
        (Trial::Replay(1), inside, "--in-process"),
        (
            Trial::Backlog(1),
            Given {
                baseline: true,
                ..Given::default()
            },
            "--baseline",
        ),
        (
            Trial::Stalled(1),
            Given {
                policy: Some(Policy::User),
                ..Given::default()
            },
            "--policy open",
        ),
        (
            Trial::Restart(1),
            Given {
                subscribers: true,
                ..Given::default()
            },
            "--subscribers",
        ),
    ] {
        let refused = trial.check(&given).unwrap_err().to_string();
        assert!(
            refused.contains(word) && refused.contains(trial.flag()),
            "{refused}"
        );
    }
}
