// A real browser, headless, with tabs of an application that uses the public, unmodified client of Supabase, and the
// inspector in another; driven line by line: each line of the input is one order (JSON), each line of the output what
// came of it. What is pressed and read in the inspector is found as people find it: by label and role.
//
// Usage: node browser.mjs URL SECRET CHROMIUM

import { createHmac } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";

const modules = createRequire(`${process.env.WEDSYNC_TEST_NODE_MODULES}/.`);
const { chromium } = modules("playwright-core");
const [url, secret, executablePath] = process.argv.slice(2);
const PATIENCE = 50_000;

const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
const sign = (claims) => {
  const signed = `${encode({ alg: "HS256", typ: "JWT" })}.${encode({ exp: Math.floor(Date.now() / 1000) + 3600, ...claims })}`;
  return `${signed}.${createHmac("sha256", secret).update(signed).digest("base64url")}`;
};

// The application: it notes what it is told, and shows clients as it knows them, with a mark where that isn't settled yet:
// what somebody does is shown at once and told to the others, and settled by what the database says.
const application = `<!doctype html><title>tab</title><ul id="clients"></ul><script src="/supabase.js"></script><script>
window.seen = [];
const { url, key, token, channels } = JSON.parse(decodeURIComponent(location.hash.slice(1)));
const client = supabase.createClient(url, key);
const clients = {};
const show = (id, changes, settled) => {
  clients[id] = { ...clients[id], ...changes, settled };
  document.getElementById("clients").innerHTML = "";
  for (const [id, { settled, ...fields }] of Object.entries(clients)) {
    const item = document.getElementById("clients").appendChild(document.createElement("li"));
    item.textContent = id + " " + JSON.stringify(fields) + (settled ? "" : " …");
  }
};
const on = {};
const edit = (name, clientId, changes) => {
  show(clientId, changes, false);
  const payload = { clientId, changes, timestamp: new Date().toISOString() };
  return on[name].send({ type: "broadcast", event: "client-updated", payload });
};
const note = (channel, what, told) => {
  seen.push({ channel, what, told, at: Date.now() });
  if (told.event === "client-updated") show(told.payload.clientId, told.payload.changes, Boolean(told.meta));
};
client.realtime.setAuth(token).then(() => channels.forEach(({ channel, changes = [] }) => {
  on[channel] = client.channel(channel);
  for (const change of changes) on[channel].on("postgres_changes", change, (told) => note(channel, "change", told));
  on[channel].on("broadcast", { event: "*" }, (told) => note(channel, "broadcast", told))
    .on("system", {}, (told) => note(channel, "system", told))
    .subscribe((status) => note(channel, "status", { status }));
}));
</script>`;

