/** Conversations as files: Markdown to read, JSON to keep and to import. */

import { h } from "./dom.js";
import { newId, Tree } from "./tree.js";

const KIND = "qwq conversations";
const LARGEST = 64 << 20; // bytes of a file
const ROLES = new Set(["user", "assistant"]);

/** Return the branch that is shown as Markdown. The fence is longer than any in the reasoning. */
export function asMarkdown(conversation, messages) {
  const parts = [`# ${conversation.title.replaceAll("\n", " ")}`];
  for (const message of new Tree(messages).path(conversation.leaf)) {
    parts.push(message.role === "user" ? "## You" : "## Answer");
    if (message.reasoning) {
      const longest = Math.max(2, ...[...message.reasoning.matchAll(/`+/g)].map((match) => match[0].length));
      const fence = "`".repeat(longest + 1);
      parts.push(`<details><summary>Reasoning</summary>\n\n${fence}text\n${message.reasoning}\n${fence}\n\n</details>`);
    }
    if (message.text) parts.push(message.text);
  }
  return `${parts.join("\n\n")}\n`;
}

/** Return conversations with all their branches as JSON. `items` are {conversation, messages}. */
export function asJson(items) {
  return JSON.stringify({ kind: KIND, version: 1, conversations: items.map(({ conversation, messages }) => ({ ...conversation, messages })) }, null, 1);
}

/** Offer a text as a file. */
export function save(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

/** Return a file's name from a title. */
export function fileName(title, suffix) {
  const words = title.normalize("NFC").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 60);
  return `${words || "conversation"}.${suffix}`;
}

/**
 * Return the records of a file: {conversations, messages}, with new ids.
 * Raises Error with a line for people.
 * @param {File} file
 */
export async function readFile(file) {
  if (file.size > LARGEST) throw new Error("The file is too large.");
  let found;
  try {
    found = JSON.parse(await file.text());
  } catch {
    throw new Error("The file is not JSON.");
  }
  if (found?.kind !== KIND || found.version !== 1 || !Array.isArray(found.conversations)) {
    throw new Error("The file holds no conversations of this page.");
  }
  const records = { conversations: [], messages: [] };
  for (const each of found.conversations) readConversation(each, records);
  return records;
}

function readConversation(found, records) {
  const bad = () => { throw new Error("A conversation in the file is broken. Nothing was imported."); };
  if (typeof found?.title !== "string" || !Array.isArray(found.messages)) bad();
  const id = newId();
  const ids = new Map([[null, null]]);
  const now = Date.now();
  for (const message of found.messages) { // a parent stands before its children
    if (typeof message?.id !== "string" || ids.has(message.id) || !ROLES.has(message.role) || !ids.has(message.parent)) bad();
    if (typeof message.text !== "string" || (message.reasoning !== undefined && typeof message.reasoning !== "string")) bad();
    ids.set(message.id, newId());
    records.messages.push(cleaned(message, ids.get(message.id), id, ids.get(message.parent)));
  }
  const leaf = ids.get(found.leaf) ?? null;
  records.conversations.push({ id, title: found.title.slice(0, 200), named: found.named === true, leaf,
    created: number(found.created, now), updated: number(found.updated, now) });
}

const number = (value, otherwise) => (Number.isFinite(value) ? value : otherwise);
const text = (value) => (typeof value === "string" ? value : null);

/** Return a message with the fields that the page knows, each of its type. */
function cleaned(message, id, conversation, parent) {
  const common = { id, conversation, parent, role: message.role, text: message.text, created: number(message.created, 0) };
  if (message.role === "user") return common;
  const { counts = {}, times = {} } = message;
  const problem = message.problem && { message: String(message.problem.message), code: text(message.problem.code) };
  const state = ["done", "stopped", "writing"].includes(message.state) ? message.state : problem ? "failed" : "done";
  return {
    ...common, reasoning: message.reasoning ?? "", state, ending: text(message.ending), finish: text(message.finish), problem: problem ?? null,
    settings: { seed: number(message.settings?.seed, undefined) },
    counts: { prompt: number(counts.prompt, 0), cached: number(counts.cached, 0), output: number(counts.output, 0), reasoning: number(counts.reasoning, 0), exact: counts.exact === true },
    times: { prompt: number(times.prompt, 0), reasoning: number(times.reasoning, 0), answer: number(times.answer, 0) },
  };
}
