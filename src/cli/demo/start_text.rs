//! What the demo prints once it is ready: where it is, the keys, and code that runs as pasted.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::tokens::Tokens;

/// The newest supabase-js that Node 20 runs; with Node 22 and in browsers any newer one does.
const SUPABASE_JS: &str = "2.109.0";

/// Where somebody on this machine reaches a listener.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// The whole text. The lines up to the snippet are `name value`, for people and for scripts. A relay
/// that is not beside the page is at `relay_url`; its tokens are signed with a secret that others
/// use too, so they are on the page alone and not where they might be logged.
pub(super) fn render(
    listen: SocketAddr,
    relay_url: Option<&str>,
    database_url: Option<&str>,
    tokens: &Tokens,
) -> String {
    let url = format!("http://{}", reachable(listen));
    if let Some(relay) = relay_url {
        return format!("ready {url}\n\n  relay     {relay}\n\nOpen {url} in a browser.");
    }
    let database_url = database_url.unwrap_or("as given with --database-url");
    let mut text = format!(
        "ready {url}\n\n  database  {database_url}\n  anon key  {}\n",
        tokens.anon()
    );
    for (person, token) in tokens.people() {
        text.push_str(&format!(
            "  {:<8}  {token}\n            {} of {}\n",
            person.key, person.name, person.organization
        ));
    }
    if !listen.ip().is_loopback() {
        text.push_str(
            "\n  Whoever can reach this address can read these tokens and write the example's rows.\n",
        );
    }
    text.push_str(&format!(
        "\nOpen {url} in a browser, or watch Ann's tasks from code:\n\n\
         \x20 npm install @supabase/supabase-js@{SUPABASE_JS} ws\n\
         \x20 node snippet.mjs\n\n{}\nCtrl-C ends it.",
        snippet(&url, tokens)
    ));
    text
}

/// `snippet.mjs`. Browsers and Node 22 have a WebSocket of their own; for Node 20 the `ws` package
/// is loaded, and only there, so that the same text runs everywhere.
fn snippet(url: &str, tokens: &Tokens) -> String {
    let Some((person, token)) = tokens.people().next() else {
        return String::new();
    };
    let anon = tokens.anon();
    let agents = person.agents.join(",");
    format!(
        "// --- snippet.mjs ---\n\
         import {{ createClient }} from '@supabase/supabase-js'\n\
         \n\
         const transport = globalThis.WebSocket ?? (await import('ws')).default\n\
         const client = createClient('{url}', '{anon}', {{ realtime: {{ transport }} }})\n\
         await client.realtime.setAuth('{token}')\n\
         \n\
         client\n\
         \x20 .channel('tasks')\n\
         \x20 .on('postgres_changes', {{\n\
         \x20   event: '*', schema: 'public', table: 'agent_tasks',\n\
         \x20   filter: 'agent_id=in.({agents})',\n\
         \x20 }}, (change) => console.log(change.eventType, change.new.title ?? change.old.id, change.new.status ?? ''))\n\
         \x20 .subscribe((status, error) => console.log(status, error?.message ?? ''))\n\
         // --- end ---\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::tokens::random_secret;

    #[test]
    fn the_first_line_says_where_a_client_on_this_machine_connects() {
        let tokens = Tokens::mint(&random_secret()).unwrap();
        let text = render(
            "0.0.0.0:4123".parse().unwrap(),
            None,
            Some("postgres://x/y"),
            &tokens,
        );
        assert_eq!(text.lines().next(), Some("ready http://127.0.0.1:4123"));
        assert!(text.contains("Whoever can reach this address"));

        let text = render("127.0.0.1:4000".parse().unwrap(), None, None, &tokens);
        assert!(text.contains("agent_id=in.(0a000000-0000-4000-8000-0000000000a1,"));
        assert!(text.contains("createClient('http://127.0.0.1:4000', 'ey"));
        assert!(!text.contains("Whoever can reach this address"));
    }

    #[test]
    fn tokens_of_another_relay_are_not_printed() {
        let tokens = Tokens::mint(&random_secret()).unwrap();
        let listen = "0.0.0.0:4100".parse().unwrap();
        let text = render(listen, Some("http://localhost:4000"), None, &tokens);
        assert!(text.contains("relay     http://localhost:4000"), "{text}");
        assert!(!text.contains("ey"), "{text}");
    }
}
