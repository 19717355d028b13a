// Ask a server everything that OpenAI's package for JavaScript can ask it.
//
//     node openai.mjs FOLDER URL KEY
//
// FOLDER/node_modules holds the package. Each check prints its name. The last line is JSON: the name of the model, and
// the reasoning and the answer of one greedy chat, to compare with those of Python.

import assert from "node:assert/strict";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, url, key] = process.argv.slice(2);
const openai = await import(pathToFileURL(join(folder, "node_modules/openai/index.mjs")));
const OpenAI = openai.default;
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0, timeout: 600_000 });

const QUESTION = [{ role: "user", content: "What is 123+456?" }];
const SUM = [{ role: "user", content: "What is 1+3?" }];
const PARAMETERS = {
  type: "object",
  properties: { a: { enum: [1, 2] }, b: { enum: [3, 4] } },
  required: ["a", "b"],
  additionalProperties: false,
};
const TOOL = { type: "function", function: { name: "add", description: "Add two digits.", parameters: PARAMETERS } };
const SCHEMA = {
  type: "object",
  properties: { sum: { type: "integer", minimum: 0, maximum: 9 } },
  required: ["sum"],
  additionalProperties: false,
};
const FORM = { type: "json_schema", json_schema: { name: "sum", strict: true, schema: SCHEMA } };

const listed = await client.models.list();
const model = listed.data[0].id;
const reasons = listed.data[0].qwq_ref.reasoning;
const chat = (how) => client.chat.completions.create({ model, messages: QUESTION, temperature: 0, max_tokens: 300, ...how });
const SEED = 4; // of an answer of the shipped model that is long at a high temperature
const brief = reasons ? { reasoning_effort: "none" } : {};
const complete = (how) => client.completions.create({ model, prompt: "Reverse 12+34:\n", temperature: 0, ...how });

async function collect(stream) {
  const found = { content: "", reasoning: "", finish: [], chunks: [], logprobs: [] };
  for await (const chunk of stream) {
    found.chunks.push(chunk);
    for (const choice of chunk.choices) {
      found.content += choice.delta.content ?? "";
      assert.equal(choice.delta.reasoning, choice.delta.reasoning_content);
      found.reasoning += choice.delta.reasoning_content ?? "";
      found.logprobs.push(...(choice.logprobs?.content ?? []));
      if (choice.finish_reason) found.finish.push(choice.finish_reason);
    }
  }
  return found;
}

// Wait until the server works on no prompts; with "waiting", until none waits for its turn.
async function rests(which = "running|waiting") {
  while (await prompts(which)) await new Promise((resolve) => setTimeout(resolve, 20));
}

// The number of prompts that the server works on.
async function prompts(which) {
  const answer = await fetch(`${url}/metrics`, { headers: { Authorization: `Bearer ${key}` } });
  const counts = (await answer.text()).matchAll(new RegExp(`^qwq_(?:${which}) (\\d+)`, "gm"));
  return [...counts].reduce((sum, [, count]) => sum + Number(count), 0);
}

async function refused(work, kind, wanted) {
  const problem = await work.then(() => assert.fail("it was answered"), (error) => error);
  assert.ok(problem instanceof kind, `${problem}`);
  for (const [name, value] of Object.entries(wanted)) assert.equal(problem[name], value, `${name}: ${problem}`);
  return problem;
}

function isCall(call) {
  assert.equal(call.function.name, "add");
  const found = JSON.parse(call.function.arguments);
  assert.deepEqual(Object.keys(found).sort(), ["a", "b"]);
  assert.ok([1, 2].includes(found.a) && [3, 4].includes(found.b));
}

