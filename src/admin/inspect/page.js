// The page of the admin port. Whatever comes from the database is put in as text, never as markup.

const SVG = 'http://www.w3.org/2000/svg'

/** Seconds that a picture reaches back. */
const SPAN = 120

const by = (id) => document.getElementById(id)

function element(name, text, className) {
  const made = document.createElement(name)
  if (text !== undefined) made.textContent = text
  if (className) made.className = className
  return made
}

const whole = new Intl.NumberFormat('en')
const short = new Intl.NumberFormat('en', { maximumFractionDigits: 1 })

function bytes(count) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let unit = 0
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024
    unit += 1
  }
  return `${short.format(count)} ${units[unit]}`
}

/** A figure with its last two minutes behind it. */
class Chart {
  constructor(id, label, format = (value) => short.format(value)) {
    this.format = format
    this.values = []
    const card = element('div', undefined, 'chart')
    card.id = id
    this.figure = element('b', '–')
    this.line = document.createElementNS(SVG, 'polyline')
    const picture = document.createElementNS(SVG, 'svg')
    picture.setAttribute('viewBox', `0 0 ${SPAN} 30`)
    picture.setAttribute('preserveAspectRatio', 'none')
    picture.setAttribute('aria-hidden', 'true')
    picture.append(this.line)
    card.append(this.figure, element('span', label), picture)
    by('charts').append(card)
  }

  push(value) {
    this.values.push(value)
    if (this.values.length > SPAN) this.values.shift()
    this.figure.textContent = this.format(value)
    const most = Math.max(...this.values, 1e-9)
    const from = SPAN - this.values.length
    const points = this.values.map((one, at) => `${from + at},${29 - (28 * one) / most}`)
    this.line.setAttribute('points', points.join(' '))
  }
}

const charts = {
  read: new Chart('read', 'changes read a second'),
  delivered: new Chart('delivered', 'changes delivered a second'),
  hidden: new Chart('hidden-rate', 'changes hidden a second'),
  questions: new Chart('questions', 'questions to PostgreSQL a second'),
  connections: new Chart('connections', 'connections', (value) => whole.format(value)),
  subscriptions: new Chart('subscriptions', 'subscriptions', (value) => whole.format(value)),
  behind: new Chart('behind', 'changes waiting', (value) => whole.format(value)),
  lag: new Chart('lag', 'WAL that the slot keeps', bytes),
}

let last
const total = (reasons) => Object.values(reasons).reduce((sum, count) => sum + count, 0)

/** The lines of a table, or a word where there are none. */
function fill(id, rows, columns, nothing) {
  const lines = rows.map((cells) => {
    const line = element('tr')
    line.append(...cells)
    return line
  })
  if (lines.length === 0) {
    const cell = element('td', nothing, 'empty')
    cell.colSpan = columns
    const line = element('tr')
    line.append(cell)
    lines.push(line)
  }
  by(id).replaceChildren(...lines)
}

const cell = (text) => element('td', text)
const number = (text) => element('td', text, 'number')

function show(now) {
  const seconds = last ? Math.max((now.at - last.at) / 1000, 0.001) : 1
  const rate = (value, before) => (last ? Math.max(value - before, 0) / seconds : 0)
  charts.read.push(rate(now.changes_read, last?.changes_read))
  charts.delivered.push(rate(now.changes_delivered, last?.changes_delivered))
  charts.hidden.push(rate(total(now.changes_hidden), last && total(last.changes_hidden)))
  charts.questions.push(rate(now.questions, last?.questions))
  charts.connections.push(now.connections)
  charts.subscriptions.push(now.subscriptions)
  charts.lag.push(now.slot_lag_bytes)
  charts.behind.push(now.router?.behind ?? 0)

  by('state').textContent = now.reason ? `${now.source}: ${now.reason}` : now.source
  by('state').className = now.source === 'streaming' ? 'state' : 'state bad'
  if (now.router) showRouter(now, seconds)
  const hidden = now.hidden.map((one) => [
    cell(new Date(one.at).toLocaleTimeString()),
    cell(`${one.schema}.${one.table}`),
    cell(one.event),
    cell(one.role || 'all'),
    cell(one.reason),
    number(whole.format(one.clients)),
  ])
  fill('hidden', hidden, 6, 'None yet.')
  last = now
}

function showRouter(now, seconds) {
  const { tables, watched, unwatched, sessions, channels, lookups, old_rows: oldRows } = now.router
  const before = new Map(last?.router?.tables.map((one) => [`${one.schema}.${one.name}`, one.changes]))
  by('tables-hint').textContent =
    `${whole.format(watched)} with subscribers, ${whole.format(unwatched)} published without; ` +
    `${whole.format(sessions)} sessions with ${whole.format(channels)} channels`
  const lines = tables.flatMap((table) => {
    const name = `${table.schema}.${table.name}`
    const changes = before.get(name)
    const rate = changes === undefined ? 0 : Math.max(table.changes - changes, 0) / seconds
    return table.groups.map((group) => [
      cell(table.row_security ? name : `${name} (no row-level security)`),
      cell(group.role),
      cell(group.decided),
      number(whole.format(group.subscribers)),
      number(whole.format(group.audience)),
      number(whole.format(table.changes)),
      number(short.format(rate)),
    ])
  })
  fill('tables', lines, 7, 'Nobody is subscribed to anything.')
  const mirror = (one) => [
    cell(one.name ?? '–'),
    cell(one.state),
    number(whole.format(one.rows)),
    number(bytes(one.bytes)),
    cell(one.refused ?? ''),
  ]
  fill('lookups', lookups.map(mirror), 5, 'None.')
  fill('old-rows', oldRows.map(mirror), 5, 'None.')
}

function finding(one) {
  const item = element('li', undefined, one.severity)
  const about = [one.table, one.role && `for ${one.role}`].filter(Boolean).join(' ')
  item.append(element('strong', `${one.code} ${about}`.trim()), element('div', one.text))
  for (const statement of one.sql) item.append(element('code', `${statement};`))
  if (one.advice) item.append(element('div', one.advice, 'hint'))
  return item
}

async function look() {
  by('again').disabled = true
  try {
    const answer = await fetch('/inspect/findings.json')
    const report = await answer.json()
    if (!answer.ok) throw new Error(report.error)
    const items = report.findings.map(finding)
    for (const unseen of report.unseen) items.push(element('li', `Not looked at: ${unseen}.`))
    if (items.length === 0) items.push(element('li', 'Nothing is wrong.'))
    by('findings').replaceChildren(...items)
    by('findings').dataset.looked = String(report.milliseconds)
  } catch (error) {
    by('findings').replaceChildren(element('li', `It could not be looked: ${error.message}`, 'error'))
  } finally {
    by('again').disabled = false
  }
}

by('again').addEventListener('click', look)
const events = new EventSource('/inspect/events')
events.addEventListener('message', (message) => show(JSON.parse(message.data)))
events.addEventListener('error', () => {
  by('state').textContent = 'the relay does not answer; trying again'
  by('state').className = 'state bad'
})
look()
