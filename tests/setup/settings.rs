//! Settings of the login, a pooler, and more tables than anybody counts: none of it changes what
//! setup makes.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Place, SCHEMA, TABLES, same, setup};

/// What a careful or a careless administrator gives a login. The index below takes longer to build.
const SETTINGS: &str = r"
alter role owner set statement_timeout = '100ms';
alter role owner set lock_timeout = '10ms';
alter role owner set idle_in_transaction_session_timeout = '20ms';
alter role owner set default_transaction_read_only = on;
alter role owner set default_transaction_isolation = serializable;
alter role owner set standard_conforming_strings = off;
alter role owner set client_encoding = latin1;
alter role owner set search_path = public, pg_catalog;
create function public.to_regrole(text) returns text language plpgsql as 'begin raise exception ''not PostgreSQL''''s''; end';
create function public.to_regnamespace(text) returns text language plpgsql as 'begin raise exception ''not PostgreSQL''''s''; end';
create function public.format(text) returns text language plpgsql as 'begin raise exception ''not PostgreSQL''''s''; end';
create function public.current_setting(text, boolean) returns text language plpgsql as 'begin raise exception ''not PostgreSQL''''s''; end';
create view public.pg_roles as select 'nobody' as rolname;
";

#[tokio::test]
async fn a_logins_own_settings_change_nothing() {
    let place = Place::new("createrole").await;
    place.run(SCHEMA).await;
    place
        .run(
            r#"create table app."Tâble \y" (id bigint primary key, "User \d" text);
               alter table app."Tâble \y" enable row level security;
               create policy own on app."Tâble \y" for select using ("User \d" = 'x');
               insert into app.todos select g, gen_random_uuid(), 1, '' from generate_series(1, 200000) g"#,
        )
        .await;
    place.admin(SETTINGS).await;
    let before = place.catalog().await;
    let mut tables = TABLES.to_vec();
    tables.extend(["--table", r#"app."Tâble \y""#]);
    for run in ["the first", "the second"] {
        let said = place.setup("owner", &tables).await;
        // REPLICATION is for an administrator.
        assert_eq!(said.code, 69, "{run}: {}\n{}", said.out, said.error);
    }
    let identities = place
        .text(
            "select string_agg(c.relreplident::text, '' order by c.relname) from pg_class c
             where c.relnamespace = 'app'::regnamespace and c.relname in ('todos', 'Tâble \\y')
               and not exists (select from pg_index i where i.indrelid = c.oid and not i.indisvalid)",
        )
        .await;
    assert_eq!(identities, "fi", "FULL, and an index that is valid");
    // An administrator made nothing, so all of it can go.
    place.setup("owner", &["--remove"]).await.ok();
    same(&before, &place.catalog().await);

    // The printed text brings the settings with it.
    let mut arguments = vec!["--print"];
    arguments.extend(&tables);
    let printed = place.setup("owner", &arguments).await.ok();
    let session = crate::harness::connect(&place.url("owner")).await;
    session
        .batch_execute("set client_encoding = utf8")
        .await
        .unwrap();
    for statement in crate::harness::statements(&printed) {
        crate::harness::run(&session, &statement).await;
    }
    let said = place.setup("owner", &tables).await.out;
    assert_eq!(said.matches("nothing to do").count(), 4, "{said}");
}

/// A pooler as PgBouncer is one: it does not take the parameter `options`, or passes over it.
async fn pooler(server: String, passes_over: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let server = server.clone();
            tokio::spawn(async move {
                let mut packet = start_up(&mut client).await;
                if packet.get(4..8) == Some(&80_877_103_i32.to_be_bytes()) {
                    client.write_all(b"N").await.unwrap();
                    packet = start_up(&mut client).await;
                }
                if !passes_over {
                    let fields = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0";
                    let length = i32::try_from(fields.len() + 4).unwrap().to_be_bytes();
                    let answer = [&b"E"[..], &length, fields].concat();
                    client.write_all(&answer).await.unwrap();
                    return;
                }
                let mut kept = packet[4..8].to_vec();
                let mut words = packet[8..].split(|byte| *byte == 0);
                while let (Some(name), Some(value)) = (words.next(), words.next()) {
                    if !name.is_empty() && name != b"options" {
                        kept.extend([name, b"\0", value, b"\0"].concat());
                    }
                }
                kept.push(0);
                let length = i32::try_from(kept.len() + 4).unwrap().to_be_bytes();
                let mut server = TcpStream::connect(server).await.unwrap();
                server
                    .write_all(&[&length[..], &kept].concat())
                    .await
                    .unwrap();
                // Until the client goes.
                let _ended = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}

/// The first packet of a session, with its length.
async fn start_up(client: &mut TcpStream) -> Vec<u8> {
    let mut packet = vec![0; 4];
    client.read_exact(&mut packet).await.unwrap();
    let length = i32::from_be_bytes(packet[..4].try_into().unwrap());
    packet.resize(usize::try_from(length).unwrap(), 0);
    client.read_exact(&mut packet[4..]).await.unwrap();
    packet
}

#[tokio::test]
async fn a_pooler_is_called_one_and_nothing_is_set_in_its_sessions() {
    let place = Place::new("createrole").await;
    place.run(SCHEMA).await;
    let before = place.catalog().await;
    let url = place.url("owner");
    let server = url.split_once('@').unwrap().1.split('/').next().unwrap();
    for passes_over in [false, true] {
        let port = pooler(server.to_owned(), passes_over).await;
        let url = format!("postgres://owner@127.0.0.1:{port}/app");
        for arguments in [&TABLES[..], &["--print"], &["--remove"]] {
            let said = setup(&[("DATABASE_URL", &url)], arguments).await;
            assert_eq!(said.code, 69, "{}\n{}", said.out, said.error);
            assert!(
                said.error.contains("a connection pooler answers"),
                "{}",
                said.error
            );
            assert_eq!(said.out, "");
        }
    }
    same(&before, &place.catalog().await);
}

#[tokio::test]
async fn a_thousand_tables_are_set_up_in_seconds() {
    let place = Place::new("createrole").await;
    place
        .run(
            "create schema app;
             do $$ begin for n in 1..1200 loop
               execute format('create table app.t%s (id bigint primary key, person uuid not null)', n);
               execute format('alter table app.t%s enable row level security', n);
               execute format('create policy own on app.t%s for select using (person is null)', n);
             end loop; end $$",
        )
        .await;
    place.setup("postgres", &["--schema", "app"]).await.ok();
    // What it costs to find that nothing is to be done, on a machine that does other things too;
    // it grew with the square of the tables when each was held against every other.
    let again = place.setup("postgres", &["--schema", "app"]);
    let said = tokio::time::timeout(Duration::from_secs(10), again).await;
    let said = said.expect("soon").ok();
    assert_eq!(said.matches("nothing to do").count(), 4, "{said}");
}
