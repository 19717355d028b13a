/** The likeliest next tokens after each layer, as a table. */

import { h } from "./dom.js";
import { visible } from "./tokens.js";

export class LensTable {
  summary = "";

  constructor() {
    this.element = h("div", { class: "scroll-x", tabindex: "0", role: "group", "aria-label": "Table of the likeliest tokens" });
  }

  /** Draw the rows of a token, the embedding first. */
  draw({ lens, layers, tokens }, token) {
    const rows = lens.ids.map((ids, layer) => {
      const cells = ids[token].map((id, place) => {
        const share = lens.probs[layer][token][place];
        const cell = h("td", {}, h("bdi", { class: "word", text: visible(lens.texts[id]) }), h("span", { class: "share", text: percent(share) }));
        cell.style.setProperty("--share", Math.sqrt(share).toFixed(3));
        return cell;
      });
      const name = layer === 0 ? "embedding" : layer === layers ? `layer ${layer - 1}, the end` : `layer ${layer - 1}`;
      return h("tr", {}, h("th", { scope: "row", text: name }), ...cells, h("td", { class: "rank", text: lens.rank[layer][token] }));
    });
    const said = lens.texts[lens.ids[layers][token][0]];
    const next = tokens[token + 1]?.text;
    this.summary = `after it the model says “${visible(said)}”`;
    const words = `Behind “${visible(tokens[token].text)}”, the likeliest token is “${visible(said)}”`;
    const then = next === undefined ? "." : next === said ? ", and it is the next one of the text." : `; the text goes on with “${visible(next)}”.`;
    this.element.replaceChildren(h("table", { class: "lens" },
      h("caption", { text: words + then }),
      h("thead", {}, h("tr", {}, h("th", { scope: "col", text: "after" }), h("th", { scope: "col", colspan: "5", text: "likeliest tokens" }), h("th", { scope: "col", text: "rank" }))),
      h("tbody", {}, ...rows)));
  }
}

const percent = (share) => (share >= 0.995 ? "100 %" : share >= 0.1 ? `${(100 * share).toFixed(0)} %` : `${(100 * share).toFixed(1)} %`);
