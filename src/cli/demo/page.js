// The demo's page: two users, two sockets, and nothing between them. Values from the database reach
// the document as text only (`textContent`), never as markup.

import { Channel } from './demo/channel.js'

const TABLES = ['agent_tasks', 'drafts', 'follow_ups', 'agents']
const NEXT = { pending: 'Start', in_progress: 'Complete', failed: 'Retry' }
const LOG_LENGTH = 60
const calm = matchMedia('(prefers-reduced-motion: reduce)')

const by = (id) => document.getElementById(id)
const median = (values) => {
  if (values.length === 0) return null
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}
const ms = (value) => (value === null ? '–' : value < 1 ? '< 1 ms' : `${Math.round(value)} ms`)

// What both panels share ----------------------------------------------------------------------

/** Which panels saw which change: what one saw and another did not was hidden from it. */
const changes = {
  seen: new Map(),
  count: 0,
  panels: [],
  note(key, panel) {
    let who = this.seen.get(key)
    if (!who) {
      this.seen.set(key, (who = new Set()))
      this.count += 1
      // Both sockets hear of a change within moments of each other; old keys are only weight.
      if (this.seen.size > 500) this.seen.delete(this.seen.keys().next().value)
    }
    if (who.has(panel)) return
    who.add(panel)
    panel.seen += 1
    by('total').textContent = String(this.count)
    for (const each of this.panels) each.count(this.count)
  },
}

/** This clock minus the server's, in milliseconds, where it is more than a round trip can explain. */
let clockAhead = 0
const latencies = []

async function configuration() {
  const asked = Date.now()
  const answer = await fetch('/demo/config.json')
  if (!answer.ok) throw new Error(`config: ${answer.status}`)
  const config = await answer.json()
  const ahead = (asked + Date.now()) / 2 - config.now
  clockAhead = Math.abs(ahead) > 250 ? ahead : 0
  return config
}

/** Calls back once what was just written to the document has been painted. */
function painted(then) {
  if (document.hidden) return then()
  requestAnimationFrame(() => {
    const { port1, port2 } = new MessageChannel()
    port1.onmessage = then
    port2.postMessage(null)
  })
}

// One user's panel ----------------------------------------------------------------------------

class Panel {
  seen = 0
  #cards = new Map()
  #rows = Object.fromEntries([...TABLES, 'contacts'].map((table) => [table, new Map()]))
  /** Rows that changed while the tables are being read: what was read of them is older. */
  #touched = null
  #reading = 0
  #latencies = []

  constructor(person) {
    this.person = person
    const root = by('panel-template').content.cloneNode(true).firstElementChild
    this.root = root
    this.find = (selector) => root.querySelector(selector)
    root.dataset.user = person.key
    root.setAttribute('aria-label', `${person.name}, ${person.organization}`)
    this.find('.avatar').textContent = person.name[0]
    this.find('h2').textContent = person.name
    this.find('.organization').textContent = person.organization
    this.find('.new-task').addEventListener('click', (event) => this.write(event.target, 'insert'))
    by('stage').append(root)

    const bindings = TABLES.map((table) => ({ event: '*', schema: 'public', table }))
    this.channel = new Channel('realtime:demo', bindings, () => this.connect(), {
      state: (state, words) => this.state(state, words),
      joined: (reason) => {
        if (reason !== null) this.say(`told to read again: ${reason.replaceAll('_', ' ')}`)
        this.read()
      },
      change: (data) => this.change(data),
      back: ({ seconds, changes }) =>
        this.say(`back after ${seconds.toFixed(1)} s; changes that came in between: ${changes}`),
    })
    this.channel.open()
  }

  async connect() {
    const config = await configuration()
    const url = new URL(config.websocket, location.href)
    url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:'
    url.searchParams.set('apikey', config.anon_key)
    url.searchParams.set('vsn', '2.0.0')
    return { url, token: config.people.find((each) => each.key === this.person.key).token }
  }

