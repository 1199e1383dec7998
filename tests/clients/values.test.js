// What an application sees of values after the unmodified client has converted them.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'

import { ANN, Tables, connectClient, disconnect, startDemo, startServe, subscribe, tokenFor } from './rowcast.js'

/** A column's type, a value as SQL, and what the application gets. */
const KINDS = [
  ['bool', `true`, true],
  ['int4', `-7`, -7],
  ['numeric(8,2)', `1.5`, 1.5],
  ['numeric', `'NaN'`, 'NaN'],
  ['float8', `'Infinity'`, Infinity],
  ['float4', `'-Infinity'`, -Infinity],
  ['float8', `1e-7`, 1e-7],
  ['oid', `4294967295`, 4294967295],
  ['oid[]', `'{42}'`, ['42']],
  ['bytea', `'\\xdeadbeef'`, 'deadbeef'],
  ['bytea[]', `'{"\\\\xdead"}'`, ['\\xdead']],
  ['char(5)', `'ab'`, 'ab   '],
  ['bit(4)', `B'0101'`, '0101'],
  ['text', `'{"a"}'`, '{"a"}'],
  ['text[]', `'{"a,b",NULL,"NULL","{}"}'`, ['a,b', null, 'NULL', '{}']],
  ['int4[]', `'[0:1][1:2]={{1,2},{3,NULL}}'`, [[1, 2], [3, null]]],
  ['box[]', `'{(1,1),(0,0);(3,3),(2,2)}'`, ['(1,1),(0,0)', '(3,3),(2,2)']],
  ['timestamp', `'2024-02-29 12:34:56.5'`, '2024-02-29T12:34:56.5'],
  ['timestamptz', `'2024-02-29 12:34:56.5+02'`, '2024-02-29T10:34:56.5+00:00'],
  ['date', `'infinity'`, 'infinity'],
  ['int4range', `'[1,10]'`, '[1,11)'],
  ['json', `'{"a": 1, "a": [2]}'`, { a: [2] }],
  ['jsonb', `'"text"'`, 'text'],
  // The client reads a JSON text that is a string once more.
  ['jsonb', `'"123"'`, 123],
  ['kinds_mood', `'so so'`, 'so so'],
  ['kinds_moods', `'{fine,"so so"}'`, ['fine', 'so so']],
  ['kinds_pair', `'(1,"a ""b""\\n")'`, { 'left one': 1, 'right "one"': 'a "b"n' }],
  ['kinds_pair[]', `'{"(,)",NULL}'`, [{ 'left one': null, 'right "one"': null }, null]],
]

describe('values', () => {
  let demo, relay, tables, client

  before(async () => {
    demo = await startDemo()
    tables = await Tables.of(demo)
    await tables.query(`
      create type kinds_mood as enum ('fine', 'so so');
      create domain kinds_moods as kinds_mood[];
      create type kinds_pair as ("left one" int, "right ""one""" text);
      create table public.kinds (id int primary key, ${KINDS.map(([type], index) => `c${index} ${type}`)});
      grant select on public.kinds to authenticated;
      alter publication rowcast add table public.kinds`)
    relay = await startServe(demo)
    client = await connectClient(relay.url, relay.anon, tokenFor(relay, ANN))
  })

  after(async () => {
    await disconnect(...[client].filter(Boolean))
    await tables?.end()
    await relay?.stop()
    await demo?.stop()
  })

  test('the client makes of each kind what README says', async () => {
    const { changes } = await subscribe(client, 'kinds', [{ event: '*', schema: 'public', table: 'kinds' }])
    await tables.query(`insert into kinds values (1, ${KINDS.map(([, value]) => value)})`)
    const { new: row } = await changes.first(() => true, 'the row')
    for (const [index, [type, value, expected]] of KINDS.entries()) {
      assert.deepEqual(row[`c${index}`], expected, `${type} ${value}`)
    }
  })
})
