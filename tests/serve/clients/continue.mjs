// Ask a server as Continue does, through its own package: node continue.mjs FOLDER URL KEY MODEL
//
// FOLDER/node_modules holds @continuedev/openai-adapters. The prompt of a completion is the one that Continue writes for
// models whose name has "qwen" and "coder". Prints JSON: the answer of a chat, the names of called functions, and the
// text of a gap.

import assert from "node:assert/strict";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, url, key, model] = process.argv.slice(2);
const path = join(folder, "node_modules/@continuedev/openai-adapters/dist/index.js");
const { constructLlmApi } = await import(pathToFileURL(path));
const signal = new AbortController().signal;

const STOPS = ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"];
STOPS.push("<|repo_name|>", "<|file_sep|>", "<|im_start|>", "<|im_end|>");
const GAP = "<|fim_prefix|>def add(a, b):\n    <|fim_suffix|>\n    return total\n<|fim_middle|>";
const TOOL = {
  type: "function",
  function: {
    name: "read_file",
    description: "Read a file.",
    parameters: { type: "object", required: ["filepath"], properties: { filepath: { type: "string" } } },
  },
};
const found = {};

for (const provider of ["openai", "vllm"]) {
  const api = constructLlmApi({ provider, apiBase: `${url}/v1/`, apiKey: key });
  assert.ok((await api.list()).some((each) => each.id === model));
  const messages = [{ role: "user", content: "What is 12+34?" }];
  const whole = await api.chatCompletionNonStream({ model, messages, temperature: 0, max_tokens: 300, stream: false }, signal);
  let text = "";
  let usage;
  const how = { model, messages, temperature: 0, max_tokens: 300, stream: true, tools: [] };
  for await (const chunk of api.chatCompletionStream(how, signal)) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.ok(usage.completion_tokens > 0);
  found.chat = text;

  const names = [];
  let given = "";
  const asks = { ...how, tools: [TOOL], tool_choice: "auto", parallel_tool_calls: false };
  for await (const chunk of api.chatCompletionStream(asks, signal)) {
    for (const call of chunk.choices[0]?.delta.tool_calls ?? []) {
      if (call.function.name) names.push(call.function.name);
      given += call.function.arguments ?? "";
    }
  }
  if (names.length) assert.deepEqual(Object.keys(JSON.parse(given)), ["filepath"]);
  found.calls = names;

  let gap = "";
  const fill = { model, prompt: GAP, max_tokens: 20, temperature: 0, stop: STOPS, stream: true };
  for await (const chunk of api.completionStream(fill, signal)) gap += chunk.choices[0].text;
  found.gap = gap;
}
console.log(JSON.stringify(found));
