// The rows of docs/compatibility.md that concern postgres_changes, one test each, with the number of
// the row in its name. Tests without a number are in realtime.test.js.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { after, before, describe, test } from 'node:test'

import WebSocket from 'ws'

import {
  ANN,
  BEN,
  CLIENTS,
  Inbox,
  Raw,
  Tables,
  connectClient,
  disconnect,
  listen,
  mint,
  startDemo,
  startServe,
  subscribe,
  tokenFor,
  until,
  within,
} from './rowcast.js'

const SCHEMA = `
  create table plain (id bigint primary key, a text, b int, flag boolean, n numeric(30, 10));
  create table full_row (id bigint primary key, a text, b int);
  alter table full_row replica identity full;
  create table owned (id bigint primary key, owner uuid, title text);
  alter table owned enable row level security;
  alter table owned replica identity full;
  create policy own on owned for select to authenticated using (owner = auth.uid());
  create table columns (id bigint primary key, open text, secret text);
  create table keyless (a int, b text);
  create table keyless_full (a int, b text);
  alter table keyless_full replica identity full;
  create table hidden_key (id bigint primary key, a text);
  create table toast (id bigint primary key, a int, long text);
  alter table toast alter long set storage external;
  create table toast_full (id bigint primary key, a int, long text);
  alter table toast_full alter long set storage external;
  alter table toast_full replica identity full;
  create table typed (id bigint primary key, i2 int2, o oid, by bytea, f float8, nan float8, nu numeric(10, 2),
    c char(5), bi bit(4), flag boolean, ts timestamp, tz timestamptz, d date, iv interval, j json, jb jsonb,
    arr int[], texts text[], r int4range, ip inet, u uuid);
  create table emptied (id bigint primary key);
  create schema other;
  create table other.elsewhere (id bigint primary key);
  create schema "We.ird, T";
  create type "We.ird, T"."Weird Mood" as enum ('so so');
  create table "We.ird, T"."My Table" (id bigint primary key, "My Col" "We.ird, T"."Weird Mood");
  create table unpublished (id bigint primary key);
  create table late (id bigint primary key);
  grant usage on schema other, "We.ird, T" to anon, authenticated, service_role;
  grant select on plain, full_row, owned, keyless, keyless_full, toast, toast_full, typed, emptied,
    other.elsewhere, "We.ird, T"."My Table", unpublished, late to anon, authenticated, service_role;
  grant select (id, open) on columns to anon, authenticated;
  grant select (a) on hidden_key to anon, authenticated;
  alter publication rowcast add table plain, full_row, owned, columns, keyless, keyless_full,
    hidden_key, toast, toast_full, typed, emptied, other.elsewhere, "We.ird, T"."My Table";`

const on = (table, rest = {}) => ({ event: '*', schema: 'public', table, ...rest })
const config = (...bindings) => ({ postgres_changes: bindings })
const isError = ({ status }) => status === 'error'
const isSubscribed = ({ extension, status }) => extension === 'postgres_changes' && status === 'ok'

