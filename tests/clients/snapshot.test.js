// What the README says about rows before changes, with the unmodified client.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { after, before, describe, test } from 'node:test'

import {
  ANN,
  BEN,
  CLIENTS,
  Inbox,
  Tables,
  connectClient,
  disconnect,
  freePort,
  startDemo,
  startServe,
  tokenFor,
  until,
} from './rowcast.js'

const README = readFileSync(new URL('../../README.md', import.meta.url), 'utf8')
const [, LINES] = /```js\n(const todos = new Map\(\)\n[\s\S]*?)```/.exec(README)

for (const kind of CLIENTS.filter(({ rejoins }) => rejoins)) describe(kind.name, () => {
  let demo, relay, tables, client, options, todos
  const system = new Inbox()

  before(async () => {
    demo = await startDemo()
    tables = await Tables.of(demo)
    await tables.query('create table todos (id bigint primary key, owner uuid, title text)')
    await tables.query('alter table todos enable row level security')
    await tables.query('alter table todos replica identity full')
    await tables.query('create policy mine on todos using (owner = auth.uid())')
    await tables.query('grant select on todos to authenticated')
    const [{ pubname }] = await tables.query('select pubname from pg_publication')
    await tables.query(`alter publication ${pubname} add table todos`)
    await tables.query(
      `insert into todos select n, case when n % 2 = 0 then $1::uuid else $2::uuid end, 'todo ' || n
       from generate_series(1, 1200) n`,
      [ANN.user, BEN.user],
    )
    options = {
      port: await freePort(),
      slot: `snapshot_${Date.now()}`,
      secret: 'a secret of at least thirty-two bytes, for tests',
      settings: { ROWCAST_DATA: 'memory' },
    }
    relay = await startServe(demo, options)
    const token = tokenFor(relay, ANN)
    client = await connectClient(relay.url, relay.anon, token, { reconnectAfterMs: () => 100 }, kind)
    const run = new Function('supabase', `${LINES}\nreturn { todos, channel }`)
    const app = run(client)
    todos = app.todos
    app.channel.on('system', {}, system.push)
    await system.first(({ status }) => status === 'cursor', 'it has caught up')
  })

  after(async () => {
    if (client) await disconnect(client)
    await tables?.end()
    await relay?.stop()
    await demo?.stop()
  })

  const shown = () =>
    [...todos.values()].sort((one, other) => one.id - other.id)
      .map(({ id, title }) => ({ id, title }))
  const mine = async () => {
    const rows = await tables.query(
      'select id::int, title from todos where owner = $1 order by todos.id', [ANN.user])
    return rows.map(({ id, title }) => ({ id, title }))
  }
  const agrees = async (what) => {
    const expected = JSON.stringify(await mine())
    await until(() => JSON.stringify(shown()) === expected, what, 30_000)
  }

  test('the application has the rows of its user, in pages that say what they are', async () => {
    await agrees('the rows')
    const pages = system.items.filter(({ status }) => status === 'snapshot')
    assert.ok(pages.length >= 2, `${pages.length} pages`)
    assert.deepEqual(pages.map(({ page }) => page), pages.map((_, index) => index))
    assert.deepEqual(pages.map(({ last }) => last), pages.map((_, index) => index === pages.length - 1))
    assert.equal(pages.flatMap(({ rows }) => rows).length, 600)
    for (const page of pages) {
      const { extension, id, schema, table, errors, more, cursor, channel } = page
      assert.deepEqual(
        { extension, id, schema, table, errors, more, channel },
        { extension: 'rowcast', id: 1, schema: 'public', table: 'todos', errors: null, more: false, channel: 'todos' },
      )
      assert.match(cursor, /^[0-9a-f]{16}(-[0-9a-f]{16}){3}$/)
    }
  })

  test('changes go on from there', async () => {
    await tables.query('insert into todos values (2000, $1, $2), (2001, $3, $2)', [ANN.user, 'new', BEN.user])
    await tables.query(`update todos set title = 'done' where id < 10`)
    await tables.query('delete from todos where id between 20 and 29')
    await agrees('the changes')
  })

  test('a relay that has forgotten everything is asked for the rows again', async () => {
    await relay.kill()
    await tables.query(`update todos set title = 'while away' where id > 1000`)
    await tables.query('delete from todos where id = 2')
    await tables.query('insert into todos values (3000, $1, $2)', [ANN.user, 'while away'])
    relay = await startServe(demo, options)
    await agrees('what was missed')
    assert.ok(!system.items.some(({ status }) => status === 'resync'), 'nobody had to say so')
    await tables.query(`update todos set title = 'and on' where id = 3000`)
    await agrees('it goes on')
  })

  test('an emptied table is emptied in its place among the changes', async () => {
    const before = system.items.length
    await tables.query('truncate todos')
    await agrees('no row')
    await tables.query('insert into todos values (1, $1, $2)', [ANN.user, 'first of all'])
    await agrees('the table')
    const since = system.items.slice(before)
    assert.ok(!since.some(({ status }) => ['resync', 'snapshot'].includes(status)), 'no other way')
  })

  test('what cannot be had is refused by name', async () => {
    const refusals = new Inbox()
    const statuses = new Inbox()
    const channel = client.channel('too much')
      .on('postgres_changes', { event: '*', schema: 'public', table: 'todos', rowcast: { snapshot: { limit: 1e6 } } }, () => {})
      .on('system', {}, refusals.push)
      .subscribe((status) => statuses.push(status))
    const refusal = await refusals.first(({ status }) => status === 'error', 'a refusal')
    assert.match(refusal.message, /`limit` may be 10000 at most \(snapshot_max_rows\)/)
    await client.removeChannel(channel)
  })
})
