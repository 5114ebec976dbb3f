// A relay as one would write it on Restate: a virtual object for each conversation, whose handler posts in a durable step.
// Restate keeps the messages itself, and their order for each key.
import { createRequire } from 'node:module'

const require = createRequire(`${process.env.BENCH_HOME}/`)
const restate = require('@restatedev/restate-sdk')
const { Pool } = require('undici')

const sink = new URL(process.env.BENCH_SINK)
const pool = new Pool(sink.origin, { connections: Number(process.env.BENCH_IN_FLIGHT) })
const headers = { 'content-type': 'application/json' }

const conversation = restate.object({
  name: 'Conversation',
  handlers: {
    deliver: async (context, message) => {
      await context.run('post', async () => {
        const answer = await pool.request({ path: sink.pathname, method: 'POST', headers, body: JSON.stringify(message) })
        await answer.body.dump()
        if (answer.statusCode >= 300) throw new Error(`the destination answered ${answer.statusCode}`)
      })
    },
  },
})

await restate.serve({ services: [conversation], port: Number(process.argv[2]) })
