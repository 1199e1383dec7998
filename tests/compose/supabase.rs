//! The override for Supabase's self-hosted stack. What is known of that stack (service and container
//! names, variables, routes) was read in its files in early 2026 and stands here.

use crate::file::{Environment, dotenv};
use crate::read;
use crate::run::{Running, Server};
use crate::stack::{RELAY, SECRET, SUPERUSER, Stack};

/// The part of Supabase's `.env` that the override uses.
fn environment() -> Environment {
    let (mut environment, _) = dotenv(
        "POSTGRES_HOST=db\nPOSTGRES_PORT=5432\nPOSTGRES_DB=postgres\nROWCAST_SOURCE=/src/rowcast",
    );
    for (name, value) in [
        ("POSTGRES_PASSWORD", SUPERUSER),
        ("JWT_SECRET", SECRET),
        ("ROWCAST_RELAY_PASSWORD", RELAY),
    ] {
        environment.insert(name.to_owned(), value.to_owned());
    }
    environment
}

/// What Supabase's database comes with, as far as it matters here.
const SUPABASE: &str = "
create role anon nologin noinherit;
create role authenticated nologin noinherit;
create role service_role nologin noinherit bypassrls;
create schema auth;
create function auth.uid() returns uuid language sql stable as $$
  select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid $$;
grant usage on schema auth to anon, authenticated, service_role;
create publication supabase_realtime;
create table public.todos (id bigint primary key, owner uuid, title text);
alter table public.todos enable row level security;
alter table public.todos replica identity full;
create policy own on public.todos for select to authenticated using (owner = auth.uid());
grant select on public.todos to authenticated;
alter publication supabase_realtime add table public.todos;
";

#[tokio::test]
async fn realtime_is_swapped_in_supabases_stack_with_a_login_of_its_own() {
    let text = read("examples/supabase/docker-compose.override.yml");
    let stack = Stack::of(&text, &environment()).unwrap();
    let realtime = &stack.file.services["realtime"];
    assert_eq!(realtime.volumes, ["rowcast-log:/var/lib/rowcast"]);
    assert!(stack.file.volumes.contains_key("rowcast-log"));
    // Kong knows the container by the name that Supabase's own file gives it.
    assert_eq!(realtime.container_name, None);
    assert_eq!(
        realtime.variables()["ROWCAST_LISTEN"],
        "0.0.0.0:4000",
        "Kong's route"
    );
    let server = Server::start(
        &["wal_level=logical".to_owned()],
        "supabase_admin",
        SUPERUSER,
        "postgres",
    )
    .await;
    server.run(SUPABASE).await;
    let running = Running::new(stack, server);
    running.complete("realtime-setup").await;
    let mut relay = running.start("realtime");
    let restarts = running.healthy("realtime", &mut relay).await;
    assert_eq!(restarts, 0, "{}", relay.log());

    // As Kong asks: what follows /realtime/v1/ goes behind /socket/.
    let address = running.address("realtime", 4000);
    let url = format!("ws://{address}/socket/websocket");
    let ann = "00000000-0000-4000-8000-00000000000a";
    let insert = format!("insert into public.todos values (1, null, 'x'), (2, '{ann}', 'hers')");
    let change = running
        .change(
            address,
            &["todos", "--sub", ann, "--url", &url],
            &[("JWT_SECRET", SECRET)],
            running.server.run(&insert),
        )
        .await;
    assert_eq!(change["record"]["title"], "hers", "{change}");
    let login = "select string_agg(distinct format('%s %s', r.rolname, r.rolsuper), ', ')
                 from pg_stat_activity a join pg_roles r on r.rolname = a.usename
                 where a.application_name like 'rowcast%'";
    assert_eq!(running.server.text(login).await, "rowcast f");
    relay.stop("TERM").await;
}
