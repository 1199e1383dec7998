// The page of the admin port in a real browser: what it shows moves with what happens, and names that
// somebody chose badly stay names.

import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { after, before, describe, test } from 'node:test'

import { chromium } from 'playwright-core'

import { ANN, Tables, connectClient, disconnect, freePort, startDemo, startServe, subscribe, tokenFor, until } from './rowcast.js'

const CHROMIUM =
  process.env.CHROMIUM ??
  ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(existsSync)

const FLAGS = [
  ...['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'],
  ...['--disable-background-networking', '--disable-component-update', '--disable-sync'],
]

const HOSTILE = '<img src=x onerror="window.harmed=1">'
const quoted = `"${HOSTILE.replaceAll('"', '""')}"`
const SECRET_VALUE = 'a value that belongs to nobody else'

describe('the page of the admin port', () => {
  let demo, relay, tables, client, heard, browser, page, admin
  const complaints = []

  before(async () => {
    assert.ok(CHROMIUM, 'Chromium is needed: apt-get install chromium, or set CHROMIUM')
    demo = await startDemo()
    tables = await Tables.of(demo)
    const [{ pubname }] = await tables.query('select pubname from pg_publication order by pubname limit 1')
    await tables.query(`create table public.${quoted} (id int primary key, person uuid not null, body text)`)
    await tables.query(`alter table public.${quoted} enable row level security`)
    await tables.query(`grant select on public.${quoted} to authenticated`)
    await tables.query(
      `create policy mine on public.${quoted} for select to authenticated using (person = auth.uid())`,
    )
    await tables.query(`alter publication "${pubname}" add table only public.${quoted}`)
    admin = `http://127.0.0.1:${await freePort()}`
    relay = await startServe(demo, {
      settings: { ROWCAST_ADMIN_LISTEN: new URL(admin).host, ROWCAST_PUBLICATION: pubname },
    })
    client = await connectClient(relay.url, relay.anon, tokenFor(relay, ANN))
    heard = await subscribe(client, 'hostile', [{ event: '*', schema: 'public', table: HOSTILE }])
    browser = await chromium.launch({ executablePath: CHROMIUM, args: FLAGS })
  })

  after(async () => {
    await browser?.close()
    if (client) await disconnect(client)
    await relay?.kill()
    await tables?.end()
    await demo?.stop()
  })

  /** A page that complains of everything that should not happen. */
  async function open(colorScheme) {
    const context = await browser.newContext({ viewport: { width: 1280, height: 1000 }, colorScheme })
    page = await context.newPage()
    page.setDefaultTimeout(20_000)
    page.on('pageerror', (error) => complaints.push(String(error)))
    page.on('console', (message) => message.type() === 'error' && complaints.push(message.text()))
    page.on('request', (request) => {
      if (!request.url().startsWith(`${admin}/inspect`)) complaints.push(request.url())
    })
    await page.goto(`${admin}/inspect`)
    await page.locator('#state', { hasText: 'streaming' }).waitFor()
    return context
  }

  /** Whether a picture is not a flat line. */
  async function hasMoved(picture) {
    const points = () => page.locator(`#${picture} polyline`).getAttribute('points')
    const heights = async () => new Set((await points()).split(' ').map((point) => point.split(',')[1]))
    await until(async () => (await heights()).size > 1, `the picture of ${picture} moves`)
  }

  const line = () => page.locator('#tables tr', { hasText: HOSTILE })
  const changes = async () => Number(await line().locator('td').nth(5).textContent())
  const write = (id) =>
    tables.query(`insert into public.${quoted} values ($1, $2, $3)`, [id, ANN.user, SECRET_VALUE])

  test('numbers move when rows are written', async () => {
    const context = await open('dark')
    await line().waitFor()
    const [, role, decided, subscribers, audience] = await line().locator('td').allTextContents()
    assert.deepEqual([role, decided, subscribers, audience], ['authenticated', 'compiled', '1', '1'])
    assert.equal(await page.locator('#subscriptions b').textContent(), '1')
    assert.equal(await page.locator('#connections b').textContent(), '1')
    const before = await changes()
    for (let id = 1; id <= 5; id += 1) await write(id)
    await heard.changes.count(5, ({ eventType }) => eventType === 'INSERT', 'the rows')
    await until(async () => (await changes()) === before + 5, 'five more changes')
    for (const picture of ['read', 'delivered']) await hasMoved(picture)
    const all = await page.locator('#charts .chart').evaluateAll((cards) =>
      cards.map((card) => [card.id, card.querySelector('b').textContent, card.querySelector('polyline').getAttribute('points')]),
    )
    assert.deepEqual(
      all.map(([id]) => id).sort(),
      ['behind', 'connections', 'delivered', 'hidden-rate', 'lag', 'questions', 'read', 'subscriptions'],
    )
    for (const [id, value, points] of all) {
      assert.match(value, /\d/, `${id} says ${value}`)
      assert.ok(points && !points.includes('NaN'), `${id} is drawn: ${points}`)
    }
    await context.close()
  })

  test('a hidden change shows with its reason, and the table’s name is only a name', async () => {
    const context = await open('light')
    await line().waitFor()
    // The replica identity carries the key only, and the policy reads more.
    await tables.query(`delete from public.${quoted} where id = 1`)
    const hidden = page.locator('#hidden tr', { hasText: 'delete_without_identity' })
    await hidden.waitFor()
    await hasMoved('hidden-rate')
    const cells = await hidden.locator('td').allTextContents()
    assert.deepEqual(cells.slice(1), [`public.${HOSTILE}`, 'DELETE', 'authenticated', 'delete_without_identity', '1'])
    assert.equal(await page.locator('#tables img, #hidden img, #findings img').count(), 0)
    assert.equal(await page.evaluate('window.harmed'), undefined)
    await context.close()
  })

  test('it says what rowcast doctor finds', async () => {
    const context = await open('light')
    const found = page.locator('#findings li', { hasText: 'identity_too_little' })
    await found.first().waitFor({ timeout: 60_000 })
    const mends = page.locator('#findings code', { hasText: `alter table public.${quoted} replica identity using index ` })
    assert.equal(await mends.count(), 1)
    assert.equal(await page.locator('#findings img').count(), 0)
    await context.close()
  })

  test('columns that subscribers filter by and old rows do not carry are named, with how many, without values', async () => {
    const filter = `body=eq.${SECRET_VALUE}`
    await subscribe(client, 'filtered', [{ event: '*', schema: 'public', table: HOSTILE, filter }])
    await subscribe(client, 'inserted', [{ event: 'INSERT', schema: 'public', table: HOSTILE, filter }])
    const found = await until(async () => {
      const { findings } = await (await fetch(`${admin}/inspect/findings.json`)).json()
      return findings.find(({ code }) => code === 'filter_identity')
    }, 'what filters read', 40_000)
    assert.match(found.text, /^DELETEs of .* do not carry body, by which 1 subscriber filters$/)
    assert.equal(found.table, `public.${quoted}`)
    assert.deepEqual(found.sql, [`alter table public.${quoted} replica identity full`])
    assert.ok(!JSON.stringify(found).includes(SECRET_VALUE))
  })

  test('neither rows nor secrets are in anything that it serves', async () => {
    for (const path of ['', '/page.js', '/page.css', '/now.json', '/findings.json']) {
      const answer = await fetch(`${admin}/inspect${path}`)
      assert.equal(answer.status, 200, path)
      const policy = answer.headers.get('content-security-policy')
      assert.match(policy, /default-src 'none'.*script-src 'self'.*frame-ancestors 'none'/, path)
      const text = await answer.text()
      for (const secret of [SECRET_VALUE, relay.secret, ANN.user, new URL(demo.database).password || relay.secret]) {
        assert.ok(!text.includes(secret), `${path} holds ${secret}`)
      }
      assert.ok(!/ on[a-z]+=/.test(text.replaceAll(/onerror=/g, '')), `${path} has an inline handler`)
    }
  })

  test('it only shows: nothing can be sent to it', async () => {
    for (const path of ['', '/now.json', '/findings.json', '/events']) {
      for (const method of ['POST', 'PUT', 'DELETE', 'PATCH']) {
        const answer = await fetch(`${admin}/inspect${path}`, { method })
        assert.equal(answer.status, 405, `${method} ${path}`)
      }
    }
  })

  test('only so many pages are open at once, and a closed one gives its place back', async () => {
    const streams = []
    for (;;) {
      const stop = new AbortController()
      const answer = await fetch(`${admin}/inspect/events`, { signal: stop.signal })
      if (answer.status === 503) {
        stop.abort()
        break
      }
      assert.equal(answer.status, 200)
      streams.push(stop)
      assert.ok(streams.length < 100, 'there is a bound')
    }
    assert.ok(streams.length >= 4)
    streams.forEach((stop) => stop.abort())
    await until(async () => {
      const stop = new AbortController()
      const { status } = await fetch(`${admin}/inspect/events`, { signal: stop.signal })
      stop.abort()
      return status === 200
    }, 'a place')
  })

  test('nothing went wrong on the page', () => assert.deepEqual(complaints, []))
})
