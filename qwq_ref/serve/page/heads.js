/** The attention of each head for one token: a grid of small pictures, one of them chosen. */

import { h, svg } from "./dom.js";
import { visible } from "./tokens.js";

const WIDTH = 100;
const HEIGHT = 32;

export class Heads {
  #chosen = null; // {layer, head}; null: the mean of the last layer

  /** @param {function(number[], string): void} show called with weights of tokens, and words for them */
  constructor(show) {
    this.show = show;
    this.grid = h("div", { class: "heads", role: "listbox", "aria-label": "Heads", tabindex: "0" });
    this.words = h("p", { class: "head-words", "aria-live": "polite" });
    this.element = h("div", {}, this.words, h("div", { class: "scroll-x", tabindex: "-1" }, this.grid));
    const at = (event) => event.target.closest("[role=option]");
    this.grid.addEventListener("click", (event) => { if (at(event)) this.#choose(...place(at(event))); });
    this.grid.addEventListener("pointerover", (event) => { if (at(event)) this.#tell(...place(at(event))); });
    this.grid.addEventListener("pointerleave", () => this.#tell(this.#chosen.layer, this.#chosen.head));
    this.grid.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Draw the attention of a token. */
  draw(data, token) {
    this.data = data;
    this.token = token;
    const { query } = data.attention;
    this.grid.style.setProperty("--heads", data.heads);
    this.cells = query.map((layer, l) => layer.map((weights, head) => h("div", {
      role: "option", id: `head-${l}-${head}`, "data-layer": l, "data-head": head, class: "head", "aria-selected": "false",
      "aria-label": this.#describe(l, head),
    }, bars(weights))));
    const rows = this.cells.flatMap((cells, l) => [h("span", { class: "row-name", "aria-hidden": "true", text: `L${l}` }), ...cells]);
    const heads = this.cells[0].map((_, head) => h("span", { class: "column-name", "aria-hidden": "true", text: `H${head}` }));
    this.grid.replaceChildren(h("span"), ...heads, ...rows);
    const { layer, head } = this.#chosen ?? sharpest(query);
    this.#choose(Math.min(layer, query.length - 1), Math.min(head, query[0].length - 1));
  }

  /** Say what the tokens above show. */
  say(text) {
    this.words.textContent = text;
  }

  #choose(layer, head) {
    this.grid.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
    this.#chosen = { layer, head };
    const cell = this.cells[layer][head];
    cell.setAttribute("aria-selected", "true");
    this.grid.setAttribute("aria-activedescendant", cell.id);
    this.#tell(layer, head);
  }

  #tell(layer, head) {
    this.show(this.data.attention.query[layer][head], this.#describe(layer, head));
  }

  #describe(layer, head) {
    const weights = this.data.attention.query[layer][head];
    const best = weights.map((weight, at) => [weight, at]).sort((a, b) => b[0] - a[0]).slice(0, 3).filter(([weight]) => weight >= 0.01);
    const seen = best.map(([weight, at]) => `“${visible(this.data.tokens[at].text)}” at ${at} (${Math.round(100 * weight)} %)`);
    return `Layer ${layer}, head ${head} looks at ${seen.join(", ")}`;
  }

  #key(event) {
    const { layer, head } = this.#chosen;
    const [rows, columns] = [this.cells.length, this.cells[0].length];
    const to = {
      ArrowRight: [layer, head + 1], ArrowLeft: [layer, head - 1], ArrowDown: [layer + 1, head], ArrowUp: [layer - 1, head],
      Home: [layer, 0], End: [layer, columns - 1],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    this.#choose(Math.min(rows - 1, Math.max(0, to[0])), Math.min(columns - 1, Math.max(0, to[1])));
    this.cells[this.#chosen.layer][this.#chosen.head].scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}

const place = (cell) => [Number(cell.dataset.layer), Number(cell.dataset.head)];

/** Return the head that looks most at one token which is neither the first nor the last. */
function sharpest(query) {
  let best = { layer: 0, head: 0, weight: -1 };
  for (const [layer, heads] of query.entries()) {
    for (const [head, weights] of heads.entries()) {
      const weight = Math.max(0, ...weights.slice(1, -1));
      if (weight > best.weight) best = { layer, head, weight };
    }
  }
  return best;
}

/** Return bars, one for each token. */
function bars(weights) {
  const step = WIDTH / weights.length;
  const width = Math.max(step * 0.86, 0.7);
  const path = weights.map((weight, at) => {
    const height = Math.sqrt(weight) * HEIGHT;
    return height < 0.3 ? "" : `M${(at * step).toFixed(2)} ${HEIGHT}v${(-height).toFixed(2)}h${width.toFixed(2)}V${HEIGHT}z`;
  });
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, svg("path", { d: path.join("") }));
}
