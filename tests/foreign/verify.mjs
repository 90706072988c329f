// Verifies signed webhooks with the public Node libraries, as a receiver would; see verify.py, its twin, for the
// lines that it reads. The libraries are found in the folder that WEDSYNC_TEST_NODE_MODULES names.

import { createHmac, timingSafeEqual } from "node:crypto";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const modules = createRequire(`${process.env.WEDSYNC_TEST_NODE_MODULES}/.`);
const load = (name) => import(pathToFileURL(modules.resolve(name)));

// Whether `Webhook` of one of the libraries accepts the message; a failure of another kind is not a refusal.
const library = ({ Webhook, WebhookVerificationError }) => (secret, headers, body) => {
  try {
    new Webhook(secret).verify(body, headers);
    return true;
  } catch (error) {
    if (error instanceof WebhookVerificationError) return false;
    throw error;
  }
};

// X-WedSync-Signature with nothing but what Node brings: the secret as shown is the key.
const plain = (secret, headers, body) => {
  const expected = Buffer.from(createHmac("sha256", secret).update(body).digest("hex"));
  const candidate = Buffer.from(headers["x-wedsync-signature"]);
  return expected.length === candidate.length && timingSafeEqual(expected, candidate);
};

const libraries = [];
for (const name of ["standardwebhooks", "svix"]) libraries.push([name, library(await load(name))]);

// `plain` covers the body alone, and only where its header was sent.
const verifiers = ({ headers, altered }) =>
  "x-wedsync-signature" in headers && ["", "body", "secret"].includes(altered)
    ? [...libraries, ["plain", plain]]
    : libraries;

const counts = {};
let mistakes = 0;
let number = 0;
for await (const line of createInterface({ input: process.stdin })) {
  number += 1;
  const message = JSON.parse(line);
  const body = Buffer.from(message.body_base64, "base64");
  for (const [name, verify] of verifiers(message)) {
    const verified = verify(message.secret, message.headers, body);
    counts[name] ??= { verified: 0, refused: 0 };
    counts[name][verified ? "verified" : "refused"] += 1;
    if (verified === Boolean(message.altered)) {
      mistakes += 1;
      console.error(`${name}: line ${number}, altered: ${message.altered}: ${JSON.stringify(message.headers)}`);
    }
  }
}
console.log(JSON.stringify({ language: "node", mistakes, ...counts }));
process.exitCode = mistakes || number === 0 ? 1 : 0;