let greedy;
const CHECKS = {
  async "the model is listed and described"() {
    assert.equal((await client.models.retrieve(model)).id, model);
    await refused(client.models.retrieve("other"), openai.NotFoundError, { status: 404, code: "model_not_found" });
  },

  async "a chat, with its reasoning and its usage"() {
    greedy = await chat();
    const { message, finish_reason } = greedy.choices[0];
    assert.ok(message.content);
    assert.equal(finish_reason, "stop");
    assert.equal(Boolean(message.reasoning_content), reasons);
    assert.equal(message.reasoning, message.reasoning_content);
    const usage = greedy.usage;
    assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
    assert.equal(usage.completion_tokens_details.reasoning_tokens > 0, reasons);
  },

  async "a stream has the text of the whole answer, and its usage last"() {
    const found = await collect(await chat({ stream: true, stream_options: { include_usage: true } }));
    const { message } = greedy.choices[0];
    assert.equal(found.content, message.content);
    assert.equal(found.reasoning, message.reasoning_content ?? "");
    assert.deepEqual(found.finish, ["stop"]);
    const last = found.chunks.at(-1);
    assert.deepEqual(last.choices, []);
    assert.equal(last.usage.completion_tokens, greedy.usage.completion_tokens);
    assert.ok(found.chunks.length > 5);
  },

  async "the package's own stream helper builds the answer"() {
    const stream = client.chat.completions.stream({ model, messages: QUESTION, temperature: 0, max_tokens: 300 });
    let text = "";
    stream.on("content", (delta) => (text += delta));
    const found = await stream.finalChatCompletion();
    assert.equal(found.choices[0].message.content, greedy.choices[0].message.content);
    assert.equal(text, greedy.choices[0].message.content);
  },

  async "a conversation of three turns"() {
    const messages = [];
    for (const content of ["What is 1+2?", "And 2+2?", "And 3+2?"]) {
      messages.push({ role: "user", content });
      const { message } = (await chat({ messages, ...brief, max_tokens: 60 })).choices[0];
      assert.ok(message.content);
      messages.push(message); // with its reasoning fields, as the package returns it
    }
  },

  async "a budget of reasoning"() {
    if (!reasons) return;
    const none = (await chat({ reasoning_effort: "none" })).choices[0].message;
    assert.ok(!none.reasoning_content && none.content);
    const cut = await chat({ max_tokens: 5 });
    assert.equal(cut.choices[0].finish_reason, "length");
    assert.ok(cut.choices[0].message.reasoning_content);
    assert.match(cut.choices[0].ending, /max-tokens/);
  },

  async "a tool call, whole"() {
    const how = { messages: SUM, tools: [TOOL], tool_choice: "required", parallel_tool_calls: false, ...brief };
    const { message, finish_reason } = (await chat(how)).choices[0];
    assert.equal(finish_reason, "tool_calls");
    assert.equal(message.tool_calls.length, 1);
    isCall(message.tool_calls[0]);
    const named = { ...how, tool_choice: { type: "function", function: { name: "add" } } };
    isCall((await chat(named)).choices[0].message.tool_calls[0]);
  },

  async "a tool call, streamed"() {
    const how = { messages: SUM, tools: [TOOL], tool_choice: "required", parallel_tool_calls: false, ...brief };
    const whole = (await chat(how)).choices[0].message.tool_calls[0];
    const fragments = [];
    const built = { name: "", id: [] };
    for await (const chunk of await chat({ ...how, stream: true })) {
      for (const call of chunk.choices[0].delta.tool_calls ?? []) {
        assert.equal(call.index, 0);
        if (call.id) built.id.push(call.id);
        built.name += call.function.name ?? "";
        if (call.function.arguments) fragments.push(call.function.arguments);
      }
    }
    assert.equal(built.id.length, 1);
    assert.equal(built.name, "add");
    assert.equal(fragments.join(""), whole.function.arguments);
    assert.ok(fragments.length > 2);
  },

  async "a tool call behind reasoning, whole and streamed"() {
    if (!reasons) return;
    const how = { messages: SUM, tools: [TOOL], tool_choice: "required", parallel_tool_calls: false, think_budget: 12 };
    const { message } = (await chat(how)).choices[0];
    assert.ok(message.reasoning_content);
    isCall(message.tool_calls[0]);
    const stream = client.chat.completions.stream({ model, temperature: 0, max_tokens: 300, ...how });
    const found = (await stream.finalChatCompletion()).choices[0];
    assert.equal(found.finish_reason, "tool_calls");
    assert.equal(found.message.tool_calls[0].function.arguments, message.tool_calls[0].function.arguments);
  },

  async "the package runs the function, and the answer follows"() {
    const seen = [];
    const add = (given) => {
      seen.push(given);
      return String(given.a + given.b);
    };
    const runner = client.chat.completions.runTools({
      model,
      messages: SUM,
      temperature: 0,
      max_tokens: 200,
      tools: [{ type: "function", function: { ...TOOL.function, function: add, parse: JSON.parse } }],
      tool_choice: { type: "function", function: { name: "add" } },
      ...brief,
    }, { maxChatCompletions: 2 });
    await runner.done();
    assert.ok(seen.length >= 1 && [1, 2].includes(seen[0].a));
    assert.ok(runner.messages.some((message) => message.role === "tool"));
  },

  async "an answer within a JSON schema, whole, streamed and parsed"() {
    const whole = (await chat({ messages: SUM, response_format: FORM, ...brief })).choices[0].message.content;
    assert.deepEqual(Object.keys(JSON.parse(whole)), ["sum"]);
    assert.equal((await collect(await chat({ messages: SUM, response_format: FORM, stream: true, ...brief }))).content, whole);
    const how = { model, messages: SUM, temperature: 0, max_tokens: 300, ...brief };
    const parsed = await client.chat.completions.parse({ ...how, response_format: FORM });
    assert.ok(parsed.choices[0].message.content.startsWith("{"));
    const free = await chat({ messages: SUM, response_format: { type: "json_object" }, ...brief });
    assert.ok(free.choices[0].message.content.startsWith("{"));
    if (!reasons) return;
    const behind = (await chat({ messages: SUM, response_format: FORM, think_budget: 12 })).choices[0].message;
    assert.ok(behind.reasoning_content);
    assert.deepEqual(Object.keys(JSON.parse(behind.content)), ["sum"]);
  },

  async "stop texts"() {
    const whole = (await complete({ max_tokens: 60 })).choices[0].text;
    const stop = whole.slice(5, 8);
    const found = (await complete({ max_tokens: 60, stop: [stop, "never"] })).choices[0];
    assert.equal(found.text, whole.slice(0, whole.indexOf(stop)));
    assert.equal(found.finish_reason, "stop");
    const said = greedy.choices[0].message.content;
    const end = said.slice(3, 5);
    const cut = (await chat({ stop: end })).choices[0];
    assert.equal(cut.message.content, said.slice(0, said.indexOf(end)));
    assert.equal((await collect(await chat({ stop: end, stream: true }))).content, cut.message.content);
  },

  async "seeds and several choices"() {
    const how = { temperature: 2, max_tokens: 20 };
    const text = ({ message }) => (message.reasoning_content ?? "") + (message.content ?? "");
    const three = (await chat({ ...how, seed: 5, n: 3 })).choices;
    assert.deepEqual(three.map((choice) => choice.index), [0, 1, 2]);
    for (const [number, choice] of three.entries()) {
      assert.equal(text((await chat({ ...how, seed: 5 + number })).choices[0]), text(choice));
    }
    assert.ok(new Set(three.map(text)).size > 1);
    const streamed = ["", "", ""];
    for await (const chunk of await chat({ ...how, seed: 5, n: 3, stream: true })) {
      const { index, delta } = chunk.choices[0];
      streamed[index] += (delta.reasoning_content ?? "") + (delta.content ?? "");
    }
    assert.deepEqual(streamed, three.map(text));
  },

  async "log-probabilities of a chat and of a completion"() {
    const how = { logprobs: true, top_logprobs: 3 };
    const { content } = (await chat(how)).choices[0].logprobs;
    const text = Buffer.from(content.flatMap((each) => each.bytes)).toString();
    assert.equal(text, greedy.choices[0].message.content);
    for (const each of content) {
      assert.ok(each.logprob <= 0);
      assert.equal(each.top_logprobs.length, 3);
    }
    const streamed = (await collect(await chat({ ...how, stream: true }))).logprobs;
    assert.deepEqual(streamed, content);
    const scored = (await complete({ max_tokens: 0, echo: true, logprobs: 1 })).choices[0].logprobs;
    assert.equal(scored.token_logprobs[0], null);
    assert.equal(scored.tokens.join(""), "Reverse 12+34:\n");
  },

  async "completions of texts and ids, whole and streamed"() {
    const text = (await complete({ max_tokens: 12 })).choices[0].text;
    let streamed = "";
    for await (const chunk of await complete({ max_tokens: 12, stream: true })) streamed += chunk.choices[0].text;
    assert.equal(streamed, text);
    const both = await complete({ prompt: ["Reverse 12+34:\n", "Sort 3,1,2."], max_tokens: 12 });
    assert.equal(both.choices[0].text, text);
    assert.equal(both.choices[1].index, 1);
  },

  async "responses, as items and as events"() {
    const how = { model, input: "What is 123+456?", temperature: 0, max_output_tokens: 300 };
    const found = await client.responses.create(how);
    assert.equal(found.output_text, greedy.choices[0].message.content);
    assert.equal(found.output.some((item) => item.type === "reasoning"), reasons);
    let text = "";
    for await (const each of await client.responses.create({ ...how, stream: true })) {
      if (each.type === "response.output_text.delta") text += each.delta;
    }
    assert.equal(text, found.output_text);
    const flat = { type: "function", ...TOOL.function, strict: true };
    const effort = reasons ? { reasoning: { effort: "none" } } : {};
    const called = await client.responses.create({ ...how, tools: [flat], tool_choice: "required", ...effort });
    isCall({ function: called.output.find((item) => item.type === "function_call") });
  },

  async "errors name the field"() {
    const wrong = [
      [{ temperature: -1 }, "temperature"],
      [{ n: 17 }, "n"],
      [{ best_answer: 1 }, "best_answer"],
      [{ messages: [{ role: "robot", content: "x" }] }, "messages[0].role"],
      [{ response_format: { type: "xml" } }, "response_format.type"],
      [{ stream: true, temperature: "warm" }, "temperature"],
    ];
    for (const [how, param] of wrong) await refused(chat(how), openai.BadRequestError, { status: 400, param });
    const code = "context_length_exceeded";
    await refused(chat({ max_tokens: 1_000_000 }), openai.BadRequestError, { code });
    await refused(chat({ model: "gpt-4o" }), openai.NotFoundError, { code: "model_not_found" });
  },

  async "a wrong key is refused"() {
    const stranger = client.withOptions({ apiKey: "wrong" });
    await refused(stranger.models.list(), openai.AuthenticationError, { status: 401, code: "invalid_api_key" });
  },

  async "a client that gives up, and one that stops a stream"() {
    const how = { temperature: 9, seed: 1, messages: SUM, model, logit_bias: {} };
    const short = client.withOptions({ timeout: 30 });
    await refused(short.chat.completions.create({ ...how, n: 2 }), openai.APIConnectionTimeoutError, {});
    const stream = await client.chat.completions.create({ ...how, stream: true });
    for await (const chunk of stream) if (chunk) break; // leaving the loop closes the connection
    assert.ok((await chat({ max_tokens: 1 })).choices);
  },

  async "a busy server is asked again"() {
    // Two answers run, and four wait: the server has no more room. Those of the checks above must be gone.
    await rests();
    const long = { temperature: 9, seed: SEED, messages: SUM, stream: true, max_tokens: 700 };
    const running = [await chat(long), await chat(long)];
    for (const stream of running) await stream[Symbol.asyncIterator]().next();
    await rests("waiting"); // a stream begins before its turn
    const waiting = await chat({ ...long, n: 4 });
    const problem = await refused(chat({ max_tokens: 1 }), openai.RateLimitError, { status: 429, code: "server_busy" });
    assert.ok(Number(problem.headers.get("retry-after")) >= 1);
    const patient = client.withOptions({ maxRetries: 20 }).chat.completions;
    const asked = patient.create({ model, messages: SUM, max_tokens: 1 });
    setTimeout(() => [...running, waiting].forEach((stream) => stream.controller.abort()), 100);
    assert.ok((await asked).choices);
  },
};

for (const [name, check] of Object.entries(CHECKS)) {
  await check();
  console.log(`ok: ${name}`);
}
const { content, reasoning_content } = greedy.choices[0].message;
console.log(JSON.stringify({ model, content, reasoning_content }));
