-- Arrays and documents that contain things.
-- shapes: containment, array, jsonb
-- values: public.pages.meta = '{"public": true}' | '{"tags": ["a", "b"]}' | '{"tags": []}' | '[1, "a"]' | null
-- expect: native A public.pages documents
-- expect: native A public.pages editors
-- expect: native A public.pages public_pages
-- expect: native A public.pages tagged
create table pages (id int primary key, editors uuid[], tags text[], meta jsonb);
alter table pages enable row level security;
create policy editors on pages for select to authenticated using (editors @> array[auth.uid()]);
create policy tagged on pages for select to anon using (tags && array['open', 'news']);
create policy public_pages on pages for select using (meta @> '{"public": true}'::jsonb);
create policy documents on pages for select to authenticated using (meta ? 'tags' and (meta -> 'tags' ->> 0) = 'a');
