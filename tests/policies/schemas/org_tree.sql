-- A tree of departments whose rights go down, a tree of folders whose shares go down, tags in arrays.
-- shapes: recursive-with, lateral, unnest-column
-- claims: authenticated {"sub": "00000000-0000-4000-8000-00000000000d", "org": 1}
-- expect: native A public.departments own
-- expect: native D public.documents department
-- expect: native D public.folders shared
-- expect: native B public.notes tagged
-- expect: native B public.notes watched
create table departments (id int primary key, parent int, head uuid);
create table folders (id int primary key, parent int, depth int);
create table shares (folder int, "user" uuid, primary key (folder, "user"));
create table documents (id int primary key, department int, title text);
create table notes (id int primary key, tag text, folder int);
create table followed (id int primary key, "user" uuid, tags text[], folders int[]);
create function department_ids() returns setof int language sql stable security definer set search_path = public as $$
  with recursive down as (
    select d.id from departments d where d.head = auth.uid()
    union
    select d.id from departments d join down on d.parent = down.id
  )
  select id from down
$$;
create function folder_is_shared(start int) returns boolean language sql stable security definer set search_path = '' as $$
  with recursive up (id, parent) as (
    select f.id, f.parent from public.folders f where f.id = start
    union
    select f.id, f.parent from public.folders f join up on f.id = up.parent
  )
  select exists (select 1 from up join public.shares s on s.folder = up.id and s."user" = auth.uid())
$$;
alter table departments enable row level security;
alter table documents enable row level security;
alter table folders enable row level security;
alter table notes enable row level security;
create policy own on departments for select to authenticated using (head = auth.uid());
create policy department on documents for select to authenticated using (department in (select department_ids()));
create policy shared on folders for select to authenticated using (folder_is_shared(id));
create policy tagged on notes for select to authenticated using (
  tag in (select unnest(f.tags) from followed f where f."user" = (select auth.uid())));
create policy watched on notes for select to authenticated using (exists (
  select 1 from followed f cross join lateral unnest(f.folders) as one (folder)
  where one.folder = notes.folder and f."user" = auth.uid()));
