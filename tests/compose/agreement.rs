//! Whether compose file, Dockerfile, `.env.example` and binary agree; and that a disagreement would
//! be found.

use std::process::Command;

use crate::file::{Condition, Environment, dotenv, published};
use crate::read;
use crate::stack::{Stack, environment};

/// What does not fit together.
fn check(text: &str, environment: &Environment) -> Result<(), String> {
    let stack = Stack::of(text, environment)?;
    stack.file.order(&[])?;
    stack.file.order(&["demo"])?;
    for (name, service) in &stack.file.services {
        let fault = |what: String| Err(format!("{name}: {what}"));
        for other in service.depends_on.keys() {
            if !stack.file.services.contains_key(other) {
                return fault(format!("waits for {other}, which is no service"));
            }
        }
        for (other, dependency) in &service.depends_on {
            let restarts = stack.file.services[other].restart.as_deref() != Some("no");
            let completes = dependency.condition == Condition::Completed;
            if completes == restarts {
                return fault(format!(
                    "waits for the wrong thing of {other}, which restarts: {restarts}"
                ));
            }
        }
        for volume in &service.volumes {
            let (named, _) = volume.split_once(':').unwrap_or_default();
            if !stack.file.volumes.contains_key(named) {
                return fault(format!("{volume} is no named volume"));
            }
        }
        if !stack.is_ours(name) {
            continue;
        }
        if service.image.as_deref() != Some("rowcast") {
            return fault("is built but not called rowcast".to_owned());
        }
        if !service.read_only || service.cap_drop != ["ALL"] || service.security_opt.is_empty() {
            return fault("has more rights than it needs".to_owned());
        }
        let argv = stack.argv(name);
        let mut variables: Environment = stack.dockerfile.environment().into_iter().collect();
        variables.extend(service.variables());
        let kept = service.volumes.iter().any(|volume| {
            let place = volume.split(':').nth(1);
            place == variables.get("ROWCAST_DATA").map(String::as_str)
        });
        if argv.get(1).is_some_and(|word| word == "serve") && !kept {
            return fault("keeps its log in no volume".to_owned());
        }
        if argv.first() != stack.dockerfile.entrypoint().first() {
            return fault(format!("{argv:?} is not what the image runs"));
        }
        understands(&argv, &service.variables()).or_else(fault)?;
        for port in &service.ports {
            let Some((address, _, container)) = published(port) else {
                return fault(format!("{port} is not address:port:port"));
            };
            if address != "127.0.0.1" {
                return fault(format!("{port} is open to everybody by default"));
            }
            let listening = format!("0.0.0.0:{container}");
            let listens = argv.contains(&listening)
                || service.variables().get("ROWCAST_LISTEN") == Some(&listening);
            if !listens {
                return fault(format!("{port} is published and nothing listens there"));
            }
        }
        match stack.healthcheck(name) {
            Some(check) if check.first() != argv.first() => {
                return fault(format!("{check:?} is not in the image"));
            }
            Some(check) => understands(&check, &service.variables()).or_else(fault)?,
            None if service.restart.as_deref() == Some("no") => {}
            None => return fault("has no health check".to_owned()),
        }
    }
    Ok(())
}

/// Whether the binary knows these flags and variables. `serve` can be asked for its settings
/// alone; of the others the flags are looked up in the help, and the variables too.
fn understands(argv: &[String], environment: &Environment) -> Result<(), String> {
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_rowcast"))
            .args(arguments)
            .env_clear()
            .envs(environment)
            .current_dir(std::env::temp_dir())
            .output()
            .unwrap()
    };
    let command = argv.get(1).map(String::as_str).unwrap_or_default();
    if command == "serve" {
        let mut arguments: Vec<&str> = argv.iter().skip(1).map(String::as_str).collect();
        arguments.push("--print-config");
        let printed = run(&arguments);
        if !printed.status.success() {
            return Err(String::from_utf8_lossy(&printed.stderr).into_owned());
        }
    }
    let help = run(&[command, "--help"]);
    if !help.status.success() {
        return Err(format!("{command} is no command"));
    }
    let help = String::from_utf8(help.stdout).unwrap();
    let known = |word: &str| {
        help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_')
            .any(|other| other == word)
    };
    let flags = argv.iter().filter(|word| word.starts_with("--"));
    // A health check has its service's environment, which the service knows.
    let variables = environment.keys().filter(|_| command != "health");
    for word in flags.chain(variables) {
        if !known(word) {
            return Err(format!("{command} does not know {word}"));
        }
    }
    Ok(())
}

#[test]
fn the_files_agree_with_each_other_and_with_the_binary() {
    check(&read("docker-compose.yml"), &environment(&[])).unwrap();
}

