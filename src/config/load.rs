//! From flags, environment and file to a checked [`Config`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::settings::{Form, SETTINGS, Setting};
use super::{Config, Rule, Secret, rules};

/// A sentence that names the key and says what would be right. Never contains a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub(super) String);

/// Names in the environment that begin like a setting and belong to something else: the first to
/// `--config`, then those of `rowcast setup`, `rowcast tail`, `rowcast doctor` and `rowcast demo`; the others to the
/// tests.
const OTHER_VARIABLES: [&str; 15] = [
    "ROWCAST_CONFIG",
    "ROWCAST_RELAY_PASSWORD",
    "ROWCAST_RELAY_PASSWORD_FILE",
    "ROWCAST_SETUP_TABLES",
    "ROWCAST_URL",
    "ROWCAST_TOKEN",
    "ROWCAST_TOKEN_FILE",
    "ROWCAST_LIVE_DATABASE_URL",
    "ROWCAST_LIVE_DATABASE_URL_FILE",
    "ROWCAST_DEMO_DATABASE_URL",
    "ROWCAST_SEED",
    "ROWCAST_CASES",
    "ROWCAST_BIN",
    "ROWCAST_MUTANT",
    "ROWCAST_TEST_NAMESPACES",
];

/// Secrets that everybody knows: of `supabase start`, of the `.env.example` that Supabase is
/// self-hosted with, and of PostgREST's tutorial.
const WELL_KNOWN_SECRETS: [&str; 3] = [
    "super-secret-jwt-token-with-at-least-32-characters-long",
    "your-super-secret-jwt-token-with-at-least-32-characters-long",
    "reallyreallyreallyreallyverysafe",
];

/// What was given, from the strongest to the weakest.
#[derive(Default)]
pub struct Given {
    /// Flags: the setting's name, or that with `_file` behind it, and the text.
    pub flags: Vec<(String, String)>,
    /// The environment.
    pub environment: BTreeMap<String, String>,
    /// The configuration file: how it is called, and its text.
    pub file: Option<(String, String)>,
}

/// Values may be secrets, so only numbers of them are shown.
impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Given")
            .field("flags", &self.flags.len())
            .field("environment", &self.environment.len())
            .field("file", &self.file.as_ref().map(|(name, _)| name))
            .finish()
    }
}

impl Given {
    /// Reads this process's environment and the configuration file: `path`, or what
    /// `ROWCAST_CONFIG` names, or `./rowcast.toml` where there is one.
    ///
    /// # Errors
    /// A file that was named and cannot be read.
    pub fn read(flags: Vec<(String, String)>, path: Option<&Path>) -> Result<Self, ConfigError> {
        let environment: BTreeMap<String, String> = std::env::vars_os()
            // A name or value that is not UTF-8 cannot be one of ours.
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let named = path.map(Path::to_path_buf).or_else(|| {
            let path = environment.get("ROWCAST_CONFIG")?;
            (!path.is_empty()).then(|| PathBuf::from(path))
        });
        let (path, required) = match named {
            Some(path) => (path, true),
            None => (PathBuf::from("rowcast.toml"), false),
        };
        let file = match std::fs::read_to_string(&path) {
            Ok(text) => Some((path.display().to_string(), text)),
            Err(error) if !required && error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(ConfigError(format!(
                    "The configuration file {} cannot be read: {error}.",
                    path.display()
                )));
            }
        };
        Ok(Self {
            flags,
            environment,
            file,
        })
    }
}

/// The settings, and what whoever runs this should know about them.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Sentences for the log.
    pub warnings: Vec<String>,
    /// The names of the settings that were given.
    pub given: Vec<&'static str>,
}

/// A value on its way in.
enum Source {
    Text(String),
    /// The file that holds it.
    File(String),
}

/// A value and what it was called where it was given.
struct Entry {
    called: String,
    source: Source,
}

type Layer = BTreeMap<&'static str, Entry>;

/// Checks what was given: flags before the environment before the file before the defaults.
/// `complete` also checks that the settings suffice to run.
///
/// # Errors
/// A sentence about the first thing that is wrong.
pub fn load(given: &Given, complete: bool) -> Result<Loaded, ConfigError> {
    let (from_file, rules) = match &given.file {
        Some((name, text)) => file(name, text)?,
        None => (Layer::new(), Vec::new()),
    };
    let layers = [
        flags(&given.flags)?,
        environment(&given.environment)?,
        from_file,
    ];
    let mut config = Config::blank();
    config.rules = rules;
    let mut names = Vec::new();
    for setting in SETTINGS {
        if let Some(entry) = layers.iter().find_map(|layer| layer.get(setting.name)) {
            apply(setting, entry, &mut config)?;
            names.push(setting.name);
        } else if let Some(default) = setting.default {
            (setting.set)(&mut config, default).map_err(|expected| {
                ConfigError(format!(
                    "The default of {} must be {expected}.",
                    setting.name
                ))
            })?;
        }
    }
    if !names.contains(&"data")
        && let Some(directory) = state_directory(&given.environment)
    {
        config.data = Some(directory);
    }
    if complete {
        sufficient(&config)?;
    }
    let warnings = warnings(&config);
    Ok(Loaded {
        config,
        warnings,
        given: names,
    })
}

