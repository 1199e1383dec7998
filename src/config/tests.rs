//! What holds between the settings' table, the ways in and the printed forms.

use std::collections::BTreeMap;

use super::settings::{Form, SETTINGS};
use super::*;

fn environment(pairs: &[(&str, &str)]) -> Given {
    Given {
        environment: pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect::<BTreeMap<_, _>>(),
        ..Given::default()
    }
}

fn enough() -> Given {
    environment(&[
        ("DATABASE_URL", "postgres://localhost/app"),
        ("JWT_SECRET", "0123456789abcdef0123456789abcdef"),
    ])
}

fn error(given: &Given) -> String {
    load(given, true).unwrap_err().to_string()
}

#[test]
fn a_database_and_a_secret_are_enough() {
    let loaded = load(&enough(), true).unwrap();
    assert_eq!(loaded.config.listen.to_string(), "0.0.0.0:4000");
    assert_eq!(loaded.config.admin_listen.to_string(), "127.0.0.1:4001");
    assert_eq!(loaded.config.slot, "rowcast");
    assert_eq!(loaded.config.publication, None);
    assert_eq!(loaded.config.log_max_bytes, 256 << 20);
    assert_eq!(loaded.config.drain, Duration::from_secs(10));
    assert_eq!(loaded.warnings, Vec::<String>::new());
    assert_eq!(loaded.given, ["database_url", "jwt_secret"]);
}

#[test]
fn a_flag_comes_before_the_environment_before_the_file_before_the_default() {
    let mut given = enough();
    let slot = |given: &Given| load(given, true).unwrap().config.slot;
    given.file = Some(("rowcast.toml".into(), "slot = \"of_file\"".into()));
    assert_eq!(slot(&given), "of_file");
    given
        .environment
        .insert("ROWCAST_SLOT".into(), "of_environment".into());
    assert_eq!(slot(&given), "of_environment");
    given.flags.push(("slot".into(), "of_flag".into()));
    assert_eq!(slot(&given), "of_flag");
}

#[test]
fn a_variable_with_the_prefix_comes_before_the_one_without_and_an_empty_one_is_not_set() {
    let mut given = enough();
    given.environment.insert(
        "ROWCAST_DATABASE_URL".into(),
        "postgres://localhost/other".into(),
    );
    given
        .environment
        .insert("ROWCAST_SLOT".into(), String::new());
    let config = load(&given, true).unwrap().config;
    assert_eq!(config.database_url.expose(), "postgres://localhost/other");
    assert_eq!(config.slot, "rowcast");
}

#[test]
fn every_setting_has_a_default_that_is_right_or_a_reason_to_have_none() {
    let without: Vec<&str> = SETTINGS
        .iter()
        .filter(|setting| setting.default.is_none())
        .map(|setting| setting.name)
        .collect();
    assert_eq!(
        without,
        [
            "database_url",
            "jwt_secret",
            "jwks_url",
            "publication",
            "lookup_publication"
        ]
    );
    for setting in SETTINGS {
        assert!(setting.help.ends_with('.'), "{}", setting.name);
        if let Some(default) = setting.default {
            let mut config = Config::blank();
            assert_eq!(
                (setting.set)(&mut config, default),
                Ok(()),
                "{}",
                setting.name
            );
        }
    }
}

#[test]
fn the_printed_file_names_every_setting_and_reads_back_as_the_defaults() {
    let loaded = load(&enough(), true).unwrap();
    let printed = toml_file(&loaded.config, &[]);
    let mut uncommented = String::new();
    for setting in SETTINGS {
        let line = match (setting.secret, setting.form) {
            (true, _) => format!("\n#{}_file = ", setting.name),
            (_, Form::Table) => format!("\n#[{}]", setting.name),
            _ => format!("\n#{} = ", setting.name),
        };
        assert!(printed.contains(&line), "{} in\n{printed}", setting.name);
        let wanted = format!("#{} = ", setting.name);
        for line in printed.lines().filter(|line| line.starts_with(&wanted)) {
            if setting.default.is_some() {
                uncommented.push_str(line.trim_start_matches('#'));
                uncommented.push('\n');
            }
        }
    }
    let mut given = enough();
    given.file = Some(("printed".into(), uncommented));
    let again = load(&given, true).unwrap();
    assert_eq!(
        format!("{:?}", again.config),
        format!("{:?}", loaded.config)
    );
}

