// The unmodified @supabase/supabase-js against `rowcast serve`.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'

import WebSocket from 'ws'

import {
  ANN,
  BEN,
  CLIENTS,
  Inbox,
  Tables,
  about,
  connectClient,
  disconnect,
  freePort,
  listen,
  startDemo,
  startServe,
  subscribe,
  tokenFor,
  until,
  within,
} from './rowcast.js'

for (const kind of CLIENTS) describe(kind.name, () => {
  let demo, relay, tables
  const clients = []

  before(async () => {
    demo = await startDemo()
    relay = await startServe(demo)
    tables = await Tables.of(demo)
  })

  after(async () => {
    await disconnect(...clients)
    await tables?.end()
    await relay?.stop()
    await demo?.stop()
  })

  /** A client that acts as a person, ended with the suite. */
  async function as(person, realtime) {
    const token = tokenFor(relay, person)
    const client = await connectClient(relay.url, relay.anon, token, realtime, kind)
    clients.push(client)
    return client
  }

  test('inserts, updates and deletes have the shapes that applications read', async () => {
    const { changes } = await subscribe(await as(ANN), 'shapes')
    const id = await tables.insertTask(ANN, { title: 'Mow', events: '[{"text": "new"}]' })
    await tables.query(`update agent_tasks set status = 'failed', error = 'rain' where id = $1`, [id])
    await tables.query('delete from agent_tasks where id = $1', [id])
    await changes.count(3, about(id), 'insert, update, delete')

    const [insert, update, deletion] = changes.items.filter(about(id))
    assert.deepEqual(
      [insert, update, deletion].map((change) => change.eventType),
      ['INSERT', 'UPDATE', 'DELETE'],
    )
    for (const change of [insert, update, deletion]) {
      assert.equal(change.schema, 'public')
      assert.equal(change.table, 'agent_tasks')
      assert.equal(change.errors, null)
      assert.match(change.commit_timestamp, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
      assert.ok(Math.abs(Date.now() - Date.parse(change.commit_timestamp)) < 60_000)
    }
    assert.deepEqual(Object.keys(insert.new).sort(), [
      ...['agent_id', 'contact_id', 'created_at', 'error', 'events', 'id', 'organization_id'],
      ...['status', 'title', 'updated_at', 'user_id'],
    ])
    assert.equal(insert.new.title, 'Mow')
    assert.equal(insert.new.status, 'pending')
    assert.equal(insert.new.error, null)
    assert.deepEqual(insert.new.events, [{ text: 'new' }])
    assert.match(insert.new.created_at, /^\d{4}-\d\d-\d\dT[\d:.]+\+00:00$/)
    assert.deepEqual(insert.old, {})
    assert.equal(update.new.status, 'failed')
    assert.equal(update.new.error, 'rain')
    assert.equal(update.old.id, id)
    assert.deepEqual(deletion.new, {})
    assert.equal(deletion.old.id, id)
  })

  test('each filter lets through what it says, and commas mean AND', async () => {
    const [first, second] = ANN.agents
    const expected = [
      ['status=eq.pending', 'ab'],
      ['status=neq.pending', 'c'],
      ['created_at=lt.2040-01-01T00:00:00Z', 'a'],
      ['created_at=lte.2040-01-01T00:00:00Z', 'ab'],
      ['created_at=gt.2040-01-01T00:00:00Z', 'c'],
      ['created_at=gte.2040-01-01T00:00:00Z', 'bc'],
      [`agent_id=in.(${second})`, 'b'],
      [`agent_id=in.(${first},${second})`, 'abc'],
      [`status=eq.pending,agent_id=eq.${first}`, 'a'],
    ]
    const all = { event: '*', schema: 'public', table: 'agent_tasks' }
    const bindings = [all, ...expected.map(([filter]) => ({ ...all, filter }))]
    const { changes } = await subscribe(await as(ANN), 'filters', bindings)

    const ids = {
      a: await tables.insertTask(ANN, { agent_id: first, created_at: '2030-01-01T00:00:00Z' }),
      b: await tables.insertTask(ANN, { agent_id: second, created_at: '2040-01-01T00:00:00Z' }),
      c: await tables.insertTask(ANN, {
        agent_id: first,
        status: 'completed',
        created_at: '2050-01-01T00:00:00Z',
      }),
    }
    const fence = await tables.insertTask(ANN)
    await changes.first((change) => change.binding === 0 && about(fence)(change), 'the fence')

    for (const [index, [filter, names]] of expected.entries()) {
      const seen = Object.keys(ids).filter((name) =>
        changes.items.some((change) => change.binding === index + 1 && change.new.id === ids[name]),
      )
      assert.equal(seen.join(''), names, filter)
    }
  })

  test('an event name in a binding lets only that event through', async () => {
    const of = (event) => ({ event, schema: 'public', table: 'agent_tasks' })
    const { changes } = await subscribe(await as(ANN), 'events', [of('INSERT'), of('UPDATE'), of('DELETE')])
    const id = await tables.insertTask(ANN)
    await tables.query(`update agent_tasks set title = 'other' where id = $1`, [id])
    await tables.query('delete from agent_tasks where id = $1', [id])
    await changes.count(3, about(id), 'three changes')
    const seen = changes.items.filter(about(id)).map(({ binding, eventType }) => [binding, eventType])
    assert.deepEqual(seen, [
      [0, 'INSERT'],
      [1, 'UPDATE'],
      [2, 'DELETE'],
    ])
  })

  test('nobody hears of the other organisation, also not of its updates and deletes', async () => {
    const every = ['agent_tasks', 'drafts', 'follow_ups', 'agents', 'contacts'].map((table) => ({
      event: '*',
      schema: 'public',
      table,
    }))
    const ann = await subscribe(await as(ANN), 'isolation', every)
    const ben = await subscribe(await as(BEN), 'isolation', every)

    for (const person of [ANN, BEN]) {
      const id = await tables.insertTask(person)
      await tables.query(`update agent_tasks set status = 'in_progress' where id = $1`, [id])
      await tables.query('delete from agent_tasks where id = $1', [id])
      const draft = `insert into drafts (user_id, body) values ($1, 'secret') returning id`
      const [{ id: drafted }] = await tables.query(draft, [person.user])
      await tables.query(`update drafts set status = 'approved' where id = $1`, [drafted])
      await tables.query('delete from drafts where id = $1', [drafted])
      const agent = `update agents set name = name || '' where organization_id = $1`
      await tables.query(agent, [person.organization])
    }
    // Changes come in commit order: whoever has their fence has everything that was before it.
    const fences = { ann: await tables.insertTask(ANN), ben: await tables.insertTask(BEN) }
    await ann.changes.first(about(fences.ann), "Ann's fence")
    await ben.changes.first(about(fences.ben), "Ben's fence")

    for (const [heard, own, other] of [
      [ann, ANN, BEN],
      [ben, BEN, ANN],
    ]) {
      const text = JSON.stringify(heard.changes.items)
      assert.ok(text.includes(own.organization) && text.includes(own.user))
      assert.ok(!text.includes(other.organization), 'no row of the other organisation')
      assert.ok(!text.includes(other.user), 'no row of the other user')
      const deleted = heard.changes.items.filter(({ eventType }) => eventType === 'DELETE')
      assert.equal(deleted.length, 2, 'exactly the own deletes')
    }
  })

  test('a membership shows rows from its commit on, and hides them from the commit of its end', async () => {
    const client = await as(BEN)
    let heard = await subscribe(client, 'membership')
    // Of what is done to the table before nobody is told.
    await relay.printed(/the lookup is mirrored/, 30_000, () => relay.output + relay.errors)
    const everything = [heard.changes]
    // Whoever sees other rows than before is told to read again, and hears what comes when it is back.
    const readsAgain = async (times) => {
      const told = ({ reason }) => reason === 'access_changed'
      if (kind.rejoins) {
        await heard.system.count(times, told, 'the word to read again')
        const subscribed = ({ status }) => status === 'SUBSCRIBED'
        await heard.statuses.count(times + 1, subscribed, 'SUBSCRIBED again', 30_000)
      } else {
        await heard.system.first(told, 'the word to read again')
        heard = await subscribe(client, `membership ${times}`)
        everything.push(heard.changes)
      }
    }
    await tables.query('insert into org_members (organization_id, user_id) values ($1, $2)', [
      ANN.organization,
      BEN.user,
    ])
    await readsAgain(1)
    const during = await tables.insertTask(ANN)
    await heard.changes.first(about(during), 'a row of the new membership')
    await tables.query('delete from org_members where organization_id = $1 and user_id = $2', [
      ANN.organization,
      BEN.user,
    ])
    const afterwards = await tables.insertTask(ANN)
    await readsAgain(2)
    const fence = await tables.insertTask(BEN)
    await heard.changes.first(about(fence), 'the fence')
    const shown = everything.some((changes) => changes.items.some(about(afterwards)))
    assert.ok(!shown, 'not seen any more')
  })

  test('setAuth on a live socket changes whose rows come', async () => {
    const client = await as(ANN)
    const { changes, system } = await subscribe(client, 'refresh')
    const confirmed = ({ extension, status }) => extension === 'postgres_changes' && status === 'ok'
    await system.count(1, confirmed, 'the first confirmation')
    await client.realtime.setAuth(tokenFor(relay, BEN))
    await system.count(2, confirmed, 'the confirmation of the new token')

    const hidden = await tables.insertTask(ANN)
    const fence = await tables.insertTask(BEN)
    await changes.first(about(fence), "Ben's row")
    assert.ok(!changes.items.some(about(hidden)), "Ann's rows no longer come")
  })

  test('a token that expires on a live socket ends its channel with a sentence', async () => {
    const soon = Math.floor(Date.now() / 1000) + 3
    const token = tokenFor(relay, ANN, { exp: soon })
    const client = await connectClient(relay.url, relay.anon, token, {}, kind)
    clients.push(client)
    const { system, statuses } = await subscribe(client, 'expiry')
    const { message } = await system.first(({ status }) => status === 'error', 'the reason', 20_000)
    assert.match(message, /^Token has expired \d+ seconds ago$/)
    await statuses.first(({ status }) => status === 'CLOSED', 'CLOSED')
  })

  test('a client comes back by itself after the relay was killed and started again', async () => {
    const port = await freePort()
    const options = { port, secret: relay.secret, slot: 'test_restart' }
    const killed = await startServe(demo, options)
    const client = await connectClient(killed.url, killed.anon, tokenFor(killed, ANN), {}, kind)
    clients.push(client)
    const { changes, statuses } = await subscribe(client, 'restart')
    await killed.kill()
    await statuses.first(({ status }) => status === 'CHANNEL_ERROR', 'the loss noticed', 30_000)

    const again = await startServe(demo, options)
    if (kind.rejoins) {
      await statuses.count(2, ({ status }) => status === 'SUBSCRIBED', 'SUBSCRIBED again', 60_000)
      const id = await tables.insertTask(ANN)
      await changes.first(about(id), 'a change after the restart')
    } else {
      // Its socket comes back; its channels the application has to subscribe to anew.
      await until(() => client.realtime.isConnected(), 'the socket again', 60_000)
      const anew = await subscribe(client, 'restarted')
      const id = await tables.insertTask(ANN)
      await anew.changes.first(about(id), 'a change after the restart')
    }
    await disconnect(client)
    await again.stop()
  })

  test('join, leave, join at once, as React does in StrictMode', async () => {
    const client = await as(ANN)
    const left = listen(client, 'strict')
    const leaving = client.removeChannel(left.channel)
    const { changes } = await subscribe(client, 'strict')
    await leaving
    const id = await tables.insertTask(ANN)
    const fence = await tables.insertTask(ANN)
    await changes.first(about(fence), 'the fence')
    assert.equal(changes.items.filter(about(id)).length, 1, 'once, not twice')
    assert.equal(left.changes.items.length, 0, 'nothing for the channel that left')
  })

  test('the same topic on two sockets is two channels', async () => {
    const one = await subscribe(await as(ANN), 'shared')
    const leaver = await as(ANN)
    const two = await subscribe(leaver, 'shared')
    const first = await tables.insertTask(ANN)
    await one.changes.first(about(first), 'on the first')
    await two.changes.first(about(first), 'on the second')
    await leaver.removeChannel(two.channel)
    const second = await tables.insertTask(ANN)
    await one.changes.first(about(second), 'the first goes on')
    assert.ok(!two.changes.items.some(about(second)))
  })

  test('a second join of a topic on one socket replaces the first', async () => {
    const socket = new WebSocket(
      `${relay.url.replace('http', 'ws')}/realtime/v1/websocket?apikey=${relay.anon}&vsn=2.0.0`,
    )
    const frames = new Inbox()
    socket.on('message', (data) => frames.push(JSON.parse(data)))
    await within(10_000, new Promise((open) => socket.once('open', open)), 'the socket')
    const config = { postgres_changes: [{ event: '*', schema: 'public', table: 'agent_tasks' }] }
    const join = async (ref) => {
      const payload = { config, access_token: tokenFor(relay, ANN) }
      socket.send(JSON.stringify([ref, ref, 'realtime:twice', 'phx_join', payload]))
      const reply = ([, answered, , event]) => event === 'phx_reply' && answered === ref
      const [, , , , { status }] = await frames.first(reply, `the reply to join ${ref}`)
      assert.equal(status, 'ok')
    }
    await join('1')
    await join('2')
    await frames.first(([ref, , , event]) => event === 'phx_close' && ref === '1', 'the old one closed')
    const id = await tables.insertTask(ANN)
    const fence = await tables.insertTask(ANN)
    const of = (row) => (frame) => frame[3] === 'postgres_changes' && frame[4].data.record.id === row
    await frames.first(of(fence), 'the fence')
    assert.equal(frames.items.filter(of(id)).length, 1)
    socket.close()
  })

  test('removeChannel is answered with ok at once', async () => {
    const client = await as(ANN)
    const { channel } = await subscribe(client, 'leaving')
    // Unanswered, it would resolve after 10 s with "timed out".
    assert.equal(await within(3000, client.removeChannel(channel), 'removeChannel'), 'ok')
    assert.equal(client.getChannels().length, 0)
  })

  const refused = [
    [{ table: 'no_such_table' }, /^Unable to subscribe to changes with given parameters\./],
    [{ table: 'org_members' }, /^Unable to subscribe to changes with given parameters\./],
    [{ filter: 'nope=eq.1' }, /invalid column for filter nope/],
    [{ filter: 'status=foo.hey' }, /^Error parsing `filter` params: \["foo", "hey"\]$/],
    [{ filter: 'agent_id=eq.7' }, /invalid input syntax for type uuid: "7"/],
  ]
  for (const [binding, words] of refused) {
    test(`${JSON.stringify(binding)} is answered with a sentence and the channel stays`, async () => {
      const client = await as(ANN)
      const asked = { event: '*', schema: 'public', table: 'agent_tasks', ...binding }
      const { channel, system, statuses } = await subscribe(client, 'refused', [asked], {
        refusals: true,
      })
      const { message, extension } = await system.first(({ status }) => status === 'error', 'the reason')
      assert.equal(extension, 'postgres_changes')
      assert.match(message, words)
      assert.equal(channel.state, 'joined')
      assert.deepEqual(statuses.items.map(({ status }) => status), ['SUBSCRIBED'])
    })
  }

  test('SUBSCRIBED means subscribed, fifty times', async () => {
    const client = await as(ANN)
    for (let round = 0; round < 50; round += 1) {
      const { channel, changes } = await subscribe(client, `round-${round}`)
      const id = await tables.insertTask(ANN)
      await changes.first(about(id), `the insert of round ${round}`)
      assert.equal(await client.removeChannel(channel), 'ok')
    }
  })
})
