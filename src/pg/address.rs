//! What `DATABASE_URL` says, with libpq's meaning of its TLS settings.
//!
//! tokio-postgres reads the address, but knows neither `sslrootcert` nor the modes that verify, so
//! those settings are taken out before it sees the text.

use std::fmt::Write as _;
use std::net::IpAddr;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::Host;

use super::tls::{Check, Roots};

/// One place to connect to; an address may list several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// The host, or the directory of a Unix domain socket.
    pub(super) host: Host,
    /// Where the host is known to be, sparing the look-up of its name.
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
}

/// Whether the connection is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encryption {
    Never,
    IfOffered,
    Always,
}

/// A parsed `DATABASE_URL`. It holds the password: no `Debug`.
pub(super) struct Address {
    /// Everything but the hosts.
    pub(super) config: Config,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) encryption: Encryption,
    pub(super) check: Check,
    pub(super) roots: Roots,
}

/// A `DATABASE_URL` that cannot be used. Its text never holds any part of a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDatabaseUrl {
    /// It does not read as an address.
    #[error(
        "DATABASE_URL is not a PostgreSQL address: postgres://user:password@host:5432/dbname or \
         \"host=… port=5432 user=… password=… dbname=…\" was expected, with special characters in \
         a URL written as %XX"
    )]
    Malformed,
    /// It names no user, and neither does the environment.
    #[error("DATABASE_URL names no user: postgres://user:password@host:5432/dbname was expected")]
    NoUser,
    /// Hosts, addresses and ports do not go together.
    #[error(
        "DATABASE_URL lists hosts, addresses and ports that do not match: give as many of each, or \
         one port for all"
    )]
    Uneven,
    /// `sslmode` has a value that is not libpq's.
    #[error(
        "DATABASE_URL has an unknown sslmode: disable, prefer, require, verify-ca or verify-full \
         was expected"
    )]
    SslMode,
    /// `sslrootcert=system` under a mode that does not check the host's name.
    #[error(
        "DATABASE_URL has sslrootcert=system with a weaker sslmode than verify-full: anybody can \
         have a certificate of a public authority, so write sslmode=verify-full"
    )]
    WeakSystemRoots,
    /// The trusted certificates cannot be read.
    #[error("DATABASE_URL names certificates that cannot be used: {0}")]
    Roots(String),
}

impl Address {
    pub(super) fn parse(text: &str) -> Result<Self, InvalidDatabaseUrl> {
        let (rest, taken) = if text.starts_with("postgres://") || text.starts_with("postgresql://")
        {
            take_from_url(text)?
        } else {
            take_from_pairs(text)?
        };
        let config: Config = rest.parse().map_err(|_| InvalidDatabaseUrl::Malformed)?;
        let (encryption, check, roots) = taken.meaning()?;
        let endpoints = endpoints(&config)?;
        let config = without_hosts(&config)?;
        Ok(Self {
            config,
            endpoints,
            encryption,
            check,
            roots,
        })
    }
}

/// The settings that tokio-postgres must not see.
#[derive(Debug, Default)]
struct Taken {
    mode: Option<String>,
    roots: Option<String>,
}

impl Taken {
    /// Whether the setting was one of them.
    fn take(&mut self, key: &str, value: &str) -> bool {
        match key {
            "sslmode" => self.mode = Some(value.to_owned()),
            "sslrootcert" => self.roots = Some(value.to_owned()),
            // There is no GSSAPI here, as libpq has it without a ticket.
            "gssencmode" => {}
            _ => return false,
        }
        true
    }

    fn meaning(self) -> Result<(Encryption, Check, Roots), InvalidDatabaseUrl> {
        let roots = self.roots.filter(|roots| !roots.is_empty());
        let mode = self.mode.filter(|mode| !mode.is_empty());
        if roots.as_deref() == Some("system") {
            return match mode.as_deref() {
                None | Some("verify-full") => {
                    Ok((Encryption::Always, Check::ChainAndName, Roots::System))
                }
                Some(_) => Err(InvalidDatabaseUrl::WeakSystemRoots),
            };
        }
        let unless_roots = if roots.is_some() {
            Check::Chain
        } else {
            Check::Nothing
        };
        let (encryption, check) = match mode.as_deref() {
            Some("disable") => (Encryption::Never, Check::Nothing),
            None | Some("allow" | "prefer") => (Encryption::IfOffered, unless_roots),
            Some("require") => (Encryption::Always, unless_roots),
            Some("verify-ca") => (Encryption::Always, Check::Chain),
            Some("verify-full") => (Encryption::Always, Check::ChainAndName),
            Some(_) => return Err(InvalidDatabaseUrl::SslMode),
        };
        Ok((encryption, check, roots.map_or(Roots::System, Roots::File)))
    }
}

