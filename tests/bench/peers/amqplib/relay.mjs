// A relay as one would write it on Node: amqplib's confirm channel, a quorum queue, undici with keep-alive. Keeps no order. With
// BENCH_POSTGRES it also looks up the chat of each message and notes each delivered message, with pg.
import { createRequire } from 'node:module'
import { randomUUID } from 'node:crypto'
import http from 'node:http'

const require = createRequire(`${process.env.BENCH_HOME}/`)
const amqplib = require('amqplib')
const { Pool } = require('undici')

const QUEUE = 'relay'
const DIRECTORY = `CREATE TABLE IF NOT EXISTS chat (id text PRIMARY KEY, state text NOT NULL);
  CREATE TABLE IF NOT EXISTS delivered (id uuid PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())`
const inFlight = Number(process.env.BENCH_IN_FLIGHT)

async function channelOf(make) {
  const connection = await amqplib.connect(process.env.BENCH_AMQP, { noDelay: true })
  connection.on('close', () => process.exit(1))
  const channel = await connection[make]()
  await channel.assertQueue(QUEUE, { durable: true, arguments: { 'x-queue-type': 'quorum' } })
  return channel
}

async function front() {
  const channel = await channelOf('createConfirmChannel')
  const server = http.createServer((request, response) => {
    const chunks = []
    request.on('data', chunk => chunks.push(chunk))
    request.on('end', () => {
      const body = chunks.length === 1 ? chunks[0] : Buffer.concat(chunks)
      channel.sendToQueue(QUEUE, body, { persistent: true }, error => {
        response.writeHead(error ? 503 : 202, { 'content-length': 0 })
        response.end()
      })
    })
  })
  server.keepAliveTimeout = 60_000
  server.listen(Number(process.env.BENCH_PORT), '127.0.0.1')
}

async function directory() {
  const { Pool } = require('pg')
  const pool = new Pool({ connectionString: process.env.BENCH_POSTGRES, max: 16 })
  await pool.query(DIRECTORY)
  const chat = '5f1c4ac4c0a8010e01d3e7a1a5b0c111'
  return {
    lookUp: () => pool.query({ name: 'look-up', text: 'SELECT state FROM chat WHERE id = $1', values: [chat] }),
    note: () => pool.query({ name: 'note', text: 'INSERT INTO delivered (id) VALUES ($1)', values: [randomUUID()] })
  }
}

async function worker() {
  const chats = process.env.BENCH_POSTGRES ? await directory() : null
  const channel = await channelOf('createChannel')
  const sink = new URL(process.env.BENCH_SINK)
  const pool = new Pool(sink.origin, { connections: inFlight })
  const options = { path: sink.pathname, method: 'POST', headers: { 'content-type': 'application/json' } }
  await channel.prefetch(inFlight)
  await channel.consume(QUEUE, async message => {
    await chats?.lookUp()
    for (let wait = 250; ; wait = Math.min(wait * 2, 30_000)) {
      try {
        const answer = await pool.request({ ...options, body: message.content })
        await answer.body.dump()
        if (answer.statusCode < 300) {
          await chats?.note()
          return channel.ack(message)
        }
      } catch {
        // It is tried again, as after any answer but 2xx.
      }
      await new Promise(resolve => setTimeout(resolve, wait * Math.random()))
    }
  })
}

await (process.argv[2] === 'front' ? front() : worker())