/// The directory that systemd has made for a service with `StateDirectory=`: the first where there
/// are several.
fn state_directory(environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    let first = environment.get("STATE_DIRECTORY")?.split(':').next()?;
    (!first.is_empty()).then(|| PathBuf::from(first))
}

fn apply(setting: &Setting, entry: &Entry, config: &mut Config) -> Result<(), ConfigError> {
    let called = &entry.called;
    let text = match &entry.source {
        Source::Text(text) => text.clone(),
        Source::File(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                ConfigError(format!(
                    "{called} names {path}, which cannot be read: {error}."
                ))
            })?;
            // Editors and `echo` end a file with a newline that is not part of the secret.
            let text = text.strip_suffix('\n').unwrap_or(&text);
            text.strip_suffix('\r').unwrap_or(text).to_owned()
        }
    };
    (setting.set)(config, &text).map_err(|expected| {
        ConfigError(if setting.secret || setting.form == Form::Table {
            format!("{called} must be {expected}.")
        } else {
            format!("{called} is `{text}`; it must be {expected}.")
        })
    })
}

fn flags(given: &[(String, String)]) -> Result<Layer, ConfigError> {
    let mut layer = Layer::new();
    for (name, text) in given {
        let called = format!("--{}", name.replace('_', "-"));
        let Some((setting, source)) = find(name, text) else {
            return Err(ConfigError(format!("There is no flag {called}.")));
        };
        insert(&mut layer, setting, Entry { called, source })?;
    }
    Ok(layer)
}

fn environment(given: &BTreeMap<String, String>) -> Result<Layer, ConfigError> {
    let mut bare = Layer::new();
    let mut prefixed = Layer::new();
    for (variable, text) in given {
        let (name, layer) = match variable.strip_prefix("ROWCAST_") {
            Some(name) => (name, &mut prefixed),
            None => (variable.as_str(), &mut bare),
        };
        let is_bare = name.len() == variable.len();
        match find(&name.to_ascii_lowercase(), text) {
            Some((setting, source)) if !is_bare || setting.bare_variable => {
                // Compose files and shells pass on what is not set as empty.
                if name.bytes().all(|b| !b.is_ascii_lowercase()) && !text.is_empty() {
                    let called = variable.clone();
                    insert(layer, setting, Entry { called, source })?;
                }
            }
            _ if is_bare || OTHER_VARIABLES.contains(&variable.as_str()) => {}
            _ if from_kubernetes(variable) => {}
            _ => {
                let known: Vec<String> = SETTINGS
                    .iter()
                    .map(Setting::variable)
                    .chain(OTHER_VARIABLES.map(str::to_owned))
                    .collect();
                return Err(ConfigError(format!(
                    "The environment has {variable}, which is no setting of Rowcast.{}",
                    did_you_mean(variable, known.iter().map(String::as_str))
                )));
            }
        }
    }
    // The name with the prefix is the more specific one: platforms set DATABASE_URL by themselves.
    bare.append(&mut prefixed);
    Ok(bare)
}

/// Whether Kubernetes put this variable into the environment of every pod because a service is
/// called `rowcast…`.
fn from_kubernetes(variable: &str) -> bool {
    let after_port = variable
        .split_once("_PORT_")
        .and_then(|(_, rest)| rest.chars().next());
    variable.ends_with("_SERVICE_HOST")
        || variable.contains("_SERVICE_PORT")
        || variable.ends_with("_PORT")
        || after_port.is_some_and(|c| c.is_ascii_digit())
}

/// The rules, which only a file can hold.
const RULE: &str = "rule";

