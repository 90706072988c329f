// Serves one API description with Stoplight's Prism, which holds every request against it, until the standard input ends:
// whoever started it takes it along, however that one ends.
//
// Usage: node prism.mjs NODE_MODULES DESCRIPTION PORT
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [modules, file, port] = process.argv.slice(2);
process.stdin.on("end", () => process.exit(0)).resume();

// Prism holds nothing of a body against a schema in which an enumeration names null, and doesn't say so: it goes without
// that enumeration.
const document = JSON.parse(readFileSync(file, "utf8"), (_, schema) => {
  if (Array.isArray(schema?.enum) && schema.enum.includes(null)) delete schema.enum;
  return schema;
});

const require = createRequire(join(modules, "package.json"));
const { createSingleProcessPrism } = require("@stoplight/prism-cli/dist/util/createServer");
// Without `errors`: a request that breaks the description is refused either way, and samples of recursive schemas aren't.
await createSingleProcessPrism({
  document,
  host: "127.0.0.1",
  port: Number(port),
  cors: false,
  dynamic: false,
  errors: false,
  verboseLevel: "warn",
  jsonSchemaFakerFillProperties: true,
});
