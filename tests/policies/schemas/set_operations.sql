-- Set operations and common table expressions in sub-selects.
-- shapes: set-operation, cte, in
-- expect: native B public.docs either
-- expect: native B public.logs cte
-- expect: native B public.logs only_readers
create table readers (doc int, user_id uuid, primary key (doc, user_id));
create table writers (doc int, user_id uuid, primary key (doc, user_id));
create table docs (id int primary key, title text);
create table logs (id int primary key, doc int);
alter table docs enable row level security;
alter table logs enable row level security;
create policy either on docs for select to authenticated using (id in (
  select r.doc from readers r where r.user_id = auth.uid()
  union select w.doc from writers w where w.user_id = auth.uid()));
create policy only_readers on logs for select to authenticated using (doc in (
  select r.doc from readers r where r.user_id = auth.uid()
  except select w.doc from writers w where w.user_id = auth.uid()));
create policy cte on logs for select to anon using (
  (with used as (select w.doc from writers w) select count(*) from used u where u.doc = logs.doc) > 1);