fn take_from_url(url: &str) -> Result<(String, Taken), InvalidDatabaseUrl> {
    let mut taken = Taken::default();
    // A password may hold a question mark; what follows it may hold an at sign.
    let credentials = url.find('@').unwrap_or(0);
    let Some(question) = url
        .get(credentials..)
        .and_then(|rest| rest.find('?'))
        .map(|at| credentials + at)
    else {
        return Ok((url.to_owned(), taken));
    };
    let (address, parameters) = url.split_at(question);
    let mut rest = address.to_owned();
    let mut separator = '?';
    for parameter in parameters.trim_start_matches('?').split('&') {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = percent_decode_str(value)
            .decode_utf8()
            .map_err(|_| InvalidDatabaseUrl::Malformed)?;
        if !parameter.is_empty() && !taken.take(key, &value) {
            rest.push(separator);
            rest.push_str(parameter);
            separator = '&';
        }
    }
    Ok((rest, taken))
}

/// Reads libpq's `key = value` form: values may stand in single quotes, a backslash takes the
/// next character as it is.
fn take_from_pairs(text: &str) -> Result<(String, Taken), InvalidDatabaseUrl> {
    let mut taken = Taken::default();
    let mut rest = String::new();
    let mut remaining = text.trim_start();
    while !remaining.is_empty() {
        let (key, after) = remaining
            .split_once('=')
            .ok_or(InvalidDatabaseUrl::Malformed)?;
        let key = key.trim();
        let after = after.trim_start();
        let (quoted, body) = match after.strip_prefix('\'') {
            Some(body) => (true, body),
            None => (false, after),
        };
        let mut value = String::new();
        let mut characters = body.char_indices();
        let mut end = if quoted { None } else { Some(body.len()) };
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
                '\'' if quoted => {
                    end = Some(at + 1);
                    break;
                }
                blank if !quoted && blank.is_whitespace() => {
                    end = Some(at);
                    break;
                }
                other => value.push(other),
            }
        }
        remaining = end
            .and_then(|end| body.get(end..))
            .ok_or(InvalidDatabaseUrl::Malformed)?
            .trim_start();
        if !taken.take(key, &value) {
            let value = value.replace('\\', "\\\\").replace('\'', "\\'");
            // Writing to a String does not fail.
            let _written = write!(rest, "{key}='{value}' ");
        }
    }
    Ok((rest, taken))
}

fn endpoints(config: &Config) -> Result<Vec<Endpoint>, InvalidDatabaseUrl> {
    let (hosts, addresses, ports) = (
        config.get_hosts(),
        config.get_hostaddrs(),
        config.get_ports(),
    );
    let count = hosts.len().max(addresses.len()).max(1);
    if (!hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len())
        || (ports.len() > 1 && ports.len() != count)
    {
        return Err(InvalidDatabaseUrl::Uneven);
    }
    Ok((0..count)
        .map(|at| {
            let address = addresses.get(at).copied();
            let host = hosts.get(at).cloned().unwrap_or_else(|| {
                Host::Tcp(address.map_or("localhost".to_owned(), |address| address.to_string()))
            });
            let port = ports.get(at).or(ports.first()).copied().unwrap_or(5432);
            Endpoint {
                host,
                address,
                port,
            }
        })
        .collect())
}

