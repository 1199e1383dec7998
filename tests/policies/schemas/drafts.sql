-- Drafts of articles, published ones for everybody, and the rest for authors and reviewers in an array.
-- shapes: array, any-array, is-null, time, boolean, to-public
-- traps: 15
-- values: public.drafts.published_at = now() - interval '1 day' | now() + interval '100 milliseconds' | now() + interval '300 milliseconds' | '2999-12-31'
-- flips: public.drafts select published_at from drafts
-- expect: native A public.drafts author
-- expect: native A public.drafts narrow
-- expect: native A public.drafts published
-- expect: native A public.drafts reviewer
create table drafts (
  id uuid primary key,
  author_id uuid,
  reviewers uuid[] not null default '{}',
  title varchar(120),
  published_at timestamptz,
  deleted_at timestamptz
);
alter table drafts enable row level security;
create policy published on drafts for select
  using (published_at is not null and published_at <= now() and deleted_at is null);
create policy author on drafts for select to authenticated using (author_id = auth.uid());
create policy reviewer on drafts for select to authenticated using (auth.uid() = any (reviewers));
create policy narrow on drafts as restrictive for select to authenticated
  using (deleted_at is null or author_id = auth.uid());
