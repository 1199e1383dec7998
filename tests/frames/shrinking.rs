//! Fewer frames, of which a failure is shrunk to the smallest.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rowcast::auth::{Claims, Principal};
use rowcast::router::Event;
use rowcast::session::{Action, Limits, Now, Reply, Session};
use rowcast::supabase::{Serializer, encode};
use serde_json::value::RawValue;

use crate::alone;

fn session() -> Session {
    let principal = Principal {
        role: "anon".into(),
        claims: Claims::verified("{}"),
        expires_at: None,
    };
    Session::new(Arc::new(principal), Limits::default())
}

const NOW: Now = Now {
    monotonic: Duration::from_secs(1),
    unix: 1_700_000_000,
};

fn feed(session: &mut Session, serializer: Serializer, frame: &[u8]) {
    let request = match std::str::from_utf8(frame) {
        Ok(text) => serializer.text(text),
        Err(_) => serializer.binary(frame),
    };
    let mut actions = Vec::new();
    match request {
        Ok(request) => session.request(request, NOW, &mut actions),
        Err(_) => session.malformed(&mut actions),
    }
    let _binary = serializer.binary(frame);
    for action in actions {
        let mut then = Vec::new();
        match action {
            Action::Reply(reply) => assert_valid(serializer, &reply),
            Action::Join { channel, .. } => session.event(
                Event::Joined {
                    channel,
                    refusals: Vec::new(),
                    notices: vec![],
                    holder: None,
                },
                NOW,
                &mut then,
            ),
            _ => {}
        }
        for action in then {
            if let Action::Reply(reply) = action {
                assert_valid(serializer, &reply);
            }
        }
    }
}

/// What a client said is spliced into what it is told; that must be JSON still.
fn assert_valid(serializer: Serializer, reply: &Reply) {
    let frame = encode(serializer, reply).unwrap();
    let payload = match serializer {
        Serializer::V1 => {
            let object: HashMap<String, Box<RawValue>> =
                serde_json::from_str(&frame).expect("a reply is JSON");
            object["payload"].clone()
        }
        Serializer::V2 => {
            let array: Vec<Box<RawValue>> = serde_json::from_str(&frame).expect("a reply is JSON");
            assert_eq!(array.len(), 5, "{frame}");
            array[4].clone()
        }
    };
    assert!(payload.get().starts_with('{'), "{frame}");
}

fn alive(session: &mut Session, serializer: Serializer) {
    let frame = match serializer {
        Serializer::V1 => r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"1"}"#,
        Serializer::V2 => r#"[null,"1","phoenix","heartbeat",{}]"#,
    };
    let mut actions = Vec::new();
    session.request(serializer.text(frame).unwrap(), NOW, &mut actions);
    assert!(matches!(
        actions.as_slice(),
        [Action::Reply(Reply::Ok { .. })]
    ));
}

fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        "-?[1-9][0-9]{0,3}(\\.[0-9]{1,3})?(e[0-9]{1,3})?",
        "\"(realtime:)?[a-z*=., ]{0,8}\"",
        Just("\"\\ud800\"".to_owned()),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        let key =
            "config|private|postgres_changes|event|schema|table|filter|select|id|access_token";
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(|v| format!("[{}]", v.join(","))),
            prop::collection::vec((key, inner), 0..6).prop_map(|v| {
                let members: Vec<_> = v.iter().map(|(k, v)| format!("\"{k}\" : {v}")).collect();
                format!("{{{}}}", members.join(", "))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn random_bytes_wedge_no_session(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 1..8)) {
        let _alone = alone();
        for serializer in [Serializer::V1, Serializer::V2] {
            let mut session = session();
            for frame in &frames {
                feed(&mut session, serializer, frame);
                let mut kind_3 = vec![3];
                kind_3.extend_from_slice(frame);
                let _push = serializer.binary(&kind_3);
            }
            alive(&mut session, serializer);
        }
    }

    #[test]
    fn random_messages_wedge_no_session_and_are_answered_in_json(
        messages in prop::collection::vec(
            (json(), json(), "phx_join|phx_leave|access_token|presence|x", json(), json()),
            1..8,
        )
    ) {
        let _alone = alone();
        for serializer in [Serializer::V1, Serializer::V2] {
            let mut session = session();
            for (join_ref, reference, event, payload, binding) in &messages {
                for payload in [
                    payload.clone(),
                    format!("{{\"config\":{{\"postgres_changes\":[{binding}]}}}}"),
                ] {
                    let frame = match serializer {
                        Serializer::V1 => format!(
                            r#"{{"topic":"realtime:a","event":"{event}","payload":{payload},"ref":{reference},"join_ref":{join_ref}}}"#
                        ),
                        Serializer::V2 => {
                            format!(r#"[{join_ref},{reference},"realtime:a","{event}",{payload}]"#)
                        }
                    };
                    feed(&mut session, serializer, frame.as_bytes());
                }
            }
            alive(&mut session, serializer);
        }
    }
}

#[test]
fn deep_nesting_is_no_way_to_exhaust_the_stack() {
    let _alone = alone();
    for serializer in [Serializer::V1, Serializer::V2] {
        let deep = "[".repeat(500_000);
        feed(&mut session(), serializer, deep.as_bytes());
        let deep = format!(
            r#"["1","1","realtime:a","phx_join",{{"config":{}{}}}]"#,
            "{\"a\":".repeat(100_000),
            "}".repeat(100_000)
        );
        feed(&mut session(), serializer, deep.as_bytes());
    }
}
