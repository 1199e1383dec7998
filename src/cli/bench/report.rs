//! What a run found, for people and for programs.

use std::fmt::Write;

use serde::Serialize;

use super::latency::Percentiles;
use super::relay::Storage;
use super::round::Figures;
use super::trial::Finding;

/// The report. Its JSON form keeps its keys; new ones may come.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What was asked for.
    pub settings: Settings,
    /// One line for each relay and number of subscribers.
    pub results: Vec<Line>,
    /// The first line held against others.
    pub ratios: Vec<Ratio>,
    /// What a trial found, by its name, such as `idle`.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub finding: Option<Finding>,
}

/// What was asked for.
#[derive(Debug, Serialize)]
pub struct Settings {
    /// Whether the subscribers were in the relay's process, without sockets.
    pub in_process: bool,
    /// Rows a second; 0 for flat out.
    pub rate: u64,
    /// Who may see a row.
    pub policy: &'static str,
    /// What subscribers ask for.
    pub filter: &'static str,
    /// Rows of a transaction.
    pub transaction_size: u64,
    /// Connections that write.
    pub writers: u64,
    /// How often each measurement was made, taking turns.
    pub rounds: u32,
}

/// The figures of one relay with one number of subscribers.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// `rowcast` or `baseline`.
    pub system: &'static str,
    /// Where its log was; the bare relay has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<Storage>,
    /// Subscribers.
    pub subscribers: u64,
    /// Rows committed.
    pub rows: u64,
    /// Messages that had to arrive.
    pub expected: u64,
    /// Messages that arrived where they belong, each once.
    pub delivered: u64,
    /// Messages that did not arrive.
    pub missing: u64,
    /// Messages that arrived once more.
    pub duplicated: u64,
    /// Messages that arrived where they do not belong.
    pub leaked: u64,
    /// Messages that arrived behind a later one of the same writer.
    pub out_of_order: u64,
    /// Rows a second, until the last message.
    pub changes_per_second: f64,
    /// Messages a second.
    pub messages_per_second: f64,
    /// From when a row was due to when it arrived, in microseconds.
    pub latency_us: Option<Percentiles>,
    /// The same of each round.
    pub latency_us_of_rounds: Vec<Percentiles>,
    /// From when a transaction was due to when its commit was acknowledged, in microseconds.
    pub commit_us: Option<Percentiles>,
    /// The relay's CPU time, in seconds.
    pub cpu_seconds: f64,
    /// The same for each row, in microseconds.
    pub cpu_us_per_change: f64,
    /// The same for each message, in microseconds.
    pub cpu_us_per_message: f64,
    /// The relay's memory, in bytes.
    pub rss_bytes: u64,
}

impl Line {
    /// Works out a line.
    #[must_use]
    pub fn new(
        system: &'static str,
        log: Option<Storage>,
        subscribers: u64,
        figures: &Figures,
    ) -> Self {
        let tally = figures.tally;
        Self {
            system,
            log,
            subscribers,
            rows: figures.rows,
            expected: figures.expected,
            delivered: tally.delivered,
            missing: tally.missing,
            duplicated: tally.duplicated,
            leaked: tally.leaked,
            out_of_order: tally.out_of_order,
            changes_per_second: per(figures.rows, figures.seconds),
            messages_per_second: per(tally.delivered, figures.seconds),
            latency_us: figures.latency.percentiles(),
            latency_us_of_rounds: figures.rounds.clone(),
            commit_us: figures.commits.percentiles(),
            cpu_seconds: figures.cpu_seconds,
            cpu_us_per_change: over(figures.cpu_seconds * 1e6, figures.rows),
            cpu_us_per_message: over(figures.cpu_seconds * 1e6, tally.delivered),
            rss_bytes: figures.rss_bytes,
        }
    }

    /// Whether everybody got what is theirs and nothing else.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.missing == 0 && self.duplicated == 0 && self.leaked == 0 && self.out_of_order == 0
    }

    /// Which it is, such as `rowcast disk 1000`.
    fn name(&self) -> String {
        let log = self.log.map_or("", Storage::as_str);
        let words = [self.system, log, &self.subscribers.to_string()];
        words
            .iter()
            .filter(|word| !word.is_empty())
            .copied()
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// One line held against another: above 1 the first is the larger.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ratio {
    /// Of which line, such as `rowcast disk 1000`.
    pub of: String,
    /// To which line.
    pub to: String,
    /// Rows a second; what they say follows from the schedule where there is one.
    pub changes_per_second: Option<f64>,
    /// Median latencies: the median of the rounds' ratios.
    pub latency_p50: Option<f64>,
    /// Latencies of 99 of 100, likewise: where a disk or a neighbour holds the machine up for a
    /// moment, it is that round's.
    pub latency_p99: Option<f64>,
    /// CPU time for each row.
    pub cpu_per_change: Option<f64>,
    /// CPU time for each message.
    pub cpu_per_message: Option<f64>,
}

