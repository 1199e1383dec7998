//! Filters of subscribers, and what of old rows they read.

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{ANN, DEADLINE, Place, rowcast, token};

const NOTE: &str = "app.note";

/// What a subscriber to `app.note` is told who joins with this filter: the status and the sentence of
/// the message about it.
async fn subscriber_hears(place: &Place, filter: &str) -> (String, String) {
    let token = token(&json!({ "role": "authenticated", "sub": ANN, "exp": 4_102_444_800_u64 }));
    let url = format!(
        "ws://{}/realtime/v1/websocket?apikey={token}&vsn=2.0.0",
        place.address()
    );
    let (mut socket, _) = tokio_tungstenite::connect_async(&url).await.unwrap();
    let binding = json!({ "event": "*", "schema": "app", "table": "note", "filter": filter });
    let payload = json!({ "config": { "postgres_changes": [binding] } });
    let join = json!(["1", "1", "realtime:all", "phx_join", payload]);
    socket.send(Message::text(join.to_string())).await.unwrap();
    let heard = async {
        loop {
            let Message::Text(text) = socket.next().await.unwrap().unwrap() else {
                continue;
            };
            let frame: Value = serde_json::from_str(&text).unwrap();
            let said = &frame[4];
            let status = said["status"].as_str().unwrap_or_default().to_owned();
            if frame[3] == "system" && status != "ok" {
                return (status, said["message"].as_str().unwrap().to_owned());
            }
        }
    };
    timeout(DEADLINE, heard).await.expect("it is told")
}

/// The only finding with a code.
fn finding<'r>(report: &'r Value, code: &str) -> &'r Value {
    let findings = report["findings"].as_array().unwrap();
    let mut found = findings.iter().filter(|one| one["code"] == code);
    let first = found.next().unwrap_or_else(|| panic!("{report:#}"));
    assert!(found.next().is_none(), "{report:#}");
    first
}

#[tokio::test]
async fn a_filter_that_the_relay_refuses_is_said_in_the_words_that_the_subscriber_hears() {
    let place = Place::good().await;
    place
        .run("alter table app.note add \"Team\" int, add flag boolean, add doc json")
        .await;
    for (filter, advice) in [
        ("nothing=eq.1", "has no column nothing."),
        ("team=eq.1", "it has Team: write it as it is"),
        ("id=eq.x", "docs/protocol.md"),
        ("id=like.1%", "docs/protocol.md"),
        ("id=around.1", "docs/protocol.md"),
        ("id", "docs/protocol.md"),
        ("id=eq.1,", "docs/protocol.md"),
        ("id=in.1", "docs/protocol.md"),
        ("id=in.(1,x)", "docs/protocol.md"),
        ("body=is.true", "docs/protocol.md"),
        ("flag=not.is.maybe", "docs/protocol.md"),
        ("doc=eq.{}", "docs/protocol.md"),
        ("body=match.(", "docs/protocol.md"),
    ] {
        let found = place.doctor(&["--table", NOTE, "--filter", filter]).await;
        found.is(&["filter_refused"]);
        let said = finding(&found.report, "filter_refused");
        assert_eq!((&said["severity"], found.code), (&json!("error"), 2));
        assert_eq!(said["table"], NOTE);
        let text = said["text"].as_str().unwrap();
        let (_, reason) = text.split_once(" are refused: ").expect(text);
        let (status, heard) = subscriber_hears(&place, filter).await;
        assert_eq!(status, "error", "{filter}");
        assert!(heard.contains(reason), "{filter}: {heard} {reason}");
        assert!(text.contains(filter), "{text}");
        assert!(
            said["advice"].as_str().unwrap().contains(advice),
            "{said:#}"
        );
    }
    // Each of several is a subscription of its own.
    let several = [
        "--filter", "id=eq.1", "--filter", "id=eq.x", "--filter", "id=eq.y",
    ];
    let arguments = [&["--table", NOTE][..], &several].concat();
    let found = place.doctor(&arguments).await;
    found.is(&["filter_refused"]);
    assert_eq!(found.report["errors"], 2);
    place
        .doctor(&["--table", NOTE, "--filter", ""])
        .await
        .is_well();
}

#[tokio::test]
async fn a_filter_by_a_column_that_is_not_granted_is_found_and_mended() {
    let place = Place::good().await;
    place
        .run(
            "revoke select on app.note from authenticated;
             grant select (id, person) on app.note to authenticated",
        )
        .await;
    let arguments = [
        "--table",
        NOTE,
        "--filter",
        "body=eq.x",
        "--event",
        "insert",
    ];
    let found = place.doctor(&arguments).await;
    found.is(&["column_grants", "filter_refused"]);
    let refused = finding(&found.report, "filter_refused");
    assert_eq!(
        refused["sql"],
        json!(["grant select (\"body\") on table app.note to \"authenticated\""])
    );
    place.run(refused["sql"][0].as_str().unwrap()).await;
    place.doctor(&arguments).await.is_well();
    // With a token it is the token's role that counts.
    let anon = token(&json!({ "role": "anon", "exp": 4_102_444_800_u64 }));
    place
        .run("grant usage on schema app to anon; grant select (id) on app.note to anon")
        .await;
    let found = place
        .doctor_with(&arguments, &[("ROWCAST_TOKEN", &anon)])
        .await;
    let refused = finding(&found.report, "filter_refused");
    assert!(
        refused["sql"][0].as_str().unwrap().ends_with("to \"anon\""),
        "{refused:#}"
    );
}

