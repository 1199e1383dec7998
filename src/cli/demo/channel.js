// Supabase's protocol, as much of it as the demo's page speaks: one channel on one socket, Phoenix
// frames of version 2: `[join_ref, ref, topic, event, payload]`.

const HEARTBEAT_MS = 25_000
const LONGEST_WAIT_MS = 10_000

export class Channel {
  #socket = null
  #ref = 0
  #join = null
  #beat = null
  #unanswered = null
  #failures = 0
  #again = null

  /** `connect` returns {url, token}; `on` has state(name, words), joined() and change(data). */
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
    this.#join = this.#send('phx_join', {
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
    if (event === 'postgres_changes') return this.on.change(payload.data)
    if (event === 'phx_reply' && ref === this.#join) {
      if (payload.status !== 'ok') return this.#lost(payload.response?.reason ?? 'refused')
      this.#failures = 0
      this.on.state('live', 'live')
      return this.on.joined()
    }
    if (event === 'system' && payload.status === 'error') return this.on.state('lost', payload.message)
    // The server has something to say that changes cannot carry, or ended the channel: join again
    // with a fresh token, and read the rows again once that is done.
    if (event === 'phx_error' || event === 'phx_close') this.#lost('joining again')
  }

  #lost(words) {
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
    this.on.state('lost', 'connection lost, trying again')
    this.#again = setTimeout(() => this.open(), this.#wait())
  }

  /** Doubling and with jitter, so that many pages do not come back in the same instant. */
  #wait() {
    const span = Math.min(LONGEST_WAIT_MS, 300 * 2 ** this.#failures++)
    return span * (0.5 + Math.random() / 2)
  }
}
