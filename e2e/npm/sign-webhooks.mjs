// Prints GitHub's recorded webhooks of the events that Longshore understands, signed by GitHub's own library: one
// JSON object per line. Run by webhooks/tests/it/octokit.rs with the secret as the argument.
import { readFileSync, readdirSync } from "node:fs";
import { sign } from "@octokit/webhooks-methods";

const [secret] = process.argv.slice(2);
const examples = new URL("node_modules/@octokit/webhooks-examples/", import.meta.url);
const sources = readdirSync(examples, { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map((entry) => entry.name);

for (const source of sources) {
  const events = JSON.parse(readFileSync(new URL(`${source}/index.json`, examples), "utf8"));
  for (const event of events.filter((event) => ["push", "pull_request", "ping"].includes(event.name))) {
    for (const example of event.examples) {
      const body = JSON.stringify(example);
      const signature = await sign(secret, body);
      console.log(JSON.stringify({ source, event: event.name, action: example.action, body, signature }));
    }
  }
}
