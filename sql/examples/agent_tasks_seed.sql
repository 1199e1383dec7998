-- Two organisations, one person in each, and enough going on to look at. Everything has a fixed id,
-- so loading it again adds nothing.

insert into public.organizations (id, name) values
  ('0a000000-0000-4000-8000-000000000001', 'Green Lawn Care'),
  ('0b000000-0000-4000-8000-000000000001', 'Harbour Homes')
on conflict do nothing;

-- Ann and Ben.
insert into public.org_members (organization_id, user_id, role) values
  ('0a000000-0000-4000-8000-000000000001', 'aaaaaaaa-0000-4000-8000-000000000001', 'owner'),
  ('0b000000-0000-4000-8000-000000000001', 'bbbbbbbb-0000-4000-8000-000000000001', 'owner')
on conflict do nothing;

insert into public.contacts (id, organization_id, name, email) values
  ('0a000000-0000-4000-8000-0000000000c1', '0a000000-0000-4000-8000-000000000001', 'Priya Raman', 'priya@example.com'),
  ('0a000000-0000-4000-8000-0000000000c2', '0a000000-0000-4000-8000-000000000001', 'Tom Okafor', 'tom@example.com'),
  ('0a000000-0000-4000-8000-0000000000c3', '0a000000-0000-4000-8000-000000000001', 'Maple Street School', 'office@example.com'),
  ('0b000000-0000-4000-8000-0000000000c1', '0b000000-0000-4000-8000-000000000001', 'The Lindqvists', 'lindqvist@example.com'),
  ('0b000000-0000-4000-8000-0000000000c2', '0b000000-0000-4000-8000-000000000001', 'Grace Adeyemi', 'grace@example.com'),
  ('0b000000-0000-4000-8000-0000000000c3', '0b000000-0000-4000-8000-000000000001', 'Pier 9 Lofts', 'desk@example.com')
on conflict do nothing;

insert into public.agents (id, organization_id, name) values
  ('0a000000-0000-4000-8000-0000000000a1', '0a000000-0000-4000-8000-000000000001', 'Fern'),
  ('0a000000-0000-4000-8000-0000000000a2', '0a000000-0000-4000-8000-000000000001', 'Clover'),
  ('0b000000-0000-4000-8000-0000000000a1', '0b000000-0000-4000-8000-000000000001', 'Anchor'),
  ('0b000000-0000-4000-8000-0000000000a2', '0b000000-0000-4000-8000-000000000001', 'Beacon')
on conflict do nothing;

insert into public.agent_tasks
  (id, organization_id, user_id, contact_id, agent_id, title, status, error, events) values
  ('0a000000-0000-4000-8000-0000000000f1', '0a000000-0000-4000-8000-000000000001', 'aaaaaaaa-0000-4000-8000-000000000001',
   '0a000000-0000-4000-8000-0000000000c1', '0a000000-0000-4000-8000-0000000000a1', 'Plan the spring visit', 'pending', null, '[]'),
  ('0a000000-0000-4000-8000-0000000000f2', '0a000000-0000-4000-8000-000000000001', 'aaaaaaaa-0000-4000-8000-000000000001',
   '0a000000-0000-4000-8000-0000000000c2', '0a000000-0000-4000-8000-0000000000a2', 'Answer a question about moss', 'pending', null, '[]'),
  ('0a000000-0000-4000-8000-0000000000f3', '0a000000-0000-4000-8000-000000000001', 'aaaaaaaa-0000-4000-8000-000000000001',
   '0a000000-0000-4000-8000-0000000000c3', '0a000000-0000-4000-8000-0000000000a1', 'Send the mowing invoice', 'completed', null,
   '[{"at": "2026-01-05T09:00:00Z", "text": "Invoice 1042 sent"}]'),
  ('0b000000-0000-4000-8000-0000000000f1', '0b000000-0000-4000-8000-000000000001', 'bbbbbbbb-0000-4000-8000-000000000001',
   '0b000000-0000-4000-8000-0000000000c1', '0b000000-0000-4000-8000-0000000000a1', 'Book a viewing on Quay Road', 'pending', null, '[]'),
  ('0b000000-0000-4000-8000-0000000000f2', '0b000000-0000-4000-8000-000000000001', 'bbbbbbbb-0000-4000-8000-000000000001',
   '0b000000-0000-4000-8000-0000000000c2', '0b000000-0000-4000-8000-0000000000a2', 'Collect papers for the offer', 'pending', null, '[]'),
  ('0b000000-0000-4000-8000-0000000000f3', '0b000000-0000-4000-8000-000000000001', 'bbbbbbbb-0000-4000-8000-000000000001',
   '0b000000-0000-4000-8000-0000000000c3', '0b000000-0000-4000-8000-0000000000a1', 'Check the lift certificate', 'failed',
   'the registry did not answer', '[{"at": "2026-01-05T09:00:00Z", "text": "Asked the registry"}]')
on conflict do nothing;

insert into public.drafts (id, user_id, contact_id, agent_id, body) values
  ('0a000000-0000-4000-8000-0000000000d1', 'aaaaaaaa-0000-4000-8000-000000000001',
   '0a000000-0000-4000-8000-0000000000c1', '0a000000-0000-4000-8000-0000000000a1', 'Your lawn is due for its first cut'),
  ('0b000000-0000-4000-8000-0000000000d1', 'bbbbbbbb-0000-4000-8000-000000000001',
   '0b000000-0000-4000-8000-0000000000c1', '0b000000-0000-4000-8000-0000000000a1', 'Two flats that match your search')
on conflict do nothing;

insert into public.follow_ups (id, user_id, contact_id, note, due_at) values
  ('0a000000-0000-4000-8000-0000000000e1', 'aaaaaaaa-0000-4000-8000-000000000001',
   '0a000000-0000-4000-8000-0000000000c2', 'Ask how the moss treatment went', now() + interval '2 days'),
  ('0b000000-0000-4000-8000-0000000000e1', 'bbbbbbbb-0000-4000-8000-000000000001',
   '0b000000-0000-4000-8000-0000000000c2', 'Call about the survey', now() + interval '1 day')
on conflict do nothing;
