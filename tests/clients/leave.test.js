// Rows that leave a view, with the unmodified client: a board that takes a card off.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'

import {
  ANN,
  BEN,
  CLIENTS,
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

const LEFT = 'Rowcast: the row left this view, it was not deleted'

for (const kind of CLIENTS) describe(kind.name, () => {
  let demo, relay, tables
  const clients = []

  before(async () => {
    demo = await startDemo()
    tables = await Tables.of(demo)
    await tables.query('create table cards (id bigint primary key, owner uuid not null, status text not null, title text)')
    await tables.query('alter table cards enable row level security')
    await tables.query('alter table cards replica identity full')
    await tables.query('create policy mine on cards to authenticated using (owner = auth.uid())')
    await tables.query('create table notes (id bigint primary key, owner uuid)')
    await tables.query('alter table notes enable row level security')
    await tables.query('create policy mine on notes to authenticated using (owner = auth.uid())')
    await tables.query('grant select on cards, notes to authenticated')
    const [{ pubname }] = await tables.query('select pubname from pg_publication')
    await tables.query(`alter publication ${pubname} add table cards, notes`)
    relay = await startServe(demo, {
      port: await freePort(),
      slot: `leave_${Date.now()}`,
      secret: 'a secret of at least thirty-two bytes, for tests',
      settings: { ROWCAST_DATA: 'memory' },
    })
  })

  after(async () => {
    await disconnect(...clients)
    await tables?.end()
    await relay?.stop()
    await demo?.stop()
  })

  async function connect(person) {
    const client = await connectClient(relay.url, relay.anon, tokenFor(relay, person), {}, kind)
    clients.push(client)
    return client
  }

  /** What README's section on rows that leave does. */
  async function board(person) {
    const client = await connect(person)
    const cards = new Map()
    const heard = []
    const statuses = []
    client
      .channel(`board of ${person.user}`)
      .on('postgres_changes', {
        event: '*', schema: 'public', table: 'cards', filter: 'status=eq.open', rowcast: { leave: true },
      }, ({ eventType, new: card, old, errors }) => {
        heard.push([eventType, eventType === 'DELETE' ? old : card.id, errors])
        if (eventType === 'DELETE') cards.delete(old.id)
        else cards.set(card.id, card)
      })
      .on('system', {}, (message) => statuses.push(message))
      .subscribe()
    await until(() => statuses.some(({ message }) => message === 'Subscribed to PostgreSQL'), 'subscribed')
    return { cards, heard, shows: () => [...cards.keys()].sort().join() }
  }

  test('a board takes a card off that is done or given away, and nobody hears of a hidden one', async () => {
    const [ann, ben] = [await board(ANN), await board(BEN)]
    for (const id of [1, 2, 3, 4]) {
      await tables.query('insert into cards values ($1, $2, $3, $4)', [id, ANN.user, 'open', `card ${id}`])
    }
    await until(() => ann.shows() === '1,2,3,4', 'all cards')
    await tables.query("update cards set status = 'done' where id = 1")
    await tables.query('update cards set owner = $1 where id = 2', [BEN.user])
    await tables.query('delete from cards where id = 3')
    await tables.query("update cards set title = 'still here' where id = 4")
    await until(() => ann.cards.get(4).title === 'still here', 'the last change')
    assert.equal(ann.shows(), '4')
    const gone = ann.heard.filter(([type]) => type === 'DELETE')
    assert.deepEqual(gone.map(([, old]) => old.id), [1, 2, 3])
    assert.deepEqual(gone.map(([, , errors]) => errors), [[LEFT], [LEFT], null])
    // The key and nothing else of a card that is somebody else's now.
    assert.deepEqual(gone[1][1], { id: 2 })
    // It comes into view as an update; of what was Ann's Ben hears nothing.
    await until(() => ben.shows() === '2', 'the card that was given')
    assert.deepEqual(ben.heard, [['UPDATE', 2, null]])
    await tables.query("update cards set status = 'open' where id = 1")
    await until(() => ann.shows() === '1,4', 'a card that comes back')
  })

  test('who does not ask hears of no leave, and where it could not be handed on it is refused', async () => {
    const client = await connect(ANN)
    const binding = { event: '*', schema: 'public', table: 'cards', filter: 'id=gt.10' }
    const { changes, system } = await subscribe(client, 'silent', [binding])
    await tables.query('insert into cards values (11, $1, $2), (12, $1, $2)', [ANN.user, 'open'])
    await tables.query('update cards set owner = $1 where id = 11', [BEN.user])
    await tables.query('delete from cards where id = 12')
    await changes.first(({ eventType }) => eventType === 'DELETE', 'the delete')
    const types = changes.items.map(({ eventType, new: row, old }) => `${eventType} ${row.id ?? old.id}`)
    assert.deepEqual(types, ['INSERT 11', 'INSERT 12', 'DELETE 12'])
    assert.ok(!system.items.some(({ status }) => status === 'resync'))
    for (const event of ['INSERT', 'UPDATE']) {
      const wrong = await subscribe(
        client, event, [{ ...binding, event, rowcast: { leave: true } }], { refusals: true })
      const refusal = await wrong.system.first(({ status }) => status === 'error', 'a refusal')
      assert.match(refusal.message, /`rowcast\.leave` is for bindings with the event `\*` or `DELETE`/)
    }
  })

  test('a table whose old rows carry too little is named when somebody asks', async () => {
    const client = await connect(ANN)
    const asking = { event: '*', schema: 'public', table: 'notes', rowcast: { leave: true } }
    const { system } = await subscribe(client, 'unjudged', [asking])
    await system.first(
      ({ message }) => /Rows of public\.notes that leave your view are not told: .* owner/.test(message),
      'what is not told')
  })
})
