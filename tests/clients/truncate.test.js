// TRUNCATE as a change, and whose a cursor is, with the unmodified client.

import assert from 'node:assert/strict'
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
  subscribe,
  tokenFor,
} from './rowcast.js'

for (const kind of CLIENTS) describe(kind.name, () => {
  let demo, relay, tables, client, options

  before(async () => {
    demo = await startDemo()
    tables = await Tables.of(demo)
    await tables.query('create table todos (id bigint primary key, owner uuid, title text)')
    await tables.query('create table tags (id bigint primary key, todo bigint references todos)')
    await tables.query('alter table todos enable row level security')
    await tables.query('create policy mine on todos to authenticated using (owner = auth.uid())')
    await tables.query('grant select on todos, tags to authenticated')
    const [{ pubname }] = await tables.query('select pubname from pg_publication')
    await tables.query(`alter publication ${pubname} add table todos, tags`)
    options = {
      port: await freePort(),
      slot: `truncate_${Date.now()}`,
      secret: 'a secret of at least thirty-two bytes, for tests',
      settings: { ROWCAST_DATA: 'memory' },
    }
    relay = await startServe(demo, options)
    client = await connect(ANN)
  })

  after(async () => {
    if (client) await disconnect(client)
    await tables?.end()
    await relay?.stop()
    await demo?.stop()
  })

  const connect = (person, claims) =>
    connectClient(relay.url, relay.anon, tokenFor(relay, person, claims), { reconnectAfterMs: () => 100 }, kind)
  const binding = (table, more = {}) => ({ event: '*', schema: 'public', table, rowcast: { truncate: true }, ...more })
  const brief = ({ eventType, table, new: row }) => [eventType, table, row.id].join(' ').trim()

  test('it reaches the callbacks of all bindings that ask, in its place, and the channel goes on', async () => {
    const { channel, changes, statuses, system } = await subscribe(client, 'emptied', [
      binding('todos'),
      binding('todos', { filter: 'id=gt.1000' }),
      binding('tags'),
    ])
    await tables.query('insert into todos values (1, $1, $2)', [ANN.user, 'one'])
    await tables.query('insert into tags values (1, 1)')
    // A row whose table is truncated before the catalog was read for it would be in doubt.
    await changes.count(2, ({ eventType }) => eventType === 'INSERT', 'the rows before it')
    await tables.query('truncate todos restart identity cascade')
    await tables.query('insert into todos values (2, $1, $2)', [ANN.user, 'two'])
    await changes.first(({ new: row }) => row.id === 2, 'the row behind it')
    const of = (index) => changes.items.filter(({ binding }) => binding === index).map(brief)
    assert.deepEqual(of(0), ['INSERT todos 1', 'TRUNCATE todos', 'INSERT todos 2'])
    assert.deepEqual(of(1), ['TRUNCATE todos'])
    assert.deepEqual(of(2), ['INSERT tags 1', 'TRUNCATE tags'])
    const truncate = changes.items.find(({ eventType }) => eventType === 'TRUNCATE')
    assert.deepEqual([truncate.new, truncate.old, truncate.errors], [{}, {}, null])
    assert.equal(truncate.schema, 'public')
    assert.ok(Date.parse(truncate.commit_timestamp) > 0)
    assert.deepEqual(statuses.items.map(({ status }) => status), ['SUBSCRIBED'])
    assert.ok(!system.items.some(({ status }) => status === 'resync'))
    await client.removeChannel(channel)
  })

  test('where it could not be handed on it is refused by name', async () => {
    const { channel, system } = await subscribe(
      client, 'inserts', [{ ...binding('todos'), event: 'INSERT' }], { refusals: true })
    const refusal = await system.first(({ status }) => status === 'error', 'a refusal')
    assert.match(refusal.message, /`rowcast\.truncate` is for bindings with the event `\*`/)
    await client.removeChannel(channel)
  })

  if (!kind.rejoins) return

  test('who does not ask is told to read again, and many are by turns', async () => {
    const channels = []
    for (let index = 0; index < 40; index += 1) {
      channels.push(await subscribe(client, `many ${index}`, [
        { event: '*', schema: 'public', table: 'todos' },
      ]))
    }
    await tables.query('truncate todos cascade')
    for (const { statuses, system } of channels) {
      const told = await system.first(({ status }) => status === 'resync', 'a resync')
      assert.equal(told.reason, 'truncated')
      await statuses.first(({ status }) => status === 'CHANNEL_ERROR', 'the end of the channel')
      await statuses.count(2, ({ status }) => status === 'SUBSCRIBED', 'it is back', 30_000)
    }
    await tables.query('insert into todos values (3, $1, $2)', [ANN.user, 'three'])
    for (const { changes } of channels) await changes.first(({ new: row }) => row.id === 3, 'a row')
    for (const { channel } of channels) await client.removeChannel(channel)
  })

  test('one that was missed comes in its place, and a cursor of somebody else is told', async () => {
    const listening = (topic, since, of = client) => {
      const channel = of.channel(topic)
      channel.updateJoinPayload({ rowcast: { cursor: true, since } })
      const heard = { channel, changes: new Inbox(), system: new Inbox() }
      channel
        .on('postgres_changes', binding('todos'), (change) => heard.changes.push(brief(change)))
        .on('system', {}, heard.system.push)
        .subscribe()
      return heard
    }
    const first = listening('away')
    const { cursor } = await first.system.first(({ status }) => status === 'cursor', 'a cursor')
    assert.match(cursor, /^[0-9a-f]{16}(-[0-9a-f]{16}){3}$/)
    await client.removeChannel(first.channel)
    await tables.query('insert into todos values (10, $1, $2)', [ANN.user, 'ten'])
    await tables.query('truncate todos cascade')
    await tables.query('insert into todos values (11, $1, $2)', [ANN.user, 'eleven'])
    // The same user with another token, on another socket.
    const again = await connect(ANN, { session_id: 'another' })
    const missed = listening('away', cursor, again)
    await missed.changes.first((change) => change === 'INSERT todos 11', 'the last row')
    assert.deepEqual(missed.changes.items, ['INSERT todos 10', 'TRUNCATE todos', 'INSERT todos 11'])
    const ben = await connect(BEN)
    const told = listening('away', cursor, ben)
    const resync = await told.system.first(({ status }) => status === 'resync', 'a resync')
    assert.equal(resync.reason, 'access_changed')
    assert.deepEqual(told.changes.items, [])
    await disconnect(again, ben)
  })
})
