/** One line of Markdown as nodes: code, emphasis, links. All else is text. */

import { h } from "./dom.js";

const DEEP = 6; // emphasis within emphasis
const SPECIAL = /[`*_~[\\h]/g;
const LETTER = /[\p{L}\p{N}]/u;
const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const BARE = /https?:\/\/[^\s<>"`]+/y;

/**
 * Return the nodes of a line.
 * @param {string} text of at most some thousand characters
 * @returns {Node[]}
 */
export function inline(text, depth = 0) {
  const nodes = [];
  const missing = new Set(); // closing marks that do not come any more
  let plain = 0; // where the text before `at` begins that is not a node yet
  let at = 0;
  const put = (node, end) => {
    if (at > plain) nodes.push(document.createTextNode(unescape(text.slice(plain, at))));
    nodes.push(node);
    plain = at = end;
  };
  for (;;) {
    SPECIAL.lastIndex = at;
    const found = SPECIAL.exec(text);
    if (!found) break;
    at = found.index;
    const sign = found[0];
    const one = sign === "\\" ? null : (READERS[sign] ?? emphasis)(text, at, missing, depth);
    if (one) put(one.node, one.end);
    else at += sign === "\\" ? 2 : run(text, at, sign);
  }
  at = text.length;
  if (at > plain) nodes.push(document.createTextNode(unescape(text.slice(plain))));
  return nodes;
}

const unescape = (text) => text.replace(/\\([\\!"#$%&'*+,\-./:;<=>?@^_`{|}~])/g, "$1");

/** Return how often a sign stands in a row. */
function run(text, at, sign) {
  let end = at + 1;
  while (sign !== "h" && sign !== "[" && text[end] === sign) end += 1;
  return end - at;
}

/** Return where a closing mark stands, or -1. A mark that is not found once is not looked for again. */
function find(text, mark, from, missing) {
  if (missing.has(mark)) return -1;
  const found = text.indexOf(mark, from);
  if (found < 0) missing.add(mark);
  return found;
}

function code(text, at, missing) {
  const ticks = "`".repeat(run(text, at, "`"));
  let end = find(text, ticks, at + ticks.length, missing);
  while (end >= 0 && text[end + ticks.length] === "`") end = find(text, ticks, end + run(text, end, "`"), missing);
  if (end < 0) return null;
  const inside = text.slice(at + ticks.length, end);
  const trimmed = /^ .*[^ ].* $/.test(inside) ? inside.slice(1, -1) : inside;
  return { node: h("code", { text: trimmed, dir: "ltr" }), end: end + ticks.length };
}

const TAGS = { "*": "em", _: "em", "**": "strong", __: "strong", "~~": "del" };

/** A single mark between letters or digits is a sign: 2*3*4, a_name. */
function emphasis(text, at, missing, depth) {
  const sign = text[at];
  const length = run(text, at, sign);
  if (depth >= DEEP || length > 3 || (sign === "~" && length !== 2)) return null;
  const mark = sign.repeat(length);
  const before = text[at - 1] ?? " ";
  if (/\s/.test(text[at + length] ?? " ") || ((length === 1 || sign === "_") && LETTER.test(before))) return null;
  for (let end = find(text, mark, at + length + 1, missing), tries = 0; end >= 0 && tries < 20; tries += 1) {
    const size = run(text, end, sign);
    const after = text[end + size] ?? " ";
    const closes = !/\s/.test(text[end - 1]) && text[end - 1] !== "\\" && !((length === 1 || sign === "_") && LETTER.test(after));
    if (closes && size >= length && (size === length || length > 1)) {
      const stop = end + size - length;
      const nodes = inline(text.slice(at + length, stop), depth + 1);
      const node = length === 3 ? h("strong", {}, h("em", {}, ...nodes)) : h(TAGS[mark], {}, ...nodes);
      return { node, end: stop + length };
    }
    end = find(text, mark, end + size, missing);
  }
  return null;
}

function link(text, at, missing, depth) {
  const middle = find(text, "](", at + 1, missing);
  if (middle < 0 || depth >= DEEP) return null;
  const end = find(text, ")", middle + 2, missing);
  if (end < 0 || text.slice(at + 1, middle).includes("[")) return null;
  const [url] = text.slice(middle + 2, end).trim().split(/\s+["'(]/, 1);
  const words = inline(text.slice(at + 1, middle), DEEP);
  const node = anchor(url, words);
  return node && { node, end: end + 1 };
}

function bare(text, at) {
  BARE.lastIndex = at;
  const match = BARE.exec(text);
  if (!match || (at > 0 && LETTER.test(text[at - 1]))) return null;
  let url = match[0].replace(/[.,;:!?'*_]+$/, "");
  if (url.endsWith(")") && !url.includes("(")) url = url.slice(0, -1);
  const node = anchor(url, [document.createTextNode(url)]);
  return node && { node, end: at + url.length };
}

/** Return a link that leaves the page, or null for an address that is not of the web. */
function anchor(url, words) {
  if (!/^(?:https?:\/\/|mailto:)/i.test(url) || !URL.canParse(url)) return null;
  const address = new URL(url);
  if (!SCHEMES.has(address.protocol)) return null;
  return h("a", { href: address.href, title: address.href, target: "_blank", rel: "noopener noreferrer" }, ...words);
}

const READERS = { "`": code, "[": link, h: bare };
