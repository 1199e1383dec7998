-- Who sees which rows now, this transaction's own changes included: asked as each of them.
create schema oracle;
create function oracle.look(whos jsonb, tables jsonb, filters text, only_id int) returns jsonb
language plpgsql as $$
declare
  answer jsonb := '{}';
  tab jsonb;
  who jsonb;
  sights jsonb;
  contents jsonb;
  seen int[];
  raising int[];
  one int;
  found boolean;
  chosen text;
begin
  for tab in select jsonb_array_elements(tables) loop
    chosen := case when only_id is null then 'true' else 'id = ' || only_id end;
    execute format('select coalesce(jsonb_object_agg(id, jsonb_build_array(to_jsonb(the_row), %s)), ''{}'')
      from public.%I the_row where %s', filters, tab ->> 'name', chosen) into contents;
    sights := '[]';
    for who in select jsonb_array_elements(whos) loop
      seen := '{}';
      raising := '{}';
      if has_column_privilege(who ->> 'role', 'public.' || (tab ->> 'name'), 'id', 'select') then
        begin
          perform set_config('role', who ->> 'role', true),
            set_config('request.jwt.claims', who ->> 'claims', true);
          execute format('select coalesce(array_agg(id), ''{}'') from public.%I where %s and %s',
            tab ->> 'name', tab ->> 'through', chosen) into seen;
        exception when others then
          for one in execute format('select id from public.%I where %s', tab ->> 'name', chosen) loop
            begin
              perform set_config('role', who ->> 'role', true),
                set_config('request.jwt.claims', who ->> 'claims', true);
              execute format('select exists (select from public.%I where id = %s and %s)',
                tab ->> 'name', one, tab ->> 'through') into found;
              if found then
                seen := seen || one;
              end if;
            exception when others then
              raising := raising || one;
            end;
            perform set_config('role', 'none', true);
          end loop;
        end;
        perform set_config('role', 'none', true);
      end if;
      sights := sights || jsonb_build_array(jsonb_build_array(to_jsonb(seen), to_jsonb(raising)));
    end loop;
    answer := answer || jsonb_build_object(tab ->> 'name',
      jsonb_build_object('contents', contents, 'sights', sights));
  end loop;
  return answer;
end $$;

-- The columns that each role may read.
create function oracle.readable(roles text[], tables text[]) returns jsonb language sql as $$
  select jsonb_object_agg(role || ' ' || tab, names) from (
    select role, tab, coalesce((
      select jsonb_agg(attname) from pg_attribute where attrelid = ('public.' || tab)::regclass
        and attnum > 0 and not attisdropped and has_column_privilege(role, attrelid, attnum, 'select')
    ), '[]') names
    from unnest(roles) role, unnest(tables) tab
  ) all_of_them
$$;
