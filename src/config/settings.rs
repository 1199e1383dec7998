//! The table of settings.

use std::time::Duration;

use super::value::{self, Expected};
use super::{Config, Secret};

/// How a setting is written in `rowcast.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// In quotes.
    Text,
    /// A number, or true or false.
    Bare,
    /// A table of texts.
    Table,
}

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its name: `slot` in `rowcast.toml`, `--slot` as a flag, `ROWCAST_SLOT` in the environment.
    pub name: &'static str,
    /// What stands for its value in the help.
    pub placeholder: &'static str,
    /// Its default as text; `None` where there is none, or where it depends (`help` says on what).
    pub default: Option<&'static str>,
    /// How it is written in `rowcast.toml`.
    pub form: Form,
    /// Whether it is never printed and may come from a file that `…_FILE` names.
    pub secret: bool,
    /// Whether its name in the environment also goes without `ROWCAST_`.
    pub bare_variable: bool,
    /// What it does, and why the default is what it is.
    pub help: &'static str,
    pub(super) set: fn(&mut Config, &str) -> Result<(), Expected>,
}

impl Setting {
    /// The name of the flag without its dashes.
    #[must_use]
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// The name in the environment; for some also the name with `ROWCAST_` before it.
    #[must_use]
    pub fn variable(&self) -> String {
        let name = self.name.to_ascii_uppercase();
        if self.bare_variable {
            name
        } else {
            format!("ROWCAST_{name}")
        }
    }
}

/// The log's directory where nobody says another, beside `rowcast.toml`.
pub(super) const DEFAULT_DATA: &str = "rowcast-data";

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const MILLISECOND: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

const fn setting(
    name: &'static str,
    placeholder: &'static str,
    default: Option<&'static str>,
    help: &'static str,
    set: fn(&mut Config, &str) -> Result<(), Expected>,
) -> Setting {
    Setting {
        name,
        placeholder,
        default,
        form: Form::Text,
        secret: false,
        bare_variable: false,
        help,
        set,
    }
}

impl Setting {
    const fn secret(self) -> Self {
        Self {
            secret: true,
            bare_variable: true,
            ..self
        }
    }

    const fn bare_variable(self) -> Self {
        Self {
            bare_variable: true,
            ..self
        }
    }

    const fn form(self, form: Form) -> Self {
        Self { form, ..self }
    }
}