fn file(path: &str, text: &str) -> Result<(Layer, Vec<Rule>), ConfigError> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // The error's own text quotes the line, which may hold a secret.
        let line = error
            .span()
            .and_then(|span| text.get(..span.start))
            .map_or(1, |before| before.matches('\n').count() + 1);
        ConfigError(format!(
            "{path} is not TOML, line {line}: {}.",
            error.message()
        ))
    })?;
    let mut layer = Layer::new();
    for (key, value) in table.iter().filter(|(key, _)| *key != RULE) {
        let called = format!("`{key}` in {path}");
        let Some((setting, _)) = find(key, "") else {
            if key == "require_rls" {
                let now = "is now `require = \"rls\"`";
                return Err(ConfigError(format!("{called} {now}.")));
            }
            return Err(ConfigError(format!(
                "{called} is no setting of Rowcast.{}",
                did_you_mean(key, SETTINGS.iter().map(|setting| setting.name))
            )));
        };
        let text = match (value, setting.form) {
            (toml::Value::String(text), _) => text.clone(),
            (toml::Value::Integer(number), Form::Text | Form::Bare) => number.to_string(),
            (toml::Value::Boolean(boolean), Form::Text | Form::Bare) => boolean.to_string(),
            (toml::Value::Table(table), Form::Table) => {
                let mut pairs = Vec::with_capacity(table.len());
                for (key, role) in table {
                    let role = role
                        .as_str()
                        .filter(|_| !key.contains(','))
                        .ok_or_else(|| {
                            ConfigError(format!(
                                "{called} must be a table of keys and roles, such as \
                             sb_publishable_… = \"anon\"."
                            ))
                        })?;
                    pairs.push(format!("{key}={role}"));
                }
                pairs.join(",")
            }
            (other, form) => {
                let right = match form {
                    Form::Table => "a table of keys and roles",
                    Form::Text => "a text in quotes",
                    Form::Bare => "a number, or true or false",
                };
                return Err(ConfigError(format!(
                    "{called} is a TOML {}; it must be {right}.",
                    other.type_str()
                )));
            }
        };
        if let Some((setting, source)) = find(key, &text) {
            insert(&mut layer, setting, Entry { called, source })?;
        }
    }
    let rules = table.get(RULE).map(|value| rules::read(value, path));
    Ok((layer, rules.transpose()?.unwrap_or_default()))
}

/// Finds the setting called `name`, or the secret whose file `name` is for.
fn find(name: &str, text: &str) -> Option<(&'static Setting, Source)> {
    let named = |name: &str| SETTINGS.iter().find(|setting| setting.name == name);
    if let Some(setting) = named(name) {
        return Some((setting, Source::Text(text.to_owned())));
    }
    let setting = named(name.strip_suffix("_file")?).filter(|setting| setting.secret)?;
    Some((setting, Source::File(text.to_owned())))
}

fn insert(layer: &mut Layer, setting: &Setting, entry: Entry) -> Result<(), ConfigError> {
    let name = SETTINGS
        .iter()
        .map(|known| known.name)
        .find(|known| *known == setting.name)
        .unwrap_or_default();
    if let Some(other) = layer.get(name) {
        return Err(ConfigError(format!(
            "Both {} and {} are given; one of them must go.",
            other.called, entry.called
        )));
    }
    layer.insert(name, entry);
    Ok(())
}

fn sufficient(config: &Config) -> Result<(), ConfigError> {
    if config.database_url.expose().is_empty() {
        return Err(ConfigError(
            "DATABASE_URL is not set; it must say where PostgreSQL is, such as \
             postgres://user:password@host:5432/database."
                .to_owned(),
        ));
    }
    if config.jwt_secret.is_none() && config.jwks_url.is_none() {
        return Err(ConfigError(
            "Neither JWT_SECRET nor JWKS_URL is set; one of them must be, or no token can be \
             verified."
                .to_owned(),
        ));
    }
    if config.listen == config.admin_listen && config.listen.port() != 0 {
        return Err(ConfigError(format!(
            "ROWCAST_LISTEN and ROWCAST_ADMIN_LISTEN are both {}; they must differ.",
            config.listen
        )));
    }
    Ok(())
}

/// Sentences about settings that work and should not be so.
#[must_use]
pub fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(secret) = config.jwt_secret.as_ref().map(Secret::expose) {
        if is_well_known(secret) {
            warnings.push(
                "JWT_SECRET is an example that everybody knows: everybody can make tokens for \
                 this relay, for any user and role. Take another one, such as what `openssl rand \
                 -hex 32` prints, and sign new API keys with it."
                    .to_owned(),
            );
        } else if secret.len() < 32 {
            warnings.push(format!(
                "JWT_SECRET has {} bytes; with fewer than 32 it can be guessed.",
                secret.len()
            ));
        }
    }
    warnings
}

/// Whether a secret is one of those examples, also with other capitals or blanks and quotes around
/// it, as files and shells leave them.
fn is_well_known(secret: &str) -> bool {
    let bare = secret.trim_matches(|c: char| c.is_whitespace() || c == '"' || c == '\'');
    WELL_KNOWN_SECRETS
        .iter()
        .any(|known| known.eq_ignore_ascii_case(bare))
}

/// A sentence about the known name nearest to a mistyped one.
fn did_you_mean<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> String {
    let nearest = known
        .map(|name| {
            (
                distance(&wrong.to_ascii_lowercase(), &name.to_ascii_lowercase()),
                name,
            )
        })
        .min();
    match nearest {
        Some((distance, name)) if distance * 3 <= wrong.len() => {
            format!(" Did you mean {name}?")
        }
        _ => " `rowcast serve --help` lists them.".to_owned(),
    }
}

/// How many letters have to be put in, taken out or changed to get from one to the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, to) in row.iter_mut().skip(1).zip(b.bytes()) {
            let changed = diagonal + usize::from(from != to);
            diagonal = *cell;
            left = changed.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(0)
}