#[test]
fn a_disagreement_is_found() {
    for (from, to, words) in [
        ("ROWCAST_LISTEN:", "ROWCAST_LISTN:", "ROWCAST_LISTEN"),
        ("0.0.0.0:4000", "0.0.0.0:4002", "nothing listens there"),
        (
            "ROWCAST_PORT:-4000}:4000",
            "ROWCAST_PORT:-4000}:4001",
            "nothing listens there",
        ),
        (
            "\"0.0.0.0:4100\"",
            "\"127.0.0.1:4100\"",
            "nothing listens there",
        ),
        (
            "${ROWCAST_BIND:-127.0.0.1}",
            "${ROWCAST_BIND:-0.0.0.0}",
            "open to everybody",
        ),
        ("[\"serve\"]", "[\"serv\"]", "serv"),
        ("\"--relay-url\"", "\"--relay\"", "does not know --relay"),
        (
            "ROWCAST_DEMO_DATABASE_URL",
            "DEMO_URL",
            "does not know DEMO_URL",
        ),
        ("\"--example\"", "\"--sample\"", "does not know --sample"),
        (
            "ROWCAST_SETUP_TABLES:",
            "ROWCAST_TABLES:",
            "does not know ROWCAST_TABLES",
        ),
        (
            "    command: [\"serve\"]",
            "    entrypoint: [\"/rowcast\"]",
            "not what the image runs",
        ),
        (
            "\"/usr/local/bin/rowcast\", \"health\"",
            "\"curl\", \"-f\"",
            "not in the image",
        ),
        ("\"--url\"", "\"--uri\"", "does not know --uri"),
        ("environment:", "enviroment:", "unknown field `enviroment`"),
        (
            "      setup:\n",
            "      setups:\n",
            "wait for each other or for nobody",
        ),
        (
            "condition: service_completed_successfully",
            "condition: service_healthy",
            "waits for the wrong thing",
        ),
        ("- data:/var", "- dat:/var", "no named volume"),
        (
            "- log:/var/lib/rowcast",
            "- log:/var/log/rowcast",
            "keeps its log in no volume",
        ),
        (
            "${JWT_SECRET:?set it in .env}",
            "${JWT_SECRETS:?set it in .env}",
            "JWT_SECRETS",
        ),
        (
            "0.0.0.0:4000\n",
            "everywhere\n",
            "ROWCAST_LISTEN is `everywhere`",
        ),
    ] {
        let text = read("docker-compose.yml");
        assert!(text.contains(from), "{from} is not in the file");
        let changed = text.replace(from, to);
        let found = check(&changed, &environment(&[]));
        let found = found.expect_err(&format!("{from} → {to} goes unnoticed"));
        assert!(found.contains(words), "{from} → {to}: {found}");
    }
}

#[test]
fn no_secret_has_a_default_and_every_variable_is_explained() {
    let (set, optional) = dotenv(&read(".env.example"));
    let text = read("docker-compose.yml");
    let mut used: Vec<&str> = Vec::new();
    for part in text.split("${").skip(1) {
        let name = part.split([':', '}', '-', '?']).next().unwrap();
        used.push(name);
        let secret = ["PASSWORD", "SECRET", "KEY", "TOKEN"]
            .iter()
            .any(|word| name.contains(word));
        let required = part[name.len()..].starts_with(":?");
        assert_eq!(secret, required, "{name}");
        assert!(
            set.contains_key(name) || optional.iter().any(|known| known == name),
            "{name} is not in .env.example"
        );
    }
    for name in set.keys().chain(&optional) {
        assert!(used.contains(&name.as_str()), "{name} is not used");
    }
    for (name, value) in &set {
        assert_eq!(value, "", "{name} has a default");
    }
    for secret in ["POSTGRES_PASSWORD", "ROWCAST_RELAY_PASSWORD", "JWT_SECRET"] {
        for value in [None, Some("")] {
            let mut environment = environment(&[]);
            match value {
                None => environment.remove(secret),
                Some(value) => environment.insert(secret.to_owned(), value.to_owned()),
            };
            let refused = check(&text, &environment).unwrap_err();
            assert_eq!(refused, format!("{secret}: set it in .env"));
        }
    }
}

#[test]
fn the_database_keeps_a_bounded_log_in_a_named_volume() {
    let stack = Stack::new(&environment(&[]));
    let db = &stack.file.services["db"];
    assert_eq!(db.command[0], "postgres");
    for setting in ["wal_level=logical", "max_slot_wal_keep_size=10GB"] {
        assert!(db.command.iter().any(|word| word == setting), "{setting}");
    }
    assert_eq!(db.volumes, ["data:/var/lib/postgresql/data"]);
    assert!(db.ports.is_empty(), "nobody outside needs it");
}