impl Ratio {
    /// Holds one line against another.
    #[must_use]
    pub fn new(of: &Line, to: &Line) -> Self {
        let latency = |point: Point| {
            let (ours, theirs) = (&of.latency_us_of_rounds, &to.latency_us_of_rounds);
            let pairs = ours.iter().zip(theirs);
            let ratio = |(of, to)| quotient(float(point(of)), float(point(to)));
            let ratios: Vec<f64> = pairs.filter_map(ratio).collect();
            median(&ratios)
        };
        Self {
            of: of.name(),
            to: to.name(),
            changes_per_second: quotient(of.changes_per_second, to.changes_per_second),
            latency_p50: latency(|points| points.p50),
            latency_p99: latency(|points| points.p99),
            cpu_per_change: quotient(of.cpu_us_per_change, to.cpu_us_per_change),
            cpu_per_message: quotient(of.cpu_us_per_message, to.cpu_us_per_message),
        }
    }
}

impl Report {
    /// Whether everybody got what is theirs and nothing else, in every round.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.results.iter().all(Line::is_clean)
            && self.finding.as_ref().is_none_or(Finding::is_clean)
    }

    /// The report for people.
    #[must_use]
    pub fn table(&self) -> String {
        if let Some(finding) = &self.finding {
            return finding.table();
        }
        let mut text = String::new();
        let settings = &self.settings;
        let rate = if settings.rate == 0 {
            "flat out".to_owned()
        } else {
            format!("{} rows/s", settings.rate)
        };
        put(
            &mut text,
            &format!(
                "{rate}, {} row(s) a transaction, {} writer(s), policy {}, filter {}, {} round(s){}",
                settings.transaction_size,
                settings.writers,
                settings.policy,
                settings.filter,
                settings.rounds,
                if settings.in_process {
                    ", in-process"
                } else {
                    ""
                }
            ),
        );
        if !self.results.is_empty() {
            self.put_results(&mut text);
        }
        for line in self.results.iter().filter(|line| self.lags(line)) {
            put(
                &mut text,
                &format!(
                    "\n{}: the schedule was not kept; the latencies are those of an overload.",
                    line.name()
                ),
            );
        }
        for ratio in &self.ratios {
            put(
                &mut text,
                &format!(
                    "\n{} / {}: changes/s {}; latency p50 {}, p99 {}; CPU a change {}, a message {}",
                    ratio.of,
                    ratio.to,
                    times(ratio.changes_per_second),
                    times(ratio.latency_p50),
                    times(ratio.latency_p99),
                    times(ratio.cpu_per_change),
                    times(ratio.cpu_per_message)
                ),
            );
        }
        text
    }

    /// Whether a line's rows took markedly longer than the schedule said.
    fn lags(&self, line: &Line) -> bool {
        self.settings.rate > 0 && line.changes_per_second < 0.9 * float(self.settings.rate)
    }

    fn put_results(&self, text: &mut String) {
        let mut rows: Vec<Vec<String>> = vec![Vec::new()];
        let mut put_row = |name: &str, cell: &dyn Fn(&Line) -> String| {
            let mut row = vec![name.to_owned()];
            row.extend(self.results.iter().map(cell));
            rows.push(row);
        };
        put_row("", &Line::name);
        put_row("rows", &|line| line.rows.to_string());
        put_row("delivered", &|line| line.delivered.to_string());
        put_row("missing", &|line| line.missing.to_string());
        put_row("duplicated", &|line| line.duplicated.to_string());
        put_row("leaked", &|line| line.leaked.to_string());
        put_row("out of order", &|line| line.out_of_order.to_string());
        put_row("changes/s", &|line| {
            format!("{:.0}", line.changes_per_second)
        });
        put_row("messages/s", &|line| {
            format!("{:.0}", line.messages_per_second)
        });
        let points: [(&str, Point); 4] = [
            ("latency p50", |points| points.p50),
            ("latency p99", |points| points.p99),
            ("latency p99.9", |points| points.p999),
            ("latency max", |points| points.max),
        ];
        for (name, point) in points {
            put_row(name, &|line| millis(line.latency_us.as_ref().map(point)));
        }
        put_row("of it commit p50", &|line| {
            millis(line.commit_us.map(|points| points.p50))
        });
        put_row("CPU seconds", &|line| format!("{:.2}", line.cpu_seconds));
        put_row("CPU a change", &|line| {
            format!("{:.1} µs", line.cpu_us_per_change)
        });
        put_row("CPU a message", &|line| {
            format!("{:.1} µs", line.cpu_us_per_message)
        });
        put_row("RSS", &|line| {
            format!("{:.1} MiB", float(line.rss_bytes) / 1_048_576.0)
        });
        for row in rows.iter().skip(1) {
            let mut cells = row.iter();
            let mut line = format!("{:<17}", cells.next().map_or("", String::as_str));
            for cell in cells {
                // Writing to a String does not fail.
                let _written = write!(line, "{cell:>16}");
            }
            put(text, line.trim_end());
        }
    }
}

/// One figure of a distribution.
type Point = fn(&Percentiles) -> u64;

