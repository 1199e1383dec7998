// `rowcast demo` as a person meets it: what it prints, what its page may ask, how it ends.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { fileURLToPath } from 'node:url'
import { after, before, describe, test } from 'node:test'

import {
  ANN,
  BEN,
  Inbox,
  Rowcast,
  Tables,
  about,
  connectClient,
  disconnect,
  listens,
  startDemo,
  subscribe,
  within,
} from './rowcast.js'

/** A request with exactly these headers: fetch would not let a test choose Host. */
function ask(url, { method = 'GET', headers = {}, body } = {}) {
  const answer = new Promise((resolve, reject) => {
    const sent = request(url, { method, headers }, (response) => {
      let text = ''
      response.setEncoding('utf8').on('data', (part) => (text += part))
      response.on('end', () => resolve({ status: response.statusCode, headers: response.headers, text }))
    })
    sent.once('error', reject)
    sent.end(body)
  })
  return within(10_000, answer, `${method} ${url}`)
}

describe('the demo', () => {
  let demo, tables

  before(async () => {
    demo = await startDemo()
    tables = await Tables.of(demo)
  })

  after(async () => {
    await tables?.end()
    await demo?.stop()
  })

  test('its snippet runs as pasted', async () => {
    // Inside this directory, so that Node finds the packages as it would after `npm install`.
    const directory = mkdtempSync(fileURLToPath(new URL('.snippet-', import.meta.url)))
    writeFileSync(`${directory}/snippet.mjs`, demo.snippet)
    const child = spawn(process.execPath, ['snippet.mjs'], { cwd: directory })
    const lines = new Inbox()
    const take = (text) => text.split('\n').filter(Boolean).forEach(lines.push)
    child.stdout.setEncoding('utf8').on('data', take)
    child.stderr.setEncoding('utf8').on('data', take)
    try {
      await lines.first((line) => line.startsWith('SUBSCRIBED'), 'SUBSCRIBED', 20_000)
      await tables.insertTask(BEN, { title: 'not for Ann' })
      await tables.insertTask(ANN, { title: 'for Ann' })
      await lines.first((line) => line === 'INSERT for Ann pending', 'the insert')
      assert.ok(!lines.items.some((line) => line.includes('not for Ann')))
    } finally {
      child.kill()
      rmSync(directory, { recursive: true })
    }
  })

  test('its tokens work with the unmodified client', async () => {
    const client = await connectClient(demo.url, demo.anon, demo.tokens.ben)
    const { changes } = await subscribe(client, 'tokens')
    const id = await tables.insertTask(BEN)
    await changes.first(about(id), 'the insert')
    await disconnect(client)
  })

  test('a write answers with the SQL that ran, and stays within the organisation', async () => {
    const write = (body) =>
      ask(`${demo.url}/demo/write`, {
        method: 'POST',
        headers: { origin: demo.url, 'content-type': 'application/json' },
        body: JSON.stringify(body),
      })
    const inserted = await write({ user: 'ann', action: 'insert' })
    assert.equal(inserted.status, 200, inserted.text)
    const ran = JSON.parse(inserted.text)
    assert.match(ran.sql, /^insert into public\.agent_tasks/)
    assert.ok(ran.parameters.includes(ANN.organization))
    const [row] = await tables.query('select organization_id from agent_tasks where id = $1', [ran.id])
    assert.equal(row.organization_id, ANN.organization)

    const foreign = await write({ user: 'ben', action: 'delete', id: ran.id })
    assert.equal(foreign.status, 409, 'Ben cannot delete it')
    assert.equal((await write({ user: 'ann', action: 'advance', id: ran.id })).status, 200)
    assert.equal((await write({ user: 'ann', action: 'delete', id: ran.id })).status, 200)
    assert.equal((await write({ user: 'ann', action: 'delete', id: "' or true --" })).status, 400)
    assert.equal((await write({ user: 'eve', action: 'insert' })).status, 404)
    assert.ok((await write({ user: 'ann', action: 'truncate' })).status >= 400)
    assert.equal((await write({ user: 'x'.repeat(4096), action: 'insert' })).status, 413)
  })

  test('its endpoints answer to its own page only', async () => {
    const { host, port } = new URL(demo.url)
    const body = JSON.stringify({ user: 'ann', action: 'insert' })
    const json = { 'content-type': 'application/json' }
    const write = `${demo.url}/demo/write`
    const post = async (headers) => (await ask(write, { method: 'POST', headers, body })).status
    const [{ count: before }] = await tables.query('select count(*) from agent_tasks')

    assert.equal(await post({ ...json, host: 'evil.example', origin: 'http://evil.example' }), 403)
    assert.equal(await post({ ...json, host, origin: 'http://evil.example' }), 403)
    assert.equal(await post({ ...json, host, origin: 'null' }), 403)
    assert.equal(await post({ ...json, host }), 403)
    assert.equal(await post({ 'content-type': 'text/plain', host, origin: demo.url }), 415)
    for (const path of ['/demo/config.json', '/demo/rows?user=ann', '/demo/sql', '/']) {
      const rebound = { headers: { host: `evil.example:${port}` } }
      assert.equal((await ask(demo.url + path, rebound)).status, 403, path)
    }
    const [{ count: afterwards }] = await tables.query('select count(*) from agent_tasks')
    assert.equal(afterwards, before, 'nothing was written')

    const { headers } = await ask(`${demo.url}/`)
    assert.match(headers['content-security-policy'], /default-src 'self'/)
  })

  test('rows are read under the policies of the user', async () => {
    const rows = async (user) => (await ask(`${demo.url}/demo/rows?user=${user}`)).text
    const [ann, ben] = [await rows('ann'), await rows('ben')]
    assert.ok(ann.includes(ANN.organization) && !ann.includes(BEN.organization))
    assert.ok(ben.includes(BEN.organization) && !ben.includes(ANN.organization))
  })

  test('an address that is taken is named, and so is the way out', async () => {
    const second = new Rowcast(['demo', '--listen', new URL(demo.url).host])
    const { code } = await within(60_000, second.ended, 'the end of the second')
    assert.notEqual(code, 0)
    assert.match(second.errors, /--listen/)
  })
})

test('Ctrl-C ends everything, while it works', async () => {
  const demo = await startDemo('--pace', '20')
  const client = await connectClient(demo.url, demo.anon, demo.tokens.ann)
  const { changes } = await subscribe(client, 'working')
  await changes.count(5, () => true, "five of the worker's changes", 30_000)
  await disconnect(client)
  const { hostname, port } = new URL(demo.database)
  await demo.stop()
  assert.equal(await listens(hostname, port), false, 'PostgreSQL has ended')
})
