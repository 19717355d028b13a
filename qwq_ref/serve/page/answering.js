/** One answer while it comes: asks the server, waits where it is busy, and keeps the message up to date and saved. */

import { ApiError, chat } from "./api.js";

const SAVE = 400; // milliseconds between saves of an answer that grows
const TRIES = 60; // requests to a server that is busy or loading

/**
 * Runs until the message is done. The message holds what is shown and saved:
 *
 *   state      "writing", "done", "stopped" by a person, "failed"
 *   text, reasoning
 *   counts     {prompt, cached, output, reasoning}: tokens. `exact` tells that the server counted them
 *   times      {prompt, reasoning, answer}: seconds
 *   ending     the server's words for why the answer is not whole; null: it is
 *   problem    {message, code}: of an answer that failed
 *
 * What is not saved is in `live`: {phase: "waiting" | "prompt" | "reasoning" | "answer", progress, countdown, since}.
 */
export class Answering extends EventTarget {
  #stop = new AbortController();
  #saved = 0;
  #base = 0; // seconds of the phase before it began again

  /**
   * @param {object} message of the role "assistant", already saved
   * @param {object} request the body for the server
   * @param {object} store
   */
  constructor(message, request, store) {
    super();
    this.message = message;
    this.request = request;
    this.store = store;
    this.live = { phase: "waiting", progress: null, countdown: null, since: performance.now() };
    this.done = this.#run();
  }

  /** End the answer. What has come stays. */
  stop() {
    this.#stop.abort();
  }

  async #run() {
    const { message } = this;
    try {
      for (let tries = 1; ; tries++) {
        try {
          for await (const chunk of chat(this.request, this.#stop.signal)) this.#take(chunk);
          message.state = "done";
          break;
        } catch (problem) {
          if (!(problem instanceof ApiError) || problem.retry === null || tries === TRIES) throw problem;
          await this.#wait(problem);
        }
      }
    } catch (problem) {
      this.#fail(problem);
    }
    this.#clock();
    await this.save();
    this.dispatchEvent(new Event("end"));
  }

  #fail(problem) {
    const { message } = this;
    if (this.#stop.signal.aborted) {
      message.state = "stopped";
    } else {
      message.state = "failed";
      const known = problem instanceof ApiError;
      message.problem = { message: known ? problem.message : "The page has a fault.", code: known ? problem.code : "fault" };
      if (!known) console.error(problem);
    }
  }

  /** Count down to the next try. */
  async #wait(problem) {
    const end = performance.now() + 1000 * problem.retry;
    const signal = this.#stop.signal;
    while (performance.now() < end) {
      this.live.countdown = { seconds: Math.ceil((end - performance.now()) / 1000), code: problem.code };
      this.#changed();
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, Math.min(1000, Math.max(1, end - performance.now())));
        signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
      });
      if (signal.aborted) throw problem;
    }
    this.live.countdown = null;
    this.live.since = performance.now();
    this.#changed();
  }

  #take(chunk) {
    const { message, live } = this;
    const choice = chunk.choices?.[0];
    const delta = choice?.delta ?? {};
    if (chunk.prompt_progress) this.#progress(chunk.prompt_progress);
    const thought = delta.reasoning_content ?? delta.reasoning;
    if (thought) {
      this.#phase("reasoning");
      message.reasoning += thought;
      message.counts.reasoning += 1;
      message.counts.output += 1;
    }
    if (delta.content) {
      this.#phase("answer");
      message.text += delta.content;
      message.counts.output += 1;
    }
    if (choice?.finish_reason) {
      message.ending = choice.ending ?? null;
      message.finish = choice.finish_reason;
    }
    if (chunk.usage) this.#usage(chunk.usage);
    this.#clock();
    this.#changed();
    if (performance.now() - this.#saved > SAVE && live.phase !== "prompt") this.save();
  }

  #usage(usage) {
    this.message.counts = {
      prompt: usage.prompt_tokens,
      cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
      output: usage.completion_tokens,
      reasoning: usage.completion_tokens_details?.reasoning_tokens ?? 0,
      exact: true,
    };
  }

  #progress(found) {
    const { live, message } = this;
    this.#phase("prompt");
    message.counts.prompt = found.total;
    const now = performance.now();
    live.progress ??= { first: found.processed, since: now };
    const did = found.processed - live.progress.first;
    const left = found.total - found.processed;
    live.progress = { ...live.progress, done: found.processed, total: found.total,
      left: did > 0 ? (left * (now - live.progress.since)) / did / 1000 : null };
  }

  #phase(name) {
    if (this.live.phase === name) return;
    this.#clock();
    this.live.phase = name;
    this.live.since = performance.now();
    this.#base = this.message.times[name] ?? 0;
  }

  /** Add the time since the last call to that of the phase. */
  #clock() {
    const { live, message } = this;
    const name = live.phase === "waiting" ? "prompt" : live.phase;
    message.times[name] = this.#base + (performance.now() - live.since) / 1000;
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }

  /** Save the message as it is now. */
  async save() {
    this.#saved = performance.now();
    try {
      await this.store.putMessage(this.message);
    } catch (problem) {
      console.warn("an answer could not be saved", problem.name);
      this.dispatchEvent(new Event("unsaved"));
    }
  }
}

/** Return a new message for an answer. */
export function newAnswer(id, conversation, parent, request) {
  const { messages, ...settings } = request;
  return {
    id, conversation, parent, role: "assistant", created: Date.now(), state: "writing", text: "", reasoning: "", settings,
    counts: { prompt: 0, cached: 0, output: 0, reasoning: 0, exact: false },
    times: { prompt: 0, reasoning: 0, answer: 0 }, ending: null, finish: null, problem: null,
  };
}