#[test]
fn a_given_value_is_printed_so_that_it_reads_back_and_a_secret_is_not() {
    let mut given = enough();
    let mut names = Vec::new();
    for setting in SETTINGS {
        if setting.secret || setting.form == Form::Table {
            continue;
        }
        let value = match setting.name {
            "jwks_url" => "https://example.test/jwks",
            "publication" | "lookup_publication" => "a \"quoted\" name",
            "log" => "warn",
            "old_rows" => "public.jobs,public.\"T\".\"a, b\",app.tickets.*",
            "resync_spread" => "700ms",
            "drain" => "1500ms",
            "trusted_proxies" => "10.0.0.0/8, 192.0.2.7",
            "allowed_origins" => "https://*.example.com,http://localhost:3000,null",
            _ => setting.default.unwrap(),
        };
        given
            .flags
            .push((setting.name.to_owned(), value.to_owned()));
        names.push(setting.name);
    }
    let loaded = load(&given, true).unwrap();
    let printed = toml_file(&loaded.config, &loaded.given);
    let mut again = enough();
    again.file = Some(("printed".into(), printed.clone()));
    let again = load(&again, true).unwrap();
    assert_eq!(
        format!("{:?}", again.config),
        format!("{:?}", loaded.config)
    );
    for name in names {
        assert!(again.given.contains(&name), "{name}");
    }
    for secret in ["0123456789abcdef", "postgres://"] {
        assert!(!printed.contains(&format!("\"{secret}")), "{printed}");
    }
}

#[test]
fn the_table_for_the_readme_has_a_row_for_every_setting() {
    let table = markdown();
    for setting in SETTINGS {
        assert!(table.contains(&format!("| `{}` |", setting.variable())));
    }
    assert_eq!(table.lines().count(), SETTINGS.len() + 2);
}

#[test]
fn a_wrong_value_is_answered_with_its_name_and_what_would_be_right() {
    let mut given = enough();
    given
        .environment
        .insert("ROWCAST_LISTEN".into(), "localhost".into());
    assert_eq!(
        error(&given),
        "ROWCAST_LISTEN is `localhost`; it must be an IP address with a port, such as \
         0.0.0.0:4000 or [::1]:4000."
    );
    let mut given = enough();
    given.file = Some(("rowcast.toml".into(), "outbox_max_bytes = \"much\"".into()));
    assert_eq!(
        error(&given),
        "`outbox_max_bytes` in rowcast.toml is `much`; it must be a size from 64KiB to 16GiB, \
         such as 512KiB, 8MiB or 1GiB."
    );
    let mut given = enough();
    given.flags.push(("slot".into(), "My-Slot".into()));
    assert_eq!(
        error(&given),
        "--slot is `My-Slot`; it must be a slot name: 1 to 63 of a-z, 0-9 and _."
    );
    let mut given = enough();
    given.environment.insert(
        "ROWCAST_ALLOWED_ORIGINS".into(),
        "https://app.example.com/".into(),
    );
    assert_eq!(
        error(&given),
        "ROWCAST_ALLOWED_ORIGINS is `https://app.example.com/`; it must be * or a list of origins \
         without a path, such as https://app.example.com,http://localhost:3000 \
         (https://*.example.com stands for all names below example.com)."
    );
    let mut given = enough();
    let proxies = ("trusted_proxies".into(), "10.0.0.0/40".into());
    given.flags.push(proxies);
    assert_eq!(
        error(&given),
        "--trusted-proxies is `10.0.0.0/40`; it must be a list of addresses and networks, such as \
         10.0.0.0/8,192.0.2.7,2001:db8::/32."
    );
    let secret = "mysql://user:hidden@host/db";
    let message = error(&environment(&[
        ("DATABASE_URL", secret),
        ("JWT_SECRET", "x"),
    ]));
    assert!(
        message.starts_with("DATABASE_URL must be a URL such as"),
        "{message}"
    );
    assert!(!message.contains("hidden"), "{message}");
}

#[test]
fn unknown_names_are_refused_with_the_nearest_known_one() {
    let mut given = enough();
    given.environment.insert("ROWCAST_SLOTT".into(), "x".into());
    assert_eq!(
        error(&given),
        "The environment has ROWCAST_SLOTT, which is no setting of Rowcast. Did you mean \
         ROWCAST_SLOT?"
    );
    let mut given = enough();
    given.file = Some(("rowcast.toml".into(), "publicaton = \"x\"".into()));
    assert_eq!(
        error(&given),
        "`publicaton` in rowcast.toml is no setting of Rowcast. Did you mean publication?"
    );
    let mut given = enough();
    given.file = Some(("rowcast.toml".into(), "colour = \"x\"".into()));
    assert!(error(&given).ends_with("`rowcast serve --help` lists them."));
}

