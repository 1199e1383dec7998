-- Files as Supabase's storage keeps them: a folder for each user, a public bucket, and a team's folder.
-- shapes: foldername, io-cast, array, own, in-list
-- watch: storage.objects
-- values: storage.objects.name = '00000000-0000-4000-8000-00000000000a/a.png' | '00000000-0000-4000-8000-00000000000b/x/b.png' | 'c.png' | '2/team.png' | null
-- values: storage.objects.bucket_id = 'avatars' | 'files' | 'teams'
-- values: storage.buckets.id = 'avatars' | 'files' | 'teams'
-- expect: native A storage.objects avatars are public
-- expect: native D storage.objects own folder
-- expect: native A storage.objects owner
-- expect: native D storage.objects team folder
create table public.team_members (team_id int, user_id uuid, primary key (team_id, user_id));
create policy "avatars are public" on storage.objects for select using (bucket_id = 'avatars');
create policy "own folder" on storage.objects for select to authenticated
  using (bucket_id = 'files' and (storage.foldername(name))[1] = (auth.uid())::text);
create policy "owner" on storage.objects for select to authenticated using (owner_id = (select auth.uid()::text));
create policy "team folder" on storage.objects for select to authenticated using (
  bucket_id = 'teams' and exists (select 1 from public.team_members t
    where t.user_id = auth.uid() and t.team_id::text = (storage.foldername(objects.name))[1]));
