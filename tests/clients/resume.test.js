// What the README tells applications to do about interruptions, with the unmodified client.

import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'

import {
  ANN,
  CLIENTS,
  Inbox,
  Tables,
  connectClient,
  disconnect,
  freePort,
  startDemo,
  startServe,
  tokenFor,
} from './rowcast.js'

const README = readFileSync(new URL('../../README.md', import.meta.url), 'utf8')
const [, LINES] = /```js\n(const channel = supabase\.channel\('todos'\)\n[\s\S]*?)```/.exec(README)

test('the lines are about ten', () => {
  assert.ok(LINES.trim().split('\n').length <= 12, LINES)
})

for (const kind of CLIENTS.filter(({ rejoins }) => rejoins)) describe(kind.name, () => {
  let demo, relay, tables, data, client, options
  const [changes, reloads, system] = [new Inbox(), new Inbox(), new Inbox()]
  let last = 0

  before(async () => {
    data = mkdtempSync(join(tmpdir(), 'rowcast-resume-'))
    demo = await startDemo()
    tables = await Tables.of(demo)
    await tables.query('create table todos (id bigint primary key, owner uuid, title text)')
    await tables.query('alter table todos enable row level security')
    await tables.query('create policy mine on todos using (owner = auth.uid())')
    await tables.query('grant select on todos to authenticated')
    const [{ pubname }] = await tables.query('select pubname from pg_publication')
    await tables.query(`alter publication ${pubname} add table todos`)
    options = {
      port: await freePort(),
      slot: `resume_${Date.now()}`,
      secret: 'a secret of at least thirty-two bytes, for tests',
      settings: { ROWCAST_DATA: join(data, 'log') },
    }
    relay = await startServe(demo, options)
    const token = tokenFor(relay, ANN)
    client = await connectClient(relay.url, relay.anon, token, { reconnectAfterMs: () => 100 }, kind)
    const run = new Function('supabase', 'apply', 'reload', `${LINES}\nreturn channel`)
    const channel = run(client, changes.push, () => reloads.push({ at: changes.items.length }))
    channel.on('system', {}, system.push)
    await system.first(({ status }) => status === 'cursor', 'a first cursor')
  })

  after(async () => {
    if (client) await disconnect(client)
    await tables?.end()
    await relay?.stop()
    await demo?.stop()
    rmSync(data, { recursive: true, force: true })
  })

  const write = async (rows) => {
    for (let row = 0; row < rows; row += 1) {
      last += 1
      await tables.query('insert into todos values ($1, $2, $3)', [last, ANN.user, `todo ${last}`])
    }
  }
  const arrived = () =>
    changes.first((change) => change.new.id === last, `todo ${last}`, 30_000)
  const ids = () => changes.items.map((change) => change.new.id)
  const all = () => Array.from({ length: last }, (_, index) => index + 1)

  test('rows that are written while the relay is stopped come once it runs, each once', async () => {
    await write(5)
    await arrived()
    for (let round = 0; round < 2; round += 1) {
      await relay.stop()
      await write(20)
      relay = await startServe(demo, options)
      await arrived()
      await write(3)
      await arrived()
      assert.deepEqual(ids(), all())
    }
    assert.deepEqual(reloads.items, [], 'nothing was to be read again')
  })

  test('after a crash nothing is missing, whatever comes twice', async () => {
    const { cursor: before } = system.items.findLast(({ status }) => status === 'cursor')
    await write(10)
    await arrived()
    await system.first((one) => one.status === 'cursor' && one.cursor > before, 'a later cursor')
    const known = changes.items.length
    await relay.kill()
    await write(20)
    relay = await startServe(demo, options)
    await arrived()
    assert.deepEqual(ids().slice(0, known), all().slice(0, known))
    assert.deepEqual([...new Set(ids())], all())
    assert.deepEqual(reloads.items, [])
  })

  test('who missed a change of the policies is told to read again, once', async () => {
    await relay.stop()
    await write(5)
    await tables.query('alter policy mine on todos using (owner = auth.uid() and id > 0)')
    relay = await startServe(demo, options)
    const resync = await system.first(({ status }) => status === 'resync', 'a resync', 30_000)
    assert.equal(resync.reason, 'access_changed')
    assert.equal(resync.extension, 'rowcast')
    await reloads.count(1, () => true, 'the application reads again')
    const before = changes.items.length
    // The channel is back by itself.
    await system.first((one) => system.items.indexOf(one) > system.items.indexOf(resync) && one.status === 'cursor', 'it goes on')
    await write(3)
    await arrived()
    assert.deepEqual(ids().slice(before), all().slice(-3))
    assert.equal(reloads.items.length, 1)
  })
})
