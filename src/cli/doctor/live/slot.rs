//! Without a relay: through a slot of this session, which goes with it.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use tokio_postgres::error::SqlState;

use super::{Live, Stage};
use crate::doctor::{Finding, Patient, Severity, slot_waits};
use crate::pg::connect::Database;
use crate::pg::refusal::with_causes;
use crate::pg::{quote_identifier, quote_literal};

/// How long a row may take.
const ARRIVAL: Duration = Duration::from_secs(15);

/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(50);

pub(super) async fn watch(stage: &Stage, patient: &Patient, live: &mut Live) -> Vec<Finding> {
    live.way = "slot";
    match decode(stage, patient, live).await {
        Ok(()) => Vec::new(),
        Err(finding) => vec![finding],
    }
}

async fn decode(stage: &Stage, patient: &Patient, live: &mut Live) -> Result<(), Finding> {
    let failed = |what: &str, error: String| {
        Finding::error("live_slot", format!("{what}: {error}")).advice(
            "Mend what stands above first: wal_level, REPLICATION, free slots, open transactions.",
        )
    };
    // The relay's own login: what it may is what counts.
    let session = Database::parse(patient.config.database_url.expose())
        .map_err(|error| failed("no session for a slot", error.to_string()))?
        .connect("rowcast doctor")
        .await
        .map_err(|error| failed("no session for a slot", error.to_string()))?;
    let slot = format!("rowcast_doctor_{}", stage.mark.replace('-', "_"));
    // It waits for transactions that are open.
    let made = session
        .batch_execute(&format!(
            "set statement_timeout = '20s'; \
             select pg_catalog.pg_create_logical_replication_slot({}, 'pgoutput', true)",
            quote_literal(&slot)
        ))
        .await;
    if let Err(error) = made {
        if error.code() == Some(&SqlState::QUERY_CANCELED)
            && let Some(finding) = slot_waits(&session, &slot, None).await
        {
            return Err(finding.of_severity(Severity::Error));
        }
        return Err(failed("no slot can be made", with_causes(&error)));
    }
    live.done("made a slot that goes with this session, as no relay runs");
    stage
        .write(1)
        .await
        .map_err(|error| failed("the row cannot be written", with_causes(&error)))?;
    live.done("wrote a row, which is committed");
    let deadline = Instant::now() + ARRIVAL;
    let publication = quote_identifier(&stage.publication);
    while Instant::now() < deadline {
        let row = session
            .query_one(
                "select exists (select from pg_catalog.pg_logical_slot_peek_binary_changes($1::text::name, \
                 null, null, 'proto_version', '1', 'publication_names', $2::text) c \
                 where substr(c.data, 1, 1) = '\\x49'::bytea \
                   and position(convert_to($3::text, 'UTF8') in c.data) > 0)",
                &[&slot, &publication, &stage.mark],
            )
            .await
            .map_err(|error| failed("the slot cannot be decoded", with_causes(&error)))?;
        if row.try_get(0).unwrap_or(false) {
            live.arrived = true;
            live.done("the row is in the stream; whether it is delivered only a relay can show");
            return Ok(());
        }
        sleep(LOOK).await;
    }
    Err(Finding::error(
        "live_silent",
        format!(
            "the row was committed and is not in the stream after {} s",
            ARRIVAL.as_secs()
        ),
    )
    .advice("Look at what the publication leaves out."))
}
