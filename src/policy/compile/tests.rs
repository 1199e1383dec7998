use super::*;

const VAR: &str = "{VAR :varno 1 :varattno 1 :vartype 25 :vartypmod -1 :varcollid 100 \
    :varlevelsup 0 :varnosyn 1 :varattnosyn 1 :location 1}";

fn scope() -> Scope {
    let column = Column {
        name: Arc::from("owner"),
        type_oid: Oid(25),
        type_modifier: -1,
        collation: Oid(100),
    };
    Scope {
        major: 15,
        columns: HashMap::from([(1, column)]),
        ..Scope::default()
    }
}

fn compared(operator: u32, collation: u32, right: &str) -> Result<Compiled, Refusal> {
    let tree = format!(
        "{{OPEXPR :opno {operator} :opfuncid 67 :opresulttype 16 :opretset false :opcollid 0 \
         :inputcollid {collation} :args ({VAR} {right}) :location 1}}"
    );
    compile(&tree, &scope())
}

fn setting(name: &str) -> String {
    let bytes = name.bytes().map(|byte| byte.to_string());
    let bytes: Vec<String> = bytes.collect();
    let length = name.len() + 4;
    format!(
        "{{FUNCEXPR :funcid 2077 :funcresulttype 25 :funcretset false :funcvariadic false \
         :funcformat 0 :funccollid 100 :inputcollid 100 :args ({{CONST :consttype 25 :consttypmod \
         -1 :constcollid 100 :constlen -1 :constbyval false :constisnull false :location 1 \
         :constvalue {length} [ {} 0 0 0 {} ]}}) :location 1}}",
        length << 2,
        bytes.join(" ")
    )
}

#[test]
fn equality_with_a_setting_compiles() {
    let compiled = compared(98, 100, &setting("role")).unwrap();
    assert_eq!(compiled.columns.len(), 1);
    assert_eq!(compiled.references, BTreeSet::from([Reference::Column(1)]));
}

#[test]
fn what_is_not_exact_is_refused() {
    for (operator, collation, right, why) in [
        (664, 100, setting("role"), "order under a locale"),
        (
            98,
            12_345,
            setting("role"),
            "equality under an unknown collation",
        ),
        (99_999, 100, setting("role"), "an unknown operator"),
        (
            98,
            100,
            setting("app.tenant"),
            "a setting that is not known",
        ),
        (
            98,
            100,
            VAR.replace("varlevelsup 0", "varlevelsup 1"),
            "an outer relation",
        ),
        (
            98,
            100,
            VAR.replace("varattno 1 ", "varattno 2 "),
            "an unknown column",
        ),
        (
            98,
            100,
            VAR.replace("varattno 1 ", "varattno -1 "),
            "a system column",
        ),
        (
            98,
            100,
            VAR.replace("vartype 25", "vartype 1043"),
            "a column of another type",
        ),
        (96, 0, setting("role"), "operands of another type"),
    ] {
        assert!(compared(operator, collation, &right).is_err(), "{why}");
    }
    let newer = Scope {
        major: 99,
        ..scope()
    };
    assert!(compile("<>", &newer).is_err(), "an unknown major version");
}
