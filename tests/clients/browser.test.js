// The demo's page in a real browser.

import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { inflateSync } from 'node:zlib'

import { chromium } from 'playwright-core'

import { ANN, BEN, Rowcast, Tables, freePort, startDemo, startServe, until } from './rowcast.js'

const CHROMIUM =
  process.env.CHROMIUM ??
  ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(existsSync)

// Debian's Chromium, kept from talking to anybody but the page; each launch has a fresh profile.
const FLAGS = [
  ...['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'],
  ...['--disable-background-networking', '--disable-component-update', '--disable-sync'],
]

/** How many different pixel rows a screenshot has: a blank one has very few. */
function distinctRows(png) {
  const parts = []
  let width, channels
  for (let at = 8; at < png.length; ) {
    const length = png.readUInt32BE(at)
    const type = png.toString('latin1', at + 4, at + 8)
    const data = png.subarray(at + 8, at + 8 + length)
    if (type === 'IHDR') [width, channels] = [data.readUInt32BE(0), data[9] === 6 ? 4 : 3]
    if (type === 'IDAT') parts.push(data)
    at += length + 12
  }
  const pixels = inflateSync(Buffer.concat(parts))
  const stride = width * channels + 1
  const rows = new Set()
  for (let at = 0; at < pixels.length; at += stride) rows.add(pixels.toString('latin1', at, at + stride))
  return rows.size
}

