-- A site without log-ins: everything is for anon.
-- shapes: to-anon, true, false, boolean
-- expect: native A public.answers Whoever comes may read
-- expect: native A public.ips No
-- expect: native A public.questions Whoever comes may read
create table questions (id serial primary key, text text, published boolean default false);
create table answers (id serial primary key, question int references questions on delete cascade, text text);
create table ips (id serial primary key, address text);
alter table questions enable row level security;
alter table answers enable row level security;
alter table ips enable row level security;
create policy "Whoever comes may read" on questions for select to anon using (published);
create policy "Whoever comes may read" on answers for select using (true);
create policy "No" on ips for select to anon, authenticated using (false);
create policy "Whoever comes may answer" on answers for insert with check (true);