fn put(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

pub(super) fn millis(micros: Option<u64>) -> String {
    micros.map_or("–".to_owned(), |micros| {
        format!("{:.2} ms", float(micros) / 1_000.0)
    })
}

pub(super) fn times(ratio: Option<f64>) -> String {
    ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2} ×"))
}

pub(super) fn per(count: u64, seconds: f64) -> f64 {
    quotient(float(count), seconds).unwrap_or(0.0)
}

pub(super) fn over(amount: f64, count: u64) -> f64 {
    quotient(amount, float(count)).unwrap_or(0.0)
}

pub(super) fn quotient(of: f64, to: f64) -> Option<f64> {
    (to > 0.0).then(|| of / to)
}

/// The middle one; between two the mean of them.
pub(super) fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = sorted.get(middle)?;
    if sorted.len() % 2 == 1 {
        return Some(*upper);
    }
    let lower = sorted.get(middle.checked_sub(1)?)?;
    Some(f64::midpoint(*lower, *upper))
}

/// Counts here stay far below the 2^53 up to which this is exact.
#[expect(clippy::cast_precision_loss, reason = "see above")]
pub(super) const fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::super::latency::Times;
    use super::super::trial::idle::Idle;
    use super::super::verifier::Tally;
    use super::*;

    fn figures(cpu_seconds: f64, latency: u64) -> Figures {
        let mut times = Times::new().unwrap();
        times.record(latency);
        Figures {
            rows: 1_000,
            expected: 2_000,
            tally: Tally {
                delivered: 2_000,
                ..Tally::default()
            },
            rounds: times.percentiles().into_iter().collect(),
            latency: times.clone(),
            commits: times,
            seconds: 2.0,
            cpu_seconds,
            rss_bytes: 10 << 20,
        }
    }

    fn report(tally: Tally) -> Report {
        let mut figures_of_relay = figures(0.02, 2_000_000);
        figures_of_relay.tally.add(&tally);
        let relay = Line::new("rowcast", Some(Storage::Disk), 100, &figures_of_relay);
        let baseline = Line::new("baseline", None, 1, &figures(0.01, 1_000_000));
        Report {
            settings: Settings {
                in_process: false,
                rate: 1_000,
                policy: "user",
                filter: "none",
                transaction_size: 1,
                writers: 4,
                rounds: 1,
            },
            ratios: vec![Ratio::new(&relay, &baseline)],
            results: vec![relay, baseline],
            finding: None,
        }
    }

    #[test]
    fn figures_become_rates_and_ratios() {
        let report = report(Tally::default());
        let line = &report.results[0];
        assert!((line.changes_per_second - 500.0).abs() < 1e-9);
        assert!((line.cpu_us_per_change - 20.0).abs() < 1e-9);
        assert!((line.cpu_us_per_message - 10.0).abs() < 1e-9);
        let ratio = &report.ratios[0];
        assert_eq!(ratio.cpu_per_change, Some(2.0));
        assert!((ratio.latency_p50.unwrap() - 2.0).abs() < 0.01);
        assert!(report.is_clean());
    }

    #[test]
    fn a_round_that_the_machine_held_up_does_not_decide_a_latencys_ratio() {
        let rounds = |millis: &[u64]| {
            let mut all = figures(0.01, millis[0] * 1_000_000);
            for millis in &millis[1..] {
                all.add(&figures(0.01, millis * 1_000_000));
            }
            Line::new("rowcast", None, 1, &all)
        };
        let p99 = |of: &[u64], to: &[u64]| {
            let ratio = Ratio::new(&rounds(of), &rounds(to));
            ratio.latency_p99.unwrap()
        };
        assert!((p99(&[2, 900, 3], &[1, 2, 2]) - 2.0).abs() < 0.01);
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[]), None);
        assert!((p99(&[2, 3], &[1, 1]) - 2.5).abs() < 0.01);
        assert!((p99(&[3], &[1]) - 3.0).abs() < 0.01);
    }

    #[test]
    fn one_wrong_message_spoils_the_report() {
        assert!(
            !report(Tally {
                leaked: 1,
                ..Tally::default()
            })
            .is_clean()
        );
    }

    #[test]
    fn a_trial_is_reported_under_its_name() {
        let idle = Idle::new(1_000, 10 << 20, 20 << 20);
        let report = Report {
            finding: Some(Finding::Idle(idle)),
            ..report(Tally::default())
        };
        let table = report.table();
        assert!(table.contains("10.2 KiB each"), "{table}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["idle"]["connections"], 1_000);
    }

    #[test]
    fn the_table_and_the_json_hold_the_figures() {
        let report = report(Tally::default());
        let table = report.table();
        for words in ["rowcast disk 100", "2.00 ms", "20.0 µs", "2.00 ×"] {
            assert!(table.contains(words), "{words} is missing in\n{table}");
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["results"][0]["delivered"], 2_000);
        assert_eq!(json["results"][1]["system"], "baseline");
        assert!(json.get("idle").is_none());
        assert!(json["results"][0]["latency_us"]["p50"].is_u64());
    }
}
