/**
 * Markdown as nodes, while it comes. Text becomes text nodes, and no other markup has a meaning.
 *
 * Each line is read once, when it is whole. The last line is drawn as if it were whole, and taken back when more comes.
 * A line longer than `LONG` is drawn in pieces, so the work grows with the length of the text alone.
 * Line ends stay line ends, and emphasis does not go on over them: models write lines that mean something.
 */

import { copy, h } from "./dom.js";
import { inline } from "./inline.js";

const LONG = 4000; // characters of a line that are drawn as one piece
const DEEP = 8; // quotes and lists within each other
const CODE_LINES = 100; // of a block of code that are laid out together
const CELLS = 64; // columns of a table

/** Draws a text that grows into an element. */
export class Markdown {
  #rest = "";
  #root;
  #continued = false; // the rest goes on with a line of which a piece is drawn
  #undo = null;

  constructor(element) {
    this.#root = new Blocks(element, 0);
  }

  /** Add text at the end. */
  add(text) {
    this.#takeBack();
    let from = 0;
    for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n", from)) {
      this.#pieces(this.#rest + text.slice(from, end));
      this.#rest = "";
      this.#line(this.last);
      this.#continued = false;
      from = end + 1;
    }
    this.#pieces(this.#rest + text.slice(from));
    this.#rest = this.last;
  }

  /** Draw the last line, too. */
  draw() {
    this.#takeBack();
    if (this.#rest === "") return;
    const before = this.#root.remember();
    const journal = [];
    this.#root.journal(journal);
    this.#line(this.#rest);
    this.#root.journal(null);
    this.#undo = () => {
      for (const node of journal.reverse()) node.remove();
      this.#root = before;
    };
  }

  /** Draw the end of a text that does not grow any more. */
  finish() {
    this.#takeBack();
    if (this.#rest !== "") this.#line(this.#rest);
    this.#rest = "";
  }

  #takeBack() {
    this.#undo?.();
    this.#undo = null;
  }

  /** Draw what is too long of a line; `last` is what remains. */
  #pieces(line) {
    let from = 0;
    while (line.length - from > LONG) {
      let end = from + LONG;
      if (line.charCodeAt(end - 1) >= 0xd800 && line.charCodeAt(end - 1) < 0xdc00) end -= 1; // not within a pair
      this.#line(line.slice(from, end));
      this.#continued = true;
      from = end;
    }
    this.last = from ? line.slice(from) : line;
  }

  #line(line) {
    if (this.#continued) this.#root.goOn(line);
    else this.#root.line(line.endsWith("\r") ? line.slice(0, -1) : line);
  }
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const DIVIDER = /^[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/**
 * The blocks of one container: the whole text, a quote, or an item of a list.
 *
 * `open` is the last block, as long as it may go on: {kind: "paragraph" | "code" | "list" | "quote" | "table", ...}.
 */
class Blocks {
  open = null;
  #journal = null;

  constructor(element, depth) {
    this.element = element;
    this.depth = depth;
  }

  /** Return a copy of the state, whose nodes are the same. */
  remember() {
    const copy = new Blocks(this.element, this.depth);
    copy.open = this.open && { ...this.open };
    if (copy.open?.inner) copy.open.inner = copy.open.inner.remember();
    return copy;
  }

  /** Note the nodes that are added from now on; null: no more. */
  journal(list) {
    this.#journal = list;
    this.open?.inner?.journal(list);
  }

  #put(parent, ...nodes) {
    for (const node of nodes) {
      parent.append(node);
      this.#journal?.push(node);
    }
    return nodes[0];
  }

  #inner(element) {
    const inner = new Blocks(element, this.depth + 1);
    inner.journal(this.#journal);
    return inner;
  }

  /** Take a whole line. */
  line(line) {
    const open = this.open;
    if (open?.kind === "code") return this.#code(line);
    if (open?.kind === "list" && this.#goesOnInItem(line)) return undefined;
    const blank = line.trim() === "";
    if (open?.kind === "quote") {
      const match = /^ {0,3}> ?/.exec(line);
      if (match) return open.inner.line(line.slice(match[0].length));
    }
    if (blank) {
      if (open?.kind !== "list") this.open = null;
      return undefined;
    }
    return this.#block(line);
  }

  /** Take a further piece of the last line, which is too long to be drawn at once. */
  goOn(piece) {
    const open = this.open;
    if (open?.inner) open.inner.goOn(piece);
    else if (open?.kind === "code") this.#codeText(piece);
    else this.#put(this.element, h("p", { class: "joined", dir: "auto" }, ...inline(piece)));
  }

  #block(line) {
    const nested = this.depth < DEEP;
    const fence = FENCE.exec(line);
    if (fence) return this.#openCode(fence);
    const heading = HEADING.exec(line);
    if (heading) {
      this.open = null;
      const level = Math.min(6, heading[1].length + 2); // the page has h1, and h2 is the message's
      return this.#put(this.element, h(`h${level}`, { dir: "auto", class: `level${heading[1].length}` }, ...inline(heading[2])));
    }
    if (RULE.test(line)) {
      this.open = null;
      return this.#put(this.element, h("hr"));
    }
    const quote = nested && /^ {0,3}> ?/.exec(line);
    if (quote) {
      const element = this.#put(this.element, h("blockquote", { dir: "auto" }));
      this.open = { kind: "quote", inner: this.#inner(element) };
      return this.open.inner.line(line.slice(quote[0].length));
    }
    const item = nested && ITEM.exec(line);
    if (item) return this.#openItem(line, item);
    if (this.open?.kind === "table") return this.#row(line);
    if (this.#dividesTable(line)) return this.#journal ? undefined : this.#openTable(line);
    return this.#paragraph(line);
  }

  #paragraph(line) {
    if (this.open?.kind !== "paragraph") {
      this.open = { kind: "paragraph", element: this.#put(this.element, h("p", { dir: "auto" })), first: true };
    }
    const nodes = inline(line.trimStart());
    if (!this.open.first) nodes.unshift(document.createTextNode("\n"));
    this.#put(this.open.element, ...nodes);
    this.open = { ...this.open, first: false, last: line, nodes };
    if (this.open.element.childNodes.length > 200) this.open.element = this.#put(this.element, h("p", { class: "joined", dir: "auto" }));
    if (this.open.element.childNodes.length === 0) this.open.first = true;
    return undefined;
  }

  // Code

  #openCode([, fence, language]) {
    const code = h("code", { tabindex: "0", "aria-label": language ? `Code, ${language}` : "Code" });
    const head = h("div", { class: "code-head" }, h("span", { text: language.slice(0, 30) || "text" }),
      h("button", { type: "button", class: "text-button", text: "Copy", "aria-label": "Copy the code",
        on: { click: () => copy(code.textContent.replace(/\n$/, "")) } }));
    this.#put(this.element, h("div", { class: "code", dir: "ltr" }, head, h("pre", {}, code)));
    this.open = { kind: "code", fence, element: code, part: null, count: 0 };
  }

  #code(line) {
    const { fence } = this.open;
    const trimmed = line.trim();
    if (trimmed.length >= fence.length && trimmed === fence[0].repeat(trimmed.length)) {
      this.open = null;
      return;
    }
    if (this.open.count % CODE_LINES === 0) this.open.part = this.#put(this.open.element, h("span", { class: "part" }));
    this.open.count += 1;
    this.#put(this.open.part, document.createTextNode(`${line}\n`));
  }

  #codeText(piece) {
    this.open.part = this.#put(this.open.element, h("span", { class: "part" }));
    this.open.count = 0;
    this.#put(this.open.part, document.createTextNode(`${piece}\n`));
  }

  // Lists

  #openItem(line, [all, before, mark, after]) {
    const ordered = /\d/.test(mark);
    const kind = ordered ? mark.at(-1) : mark;
    if (this.open?.kind !== "list" || this.open.mark !== kind) {
      const start = ordered && Number.parseInt(mark, 10) !== 1 ? String(Number.parseInt(mark, 10)) : null;
      const list = this.#put(this.element, h(ordered ? "ol" : "ul", { start, dir: "auto" }));
      this.open = { kind: "list", mark: kind, list };
    }
    const item = this.#put(this.open.list, h("li", { dir: "auto" }));
    const width = before.length + mark.length + (after.length > 4 || after === "" ? 1 : after.length);
    this.open = { ...this.open, width, inner: this.#inner(item), blank: false };
    this.open.inner.line(line.slice(Math.min(all.length, width)));
  }

  /** Give a line to the last item of a list, if it belongs there. */
  #goesOnInItem(line) {
    const { width, inner } = this.open;
    const indent = line.length - line.trimStart().length;
    if (line.trim() === "") {
      this.open.blank = true;
      if (inner.open?.kind === "code") inner.line("");
      else if (inner.open?.kind !== "list") inner.open = null;
      else inner.line("");
      return true;
    }
    // Two blanks are enough below "1. ", as many models write them.
    if (indent >= width || (indent >= 2 && (inner.open?.kind === "list" || ITEM.test(line.trimStart())))) {
      this.open.blank = false;
      inner.line(line.slice(Math.min(indent, width)));
      return true;
    }
    if (!this.open.blank && inner.open?.kind === "paragraph" && indent === 0 && !startsBlock(line)) {
      inner.line(line);
      return true;
    }
    if (this.open.blank && !ITEM.test(line)) this.open = null;
    return false;
  }

  // Tables

  #dividesTable(line) {
    const { open } = this;
    return open?.kind === "paragraph" && open.last?.includes("|") && line.includes("-") && DIVIDER.test(line)
      && cells(open.last).length === cells(line).length;
  }

  #openTable(line) {
    const { last, nodes } = this.open;
    for (const node of nodes) node.remove();
    if (!this.open.element.hasChildNodes()) this.open.element.remove();
    const align = cells(line).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : null));
    const head = h("tr", {}, ...cells(last).map((cell, at) => h("th", { scope: "col", class: align[at], dir: "auto" }, ...inline(cell))));
    const body = h("tbody");
    const table = h("table", {}, h("thead", {}, head), body);
    this.#put(this.element, h("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" }, table));
    this.open = { kind: "table", body, align };
  }

  #row(line) {
    const { align, body } = this.open;
    if (!line.includes("|")) {
      this.open = null;
      return this.#paragraph(line);
    }
    const found = cells(line);
    this.#put(body, h("tr", {}, ...align.map((side, at) => h("td", { class: side, dir: "auto" }, ...inline(found[at] ?? "")))));
    return undefined;
  }
}

const startsBlock = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || ITEM.test(line) || line.startsWith(">");

/** Return the cells of a row. `\|` is a sign. */
function cells(line) {
  const found = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "").split(/(?<!\\)\|/, CELLS);
  return found.map((cell) => cell.trim().replaceAll("\\|", "|"));
}
