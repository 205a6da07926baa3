// The official JavaScript client: streams, tools, structured output, responses, aborts, classes of errors.
//
//     node with_openai.mjs URL MODEL_FOLDER

import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const url = process.argv[2];
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const chat = { model: "m", temperature: 0, max_tokens: 24 };
const messages = [{ role: "user", content: "What is the capital of France?" }];
const done = (what) => console.log(`✓ ${what}`);

const whole = await client.chat.completions.create({ ...chat, messages });
const answer = whole.choices[0].message.content;
assert.match(answer, /Paris/);
let streamed = "";
for await (const part of await client.chat.completions.create({ ...chat, messages, stream: true }))
  streamed += part.choices[0]?.delta?.content ?? "";
assert.equal(streamed, answer);
assert.equal((await client.chat.completions.stream({ ...chat, messages }).finalMessage()).content, answer);
done("chat, whole and streamed: the same text");

const City = z.object({ name: z.string().max(20), population: z.number().int() });
const parsed = await client.chat.completions.parse({
  ...chat,
  max_tokens: 120,
  messages: [{ role: "user", content: "Name a city and its population." }],
  response_format: zodResponseFormat(City, "city"),
});
assert.equal(typeof parsed.choices[0].message.parsed.population, "number");
done("zodResponseFormat is parsed");

const asked = [];
const tools = [
  {
    type: "function",
    function: {
      name: "weather",
      description: "The weather of a city.",
      parameters: { type: "object", properties: { city: { type: "string", maxLength: 12 } }, required: ["city"] },
      parse: JSON.parse,
      function: ({ city }) => {
        asked.push(city);
        return `sunny in ${city}`;
      },
    },
  },
];
const weather = [{ role: "user", content: "How is the weather in Paris?" }];
const forced = { type: "function", function: { name: "weather" } };
const runner = client.chat.completions.runTools({ ...chat, max_tokens: 60, messages: weather, tools, tool_choice: forced });
await runner.done();
assert.equal(asked.length, 1);
done("runTools: the demanded function was called with its arguments");

const responses = { model: "m", temperature: 0, max_output_tokens: 24, input: "What is the capital of France?" };
const response = await client.responses.create(responses);
assert.match(response.output_text, /Paris/);
const kinds = [];
for await (const event of await client.responses.create({ ...responses, stream: true })) kinds.push(event.type);
assert.equal(kinds[0], "response.created");
assert.ok(["response.completed", "response.incomplete"].includes(kinds.at(-1)), kinds.at(-1));
const last = await client.responses.stream(responses).finalResponse();
assert.equal(last.output[0].content[0].text, response.output_text);
const shaped = await client.responses.parse({
  ...responses,
  max_output_tokens: 120,
  input: "Name a city and its population.",
  text: { format: zodTextFormat(City, "city") },
});
assert.equal(typeof shaped.output_parsed.name, "string");
done("responses: whole, streamed, parsed");

const long = { ...chat, max_tokens: 1500, ignore_eos: true, messages, stream: true };
const stopped = await client.chat.completions.create(long);
for await (const _ of stopped) {
  stopped.controller.abort();
  break;
}
const running = async () => Number((await (await fetch(`${url}/metrics`)).text()).match(/^vllm:num_requests_running\{.*\} (.*)$/m)[1]);
for (const end = Date.now() + 30_000; (await running()) > 0; ) assert.ok(Date.now() < end, "it still runs");
done("an aborted stream ends at the server");

const wrong = (body) => client.chat.completions.create({ ...chat, messages, ...body }).then(assert.fail, (error) => error);
const bad = await wrong({ temperature: -1 });
assert.ok(bad instanceof OpenAI.BadRequestError && bad.param === "temperature", bad);
assert.ok((await wrong({ model: "another" })) instanceof OpenAI.NotFoundError);
done("errors have their classes");

const models = (await client.models.list()).data.map((model) => model.id);
assert.deepEqual(models, ["m"]);
const text = await client.completions.create({ model: "m", prompt: "The capital of France is", max_tokens: 4, temperature: 0 });
assert.match(text.choices[0].text, /^ Paris/);
done("models and completions");