/// The same settings for any of the endpoints; tokio-postgres cannot take a host back out.
fn without_hosts(from: &Config) -> Result<Config, InvalidDatabaseUrl> {
    let mut config = Config::new();
    let user = match from.get_user() {
        Some(user) => user.to_owned(),
        // libpq's default is the name of the operating system's user.
        None => ["PGUSER", "USER", "LOGNAME"]
            .into_iter()
            .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()))
            .ok_or(InvalidDatabaseUrl::NoUser)?,
    };
    config.user(user);
    // An absent password is answered by PostgreSQL like a wrong one, with its own code.
    config.password(from.get_password().unwrap_or_default());
    if let Some(database) = from.get_dbname() {
        config.dbname(database);
    }
    if let Some(options) = from.get_options() {
        config.options(options);
    }
    if let Some(timeout) = from.get_connect_timeout() {
        config.connect_timeout(*timeout);
    }
    if let Some(timeout) = from.get_tcp_user_timeout() {
        config.tcp_user_timeout(*timeout);
    }
    config
        .keepalives(from.get_keepalives())
        .keepalives_idle(from.get_keepalives_idle())
        .target_session_attrs(from.get_target_session_attrs())
        .channel_binding(from.get_channel_binding())
        .load_balance_hosts(from.get_load_balance_hosts())
        .ssl_negotiation(from.get_ssl_negotiation());
    Ok(config)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Address {
        Address::parse(text)
            .map_err(|error| error.to_string())
            .unwrap()
    }

    #[test]
    fn both_forms_say_the_same() {
        for text in [
            "postgres://me:p%40ss@db.example:6000/app?sslmode=verify-full&sslrootcert=%2Fca.pem&application_name=x",
            "host=db.example port=6000 user=me password='p@ss' dbname = app sslmode=verify-full sslrootcert='/ca.pem'",
        ] {
            let address = parsed(text);
            assert_eq!(
                address.endpoints,
                [Endpoint {
                    host: Host::Tcp("db.example".to_owned()),
                    address: None,
                    port: 6000
                }]
            );
            assert_eq!(address.config.get_password(), Some(&b"p@ss"[..]));
            assert_eq!(address.config.get_dbname(), Some("app"));
            assert_eq!(address.check, Check::ChainAndName);
            assert_eq!(address.roots, Roots::File("/ca.pem".to_owned()));
        }
    }

    #[test]
    fn ssl_modes_mean_what_they_mean_to_libpq() {
        let meaning = |parameters: &str| {
            let address = parsed(&format!("postgres://me@db/app?{parameters}"));
            (address.encryption, address.check)
        };
        use {Check as C, Encryption as E};
        assert_eq!(meaning(""), (E::IfOffered, C::Nothing));
        assert_eq!(meaning("sslmode=disable"), (E::Never, C::Nothing));
        assert_eq!(meaning("sslmode=allow"), (E::IfOffered, C::Nothing));
        assert_eq!(meaning("sslmode=require"), (E::Always, C::Nothing));
        assert_eq!(
            meaning("sslmode=require&sslrootcert=/ca.pem"),
            (E::Always, C::Chain)
        );
        assert_eq!(meaning("sslmode=verify-ca"), (E::Always, C::Chain));
        assert_eq!(meaning("sslmode=verify-full"), (E::Always, C::ChainAndName));
        assert_eq!(
            meaning("sslrootcert=system"),
            (E::Always, C::ChainAndName),
            "a public authority vouches for a name or for nothing"
        );
        let refused =
            |parameters: &str| Address::parse(&format!("postgres://me@db/app?{parameters}")).err();
        assert_eq!(refused("sslmode=on"), Some(InvalidDatabaseUrl::SslMode));
        assert_eq!(
            refused("sslmode=require&sslrootcert=system"),
            Some(InvalidDatabaseUrl::WeakSystemRoots)
        );
    }

    #[test]
    fn several_hosts_and_sockets_are_kept_apart() {
        let address = parsed("postgres://me@a:1,b:2/app");
        assert_eq!(address.endpoints.len(), 2);
        assert_eq!(address.endpoints[1].port, 2);
        let address = parsed("host=/run/postgresql user=me");
        assert_eq!(
            address.endpoints[0].host,
            Host::Unix("/run/postgresql".into())
        );
        let address = parsed("hostaddr=10.0.0.1 user=me");
        assert_eq!(address.endpoints[0].host, Host::Tcp("10.0.0.1".to_owned()));
    }

    #[test]
    fn a_password_is_in_no_error() {
        for bad in [
            "postgres://me:geheim@host:port/app",
            "postgres://me:geheim@a/app?nonsense=1",
            "host=a password=geheim'",
            "geheim",
            "host='a geheim",
            "host=a password='ge heim' geheim",
        ] {
            let error = Address::parse(bad).err().map(|error| error.to_string());
            let Some(error) = error else { continue };
            assert!(error.starts_with("DATABASE_URL"), "{error}");
            assert!(!error.contains("heim"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(postgres://)?[ a-z='\\\\@?&%/:,ö]{0,40}") {
            drop(Address::parse(&text));
        }
    }
}
