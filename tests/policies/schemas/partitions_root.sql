-- Partitioned by tenant, published as the root, whose policies decide; a leaf has none.
-- shapes: partition, own, composite-key
-- publish: with (publish_via_partition_root = true)
-- watch: public.metrics
-- expect: native A public.metrics own
-- expect: native A public.metrics shared
create table metrics (id int, tenant int not null, owner uuid, value real, primary key (id, tenant)) partition by list (tenant);
create table metrics_1 partition of metrics for values in (1);
create table metrics_2 partition of metrics for values in (2, 3);
create table metrics_rest partition of metrics default;
alter table metrics_1 replica identity full;
alter table metrics_2 replica identity full;
alter table metrics_rest replica identity full;
alter table metrics enable row level security;
create policy own on metrics for select to authenticated using (owner = auth.uid());
create policy shared on metrics for select to anon using (tenant = 3 and value > 1);