#[tokio::test]
async fn a_filter_that_old_rows_do_not_carry_is_found_and_mended_by_an_index() {
    let place = Place::good().await;
    place
        .run("alter table app.note add team int not null default 7")
        .await;
    let filter = "team=eq.7,body=not.is.null";
    for (arguments, codes) in [
        (&["--filter", "team=eq.7"][..], &["filter_identity"][..]),
        (
            &["--filter", "team=in.(7,8)", "--event", "delete"],
            &["filter_identity"],
        ),
        (&["--filter", "team=eq.7", "--event", "INSERT"], &[]),
        (&["--filter", "id=eq.7"], &[]),
    ] {
        let arguments = [&["--table", NOTE][..], arguments].concat();
        let found = place.doctor(&arguments).await;
        found.is(codes);
    }
    let one = ["--table", NOTE, "--filter", "team=eq.7"];
    let found = place.doctor(&one).await;
    assert_eq!(found.code, 1, "somebody receives too little");
    let lacking = finding(&found.report, "filter_identity");
    let text = lacking["text"].as_str().unwrap();
    let (status, heard) = subscriber_hears(&place, "team=eq.7").await;
    assert_eq!(status, "warning");
    let heard = heard.split(". To have it").next().unwrap();
    assert!(text.contains(heard), "{text} {heard}");
    assert!(
        text.contains("Rows of app.note that leave your view"),
        "{text}"
    );
    for statement in found.sql() {
        assert!(!statement.contains("replica identity full"), "{statement}");
        place.run(&statement).await;
    }
    place.doctor(&one).await.is_well();
    place.delivers_to("note", "team=eq.7").await;

    // A column that an index cannot carry takes all of the row.
    let found = place.doctor(&["--table", NOTE, "--filter", filter]).await;
    found.is(&["filter_identity"]);
    assert!(
        finding(&found.report, "filter_identity")["text"]
            .as_str()
            .unwrap()
            .contains("carry body,"),
        "{:#}",
        found.report
    );
    assert_eq!(found.sql(), ["alter table app.note replica identity full"]);
    place.run(&found.sql()[0]).await;
    place
        .doctor(&["--table", NOTE, "--filter", filter])
        .await
        .is_well();
    place.delivers_to("note", filter).await;
}

#[tokio::test]
async fn old_rows_that_the_relay_keeps_do_for_a_filter_and_partitions_are_mended_one_by_one() {
    let place = Place::good().await;
    place
        .run(&format!("grant select on app.note to {0}; create policy all_of_it on app.note for select to {0} using (true)", place.relay))
        .await;
    let arguments = ["--table", NOTE, "--filter", "body=like.a%"];
    let found = place.doctor(&arguments).await;
    found.is(&["filter_identity"]);
    let advice = finding(&found.report, "filter_identity")["advice"]
        .as_str()
        .unwrap();
    assert!(
        advice.contains("ROWCAST_OLD_ROWS=app.note.\"body\""),
        "{advice}"
    );
    let kept = [&arguments[..], &["--old-rows", "app.note.\"body\""]].concat();
    place.doctor(&kept).await.is_well();

    place
        .run("alter table app.part add team int; alter table app.part_north replica identity default")
        .await;
    let arguments = ["--table", "app.part", "--filter", "team=eq.1"];
    let found = place.doctor(&arguments).await;
    found.is(&["filter_identity", "identity_too_little"]);
    place.mend(&found).await;
    place.doctor(&arguments).await.is_well();
}

#[tokio::test]
async fn a_filter_that_postgresql_is_asked_about_is_noted() {
    let place = Place::good().await;
    for (filter, asked) in [
        ("body=match.^b", true),
        ("body=not.imatch.^b,id=eq.1", true),
        ("body=like.b%", false),
        ("person=neq.00000000-0000-4000-8000-00000000000a", false),
    ] {
        let arguments = ["--table", NOTE, "--filter", filter, "--event", "INSERT"];
        let found = place.doctor(&arguments).await;
        found.is(if asked { &["filter_asked"] } else { &[] });
        assert_eq!(found.code, 0, "a note is no fault");
    }
}

#[tokio::test]
async fn whose_filter_it_is_has_to_be_said_where_several_tables_are_published() {
    let place = Place::good().await;
    let environment = place.environment();
    let environment: Vec<(&str, &str)> = environment
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    for arguments in [
        &["--filter", "id=eq.1"][..],
        &[
            "--filter", "id=eq.1", "--table", NOTE, "--table", "app.plan",
        ],
        &["--event", "INSERT", "--table", NOTE],
        &[
            "--filter", "id=eq.1", "--table", NOTE, "--event", "TRUNCATE",
        ],
    ] {
        let all = [&["doctor", "--json"][..], arguments].concat();
        let output = rowcast(&all, &environment).await;
        assert_eq!(output.status.code(), Some(64), "{arguments:?} {output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
    // It goes without saying where there is one, and what is not published has said so.
    place
        .run("alter publication rowcast drop table app.judged, app.plan, app.part")
        .await;
    let found = place.doctor(&["--filter", "id=eq.x"]).await;
    found.is(&["filter_refused"]);
    let found = place
        .doctor(&["--filter", "id=eq.x", "--table", "app.plan"])
        .await;
    found.is(&["table_unpublished"]);
}
