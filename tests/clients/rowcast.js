// Starts the real binary for the tests, and talks to its database.
//
// Nothing here waits for time to pass: everything waits for a condition and has a deadline.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createHmac, randomBytes, randomUUID } from 'node:crypto'
import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { fileURLToPath } from 'node:url'

import * as newest from '@supabase/supabase-js'
import pg from 'pg'
import * as yearBefore from 'supabase-js-year-before'
import WebSocket from 'ws'

const BINARY =
  process.env.ROWCAST_BIN ?? fileURLToPath(new URL('../../target/debug/rowcast', import.meta.url))

/** The two people of the example; the ids stand in sql/examples/agent_tasks_seed.sql. */
export const ANN = {
  user: 'aaaaaaaa-0000-4000-8000-000000000001',
  organization: '0a000000-0000-4000-8000-000000000001',
  agents: ['0a000000-0000-4000-8000-0000000000a1', '0a000000-0000-4000-8000-0000000000a2'],
}
export const BEN = {
  user: 'bbbbbbbb-0000-4000-8000-000000000001',
  organization: '0b000000-0000-4000-8000-000000000001',
  agents: ['0b000000-0000-4000-8000-0000000000a1', '0b000000-0000-4000-8000-0000000000a2'],
}

// Waiting ---------------------------------------------------------------------------------------

/** Fails with `what` if `promise` has not settled in time. */
export function within(limit, promise, what) {
  let timer
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => {
      const reason = typeof what === 'function' ? what() : what
      reject(new Error(`not within ${limit} ms: ${reason}`))
    }, limit)
  })
  return Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

