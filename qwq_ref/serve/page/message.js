/** The view of one message. `update` draws what is new, and costs as much as the new text. */

import { copy, count, duration, h, iconButton, many } from "./dom.js";
import { Markdown } from "./markdown.js";
import { endingNote, problemNote } from "./notes.js";
import { Plain } from "./plain.js";

/**
 * A view, made for one message of a thread.
 *
 * @param {object} message
 * @param {object} acts edit(message, text), regenerate(message, sameSeed), version(message, step), look(message)
 * @param {object[]} versions of the message
 */
export class MessageView {
  constructor(message, acts, versions) {
    this.message = message;
    this.acts = acts;
    this.drawn = { text: 0, reasoning: 0 };
    this.element = h("article", { class: `message ${message.role}`, "aria-label": message.role === "user" ? "You" : "Answer" });
    this.body = h("div", { class: "body" });
    this.tools = h("div", { class: "tools" });
    if (message.role === "user") this.#user(versions);
    else this.#assistant(versions);
  }

  #user(versions) {
    this.element.append(h("h2", { class: "hidden-text", text: "You" }), this.body, this.tools);
    new Plain(this.body).add(this.message.text);
    this.tools.append(
      ...this.#switcher(versions),
      iconButton("copy", "Copy message", () => copy(this.message.text)),
      iconButton("edit", "Edit message", () => this.edit()),
    );
  }

  #assistant(versions) {
    this.versions = versions;
    this.thinking = h("div", { class: "thinking", tabindex: "0", role: "group", "aria-label": "Reasoning" });
    this.summary = h("summary");
    this.fold = h("details", { class: "fold", hidden: true }, this.summary, this.thinking);
    this.status = h("div", { class: "status", hidden: true });
    this.note = h("div", { class: "note", hidden: true });
    this.facts = h("span", { class: "facts" });
    this.element.append(h("h2", { class: "hidden-text", text: "Answer" }), this.fold, this.status, this.body, this.note, this.tools);
    this.plain = new Plain(this.thinking);
    this.markdown = new Markdown(this.body);
  }

  #switcher(versions) {
    if (versions.length < 2) return [];
    const at = versions.indexOf(this.message);
    const step = (by, name, label) => iconButton(name, label, () => this.acts.version(this.message, by), { disabled: !versions[at + by] });
    return [h("span", { class: "switcher", role: "group", "aria-label": "Versions" },
      step(-1, "left", "Earlier version"), h("span", { text: `${at + 1} / ${versions.length}` }), step(1, "right", "Later version"))];
  }

  /**
   * Draw what is new.
   * @param {object|null} live of the `Answering`; null: the message does not grow any more
   */
  update(live) {
    const { message, drawn } = this;
    if (message.role === "user") return;
    if (message.reasoning.length > drawn.reasoning) {
      this.plain.add(message.reasoning.slice(drawn.reasoning));
      drawn.reasoning = message.reasoning.length;
      this.fold.hidden = false;
    }
    if (message.text.length > drawn.text) {
      this.markdown.add(message.text.slice(drawn.text));
      drawn.text = message.text.length;
    }
    if (live) this.markdown.draw();
    else this.markdown.finish();
    this.#summary(live);
    this.#status(live);
    this.element.classList.toggle("writing", live !== null);
    if (!live && !this.ended) this.#end();
  }

  #summary(live) {
    const { counts, times, text } = this.message;
    const thinking = live?.phase === "reasoning";
    const seconds = times.reasoning;
    const speed = seconds > 0.2 ? `, ${(counts.reasoning / seconds).toFixed(counts.reasoning / seconds < 10 ? 1 : 0)} tokens/s` : "";
    const about = counts.exact || thinking ? "" : "about ";
    const length = `${duration(seconds)}, ${about}${many(counts.reasoning, "token")}${speed}`;
    const words = thinking ? `Thinking for ${length}` : `Thought for ${length}${!live && text === "" ? ", without an answer" : ""}`;
    if (this.summary.textContent !== words) this.summary.textContent = words;
    this.fold.classList.toggle("busy", thinking);
  }

  #status(live) {
    const { status } = this;
    status.hidden = !(live && (live.countdown || live.phase === "waiting" || live.phase === "prompt"));
    if (status.hidden) return;
    const { countdown, progress } = live;
    if (!this.bar) {
      this.words = h("span", { class: "pulse" });
      this.bar = h("progress", { "aria-label": "Prompt read", hidden: true });
      status.append(this.words, this.bar);
    }
    this.bar.hidden = !progress || countdown !== null;
    if (countdown) {
      const why = countdown.code === "loading" ? "The model is loading" : "The server is busy";
      this.words.textContent = `${why}. The page asks again in ${countdown.seconds} s.`;
    } else if (progress) {
      this.bar.max = progress.total;
      this.bar.value = progress.done;
      const left = progress.left === null || progress.done >= progress.total ? "" : `, about ${duration(progress.left)} left`;
      this.words.textContent = `Reading the prompt: ${count(progress.done)} of ${many(progress.total, "token")}${left}`;
    } else {
      this.words.textContent = "Waiting for the server";
    }
  }

  #end() {
    const { message, acts } = this;
    this.ended = true;
    const note = problemNote(message) ?? endingNote(message);
    if (note) {
      this.note.hidden = false;
      this.note.className = `note ${note.kind}`;
      this.note.replaceChildren(h("span", { text: note.text }), note.again
        ? h("button", { type: "button", class: "text-button", text: "Try again", on: { click: () => acts.regenerate(message, false) } }) : "");
    }
    this.facts.textContent = facts(message);
    this.tools.replaceChildren(
      ...this.#switcher(this.versions),
      iconButton("copy", "Copy answer", () => copy(message.text)),
      iconButton("shuffle", "Answer again with another seed", () => acts.regenerate(message, false)),
      iconButton("redo", "Answer again with the same seed", () => acts.regenerate(message, true)),
      iconButton("eye", "Look inside the model at this answer", () => acts.look(message)),
      this.facts,
    );
  }

  /** Turn a message of the user into a text box. Its end starts a branch. */
  edit() {
    const { message } = this;
    const box = h("textarea", { "aria-label": "Edit message", dir: "auto", rows: "3" });
    box.value = message.text;
    const end = (keep) => {
      form.remove();
      this.body.hidden = this.tools.hidden = false;
      if (keep && box.value.trim() !== "") this.acts.edit(message, box.value);
      else this.tools.querySelector("[aria-label='Edit message']").focus();
    };
    const form = h("form", { class: "edit", on: { submit: (event) => { event.preventDefault(); end(true); } } }, box,
      h("div", { class: "edit-buttons" },
        h("button", { type: "button", class: "plain-button", text: "Cancel", on: { click: () => end(false) } }),
        h("button", { type: "submit", class: "main-button", text: "Send as a new branch" })));
    box.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        end(false);
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
        event.preventDefault();
        end(true);
      }
    });
    this.body.hidden = this.tools.hidden = true;
    this.element.append(form);
    box.focus();
    box.setSelectionRange(box.value.length, box.value.length);
  }
}

/** Return a line about an answer: its tokens, its speed, its seed. */
function facts({ counts, times, settings }) {
  const output = counts.output;
  const seconds = times.reasoning + times.answer;
  const parts = [];
  if (output) parts.push(`${counts.exact ? "" : "about "}${many(output, "token")}`);
  if (output && seconds > 0.2) parts.push(`${(output / seconds).toFixed(1)} tokens/s`);
  if (settings?.seed !== undefined) parts.push(`seed ${settings.seed}`);
  return parts.join(" · ");
}
