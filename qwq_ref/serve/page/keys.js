/** Shortcuts of the keyboard, and the dialog that lists them. */

import { byId, h } from "./dom.js";

const MAC = /Mac|iPhone|iPad/.test(navigator.platform);
const CONTROL = MAC ? "⌘" : "Ctrl";

const LIST = [
  ["Enter", "send"],
  ["Shift+Enter", "start a line"],
  ["Esc", "stop the answer"],
  ["↑ in an empty box", "edit your last message"],
  [`${CONTROL}+Shift+O`, "new conversation"],
  [`${CONTROL}+K`, "search conversations"],
  ["Shift+Esc", "go to the message box"],
  [`${CONTROL}+Shift+,`, "settings"],
  [`${CONTROL}+/`, "this list"],
  ["F2, Delete in the list", "rename, delete a conversation"],
  ["← → in tabs, tokens and heads", "choose the next one"],
];

/** Listen for shortcuts. `acts`: stop(): boolean, create(), search(), focus(), settings() */
export function listen(acts) {
  document.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const control = MAC ? event.metaKey : event.ctrlKey;
    const act = found(event, control, acts);
    if (act && act() !== false) event.preventDefault();
  });
  byId("keys-open").addEventListener("click", show);
}

function found(event, control, acts) {
  if (document.querySelector("dialog[open]")) return null;
  if (event.key === "Escape") return event.shiftKey ? acts.focus : acts.stop;
  if (!control) return null;
  if (event.shiftKey && event.code === "KeyO") return acts.create;
  if (event.shiftKey && event.code === "Comma") return acts.settings;
  if (!event.shiftKey && event.code === "KeyK") return acts.search;
  if (!event.shiftKey && event.code === "Slash") return show;
  return null;
}

function show() {
  const dialog = byId("keys");
  dialog.replaceChildren(h("form", { on: { submit: (event) => { event.preventDefault(); dialog.close(); } } },
    h("h2", { id: "keys-title", text: "Shortcuts" }),
    h("dl", { class: "keys" }, ...LIST.flatMap(([keys, does]) => [h("dt", {}, h("kbd", { text: keys })), h("dd", { text: does })])),
    h("div", { class: "dialog-buttons" }, h("span", { class: "grow" }), h("button", { type: "submit", class: "main-button", text: "Close" }))));
  dialog.showModal();
}