/** Asks again until the answer is truthy: for states that nobody announces. */
export async function until(condition, what, limit = 10_000) {
  const end = Date.now() + limit
  for (;;) {
    const answer = await condition()
    if (answer) return answer
    if (Date.now() > end) assert.fail(`not within ${limit} ms: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

/** A list that can be waited on. */
export class Inbox {
  items = []
  #waiting = new Set()

  push = (item) => {
    this.items.push(item)
    for (const check of this.#waiting) check()
  }

  /** The first item, old or new, that the predicate accepts. */
  first(predicate, what, limit = 10_000) {
    let check
    const found = new Promise((resolve) => {
      check = () => {
        const item = this.items.find(predicate)
        if (item !== undefined) resolve(item)
      }
      this.#waiting.add(check)
      check()
    })
    const seen = () => `${what}; there are ${JSON.stringify(this.items.slice(-5))}`
    return within(limit, found, seen).finally(() => this.#waiting.delete(check))
  }

  /** Waits until that many items are accepted. */
  async count(number, predicate, what, limit) {
    await this.first(() => this.items.filter(predicate).length >= number, what, limit)
  }
}

// Processes -------------------------------------------------------------------------------------

/** The processes that `root` has started, and theirs, where the system tells. */
function descendants(root) {
  if (!existsSync('/proc/self/stat')) return []
  const children = new Map()
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    try {
      // The name in parentheses may hold anything; the parent is the second field after it.
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
      const [state, parent] = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      if (state !== 'Z') children.set(Number(parent), [...(children.get(Number(parent)) ?? []), Number(pid)])
    } catch {
      // It ended in the meantime.
    }
  }
  const found = []
  const visit = (pid) => (children.get(pid) ?? []).forEach((child) => (found.push(child), visit(child)))
  visit(root)
  return found
}

function alive(pid) {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return stat.slice(stat.lastIndexOf(')') + 2)[0] !== 'Z'
  } catch {
    return false
  }
}

/** Whether anybody listens there. */
export function listens(host, port) {
  return new Promise((resolve) => {
    const socket = connect({ host, port: Number(port) })
    const end = (answer) => (socket.destroy(), resolve(answer))
    socket.once('connect', () => end(true)).once('error', () => end(false))
  })
}

/** Ports that this process was given: the system may give one again before anybody listens there. */
const given = new Set()

/** A port that was free a moment ago, another one each time. */
export async function freePort() {
  for (;;) {
    const port = await new Promise((resolve, reject) => {
      const server = createServer()
      server.once('error', reject)
      server.listen(0, '127.0.0.1', () => {
        const { port } = server.address()
        server.close(() => resolve(port))
      })
    })
    if (!given.has(port)) {
      given.add(port)
      return port
    }
  }
}

/** Every binary that runs; whatever a failed test leaves behind ends with this process. */
const running = new Set()
process.on('exit', () => running.forEach((child) => child.kill('SIGKILL')))

export class Rowcast {
  output = ''
  errors = ''
  #changed = new Set()

  constructor(parameters, environment = {}) {
    // Settings of whoever runs the tests must not reach the binary.
    const inherited = Object.entries(process.env).filter(
      ([name]) => !/^(ROWCAST_|PG[A-Z]|DATABASE_URL|JWT_|JWKS_)/.test(name) || name === 'PG_BIN',
    )
    this.child = spawn(BINARY, parameters, {
      env: { ...Object.fromEntries(inherited), RUST_BACKTRACE: '1', ...environment },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    running.add(this.child)
    this.ended = new Promise((resolve) => {
      this.child.once('error', (error) => resolve({ code: null, signal: null, error }))
      this.child.once('exit', (code, signal) => resolve({ code, signal }))
    }).finally(() => running.delete(this.child))
    const take = (name) => (text) => {
      this[name] += text
      this.#changed.forEach((check) => check())
    }
    this.child.stdout.setEncoding('utf8').on('data', take('output'))
    this.child.stderr.setEncoding('utf8').on('data', take('errors'))
  }

  /** Waits until standard output matches, or says how the process ended instead. */
  async printed(pattern, limit = 60_000, text = () => this.output) {
    let check
    const matched = new Promise((resolve) => {
      check = () => {
        const match = pattern.exec(text())
        if (match) resolve(match)
      }
      this.#changed.add(check)
      check()
    })
    const gone = this.ended.then((how) => {
      throw new Error(`ended with ${JSON.stringify(how)} before ${pattern}:\n${this.errors}`)
    })
    const what = () => `${pattern} on standard output:\n${this.output}\n${this.errors}`
    return within(limit, Promise.race([matched, gone]), what).finally(() => this.#changed.delete(check))
  }

  /** Waits for the `ready` line and returns itself. */
  async ready() {
    ;[, this.url] = await this.printed(/^ready (http:\/\/\S+)$/m)
    return this
  }

  /** Ctrl-C: it must end with 0 and take everything with it that it started. */
  async stop() {
    const started = descendants(this.child.pid)
    this.child.kill('SIGINT')
    const what = () => `the end after SIGINT:\n${this.errors}`
    const how = await within(30_000, this.ended, what)
    assert.deepEqual(how, { code: 0, signal: null }, this.errors)
    await until(() => !started.some(alive), `the end of what it started (${started})`)
    const { hostname, port } = new URL(this.url)
    assert.equal(await listens(hostname, port), false, 'its port is closed')
  }

  /** Holds it still until SIGCONT: it keeps its sockets and answers nothing. */
  async pause() {
    this.child.kill('SIGSTOP')
    const state = () => readFileSync(`/proc/${this.child.pid}/stat`, 'utf8').split(') ').at(-1)[0]
    if (existsSync('/proc/self/stat')) await until(() => state() === 'T', 'its standstill')
  }

  /** What a crash does. */
  async kill() {
    this.child.kill('SIGKILL')
    await within(10_000, this.ended, 'the end after SIGKILL')
  }
}

/** `rowcast demo` on a free port, by default without its worker, so that only the test writes. */
export async function startDemo(...parameters) {
  const all = ['demo', '--listen', '127.0.0.1:0', ...parameters]
  if (!parameters.includes('--pace')) all.push('--pace', '0')
  const demo = await new Rowcast(all).ready()
  await demo.printed(/^Ctrl-C ends it\.$/m)
  const value = (name) => new RegExp(`^  ${name} +(\\S+)$`, 'm').exec(demo.output)[1]
  demo.database = value('database')
  demo.anon = value('anon key')
  demo.tokens = { ann: value('ann'), ben: value('ben') }
  demo.snippet = /^\/\/ --- snippet\.mjs ---\n([\s\S]*?)^\/\/ --- end ---$/m.exec(demo.output)[1]
  return demo
}

/** `rowcast serve` on a demo's database, with a secret that the test knows. */
export async function startServe(
  demo,
  { port, secret = randomBytes(32).toString('hex'), slot, settings = {} } = {},
) {
  const address = `127.0.0.1:${port ?? (await freePort())}`
  const relay = new Rowcast(['serve'], {
    DATABASE_URL: demo.database,
    JWT_SECRET: secret,
    ROWCAST_LISTEN: address,
    ROWCAST_ADMIN_LISTEN: '127.0.0.1:0',
    ROWCAST_DATA: 'memory',
    ROWCAST_SLOT: slot ?? `test_${randomBytes(6).toString('hex')}`,
    ...settings,
  })
  relay.secret = secret
  relay.anon = mint(secret, { role: 'anon' })
  relay.url = `http://${address}`
  // A daemon says so in its log, in whatever form the log has.
  await relay.printed(/\bready\b/, 60_000, () => relay.output + relay.errors)
  return relay
}

/** An HS256 token, good for an hour unless the claims say otherwise. */
export function mint(secret, claims) {
  const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url')
  const now = Math.floor(Date.now() / 1000)
  const body = `${encode({ alg: 'HS256', typ: 'JWT' })}.${encode({ iat: now, exp: now + 3600, ...claims })}`
  return `${body}.${createHmac('sha256', secret).update(body).digest('base64url')}`
}

/** A person's token for a relay started by `startServe`. */
export const tokenFor = (relay, person, claims = {}) =>
  mint(relay.secret, { role: 'authenticated', sub: person.user, ...claims })

// The database ----------------------------------------------------------------------------------

export class Tables {
  static async of(demo) {
    const tables = new Tables()
    tables.client = new pg.Client({ connectionString: demo.database })
    await tables.client.connect()
    return tables
  }

  async query(text, values) {
    return (await this.client.query(text, values)).rows
  }

  /** Commits one new task and returns its id. */
  async insertTask(person, columns = {}) {
    const row = {
      id: randomUUID(),
      organization_id: person.organization,
      user_id: person.user,
      agent_id: person.agents[0],
      title: 'a task of a test',
      ...columns,
    }
    const names = Object.keys(row)
    const places = names.map((_, index) => `$${index + 1}`)
    await this.query(
      `insert into public.agent_tasks (${names}) values (${places})`,
      Object.values(row),
    )
    return row.id
  }

  end() {
    return this.client.end()
  }
}

// The client ------------------------------------------------------------------------------------

const { devDependencies } = JSON.parse(readFileSync(new URL('package.json', import.meta.url)))
const version = (name) => devDependencies[name].split('@').at(-1)

/**
 * The clients that every rule is tested with: the newest that this Node runs in both versions of
 * the protocol, and the newest of a year before it, which knows the first only. That one ends the
 * rejoining of its channels when it opens its socket anew (`disconnect` calls `teardown`), whatever
 * the server is.
 */
export const CLIENTS = [
  { library: newest, package: '@supabase/supabase-js', vsn: '2.0.0', rejoins: true },
  { library: newest, package: '@supabase/supabase-js', vsn: '1.0.0', rejoins: true },
  { library: yearBefore, package: 'supabase-js-year-before', vsn: '1.0.0', rejoins: false },
].map((kind) => ({ ...kind, name: `supabase-js ${version(kind.package)}, vsn ${kind.vsn}` }))

/** The unmodified client, acting as whoever the token names. */
export async function connectClient(url, anon, token, realtime = {}, { library, vsn } = CLIENTS[0]) {
  const client = library.createClient(url, anon, {
    auth: { persistSession: false, autoRefreshToken: false },
    realtime: { transport: WebSocket, vsn, ...realtime },
  })
  if (token) await client.realtime.setAuth(token)
  return client
}

/**
 * Subscribes to changes and returns the channel with what it hears: `changes`, `statuses` and
 * `system` messages. `bindings` default to everything on agent_tasks.
 */
export function listen(client, topic, bindings = [{ event: '*', schema: 'public', table: 'agent_tasks' }]) {
  const heard = { changes: new Inbox(), statuses: new Inbox(), system: new Inbox() }
  const channel = client.channel(topic)
  bindings.forEach((binding, index) => {
    channel.on('postgres_changes', binding, (change) => heard.changes.push({ ...change, binding: index }))
  })
  channel.on('system', {}, heard.system.push)
  channel.subscribe((status, error) => heard.statuses.push({ status, message: error?.message }))
  return { channel, ...heard }
}

/**
 * Like `listen`, and waits until the client says SUBSCRIBED. A binding that is refused shows in
 * `system` only: whoever expects none should see the reason instead of a missing change.
 */
export async function subscribe(client, topic, bindings, { refusals = false } = {}) {
  const heard = listen(client, topic, bindings)
  if (!refusals) {
    heard.channel.on('system', {}, ({ status, message }) => {
      if (status === 'error') heard.changes.push({ refused: message })
    })
  }
  await heard.statuses.first(({ status }) => status === 'SUBSCRIBED', `SUBSCRIBED on ${topic}`, 20_000)
  return heard
}

/** A WebSocket that says exactly what the test says, in either version of the protocol. */
export class Raw {
  frames = new Inbox()
  texts = new Inbox()

  static async open(relay, { vsn = '2.0.0', apikey = relay.anon, headers, path = '/realtime/v1' } = {}) {
    const raw = new Raw()
    const query = vsn ? `apikey=${apikey}&vsn=${vsn}` : `apikey=${apikey}`
    raw.isArray = vsn === '2.0.0'
    raw.socket = new WebSocket(`${relay.url.replace('http', 'ws')}${path}/websocket?${query}`, { headers })
    raw.closed = new Promise((resolve) => raw.socket.once('close', (code) => resolve(code)))
    raw.socket.on('message', (data) => {
      raw.texts.push(String(data))
      const frame = JSON.parse(data)
      const { ref, topic, event, payload } = frame
      raw.frames.push(raw.isArray ? frame : [null, ref, topic, event, payload])
    })
    await within(10_000, new Promise((open, fail) => raw.socket.once('open', open).once('error', fail)), 'a socket')
    return raw
  }

  /** The status and the body of a refused upgrade. */
  static refused(relay, query, headers) {
    const url = `${relay.url.replace('http', 'ws')}/realtime/v1/websocket?${query}`
    const answered = new Promise((resolve, fail) => {
      const socket = new WebSocket(url, { headers })
      socket.once('open', () => fail(new Error('not refused')))
      socket.once('error', fail)
      socket.once('unexpected-response', (_, response) => {
        let body = ''
        response.setEncoding('utf8').on('data', (text) => (body += text))
        response.once('end', () => resolve([response.statusCode, body && JSON.parse(body).error]))
      })
    })
    return within(10_000, answered, 'a refusal')
  }

  send(join_ref, ref, topic, event, payload) {
    const frame = this.isArray ? [join_ref, ref, topic, event, payload] : { topic, event, payload, ref, join_ref }
    this.socket.send(JSON.stringify(frame))
  }

  /** Sends a message and returns the frame that answers it. */
  ask(join_ref, ref, topic, event, payload = {}) {
    this.send(join_ref, ref, topic, event, payload)
    const answers = ([, answered, of, name]) => name === 'phx_reply' && answered === ref && of === topic
    return this.frames.first(answers, `the reply to ${event} ${ref} on ${topic}`)
  }

  /** Joins and returns the payload of the reply. */
  async join(ref, topic, config, payload = {}) {
    return (await this.ask(ref, ref, topic, 'phx_join', { config, ...payload }))[4]
  }

  /** Whether the socket still answers. */
  async beat(ref = `hb${this.frames.items.length}`) {
    const [, , , , payload] = await this.ask(null, ref, 'phoenix', 'heartbeat')
    assert.deepEqual(payload, { status: 'ok', response: {} })
  }

  /** The next system message of a topic, from the given place in what was heard on. */
  system(topic, predicate = () => true, what = 'a system message') {
    return this.frames
      .first(([, , of, event, payload]) => of === topic && event === 'system' && predicate(payload), what)
      .then((frame) => frame[4])
  }
}

/** Whether a change is about this row. */
export const about = (id) => (change) => (change.new?.id ?? change.old?.id) === id

/** Ends a client's socket and timers. */
export async function disconnect(...clients) {
  for (const client of clients) {
    await client.removeAllChannels()
    await client.realtime.disconnect()
  }
}
