/** The server's API: one stream of events for each answer, and errors with what to do about them. */

import { session } from "./memory.js";

const KEY = "qwq.key"; // in sessionStorage: a key does not outlive the window

/**
 * The server refused, or went away.
 * `code` is the server's word, or "lost" where the connection broke, or "unreachable" where there was none.
 * `retry` is the number of seconds after which the same request may work; null: it will not.
 */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, retry = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retry = retry;
  }
}

/** Keep the server's key until the window closes. */
export function setKey(key) {
  session.set(KEY, key);
}

async function ask(path, { body = null, signal = null } = {}) {
  const key = session.get(KEY);
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== null) headers["Content-Type"] = "application/json";
  let response;
  try {
    const how = { headers, signal, cache: "no-store" };
    response = await fetch(path, body === null ? how : { ...how, method: "POST", body: JSON.stringify(body) });
  } catch (problem) {
    if (signal?.aborted) throw problem;
    throw new ApiError("The server cannot be reached.", { code: "unreachable" });
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let found = {};
  try {
    found = (await response.json()).error ?? {};
  } catch { /* a proxy's page: the status says enough */ }
  const seconds = Number(response.headers.get("Retry-After"));
  const retry = (response.status === 429 || response.status === 503) && found.code !== "shutting_down"
    ? Math.max(1, seconds || 1) : null;
  const message = String(found.message ?? `the server answered ${response.status}`).slice(0, 1000);
  return new ApiError(message, { status: response.status, code: found.code ?? null, retry });
}

/** Return the description of the model: see docs/serve.md. */
export async function model() {
  return (await (await ask("/v1/models")).json()).data[0];
}

/** Look inside: see docs/serve.md for the fields. */
export async function inside(body, signal) {
  return (await ask("/inside", { body, signal })).json();
}

/**
 * Answer a conversation. Yields the chunks of the stream in order, each as the server sent it.
 * Raises ApiError, and an AbortError where `signal` ended it.
 */
export async function* chat(request, signal) {
  const body = { ...request, stream: true, stream_options: { include_usage: true }, return_progress: true };
  const response = await ask("/v1/chat/completions", { body, signal });
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(String(chunk.error.message).slice(0, 1000), { code: chunk.error.code });
    yield chunk;
  }
  throw new ApiError("The connection was lost.", { code: "lost" });
}

/** Yield the data of server-sent events. Each byte is looked at once. */
export async function* events(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let line = []; // pieces of a line that has not ended
  let data = [];
  try {
    for (;;) {
      let got;
      try {
        got = await reader.read();
      } catch (problem) {
        if (signal?.aborted) throw problem;
        throw new ApiError("The connection was lost.", { code: "lost" });
      }
      if (got.done) return;
      const pieces = got.value.split("\n");
      for (const [at, piece] of pieces.entries()) {
        line.push(piece);
        if (at === pieces.length - 1) break;
        const whole = line.join("").replace(/\r$/, "");
        line = [];
        if (whole === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (whole.startsWith("data:")) {
          data.push(whole.slice(whole[5] === " " ? 6 : 5));
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
