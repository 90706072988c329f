// Signs reports as Twilio's own library does (npm `twilio`).
//
// Usage: node sign.mjs NODE_MODULES FILE, {"token", "url", "fields" or "body"} a line; prints {"url", "signature"} for each.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [modules, file] = process.argv.slice(2);
const { getExpectedBodyHash, getExpectedTwilioSignature } = createRequire(join(modules, "package.json"))("twilio");

for (const line of readFileSync(file, "utf8").split("\n").filter(Boolean)) {
  const { token, url, fields = {}, body } = JSON.parse(line);
  const signed = body === undefined ? url : `${url}&bodySHA256=${getExpectedBodyHash(body)}`;
  console.log(JSON.stringify({ url: signed, signature: getExpectedTwilioSignature(token, signed, fields) }));
}
