// Old rows that the relay keeps in memory, and has no more: with the unmodified client that asks for
// rows that leave its view. It is told to read again, and at its next join what it is not told.

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
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
  until,
} from './rowcast.js'

const ASKING = { event: '*', schema: 'public', table: 'kept', rowcast: { leave: true } }
const NOT_TOLD = /Rows of public\.kept that leave your view are not told: .* owner/

for (const kind of CLIENTS) describe(kind.name, () => {
  let demo, relay, tables, data, options
  const clients = []

  before(async () => {
    data = mkdtempSync(join(tmpdir(), 'rowcast-old-rows-'))
    demo = await startDemo()
    tables = await Tables.of(demo)
    await tables.query('create table kept (id bigint primary key, owner uuid not null, title text)')
    await tables.query('alter table kept enable row level security')
    await tables.query('create policy mine on kept to authenticated using (owner = auth.uid())')
    await tables.query('grant select on kept to authenticated')
    const [{ pubname }] = await tables.query('select pubname from pg_publication')
    await tables.query(`alter publication ${pubname} add table kept`)
    options = {
      port: await freePort(),
      slot: `old_rows_${Date.now()}`,
      secret: 'a secret of at least thirty-two bytes, for tests',
      settings: {
        ROWCAST_DATA: join(data, 'log'),
        ROWCAST_ADMIN_LISTEN: `127.0.0.1:${await freePort()}`,
        ROWCAST_OLD_ROWS: 'public.kept',
        ROWCAST_MAX_OLD_ROW_BYTES: '64KiB',
      },
    }
    relay = await startServe(demo, options)
  })

  after(async () => {
    await disconnect(...clients)
    await tables?.end()
    await relay?.stop()
    await demo?.stop()
    if (data) rmSync(data, { recursive: true })
  })

  async function connect() {
    const token = tokenFor(relay, ANN)
    const client = await connectClient(relay.url, relay.anon, token, { reconnectAfterMs: () => 100 }, kind)
    clients.push(client)
    return client
  }

  const picture = async () => (await fetch(`http://${options.settings.ROWCAST_ADMIN_LISTEN}/inspect/now.json`)).json()
  const mirrorIs = (state) =>
    until(async () => (await picture()).router?.old_rows[0]?.state === state, `old rows are ${state}`, 30_000)
  const insert = (id, person) => tables.query('insert into kept values ($1, $2, $3)', [id, person.user, 'a title'])
  const give = (id, person) => tables.query('update kept set owner = $1 where id = $2', [person.user, id])
  const isResync = ({ status }) => status === 'resync'

  if (kind.rejoins) {
    test('who was away while a row left, longer than the relay remembers, is told to read again', async () => {
      await mirrorIs('ready')
      const client = await connect()
      const [changes, system] = [new Inbox(), new Inbox()]
      const channel = client.channel('away')
      let cursor
      const goOnFrom = (since) => channel.updateJoinPayload({ rowcast: { cursor: true, since } })
      goOnFrom(undefined)
      channel
        .on('postgres_changes', ASKING, changes.push)
        .on('system', {}, (message) => {
          system.push(message)
          if (message.cursor) goOnFrom((cursor = message.cursor))
        })
        .subscribe()
      await system.first(({ status }) => status === 'cursor', 'a first cursor')
      await insert(1, ANN)
      await changes.first(({ eventType }) => eventType === 'INSERT', 'the row')
      const first = cursor
      await until(() => cursor !== first, 'a cursor behind the row')
      await client.realtime.disconnect()
      const before = (await picture()).changes_read
      await give(1, BEN)
      await until(async () => (await picture()).changes_read > before, 'the change is read')
      await relay.stop()
      relay = await startServe(demo, options)
      await mirrorIs('ready')
      client.realtime.connect()
      const resync = await system.first(isResync, 'a resync', 30_000)
      assert.deepEqual([resync.extension, resync.reason], ['rowcast', 'undecided'])
      assert.ok(!changes.items.some(({ eventType }) => eventType === 'DELETE'))
      await client.removeChannel(channel)
    })
  }

  test('when there is no room for old rows any more whoever relied on them is told, and so is who joins', async () => {
    await mirrorIs('ready')
    const client = await connect()
    const { changes, system } = await subscribe(client, 'board', [ASKING])
    await insert(11, ANN)
    await insert(12, ANN)
    await give(11, BEN)
    const left = await changes.first(({ eventType }) => eventType === 'DELETE', 'the row that leaves')
    assert.deepEqual(left.old, { id: 11 })
    assert.ok(!system.items.some(({ message }) => NOT_TOLD.test(message)), 'all is told')
    // More than max_old_row_bytes.
    await tables.query(`insert into kept select n, $1, 'a title' from generate_series(1001, 2000) n`, [BEN.user])
    const resync = await system.first(isResync, 'a resync', 30_000)
    assert.deepEqual([resync.extension, resync.reason], ['rowcast', 'undecided'])
    await mirrorIs('refused')
    const again = await subscribe(client, 'another board', [ASKING])
    await again.system.first(({ status, message }) => status === 'warning' && NOT_TOLD.test(message), 'what is not told')
    // Nothing of a row that cannot be judged, but the channels go on, the first once it has joined again.
    const isBack = (one) => system.items.indexOf(one) > system.items.indexOf(resync) && one.message === 'Subscribed to PostgreSQL'
    if (kind.rejoins) await system.first(isBack, 'the channel is back', 30_000)
    await give(12, BEN)
    await insert(13, ANN)
    for (const one of kind.rejoins ? [changes, again.changes] : [again.changes]) {
      await one.first(({ new: row }) => row.id === 13, 'the next row')
      assert.ok(!one.items.some(({ eventType, old }) => eventType === 'DELETE' && old.id === 12))
    }
  })
})
