-- A queue of background jobs: the business in the token sees its own, the worker sees all.
-- shapes: jsonb, app-metadata, io-cast, enum, to-service
-- claims: authenticated {"sub": "00000000-0000-4000-8000-00000000000a", "businessId": 2}
-- claims: authenticated {"sub": "00000000-0000-4000-8000-00000000000a", "businessId": "3"}
-- expect: native A public.Job business reads its jobs
-- expect: native A public.Job own payload
-- expect: native A public.Job workers
create type "JobStatus" as enum ('PENDING', 'RUNNING', 'SUCCEEDED', 'DEAD');
create table "Job" (
  id bigint primary key,
  "businessId" bigint not null,
  "status" "JobStatus" not null default 'PENDING',
  "attempts" smallint not null default 0,
  payload jsonb,
  "updatedAt" timestamptz not null default now()
);
alter table "Job" enable row level security;
create policy "business reads its jobs" on "Job" for select to authenticated
  using ("businessId" = ((auth.jwt() ->> 'businessId'))::bigint);
create policy "workers" on "Job" for all to service_role using (true) with check (true);
create policy "own payload" on "Job" for select to authenticated
  using ((payload ->> 'user_id') = (auth.uid())::text);
