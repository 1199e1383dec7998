-- Names that nobody should give: quotes, spaces, capitals, dots, and a keyword.
-- shapes: quoted-names, enum, dropped-column, exists
-- expect: native A My App.Thing "one" by "kind"
-- expect: native B My App.Thing "one" by.group
-- expect: native A My App.Thing "one" it's mine
create schema "My App";
grant usage on schema "My App" to anon, authenticated, service_role;
create type "My App"."Kind" as enum ('it''s', 'Not "it"');
create table "My App"."User.Group" ("group" int, "User Id" uuid, primary key ("group", "User Id"));
create table "My App"."Thing ""one""" (
  "Id" int primary key, gone text, "select" int, "Kind" "My App"."Kind", "Owner" uuid, gone_too uuid
);
alter table "My App"."Thing ""one""" drop column gone, drop column gone_too;
grant select on all tables in schema "My App" to anon, authenticated, service_role;
alter table "My App"."Thing ""one""" enable row level security;
create policy "it's mine" on "My App"."Thing ""one""" for select to authenticated using ("Owner" = auth.uid());
create policy "by ""kind""" on "My App"."Thing ""one""" for select to anon using ("Kind" = 'it''s');
create policy "by.group" on "My App"."Thing ""one""" for select to authenticated using (exists (
  select from "My App"."User.Group" g where g."group" = "select" and g."User Id" = auth.uid()));
