/** What the page says about an answer that is not whole. */

const PROBLEMS = {
  lost: "The connection was lost. The text up to there is kept.",
  unreachable: "The server cannot be reached. Is qwq serve still running?",
  context_length_exceeded: "The conversation does not fit in the context of the model. Start a new one, edit an earlier message, or lower the largest number of tokens.",
  server_busy: "The server is still busy.",
  shutting_down: "The server is shutting down. The text up to there is kept.",
  invalid_api_key: "The server needs its key.",
};

/** Return {kind, text, again} for an answer that failed, was stopped or was interrupted; null for others. */
export function problemNote({ state, problem, text, reasoning }) {
  if (state === "stopped") {
    return { kind: "quiet", text: text || reasoning ? "You stopped this answer." : "You stopped this answer before it began.", again: false };
  }
  if (state === "writing") return { kind: "warning", text: "The page was closed or loaded again during this answer. The text up to there is kept.", again: true };
  if (state !== "failed") return null;
  const known = PROBLEMS[problem.code];
  return { kind: "error", text: known ?? `The server refused: ${problem.message}`, again: true };
}

/** Return {kind, text, again} for an answer that a limit ended; null for a whole one. */
export function endingNote({ ending, finish }) {
  if (!ending) return finish === "length" ? warn("A limit cut off this answer.") : null;
  const tokens = /\((\d+) tokens\)/.exec(ending)?.[1];
  const after = tokens ? ` after ${Number(tokens).toLocaleString("en-US")} tokens` : "";
  const limit = ending.includes("the context") ? "the end of the context" : "the largest number of tokens";
  const advice = limit === "the end of the context" ? "Start a new conversation" : "Raise the largest number of tokens in the settings";
  if (ending.includes("reasoning used up")) return warn(`The reasoning reached ${limit}${after}, so there is no answer. ${advice}, or lower the reasoning effort.`);
  if (ending.includes("reasoning after the answer")) return warn(`The model began to reason again behind its answer, and reached ${limit}${after}.`);
  if (ending.includes("was cut off")) return warn(`The answer was cut off at ${limit}${after}. ${advice}.`);
  if (ending.includes("repeats itself")) return warn("The answer repeated itself without end, so the loop guard ended it. Another seed may help.");
  return warn(`${ending[0].toUpperCase()}${ending.slice(1)}.`);
}

const warn = (text) => ({ kind: "warning", text, again: false });
