/** The tokens of a text in a row, one of them chosen. Arrows move, and colours show what a head looks at. */

import { h } from "./dom.js";

const SIGNS = { "\n": "⏎", "\t": "⇥" };

export class TokenStrip {
  #chosen = 0;
  #timer = 0;

  /** @param {function(number): void} choose */
  constructor(choose) {
    this.choose = choose;
    this.element = h("div", { class: "strip", role: "listbox", "aria-label": "Tokens", "aria-orientation": "horizontal", tabindex: "0" });
    this.element.addEventListener("click", (event) => {
      const token = event.target.closest("[role=option]");
      if (token) this.#take(Number(token.dataset.at));
    });
    this.element.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Show tokens; those of the prompt have another border. */
  draw(tokens, prompt) {
    this.tokens = tokens;
    this.options = tokens.map(({ text }, at) => h("span", {
      role: "option", id: `token-${at}`, "data-at": at, class: at < prompt ? "token of-prompt" : "token", "aria-selected": "false",
      "aria-label": spoken(text), title: `${at}: ${JSON.stringify(text)}`,
    }, h("bdi", { text: visible(text) })));
    const nodes = this.options.flatMap((option, at) => (tokens[at].text.includes("\n") ? [option, h("br")] : [option]));
    this.element.replaceChildren(...nodes);
  }

  select(at) {
    this.options[this.#chosen]?.setAttribute("aria-selected", "false");
    this.#chosen = at;
    const option = this.options[at];
    option.setAttribute("aria-selected", "true");
    this.element.setAttribute("aria-activedescendant", option.id);
    if (document.activeElement === this.element) option.scrollIntoView({ block: "nearest" });
  }

  /** Colour the tokens by weights of 0 to 1. */
  tint(weights) {
    for (const [at, option] of this.options.entries()) {
      option.style.setProperty("--share", Math.sqrt(weights[at] ?? 0).toFixed(3));
      option.classList.toggle("later", at >= weights.length);
    }
  }

  #take(at) {
    this.select(at);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.choose(at), 60); // a key that is held down asks once
  }

  #key(event) {
    const last = this.options.length - 1;
    const at = this.#chosen;
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + 10, ArrowUp: at - 10, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#take(Math.min(last, Math.max(0, to)));
  }
}

/** Return a token as people can see it. */
export function visible(text) {
  const signs = text.replace(/[\n\t]/g, (sign) => SIGNS[sign]);
  return signs.replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
}

const spoken = (text) => (text.trim() === "" ? text.replaceAll("\n", "line end ").replaceAll(" ", "space ").trim() : text);