  state(state, words) {
    const light = this.find('.connection')
    if (light.dataset.state !== state) by('announce').textContent = `${this.person.name}: ${words}`
    light.dataset.state = state
    light.lastElementChild.textContent = words
  }

  /** Reads all rows under this user's policies. Runs after the join, so no change can fall between. */
  async read() {
    const turn = ++this.#reading
    const touched = (this.#touched = new Set())
    let rows
    try {
      const answer = await fetch(`/demo/rows?user=${this.person.key}`)
      if (!answer.ok) throw new Error(`rows: ${answer.status}`)
      rows = await answer.json()
    } catch {
      if (turn === this.#reading) setTimeout(() => turn === this.#reading && this.read(), 1000)
      return
    }
    if (turn !== this.#reading) return
    this.#touched = null
    for (const [table, list] of Object.entries(rows)) {
      const known = this.#rows[table]
      const read = new Map(list.map((row) => [row.id, row]))
      for (const id of known.keys()) if (!read.has(id) && !touched.has(id)) known.delete(id)
      for (const [id, row] of read) if (!touched.has(id)) known.set(id, row)
    }
    this.render()
    this.root.dataset.ready = 'true'
  }

  change({ table, type, record, old_record: old, commit_timestamp: committed }) {
    const id = (type === 'DELETE' ? old : record)?.id
    const rows = this.#rows[table]
    if (!rows || id === undefined) return
    const before = rows.get(id) ?? old ?? {}
    this.#touched?.add(id)
    if (type === 'DELETE') rows.delete(id)
    // A large value that did not change may be left out of an update.
    else rows.set(id, { ...before, ...record })
    changes.note(`${table} ${type} ${id} ${committed} ${record?.updated_at ?? ''}`, this)
    this.render(id)
    painted(() => this.measure({ table, type, id, committed, row: record ?? before, before }))
  }

  measure(change) {
    const now = Date.now() - clockAhead
    const took = Math.max(0, now - Date.parse(change.committed))
    this.#latencies.push(took)
    latencies.push(took)
    if (this.#latencies.length > 120) this.#latencies.shift()
    if (latencies.length > 1000) latencies.shift()
    this.find('.last').textContent = ms(took)
    this.find('.panel-median').textContent = ms(median(this.#latencies))
    by('median').textContent = ms(median(latencies))
    this.spark()
    this.log(change, took, now)
  }

  spark() {
    const shown = this.#latencies.slice(-40)
    const top = Math.max(20, ...shown)
    const at = (value, index) => `${(index / 39) * 120},${27 - (value / top) * 25}`
    this.find('.spark polyline').setAttribute('points', shown.map(at).join(' '))
  }

  /** What happened to the connection, among the changes. */
  say(words) {
    const line = document.createElement('li')
    const time = document.createElement('time')
    time.textContent = new Date().toLocaleTimeString([], { hour12: false })
    const text = document.createElement('span')
    text.className = 'said'
    text.textContent = words
    line.append(time, text)
    this.enlist(line)
  }

  enlist(line) {
    const list = this.find('.log ol')
    list.prepend(line)
    while (list.children.length > LOG_LENGTH) list.lastElementChild.remove()
  }

  log({ table, type, row, before, committed }, took, now) {
    const line = document.createElement('li')
    const part = (tag, name, text) => {
      const element = document.createElement(tag)
      if (name) element.className = name
      element.textContent = text
      line.append(element)
      return element
    }
    const clock = (at) => new Date(at).toLocaleTimeString([], { hour12: false })
    const time = part('time', '', clock(now))
    time.dateTime = committed
    time.title = `committed ${committed}`
    part('span', 'kind', type).dataset.kind = type
    const name = row.title ?? row.name ?? row.body ?? row.note ?? ''
    const moved = before.status && row.status && before.status !== row.status
    const status = type === 'DELETE' ? '' : moved ? `${before.status} → ${row.status}` : row.status
    part('span', 'what', [table, name, status].filter(Boolean).join(' · ').replaceAll('_', ' '))
    part('span', 'ms', ms(took))
    this.enlist(line)
  }

  count(total) {
    this.find('.seen').textContent = String(this.seen)
    this.find('.hidden').textContent = String(total - this.seen)
  }

  render(fresh) {
    this.agents()
    this.list('drafts', (row) => row.body, fresh)
    this.list('follow_ups', (row) => row.note, fresh)
    this.board(fresh)
  }

  agents() {
    const items = [...this.#rows.agents.values()].sort((a, b) => a.name.localeCompare(b.name))
    this.find('.agents').replaceChildren(
      ...items.map((agent) => {
        const item = document.createElement('li')
        item.dataset.status = agent.status
        const state = document.createElement('span')
        state.textContent = agent.status
        item.append(`${agent.name} `, state)
        return item
      }),
    )
  }

  list(table, words, fresh) {
    const newest = (a, b) => Date.parse(b.updated_at) - Date.parse(a.updated_at)
    const items = [...this.#rows[table].values()].sort(newest).slice(0, 4)
    this.find(`[data-list="${table}"] ul`).replaceChildren(
      ...items.map((row) => {
        const item = document.createElement('li')
        const text = document.createElement('span')
        const tag = document.createElement('span')
        text.textContent = text.title = words(row)
        tag.className = 'tag'
        tag.textContent = tag.dataset.tag = row.status
        if (row.id === fresh) item.className = 'fresh'
        item.append(text, tag)
        return item
      }),
    )
  }

  board(fresh) {
    const places = new Map()
    if (!calm.matches) for (const [id, { root }] of this.#cards) places.set(id, root.getBoundingClientRect())
    for (const [id, { root }] of this.#cards) {
      if (this.#rows.agent_tasks.has(id)) continue
      // The card that had the focus goes; a keyboard user should not be thrown to the page's top.
      const focused = root.contains(document.activeElement)
      root.remove()
      this.#cards.delete(id)
      if (focused) this.find('.new-task').focus()
    }
    for (const column of this.root.querySelectorAll('.board section')) {
      const status = column.dataset.status
      const oldestFirst = status === 'pending' ? 1 : -1
      const time = (row) => Date.parse(status === 'pending' ? row.created_at : row.updated_at)
      const tasks = [...this.#rows.agent_tasks.values()].filter((row) => row.status === status)
      tasks.sort((a, b) => oldestFirst * (time(a) - time(b)) || a.id.localeCompare(b.id))
      column.querySelector('em').textContent = String(tasks.length)
      const list = column.querySelector('ul')
      tasks.forEach((task, index) => {
        const card = this.card(task)
        // Moving an element loses its focus, so only what stands elsewhere is moved.
        if (list.children[index] !== card.root) {
          const focused = card.root.contains(document.activeElement) ? document.activeElement : null
          list.insertBefore(card.root, list.children[index] ?? null)
          focused?.focus({ preventScroll: true })
        }
        if (task.id === fresh) this.flash(card.root)
      })
    }
    for (const [id, { root }] of this.#cards) this.slide(root, places.get(id), places.size > 0)
  }

  /** Lets a card glide from where it was to where it is now. */
  slide(card, from, wanted) {
    if (!wanted) return
    const to = card.getBoundingClientRect()
    const easing = 'cubic-bezier(0.2, 0.8, 0.2, 1)'
    if (!from) {
      const appear = [{ opacity: 0, transform: 'scale(0.92)' }, { opacity: 1, transform: 'none' }]
      return card.animate(appear, { duration: 260, easing })
    }
    const x = from.left - to.left
    const y = from.top - to.top
    if (!x && !y) return
    card.style.zIndex = '2'
    const moves = [{ transform: `translate(${x}px, ${y}px)` }, { transform: 'none' }]
    card.animate(moves, { duration: 420, easing }).onfinish = () => (card.style.zIndex = '')
  }

  flash(card) {
    card.classList.remove('fresh')
    // Reading a layout value makes the browser notice that the class was gone.
    void card.offsetWidth
    card.classList.add('fresh')
  }

  card(task) {
    let card = this.#cards.get(task.id)
    if (!card) {
      const root = by('card-template').content.cloneNode(true).firstElementChild
      const part = (name) => root.querySelector(`.${name}`)
      card = { root, title: part('title'), note: part('note'), agent: part('agent'), advance: part('advance') }
      root.dataset.id = task.id
      card.advance.addEventListener('click', (event) => this.write(event.target, 'advance', task.id))
      part('delete').addEventListener('click', (event) => this.write(event.target, 'delete', task.id))
      this.#cards.set(task.id, card)
    }
    const contact = this.#rows.contacts.get(task.contact_id)
    const newest = Array.isArray(task.events) ? task.events.at(-1) : null
    card.title.textContent = task.title
    card.note.textContent = task.error ?? newest?.text ?? contact?.name ?? ''
    card.agent.textContent = this.#rows.agents.get(task.agent_id)?.name ?? ''
    card.advance.textContent = NEXT[task.status] ?? ''
    card.advance.hidden = !(task.status in NEXT)
    card.root.querySelector('.delete').setAttribute('aria-label', `Delete ${task.title}`)
    return card
  }

  async write(button, action, id) {
    button.disabled = true
    try {
      const answer = await fetch('/demo/write', {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ user: this.person.key, action, id }),
      })
      if (!answer.ok) by('announce').textContent = (await answer.json()).error
    } catch {
      by('announce').textContent = 'The demo does not answer.'
    } finally {
      // The row itself comes back over the socket, like everybody else's.
      button.disabled = false
    }
  }
}

// The SQL that ran ----------------------------------------------------------------------------

function statement({ by: who, sql, parameters, rows, took_ms: took }) {
  const item = document.createElement('li')
  item.dataset.by = who === 'worker' ? 'worker' : 'hand'
  const meta = document.createElement('p')
  meta.className = 'meta'
  const name = document.createElement('b')
  name.textContent = who === 'worker' ? 'worker' : `${who}'s button`
  meta.append(name, ` ${rows} ${rows === 1 ? 'row' : 'rows'} `, ` committed in ${took.toFixed(1)} ms`)
  const code = document.createElement('pre')
  code.textContent = sql
  const values = document.createElement('pre')
  values.className = 'parameters'
  values.textContent = parameters.map((value, index) => `$${index + 1} = ${value}`).join('   ')
  item.append(meta, code, values)
  const list = by('sql')
  list.prepend(item)
  while (list.children.length > 30) list.lastElementChild.remove()
}

/** Between what is shown and what comes next some are missing: older ones are not shown with newer. */
function missed(count) {
  const item = document.createElement('li')
  item.dataset.missed = count
  item.textContent = `${count} ${count === '1' ? 'statement' : 'statements'} came faster than this page reads`
  by('sql').replaceChildren(item)
}

// Light and dark ------------------------------------------------------------------------------

const saved = localStorage.getItem('theme')
if (saved === 'light' || saved === 'dark') document.documentElement.dataset.theme = saved
by('theme').addEventListener('click', () => {
  const system = matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light'
  const now = document.documentElement.dataset.theme ?? system
  const next = now === 'dark' ? 'light' : 'dark'
  document.documentElement.dataset.theme = next
  localStorage.setItem('theme', next)
})

async function start() {
  try {
    const { people } = await configuration()
    changes.panels = people.map((person) => new Panel(person))
  } catch {
    by('announce').textContent = 'The demo does not answer.'
    setTimeout(start, 1000)
    return
  }
  const ran = new EventSource('/demo/sql')
  ran.onmessage = ({ data }) => statement(JSON.parse(data))
  ran.addEventListener('missed', ({ data }) => missed(data))
}
start()
