// A browser tab with the public, unmodified client of Supabase, driven line by line: each line of the input is one order
// (JSON), each line of the output one thing that the client told its application. The libraries are found in the folder
// that WEDSYNC_TEST_NODE_MODULES names.
//
// Usage: node realtime.mjs newest|older URL SECRET

import { createHmac } from "node:crypto";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const modules = createRequire(`${process.env.WEDSYNC_TEST_NODE_MODULES}/.`);
const load = (name) => import(pathToFileURL(modules.resolve(name)));
const [kind, url, secret] = process.argv.slice(2);
const { default: WebSocket } = await load("ws");

// Remembers its sockets, so that one can be cut as a network does it.
const sockets = [];
class Cuttable extends WebSocket {
  constructor(...given) {
    super(...given);
    sockets.push(this);
  }
}

const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
const sign = (claims) => {
  const signed = `${encode({ alg: "HS256", typ: "JWT" })}.${encode({ exp: Math.floor(Date.now() / 1000) + 3600, ...claims })}`;
  return `${signed}.${createHmac("sha256", secret).update(signed).digest("base64url")}`;
};

const say = (channel, what, more) => console.log(JSON.stringify({ channel, what, at: Date.now(), ...more }));
// As an installation's anonymous key: it is signed, and of no organization.
const anonymous = sign({ role: "anon" });

const connect = async (claims) => {
  const token = sign(claims);
  if (kind === "older") {
    const { RealtimeClient } = modules("older-realtime-js");
    // It brings `ws` itself; given another transport it never listens to it.
    const client = new RealtimeClient(`${url.replace("http", "ws")}/realtime/v1`, { params: { apikey: anonymous } });
    await client.setAuth(token);
    return client;
  }
  const { createClient } = await load("@supabase/supabase-js");
  const { realtime } = createClient(url, anonymous, { realtime: { transport: Cuttable } });
  await realtime.setAuth(token);
  return realtime;
};

let client;
const channels = {};
const orders = {
  connect: async ({ claims }) => { client = await connect(claims); },
  join: ({ channel: name, config = {}, changes = [], resume }) => {
    const channel = client.channel(name, { config });
    channels[name] = channel;
    // What an application does that wants to miss nothing, with the client as it is: it remembers how far it is with
    // each message, and of a change once it has it, since its position comes beforehand.
    let next = {};
    const remember = ({ epoch, seq }) => epoch && resume && channel.updateJoinPayload({ resume: { epoch, seq } });
    channel.on("system", {}, (payload) => {
      if (payload.next) next = payload.next; else remember(payload);
      say(name, "system", { payload });
    });
    channel.on("broadcast", { event: "*" }, (message) => {
      remember(message.meta ?? {});
      const { payload } = message;
      const raw = payload instanceof ArrayBuffer || ArrayBuffer.isView(payload);
      say(name, "broadcast", { ...message, payload: raw ? [...new Uint8Array(payload)] : payload });
    });
    channel.on("presence", { event: "sync" }, () => say(name, "presence", { state: channel.presenceState() }));
    changes.forEach((filter, binding) => {
      channel.on("postgres_changes", filter, (change) => {
        remember(next);
        say(name, "change", { binding, change });
      });
    });
    if (resume) channel.updateJoinPayload({ resume });
    channel.subscribe((status, error) => say(name, "status", { status, error: error?.message }));
  },
  send: async ({ channel, event, payload, bytes }) => {
    const content = bytes ? Uint8Array.from(bytes).buffer : payload;
    say(channel, "sent", { result: await channels[channel].send({ type: "broadcast", event, payload: content }) });
  },
  // Without a socket: over HTTP.
  post: async ({ channel: name, event, payload }) => {
    const channel = client.channel(name);
    say(name, "sent", { result: await channel.send({ type: "broadcast", event, payload }) });
  },
  track: async ({ channel, payload }) => say(channel, "tracked", { result: await channels[channel].track(payload) }),
  untrack: async ({ channel }) => say(channel, "tracked", { result: await channels[channel].untrack() }),
  token: async ({ claims }) => { await client.setAuth(sign(claims)); },
  leave: async ({ channel }) => say(channel, "left", { result: await channels[channel].unsubscribe() }),
  cut: () => (kind === "older" ? client.conn : sockets.at(-1)).terminate?.(),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { order, ...given } = JSON.parse(line);
  await orders[order](given);
  console.log(JSON.stringify({ what: "done", order }));
}
process.exit(0);
