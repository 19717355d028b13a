/** The size of the residual stream after each layer, and what each layer adds. */

import { h, svg } from "./dom.js";

const WIDTH = 640;
const TOP = 210; // height of the lines
const LOW = 130; // height of the bars
const LEFT = 48;
const RIGHT = 12;

export class Residual {
  constructor() {
    this.element = h("div", { class: "scroll-x" });
  }

  /** Draw all tokens, one of them strong. */
  draw({ rms, attention, mlp }, token) {
    const layers = rms.length - 1;
    const x = (layer) => LEFT + ((WIDTH - LEFT - RIGHT) * (layer + 0.5)) / (layers + 1);
    const all = rms.flat().filter((value) => value > 0);
    const [low, high] = [Math.log10(Math.min(...all)) - 0.05, Math.log10(Math.max(...all)) + 0.05];
    const y = (value) => 12 + (TOP - 24) * (1 - (Math.log10(Math.max(value, 1e-9)) - low) / (high - low));
    const line = (at) => rms.map((row, layer) => `${layer ? "L" : "M"}${x(layer).toFixed(1)} ${y(row[at]).toFixed(1)}`).join("");
    const others = rms[0].map((_, at) => (at === token ? "" : line(at))).join("");
    const top = [
      ...ticks(low, high).map((value) => scale(value, y(value), String(value))),
      svg("path", { class: "faint-line", d: others }),
      svg("path", { class: "strong-line", d: line(token) }),
      ...rms.map((row, layer) => svg("circle", { class: "strong-dot", cx: x(layer), cy: y(row[token]), r: 3.5 }, svg("title", { text: `${name(layer)}: ${row[token]}` }))),
      svg("text", { class: "axis", x: LEFT, y: 10, text: "size (root mean square)" }),
    ];
    const shares = [attention, mlp].map((added) => added.map((row, layer) => row[token] / rms[layer][token]));
    const most = Math.max(0.01, ...shares.flat());
    const begin = TOP + 24;
    const height = (share) => (LOW - 26) * (share / most);
    const base = begin + LOW;
    const width = Math.max(2, Math.min(26, (WIDTH - LEFT) / (layers + 1) / 3));
    const low_ = [
      scale(0, base, "0 %"), scale(most, base - height(most), `${Math.round(100 * most)} %`),
      ...shares.flatMap((each, kind) => each.map((share, layer) => svg("rect", {
        class: kind ? "bar mlp" : "bar attention", x: x(layer + 1) - width * (1 - kind), y: base - height(share), width: width - 1, height: height(share),
      }, svg("title", { text: `layer ${layer}, ${kind ? "MLP" : "attention"}: ${Math.round(100 * share)} %` })))),
      svg("text", { class: "axis", x: LEFT, y: begin + 2, text: "added by each layer: " }, svg("tspan", { class: "of-attention", text: "attention " }), svg("tspan", { class: "of-mlp", text: " MLP" })),
    ];
    const every = Math.ceil((layers + 1) / 16);
    const names = rms.map((_, layer) => (layer % every ? "" : svg("text", { class: "axis middle", x: x(layer), y: base + 18, text: layer ? String(layer - 1) : "emb" })));
    const words = `The stream of the chosen token grows from ${rms[0][token]} to ${rms[layers][token]}.`;
    this.element.replaceChildren(svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${base + 26}`, role: "img", "aria-label": words }, ...top, ...low_, ...names), h("p", { class: "quiet", text: words }));
  }
}

const name = (layer) => (layer ? `layer ${layer - 1}` : "embedding");

/** Return round numbers between two powers of ten. */
function ticks(low, high) {
  const steps = high - low > 2 ? [1] : [1, 2, 5];
  const found = [];
  for (let power = Math.floor(low); power <= high; power += 1) {
    for (const step of steps) {
      const value = step * 10 ** power;
      if (Math.log10(value) >= low && Math.log10(value) <= high) found.push(Number(value.toPrecision(1)));
    }
  }
  return found;
}

function scale(_, y, text) {
  return svg("g", {}, svg("line", { class: "grid-line", x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }), svg("text", { class: "axis end", x: LEFT - 6, y: y + 4, text }));
}
