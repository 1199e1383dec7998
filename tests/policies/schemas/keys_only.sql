-- Old rows that carry nothing but the key: deletes cannot be judged by the rest.
-- shapes: own, boolean
-- traps: 9 19
-- identity: default
-- values: public.wide.big = repeat(md5('x'), 200) | null
-- unsure: public.wide an untouched out-of-line value decides
-- expect: native A public.by_key own
-- expect: native A public.secrets own
-- expect: native A public.wide own
create table secrets (id int primary key, user_id uuid, body text);
create table by_key (user_id uuid primary key, body text);
create table wide (id int primary key, user_id uuid, big text, small int);
alter table wide alter column big set storage external;
alter table secrets enable row level security;
alter table by_key enable row level security;
alter table wide enable row level security;
create policy own on secrets for select to authenticated using (user_id = auth.uid());
create policy own on by_key for select to authenticated using (user_id = auth.uid());
create policy own on wide for select to authenticated using (user_id = auth.uid() and big is not null);
