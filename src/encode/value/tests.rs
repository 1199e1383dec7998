use std::sync::Arc;

use proptest::prelude::*;

use super::*;

fn written(codec: &Codec, text: &str) -> String {
    let mut out = Vec::new();
    codec.write(&mut out, text);
    let json = String::from_utf8(out).unwrap();
    assert!(
        serde_json::from_str::<&serde_json::value::RawValue>(&json).is_ok(),
        "{json}"
    );
    json
}

fn array(element: Codec, delimiter: u8) -> Codec {
    let element = Arc::new(element);
    Codec::Array { element, delimiter }
}

fn composite(attributes: impl IntoIterator<Item = (&'static str, Codec)>) -> Codec {
    let attribute =
        |(label, codec): (&str, Codec)| (format!("\"{label}\":").into_bytes().into(), codec.into());
    Codec::Composite(attributes.into_iter().map(attribute).collect())
}

#[test]
fn values_are_written_as_to_jsonb_writes_them() {
    for (codec, text, json) in [
        (Codec::Bool, "t", "true"),
        (Codec::Number, "9223372036854775807", "9223372036854775807"),
        (Codec::Number, "-1.50", "-1.50"),
        (Codec::Number, "1e-07", "1e-07"),
        (Codec::Number, "NaN", "\"NaN\""),
        (Codec::Number, "-Infinity", "\"-Infinity\""),
        (Codec::Text, "a\"b\\c\n", r#""a\"b\\c\n""#),
        (Codec::Json, r#"{"a": [1, null]}"#, r#"{"a": [1, null]}"#),
        (
            Codec::Timestamp,
            "2024-02-29 12:34:56.5",
            "\"2024-02-29T12:34:56.5\"",
        ),
        (Codec::Timestamp, "infinity", "\"infinity\""),
        (
            Codec::Timestamptz,
            "2024-02-29 10:34:56+00",
            "\"2024-02-29T10:34:56+00:00\"",
        ),
        (
            Codec::Timestamptz,
            "0044-03-15 00:00:00+00 BC",
            "\"0044-03-15T00:00:00+00:00 BC\"",
        ),
        (Codec::Timestamptz, "-infinity", "\"-infinity\""),
        (Codec::Bytea, "\\xdeadbeef", "\"deadbeef\""),
        (Codec::Vector(Arc::new(Codec::Number)), "", "[]"),
        (Codec::Vector(Arc::new(Codec::Number)), "1 -2", "[1,-2]"),
        (Codec::Hstore, "", "{}"),
        (
            Codec::Hstore,
            r#""b"=>NULL, "a\"\\"=>"NULL""#,
            r#"{"b":null,"a\"\\":"NULL"}"#,
        ),
    ] {
        assert_eq!(written(&codec, text), json);
    }
}

#[test]
fn arrays_and_composites_nest() {
    let numbers = array(Codec::Number, b',');
    assert_eq!(written(&numbers, "{}"), "[]");
    assert_eq!(written(&numbers, "{1,NULL,3}"), "[1,null,3]");
    assert_eq!(written(&numbers, "{{1,2},{3,NaN}}"), "[[1,2],[3,\"NaN\"]]");
    assert_eq!(written(&numbers, "[0:1]={1,2}"), "[1,2]");
    let boxes = array(Codec::Text, b';');
    assert_eq!(
        written(&boxes, "{(3,4),(1,2);NULL}"),
        r#"["(3,4),(1,2)",null]"#
    );
    let texts = array(Codec::Text, b',');
    assert_eq!(
        written(&texts, r#"{a,"b,c","NULL","d\"e\\","",größer}"#),
        r#"["a","b,c","NULL","d\"e\\","","größer"]"#
    );
    let pair = composite([("a", Codec::Number), ("b", texts), ("c", Codec::Text)]);
    assert_eq!(
        written(&pair, r#"(1,"{x,""y z""}",)"#),
        r#"{"a":1,"b":["x","y z"],"c":null}"#
    );
    assert_eq!(
        written(&pair, r#"(,,"""\\")"#),
        r#"{"a":null,"b":null,"c":"\"\\"}"#
    );
    assert_eq!(written(&composite([]), "()"), "{}");
    assert_eq!(
        written(&composite([("a", Codec::Text)]), r#"("")"#),
        r#"{"a":""}"#
    );
}

#[test]
fn a_text_that_is_not_its_types_becomes_a_string_never_broken_json() {
    let numbers = array(Codec::Number, b',');
    for text in [
        "", "{", "}", "{1", "{1}}", "{\"", "[1", "x", "{a\\", "{1,}", "{,1}", "{1 {2}}", "{{1}2}",
    ] {
        assert!(written(&numbers, text).starts_with('"'), "{text}");
    }
    let pair = composite([("a", Codec::Number), ("b", Codec::Number)]);
    for text in [
        "",
        "(",
        "()",
        "(1)",
        "(1,2",
        "(1,2,3)",
        "(1,2)x",
        "(1\"2\",3)",
    ] {
        assert!(written(&pair, text).starts_with('"'), "{text}");
    }
    for text in [
        "\"a\"",
        "\"a\"=>",
        "\"a\"=>1",
        "\"a\"=>\"b\",",
        "\"a\"=>NULL,\"b\"=>NULL",
    ] {
        assert!(written(&Codec::Hstore, text).starts_with('"'), "{text}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_broken_json(
        text in proptest::string::string_regex("[-+.:e0-9{}()\\[\\]\",;\\\\ \\nTNULl=>é\u{1}]{0,24}").unwrap(),
    ) {
        let inner = composite([("a", Codec::Number), ("b", array(Codec::Timestamptz, b','))]);
        for codec in [
            Codec::Bool,
            Codec::Number,
            Codec::Text,
            Codec::Timestamp,
            Codec::Timestamptz,
            Codec::Bytea,
            Codec::Hstore,
            Codec::Vector(Arc::new(Codec::Text)),
            array(inner, b','),
            array(array(Codec::Text, b';'), b','),
        ] {
            written(&codec, &text);
        }
    }
}
