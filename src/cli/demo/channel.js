// Supabase's protocol, as much of it as the demo's page speaks: one channel on one socket, Phoenix
// frames of version 2: `[join_ref, ref, topic, event, payload]`.

const HEARTBEAT_MS = 25_000
const LONGEST_WAIT_MS = 10_000
/** A relay that was started anew has yet to read what was written meanwhile. */
const COUNTED_MS = 1_000

export class Channel {
  #socket = null
  #ref = 0
  #join = null
  #beat = null
  #unanswered = null
  #failures = 0
  #again = null
  /** Everything before this cursor is here. */
  #since = null
  /** Why the rows have to be read again, where the server has said so. */
  #reason = null
  /** Since when nothing came, and what has come of that since it is back. */
  #away = null

  /**
   * `connect` returns {url, token}; `on` has state(name, words), change(data), joined(reason) where
   * the rows are to be read (`reason` is the server's, if it gave one), and back({seconds, changes})
   * once all that was missed has come.
   */
  constructor(topic, bindings, connect, on) {
    this.topic = topic
    this.bindings = bindings
    this.connect = connect
    this.on = on
  }

  async open() {
    this.on.state('connecting', 'connecting')
    let socket
    try {
      const { url, token } = await this.connect()
      socket = new WebSocket(url)
      this.token = token
    } catch {
      return this.#retry()
    }
    this.#socket = socket
    socket.onopen = () => {
      this.#beat = setInterval(() => this.#heartbeat(), HEARTBEAT_MS)
      this.#enter()
    }
    socket.onmessage = ({ data }) => {
      if (socket === this.#socket) this.#receive(JSON.parse(data))
    }
    socket.onclose = () => {
      if (socket === this.#socket) this.#retry()
    }
  }

  #send(event, payload, topic = this.topic) {
    const ref = String(++this.#ref)
    const join = topic !== this.topic ? null : event === 'phx_join' ? ref : this.#join
    this.#socket.send(JSON.stringify([join, ref, topic, event, payload]))
    return ref
  }

  #enter() {
    if (this.#socket?.readyState !== WebSocket.OPEN) return
    if (this.#away) Object.assign(this.#away, { until: Date.now(), changes: 0 })
    this.#join = this.#send('phx_join', {
      rowcast: { cursor: true, since: this.#since },
      config: {
        broadcast: { ack: false, self: false },
        presence: { key: '', enabled: false },
        postgres_changes: this.bindings,
        private: false,
      },
      access_token: this.token,
    })
  }

  #heartbeat() {
    // No answer within a whole interval: the connection is gone although nobody closed it.
    if (this.#unanswered !== null) return this.#socket.close(1000, 'heartbeat timeout')
    this.#unanswered = this.#send('heartbeat', {}, 'phoenix')
  }

  #receive([join, ref, topic, event, payload]) {
    if (event === 'phx_reply' && topic === 'phoenix') {
      if (ref === this.#unanswered) this.#unanswered = null
      return
    }
    // Frames of an earlier join of the same topic.
    if (topic !== this.topic || (join !== null && join !== this.#join)) return
    if (event === 'postgres_changes') return this.#change(payload.data)
    if (event === 'phx_reply' && ref === this.#join) {
      if (payload.status !== 'ok') return this.#lost(payload.response?.reason ?? 'refused')
      this.#failures = 0
      this.on.state('live', 'live')
      // What was missed comes by itself where the server was told since when.
      if (this.#since === null || this.#reason !== null) this.on.joined(this.#reason)
      this.#reason = null
      return
    }
    if (event === 'system' && payload.status === 'error') return this.on.state('lost', payload.message)
    if (event === 'system' && payload.extension === 'rowcast') return this.#told(payload)
    // The server has something to say that changes cannot carry, or ended the channel: join again
    // with a fresh token, and read the rows again once that is done.
    if (event === 'phx_error' || event === 'phx_close') this.#lost('joining again')
  }

  #change(data) {
    // A cursor is told once a second: what came behind it comes again.
    if (this.#since !== null && !isBehind(data.cursor, this.#since)) return
    this.#since = data.cursor
    if (this.#away && Date.parse(data.commit_timestamp) < this.#away.until) this.#away.changes += 1
    this.on.change(data)
  }

  #told({ status, cursor, reason }) {
    if (status === 'resync') {
      this.#since = cursor
      this.#reason = reason
    } else if (status === 'cursor') {
      this.#since = cursor
      const away = this.#away
      if (away) setTimeout(() => this.#back(away), COUNTED_MS)
    }
  }

  #back(away) {
    // It may have been lost again, or have said so.
    if (away !== this.#away || this.#join === null) return
    this.#away = null
    this.on.back({ seconds: (away.until - away.since) / 1000, changes: away.changes })
  }

  #lost(words) {
    this.#away ??= { since: Date.now(), changes: 0 }
    this.on.state('lost', words)
    this.#join = null
    clearTimeout(this.#again)
    this.#again = setTimeout(async () => {
      try {
        this.token = (await this.connect()).token
        this.#enter()
      } catch {
        this.#socket?.close()
      }
    }, this.#wait())
  }

  #retry() {
    clearInterval(this.#beat)
    clearTimeout(this.#again)
    this.#socket = this.#join = this.#unanswered = null
    this.#away ??= { since: Date.now(), changes: 0 }
    this.on.state('lost', 'connection lost, trying again')
    this.#again = setTimeout(() => this.open(), this.#wait())
  }

  /** Doubling and with jitter, so that many pages do not come back in the same instant. */
  #wait() {
    const span = Math.min(LONGEST_WAIT_MS, 300 * 2 ** this.#failures++)
    return span * (0.5 + Math.random() / 2)
  }
}

/** Whether one cursor lies behind another: of another history it does. */
function isBehind(cursor, other) {
  return cursor.slice(0, 16) !== other.slice(0, 16) || cursor.slice(17, 33) > other.slice(17, 33)
}