const bundle = readFileSync(join(dirname(modules.resolve("@supabase/supabase-js/package.json")), "dist/umd/supabase.js"));
const server = createServer((request, answer) => {
  const script = request.url === "/supabase.js";
  answer.setHeader("content-type", script ? "text/javascript" : "text/html; charset=utf-8");
  answer.end(script ? bundle : application);
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
const home = `http://127.0.0.1:${server.address().port}/`;

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const complaints = [];
const open = async (address) => {
  const page = await (await browser.newContext()).newPage();
  page.setDefaultTimeout(PATIENCE);
  page.on("pageerror", (error) => complaints.push(`${address}: ${error}`));
  page.on("console", (message) => message.type() === "error" && complaints.push(`${address}: ${message.text()}`));
  await page.goto(address);
  return page;
};

// The first thing that a tab noted of this kind, with this text in it; on this channel, or any.
const noted = async (page, what, text, channel = null) => {
  const find = ([what, text, channel]) => window.seen.find((one) =>
    one.what === what && JSON.stringify(one.told).includes(text) && (channel === null || one.channel === channel));
  return (await page.waitForFunction(find, [what, text, channel])).jsonValue();
};

let tabs, inspector;
const entries = () => inspector.getByRole("log").getByRole("listitem");
const orders = {
  // A tab for each of these, on its channels.
  open: async ({ all }) => {
    tabs = await Promise.all(all.map(async ({ claims, channels }) => {
      const given = { url, key: sign({ role: "anon" }), token: sign(claims), channels };
      const tab = await open(`${home}#${encodeURIComponent(JSON.stringify(given))}`);
      for (const { channel } of channels) await noted(tab, "system", "Subscribed", channel);
      return tab;
    }));
  },
  // What each tab notes with this text in it; on this channel, or any.
  told: async ({ what, text, channel }) => ({ tabs: await Promise.all(tabs.map((tab) => noted(tab, what, text, channel))) }),
  edit: async ({ tab, channel, client, changes }) => tabs[tab].evaluate((given) => edit(...given), [channel, client, changes]),
  // Each tab shows this line, and no other.
  shows: async ({ line }) => {
    const only = (line) => document.getElementById("clients").innerText === line;
    await Promise.all(tabs.map((tab) => tab.waitForFunction(only, line)));
  },
  // With the token that it is offered.
  inspect: async ({ organization, channel }) => {
    inspector = await open(`${url}/realtime/inspector`);
    await inspector.getByLabel("Organization").selectOption(organization);
    await inspector.getByRole("button", { name: "Connect" }).click();
    await inspector.getByLabel("Name", { exact: true }).fill(channel);
    await inspector.getByRole("button", { name: "Join" }).click();
    await inspector.locator("#state[data-state=joined]").waitFor();
    await entries().filter({ hasText: "Subscribed" }).waitFor();
    return { state: await inspector.locator("#state").textContent() };
  },
  // What each tab, and the inspector, say of a change or broadcast that has this text in it.
  hear: async ({ what, text }) => ({
    tabs: await Promise.all(tabs.map((tab) => noted(tab, what, text))),
    ...(await orders.shown({ text })),
  }),
  shown: async ({ text }) => {
    const entry = entries().filter({ hasText: text }).first();
    await entry.locator("summary").click();
    const detail = await entry.locator("pre").textContent();
    const [time, position, kind] = await entry.locator("summary > *").allTextContents();
    return { inspector: { time, position, kind, detail } };
  },
  send: async ({ event, payload }) => {
    await inspector.getByLabel("Event name").fill(event);
    await inspector.getByLabel("Payload (JSON)").fill(JSON.stringify(payload));
    await inspector.getByRole("button", { name: "Send" }).click();
  },
  // Once it is on its channel (again), how it says so.
  joined: async () => {
    await inspector.locator("#state[data-state=joined]").waitFor();
    return { state: await inspector.locator("#state").textContent() };
  },
  lost: async () => { await inspector.getByText("connection lost").waitFor(); },
  // From the first tab's application.
  reply: async ({ event, payload }) => tabs[0].evaluate(
    ([event, payload]) => client.getChannels()[0].send({ type: "broadcast", event, payload }), [event, payload]),
  press: async ({ button }) => { await inspector.getByRole("button", { name: button }).click(); },
  search: async ({ text }) => { await inspector.getByRole("searchbox").fill(text); },
  present: async () => {
    await inspector.getByLabel("Be present").check();
    await inspector.getByRole("list", { name: "Who is present" }).getByText("inspector-").waitFor();
  },
  // How many entries can be seen, once there are that many; what went wrong in any page; what foreign text brought about.
  count: async ({ entries: wanted }) => {
    await inspector.waitForFunction((wanted) => document.querySelectorAll("#entries > li:not([hidden])").length === wanted, wanted);
    return { complaints, injected: await inspector.evaluate(() => window.injected ?? null) };
  },
  waiting: async ({ button }) => { await inspector.getByRole("button", { name: button, exact: true }).waitFor(); },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { order, ...given } = JSON.parse(line);
  try {
    console.log(JSON.stringify({ what: "done", order, ...(await orders[order](given)) }));
  } catch (error) {
    const page = inspector && (await inspector.locator("body").innerText());
    console.log(JSON.stringify({ what: "failed", order, error: String(error), complaints, page, seen: await tabs?.[0].evaluate(() => window.seen) }));
    break;
  }
}
await browser.close();
process.exit(0);
