/** Build nodes. A string becomes a text node, never HTML. */

import { icon } from "./icons.js";

/**
 * Return an element.
 * @param {string} tag
 * @param {object} [props] attributes by name; and `class`, `text`, `icon`, `on: {event: listener}`. null: left out
 * @param {...(Node|string|null)} children
 * @returns {HTMLElement}
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "icon") element.append(icon(value));
    else if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** Return an SVG element with attributes. */
export function svg(tag, props = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "text") element.textContent = value;
    else if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Return a button with an icon. Its label is its name, and its tip. */
export function iconButton(name, label, act, props = {}) {
  return h("button", {
    type: "button", class: "icon-button", icon: name, "aria-label": label, title: label, on: { click: act }, ...props,
  });
}

/** Return the element with an id. */
export const byId = (id) => document.getElementById(id);

/** Put an icon into each element with `data-icon`, before its text. */
export function drawIcons() {
  for (const element of document.querySelectorAll("[data-icon]")) element.prepend(icon(element.dataset.icon));
}

/** Say something to people with a screen reader. */
export function announce(text) {
  const live = byId("live");
  live.textContent = "";
  requestAnimationFrame(() => { live.textContent = text; });
}

/**
 * Show a line for some seconds, with a button or not.
 * @param {string} text
 * @param {{label: string, act: function(): void}} [action]
 */
export function toast(text, action) {
  const close = () => element.remove();
  const element = h("div", { class: "toast", role: "status" }, h("span", { text }),
    action ? h("button", { type: "button", class: "text-button", text: action.label,
      on: { click: () => { close(); action.act(); } } }) : null);
  byId("toasts").replaceChildren(element);
  setTimeout(close, action ? 10000 : 5000);
}

/** Copy a text, and say so. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied");
  } catch {
    toast("The browser does not let this page copy");
  }
}

/** Return a number with separators: 12,345. */
export const count = (number) => Math.round(number).toLocaleString("en-US");

/** Return a number of things: "1 token", "12 tokens". */
export const many = (number, thing) => `${count(number)} ${thing}${number === 1 ? "" : "s"}`;

/** Return seconds as people say them: "0.4 s", "12 s", "3 min 20 s". */
export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}
