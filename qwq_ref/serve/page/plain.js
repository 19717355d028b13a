/** Plain text that grows, such as reasoning: laid out in parts, so that new text costs the same at each length. */

import { h } from "./dom.js";

const PART = 4000; // characters that are laid out together, or a few more until a line ends
const LONGEST = 8000; // without a line end

export class Plain {
  #part = null;
  #length = 0;

  constructor(element) {
    this.element = element;
  }

  /** Add text at the end. */
  add(text) {
    for (let from = 0; from < text.length;) {
      this.#part ??= this.element.appendChild(h("p", { dir: "auto" }));
      const room = PART - this.#length;
      let end = text.length;
      if (text.length - from > room) {
        const line = text.indexOf("\n", Math.max(from, from + room));
        const most = from + LONGEST - this.#length;
        end = line >= 0 && line < most ? line + 1 : Math.min(text.length, Math.max(from + 1, most));
      }
      const piece = text.slice(from, end);
      this.#part.append(piece);
      this.#length += piece.length;
      from = end;
      if (this.#length >= PART && (piece.endsWith("\n") || this.#length >= LONGEST)) {
        this.#part = null;
        this.#length = 0;
      }
    }
  }
}