test('every row has a test or a sentence that says why not, and every test that is named exists', () => {
  const read = (path) => readFileSync(new URL(path, import.meta.url), 'utf8')
  const source = read('checklist.test.js')
  const rows = new Set()
  for (const [, numbers, , verdict] of read('../../docs/compatibility.md').matchAll(/^\| ([\d–, ]+) \| (.+?) \| (.+) \|$/gm)) {
    for (const range of numbers.split(', ')) {
      const [first, last = first] = range.split('–').map(Number)
      for (let number = first; number <= last; number += 1) rows.add(number)
    }
    const named = [...verdict.matchAll(/\brows? \d+(?: to \d+|(?:, \d+)* and \d+)?/g)].map(([name]) => name)
    for (const name of named) {
      // Rows 86 and 87 are made from a list.
      const [, number] = name.split(' ')
      assert.ok(source.includes(`${name}:`) || source.includes(`    [${number}, `), name)
    }
    assert.ok(named.length > 0 || /Not yet|realtime\.test\.js|`tests\//.test(verdict), verdict)
  }
  assert.deepEqual([...rows].sort((a, b) => a - b), Array.from({ length: 115 }, (_, at) => at + 1))
})

for (const kind of CLIENTS) describe(kind.name, () => {
  let demo, relay, tables
  const clients = []
  let row = 0

  before(async () => {
    demo = await startDemo()
    tables = await Tables.of(demo)
    await tables.query(SCHEMA)
    relay = await startServe(demo, {
      settings: { ROWCAST_API_KEYS: 'sb_publishable_x=anon', ROWCAST_MAX_JOINS_PER_SECOND: '1000' },
    })
  })

  after(async () => {
    await disconnect(...clients)
    await tables?.end()
    await relay?.stop()
    await demo?.stop()
  })

  async function as(token, realtime, key = relay.anon) {
    const client = await connectClient(relay.url, key, token, realtime, kind)
    clients.push(client)
    return client
  }

  const person = (who, realtime) => as(tokenFor(relay, who), realtime)
  const raw = (options) => Raw.open(relay, { vsn: kind.vsn, ...options })

  /** A transport that keeps what was sent. */
  function recording() {
    const sent = new Inbox()
    const sockets = []
    class Recording extends WebSocket {
      constructor(...parameters) {
        super(...parameters)
        sockets.push(this)
      }
      send(data, ...rest) {
        sent.push(data)
        super.send(data, ...rest)
      }
    }
    return { sent, sockets, transport: Recording }
  }

  /** Writes one row and returns its key. */
  async function insert(table, columns = {}) {
    const id = (row += 1)
    const names = ['id', ...Object.keys(columns)]
    const places = names.map((_, index) => `$${index + 1}`)
    const quoted = names.map((name) => `"${name}"`)
    await tables.query(`insert into ${table} (${quoted}) values (${places})`, [id, ...Object.values(columns)])
    return id
  }

  const of = (id, eventType) => (change) =>
    Number(change.new?.id ?? change.old?.id) === id && (!eventType || change.eventType === eventType)

  // The socket ----------------------------------------------------------------------------------

  test('row 1: /realtime/v1/websocket', async () => {
    const { sockets, transport } = recording()
    await subscribe(await person(ANN, { transport }), 'row-1', [on('plain')])
    assert.match(sockets[0].url, /\/realtime\/v1\/websocket\?/)
  })

  test('row 2: /socket/websocket', async () => {
    const client = new kind.library.RealtimeClient(`${relay.url.replace('http', 'ws')}/socket`, {
      params: { apikey: relay.anon },
      transport: WebSocket,
      vsn: kind.vsn,
    })
    const statuses = new Inbox()
    client.channel('row-2').subscribe(statuses.push)
    await statuses.first((status) => status === 'SUBSCRIBED', 'SUBSCRIBED')
    await client.disconnect()
  })

  test('rows 3 and 4: arrays under vsn 2.0.0, objects under 1.0.0', async () => {
    const { sent, sockets, transport } = recording()
    await subscribe(await person(ANN, { transport }), 'row-3', [on('plain')])
    assert.equal(new URL(sockets[0].url).searchParams.get('vsn'), kind.vsn)
    assert.equal(sent.items[0][0], kind.vsn === '2.0.0' ? '[' : '{')
  })

  test('row 5: vsn missing is version 1, a bad one is 403 without a body', async () => {
    const socket = await raw({ vsn: undefined })
    await socket.beat()
    for (const vsn of ['3.0.0', 'x', '2']) {
      assert.deepEqual(await Raw.refused(relay, `apikey=${relay.anon}&vsn=${vsn}`), [403, ''])
    }
  })

  test('row 6: no key is 401', async () => {
    assert.deepEqual(await Raw.refused(relay, `vsn=${kind.vsn}`), [401, 'API key is missing'])
  })

  test('row 7: a bad key is 401 with what is wrong with it', async () => {
    const past = Math.floor(Date.now() / 1000) - 60
    for (const [apikey, text] of [
      [mint(relay.secret, { role: 'anon', exp: past }), 'Token has expired'],
      [mint('another', { role: 'anon' }), 'Failed to validate JWT signature'],
      ['x.y', 'The token provided is not a valid JWT'],
      [mint(relay.secret, { role: 'anon', exp: undefined }), 'Fields `role` and `exp` are required in JWT'],
      ['eyJhbGciOiJub25lIn0.e30.', 'Failed to generate JWT signer, check your JWT secret or JWKS configuration'],
    ]) {
      assert.deepEqual(await Raw.refused(relay, `apikey=${apikey}&vsn=${kind.vsn}`), [401, text])
    }
    // A token without a role has default_role: our own way, see docs/compatibility.md.
    const roleless = await raw({ apikey: mint(relay.secret, {}) })
    await roleless.beat()
  })

  test('row 8: other parameters do not matter', async () => {
    await subscribe(await person(ANN, { params: { eventsPerSecond: 10 } }), 'row-8', [on('plain')])
  })

  test('row 9: x-api-key comes before apikey', async () => {
    const socket = await raw({ apikey: 'nonsense', headers: { 'x-api-key': relay.anon } })
    await socket.beat()
  })

  test('row 10: an opaque key stands for its role, and is no token of a join', async () => {
    const client = await as(null, {}, 'sb_publishable_x')
    const { changes } = await subscribe(client, 'row-10', [on('plain')])
    const id = await insert('plain')
    await changes.first(of(id), 'a change as anon')
    const socket = await raw({ apikey: 'sb_publishable_x' })
    const joined = await socket.join('1', 'realtime:row-10', config(on('plain')), {
      access_token: 'sb_publishable_another',
    })
    assert.equal(joined.status, 'ok')
  })

  test('row 11: a heartbeat is answered', async () => {
    const { sent, sockets, transport } = recording()
    const client = await person(ANN, { transport, heartbeatIntervalMs: 200 })
    const { statuses } = await subscribe(client, 'row-11', [on('plain')])
    const beats = () => sent.items.filter((frame) => String(frame).includes('"heartbeat"'))
    // Unanswered, the second would not be sent: the client would close the socket instead.
    await until(() => beats().length >= 4, 'four heartbeats')
    assert.equal(sockets.length, 1)
    assert.deepEqual(statuses.items.map(({ status }) => status), ['SUBSCRIBED'])
  })

  test('row 12: a server that does not answer heartbeats is left and found again', async () => {
    const silent = await startServe(demo)
    try {
      const { sockets, transport } = recording()
      const realtime = { transport, heartbeatIntervalMs: 300 }
      const client = await connectClient(silent.url, silent.anon, tokenFor(silent, ANN), realtime, kind)
      clients.push(client)
      const { statuses } = await subscribe(client, 'row-12', [on('plain')])
      await silent.pause()
      // The older client waits for the close of its socket, which takes half a minute.
      await statuses.first(({ status }) => status === 'CHANNEL_ERROR', 'the silence noticed', 60_000)
      silent.child.kill('SIGCONT')
      if (kind.rejoins) {
        await statuses.count(2, ({ status }) => status === 'SUBSCRIBED', 'SUBSCRIBED again', 30_000)
      }
      await until(() => sockets.length > 1 && client.realtime.isConnected(), 'another socket', 30_000)
      await disconnect(client)
    } finally {
      silent.child.kill('SIGCONT')
      await silent.stop()
    }
  })

  test('row 13: frames that are none are dropped and the socket lives', async () => {
    const socket = await raw()
    for (const text of ['{', '[]', '', '""', 'null', '[1,2,3,4]', '{"topic":"a"}']) {
      socket.socket.send(text)
    }
    socket.socket.send(Buffer.from([9, 255, 0]))
    await socket.beat()
  })

  test('row 14: a topic that is not joined is unmatched', async () => {
    const socket = await raw()
    for (const [topic, event] of [
      ['foo:bar', 'phx_join'],
      ['realtime:row-14', 'access_token'],
      ['realtime:row-14', 'presence'],
    ]) {
      const [join_ref, ref, , , payload] = await socket.ask('1', event, topic, event)
      assert.deepEqual([join_ref, ref], [null, event])
      assert.deepEqual(payload, { status: 'error', response: { reason: 'unmatched topic' } })
    }
  })

  test('row 15: a topic needs a name', async () => {
    const client = await person(ANN)
    const { statuses } = listen(client, '', [on('plain')])
    const { message } = await statuses.first(({ status }) => status === 'CHANNEL_ERROR', 'the refusal')
    assert.match(message, /TopicNameRequired: You must provide a topic name/)
    await client.removeAllChannels()
  })

  test('rows 16, 17 and 18: a join is answered with a list, whatever else its config says', async () => {
    const socket = await raw()
    const empty = { status: 'ok', response: { postgres_changes: [] } }
    const lenient = { broadcast: { self: 'true', ack: 5 }, presence: { enabled: 'FALSE', key: 1 }, private: 'false' }
    assert.deepEqual(await socket.join('1', 'realtime:row-16', {}), empty)
    assert.deepEqual(await socket.join('2', 'realtime:row-17', lenient), empty)
    assert.deepEqual(await socket.join('3', 'realtime:row-18', { postgres_changes: null, x: [{}] }), empty)
    const asked = { event: 'insert', table: 'plain', filter: 'b=gt.1', extra: 1.5 }
    assert.deepEqual(await socket.join('4', 'realtime:row-16-b', config(null, asked)), {
      status: 'ok',
      response: { postgres_changes: [{ id: 1, ...asked }] },
    })
    const { response } = await socket.join('5', 'realtime:row-18-b', { private: 'perhaps' })
    assert.match(response.reason, /^InvalidJoinPayload: /)
    const unknown = await socket.join('6', 'realtime:row-18-c', 7)
    assert.deepEqual(unknown, { status: 'error', response: { reason: 'Unknown Error on Channel' } })
  })

  test('row 19: a join without config stands, and is told that it subscribes to nothing', async () => {
    const socket = await raw()
    const [, , , , joined] = await socket.ask('1', '1', 'realtime:public:plain', 'phx_join', {})
    assert.deepEqual(joined, { status: 'ok', response: { postgres_changes: [] } })
    const { status, message } = await socket.system('realtime:public:plain')
    assert.equal(status, 'error')
    assert.match(message, /^A join without `config` subscribes to nothing/)
  })

  test('row 20: a second join of a topic is answered before the first is closed', async () => {
    const socket = await raw()
    await socket.join('1', 'realtime:row-20', config(on('plain')))
    await socket.join('2', 'realtime:row-20', config(on('plain')))
    const closed = await socket.frames.first(([, ref, , event]) => event === 'phx_close' && ref === '1', 'the close')
    const reply = socket.frames.items.findIndex(([, ref, , event]) => event === 'phx_reply' && ref === '2')
    assert.equal(socket.frames.items[reply + 1], closed)
    const id = await insert('plain')
    const change = ([, , , event, payload]) => event === 'postgres_changes' && payload.data.record.id === id
    await socket.frames.first(change, 'the change')
    await socket.beat()
    assert.equal(socket.frames.items.filter(change).length, 1)
  })

  test('row 21: removeChannel is ok at once', async () => {
    const client = await person(ANN)
    const { channel } = await subscribe(client, 'row-21', [on('plain')])
    assert.equal(await within(1000, client.removeChannel(channel), 'removeChannel'), 'ok')
    const socket = await raw()
    await socket.join('1', 'realtime:row-21', {})
    await socket.ask('1', '2', 'realtime:row-21', 'phx_leave')
    const closed = await socket.frames.first(([, , , event]) => event === 'phx_close', 'the close')
    assert.equal(closed[1], '1')
    assert.deepEqual(closed[4], {})
    assert.equal(socket.frames.items.at(-1), closed)
  })

  test('rows 22 and 23: an unknown topic can be left, and a late leave ends no newer join', async () => {
    const socket = await raw()
    const ok = { status: 'ok', response: {} }
    assert.deepEqual((await socket.ask('1', '1', 'realtime:never', 'phx_leave'))[4], ok)
    await socket.join('2', 'realtime:row-23', config(on('plain')))
    await socket.join('3', 'realtime:row-23', config(on('plain')))
    assert.deepEqual((await socket.ask('2', '4', 'realtime:row-23', 'phx_leave'))[4], ok)
    const id = await insert('plain')
    const change = ([, , , event, payload]) => event === 'postgres_changes' && payload.data.record.id === id
    await socket.frames.first(change, 'a change of the newer join')
  })

  test('row 24: messages with no join reference or an old one are taken', async () => {
    const socket = await raw()
    await socket.join('1', 'realtime:row-24', config(on('owned')))
    for (const [join_ref, who] of [[null, ANN], ['0', BEN]]) {
      socket.send(join_ref, 'x', 'realtime:row-24', 'access_token', { access_token: tokenFor(relay, who) })
      // Nobody else is shown them, and a row may come behind the answer to a heartbeat.
      const ids = []
      await until(async () => {
        ids.push(await insert('owned', { owner: who.user }))
        await socket.beat()
        return socket.frames.items.some(([, , , event, p]) => event === 'postgres_changes' && ids.includes(p.data.record.id))
      }, `a row of ${who.user}`)
    }
  })

  test('row 25: a closed channel is not joined again by itself', async () => {
    const { sent, transport } = recording()
    const exp = Math.floor(Date.now() / 1000) + 4
    const client = await as(tokenFor(relay, ANN, { exp }), { transport, heartbeatIntervalMs: 1000 })
    const { statuses } = await subscribe(client, 'row-25', [on('plain')])
    await statuses.first(({ status }) => status === 'CLOSED', 'CLOSED')
    const joins = () => sent.items.filter((frame) => String(frame).includes('"phx_join"')).length
    const beats = () => sent.items.filter((frame) => String(frame).includes('"heartbeat"')).length
    const [joined, before] = [joins(), beats()]
    // A client that would come back does so after a second. Without a channel it may close its
    // socket after twice the time of a heartbeat.
    await until(() => beats() > before + 2 || !client.realtime.isConnected(), 'some heartbeats')
    assert.equal(joins(), joined)
  })

  test('row 26: a broken channel is joined again by itself', async () => {
    const { statuses, system, changes } = await subscribe(await person(ANN), 'row-26', [on('emptied')])
    await tables.query('truncate emptied')
    const { extension, status, reason } = await system.first((s) => s.status === 'resync', 'the resync')
    assert.deepEqual([extension, status, reason], ['rowcast', 'resync', 'truncated'])
    await statuses.first(({ status }) => status === 'CHANNEL_ERROR', 'CHANNEL_ERROR')
    await statuses.count(2, ({ status }) => status === 'SUBSCRIBED', 'SUBSCRIBED again')
    const id = await insert('emptied')
    await changes.first(of(id), 'a change')
  })

  test('row 28: a join that is not answered in time is tried again', async () => {
    const slow = await startServe(demo)
    try {
      const client = await connectClient(slow.url, slow.anon, tokenFor(slow, ANN), {}, kind)
      clients.push(client)
      await subscribe(client, 'row-28-open', [on('plain')])
      await slow.pause()
      const statuses = new Inbox()
      client
        .channel('row-28')
        .on('postgres_changes', on('plain'), () => {})
        .subscribe((status) => statuses.push(status), 700)
      await statuses.first((status) => status === 'TIMED_OUT', 'TIMED_OUT')
      slow.child.kill('SIGCONT')
      await statuses.first((status) => status === 'SUBSCRIBED', 'SUBSCRIBED', 20_000)
      await disconnect(client)
    } finally {
      slow.child.kill('SIGCONT')
      await slow.stop()
    }
  })

  test('row 40: a frame that is too large closes with 1009', async () => {
    const socket = await raw()
    socket.socket.on('error', () => {})
    socket.socket.send('x'.repeat(3 * 1024 * 1024))
    assert.equal(await within(10_000, socket.closed, 'the close'), 1009)
  })

  test('rows 42 to 46: a private channel is refused with a sentence', async () => {
    const client = await person(ANN)
    const statuses = new Inbox()
    client
      .channel('row-43', { config: { private: true } })
      .subscribe((status, error) => statuses.push({ status, message: error?.message }))
    const { message } = await statuses.first(({ status }) => status === 'CHANNEL_ERROR', 'the refusal')
    assert.match(message, /PrivateChannelsNotSupported: private channels are not supported yet/)
    await client.removeAllChannels()
  })

  test('rows 29 and 74: who merely configures broadcast and presence is served all the same', async () => {
    const client = await person(ANN)
    const heard = { changes: new Inbox(), statuses: new Inbox() }
    const channel = client
      .channel('row-29', { config: { broadcast: { self: true, ack: true }, presence: { key: 'me', enabled: true } } })
      .on('presence', { event: 'sync' }, () => {})
      .on('broadcast', { event: 'x' }, () => {})
      .on('postgres_changes', on('plain'), heard.changes.push)
      .subscribe((status) => heard.statuses.push(status))
    await heard.statuses.first((status) => status === 'SUBSCRIBED', 'SUBSCRIBED')
    const id = await insert('plain')
    await heard.changes.first(of(id), 'a change')
    assert.equal(await within(3000, channel.track({ here: 1 }), 'track'), 'error')
    assert.equal(await within(3000, channel.send({ type: 'broadcast', event: 'x', payload: {} }), 'send'), 'error')
    const again = await insert('plain')
    await heard.changes.first(of(again), 'a change after both')
  })

  // Tokens --------------------------------------------------------------------------------------

  test('row 49: a new token keeps the channel and counts from then on', async () => {
    const client = await person(ANN)
    const { changes, statuses, system } = await subscribe(client, 'row-49', [on('owned')])
    await client.realtime.setAuth(tokenFor(relay, BEN))
    await system.count(2, isSubscribed, 'the second confirmation')
    const hidden = await insert('owned', { owner: ANN.user })
    const shown = await insert('owned', { owner: BEN.user })
    await changes.first(of(shown), "Ben's row")
    assert.ok(!changes.items.some(of(hidden)))
    assert.deepEqual(statuses.items.map(({ status }) => status), ['SUBSCRIBED'])
  })

  test('row 50: a token whose role may not read says so, and the channel stays without changes', async () => {
    const socket = await raw()
    await socket.join('1', 'realtime:row-50', config(on('columns')), { access_token: tokenFor(relay, ANN) })
    await socket.system('realtime:row-50', isSubscribed)
    const nobody = mint(relay.secret, { role: 'nobody_at_all' })
    socket.send('1', '2', 'realtime:row-50', 'access_token', { access_token: nobody })
    const { message } = await socket.system('realtime:row-50', isError)
    assert.match(message, /role "nobody_at_all" does not exist$/)
    await insert('columns', { open: 'x' })
    await socket.beat()
    assert.ok(!socket.frames.items.some(([, , , event]) => event === 'postgres_changes'))
  })

  test('row 51: a bad token ends its channel with the exact text, and no other', async () => {
    const socket = await raw()
    await socket.join('1', 'realtime:row-51', config(on('plain')))
    await socket.join('2', 'realtime:row-51-b', config(on('plain')))
    socket.send('1', '3', 'realtime:row-51', 'access_token', { access_token: 'x' })
    assert.deepEqual(await socket.system('realtime:row-51', isError), {
      extension: 'system',
      status: 'error',
      message: 'The token provided is not a valid JWT',
      channel: 'row-51',
    })
    await socket.frames.first(([, ref, , event]) => event === 'phx_close' && ref === '1', 'the close')
    const id = await insert('plain')
    const change = ([, , topic, event, payload]) =>
      topic === 'realtime:row-51-b' && event === 'postgres_changes' && payload.data.record.id === id
    await socket.frames.first(change, 'a change of the other')
  })

  test('row 52: the same token, a placeholder and null change nothing', async () => {
    const socket = await raw()
    const token = tokenFor(relay, ANN)
    await socket.join('1', 'realtime:row-52', config(on('plain')), { access_token: token })
    await socket.system('realtime:row-52', isSubscribed)
    const heard = socket.frames.items.length
    for (const access_token of [token, 'sb_publishable_x', null]) {
      socket.send('1', '2', 'realtime:row-52', 'access_token', { access_token })
    }
    await socket.beat()
    assert.equal(socket.frames.items.length, heard + 1, 'nothing but the heartbeat')
  })

  test('row 53: a channel ends when its token does', async () => {
    const exp = Math.floor(Date.now() / 1000) + 2
    const { statuses, system } = await subscribe(await as(tokenFor(relay, ANN, { exp })), 'row-53', [on('plain')])
    const { message } = await system.first(isError, 'the reason')
    assert.match(message, /^Token has expired \d seconds ago$/)
    await statuses.first(({ status }) => status === 'CLOSED', 'CLOSED')
  })

  test('row 54: two channels of one socket are two users', async () => {
    const socket = await raw()
    const people = { 'realtime:ann': ANN, 'realtime:ben': BEN }
    for (const [topic, who] of Object.entries(people)) {
      await socket.join(topic, topic, config(on('owned')), { access_token: tokenFor(relay, who) })
    }
    const ids = {}
    for (const [topic, who] of Object.entries(people)) ids[topic] = await insert('owned', { owner: who.user })
    for (const topic of Object.keys(people)) {
      const changes = ([, , of, event]) => of === topic && event === 'postgres_changes'
      await socket.frames.first((f) => changes(f) && f[4].data.record.id === ids[topic], 'the own row')
      assert.equal(socket.frames.items.filter(changes).length, 1, 'and no other')
    }
  })

  // Bindings ------------------------------------------------------------------------------------

  test('row 82: five bindings come back as they were asked for', async () => {
    const bindings = [
      on('plain', { event: 'INSERT', filter: 'id=in.( 1, 2 )' }),
      on('plain', { event: 'UPDATE', filter: ' b=gt.1 , b=lt.9 ' }),
      on('plain', { event: '*', filter: 'a=eq."with, comma"' }),
      on('owned', { event: 'DELETE' }),
      { event: '*', schema: 'public' },
    ]
    const { statuses, system } = await subscribe(await person(ANN), 'row-82', bindings)
    await system.first(isSubscribed, 'the confirmation')
    // A mismatch would have the client say CHANNEL_ERROR and leave.
    assert.deepEqual(statuses.items.map(({ status }) => status), ['SUBSCRIBED'])
    assert.ok(!system.items.some(isError), JSON.stringify(system.items))
  })

  test('row 83: each callback fires for its own binding only', async () => {
    const bindings = ['b=eq.1', 'b=eq.2', 'b=gt.0'].map((filter) => on('plain', { filter }))
    const { changes } = await subscribe(await person(ANN), 'row-83', bindings)
    const [one, two] = [await insert('plain', { b: 1 }), await insert('plain', { b: 2 })]
    await changes.count(4, () => true, 'four callbacks')
    await insert('plain', { b: 3 }).then((fence) => changes.first(of(fence), 'the fence'))
    const heard = changes.items.map((change) => [Number(change.new.id), change.binding]).slice(0, 4)
    assert.deepEqual(heard.sort(), [[one, 0], [one, 2], [two, 1], [two, 2]].sort())
  })

  test('rows 84 and 99: inserts, updates and deletes, with and without the whole old row', async () => {
    const socket = await raw()
    await socket.join('1', 'realtime:row-84', config(on('plain'), on('full_row')))
    const data = async (table, type, id) => {
      const is = ([, , , event, { data } = {}]) =>
        event === 'postgres_changes' && data.table === table && data.type === type && (data.record ?? data.old_record).id === id
      return (await socket.frames.first(is, `${type} of ${table}`))[4].data
    }
    for (const [table, old, deleted] of [
      ['plain', (id) => ({ id }), (id) => ({ id })],
      ['full_row', (id) => ({ id, a: 'x', b: 1 }), (id) => ({ id, a: 'y', b: 1 })],
    ]) {
      const id = await insert(table, { a: 'x', b: 1 })
      await tables.query(`update ${table} set a = 'y' where id = $1`, [id])
      await tables.query(`delete from ${table} where id = $1`, [id])
      const [inserted, updated, gone] = [
        await data(table, 'INSERT', id),
        await data(table, 'UPDATE', id),
        await data(table, 'DELETE', id),
      ]
      for (const { schema, errors, commit_timestamp, columns } of [inserted, updated, gone]) {
        assert.deepEqual([schema, errors], ['public', null])
        assert.match(commit_timestamp, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
        assert.deepEqual(columns[0], { name: 'id', type: 'int8' })
      }
      assert.equal(inserted.record.a, 'x')
      assert.ok(!('old_record' in inserted))
      assert.equal(updated.record.a, 'y')
      assert.deepEqual(updated.old_record, old(id))
      assert.deepEqual(gone.old_record, deleted(id))
      assert.ok(!('record' in gone))
    }
  })

  test('row 85: Subscribed to PostgreSQL', async () => {
    const { system } = await subscribe(await person(ANN), 'row-85', [on('plain')])
    const first = await system.first(() => true, 'a system message', 8000)
    assert.deepEqual(
      [first.extension, first.status, first.message, first.channel],
      ['postgres_changes', 'ok', 'Subscribed to PostgreSQL', 'row-85'],
    )
  })

  const given = (table, filters = '') =>
    `[event: *, schema: public, table: ${table}, filters: [${filters}], select: nil]`
  const unable = 'Unable to subscribe to changes with given parameters.'
  const wrong = `${unable} An exception happened so please check your connect parameters:`
  for (const [number, binding, message] of [
    [86, on('unpublished'), `${unable} Please check Realtime is enabled for the given connect parameters: ${given('unpublished')}`],
    [87, on('plain', { filter: 'nope=eq.1' }), `${wrong} ${given('plain', '{"nope", "eq", "1", false}')}. Exception: ERROR P0001 (raise_exception) invalid column for filter nope`],
    [87, on('plain', { filter: 'b=foo.hey' }), 'Error parsing `filter` params: ["foo", "hey"]'],
    [87, on('plain', { filter: 'undefined' }), 'Error parsing `filter` params: ["undefined"]'],
    [87, on('plain', { filter: 'b=eq.x' }), `${wrong} ${given('plain', '{"b", "eq", "x", false}')}. Exception: ERROR 22P02 (invalid_text_representation) invalid input syntax for type integer: "x"`],
    [87, { event: '*' }, 'No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: %{"event" => "*"}'],
  ]) {
    test(`row ${number}: ${JSON.stringify(binding)} is refused in Supabase's words and errs alone`, async () => {
      const client = await person(ANN)
      const { channel, system, changes } = await subscribe(client, 'row-86', [on('plain'), binding], { refusals: true })
      const error = await system.first(isError, 'the refusal')
      assert.equal(error.message, message)
      assert.equal(error.extension, 'postgres_changes')
      assert.equal(error.binding.id, 2)
      await system.first(isSubscribed, 'the other binding in force')
      assert.equal(channel.state, 'joined')
      const id = await insert('plain')
      await changes.first(of(id), 'a change of the other binding')
    })
  }

  test('row 88: all schemas, and all tables of one', async () => {
    const bindings = [{ event: '*', schema: '*' }, { event: '*', schema: 'other' }, { event: '*', schema: '*', table: 'plain' }]
    const { changes } = await subscribe(await person(ANN), 'row-88', bindings)
    const there = await insert('other.elsewhere')
    const here = await insert('plain')
    await changes.count(4, (change) => of(there)(change) || of(here)(change), 'four callbacks')
    const heard = (id) => changes.items.filter(of(id)).map(({ binding }) => binding).sort()
    assert.deepEqual([heard(there), heard(here)], [[0, 1], [0, 2]])
  })

  test('rows 89 and 91: each operator, negated too, for inserts, updates and deletes; NULL', async () => {
    // Row x is ('foo', 1), row y is ('Bar', 5), row z is (null, null).
    const expected = {
      'b=eq.1': 'x', 'b=neq.1': 'y', 'b=lt.5': 'x', 'b=lte.5': 'xy', 'b=gt.1': 'y', 'b=gte.1': 'xy',
      'b=in.(1,7)': 'x', 'a=like.f%': 'x', 'a=ilike.F%': 'x', 'a=is.null': 'z', 'a=match.^f': 'x',
      'a=imatch.^F': 'x', 'b=isdistinct.1': 'yz',
      'b=not.eq.1': 'y', 'b=not.neq.1': 'x', 'b=not.lt.5': 'y', 'b=not.lte.1': 'y', 'b=not.gt.1': 'x',
      'b=not.gte.5': 'x', 'b=not.in.(1,7)': 'y', 'a=not.like.f%': 'y', 'a=not.ilike.F%': 'y',
      'a=not.is.null': 'xy', 'a=not.match.^f': 'y', 'a=not.imatch.^F': 'y', 'b=not.isdistinct.1': 'x',
    }
    const filters = Object.keys(expected)
    const bindings = [on('full_row'), ...filters.map((filter) => on('full_row', { filter }))]
    const { changes, system } = await subscribe(await person(ANN), 'row-89', bindings, { refusals: true })
    const ids = {
      x: await insert('full_row', { a: 'foo', b: 1 }),
      y: await insert('full_row', { a: 'Bar', b: 5 }),
      z: await insert('full_row'),
    }
    const own = Object.values(ids)
    await tables.query('update full_row set a = a where id = any($1)', [own])
    await tables.query('delete from full_row where id = any($1)', [own])
    const fence = await insert('full_row')
    await changes.first((change) => change.binding === 0 && of(fence)(change), 'the fence', 20_000)
    assert.ok(!system.items.some(isError), JSON.stringify(system.items.filter(isError)))
    for (const eventType of ['INSERT', 'UPDATE', 'DELETE']) {
      for (const [index, filter] of filters.entries()) {
        const seen = Object.keys(ids).filter((name) =>
          changes.items.some((change) => change.binding === index + 1 && of(ids[name], eventType)(change)),
        )
        assert.equal(seen.join(''), expected[filter], `${eventType} ${filter}`)
      }
    }
  })

  test("row 90: commas mean AND, and the client's own builder quotes what is none", async () => {
    const { postgresChangesFilter } = CLIENTS[0].library
    const filters = [
      postgresChangesFilter().eq('a', 'one, (two)').gt('b', 1),
      postgresChangesFilter().match('a', '^z{1,3}$').not('b', 'is', null),
      postgresChangesFilter().in('a', ['one, (two)', ' " ']),
    ].map((filter) => (kind.library.postgresChangesFilter ? filter : filter.build()))
    const { changes } = await subscribe(await person(ANN), 'row-90', [
      on('plain'),
      ...filters.map((filter) => on('plain', { filter })),
    ])
    const ids = [
      await insert('plain', { a: 'one, (two)', b: 2 }),
      await insert('plain', { a: 'one, (two)', b: 1 }),
      await insert('plain', { a: 'zz', b: 1 }),
      await insert('plain', { a: 'zzzz', b: 1 }),
      await insert('plain', { a: ' " ', b: 9 }),
    ]
    const fence = await insert('plain')
    await changes.first(of(fence), 'the fence')
    const heard = ids.map((id) => changes.items.filter(of(id)).map(({ binding }) => binding))
    assert.deepEqual(heard, [[0, 1, 3], [0, 3], [0, 2], [0], [0, 3]])
  })

  test('row 92: a hundred values in a list, and no more', async () => {
    const list = (length) => `b=in.(${Array.from({ length }, (_, at) => at + 1000)})`
    const bindings = [100, 101].map((length) => on('plain', { filter: list(length) }))
    const { changes, system } = await subscribe(await person(ANN), 'row-92', bindings, { refusals: true })
    const { message, binding } = await system.first(isError, 'the refusal')
    assert.match(message, /too many values for `in` filter\. Maximum 100/)
    assert.equal(binding.id, 2)
    const id = await insert('plain', { b: 1099 })
    await changes.first(of(id), 'a change of the list of a hundred')
  })

  test('row 93: a selection shows its columns and the key, in rows, old rows and columns', async () => {
    const socket = await raw()
    const binding = on('full_row', { select: ['b'], filter: 'a=eq.row 93' })
    const { response } = await socket.join('1', 'realtime:row-93', config(binding, on('full_row', { filter: 'a=eq.row 93' })))
    assert.deepEqual(response.postgres_changes[0], { id: 1, ...binding })
    const id = await insert('full_row', { a: 'row 93', b: 1 })
    await tables.query('update full_row set b = 2 where id = $1', [id])
    const change = (ids, type) => ([, , , event, payload]) =>
      event === 'postgres_changes' && payload.ids.join() === ids && payload.data.type === type
    const { data } = (await socket.frames.first(change('1', 'UPDATE'), 'the update'))[4]
    assert.deepEqual([data.record, data.old_record], [{ id, b: 2 }, { id, b: 1 }])
    assert.deepEqual(data.columns.map(({ name }) => name), ['id', 'b'])
    // Another selection of the same channel is another message.
    const whole = (await socket.frames.first(change('2', 'UPDATE'), 'the whole update'))[4].data
    assert.deepEqual(whole.record, { id, a: 'row 93', b: 2 })
  })

  test('row 94: a selection of all tables, of a text and of no column is refused', async () => {
    const { system } = await subscribe(
      await person(ANN),
      'row-94',
      [
        { event: '*', schema: '*', select: ['a'] },
        on('plain', { select: 'a' }),
        on('columns', { select: ['id', 'secret'] }),
      ],
      { refusals: true },
    )
    await system.count(3, isError, 'three refusals')
    const messages = new Map(system.items.filter(isError).map(({ binding, message }) => [binding.id, message]))
    assert.equal(
      messages.get(1),
      'Column selection is not supported for wildcard subscriptions. Provide an explicit schema and table name.',
    )
    assert.equal(
      messages.get(2),
      'Error parsing `select` params: expected a list of column name strings, e.g. select: ["col1", "col2"]',
    )
    assert.match(messages.get(3), /invalid column for select secret$/)
  })

  // Who sees what -------------------------------------------------------------------------------

  test('row 95: only the owner hears of a row', async () => {
    const ann = await subscribe(await person(ANN), 'row-95', [on('owned')])
    const ben = await subscribe(await person(BEN), 'row-95', [on('owned')])
    const ids = { ann: await insert('owned', { owner: ANN.user }), ben: await insert('owned', { owner: BEN.user }) }
    await tables.query(`update owned set title = 'x' where id = any($1)`, [Object.values(ids)])
    const fences = { ann: await insert('owned', { owner: ANN.user }), ben: await insert('owned', { owner: BEN.user }) }
    await ann.changes.first(of(fences.ann), 'the fence')
    await ben.changes.first(of(fences.ben), 'the fence')
    assert.equal(ann.changes.items.filter(of(ids.ann)).length, 2)
    assert.equal(ben.changes.items.filter(of(ids.ben)).length, 2)
    assert.ok(!ann.changes.items.some(of(ids.ben)) && !ben.changes.items.some(of(ids.ann)))
  })

  test('row 96: service_role sees all', async () => {
    const { changes } = await subscribe(await as(mint(relay.secret, { role: 'service_role' })), 'row-96', [on('owned')])
    for (const { user } of [ANN, BEN]) {
      const id = await insert('owned', { owner: user })
      await changes.first(of(id), 'the row')
    }
  })

  test('row 97: a delete goes to who could see the row, whole under identity full, and to nobody else', async () => {
    const ann = await subscribe(await person(ANN), 'row-97', [on('owned')])
    const ben = await subscribe(await person(BEN), 'row-97', [on('owned')])
    const id = await insert('owned', { owner: ANN.user, title: 'gone' })
    await tables.query('delete from owned where id = $1', [id])
    const { old } = await ann.changes.first(of(id, 'DELETE'), 'the delete')
    assert.deepEqual(old, { id, owner: ANN.user, title: 'gone' })
    const fence = await insert('owned', { owner: BEN.user })
    await ben.changes.first(of(fence), 'the fence')
    assert.ok(!ben.changes.items.some(of(id)))
  })

  test('row 98: without policies a delete carries the whole old row under identity full', async () => {
    const { changes } = await subscribe(await person(ANN), 'row-98', [on('full_row', { event: 'DELETE', filter: 'b=eq.98' })])
    const id = await insert('full_row', { a: 'x', b: 98 })
    await tables.query('delete from full_row where id = $1', [id])
    const { old } = await changes.first(of(id, 'DELETE'), 'the delete')
    assert.deepEqual(old, { id, a: 'x', b: 98 })
  })

  test('row 100: columns that the role may not read are not there', async () => {
    const socket = await raw()
    await socket.join('1', 'realtime:row-100', config(on('columns')), { access_token: tokenFor(relay, ANN) })
    const id = await insert('columns', { open: 'x', secret: 'not yours' })
    const { data } = (await socket.frames.first(([, , , event]) => event === 'postgres_changes', 'the change'))[4]
    assert.deepEqual(data.record, { id, open: 'x' })
    assert.deepEqual(data.columns.map(({ name }) => name), ['id', 'open'])
    assert.ok(!socket.texts.items.some((text) => text.includes('not yours')))
  })

  test('row 101: who may not read the key gets the columns that it may', async () => {
    const socket = await raw()
    await socket.join('1', 'realtime:row-101', config(on('hidden_key')), { access_token: tokenFor(relay, ANN) })
    await insert('hidden_key', { a: 'x' })
    const { data } = (await socket.frames.first(([, , , event]) => event === 'postgres_changes', 'the change'))[4]
    assert.deepEqual([data.record, data.errors], [{ a: 'x' }, null])
  })

  test('row 102: tables without a key are served', async () => {
    const socket = await raw()
    await socket.join('1', 'realtime:row-102', config(on('keyless'), on('keyless_full')))
    await tables.query(`insert into keyless values (1, 'x')`)
    await tables.query(`insert into keyless_full values (1, 'x')`)
    await tables.query(`delete from keyless_full`)
    const change = (table, type) => async () => {
      const is = ([, , , event, { data } = {}]) => event === 'postgres_changes' && data.table === table && data.type === type
      return (await socket.frames.first(is, `${type} of ${table}`))[4].data
    }
    const inserted = await change('keyless', 'INSERT')()
    assert.deepEqual([inserted.record, inserted.errors], [{ a: 1, b: 'x' }, null])
    const deleted = await change('keyless_full', 'DELETE')()
    assert.deepEqual([deleted.old_record, deleted.errors], [{ a: 1, b: 'x' }, null])
  })

  test('row 103: of a row that is too large the small values come, with an error that says so', async () => {
    const { changes } = await subscribe(await person(ANN), 'row-103', [on('plain')])
    const id = await insert('plain', { a: 'x'.repeat(1_100_000), b: 1 })
    const { new: record, errors } = await changes.first(of(id), 'the change')
    assert.deepEqual(errors, ['Error 413: Payload Too Large'])
    assert.equal(record.b, 1)
    assert.ok(!('a' in record))
  })

  test('row 104: an untouched value that is stored elsewhere is absent and named, or filled', async () => {
    const socket = await raw()
    await socket.join('1', 'realtime:row-104', config(on('toast', { event: 'UPDATE' }), on('toast_full', { event: 'UPDATE' })))
    const long = 'x'.repeat(10_000)
    for (const table of ['toast', 'toast_full']) {
      const id = await insert(table, { a: 1, long })
      await tables.query(`update ${table} set a = 2 where id = $1`, [id])
      const is = ([, , , event, { data } = {}]) => event === 'postgres_changes' && data.table === table
      const { data } = (await socket.frames.first(is, `the update of ${table}`))[4]
      assert.deepEqual(data.columns.map(({ name }) => name), ['id', 'a', 'long'])
      if (table === 'toast') {
        assert.deepEqual(data.record, { id, a: 2 })
        assert.deepEqual(data.errors, ['Error 206: Partial Content, not carried by the stream: long'])
      } else {
        assert.deepEqual([data.record, data.errors], [{ id, a: 2, long }, null])
      }
    }
  })

  test('row 105: values of many types', async () => {
    const socket = await raw()
    await socket.join('1', 'realtime:row-105', config(on('typed')))
    const id = (row += 1)
    await tables.query(`insert into typed values (${id}, 7, 42, '\\xdead', 1.5, 'NaN', 1.5, 'abc', '0101', true,
      '2024-02-29 12:34:56.123456', '2024-02-29 12:34:56.5+02', '2024-02-29', '1 year 2 mons', '{"a" : [1, null]}',
      '"123"', '{1,null,3}', '{"a b",c}', '[1,10)', '10.0.0.1', '3fa85f64-5717-4562-b3fc-2c963f66afa6')`)
    const { data } = (await socket.frames.first(([, , , event]) => event === 'postgres_changes', 'the change'))[4]
    assert.deepEqual(data.record, {
      id, i2: 7, o: '42', by: 'dead', f: 1.5, nan: 'NaN', nu: 1.5, c: 'abc  ', bi: '0101', flag: true,
      ts: '2024-02-29T12:34:56.123456', tz: '2024-02-29T10:34:56.5+00:00', d: '2024-02-29', iv: '1 year 2 mons',
      j: { a: [1, null] }, jb: '123', arr: [1, null, 3], texts: ['a b', 'c'], r: '[1,10)', ip: '10.0.0.1',
      u: '3fa85f64-5717-4562-b3fc-2c963f66afa6',
    })
    assert.ok(socket.texts.items.some((text) => text.includes('"nu":1.50')), 'with its scale')
    assert.deepEqual(data.columns.map(({ type }) => type), [
      ...['int8', 'int2', 'oid', 'bytea', 'float8', 'float8', 'numeric', 'bpchar', 'bit', 'bool', 'timestamp'],
      ...['timestamptz', 'date', 'interval', 'json', 'jsonb', '_int4', '_text', 'int4range', 'inet', 'uuid'],
    ])
  })

  test('row 106: numbers keep their digits on the wire', async () => {
    const socket = await raw()
    await socket.join('1', 'realtime:row-106', config(on('plain')))
    await tables.query(`insert into plain (id, n) values (9007199254740993, 12345678901234567890.1234567890)`)
    await socket.texts.first((text) => text.includes('"id":9007199254740993'), 'the key')
    const text = await socket.texts.first((text) => text.includes('12345678901234567890.1234567890'), 'the number')
    assert.ok(text.includes('"n":12345678901234567890.1234567890'))
  })

  test('row 107: odd names are names', async () => {
    const binding = { event: '*', schema: 'We.ird, T', table: 'My Table', filter: 'My Col=eq.so so' }
    const { changes } = await subscribe(await person(ANN), 'row-107', [binding])
    const id = await insert('"We.ird, T"."My Table"', { 'My Col': 'so so' })
    const change = await changes.first(of(id), 'the change')
    assert.deepEqual([change.schema, change.table, change.new['My Col']], ['We.ird, T', 'My Table', 'so so'])
    const socket = await raw()
    await socket.join('1', 'realtime:row-107', config(binding))
    await insert('"We.ird, T"."My Table"', { 'My Col': 'so so' })
    const { data } = (await socket.frames.first(([, , , event]) => event === 'postgres_changes', 'the change'))[4]
    assert.equal(data.columns[1].type, 'Weird Mood')
  })

  test('row 108: a table that is published later is picked up, and said', async () => {
    const wide = await subscribe(await person(ANN), 'row-108', [{ event: '*', schema: 'public' }])
    const named = await subscribe(await person(ANN), 'row-108-b', [on('late')], { refusals: true })
    await named.system.first(isError, 'not published yet')
    await wide.system.count(1, isSubscribed, 'the first confirmation')
    await tables.query('alter publication rowcast add table late')
    try {
      await wide.system.count(2, isSubscribed, 'the confirmation of more tables')
      await named.system.first(isSubscribed, 'the confirmation of the named table')
      const id = await insert('late')
      await wide.changes.first(of(id), 'a change for all tables')
      await named.changes.first(of(id), 'a change for the named one')
    } finally {
      await tables.query('alter publication rowcast drop table late')
    }
  })

  test('row 109: who waits for the subscription is refused where it cannot be', async () => {
    const socket = await raw()
    const wait = { postgres_changes_options: { wait: true, timeout: 15000 } }
    const good = await socket.join('1', 'realtime:row-109', { ...config(on('plain')), ...wait })
    assert.equal(good.status, 'ok')
    const id = await insert('plain')
    const change = ([, , , event, payload]) => event === 'postgres_changes' && payload.data.record.id === id
    await socket.frames.first(change, 'a change')
    const bad = await socket.join('2', 'realtime:row-109-b', { ...config(on('plain'), on('unpublished')), ...wait })
    assert.deepEqual(bad, {
      status: 'error',
      response: {
        reason: `RealtimeDisabledForConfiguration: ${unable} Please check Realtime is enabled for the given connect parameters: ${given('unpublished')}`,
      },
    })
  })

  // The server ----------------------------------------------------------------------------------

  test('row 112: one channel too many is refused and the others stay', async () => {
    const client = await person(ANN)
    const hundred = await Promise.all(
      Array.from({ length: 100 }, (_, at) => subscribe(client, `row-112-${at}`, [on('plain')])),
    )
    const { statuses } = listen(client, 'row-112-more', [on('plain')])
    const { message } = await statuses.first(({ status }) => status === 'CHANNEL_ERROR', 'the refusal')
    assert.match(message, /ChannelRateLimitReached: Too many channels/)
    const id = await insert('plain')
    await Promise.all(hundred.map(({ changes }) => changes.first(of(id), 'a change on each')))
    await disconnect(client)
  })

  test('rows 63 and 113: ping and health, also from web pages', async () => {
    const ping = await fetch(`${relay.url}/realtime/v1/api/ping`, { headers: { origin: 'https://app.example' } })
    assert.deepEqual([ping.status, await ping.json()], [200, { message: 'Success' }])
    assert.equal(ping.headers.get('access-control-allow-origin'), '*')
    const preflight = await fetch(`${relay.url}/realtime/v1/api/ping`, {
      method: 'OPTIONS',
      headers: { origin: 'https://app.example', 'access-control-request-headers': 'apikey' },
    })
    assert.deepEqual([preflight.status, preflight.headers.get('access-control-allow-headers')], [204, 'apikey'])
    const health = await fetch(`${relay.url}/healthz`)
    assert.deepEqual([health.status, await health.text()], [200, 'ok'])
  })

  test('row 114: fifty channels, of which one is denied', async () => {
    const client = await person(ANN)
    const denied = listen(client, 'row-114-denied', [on('unpublished', { filter: 'x' })])
    const started = Date.now()
    const refused = new Inbox()
    client
      .channel('row-114-private', { config: { private: true } })
      .subscribe((status, error) => refused.push({ status, message: error?.message }))
    const others = Array.from({ length: 48 }, (_, at) => subscribe(client, `row-114-${at}`, [on('plain')]))
    const heard = await Promise.all(others)
    await refused.first(({ status }) => status === 'CHANNEL_ERROR', 'the refusal')
    await denied.system.first(isError, 'the sentence')
    const id = await insert('plain')
    await Promise.all(heard.map(({ changes }) => changes.first(of(id), 'a change on each')))
    // Supabase holds the socket up for five seconds with each refusal.
    assert.ok(Date.now() - started < 5000, `${Date.now() - started} ms`)
    await disconnect(client)
  })

  test('row 115: a server that stops says so and closes with 1012', async () => {
    const stopping = await startServe(demo)
    const socket = await Raw.open(stopping, { vsn: kind.vsn })
    await socket.join('1', 'realtime:row-115', config(on('plain')))
    await socket.system('realtime:row-115', isSubscribed)
    await stopping.stop()
    assert.deepEqual(await socket.system('realtime:row-115', ({ extension }) => extension === 'system'), {
      extension: 'system',
      status: 'ok',
      message: 'Server requested disconnect',
    })
    assert.equal(await within(10_000, socket.closed, 'the close'), 1012)
  })
})