/// Every setting, in the order of the help.
pub static SETTINGS: &[Setting] = &[
    setting(
        "database_url",
        "URL",
        None,
        "Where PostgreSQL is, as a URL or in libpq's key=value form. The only setting without \
         which nothing works.",
        |config, text| {
            config.database_url = Secret::new(value::database_url(text)?);
            Ok(())
        },
    )
    .secret(),
    setting(
        "jwt_secret",
        "SECRET",
        None,
        "The key of HS256, HS384 and HS512 tokens, at least 32 bytes. Either this or jwks_url is \
         needed; with both, a token's algorithm decides.",
        |config, text| {
            config.jwt_secret = Some(Secret::new(value::secret(text)?));
            Ok(())
        },
    )
    .secret(),
    setting(
        "jwks_url",
        "URL",
        None,
        "Where the public keys of RS256, ES256 and EdDSA tokens are.",
        |config, text| {
            config.jwks_url = Some(value::http_url(text)?);
            Ok(())
        },
    )
    .bare_variable(),
    setting(
        "listen",
        "ADDRESS",
        Some("0.0.0.0:4000"),
        "Where clients connect. All interfaces, because in a container nothing else is reached; \
         the port is Supabase Realtime's.",
        |config, text| {
            config.listen = value::address(text)?;
            Ok(())
        },
    ),
    setting(
        "admin_listen",
        "ADDRESS",
        Some("127.0.0.1:4001"),
        "Where /healthz, /readyz, /metrics and /inspect are. Only this machine, because metrics are nobody \
         else's business.",
        |config, text| {
            config.admin_listen = value::address(text)?;
            Ok(())
        },
    ),
    setting(
        "slot",
        "NAME",
        Some("rowcast"),
        "The replication slot, made where it does not exist. Two relays on one database need two.",
        |config, text| {
            config.slot = value::slot(text)?;
            Ok(())
        },
    ),
    setting(
        "publication",
        "NAME",
        None,
        "The publication whose tables can be subscribed to. By default rowcast, or \
         supabase_realtime where only that exists.",
        |config, text| {
            config.publication = Some(value::name(text)?);
            Ok(())
        },
    ),
    setting(
        "lookup_publication",
        "NAME",
        None,
        "The publication of the tables that policies look into, so that the relay can keep them in \
         memory; it offers them to nobody. Made by the relay where its login may, else by rowcast \
         setup --lookups. By default the slot's name with _lookups behind it.",
        |config, text| {
            config.lookup_publication = Some(value::name(text)?);
            Ok(())
        },
    ),
    setting(
        "max_lookup_bytes",
        "SIZE",
        Some("256MiB"),
        "The memory of all tables that policies look into and that are kept in memory, about: some \
         400,000 memberships. What goes past it is asked of PostgreSQL instead.",
        |config, text| {
            config.max_lookup_bytes = value::size(text, 0, 1024 * GIB)?;
            Ok(())
        },
    ),
    setting(
        "default_role",
        "ROLE",
        Some("authenticated"),
        "The database role of a token without a role claim: somebody signed it, so somebody is known.",
        |config, text| {
            config.default_role = value::name(text)?;
            Ok(())
        },
    ),
    setting(
        "role_claim",
        "CLAIM",
        Some("role"),
        "The claim that names the database role; role is Supabase's and PostgREST's.",
        |config, text| {
            config.role_claim = value::claim(text)?;
            Ok(())
        },
    ),
    setting(
        "api_keys",
        "KEY=ROLE,…",
        Some(""),
        "Opaque API keys (sb_publishable_…, sb_secret_…) and the role that each stands for. None \
         by default.",
        |config, text| {
            config.api_keys = value::api_keys(text)?;
            Ok(())
        },
    )
    .form(Form::Table),
    setting(
        "require",
        "none|rls|rls or rule",
        Some("none"),
        "What a published table must have, or it is hidden: row-level security (rls), that or a \
         [[rule]] for the client's role (rls or rule). None, because publishing a table without is \
         a decision of whoever owns it, as with Supabase.",
        |config, text| {
            config.require = value::require(text)?;
            Ok(())
        },
    ),
    setting(
        "delete_without_identity",
        "suppress|key",
        Some("suppress"),
        "What becomes of a DELETE whose old row does not carry what policies and filters read: \
         nobody hears of it, or (as with Supabase) everybody who may read the key gets the key. \
         Suppress, because a key can tell more than its owner wants.",
        |config, text| {
            config.delete_without_identity = value::delete_without_identity(text)?;
            Ok(())
        },
    ),
    setting(
        "old_rows",
        "TABLE,…",
        Some(""),
        "Published tables whose old rows the relay keeps in memory, so that DELETEs can be judged, \
         and leaves be told, where the replica identity carries too little and is to stay as it is: \
         public.jobs keeps its key and what its policies read, public.jobs.status also a column \
         that clients filter by, public.jobs.* all columns. None by default: a replica identity \
         costs no memory.",
        |config, text| {
            config.old_rows = value::old_rows(text)?;
            Ok(())
        },
    ),
    setting(
        "max_old_row_bytes",
        "SIZE",
        Some("256MiB"),
        "The memory of all tables that old_rows names, about: some 600,000 rows. Of a table that \
         does not fit nothing is kept.",
        |config, text| {
            config.max_old_row_bytes = value::size(text, 0, 1024 * GIB)?;
            Ok(())
        },
    ),
    setting(
        "leave",
        "asked|all",
        Some("asked"),
        "Who is told, by a DELETE with the key, when an UPDATE takes a row out of their view: \
         bindings with rowcast.leave, or all that take DELETE. Asked, because applications made \
         for Supabase may take it for a row that is gone.",
        |config, text| {
            config.leave = value::leave(text)?;
            Ok(())
        },
    ),
    setting(
        "data",
        "DIRECTORY|memory",
        Some(DEFAULT_DATA),
        "Where the log of changes is kept: a directory that nothing else uses, made where it is \
         missing, so that it outlives the process; or only in memory. By default in the folder in \
         which the relay is started, or where systemd's StateDirectory= says.",
        |config, text| {
            config.data = value::data(text)?;
            Ok(())
        },
    ),
    setting(
        "log_retention",
        "TIME",
        Some("24h"),
        "How long the log on disk keeps changes: a day's absence.",
        |config, text| {
            config.log_retention = value::duration(text, MINUTE, 8760 * HOUR)?;
            Ok(())
        },
    ),
    setting(
        "log_retention_bytes",
        "SIZE",
        Some("4GiB"),
        "The bytes that the log on disk keeps, older ones go first; some millions of changes. A \
         transaction larger than this is answered with a resync.",
        |config, text| {
            config.log_retention_bytes = value::size(text, 16 * MIB, 1 << 50)? as u64;
            Ok(())
        },
    ),
    setting(
        "max_retained_wal",
        "SIZE|none",
        Some("10GiB"),
        "The WAL that the slot may keep from being recycled while the relay runs; past it the slot \
         is given up and made anew, and clients have to read again: better that than a database \
         without space. none for any amount.",
        |config, text| {
            config.max_retained_wal = value::size_or_none(text, 16 * MIB, 1 << 50)?;
            Ok(())
        },
    ),
    setting(
        "log_max_changes",
        "COUNT",
        Some("1000000"),
        "The memory log's bound, in changes: some minutes at thousands a second, for readers \
         that lag.",
        |config, text| {
            config.log_max_changes = value::count(text, 1_000, 1_000_000_000)?;
            Ok(())
        },
    )
    .form(Form::Bare),
    setting(
        "log_max_bytes",
        "SIZE",
        Some("256MiB"),
        "The memory log's bound, in bytes; what a small machine can spare. A transaction larger \
         than this is answered with a resync, unless the log is on disk: then this is how much of \
         its end is in memory too.",
        |config, text| {
            config.log_max_bytes = value::size(text, MIB, 1024 * GIB)?;
            Ok(())
        },
    ),
    setting(
        "max_record_bytes",
        "SIZE",
        Some("1MiB"),
        "A change that is larger, as text or as JSON, goes out without its values above 64 bytes \
         and with an error that says so; Supabase's limit.",
        |config, text| {
            config.max_record_bytes = value::size(text, KIB, GIB)?;
            Ok(())
        },
    ),
    setting(
        "max_connections",
        "COUNT",
        Some("10000"),
        "Client sockets at once: about 120 MiB when all are idle, and below the file limits that \
         distributions set for services.",
        |config, text| {
            config.max_connections = value::count(text, 1, 10_000_000)?;
            Ok(())
        },
    )
    .form(Form::Bare),
    setting(
        "max_connections_per_user",
        "COUNT",
        Some("100"),
        "Sockets of one user (the token's sub, in one role) at once: more tabs and devices than \
         anybody has, and too few to take all of max_connections. Tokens without a sub are not \
         counted. 0 for no limit.",
        |config, text| {
            config.max_connections_per_user = value::count(text, 0, 10_000_000)?;
            Ok(())
        },
    )
    .form(Form::Bare),
    setting(
        "max_connections_per_address",
        "COUNT",
        Some("0"),
        "Sockets of one client address at once, an IPv6 network of /64 counting as one. 0 for no \
         limit, because behind a proxy that trusted_proxies does not name all clients have one \
         address.",
        |config, text| {
            config.max_connections_per_address = value::count(text, 0, 10_000_000)?;
            Ok(())
        },
    )
    .form(Form::Bare),
    setting(
        "trusted_proxies",
        "NETWORK,…",
        Some(""),
        "Addresses and networks of proxies whose X-Forwarded-For says where a client is. None by \
         default, because anybody can send that header.",
        |config, text| {
            config.trusted_proxies = value::proxies(text)?;
            Ok(())
        },
    ),
    setting(
        "allowed_origins",
        "ORIGIN,…",
        Some("*"),
        "The web pages that may connect, such as https://app.example.com or \
         https://*.example.com; clients that name no origin are no browsers and always may. All \
         by default, as with Supabase: a page needs a token, and browsers keep none for it as \
         they do cookies.",
        |config, text| {
            config.allowed_origins = value::origins(text)?;
            Ok(())
        },
    ),
    setting(
        "max_channels",
        "COUNT",
        Some("100"),
        "Channels of one socket; Supabase's limit.",
        |config, text| {
            config.max_channels = value::count(text, 1, 100_000)?;
            Ok(())
        },
    )
    .form(Form::Bare),
    setting(
        "max_joins_per_second",
        "COUNT",
        Some("100"),
        "Joins a second on one socket, so that a client that comes back can join all its \
         channels at once.",
        |config, text| {
            let joins = value::integer(text, 1, 1_000_000)?;
            config.max_joins_per_second =
                u32::try_from(joins).map_err(|_| "a smaller number".to_owned())?;
            Ok(())
        },
    )
    .form(Form::Bare),
    setting(
        "max_asked_filters",
        "COUNT",
        Some("30"),
        "Different filters that PostgreSQL has to be asked about (match, imatch, like, ilike, and \
         types or collations that the relay does not decide itself) of one socket, and of one user \
         on all sockets: however slow all of them are, others' still get their turn within \
         ask_timeout. 0 for no limit.",
        |config, text| {
            config.max_asked_filters = value::count(text, 0, 1_000_000)?;
            Ok(())
        },
    )
    .form(Form::Bare),
    setting(
        "max_frame_bytes",
        "SIZE",
        Some("1MiB"),
        "The largest frame taken from a client: far above any join or broadcast that makes \
         sense, far below what fills the memory.",
        |config, text| {
            config.max_frame_bytes = value::size(text, KIB, GIB)?;
            Ok(())
        },
    ),
    setting(
        "outbox_max_events",
        "COUNT",
        Some("4096"),
        "Events that may wait for one socket before it is closed as too slow: a transaction of \
         1,000 rows for one user passes four times over.",
        |config, text| {
            config.outbox_max_events = value::count(text, 16, 10_000_000)?;
            Ok(())
        },
    )
    .form(Form::Bare),
    setting(
        "outbox_max_bytes",
        "SIZE",
        Some("4MiB"),
        "Bytes of changes that may wait for one socket: 1 KiB for each of the default's events.",
        |config, text| {
            config.outbox_max_bytes = value::size(text, 64 * KIB, 16 * GIB)?;
            Ok(())
        },
    ),
    setting(
        "ask_timeout",
        "TIME",
        Some("5s"),
        "How long a question to PostgreSQL may take before its rows are hidden. Others do not \
         wait for it, its own client's later changes do.",
        |config, text| {
            config.ask_timeout = value::duration(text, 10 * MILLISECOND, 10 * MINUTE)?;
            Ok(())
        },
    ),
    setting(
        "policy_check",
        "on|off",
        Some("on"),
        "Whether compiled policies are held against PostgreSQL, on made up rows and on some of the \
         tables' own: one that is answered otherwise is asked from then on.",
        |config, text| {
            config.policy_check = value::switch(text)?;
            Ok(())
        },
    ),
    setting(
        "snapshot_sessions",
        "COUNT",
        Some("4"),
        "Sessions with PostgreSQL that snapshots are read over; further ones wait for one of \
         them.",
        |config, text| {
            config.snapshot.sessions = value::count(text, 1, 1000)?;
            Ok(())
        },
    )
    .form(Form::Bare),
    setting(
        "snapshot_default_rows",
        "COUNT",
        Some("1000"),
        "Rows of a snapshot whose binding does not say how many: what a first page shows.",
        |config, text| {
            config.snapshot.default_rows = value::integer(text, 0, 1_000_000_000)?;
            Ok(())
        },
    )
    .form(Form::Bare),
    setting(
        "snapshot_max_rows",
        "COUNT",
        Some("10000"),
        "The most rows that a binding may ask for; asking for more is refused.",
        |config, text| {
            config.snapshot.max_rows = value::integer(text, 0, 1_000_000_000)?;
            Ok(())
        },
    )
    .form(Form::Bare),
    setting(
        "snapshot_max_bytes",
        "SIZE",
        Some("16MiB"),
        "The most JSON of all snapshots of one channel: one that is larger is given up.",
        |config, text| {
            config.snapshot.max_bytes = value::size(text, 64 * KIB, 16 * GIB)?;
            Ok(())
        },
    ),
    setting(
        "snapshot_timeout",
        "TIME",
        Some("30s"),
        "How long a snapshot may take, its statements and its client together: meanwhile a \
         transaction stays open, which keeps PostgreSQL from removing dead rows.",
        |config, text| {
            config.snapshot.timeout = value::duration(text, 10 * MILLISECOND, HOUR)?;
            Ok(())
        },
    ),
    setting(
        "catalog_interval",
        "TIME",
        Some("1s"),
        "How often the catalog is looked at for changed policies and tables, and the longest that \
         a changed policy can go unnoticed. After a look that took longer than a tenth of it the \
         relay pauses nine times as long as that took.",
        |config, text| {
            config.catalog_interval = value::duration(text, 10 * MILLISECOND, HOUR)?;
            Ok(())
        },
    ),
    setting(
        "resync_spread",
        "TIME",
        Some("5s"),
        "Over how long clients that have to read again at the same time are made to join again: \
         a thousand a second, or all within this time. A single one does at once.",
        |config, text| {
            config.resync_spread = value::duration(text, Duration::ZERO, HOUR)?;
            Ok(())
        },
    ),
    setting(
        "drain",
        "TIME",
        Some("10s"),
        "How long sockets may take to close at the end; well below the 30 s after which \
         Kubernetes kills.",
        |config, text| {
            config.drain = value::duration(text, Duration::ZERO, HOUR)?;
            Ok(())
        },
    ),
    setting(
        "log",
        "FILTER",
        Some("info"),
        "What is logged: a level, or a filter such as info,rowcast::source=debug.",
        |config, text| {
            config.log = value::log_filter(text)?;
            Ok(())
        },
    ),
    setting(
        "log_format",
        "auto|text|json",
        Some("auto"),
        "How a log line looks: text on a terminal and JSON elsewhere, or always one of them.",
        |config, text| {
            config.log_format = value::log_format(text)?;
            Ok(())
        },
    ),
];
