// Reads documents as browsers do (npm `parse5`): what elements they have, with their attributes, and what text is seen.
//
// Usage: node html.mjs NODE_MODULES FILE, a JSON string a line; prints {"elements": [...], "text": "..."} for each.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [modules, file] = process.argv.slice(2);
const { parse } = await import(pathToFileURL(join(modules, "parse5/dist/index.js")));

// What stands in these is shown and no more.
const SHOWN = ["title", "class"];

function read(node, seen) {
  if (node.nodeName === "#text") seen.text.push(node.value);
  if (node.nodeName === "#comment") seen.elements.push("comment");
  if (node.attrs) {
    const attributes = node.attrs.map(({ name, value }) => (SHOWN.includes(name) ? name : `${name}=${value}`));
    seen.elements.push([node.tagName, ...attributes].join(" "));
  }
  for (const child of node.childNodes ?? []) read(child, seen);
  return seen;
}

for (const line of readFileSync(file, "utf8").split("\n").filter(Boolean)) {
  const { elements, text } = read(parse(JSON.parse(line)), { elements: [], text: [] });
  console.log(JSON.stringify({ elements, text: text.join("") }));
}