describe('the page', () => {
  let demo, tables, browser, context, page
  const complaints = []

  before(async () => {
    assert.ok(CHROMIUM, 'Chromium is needed: apt-get install chromium, or set CHROMIUM')
    demo = await startDemo()
    tables = await Tables.of(demo)
    browser = await chromium.launch({ executablePath: CHROMIUM, args: FLAGS })
    context = await browser.newContext({ viewport: { width: 1440, height: 1000 } })
    page = await context.newPage()
    page.setDefaultTimeout(20_000)
    page.on('pageerror', (error) => complaints.push(String(error)))
    page.on('console', (message) => message.type() === 'error' && complaints.push(message.text()))
    page.on('request', (request) => {
      const { protocol, host } = new URL(request.url())
      if (protocol !== 'data:' && host !== new URL(demo.url).host) complaints.push(request.url())
    })
    await page.goto(demo.url)
    await panel('ann').and(page.locator('[data-ready]')).waitFor()
    await panel('ben').and(page.locator('[data-ready]')).waitFor()
  })

  after(async () => {
    await browser?.close()
    await tables?.end()
    await demo?.stop()
  })

  const panel = (user) => page.locator(`.panel[data-user="${user}"]`)
  const cards = async (user) =>
    (await panel(user).locator('.card').evaluateAll((all) => all.map((card) => card.dataset.id))).sort()
  const stored = async (person) => {
    const text = 'select id from agent_tasks where organization_id = $1 order by id'
    return (await tables.query(text, [person.organization])).map(({ id }) => id)
  }
  const card = (user, id) => panel(user).locator(`.card[data-id="${id}"]`)
  const column = (user, status) => panel(user).locator(`section[data-status="${status}"]`)

  test('both users see their own rows and no others', async () => {
    assert.deepEqual(await cards('ann'), await stored(ANN))
    assert.deepEqual(await cards('ben'), await stored(BEN))
    assert.equal(await panel('ann').locator('.connection').getAttribute('data-state'), 'live')
    assert.equal(await panel('ben').locator('.connection').getAttribute('data-state'), 'live')
  })

  test('a click inserts in one panel and the other stays still', async () => {
    const before = { ann: await cards('ann'), ben: await cards('ben') }
    await panel('ann').getByRole('button', { name: 'New task' }).click()
    await until(async () => (await cards('ann')).length === before.ann.length + 1, 'a card for Ann')
    // Ben's own click comes after it: once that shows, Ann's would have shown as well.
    await panel('ben').getByRole('button', { name: 'New task' }).click()
    await until(async () => (await cards('ben')).length > before.ben.length, 'a card for Ben')
    assert.deepEqual(await cards('ann'), await stored(ANN))
    assert.deepEqual(await cards('ben'), await stored(BEN))
    assert.equal((await cards('ben')).length, before.ben.length + 1)
    assert.equal((await cards('ann')).length, before.ann.length + 1)
    assert.match(await panel('ann').locator('.last').textContent(), /^(< 1|\d+) ms$/)
    assert.match(await page.locator('#sql').textContent(), /insert into public\.agent_tasks/)
    assert.equal(await panel('ann').locator('.hidden').textContent(), '1')
  })

  test('a card moves on and goes, by its buttons', async () => {
    const id = await tables.insertTask(BEN, { title: 'Moved by hand' })
    const moved = card('ben', id)
    await moved.waitFor()
    await moved.getByRole('button', { name: 'Start' }).click()
    await column('ben', 'in_progress').locator(`[data-id="${id}"]`).waitFor()
    await moved.getByRole('button', { name: 'Complete' }).click()
    await column('ben', 'completed').locator(`[data-id="${id}"]`).waitFor()
    await moved.getByRole('button', { name: 'Delete' }).click()
    await moved.waitFor({ state: 'detached' })
    assert.deepEqual(await cards('ben'), await stored(BEN))
    assert.equal(await card('ann', id).count(), 0)
  })

  test('values from the database are text, whatever they look like', async () => {
    const title = '<img src=x onerror="document.title=1"><b>bold</b>'
    const id = await tables.insertTask(ANN, { title })
    const shown = card('ann', id).locator('.title')
    await shown.waitFor()
    assert.equal(await shown.textContent(), title)
    assert.equal(await shown.locator('*').count(), 0)
  })

  test('light and dark both show something, and not the same', async () => {
    const shots = {}
    for (const colorScheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme })
      shots[colorScheme] = await page.screenshot()
      assert.ok(distinctRows(shots[colorScheme]) > 100, `${colorScheme} is not blank`)
    }
    assert.ok(!shots.light.equals(shots.dark))
    const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor)
    const before = await background()
    await page.getByRole('button', { name: 'Switch between light and dark' }).click()
    assert.notEqual(await background(), before, 'the button switches')
  })

  test('a lost connection comes back by itself, with what was missed', async () => {
    const sockets = []
    let open = Promise.resolve()
    const other = await context.newPage()
    await other.routeWebSocket(/\/realtime\/v1\/websocket/, async (socket) => {
      await open
      sockets.push(socket)
      socket.connectToServer()
    })
    await other.goto(demo.url)
    const ann = other.locator('.panel[data-user="ann"]')
    await ann.and(other.locator('[data-ready]')).waitFor()

    let reopen
    open = new Promise((resolve) => (reopen = resolve))
    for (const socket of sockets.splice(0)) await socket.close()
    await until(async () => (await ann.locator('.connection').getAttribute('data-state')) !== 'live', 'the loss')
    const id = await tables.insertTask(ANN, { title: 'Written meanwhile' })
    reopen()
    await ann.locator(`.card[data-id="${id}"]`).waitFor({ timeout: 20_000 })
    await other.close()
  })

  test('rows that are written while the relay is stopped come once it runs, and the page says so', async () => {
    const data = mkdtempSync(join(tmpdir(), 'rowcast-page-'))
    const options = {
      port: await freePort(),
      slot: `page_${Date.now()}`,
      secret: 'a secret of at least thirty-two bytes, for tests',
      settings: { ROWCAST_DATA: join(data, 'log') },
    }
    let relay = await startServe(demo, options)
    const parameters = ['--listen', '127.0.0.1:0', '--pace', '0', '--database-url', demo.database]
    const shown = new Rowcast(['demo', ...parameters, '--relay-url', relay.url], { JWT_SECRET: options.secret })
    const other = await context.newPage()
    try {
      await shown.ready()
      await other.goto(shown.url)
      const ann = other.locator('.panel[data-user="ann"]')
      await ann.and(other.locator('[data-ready]')).waitFor()
      const first = await tables.insertTask(ANN, { title: 'Before it stops' })
      await ann.locator(`.card[data-id="${first}"]`).waitFor({ timeout: 20_000 })
      await relay.stop()
      await until(async () => (await ann.locator('.connection').getAttribute('data-state')) === 'lost', 'the loss')
      const written = []
      for (const number of [1, 2, 3]) {
        written.push(await tables.insertTask(ANN, { title: `While it is stopped ${number}` }))
      }
      await tables.insertTask(BEN, { title: 'Not hers' })
      relay = await startServe(demo, options)
      for (const id of written) {
        await ann.locator(`.card[data-id="${id}"]`).waitFor({ timeout: 30_000 })
      }
      // Policies that look into other tables cannot always be asked about what was missed.
      const said = ann.locator('.log .said')
      await said.first().waitFor({ timeout: 20_000 })
      assert.match(
        await said.last().textContent(),
        /^(back after \d+\.\d s; changes that came in between: 3|told to read again: access changed)$/,
      )
      // A new history: the rows are read again, and that is said too.
      await relay.stop()
      rmSync(options.settings.ROWCAST_DATA, { recursive: true })
      const last = await tables.insertTask(ANN, { title: 'Nobody kept this' })
      relay = await startServe(demo, options)
      await ann.locator(`.card[data-id="${last}"]`).waitFor({ timeout: 30_000 })
      const words = async () => (await said.allTextContents()).join('\n')
      await until(async () => /told to read again: epoch/.test(await words()), 'the reason')
    } finally {
      await other.close()
      await shown.stop()
      await relay.stop()
      rmSync(data, { recursive: true, force: true })
    }
  })

  test('a page that fell behind the statements says how many it does not show', async () => {
    const other = await context.newPage()
    const ran = { by: 'worker', sql: 'update one', parameters: [], rows: 1, took_ms: 1 }
    const event = (sql) => `data: ${JSON.stringify({ ...ran, sql })}\n\n`
    await other.route('**/demo/sql', (route) =>
      route.fulfill({
        contentType: 'text/event-stream',
        body: `${event('update one')}event: missed\ndata: 7\n\n${event('update nine')}`,
      }),
    )
    await other.goto(demo.url)
    const shown = other.locator('#sql li')
    await until(async () => (await shown.count()) === 2, 'the newest statement and what is missing')
    assert.match(await shown.nth(0).textContent(), /update nine/)
    assert.equal(await shown.nth(1).textContent(), '7 statements came faster than this page reads')
    await other.close()
  })

  test('the page complains of nothing and asks nobody else', () => {
    assert.deepEqual(complaints, [])
  })
})