#[test]
fn variables_of_tests_and_of_kubernetes_are_nobodys_business() {
    let mut given = enough();
    for name in [
        "ROWCAST_SEED",
        "ROWCAST_CONFIG",
        "ROWCAST_SERVICE_HOST",
        "ROWCAST_SERVICE_PORT_HTTP",
        "ROWCAST_PORT",
        "ROWCAST_PORT_4000_TCP_ADDR",
    ] {
        given
            .environment
            .insert(name.into(), "tcp://10.0.0.1".into());
    }
    assert!(load(&given, true).is_ok());
}

#[test]
fn what_is_missing_is_named() {
    assert!(error(&environment(&[("JWT_SECRET", "x")])).starts_with("DATABASE_URL is not set;"));
    assert_eq!(
        error(&environment(&[(
            "DATABASE_URL",
            "postgres://localhost/app"
        )])),
        "Neither JWT_SECRET nor JWKS_URL is set; one of them must be, or no token can be verified."
    );
    assert!(load(&Given::default(), false).is_ok());
}

#[test]
fn a_secret_comes_from_its_variable_or_its_file_but_not_from_both() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "0123456789abcdef0123456789abcdef\n").unwrap();
    let path = path.to_str().unwrap();
    let mut given = environment(&[("DATABASE_URL", "postgres://localhost/app")]);
    given
        .environment
        .insert("JWT_SECRET_FILE".into(), path.into());
    let config = load(&given, true).unwrap().config;
    assert_eq!(
        config.jwt_secret.unwrap().expose(),
        "0123456789abcdef0123456789abcdef"
    );
    given.environment.insert("JWT_SECRET".into(), "x".into());
    assert_eq!(
        error(&given),
        "Both JWT_SECRET and JWT_SECRET_FILE are given; one of them must go."
    );
    let given = environment(&[("JWT_SECRET_FILE", "/nowhere/secret")]);
    assert!(error(&given).starts_with("JWT_SECRET_FILE names /nowhere/secret, which cannot"));
}

#[test]
fn a_weak_secret_is_warned_of() {
    for (secret, words) in [
        ("short", "has 5 bytes"),
        (
            "super-secret-jwt-token-with-at-least-32-characters-long",
            "an example that everybody knows",
        ),
        (
            "your-super-secret-jwt-token-with-at-least-32-characters-long",
            "an example that everybody knows",
        ),
        (
            "\"Your-super-secret-jwt-token-with-at-least-32-characters-long\" ",
            "an example that everybody knows",
        ),
    ] {
        let mut given = enough();
        given.environment.insert("JWT_SECRET".into(), secret.into());
        let loaded = load(&given, true).unwrap();
        assert!(
            loaded
                .warnings
                .iter()
                .any(|warning| warning.contains(words)),
            "{:?}",
            loaded.warnings
        );
        assert!(!format!("{:?}", loaded.config).contains(secret));
        assert!(!loaded.warnings.concat().contains(secret));
    }
    let mut given = enough();
    let good = "0123456789abcdef0123456789abcdef".to_owned();
    given.environment.insert("JWT_SECRET".into(), good);
    assert!(load(&given, true).unwrap().warnings.is_empty());
}

#[test]
fn api_keys_are_a_table_in_the_file_and_a_list_in_the_environment() {
    let mut given = enough();
    given.file = Some((
        "rowcast.toml".into(),
        "[api_keys]\nsb_publishable_x = \"anon\"\nsb_secret_y = \"service_role\"".into(),
    ));
    let from_file = load(&given, true).unwrap().config;
    let mut given = enough();
    given.environment.insert(
        "ROWCAST_API_KEYS".into(),
        "sb_publishable_x=anon,sb_secret_y=service_role".into(),
    );
    let from_environment = load(&given, true).unwrap().config;
    assert_eq!(from_file.api_keys, from_environment.api_keys);
    assert_eq!(from_file.api_keys["sb_secret_y"], "service_role");
    assert!(!format!("{from_file:?}").contains("sb_secret_y"));
}

#[test]
fn a_broken_file_is_answered_with_its_line_and_not_its_content() {
    let mut given = enough();
    given.file = Some((
        "rowcast.toml".into(),
        "slot = \"a\"\njwt_secret = hidden\n".into(),
    ));
    let message = error(&given);
    assert!(
        message.starts_with("rowcast.toml is not TOML, line 2:"),
        "{message}"
    );
    assert!(!message.contains("hidden"), "{message}");
}
